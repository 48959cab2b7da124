"""A worker's feedback: many requests with one sync, none acknowledged before it, and a bound on what waits."""

from __future__ import annotations

import os
import threading

import pytest
from tests.monitor.recorders import PREFIX

from tiercel.errors import CapacityError, MonitorStorageError, RequestError
from tiercel.monitor import feedback_writer
from tiercel.monitor.feedback_writer import FeedbackWriter
from tiercel.monitor.label_log import log_paths, read_frames
from tiercel.monitor.labels import LabelStore


def one(number):
    return lambda: [{"id": f"{PREFIX}{number:x}", "label": 1}]


@pytest.fixture
def writer(tmp_path):
    writer = FeedbackWriter(LabelStore(tmp_path))
    yield writer
    writer.close()


def on_disk(tmp_path):
    frames = [frame for path in log_paths(tmp_path / "labels" / "incoming") for frame, _ in read_frames(path)]
    return [int(event.id[16:], 16) for frame in frames for event in frame.events]


@pytest.fixture
def slow_disk(monkeypatch):
    """Syncs that wait: (entered, gate, list of syncs)."""
    entered, gate, syncs = threading.Event(), threading.Event(), []
    real = os.fsync

    def sync(descriptor):
        syncs.append(descriptor)
        entered.set()
        assert gate.wait(20)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    yield entered, gate, syncs
    gate.set()


def test_accepted_means_on_disk(tmp_path, writer):
    """When the future is done, the event is in a log."""
    checked = writer.submit(one(1), 10).result(20)
    assert len(checked.events) == 1
    assert on_disk(tmp_path) == [1]


def test_nothing_is_acknowledged_before_the_sync(tmp_path, writer, slow_disk):
    """While the disk syncs, the future waits."""
    entered, gate, _ = slow_disk
    done = writer.submit(one(1), 10)
    assert entered.wait(20)
    assert not done.done()
    gate.set()
    done.result(20)


def test_what_comes_during_a_sync_shares_the_next(tmp_path, writer, slow_disk):
    """A hundred requests that waited for one sync need one more, not a hundred, and keep their order."""
    entered, gate, syncs = slow_disk
    first = writer.submit(one(0), 10)
    assert entered.wait(20)
    later = [writer.submit(one(number), 10) for number in range(1, 101)]
    gate.set()
    for done in (first, *later):
        assert len(done.result(20).events) == 1
    assert on_disk(tmp_path) == list(range(101))
    assert len(syncs) < 10  # of directories too


def test_what_waits_is_bounded(writer, slow_disk, monkeypatch):
    """Beyond the bound a request is refused at once, with when to come back; what waits is done all the same."""
    monkeypatch.setattr(feedback_writer, "MAX_WAITING", 3)
    entered, gate, _ = slow_disk
    waiting = [writer.submit(one(0), 10)]
    assert entered.wait(20)
    waiting += [writer.submit(one(number), 10) for number in range(1, 4)]
    with pytest.raises(CapacityError) as caught:
        writer.submit(one(9), 10)
    assert caught.value.predicted_wait_us > 0
    monkeypatch.setattr(feedback_writer, "MAX_WAITING", 100)
    with pytest.raises(CapacityError):
        writer.submit(one(9), feedback_writer.MAX_WAITING_BYTES)
    gate.set()
    assert all(done.result(20).events for done in waiting)


def test_a_bad_request_fails_alone(tmp_path, writer, slow_disk):
    """Of a group, one that cannot be decoded gets its error, one whose decoding breaks does not take the thread with it."""
    entered, gate, _ = slow_disk
    first = writer.submit(one(0), 10)
    assert entered.wait(20)

    def refuse():
        raise RequestError("no")

    bad, good = writer.submit(refuse, 10), writer.submit(one(1), 10)
    gate.set()
    with pytest.raises(RequestError):
        bad.result(20)
    assert good.result(20).events
    assert first.result(20).events
    broken = writer.submit(lambda: 1 / 0, 10)
    with pytest.raises(ZeroDivisionError):
        broken.result(20)
    assert writer.submit(one(2), 10).result(20).events
    assert on_disk(tmp_path) == [0, 1, 2]


def test_who_goes_away_holds_nobody_up(tmp_path, writer, slow_disk):
    """A cancelled request is not written if it waited still; the others of its group are."""
    entered, gate, _ = slow_disk
    first = writer.submit(one(0), 10)
    assert entered.wait(20)
    gone, stays = writer.submit(one(1), 10), writer.submit(one(2), 10)
    assert gone.cancel()
    assert not first.cancel()
    gate.set()
    assert stays.result(20).events
    assert on_disk(tmp_path) == [0, 2]


def test_a_failed_write_fails_its_group(tmp_path, writer, monkeypatch):
    """Nobody of it is acknowledged; the next group is written."""

    def refuse(_descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", refuse)
        with pytest.raises(MonitorStorageError, match="No space left"):
            writer.submit(one(1), 10).result(20)
    assert writer.submit(one(2), 10).result(20).events


def test_closing_writes_what_waits(tmp_path, slow_disk):
    """What was handed over before the end is on disk after it; later requests are refused."""
    entered, gate, _ = slow_disk
    writer = FeedbackWriter(LabelStore(tmp_path))
    waiting = [writer.submit(one(0), 10)]
    assert entered.wait(20)
    waiting += [writer.submit(one(number), 10) for number in (1, 2)]
    gate.set()
    writer.close()
    assert [len(done.result(0).events) for done in waiting] == [1, 1, 1]
    assert on_disk(tmp_path) == [0, 1, 2]
    with pytest.raises(CapacityError):
        writer.submit(one(3), 10)


def test_a_worker_without_feedback_makes_nothing(tmp_path):
    """No thread, no file."""
    before = threading.active_count()
    writer = FeedbackWriter(LabelStore(tmp_path))
    assert threading.active_count() == before
    writer.close()
    assert list(tmp_path.iterdir()) == []
