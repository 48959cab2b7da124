"""The keeper of a worker's journal: everything about segments that takes a system call, on a thread of its own.

The event loop only stores into memory. The keeper makes the next segment before it is needed (allocated block by block, so
never sparse, and faulted in), syncs and trims those that are full, keeps the pages that will be written next mapped
writable, and removes the oldest segments when the journal outgrows its bound. When it cannot keep up - the disk is full or
slow - the event loop finds no segment, drops the record and counts it.

A worker that was killed leaves segments of their full size, however few records they hold. Before a keeper counts bytes
against the bound it trims them (`trim_segment`): a worker that dies at every start evicts no records.
"""

from __future__ import annotations

import contextlib
import logging
import os
import struct
import sys
import threading
import time
from typing import TYPE_CHECKING, Protocol

import numpy as np

from tiercel._hot.journal import END, PREDICTION, SEGMENT_HEADER_BYTES, Journal, next_record
from tiercel.monitor.allocation import map_new_file
from tiercel.monitor.directories import is_live, worker_directories

if TYPE_CHECKING:
    import mmap
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from tiercel.settings import JournalSettings

__all__ = ["Journal", "SegmentKeeper", "trim_segment"]

log = logging.getLogger("tiercel.monitor")

SEGMENT_SUFFIX = ".log"
SEGMENT_MAGIC = b"tiercelJ"
SEGMENT_FORMAT = 1
#: magic, format, header bytes, segment bytes, sequence, start of the segment (us), id prefix, worker, pid, reserved.
SEGMENT_HEAD = struct.Struct("=8sIIQQq16sII192x")
#: How far ahead of the event loop pages are kept writable: what it writes in a few rounds at full speed.
AHEAD_BYTES = 4 << 20
#: Of the keeper's thread.
NICENESS = 10
#: How long to wait after a segment could not be made.
RETRY_S = 0.5
#: A segment that was sealed before its first record: the header and an END record.
EMPTY_BYTES = SEGMENT_HEADER_BYTES + 24


class Touchable(Protocol):
    """Memory that the keeper keeps mapped writable."""

    def touch(self) -> None:
        """Fault it in."""


class SegmentKeeper:
    """Makes, seals and removes the segments of one worker start.

    Args:
        journal: what the event loop appends to.
        directory: of this worker start, empty.
        prefix: what the ids of this worker's replies begin with.
        count: called on the keeper's thread with a cell name of the worker's counters.
        make: makes and maps a file; replaced by tests.

    Threads: `start`, `close` and `work_once` by one thread; the rest runs on the keeper's own.
    """

    def __init__(
        self,
        journal: Journal,
        directory: Path,
        settings: JournalSettings,
        *,
        worker: int,
        prefix: bytes,
        count: Callable[[str], None],
        interval_s: float = 0.05,
        make: Callable[[Path, int, bytes], mmap.mmap] = map_new_file,
    ) -> None:
        self._journal, self._directory, self._settings = journal, directory, settings
        self._worker, self._prefix, self._count, self._make = worker, prefix, count, make
        self._interval_s = interval_s
        self._mapped: dict[int, mmap.mmap] = {}
        self._trimmed: set[Path] = set()
        self._sequence = 0
        self._retry_at_s = 0.0
        self._problem = ""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.touched: list[Touchable] = []

    def start(self) -> None:
        """Have a first segment ready, then keep going in the background."""
        self.work_once()
        self._thread = threading.Thread(target=self._run, name="tiercel-journal", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Seal what was written. The event loop must have made its last append."""
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
        self._journal.seal()
        self._finish_retired()
        unused = self._journal.withdraw()
        if unused is not None:
            self._mapped.pop(unused).close()
            self._path(unused).unlink(missing_ok=True)

    def work_once(self) -> None:
        """One round of the keeper's work."""
        self._finish_retired()
        if self._journal.wants_segment and time.monotonic() >= self._retry_at_s:
            self._prepare()
        self._journal.touch_ahead(AHEAD_BYTES)
        for counters in list(self.touched):
            counters.touch()

    def _run(self) -> None:
        # PERF: faulting a segment in is milliseconds of CPU. Where the event loop has the same core, it must not wait for
        #   the scheduler to take turns. (On Linux a thread has a priority of its own.)
        if sys.platform == "linux":
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        while not self._stop.wait(self._interval_s):
            try:
                self.work_once()
            except Exception:
                # The worker serves on; records are dropped and counted until this works again.
                log.exception("journal of worker %d", self._worker)
                self._stop.wait(RETRY_S)

    def _prepare(self) -> None:
        sequence, size = self._sequence + 1, self._settings.segment_bytes
        try:
            self._make_room(size)
            path = self._path(sequence)
            mapped = self._make(path, size, self._head(sequence, size))
        except OSError as error:
            self._count("segments_failed")
            self._retry_at_s = time.monotonic() + RETRY_S
            if self._problem != str(error):
                self._problem = str(error)
                log.error("journal: no new segment, predictions go unrecorded and are counted: %s", error)  # noqa: TRY400
            return
        if self._problem:
            self._problem = ""
            log.info("journal: segments can be made again")
        self._journal.prefault(mapped)
        self._sequence = sequence
        self._mapped[sequence] = mapped
        self._journal.offer(mapped, sequence)
        self._count("segments_prepared")

    def _finish_retired(self) -> None:
        for sequence, used, _ in self._journal.take_retired():
            self._mapped.pop(sequence).close()
            path = self._path(sequence)
            with contextlib.suppress(OSError):  # removed by hand: nothing to finish
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    os.ftruncate(descriptor, used)
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
            self._count("segments_sealed")

    def _make_room(self, size: int) -> None:
        """Remove the oldest segments nobody writes until `size` more bytes stay within the bound.

        Other workers may do the same at the same time: what one of them removed first counts as removed.
        """
        removable: list[tuple[Path, int]] = []
        total = size
        dead = self._tidy_dead()
        for directory in worker_directories(self._directory.parent):
            mine = directory == self._directory
            for path in sorted(directory.glob(f"*{SEGMENT_SUFFIX}")):
                with contextlib.suppress(OSError):
                    n_bytes = path.stat().st_size
                    total += n_bytes
                    if directory in dead or (mine and int(path.stem) not in self._mapped):
                        removable.append((path, n_bytes))
        for path, n_bytes in removable:
            if total <= self._settings.max_bytes:
                break
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
                total -= n_bytes
                self._count("segments_removed")
        for directory in dead:
            _remove_if_empty(directory)

    def _tidy_dead(self) -> set[Path]:
        """Trim what dead workers left, once per directory. Returns the directories of dead workers.

        A worker that is dead stays dead, and nobody else ever writes its segments, so this needs no lock: whoever trims
        a segment at the same time finds the same length.
        """
        directories = worker_directories(self._directory.parent)
        dead = {directory for directory in directories if directory != self._directory and not is_live(directory)}
        self._trimmed &= dead
        for directory in sorted(dead - self._trimmed):
            for path in sorted(directory.glob(f"*{SEGMENT_SUFFIX}")):
                try:
                    if path.name.startswith("."):  # never finished, so never written to
                        path.unlink(missing_ok=True)
                    else:
                        trim_segment(path)
                except OSError as error:  # it counts with its full size
                    log.warning("journal: %s cannot be trimmed: %s", path, error)
            self._trimmed.add(directory)
        return dead

    def _path(self, sequence: int) -> Path:
        return self._directory / f"{sequence:06d}{SEGMENT_SUFFIX}"

    def _head(self, sequence: int, size: int) -> bytes:
        return SEGMENT_HEAD.pack(
            SEGMENT_MAGIC,
            SEGMENT_FORMAT,
            SEGMENT_HEADER_BYTES,
            size,
            sequence,
            time.time_ns() // 1000,
            self._prefix,
            self._worker,
            os.getpid(),
        )


def trim_segment(path: Path) -> None:
    """Cut a dead worker's segment behind its last committed record, or delete it when it holds no prediction.

    Reading gives the same before and after. What is not a whole segment of this format, or is damaged, is left as it is.
    Killed anywhere, this has done one of the two or nothing.

    Args:
        path: of a segment that nobody writes or maps any more.

    Raises:
        OSError: it cannot be read or cut.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:  # another worker was faster
        return
    with os.fdopen(descriptor, "r+b", buffering=0) as stream:
        size = os.fstat(descriptor).st_size
        head = os.pread(descriptor, SEGMENT_HEAD.size, 0)
        if len(head) < SEGMENT_HEADER_BYTES:
            return
        magic, segment_format, header_bytes, full_bytes = SEGMENT_HEAD.unpack(head)[:4]
        if (magic, segment_format, header_bytes) != (SEGMENT_MAGIC, SEGMENT_FORMAT, SEGMENT_HEADER_BYTES):
            return
        if EMPTY_BYTES < size != full_bytes:  # trimmed or sealed already
            return
        data = np.zeros(size, np.uint8)
        data = data[: stream.readinto(data.data) or 0]
        used, n_predictions = _used_bytes(data)
        if used and not n_predictions:
            path.unlink(missing_ok=True)
        elif used and used < len(data):
            os.ftruncate(descriptor, used)
            os.fsync(descriptor)


def _used_bytes(data: NDArray[np.uint8]) -> tuple[int, int]:
    """(bytes up to the end of the last record, predictions in them) of a segment's bytes; (0, 0) when they are damaged."""
    at, n_predictions = SEGMENT_HEADER_BYTES, 0
    while at <= len(data):
        kind, size = next_record(data, at)
        if kind < 0:
            return 0, 0
        if kind == 0:
            break
        at += size
        n_predictions += kind == PREDICTION
        if kind == END:
            break
    return min(at, len(data)), n_predictions


def _remove_if_empty(directory: Path) -> None:
    """Remove a dead worker's directory that has no segment any more."""
    with contextlib.suppress(OSError):  # another worker was faster
        if any(directory.glob(f"*{SEGMENT_SUFFIX}")):
            return
        for entry in directory.iterdir():
            entry.unlink(missing_ok=True)
        directory.rmdir()
