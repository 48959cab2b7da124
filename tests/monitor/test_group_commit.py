"""Group commit: nobody hears of a record before it is on the disk, however the disk behaves."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
from tests.monitor.recorders import PREFIX, SIGNATURE, make_recorder, rows_of

from tiercel.errors import AuditUnavailableError
from tiercel.monitor.directories import is_live, worker_directories
from tiercel.monitor.journal import read_journal, segment_paths
from tiercel.settings import JournalSettings


@pytest.fixture
def recorder(tmp_path):
    made = make_recorder(tmp_path)
    yield made
    made.close()


def record(recorder, number, n_rows=1):
    plan = recorder.for_plan("late", 1, SIGNATURE)
    plan.add(*rows_of(n_rows), number=number)
    assert plan.is_recorded
    return plan


def number_of(each):
    """What a record was given as its number."""
    return int(each.id[len(PREFIX) :], 16)


def wait_for_segment(recorder):
    """Until the keeper has the next one ready."""
    while recorder._journal.wants_segment:
        time.sleep(0.005)


class Disk:
    """What stands in for fdatasync and fsync of segments: counts, waits, fails."""

    def __init__(self, monkeypatch):
        self.synced, self.error, self.bad = [], None, None  # `bad`: the one segment whose syncs fail; None: all of them
        self.gate, self.entered = threading.Event(), threading.Event()
        self.gate.set()
        for name in ("fdatasync", "fsync"):
            monkeypatch.setattr(os, name, self._wrapped(getattr(os, name)))

    def _wrapped(self, sync):
        def wrapped(descriptor):
            if threading.current_thread().name != "tiercel-commit":
                return sync(descriptor)
            path = str(Path(f"/proc/self/fd/{descriptor}").readlink())
            if not path.endswith(".log"):
                return sync(descriptor)
            self.entered.set()
            assert self.gate.wait(20)
            if self.error is not None and (self.bad is None or path.endswith(f"{self.bad:06d}.log")):
                raise self.error
            sync(descriptor)
            self.synced.append(int(path[-10:-4]))
            return None

        return wrapped


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


def test_a_record_is_durable_when_it_is_said_to_be(recorder, disk):
    """Waiting ends after the segment was synced, not before."""

    async def scenario():
        record(recorder, 1)
        disk.gate.clear()
        waiting = asyncio.ensure_future(recorder.commit.wait())
        await asyncio.to_thread(disk.entered.wait, 10)
        await asyncio.sleep(0.02)
        assert not waiting.done()
        assert disk.synced == []
        disk.gate.set()
        await waiting
        assert disk.synced == [1]

    asyncio.run(scenario())


def test_many_who_wait_share_a_sync_and_who_comes_late_gets_the_next(recorder, disk):
    """A hundred records asked for while a sync runs are covered by the one after it, and not by the one that runs."""

    async def scenario():
        record(recorder, 1)
        disk.gate.clear()
        first = asyncio.ensure_future(recorder.commit.wait())
        await asyncio.to_thread(disk.entered.wait, 10)
        rest = []
        for number in range(2, 102):
            record(recorder, number)
            rest.append(asyncio.ensure_future(recorder.commit.wait()))
        await asyncio.sleep(0)
        disk.gate.set()
        await first
        await asyncio.gather(*rest)
        assert disk.synced == [1, 1]  # the first sync covered none of them
        assert recorder.commit.n_committed == 2

    asyncio.run(scenario())


def test_records_of_segments_that_are_full_are_synced_too(recorder, disk):
    """A request whose records go over the end of a segment is durable when both segments are."""

    async def scenario():
        for number in range(6):
            await asyncio.to_thread(wait_for_segment, recorder)
            plan = record(recorder, number, n_rows=30_000)
            await recorder.commit.wait()
            assert plan.is_recorded
        last = recorder._journal.progress()[0]
        assert last > 1
        assert set(disk.synced) == set(range(1, last + 1))

    asyncio.run(scenario())


def test_a_failed_sync_is_said_and_its_segment_never_believed_again(recorder, disk, tmp_path):
    """Everyone who waited hears of it; the segment is sealed; the next record, in the next segment, is durable."""

    async def scenario():
        record(recorder, 1)
        await recorder.commit.wait()
        disk.error = OSError(5, "Input/output error")
        record(recorder, 2)
        record(recorder, 3)
        told = await asyncio.gather(recorder.commit.wait(), recorder.commit.wait(), return_exceptions=True)
        assert [type(each) for each in told] == [AuditUnavailableError] * 2
        assert "Input/output error" in str(told[0])
        disk.error = None
        await asyncio.to_thread(wait_for_segment, recorder)
        record(recorder, 4)
        await recorder.commit.wait()
        assert disk.synced == [1, 2]

    asyncio.run(scenario())
    recorder.close()
    assert len(segment_paths(tmp_path / "journal")) == 2
    assert len(list(read_journal(tmp_path / "journal"))) == 4


def test_what_a_failing_segment_holds_is_lost_with_it_though_the_journal_went_on(recorder, disk):
    """Who waits for a record that is, or begins, in a segment hears of its failed sync, though the journal is in the next one."""

    async def scenario():
        record(recorder, 1)
        await asyncio.to_thread(wait_for_segment, recorder)
        disk.error, disk.bad = OSError(5, "Input/output error"), 1
        disk.gate.clear()
        first = asyncio.ensure_future(recorder.commit.wait())
        await asyncio.to_thread(disk.entered.wait, 10)
        record(recorder, 2)
        told = [asyncio.ensure_future(recorder.commit.wait())]
        await asyncio.sleep(0)
        number = 3
        while recorder._journal.progress()[0] == 1:
            record(recorder, number, n_rows=20_000)
            told.append(asyncio.ensure_future(recorder.commit.wait()))
            await asyncio.sleep(0)
            number += 1
        record(recorder, number)
        after = asyncio.ensure_future(recorder.commit.wait())
        await asyncio.sleep(0)
        disk.gate.set()
        with pytest.raises(AuditUnavailableError):
            await first
        assert [type(each) for each in await asyncio.gather(*told, return_exceptions=True)] == [
            AuditUnavailableError
        ] * len(told)
        await after
        assert disk.synced == [2]

    asyncio.run(scenario())


def test_a_segment_that_is_gone_is_an_error(recorder, tmp_path):
    """A segment that somebody removed cannot be synced, and that is said."""

    async def scenario():
        record(recorder, 1)
        for path in segment_paths(tmp_path / "journal"):
            path.unlink()
        with pytest.raises(AuditUnavailableError, match="No such file"):
            await recorder.commit.wait()

    asyncio.run(scenario())


def test_without_a_thread_nothing_is_durable_and_nobody_hangs(recorder, monkeypatch):
    """Who asks when no thread is to be had hears that at once, and the next one is served by one that is."""

    def start(_self):
        raise RuntimeError("can't start new thread")

    async def scenario():
        record(recorder, 1)
        with monkeypatch.context() as without:
            without.setattr(threading.Thread, "start", start)
            with pytest.raises(AuditUnavailableError, match="new thread"):
                await asyncio.wait_for(recorder.commit.wait(), 10)
        record(recorder, 2)
        await asyncio.wait_for(recorder.commit.wait(), 10)

    asyncio.run(scenario())


@pytest.mark.parametrize("error", [ValueError("a mistake of our own"), MemoryError()])
def test_whatever_goes_wrong_with_a_sync_is_said(recorder, disk, error):
    """An error that is not the disk's refuses those who wait, and does not end the thread that all others wait for."""

    async def scenario():
        record(recorder, 1)
        disk.error = error
        with pytest.raises(AuditUnavailableError):
            await asyncio.wait_for(recorder.commit.wait(), 10)
        disk.error = None
        await asyncio.to_thread(wait_for_segment, recorder)
        record(recorder, 2)
        await asyncio.wait_for(recorder.commit.wait(), 10)
        assert disk.synced == [2]

    asyncio.run(scenario())


def test_who_no_longer_waits_is_passed_over(recorder, disk):
    """A wait that was cancelled, and a callback that raises, keep nobody else from hearing."""

    async def scenario():
        record(recorder, 1)
        disk.gate.clear()
        cancelled = asyncio.ensure_future(recorder.commit.wait())
        recorder.commit.submit(lambda _error: 1 / 0)
        other = asyncio.ensure_future(recorder.commit.wait())
        await asyncio.sleep(0)
        cancelled.cancel()
        disk.gate.set()
        await other
        assert cancelled.cancelled()

    asyncio.run(scenario())


def test_closing_ends_the_thread(tmp_path, disk):
    """What waits is synced before a recorder is closed, though nobody hears of it any more."""
    recorder = make_recorder(tmp_path)

    async def scenario():
        record(recorder, 1)
        recorder.commit.submit(lambda _error: None)

    asyncio.run(scenario())
    recorder.close()
    assert disk.synced == [1]
    assert not [each for each in threading.enumerate() if each.name == "tiercel-commit"]


def until(holds):
    """Until something that another thread does is done."""
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def lose_directory(journal):
    shutil.rmtree(journal)


def lose_files(journal):
    for path in segment_paths(journal):
        path.unlink()


def move_directory(journal):
    journal.rename(journal.with_name("elsewhere"))


def replace_directory(journal):
    move_directory(journal)
    shutil.copytree(journal.with_name("elsewhere"), journal)


@pytest.mark.parametrize("lose", [lose_directory, lose_files, move_directory, replace_directory])
def test_a_synced_file_without_its_name_is_not_durable(recorder, tmp_path, lose):
    """A segment that lost its name after its first sync is refused, though the kernel syncs it; the next ones are found again."""

    async def scenario():
        record(recorder, 1)
        await recorder.commit.wait()
        record(recorder, 2)
        lose(tmp_path / "journal")
        with pytest.raises(AuditUnavailableError, match=r"No such file|Another file|earlier sync"):
            await recorder.commit.wait()
        durable = []
        for number in range(3, 200):
            await asyncio.sleep(0.01)
            plan = recorder.for_plan("late", 1, SIGNATURE)
            plan.add(*rows_of(1), number=number)
            if not plan.is_recorded:
                continue
            try:
                await recorder.commit.wait()
            except AuditUnavailableError:
                continue
            durable.append(number)
            if len(durable) == 5:
                break
        return durable

    durable = asyncio.run(scenario())
    recorder.close()
    assert len(durable) == 5
    assert set(durable) <= {number_of(each) for each in read_journal(tmp_path / "journal")}


def test_records_that_nobody_waits_for_go_on_in_a_new_segment(recorder, tmp_path):
    """Without a strict model a lost directory is noticed too: it is made anew, locked, and what is recorded then is found."""

    async def scenario():
        recorder.commit.attach()
        record(recorder, 1)
        first = recorder._journal.progress()[0]
        shutil.rmtree(tmp_path / "journal")
        await asyncio.to_thread(until, lambda: recorder._journal.progress() is None)
        await asyncio.to_thread(wait_for_segment, recorder)
        record(recorder, 2)
        assert recorder._journal.progress()[0] > first
        (directory,) = worker_directories(tmp_path / "journal")
        assert is_live(directory)
        record(recorder, 3)
        await recorder.commit.wait()  # what was lost before anybody waited refuses nobody

    asyncio.run(scenario())
    recorder.close()
    assert [number_of(each) for each in read_journal(tmp_path / "journal")] == [2, 3]


def test_a_full_segment_that_gave_way_to_the_bound_refuses_nobody(tmp_path):
    """Segments that the keeper itself removed are not missed."""
    recorder = make_recorder(tmp_path, JournalSettings(segment_bytes=1 << 21, max_bytes=1 << 22))

    async def scenario():
        for number in range(8):
            await asyncio.to_thread(wait_for_segment, recorder)
            record(recorder, number, n_rows=30_000)
        await asyncio.to_thread(wait_for_segment, recorder)
        record(recorder, 8)
        await recorder.commit.wait()

    try:
        asyncio.run(scenario())
    finally:
        recorder.close()


def test_a_problem_is_told_until_it_is_over(recorder, disk):
    """While syncs fail there are words for it; they are gone once the disk takes a file again, though nobody asks."""

    async def scenario():
        record(recorder, 1)
        assert recorder.troubles == []
        disk.error = OSError(5, "Input/output error")
        with pytest.raises(AuditUnavailableError):
            await recorder.commit.wait()
        (told,) = recorder.troubles
        assert "strict models refuse" in told
        assert "Input/output error" in told
        disk.error = None
        await asyncio.to_thread(until, lambda: recorder.troubles == [])

    asyncio.run(scenario())
