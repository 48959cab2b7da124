"""A prediction is found by its reply's id, or it is said why it is not."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tests.monitor.recorders import PREFIX, SIGNATURE, make_recorder, rows_of

from tiercel.errors import JournalError, NotFoundError, RequestError
from tiercel.monitor import lookup
from tiercel.monitor.journal import first_number, read_segment, segment_paths
from tiercel.monitor.lookup import find_record
from tiercel.monitor.recording import Recorder
from tiercel.settings import JournalSettings

SMALL = JournalSettings(segment_bytes=1 << 21)
OTHER_PREFIX = "fedcba9876543210"


def record_numbers(state_dir, numbers, prefix=PREFIX, **facts):
    """A closed journal of one worker with a record per number."""
    recorder = Recorder(state_dir, 0, prefix, SMALL)
    plan = recorder.for_plan("late", 3, SIGNATURE)
    for number in numbers:
        plan.add(*rows_of(1, seed=number % 97), number=number, **facts)
    recorder.close()


def test_every_record_is_found_among_workers(tmp_path):
    """Each id gives its own record, and of its own worker."""
    record_numbers(tmp_path, range(40))
    record_numbers(tmp_path, range(40), OTHER_PREFIX)
    for prefix in (PREFIX, OTHER_PREFIX):
        for number in (0, 1, 15, 16, 39):
            assert find_record(tmp_path / "journal", f"{prefix}{number:x}").id == f"{prefix}{number:x}"


def test_a_live_workers_record_is_found(tmp_path):
    """What a running worker answered is found before anything was synced, and what it did not answer is said."""
    recorder = make_recorder(tmp_path)
    recorder.for_plan("late", 3, SIGNATURE).add(*rows_of(1), number=5)
    assert find_record(tmp_path / "journal", PREFIX + "5").plan.model == "late"
    with pytest.raises(NotFoundError, match="runs and has not recorded"):
        find_record(tmp_path / "journal", PREFIX + "6")
    recorder.close()
    with pytest.raises(NotFoundError, match="ended without"):
        find_record(tmp_path / "journal", PREFIX + "6")


CHILD = """
import os, signal, sys
from pathlib import Path
from tests.monitor.recorders import SIGNATURE, make_recorder, rows_of
make_recorder(Path(sys.argv[1])).for_plan("late", 1, SIGNATURE).add(*rows_of(1), repeat=9)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_workers_record_is_found(tmp_path):
    """What a worker answered before it was killed is found."""
    subprocess.run([sys.executable, "-c", CHILD, str(tmp_path)], check=False, timeout=60)
    assert find_record(tmp_path / "journal", PREFIX + "8").id == PREFIX + "8"


@pytest.fixture(scope="module")
def long_journal(tmp_path_factory):
    """A worker's journal of several segments."""
    state_dir = tmp_path_factory.mktemp("long")
    recorder = Recorder(state_dir, 0, PREFIX, SMALL)
    plan = recorder.for_plan("late", 3, SIGNATURE)
    rows, scores = rows_of(500)
    for number in range(100, 1500):
        plan.add(rows, scores, number=number)
        if number % 100 == 0:
            recorder._keeper.work_once()
    recorder.close()
    return state_dir / "journal"


def test_only_the_segment_it_is_in_is_read(long_journal, monkeypatch):
    """Of a long journal, the one segment that holds the number is read."""
    paths = segment_paths(long_journal)
    assert len(paths) >= 4
    read = []

    def reading(path, *, number):
        read.append(path)
        return read_segment(path, number=number)

    monkeypatch.setattr(lookup, "read_segment", reading)
    for path in paths:
        read.clear()
        number = first_number(path) + 3
        assert find_record(long_journal, f"{PREFIX}{number:x}").id == f"{PREFIX}{number:x}"
        assert read == [path]


def test_a_late_record_is_found_in_a_later_segment(tmp_path):
    """A reply that waited in a queue is recorded after younger ones, and is found all the same."""
    record_numbers(tmp_path, [500, 501, 3, 502])
    assert find_record(tmp_path / "journal", PREFIX + "3").id == PREFIX + "3"


def test_what_retention_removed_is_said(long_journal, tmp_path):
    """An id older than what is kept, and one of a worker whose segments are all gone, each have their reason."""
    with pytest.raises(NotFoundError, match=r"removed to make room.*journal\.max_bytes"):
        find_record(long_journal, PREFIX + "7")
    for directory in (long_journal, tmp_path / "nothing"):
        with pytest.raises(NotFoundError, match=r"No segment there.*journal\.max_bytes.*journal\.enabled"):
            find_record(directory, OTHER_PREFIX + "7")


def test_a_dropped_record_is_said(tmp_path):
    """An id between recorded ones is of a record that was dropped."""
    for start in (0, 50):
        recorder = Recorder(tmp_path, 0, PREFIX, SMALL)
        recorder.for_plan("late", 3, SIGNATURE).add(*rows_of(1), number=start, repeat=5)
        recorder.close()
    with pytest.raises(NotFoundError, match="dropped, because the disk was full or slow"):
        find_record(tmp_path / "journal", f"{PREFIX}{20:x}")


def test_the_answer_comes_before_its_shadow(tmp_path):
    """Of an answer and a shadow's score under one id the answer is given, whichever was recorded first."""
    recorder = make_recorder(tmp_path)
    answer, shadow = (recorder.for_plan("late", version, SIGNATURE) for version in (1, 2))
    for number, order in ((1, (answer, shadow)), (2, (shadow, answer)), (3, (shadow,))):
        for plan in order:
            plan.add(*rows_of(1), number=number, flags=16 if plan is shadow else 0)
    recorder.close()
    versions = [find_record(tmp_path / "journal", f"{PREFIX}{number}").plan.version for number in (1, 2, 3)]
    assert versions == [1, 1, 2]


@pytest.mark.parametrize(
    "text",
    ["", "x", PREFIX, PREFIX + "01", PREFIX + "g", PREFIX.upper() + "1", PREFIX + "1" * 17, PREFIX + "1\n", " " + PREFIX + "1"],
)  # fmt: skip
def test_what_cannot_be_an_id_is_refused(tmp_path, text):
    """An id is 16 hexadecimal digits and a number without leading zeros; anything else is said to be none."""
    with pytest.raises(RequestError, match="17 to 32 hexadecimal digits"):
        find_record(tmp_path, text)


def test_damage_is_not_taken_for_absence(tmp_path):
    """When a segment cannot be read to its end, the prediction is not said to be absent; foreign files hide nothing."""
    record_numbers(tmp_path, range(30))
    (path,) = segment_paths(tmp_path / "journal")
    (path.parent / "000009.log").write_bytes(b"foreign" * 100)
    assert find_record(tmp_path / "journal", PREFIX + "4").id == PREFIX + "4"
    (path.parent / "000009.log").unlink()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert find_record(tmp_path / "journal", PREFIX + "4").id == PREFIX + "4"
    with pytest.raises(JournalError, match="not all can"):
        find_record(tmp_path / "journal", f"{PREFIX}{29:x}")
