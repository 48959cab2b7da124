"""The keeper of a worker's journal: everything about segments that takes a system call, on a thread of its own.

The event loop only stores into memory. The keeper makes the next segment before it is needed (allocated block by block, so
never sparse), keeps the pages that will be written next mapped writable, has those that were written go to the disk and
unmaps them, syncs and trims full segments, and removes the oldest when the journal outgrows its bound, those in the prediction table before others. When it cannot keep
up - the disk is full or slow - the event loop finds no segment, drops the record and counts it.

All of this may run on the event loop's own core, where whatever takes long at a time delays requests. So the keeper goes
in steps of STEP_BYTES and sleeps between them.

The keeper looks whether its segments still have their names. What is stored in a file that was removed, or moved away with
its directory, no reader finds: the keeper then begins anew, in a directory made anew where that is gone too, and has the
event loop leave the segment that it writes.

A worker that was killed leaves segments of their full size, however few records they hold. Before a keeper counts bytes
against the bound it trims them (`trim_segment`): a worker that dies at every start evicts no records.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import struct
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from tiercel._hot.journal import END, PREDICTION, SEGMENT_HEADER_BYTES, Journal, fault_in, next_record, start_writing
from tiercel.monitor.allocation import map_new_file
from tiercel.monitor.directories import WorkerDirectory, is_live, worker_directories, worker_name
from tiercel.monitor.durable import is_named
from tiercel.monitor.prediction_ledger import unread_segments
from tiercel.priority import stand_back

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from tiercel.settings import JournalSettings

__all__ = ["Journal", "SegmentKeeper", "trim_segment"]

log = logging.getLogger("tiercel.monitor")

SEGMENT_SUFFIX = ".log"
SEGMENT_MAGIC = b"tiercelJ"
SEGMENT_FORMAT = 2
#: Format 1 has no requests in its records.
READABLE_FORMATS = (1, 2)
#: magic, format, header bytes, segment bytes, sequence, start of the segment (us), id prefix, worker, pid, reserved.
SEGMENT_HEAD = struct.Struct("=8sIIQQq16sII192x")
#: How far ahead of the event loop pages are kept writable: what it writes in a few rounds at full speed.
AHEAD_BYTES = 4 << 20
#: PERF: of pages to fault in, write out or unmap at a time, some 0.1 ms; and the sleep between two such steps. A whole
#:   segment at once held up requests for 12 ms (bench_http, one core).
STEP_BYTES = 1 << 18
STEP_PAUSE_S = 0.0005
#: Of a new segment, at most this is filled before it is offered; a longer one is faulted in page by page beyond. What is
#:   filled is dirty memory until the kernel writes it: of a segment that is not full by then, twice.
FILL_BYTES = 1 << 24
_ZEROS = bytes(STEP_BYTES)
#: How long to wait after a segment could not be made.
RETRY_S = 0.5
#: A segment that was sealed before its first record: the header and an END record.
EMPTY_BYTES = SEGMENT_HEADER_BYTES + 24


class Touchable(Protocol):
    """Memory that the keeper keeps mapped writable."""

    def touch(self) -> None:
        """Fault it in."""


@dataclass(slots=True)
class _Segment:
    """A mapped segment: [released, faulted) is what the process holds pages of, as far as the keeper knows.

    Before `filled` the file's pages are in the kernel's cache; they still have to be mapped.
    """

    mapped: mmap.mmap
    descriptor: int
    path: Path
    released: int = 0
    faulted: int = 0
    filled: int = 0

    def fill(self, goes_on: Callable[[], bool]) -> None:
        """Write zeros behind the first page, before anybody else can write, for as long as `goes_on` says so between steps.

        PERF: an ordinary write makes large folios where the file system has them, a fault makes pages: together with
        mapping, writing out and unmapping 0.4 ms of the kernel's time for a megabyte instead of 1.2 (ext4, Linux 6.18).
        """
        end = min(len(self.mapped), FILL_BYTES)
        for start in range(0, end, STEP_BYTES):
            at = max(start, mmap.PAGESIZE)
            os.pwrite(self.descriptor, memoryview(_ZEROS)[: min(start + STEP_BYTES, end) - at], at)
            self.filled = start + STEP_BYTES
            if not goes_on():
                return

    def close(self) -> None:
        self.mapped.close()
        os.close(self.descriptor)


class SegmentKeeper:
    """Makes, seals and removes the segments of one worker start.

    Args:
        journal: what the event loop appends to.
        home: the directory of this worker start, empty; the keeper closes it.
        prefix: what the ids of this worker's replies begin with.
        count: called on the keeper's thread with a cell name of the worker's counters.

    Attributes:
        abandon: called with the sequence of a segment whose file is gone, again and again until the event loop has left it
            and those before.
        problem: why there is no new segment, in words; empty: nothing is wrong.

    Threads: `start`, `close` and `work_once` by one thread; the rest runs on the keeper's own. `place_of`, `gave_way`,
        `directory` and `problem` in any.
    """

    def __init__(
        self,
        journal: Journal,
        home: WorkerDirectory,
        settings: JournalSettings,
        *,
        worker: int,
        prefix: bytes,
        count: Callable[[str], None],
        interval_s: float = 0.05,
    ) -> None:
        self._journal, self._home, self._settings = journal, home, settings
        #: Where segments are, from which sequence on: more than one when a directory was lost.
        self._places: list[tuple[int, Path]] = [(1, home.path)]
        self._worker, self._prefix, self._count = worker, prefix, count
        self._interval_s = interval_s
        self._segments: dict[int, _Segment] = {}
        self._trimmed: set[Path] = set()
        self._sequence = 0
        self._lost = 0  # the newest segment whose file is gone
        self._given_way: set[int] = set()
        self._retry_at_s = 0.0
        self.problem = ""
        self.abandon: Callable[[int], object] = lambda _sequence: None
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
            self._discard(unused)
        self._home.close()

    @property
    def directory(self) -> Path:
        """Where new segments are."""
        return self._home.path

    def place_of(self, sequence: int) -> Path:
        """The file of a segment, whether it is still there or not."""
        directory = next(place for first, place in reversed(self._places) if first <= sequence)
        return directory / f"{sequence:06d}{SEGMENT_SUFFIX}"

    def gave_way(self, sequence: int) -> bool:
        """Whether a segment was removed to keep the journal's bound."""
        return sequence in self._given_way

    def work_once(self) -> None:
        """One round of the keeper's work."""
        self._finish_retired()
        self._notice_loss()
        if self._journal.wants_segment and time.monotonic() >= self._retry_at_s:
            self._prepare()
        self._leave_lost()
        self._follow()
        for counters in list(self.touched):
            counters.touch()

    def _notice_loss(self) -> None:
        """See whether segments are gone, and take back the one that nobody has begun to write."""
        is_intact = self._home.is_intact
        gone = [
            sequence
            for sequence, segment in self._segments.items()
            if sequence > self._lost
            and (
                (segment.path.parent == self.directory and not is_intact)
                or not is_named(segment.path, segment.descriptor)
            )
        ]
        if not gone:
            return
        self._lost = max(gone)
        log.error(
            "journal: expected %s where it was made, it is gone: its latest records are lost. A new segment is begun; leave "
            "the journal's files alone while a server runs",
            ", ".join(str(self.place_of(sequence)) for sequence in gone),
        )
        unused = self._journal.withdraw()  # its directory may be gone too; where it is not, another one costs little
        if unused is not None:
            self._discard(unused)
        self._retry_at_s = 0.0

    def _leave_lost(self) -> None:
        """Have the event loop leave a segment that is gone, once it has another one or none can be had."""
        at = self._journal.progress()
        if at is not None and at[0] <= self._lost:
            self.abandon(at[0])

    def _discard(self, sequence: int) -> None:
        """Forget a segment that nobody writes."""
        segment = self._segments.pop(sequence)
        segment.close()
        with contextlib.suppress(OSError):
            segment.path.unlink(missing_ok=True)

    def _settle(self, sequence: int) -> None:
        """Make the directory anew when it is gone, under a name that no directory had: readers may know the old one."""
        if self._home.is_intact:
            return
        home = WorkerDirectory(self.directory.parent, worker_name(self._worker))
        self._home.close()
        self._home = home
        self._places.append((sequence, home.path))

    def _follow(self) -> None:
        """Stay ahead of the event loop in the segment that it writes, and let go of what is behind it."""
        at = self._journal.progress()
        if at is not None and at[0] in self._segments:
            self._fault_ahead(self._segments[at[0]], at[1])
            self._release_behind(self._segments[at[0]], at[1])

    def _follow_between(self) -> bool:
        """Between steps that take long together: let the event loop go first, and stay ahead of it. False: this is to end."""
        self._pause()
        self._follow()
        return not self._stop.is_set()

    def _run(self) -> None:
        stand_back()
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
            self._settle(sequence)
            self._make_room(size)
            path = self.place_of(sequence)
            mapped = map_new_file(path, size, self._head(sequence, size))
            descriptor = -1
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                segment = _Segment(mapped, descriptor, path)
                segment.fill(self._follow_between)
            except BaseException:
                mapped.close()
                path.unlink(missing_ok=True)
                if descriptor >= 0:
                    os.close(descriptor)
                raise
        except OSError as error:
            self._count("segments_failed")
            self._retry_at_s = time.monotonic() + RETRY_S
            problem = f"journal: no new segment, predictions go unrecorded and are counted: {error}"
            if self.problem != problem:
                self.problem = problem
                log.error("%s", problem)  # noqa: TRY400
            return
        if self.problem:
            self.problem = ""
            log.info("journal: segments can be made again")
        self._sequence = sequence
        self._segments[sequence] = segment
        self._journal.offer(segment.mapped, sequence)
        self._count("segments_prepared")
        self._fault_ahead(segment, 0)

    def _fault_ahead(self, segment: _Segment, used: int) -> None:
        """Fault in what the event loop will write next, so that it does not have to."""
        used -= used % mmap.PAGESIZE
        end = min(used + AHEAD_BYTES, len(segment.mapped))
        # Those that were there may have been made read-only, when the kernel wrote them to the disk.
        fault_in(segment.mapped, used, max(0, min(segment.faulted, end) - used))
        for start in range(max(used, segment.faulted), end, STEP_BYTES):
            size = min(STEP_BYTES, end - start)
            if start >= segment.filled and hasattr(os, "posix_fadvise"):  # all pages at once, where a fault makes one
                os.posix_fadvise(segment.descriptor, start, size, os.POSIX_FADV_WILLNEED)
            fault_in(segment.mapped, start, size)
            segment.faulted = start + size
            self._pause()

    def _release_behind(self, segment: _Segment, used: int) -> None:
        """Write to the disk and unmap what the event loop will not write again."""
        used -= used % mmap.PAGESIZE
        while used - segment.released >= STEP_BYTES:
            start_writing(segment.descriptor, segment.released, STEP_BYTES)
            if sys.platform == "linux":  # elsewhere MADV_DONTNEED may throw stores away
                with contextlib.suppress(OSError):  # a process that locks its memory keeps it
                    segment.mapped.madvise(mmap.MADV_DONTNEED, segment.released, STEP_BYTES)
            segment.released += STEP_BYTES
            self._pause()

    def _pause(self) -> None:
        """Let the event loop go first; not before the thread runs, nor once it is to end."""
        if self._thread is not None:
            self._stop.wait(STEP_PAUSE_S)

    def _finish_retired(self) -> None:
        for sequence, used, _ in self._journal.take_retired():
            segment = self._segments.pop(sequence)
            self._release_behind(segment, used)
            segment.mapped.close()
            try:
                os.ftruncate(segment.descriptor, used)
                os.fsync(segment.descriptor)
            except OSError as error:
                log.error("journal: %s cannot be finished: %s", segment.path, error)  # noqa: TRY400
            finally:
                os.close(segment.descriptor)
            self._count("segments_sealed")

    def _make_room(self, size: int) -> None:
        """Remove segments nobody writes until `size` more bytes stay within the bound.

        Those that are in the prediction table go first, the oldest of them before others; then the rest, likewise.
        Other workers may do the same at the same time: what one of them removed first counts as removed.
        """
        removable: list[tuple[Path, int]] = []
        total = size
        dead = self._tidy_dead()
        for directory in worker_directories(self.directory.parent):
            mine = directory == self.directory
            for path in sorted(directory.glob(f"*{SEGMENT_SUFFIX}")):
                with contextlib.suppress(OSError):
                    n_bytes = path.stat().st_size
                    total += n_bytes
                    if directory in dead or (mine and int(path.stem) not in self._segments):
                        removable.append((path, n_bytes))
        if total > self._settings.max_bytes:
            unread = self._unread({path for path, _ in removable})
            # What is in the prediction table goes first; what is not goes too when the bound leaves no choice.
            for path, n_bytes in sorted(removable, key=lambda each: each[0] in unread):
                with contextlib.suppress(OSError):
                    if path.stem.isdigit() and path == self.place_of(int(path.stem)):
                        self._given_way.add(int(path.stem))  # before it is gone: who misses it asks
                    self._remove(path, n_bytes)
                    total -= n_bytes
                    self._count("segments_removed")
                    if path in unread:
                        self._count("segments_removed_unread")
                if total <= self._settings.max_bytes:
                    break
        for directory in dead:
            _remove_if_empty(directory)

    def _unread(self, paths: set[Path]) -> set[Path]:
        """Those that are not wholly in the prediction table."""
        by_name = {f"{path.parent.name}/{path.stem}": path for path in paths}
        return {by_name[name] for name in unread_segments(self.directory.parent.parent, set(by_name))}

    def _remove(self, path: Path, n_bytes: int) -> None:
        """Unlink a segment, its cached pages given back step by step before: all at once they cost milliseconds."""
        if hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError), path.open("rb", buffering=0) as stream:
                for start in range(0, n_bytes, STEP_BYTES):
                    os.posix_fadvise(stream.fileno(), start, STEP_BYTES, os.POSIX_FADV_DONTNEED)
                    self._pause()
        path.unlink(missing_ok=True)

    def _tidy_dead(self) -> set[Path]:
        """Trim what dead workers left, once per directory. Returns the directories of dead workers.

        A worker that is dead stays dead, and nobody else ever writes its segments, so this needs no lock: whoever trims
        a segment at the same time finds the same length.
        """
        directories = worker_directories(self.directory.parent)
        # One that lost its lock looks dead, though segments in it may still be written here.
        mine = {self.directory, *(segment.path.parent for segment in self._segments.values())}
        dead = {directory for directory in directories if directory not in mine and not is_live(directory)}
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
        if (magic, header_bytes) != (SEGMENT_MAGIC, SEGMENT_HEADER_BYTES) or segment_format not in READABLE_FORMATS:
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
