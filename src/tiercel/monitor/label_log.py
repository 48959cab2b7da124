"""Labels as they come: appended to a file of the writer's own, synced before anybody is told that they were accepted.

    <state>/labels/incoming/<start>-<worker>-<pid>/000001.log

A log is 8 bytes of magic, then frames: u32 length, u32 CRC-32, msgpack of (order, received_us, events, refused, notes). A frame
is there whole or, after a kill in the middle of it, not at all: nobody was told that it was accepted. A log that could not be
written or synced is cut where it was sound and left; the next frame goes into a new one, because after a failed sync nobody
knows what the disk has of the old one.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import struct
import time
import zlib
from typing import TYPE_CHECKING, NamedTuple

import msgpack

from tiercel.errors import MonitorStorageError
from tiercel.monitor.directories import WorkerDirectory, worker_directories, worker_name
from tiercel.monitor.durable import FILE_MODE, make_directory, sync_directory
from tiercel.monitor.feedback_events import Event

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from pathlib import Path

    from tiercel.monitor.feedback_events import Checked

MAGIC = b"tiercelL"
_FRAME = struct.Struct("=II")
_SUFFIX = ".log"
#: A log that is longer gets a successor.
LOG_BYTES = 8 << 20
#: Of all logs together, where nothing collects them (see `labels`): then feedback is refused.
MAX_BYTES = 1 << 30
#: How many frames are appended between two looks at how long all logs are.
_LOOK_EVERY = 64
#: Several writers of one process have directories of their own.
_starts = itertools.count()


class Frame(NamedTuple):
    """What was accepted at once.

    Attributes:
        order: of two frames of one writer, that which came later has the larger.
        received_us: by the clock of then.
        events, refused, notes: see `feedback_events.Checked`.
    """

    order: int
    received_us: int
    events: list[Event]
    refused: dict[str, int]
    notes: dict[str, int]


class LabelLog:
    """One writer's logs. Makes its directory with the first frame.

    Args:
        directory: of all writers' logs.
        worker: a number to tell writers apart by.
        max_bytes: of all writers' logs.

    Threads: one.
    """

    def __init__(self, directory: Path, worker: int, *, max_bytes: int = MAX_BYTES) -> None:
        self._directory, self._worker, self._max_bytes = directory, worker, max_bytes
        self._own: WorkerDirectory | None = None
        self._descriptor: int | None = None
        self._path = directory
        self._size = self._sequence = self._order = self._n_appended = 0

    def append(self, batches: Sequence[tuple[int, Checked]]) -> None:
        """Write batches, each with the time it was received at (us); on return they survive a power cut.

        Raises:
            MonitorStorageError: they do not; none of them counts as accepted.
        """
        frames = b"".join(self._frame(received_us, checked) for received_us, checked in batches)
        try:
            self._refuse_overflow(len(frames))
            self._open()
            self._write(frames)
        except OSError as error:
            self._abandon()
            raise MonitorStorageError(
                f"{self._directory}: expected room for {len(frames)} bytes of labels, got: {error}. Make room and send them again"
            ) from error
        self._n_appended += 1

    def close(self) -> None:
        """Let go of the files: whoever collects may remove them."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        if self._own is not None:
            self._own.close()
            self._own = None

    def _frame(self, received_us: int, checked: Checked) -> bytes:
        # A clock that was set back does not make an older label of a newer one.
        self._order = max(self._order + 1, received_us)
        body: bytes = msgpack.packb((self._order, received_us, checked.events, checked.refused, checked.notes))
        return _FRAME.pack(len(body), zlib.crc32(body)) + body

    def _refuse_overflow(self, n_bytes: int) -> None:
        if self._n_appended % _LOOK_EVERY == 0 or n_bytes > LOG_BYTES:
            total = n_bytes
            for path in log_paths(self._directory):
                with contextlib.suppress(OSError):
                    total += path.stat().st_size
            if total > self._max_bytes:
                raise OSError(
                    f"{total} bytes of labels wait to be collected, more than {self._max_bytes}: run `tiercel feedback`, or set "
                    f"control.enabled = true"
                )

    def _open(self) -> None:
        if self._descriptor is not None and self._size < LOG_BYTES:
            return
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        if self._own is None:
            make_directory(self._directory)
            self._own = WorkerDirectory(self._directory, f"{worker_name(self._worker)}-{next(_starts)}")
            sync_directory(self._directory)
        self._sequence += 1
        self._path = self._own.path / f"{self._sequence:06d}{_SUFFIX}"
        self._descriptor = os.open(
            self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, FILE_MODE
        )
        self._size = 0
        _write_all(self._descriptor, MAGIC)
        self._size = len(MAGIC)
        sync_directory(self._own.path)

    def _write(self, frames: bytes) -> None:
        if self._descriptor is None:
            raise OSError("no log is open")
        _write_all(self._descriptor, frames)
        os.fsync(self._descriptor)
        self._size += len(frames)

    def _abandon(self) -> None:
        """Cut the log where it is sound and leave it."""
        if self._descriptor is None:
            return
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, self._size)
            if self._size <= len(MAGIC):  # or a disk that stays full would get an empty file with every request
                self._path.unlink()
        with contextlib.suppress(OSError):
            os.close(self._descriptor)
        self._descriptor = None


def log_paths(directory: Path) -> list[Path]:
    """All logs, by writer and in order."""
    return [path for each in worker_directories(directory) for path in sorted(each.glob(f"[0-9]*{_SUFFIX}"))]


def read_frames(path: Path, offset: int = 0) -> Generator[tuple[Frame, int], None, None]:
    """(frame, offset behind it) of a log's whole frames.

    Args:
        path: of the log; its writer may be at it.
        offset: 0, or one that came with a frame.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        if offset == 0 and stream.read(len(MAGIC)) != MAGIC:
            return
        at = max(offset, len(MAGIC))
        stream.seek(at)
        while len(head := stream.read(_FRAME.size)) == _FRAME.size:
            n_bytes, checksum = _FRAME.unpack(head)
            left = os.fstat(stream.fileno()).st_size - at - _FRAME.size
            body = stream.read(n_bytes) if n_bytes <= left else b""
            if not body or zlib.crc32(body) != checksum:
                return  # being written, or cut off by a kill
            at += _FRAME.size + n_bytes
            order, received_us, events, refused, notes = msgpack.unpackb(body)
            yield Frame(order, received_us, [Event(*event) for event in events], refused, notes), at


def new_received_us() -> int:
    """The time, in microseconds since the epoch."""
    return time.time_ns() // 1000


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
