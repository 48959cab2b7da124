"""The journal on disk: what was acknowledged is read back, whatever happened to the writer or the file."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.monitor.recorders import FEATURES, PREFIX, SCHEMA, SIGNATURE, SMALL, key_bytes, make_recorder, rows_of

from tiercel.errors import JournalError
from tiercel.monitor import segments
from tiercel.monitor.journal import read_journal, read_segment, segment_paths
from tiercel.monitor.journal_tables import read_tables
from tiercel.monitor.segments import trim_segment
from tiercel.settings import JournalSettings
from tiercel.types import Tier


def record_some(state_dir, n=20):
    """N requests of one row each in a closed journal; returns its only segment."""
    recorder = make_recorder(state_dir)
    plan = recorder.for_plan("late", 3, SIGNATURE, SCHEMA, "base-7")
    for number in range(n):
        rows, scores = rows_of(1, seed=number)
        plan.add(rows, scores, number=number, received_us=1_000 + number, keys=key_bytes(number, "north"))
    recorder.close()
    (path,) = segment_paths(state_dir / "journal")
    return path


def test_a_record_is_read_as_it_was_answered(tmp_path):
    """Id, plan, times, flags, rows, scores and keys come back unchanged."""
    recorder = make_recorder(tmp_path, worker=4)
    plan = recorder.for_plan("late", 3, SIGNATURE, SCHEMA, "base-7")
    rows, scores = rows_of(2)
    plan.add(
        rows, scores, number=0x2F, received_us=10, now_us=9, oldest_age_us=8, total_ns=7, stage_ns=(1, 2, 3, 4, 5), flags=3,
        keys=key_bytes(-5, None) + key_bytes(None, "nörd"),
    )  # fmt: skip
    live = list(read_journal(tmp_path / "journal"))
    recorder.close()
    (record,) = read_journal(tmp_path / "journal")
    assert len(live) == 1
    assert (record.id, record.worker) == (PREFIX + "2f", 4)
    assert (record.plan.model, record.plan.version, record.plan.base) == ("late", 3, "base-7")
    assert record.plan.service_fingerprint == SCHEMA.fingerprint
    assert record.plan.join_keys == (("customer_id", "int64"), ("shop", "string"))
    assert (record.received_us, record.now_us, record.oldest_age_us, record.total_ns) == (10, 9, 8, 7)
    assert (record.stage_ns, record.is_fast, record.is_many) == ((1, 2, 3, 4, 5), True, True)
    assert record.keys == ((-5, None), (None, "nörd"))
    np.testing.assert_array_equal(record.rows, rows)
    np.testing.assert_array_equal(record.scores, scores)


def test_a_new_base_is_declared(tmp_path):
    """Predictions before and after a base was swapped name the base they were made from."""
    recorder = make_recorder(tmp_path)
    rows, scores = rows_of(1)
    for number, base in enumerate(("one", "two", "one")):
        recorder.for_plan("late", 3, SIGNATURE, SCHEMA, base).add(rows, scores, number=number, keys=key_bytes(1, "x"))
    recorder.close()
    assert [record.plan.base for record in read_journal(tmp_path / "journal")] == ["one", "two", "one"]


def test_tables_hold_every_row_under_its_names(tmp_path):
    """A table has one row per scored row with metadata, keys and features; missing values are null."""
    record_some(tmp_path, n=50)
    tables = list(read_tables(tmp_path / "journal", rows=20))
    assert sum(table.num_rows for _, table in tables) == 50
    table = tables[0][1]
    assert {"prediction_id", "model", "version", "score", "received_at", "customer_id", "shop", *FEATURES} <= set(
        table.column_names
    )
    first = table.slice(0, 1).to_pylist()[0]
    assert (first["prediction_id"], first["customer_id"], first["shop"]) == (PREFIX + "0", 0, "north")
    rows, scores = rows_of(1, seed=0)
    assert [first[name] for name in FEATURES] == [None if np.isnan(v) else v for v in rows[0].tolist()]
    assert first["score"] == scores[0, 0]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        pytest.param(0, (False, None, None, "champion", False), id="plain"),
        pytest.param(1, (True, None, None, "champion", False), id="fast"),
        pytest.param(8, (False, None, None, "challenger", False), id="challenger"),
        pytest.param(16, (False, None, None, "champion", True), id="shadow"),
        pytest.param(4 | 1 << 8 | 1 << 12, (False, "fallback", "deadline", "champion", False), id="fallback"),
        pytest.param(4 | 2 << 8 | 2 << 12, (False, "last_score", "overloaded", "champion", False), id="last score"),
        pytest.param(12 | 3 << 8 | 3 << 12, (False, "default", "unavailable", "challenger", False), id="default"),
        pytest.param(4 | 1 << 8 | 4 << 12, (False, "fallback", "failed", "champion", False), id="failed"),
        pytest.param(4, (False, "unknown", "unknown", "champion", False), id="without a rung"),
        pytest.param(4 | 15 << 8 | 15 << 12, (False, "unknown", "unknown", "champion", False), id="of a later tiercel"),
        pytest.param(1 << 8 | 1 << 12 | 1 << 16, (False, None, None, "champion", False), id="not degraded"),
    ],
)
def test_flags_say_who_answered_and_why(tmp_path, flags, expected):
    """Path, rung, reason, arm and shadow come back from a record and from its table as they were flagged."""
    recorder = make_recorder(tmp_path)
    plan = recorder.for_plan("late", 3, SIGNATURE, tier=Tier.NEAR_REALTIME)
    plan.add(*rows_of(1), flags=flags)
    recorder.close()
    (record,) = read_journal(tmp_path / "journal")
    found = (record.is_fast, record.degraded, record.degrade_reason, record.arm, record.is_shadow)
    assert (found, record.plan.tier) == (expected, "near-realtime")
    ((_, table),) = read_tables(tmp_path / "journal")
    (row,) = table.select(["fast", "degraded", "degrade_reason", "arm", "is_shadow"]).to_pylist()
    assert tuple(row.values()) == expected


def test_a_record_is_found_by_its_number(tmp_path):
    """Of a segment one record is given when one is asked for, as it is among all."""
    path = record_some(tmp_path)
    (record,) = read_segment(path, number=7)
    assert record.id == PREFIX + "7"
    np.testing.assert_array_equal(record.rows, list(read_segment(path))[7].rows)
    assert list(read_segment(path, number=20)) == []


def test_a_file_cut_anywhere_keeps_the_records_before(tmp_path):
    """Cut at any byte, a segment gives the whole records before the cut and stops, or says that it is no segment."""
    path = record_some(tmp_path, n=2)
    data = path.read_bytes()
    whole = [record.id for record in read_segment(path)]
    assert len(whole) == 2
    counts = set()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        try:
            ids = [record.id for record in read_segment(path)]
        except JournalError:
            assert size < 256
            continue
        assert ids == whole[: len(ids)]
        counts.add(len(ids))
    assert counts == {0, 1, 2}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(flips=st.lists(st.integers(0, 8 * 1500), min_size=1, max_size=3, unique=True))
def test_flipped_bits_never_invent_a_record(tmp_path, flips):
    """Whatever bits change behind the header, the records that are given are those that were written, in order."""
    path = tmp_path / "000001.log"
    source = tmp_path / "source"
    if not source.exists():
        source.mkdir()
        (tmp_path / "whole.log").write_bytes(record_some(source, n=5).read_bytes())
    data = bytearray((tmp_path / "whole.log").read_bytes())
    path.write_bytes(data)
    whole = [(r.id, r.rows.tobytes(), r.scores.tobytes(), r.keys) for r in read_segment(path)]
    for bit in flips:
        at = 256 + bit // 8 % (len(data) - 256)
        data[at] ^= 1 << bit % 8
    path.write_bytes(data)
    found = []
    with contextlib.suppress(JournalError):
        found.extend((r.id, r.rows.tobytes(), r.scores.tobytes(), r.keys) for r in read_segment(path))
    assert found == whole[: len(found)]


def test_one_damaged_segment_does_not_hide_the_others(tmp_path):
    """Damage is raised, or reported and passed over; a record in the middle is not skipped silently."""
    first = record_some(tmp_path, n=6)
    data = bytearray(first.read_bytes())
    data[len(data) // 2] ^= 1
    first.write_bytes(data)
    with pytest.raises(JournalError, match="damaged"):
        list(read_journal(tmp_path / "journal"))
    damages = []
    recorder = make_recorder(tmp_path)
    rows, scores = rows_of(1)
    recorder.for_plan("other", 1, SIGNATURE).add(rows, scores)
    recorder.close()
    models = [r.plan.model for r in read_journal(tmp_path / "journal", on_damage=damages.append)]
    assert models[-1] == "other"
    assert 0 < models.count("late") < 6
    assert len(damages) == 1


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"x" * 5000, b"tiercelJ" + b"\xff" * 600], ids=len)
def test_a_foreign_file_is_refused(tmp_path, content):
    """What is not a segment of this format is said to be none."""
    path = tmp_path / "000001.log"
    path.write_bytes(content)
    with pytest.raises(JournalError, match="expected"):
        list(read_segment(path))


NURSERY = """
import json, os, random, signal, sys
from pathlib import Path
from tests.monitor.recorders import SCHEMA, SIGNATURE, key_bytes, make_recorder, rows_of

def write(directory, out):
    recorder = make_recorder(directory)
    plan = recorder.for_plan("late", 1, SIGNATURE, SCHEMA, "base")
    (rows, scores), many = rows_of(1), rows_of(200)
    number = 0
    while True:
        number += 1
        if number % 50:
            plan.add(rows, scores + number, number=number, keys=key_bytes(number, "x"))
        else:
            plan.add(many[0], many[1] + number, number=number, keys=key_bytes(number, "x") * 200)
        os.write(out, number.to_bytes(8, "little"))

chance = random.Random(int(sys.argv[2]))
last = []
for kill in range(60):
    read, out = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        write(Path(sys.argv[1]) / str(kill), out)
    os.close(out)
    acknowledged, wanted = b"", 8 * chance.randrange(1, 600)
    while len(acknowledged) < wanted:
        acknowledged += os.read(read, 1 << 16)
    for _ in range(chance.randrange(2000)):  # anywhere between two acknowledgements
        pass
    os.kill(child, signal.SIGKILL)
    while part := os.read(read, 1 << 16):
        acknowledged += part
    os.close(read)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    last.append(int.from_bytes(acknowledged[len(acknowledged) // 8 * 8 - 8 :][:8], "little"))
print(json.dumps(last))
"""


def test_a_killed_worker_loses_no_record_it_acknowledged(tmp_path):
    """Killed at 60 random moments, a worker's every acknowledged prediction is in the journal, whole, and none is torn."""
    seed = random.SystemRandom().randrange(1 << 32)
    done = subprocess.run(
        [sys.executable, "-c", NURSERY, str(tmp_path), str(seed)], stdout=subprocess.PIPE, timeout=120, check=True
    )
    acknowledged = json.loads(done.stdout)
    assert len(acknowledged) == 60
    for kill, last in enumerate(acknowledged):
        records = list(read_journal(tmp_path / str(kill) / "journal"))
        numbers = [int(record.id[16:], 16) for record in records]
        assert numbers == list(range(1, len(numbers) + 1)), f"seed {seed}"
        assert last <= len(numbers) <= last + 1, f"seed {seed}"
        for record, number in zip(records, numbers, strict=True):
            assert len(record.rows) == (1 if number % 50 else 200)
            assert record.keys[0] == (number, "x")
            assert number <= record.scores[0, 0] <= number + 1


def test_disk_full_drops_and_counts(tmp_path, monkeypatch):
    """When no segment can be made the plan answers on, drops are counted, and recording resumes once there is room."""
    fired = []
    allocate = os.posix_fallocate

    def refuse(descriptor, offset, size):
        if size >= 1 << 21 and fired is not None and not (tmp_path / "room").exists():
            fired.append(size)
            raise OSError(28, "No space left on device")
        allocate(descriptor, offset, size)

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    recorder = make_recorder(tmp_path)
    plan = recorder.for_plan("late", 1, SIGNATURE, SCHEMA)
    rows, scores = rows_of(1)
    plan.add(rows, scores, repeat=10)
    assert fired
    assert recorder.counters.get("journal_dropped") == 10
    assert recorder.counters.get("segments_failed") >= 1
    (tmp_path / "room").touch()
    recorder._keeper._retry_at_s = 0.0
    while recorder._journal.wants_segment:
        os.sched_yield()
    plan.add(rows, scores, repeat=5)
    assert recorder.counters.get("journal_records") == 5
    recorder.close()
    assert len(list(read_journal(tmp_path / "journal"))) == 5
    assert not list((tmp_path / "journal").rglob(".*"))


def descriptors():
    """What this process has open, where the system says so."""
    for each in Path("/proc/self/fd").glob("*"):
        with contextlib.suppress(OSError):
            yield str(each.readlink())


def test_a_segment_that_cannot_be_filled_leaves_nothing_behind(tmp_path, monkeypatch):
    """A file system that finds no room only when it is written to: no file, no descriptor, and a segment once there is room."""
    write, is_full = os.pwrite, True

    def refuse(descriptor, data, offset):
        if is_full and offset:
            raise OSError(28, "No space left on device")
        return write(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", refuse)
    recorder = make_recorder(tmp_path)
    keeper = recorder._keeper
    for _ in range(3):
        keeper._retry_at_s = 0.0
        while keeper._retry_at_s == 0.0:
            time.sleep(0.005)
    assert recorder.counters.get("segments_failed") >= 3
    assert not list((tmp_path / "journal").rglob("*.log"))
    assert not [at for at in descriptors() if str(tmp_path / "journal") in at and ".log" in at]
    is_full, keeper._retry_at_s = False, 0.0
    while recorder._journal.wants_segment:
        time.sleep(0.005)
    recorder.for_plan("late", 1, SIGNATURE, SCHEMA).add(*rows_of(1), repeat=5)
    recorder.close()
    assert len(list(read_journal(tmp_path / "journal"))) == 5


LIMITED = """
import resource, signal, sys
from pathlib import Path
from tests.monitor.recorders import SIGNATURE, make_recorder, rows_of
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
recorder = make_recorder(Path(sys.argv[1]))
rows, scores = rows_of(1)
recorder.for_plan("late", 1, SIGNATURE).add(rows, scores, repeat=7)
print(recorder.counters.get("journal_dropped"), recorder.counters.get("segments_failed") > 0)
recorder.close()
"""


def test_a_file_size_limit_is_no_crash(tmp_path):
    """A kernel that refuses the file (RLIMIT_FSIZE) costs records, which are counted, not the process."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["7", "True"]


def test_a_slow_disk_never_holds_up_a_prediction(tmp_path, monkeypatch):
    """While making the next segment hangs, predictions are recorded into the segment there is, then dropped and counted."""
    recorder = make_recorder(tmp_path)
    hangs, goes_on = threading.Event(), threading.Event()
    allocate = os.posix_fallocate

    def hang(descriptor, offset, size):
        hangs.set()
        goes_on.wait()
        allocate(descriptor, offset, size)

    plan = recorder.for_plan("late", 1, SIGNATURE)
    monkeypatch.setattr(os, "posix_fallocate", hang)
    rows, scores = rows_of(1)
    plan.add(rows, scores)  # takes the segment; the keeper hangs in making the next
    hangs.wait()
    plan.add(rows, scores, repeat=50_000)
    worker = recorder.counters
    assert worker.get("journal_dropped") > 0
    assert worker.get("journal_records") + worker.get("journal_dropped") == 50_001
    goes_on.set()
    recorder.close()
    assert len(list(read_journal(tmp_path / "journal"))) == worker.get("journal_records")


def test_the_oldest_segments_go_first(tmp_path):
    """Beyond max_bytes sealed segments are removed, oldest first and of dead workers before live ones' newest; it is counted."""
    old = record_some(tmp_path, n=3)
    recorder = make_recorder(tmp_path, JournalSettings(segment_bytes=1 << 21, max_bytes=5 << 21))
    plan = recorder.for_plan("late", 1, SIGNATURE)
    rows, scores = rows_of(2000)
    for number in range(400):
        while recorder._journal.wants_segment:
            os.sched_yield()
        plan.add(rows, scores, number=number)
    recorder.close()
    paths = segment_paths(tmp_path / "journal")
    assert old not in paths
    assert not old.parent.exists()
    assert sum(path.stat().st_size for path in paths) <= 5 << 21
    assert recorder.counters.get("segments_removed") > 1
    numbers = [int(record.id[16:], 16) for record in read_journal(tmp_path / "journal")]
    assert numbers == list(range(400))[-len(numbers) :]
    assert recorder.counters.get("journal_dropped") == 0


CRASH_LOOP = """
import os, signal, sys
from pathlib import Path
from tests.monitor.recorders import SCHEMA, SIGNATURE, key_bytes, make_recorder, rows_of
from tiercel.settings import JournalSettings
from tiercel.types import Tier

for start in range(12):
    child = os.fork()
    if child == 0:
        recorder = make_recorder(Path(sys.argv[1]), JournalSettings(segment_bytes=1 << 21, max_bytes=5 << 21))
        plan = recorder.for_plan("late", 1, SIGNATURE, SCHEMA, "base")
        rows, scores = rows_of(1)
        for number in range(3):
            plan.add(rows, scores, number=3 * start + number, keys=key_bytes(start, "x"))
        while recorder._journal.wants_segment:
            os.sched_yield()
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
"""


def test_a_crash_loop_evicts_no_record(tmp_path):
    """12 starts killed after 3 records each leave all 36 within a bound of 5 segments; the spare segments are deleted."""
    subprocess.run([sys.executable, "-c", CRASH_LOOP, str(tmp_path)], timeout=120, check=True)
    recorder = make_recorder(tmp_path, JournalSettings(segment_bytes=1 << 21, max_bytes=5 << 21))
    numbers = [int(record.id[16:], 16) for record in read_journal(tmp_path / "journal")]
    assert numbers == list(range(36))
    assert recorder.counters.get("segments_removed") == 0
    recorder.close()
    sizes = [path.stat().st_size for path in segment_paths(tmp_path / "journal")]
    assert len(sizes) <= 13
    assert sum(sizes) < 1 << 16


def what_is_read(path):
    """All a reader gives of a segment: its records and whether it complains."""
    found = []
    try:
        found += [(r.id, r.rows.tobytes(), r.scores.tobytes(), r.keys, r.plan) for r in read_segment(path)]
    except FileNotFoundError:
        return []
    except JournalError as error:
        found.append(str(error))
    return found


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n=st.integers(0, 5),
    is_sealed=st.booleans(),
    torn=st.binary(max_size=200),
    flips=st.lists(st.integers(0, 8 * 1500), max_size=1),
)
def test_a_trimmed_segment_reads_the_same(tmp_path, n, is_sealed, torn, flips):
    """Whatever a dead worker left - whole, sealed, torn or damaged - a reader finds the same before and after trimming."""
    source = tmp_path / str(n)
    if not source.exists():
        record_some(source, max(n, 1))
    data = segment_paths(source / "journal")[0].read_bytes()
    end = data[-24:] if is_sealed else b""
    data = (data[:-24] if n else data[:256]) + end
    used = len(data)
    left = bytearray(data + bytes(8) + torn).ljust(1 << 21, b"\0")  # torn: written, but its commit word was not
    for bit in flips:
        left[256 + bit // 8] ^= 1 << bit % 8
    path = tmp_path / "000001.log"
    path.write_bytes(left)
    before = what_is_read(path)
    trim_segment(path)
    assert what_is_read(path) == before
    if not flips:
        assert len(before) == n
        assert path.stat().st_size == used if n else not path.exists()
    if path.exists():
        size = path.stat().st_size
        trim_segment(path)
        assert path.stat().st_size == size


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"x" * 300, b"tiercelJ" + bytes(1000)])
def test_a_foreign_file_is_not_trimmed(tmp_path, content):
    """What is no segment of this format stays as it is."""
    path = tmp_path / "000001.log"
    path.write_bytes(content)
    trim_segment(path)
    assert path.read_bytes() == content


def test_a_live_worker_is_never_trimmed(tmp_path, monkeypatch):
    """Other workers' starts leave a live worker's segments at their size, also when its lock cannot be asked for."""
    live = make_recorder(tmp_path)
    plan = live.for_plan("late", 1, SIGNATURE)
    rows, scores = rows_of(1)
    plan.add(rows, scores, number=1)
    paths = segment_paths(tmp_path / "journal")
    make_recorder(tmp_path).close()
    real = os.open

    def exhausted(path, *args, **kwargs):
        if os.fspath(path).endswith("lock") and paths[0].parent.name in os.fspath(path):
            raise OSError(errno.EMFILE, "too many open files")
        return real(path, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", exhausted)
        make_recorder(tmp_path).close()
    assert paths
    assert all(path.stat().st_size == SMALL.segment_bytes for path in paths)
    plan.add(rows, scores, number=2)
    live.close()
    assert [record.id for record in read_journal(tmp_path / "journal")] == [f"{PREFIX}1", f"{PREFIX}2"]


def test_workers_trim_at_once(tmp_path):
    """Threads that trim the same segments at once leave what one would."""
    path = record_some(tmp_path, n=4)
    data = path.read_bytes()
    for _ in range(20):
        path.write_bytes(data.ljust(1 << 21, b"\0"))
        barrier = threading.Barrier(4)
        threads = [threading.Thread(target=lambda b=barrier: (b.wait(), trim_segment(path))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert path.read_bytes() == data


def test_a_restart_never_overwrites(tmp_path):
    """Every start has a directory of its own, which only its owner may read."""
    rows, scores = rows_of(1)
    for _ in range(3):
        recorder = make_recorder(tmp_path)
        recorder.for_plan("late", 1, SIGNATURE).add(rows, scores)
        recorder.close()
    starts = [path for path in (tmp_path / "journal").iterdir() if path.is_dir()]
    assert len(starts) == 3
    assert all(path.stat().st_mode & 0o077 == 0 for path in starts)


def test_declarations_are_json(tmp_path):
    """What a plan is stands in the segment as JSON that any tool can read."""
    data = record_some(tmp_path, n=1).read_bytes()
    start = data.index(b'{"model"')
    assert json.JSONDecoder().raw_decode(data[start : start + 2000].decode("ascii", "replace"))[0]["features"] == list(
        FEATURES
    )


@pytest.mark.skipif(sys.platform != "linux", reason="pages are given back on Linux only")
def test_locked_memory_is_no_reason_to_leave_a_segment_unfinished(tmp_path):
    """Where the process has locked its memory no page can be given back; segments are sealed and cut all the same."""
    settings = JournalSettings(segment_bytes=1 << 20, max_bytes=1 << 22)
    script = f"""
import ctypes, pathlib
import numpy as np
from tests.monitor.recorders import SIGNATURE
from tiercel.monitor.recording import Recorder
from tiercel.settings import JournalSettings
state = pathlib.Path({str(tmp_path)!r})
recorder = Recorder(state, 0, "0" * 16, JournalSettings(segment_bytes={settings.segment_bytes}, max_bytes={settings.max_bytes}))
recorder._keeper._stop.set()
recorder._keeper._thread.join()
segment = recorder._keeper._segments[1]
address = ctypes.addressof(ctypes.c_char.from_buffer(segment.mapped))
if ctypes.CDLL(None).mlock(ctypes.c_void_p(address), ctypes.c_size_t(len(segment.mapped))):
    raise SystemExit(77)
plan = recorder.for_plan("m", 1, SIGNATURE)
row = np.zeros((100, len(SIGNATURE.features)), np.float32)
for _ in range(300):
    plan.add(row, np.zeros((100, 1)), total_ns=5, stage_ns=(1,) * 5)
assert recorder._journal.progress()[1] > 2 * {1 << 18}
recorder._keeper.work_once()
recorder.close()
"""
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=60)
    if done.returncode == 77:
        pytest.skip("this user may not lock so much memory")
    assert done.returncode == 0, done.stderr
    (path,) = segment_paths(tmp_path / "journal")
    assert path.stat().st_size < settings.segment_bytes
    assert len(list(read_segment(path))) >= 300


def test_a_segment_that_cannot_be_made_is_told_until_one_can(tmp_path, monkeypatch):
    """The recorder has words for a keeper that gets no segment; they are gone with the next one."""
    recorder = make_recorder(tmp_path)
    try:
        assert recorder.troubles == []
        with monkeypatch.context() as full:

            def refuse(*_args):
                raise OSError(28, "No space left on device")

            full.setattr(segments, "map_new_file", refuse)
            recorder.for_plan("late", 1, SIGNATURE).add(*rows_of(1), number=1)
            recorder._journal.seal()
            recorder.for_plan("late", 1, SIGNATURE).add(*rows_of(1), number=2)
            deadline = time.monotonic() + 10
            while not recorder.troubles:
                assert time.monotonic() < deadline
                time.sleep(0.005)
            assert "No space left" in recorder.troubles[0]
        while recorder.troubles:
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        recorder.close()
