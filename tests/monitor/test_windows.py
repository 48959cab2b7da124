"""Windows add up to what was served, whatever ends the process, sets the clock or fills the disk."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.monitor.recorders import FEATURES, SIGNATURE, make_recorder, rows_of

from tiercel.errors import WindowError
from tiercel.monitor import window_baseline, window_files, windows
from tiercel.monitor.reference import Reference
from tiercel.monitor.totals import fold, read_totals
from tiercel.monitor.window_files import pack_cells, unpack_cells
from tiercel.monitor.windows import DAY_US, HOUR_US, WindowStore, empty_window
from tiercel.settings import JournalSettings
from tiercel.types import Tier

NO_JOURNAL = JournalSettings(enabled=False)
ROWS, SCORES = rows_of(500)
REFERENCE = Reference.build(ROWS, SCORES, FEATURES)
NOW_US = 1_800_000_000_000_000 // HOUR_US * HOUR_US
MINUTE_US = 60_000_000
FOREVER = (-(2**62), 2**62)


class Traffic:
    """Workers of one state directory that can be asked, killed and started."""

    def __init__(self, state_dir):
        self.state_dir, self.n_started, self.worker, self.n_rows = state_dir, 0, None, 0
        self.start()

    def start(self):
        self.worker = make_recorder(self.state_dir, NO_JOURNAL, worker=self.n_started)
        self.plans = {}
        self.n_started += 1

    def answer(self, n, version=1, **options):
        plan = self.plans.setdefault(version, self.worker.for_plan("late", version, SIGNATURE, reference=REFERENCE))
        for at in range(n):
            row = (self.n_rows + at) % len(ROWS)
            plan.add(ROWS[row : row + 1], SCORES[row : row + 1], **options)
        self.n_rows += n

    def restart(self):
        self.plans = {}
        self.worker.close()
        self.start()


@pytest.fixture
def traffic(tmp_path):
    return Traffic(tmp_path)


def total_of(store, version=1):
    """Requests in all windows of a version."""
    window = store.merged("late", version, *FOREVER)
    return 0 if window is None else window.n_requests


def test_a_window_holds_what_was_answered_since_the_last(traffic, tmp_path):
    """Each record holds the requests since the one before: histograms, degraded rows and shadows as they were counted."""
    store = WindowStore(tmp_path)
    traffic.answer(100)
    assert store.record(NOW_US) == 100
    traffic.answer(50)
    traffic.answer(7, flags=2 << 8)  # a last score: no features
    assert store.record(NOW_US + MINUTE_US) == 57
    assert store.record(NOW_US + 2 * MINUTE_US) == 0
    second = store.merged("late", 1, NOW_US, NOW_US + MINUTE_US)
    assert (second.begin_us, second.end_us) == (NOW_US, NOW_US + MINUTE_US)
    assert (second.n_requests, second.n_rows, second.n_degraded, second.n_counted) == (57, 57, 7, 50)
    assert (second.feature_counts.sum(axis=1) == 50).all()
    assert second.reference == REFERENCE.digest
    assert second.has_edges_of(REFERENCE)
    np.testing.assert_array_equal(second.feature_edges, REFERENCE.feature_edges)
    assert second.durations[-1][:1024].sum() == 57
    whole = store.merged("late", 1, *FOREVER)
    assert (whole.n_requests, whole.tiers) == (157, ("realtime",))
    assert store.merged("late", 1, NOW_US + MINUTE_US, NOW_US + 9 * MINUTE_US) is None
    assert store.merged("late", 2, *FOREVER) is None
    assert store.versions() == [("late", 1)]
    traffic.worker.close()


def test_tiers_are_added_and_shadows_are_told(traffic, tmp_path):
    """A version that answers in two tiers has one window; what was scored beside an answer is counted as such."""
    traffic.answer(10)
    plan = traffic.worker.for_plan("late", 1, SIGNATURE, reference=REFERENCE, tier=Tier.NEAR_REALTIME)
    plan.add(ROWS[:4].copy(), SCORES[:4].copy(), flags=1 << 16)
    window_store = WindowStore(tmp_path)
    window_store.record(NOW_US)
    window = window_store.merged("late", 1, *FOREVER)
    assert window.tiers == ("near-realtime", "realtime")
    assert (window.n_requests, window.n_rows) == (11, 14)
    assert (
        window.n_shadow
        == read_totals(tmp_path / "counters").by_version()["late", 1, "near-realtime"].sections["plan"][7]
    )
    traffic.worker.close()


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["answer", "reload", "restart", "restart twice", "fold", "record", "back", "damage", "damage one"]
        ),
        max_size=14,
    )
)
def test_windows_always_add_up(tmp_path_factory, steps):
    """However restarts, folds, unreadable files and records fall, all windows together are what was counted, once."""
    tmp_path = tmp_path_factory.mktemp("sum")
    traffic, store, now_us = Traffic(tmp_path), WindowStore(tmp_path), NOW_US
    hidden = []
    for step in [*steps, "record"]:
        now_us += MINUTE_US
        if step == "answer":
            traffic.answer(3)
        elif step == "reload":  # the version is loaded again: a second file of the same counts
            traffic.plans = {}
        elif step == "restart":
            traffic.restart()
        elif step == "restart twice":  # two folds between two records
            traffic.restart()
            traffic.restart()
        elif step == "fold":
            fold(tmp_path / "counters")
        elif step == "back":
            now_us -= 3 * HOUR_US
        elif step.startswith("damage"):  # for one record, files of a worker that lives cannot be read
            paths = sorted(traffic.worker._directory.path.glob("plan-*"))
            for path in paths[:1] if step == "damage one" else paths:
                hidden.append((path, path.with_name(f".{path.name}.away")))
                path.rename(hidden[-1][1])
                path.write_bytes(b"not a counter file")
            store.record(now_us)
            while hidden:
                path, away = hidden.pop()
                away.rename(path)
        else:
            store = WindowStore(tmp_path)
            store.record(now_us)
    assert total_of(store) == traffic.n_rows
    totals = read_totals(tmp_path / "counters").by_version().get(("late", 1, "realtime"))
    if traffic.n_rows:
        window = store.merged("late", 1, *FOREVER)
        np.testing.assert_array_equal(window.feature_counts, totals.sections["features"])
        np.testing.assert_array_equal(window.durations, totals.sections["durations_ns"])
    traffic.worker.close()


def test_a_killed_worker_leaves_nothing_out(tmp_path):
    """A worker killed between two records, in the middle of a window, is counted to its last request."""
    code = (
        "import os, signal, sys; from pathlib import Path; from tests.monitor.test_windows import Traffic, WindowStore, NOW_US\n"
        "traffic = Traffic(Path(sys.argv[1])); traffic.answer(20); WindowStore(Path(sys.argv[1])).record(NOW_US)\n"
        "traffic.answer(13); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, cwd=Path.cwd())
    assert done.returncode == -signal.SIGKILL
    store = WindowStore(tmp_path)
    again = Traffic(tmp_path)  # folds what the dead one left
    again.answer(2)
    assert store.record(NOW_US + MINUTE_US) == 15
    assert total_of(store) == 35
    again.worker.close()


@pytest.mark.parametrize("step", range(4))
def test_a_record_cut_off_anywhere_counts_once(traffic, tmp_path, monkeypatch, step):
    """A process that dies at any write of a record leaves nothing half: the next record has it all, exactly once."""
    store = WindowStore(tmp_path)
    traffic.answer(5)
    if step:  # with a record before it, and without
        store.record(NOW_US)
    traffic.answer(4)
    n_writes = 0

    class PowerCutError(BaseException):
        pass

    def cut(path, content):
        nonlocal n_writes
        if n_writes == max(0, step - 1):
            raise PowerCutError
        n_writes += 1
        real(path, content)

    real = window_files.write_durably
    for module in (window_files, window_baseline, windows):
        monkeypatch.setattr(module, "write_durably", cut)
    with contextlib.suppress(PowerCutError):
        store.record(NOW_US + MINUTE_US)
    monkeypatch.undo()
    assert total_of(WindowStore(tmp_path)) in {0, 5, 9}
    traffic.answer(1)
    WindowStore(tmp_path).record(NOW_US + 2 * MINUTE_US)
    assert total_of(WindowStore(tmp_path)) == 10
    traffic.worker.close()


def test_a_full_disk_is_said_and_nothing_is_lost(traffic, tmp_path, monkeypatch):
    """Where a window cannot be written the error says so with a stable code, and the next window has its counts."""
    store = WindowStore(tmp_path)
    traffic.answer(5)
    store.record(NOW_US)
    traffic.answer(6)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for module in (window_files, window_baseline, windows):
        monkeypatch.setattr(module, "write_durably", full)
    with pytest.raises(WindowError, match="No space left on device") as caught:
        store.record(NOW_US + MINUTE_US)
    assert caught.value.code == "windows_unwritable"
    assert total_of(store) == 5
    monkeypatch.undo()
    assert store.record(NOW_US + 2 * MINUTE_US) == 6
    window = store.merged("late", 1, NOW_US, NOW_US + 2 * MINUTE_US)
    assert (window.begin_us, window.end_us) == (NOW_US, NOW_US + 2 * MINUTE_US)
    traffic.worker.close()


def test_counters_that_were_removed_begin_again(traffic, tmp_path):
    """A state whose counters were deleted counts from zero: nothing negative, nothing twice, and it is said."""
    store = WindowStore(tmp_path)
    traffic.answer(40)
    traffic.restart()
    traffic.answer(10)
    store.record(NOW_US)
    traffic.worker.close()
    shutil.rmtree(tmp_path / "counters")
    traffic.start()
    traffic.answer(3)
    assert store.record(NOW_US + MINUTE_US) == 3
    assert any("went backwards" in problem for problem in store.problems)
    assert "went backwards" in store.merged("late", 1, NOW_US, NOW_US + MINUTE_US).problems[0]
    assert total_of(store) == 53
    traffic.worker.close()


def test_a_damaged_baseline_invents_nothing(traffic, tmp_path):
    """Without a readable baseline nothing is counted twice: what came meanwhile is said to be in no window."""
    store = WindowStore(tmp_path)
    traffic.answer(40)
    store.record(NOW_US)
    traffic.answer(5)
    path = tmp_path / "windows" / "baseline.msgpack"
    path.write_bytes(path.read_bytes()[:30])
    assert store.record(NOW_US + MINUTE_US) == 0
    assert any("is in no window" in problem for problem in store.problems)
    traffic.answer(2)
    assert store.record(NOW_US + 2 * MINUTE_US) == 2
    window = store.merged("late", 1, *FOREVER)
    assert window.n_requests == 42
    assert "is in no window" in window.problems[0]
    traffic.worker.close()


def test_a_baseline_that_is_gone_invents_nothing(traffic, tmp_path):
    """Where somebody removed the baseline, windows that are there stay, and nothing is counted twice."""
    store = WindowStore(tmp_path)
    for i in range(3):
        traffic.answer(10)
        store.record(NOW_US + i * MINUTE_US)
    (tmp_path / "windows" / "baseline.msgpack").unlink()
    assert total_of(store) == 0  # until the next record says which files are valid
    traffic.answer(5)
    assert store.record(NOW_US + 3 * MINUTE_US) == 0
    assert total_of(store) == 30
    traffic.worker.close()


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_text("{}")])
def test_a_damaged_description_is_told_and_mended(traffic, tmp_path, damage):
    """What a version's cells are is written again with the next window; until then its windows are absent, not wrong."""
    store = WindowStore(tmp_path)
    traffic.answer(2)
    store.record(NOW_US)
    (path,) = (tmp_path / "windows").glob("what-*")
    damage(path)
    fresh = WindowStore(tmp_path)
    assert fresh.versions() == []
    assert fresh.merged("late", 1, *FOREVER) is None
    traffic.answer(3)
    fresh.record(NOW_US + MINUTE_US)
    assert total_of(WindowStore(tmp_path)) == 5
    traffic.worker.close()


def test_a_clock_that_was_set_is_said(traffic, tmp_path):
    """Set back, or put forward where the caller knows what passed: the window has its true length, and it is said."""
    store = WindowStore(tmp_path)
    store.record(NOW_US)
    traffic.answer(1)
    store.record(NOW_US - HOUR_US, elapsed_us=MINUTE_US)
    back = store.merged("late", 1, NOW_US - 2 * HOUR_US, NOW_US - HOUR_US)
    assert (back.n_clock_jumps, back.begin_us, back.end_us) == (1, NOW_US - HOUR_US - MINUTE_US, NOW_US - HOUR_US)
    traffic.answer(2)
    store.record(NOW_US + DAY_US, elapsed_us=MINUTE_US)
    ahead = store.merged("late", 1, NOW_US, NOW_US + DAY_US)
    assert (ahead.n_clock_jumps, ahead.n_requests, ahead.begin_us) == (1, 2, NOW_US + DAY_US - MINUTE_US)
    traffic.answer(3)
    store.record(NOW_US + DAY_US + MINUTE_US, elapsed_us=MINUTE_US)
    assert store.latest("late", 1).n_clock_jumps == 0
    assert total_of(store) == 6
    traffic.worker.close()


def test_a_clock_of_another_century_deletes_nothing(traffic, tmp_path):
    """A clock that is a hundred years ahead for one record merges windows and loses no count."""
    store = WindowStore(tmp_path, keep_days=2)
    for i in range(5):
        traffic.answer(1)
        store.record(NOW_US + i * MINUTE_US)
    traffic.answer(1)
    store.record(NOW_US + 36_500 * DAY_US)
    traffic.answer(1)
    store.record(NOW_US + 6 * MINUTE_US)
    assert total_of(WindowStore(tmp_path)) == 7
    traffic.worker.close()


def test_old_windows_become_hours_and_days(traffic, tmp_path):
    """Minutes become hours after a day and days after a month; files stay few, counts stay the same, old days go."""
    store = WindowStore(tmp_path, keep_days=3)
    start_us = NOW_US // DAY_US * DAY_US
    store.record(start_us)
    for minute in range(0, 180, 20):
        traffic.answer(2)
        store.record(start_us + minute * MINUTE_US)
    before = store.merged("late", 1, *FOREVER)
    store.record(start_us + 2 * DAY_US)
    names = sorted(path.name for path in (tmp_path / "windows").glob("*.window"))
    assert names == [
        "000000000001-000000000003.window",
        "000000000004-000000000006.window",
        "000000000007-000000000009.window",
    ]
    hours = store.series("late", 1, start_us - 1, start_us + 3 * HOUR_US - 1, HOUR_US)
    assert [window.n_requests for window in hours] == [6, 6, 6]
    store.record(start_us + 40 * DAY_US)
    assert len(list((tmp_path / "windows").glob("*.window"))) == 1
    after = WindowStore(tmp_path).merged("late", 1, *FOREVER)
    for name in ("feature_counts", "score_counts", "durations", "ages"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
    for day in range(41, 46):
        traffic.answer(1)
        store.record(start_us + day * DAY_US)
    WindowStore(tmp_path, keep_days=3).record(start_us + 90 * DAY_US)
    assert total_of(store) == 3
    traffic.worker.close()


def test_a_merge_cut_off_counts_once(traffic, tmp_path, monkeypatch):
    """A process that dies after it wrote a merged file and before it removed the pieces leaves every count once."""
    store = WindowStore(tmp_path)
    for i in range(4):
        traffic.answer(1)
        store.record(NOW_US + i * MINUTE_US)
    pieces = {path: path.read_bytes() for path in (tmp_path / "windows").glob("*.window")}
    store.record(NOW_US + 3 * DAY_US)
    for path, content in pieces.items():
        path.write_bytes(content)
    fresh = WindowStore(tmp_path)
    assert total_of(fresh) == 4
    assert len(list((tmp_path / "windows").glob("*.window"))) == 5
    fresh.record(NOW_US + 3 * DAY_US + HOUR_US)
    assert [path.name for path in (tmp_path / "windows").glob("*.window")] == ["000000000001-000000000004.window"]
    traffic.worker.close()


def test_a_damaged_window_is_left_out_and_named(traffic, tmp_path):
    """A file whose bytes changed is not counted, and the window says which."""
    store = WindowStore(tmp_path)
    for i in range(2):
        traffic.answer(1)
        store.record(NOW_US + i * MINUTE_US)
    path = tmp_path / "windows" / "000000000002-000000000002.window"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    window = WindowStore(tmp_path).merged("late", 1, *FOREVER)
    assert window.n_requests == 1
    assert path.name in window.problems[0]
    path.write_bytes(b"something else")
    window = WindowStore(tmp_path).merged("late", 1, *FOREVER)
    assert window.n_requests == 1
    assert path.name in window.problems[0]
    traffic.worker.close()


def test_series_has_every_step(traffic, tmp_path):
    """A step without answers is an empty window on the same edges; a version that never answered has no series."""
    store = WindowStore(tmp_path)
    for i in (1, 2, 4):
        store.record(NOW_US + (i - 1) * MINUTE_US)
        traffic.answer(i)
        store.record(NOW_US + i * MINUTE_US)
    steps = store.series("late", 1, NOW_US, NOW_US + 5 * MINUTE_US, MINUTE_US)
    assert [step.n_requests for step in steps] == [1, 2, 0, 4, 0]
    assert all(step.has_edges_of(REFERENCE) for step in steps)
    assert sum(steps[1:], steps[0]).n_requests == 7
    assert store.series("late", 9, NOW_US, NOW_US + MINUTE_US, MINUTE_US) == []
    with pytest.raises(ValueError, match="steps"):
        store.series("late", 1, 0, NOW_US, 1)
    traffic.worker.close()


def test_other_edges_are_not_mixed(traffic, tmp_path):
    """Requests counted before a version had its reference are told, not added to histograms that mean something else."""
    plan = traffic.worker.for_plan("late", 1, SIGNATURE)
    plan.add(ROWS[:1], SCORES[:1], repeat=5)
    del plan
    store = WindowStore(tmp_path)
    store.record(NOW_US)
    traffic.answer(3)
    store.record(NOW_US + MINUTE_US)
    window = store.merged("late", 1, *FOREVER)
    assert (window.n_requests, window.n_elsewhere) == (3, 5)
    one = store.merged("late", 1, 0, NOW_US)
    assert (one.n_requests, one.reference) == (5, None)
    with pytest.raises(ValueError, match="other edges"):
        one + window
    traffic.worker.close()


def test_an_empty_window_adds_nothing(traffic, tmp_path):
    """The window of a version that answered nothing is the zero of addition."""
    store = WindowStore(tmp_path)
    traffic.answer(3)
    store.record(NOW_US)
    window = store.merged("late", 1, *FOREVER)
    same = window + empty_window("late", 1, REFERENCE, window.begin_us, window.end_us)
    assert (same.n_requests, same.n_counted) == (3, 3)
    traffic.worker.close()


@given(st.lists(st.sampled_from([0, 0, 0, 1, 255, 256, 65_536, 2**32, 2**64 - 1]), max_size=300))
def test_cells_survive_their_bytes(values):
    """Cells and back are the same numbers, up to the largest."""
    cells = np.array(values, np.uint64)
    np.testing.assert_array_equal(unpack_cells(pack_cells(cells), len(cells)), cells)


@given(st.binary(max_size=60))
def test_other_bytes_are_refused(data):
    """Bytes that are no cells raise what readers expect, and never anything else."""
    with contextlib.suppress(window_files.UNREADABLE):
        unpack_cells(data, 50)
