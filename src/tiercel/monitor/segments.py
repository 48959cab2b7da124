"""The keeper of a worker's journal: everything about segments that takes a system call, on a thread of its own.

The event loop only stores into memory. The keeper makes the next segment before it is needed (allocated block by block, so
never sparse, and faulted in), syncs and trims those that are full, keeps the pages that will be written next mapped
writable, and removes the oldest segments when the journal outgrows its bound. When it cannot keep up - the disk is full or
slow - the event loop finds no segment, drops the record and counts it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import struct
import threading
import time
from typing import TYPE_CHECKING, Protocol

from tiercel._hot.journal import SEGMENT_HEADER_BYTES, Journal
from tiercel.monitor.allocation import map_new_file
from tiercel.monitor.directories import is_live, worker_directories

if TYPE_CHECKING:
    import mmap
    from collections.abc import Callable
    from pathlib import Path

    from tiercel.settings import JournalSettings

__all__ = ["Journal", "SegmentKeeper"]

log = logging.getLogger("tiercel.monitor")

SEGMENT_SUFFIX = ".log"
SEGMENT_MAGIC = b"tiercelJ"
SEGMENT_FORMAT = 1
#: magic, format, header bytes, segment bytes, sequence, start of the segment (us), id prefix, worker, pid, reserved.
SEGMENT_HEAD = struct.Struct("=8sIIQQq16sII192x")
#: How far ahead of the event loop pages are kept writable: what it writes in a few rounds at full speed.
AHEAD_BYTES = 4 << 20
#: How long to wait after a segment could not be made.
RETRY_S = 0.5


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
        """Remove the oldest segments nobody writes until `size` more bytes stay within the bound."""
        removable: list[Path] = []
        total = size
        for directory in worker_directories(self._directory.parent):
            mine = directory == self._directory
            live = mine or is_live(directory)
            for path in sorted(directory.glob(f"*{SEGMENT_SUFFIX}")):
                with contextlib.suppress(OSError):
                    total += path.stat().st_size
                    if not live or (mine and int(path.stem) not in self._mapped):
                        removable.append(path)
        for path in removable:
            if total <= self._settings.max_bytes:
                break
            with contextlib.suppress(OSError):
                total -= path.stat().st_size
                path.unlink()
                self._count("segments_removed")
        for directory in worker_directories(self._directory.parent):
            if (
                directory != self._directory
                and not is_live(directory)
                and not any(directory.glob(f"*{SEGMENT_SUFFIX}"))
            ):
                for entry in directory.iterdir():
                    entry.unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    directory.rmdir()

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
