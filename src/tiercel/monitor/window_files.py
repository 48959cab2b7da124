"""Files of windows: what was counted between two moments, of every version that answered.

    <state>/windows/<first>-<last>.window    counts between two records, or of several such files merged into one
                    what-<sha256>.json       what the cells of one version in one tier are, once
                    baseline.msgpack         see `window_baseline`: also says up to which number files are valid

A file is immutable and complete under its name. It holds, per version, the cells that are not zero: their places and
values in the smallest integers that hold them, so that a minute of a version of 50 features takes a few kilobytes.
"""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgpack
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.typing import NDArray

_MAGIC = b"tiercelW"
_HEAD = struct.Struct("<8sI")
_FORMAT = "tiercel-window-1"
_FIRST_READ_BYTES = 1 << 16
_MAX_HEADER_BYTES = 1 << 28
_MAX_PROBLEMS = 8
SUFFIX = ".window"
#: What anything but a file of windows may raise when it is read as one.
UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    struct.error,
    msgpack.UnpackException,
)


@dataclass(frozen=True)
class Entry:
    """Where the cells of one description are in a file. `what`: sha256 hex of the description."""

    what: str
    n_cells: int
    first_byte: int
    n_bytes: int
    crc32: int


@dataclass(frozen=True)
class WindowFile:
    """One file's header.

    Attributes:
        first, last: numbers of the records it covers.
        begin_us, end_us: the time it covers. Where the clock was set back, begin is not before end of the one before.
        n_clock_jumps: records in it at which the clock was found to have been set.
        problems: what is uncertain about its counts, in words.
        entries: by description.
    """

    path: Path
    first: int
    last: int
    begin_us: int
    end_us: int
    n_clock_jumps: int
    problems: tuple[str, ...]
    entries: dict[str, Entry]

    @property
    def middle_us(self) -> int:
        """What decides to which stretch of time it belongs."""
        return (self.begin_us + self.end_us) // 2

    def cells(self, what: str) -> NDArray[np.uint64]:
        """The cells of one description.

        Raises:
            OSError, ValueError: it cannot be read, or is damaged.
        """
        entry = self.entries[what]
        with self.path.open("rb", buffering=0) as stream:
            data = os.pread(stream.fileno(), entry.n_bytes, entry.first_byte)
        if zlib.crc32(data) != entry.crc32:
            raise ValueError(f"{self.path}: its bytes are not those that were written")
        return unpack_cells(data, entry.n_cells)


def file_name(first: int, last: int) -> str:
    """Sorts by `first`."""
    return f"{first:012d}-{last:012d}{SUFFIX}"


def numbers_of(name: str) -> tuple[int, int] | None:
    """First and last record of a file by its name; None for other files."""
    first, dash, last = name.removesuffix(SUFFIX).partition("-")
    if not name.endswith(SUFFIX) or not dash or not (first.isdecimal() and last.isdecimal()):
        return None
    return int(first), int(last)


def write_window_file(
    directory: Path,
    first: int,
    last: int,
    span_us: tuple[int, int],
    counts: dict[str, NDArray[np.uint64]],
    *,
    n_clock_jumps: int = 0,
    problems: Iterable[str] = (),
) -> WindowFile:
    """Make a file durable under its name, replacing one of the same name.

    Raises:
        OSError: the disk refuses; nothing is left behind.
    """
    entries, blobs, at = [], [], 0
    for what, cells in sorted(counts.items()):
        blob = pack_cells(cells)
        entries.append([what, len(cells), at, len(blob), zlib.crc32(blob)])
        blobs.append(blob)
        at += len(blob)
    header: bytes = msgpack.packb(
        {
            "format": _FORMAT,
            "span_us": list(span_us),
            "n_clock_jumps": n_clock_jumps,
            "problems": list(dict.fromkeys(problems))[:_MAX_PROBLEMS],
            "entries": entries,
        }
    )
    path = directory / file_name(first, last)
    write_durably(path, b"".join([_HEAD.pack(_MAGIC, len(header)), header, *blobs]))
    return _opened(path, first, last, header)


def read_window_file(path: Path) -> WindowFile:
    """The header of a file.

    Raises:
        one of UNREADABLE: it is gone, or not such a file.
    """
    numbers = numbers_of(path.name)
    if numbers is None:
        raise ValueError(f"{path}: expected the name of a file of windows")
    with path.open("rb", buffering=0) as stream:
        data = stream.read(_FIRST_READ_BYTES)
        magic, n_bytes = _HEAD.unpack_from(data) if len(data) >= _HEAD.size else (b"", 0)
        if magic != _MAGIC or n_bytes > _MAX_HEADER_BYTES:
            raise ValueError(f"{path}: expected a file of windows, got something else")
        if len(data) < _HEAD.size + n_bytes:
            data = os.pread(stream.fileno(), _HEAD.size + n_bytes, 0)
    return _opened(path, *numbers, data[_HEAD.size : _HEAD.size + n_bytes])


def pack_cells(cells: NDArray[np.uint64]) -> bytes:
    """The cells that are not zero: their number, the width of places and values in bytes, places, values."""
    places = np.flatnonzero(cells)
    values = cells[places]
    place_type = _smallest(len(cells))
    value_type = _smallest(int(values.max(initial=0)))
    head = struct.pack("<IBB", len(places), place_type.itemsize, value_type.itemsize)
    return head + places.astype(place_type).tobytes() + values.astype(value_type).tobytes()


def unpack_cells(data: bytes, n_cells: int) -> NDArray[np.uint64]:
    """Inverse of `pack_cells`.

    Raises:
        one of UNREADABLE: not what it wrote.
    """
    places, values = unpack_places(data)
    cells = np.zeros(n_cells, np.uint64)
    cells[places] = values
    return cells


def unpack_places(data: bytes) -> tuple[NDArray[np.unsignedinteger[Any]], NDArray[np.unsignedinteger[Any]]]:
    """Places, ascending, and values of the cells that are not zero: what to read who needs few of them.

    Raises:
        one of UNREADABLE: not what `pack_cells` wrote.
    """
    if len(data) < 6:
        raise ValueError("cells that were cut short")
    n, place_bytes, value_bytes = struct.unpack_from("<IBB", data)
    if len(data) != 6 + n * (place_bytes + value_bytes):
        raise ValueError("cells of another length than they say")
    places = np.frombuffer(data, f"<u{place_bytes}", n, 6)
    return places, np.frombuffer(data, f"<u{value_bytes}", n, 6 + n * place_bytes)


def write_durably(path: Path, content: bytes) -> None:
    """Write beside `path`, fsync, rename over it, and fsync the directory.

    Raises:
        OSError: the disk refuses; what was there before still is.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with unfinished.open("wb") as stream:
            os.fchmod(stream.fileno(), 0o600)
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _opened(path: Path, first: int, last: int, header: bytes) -> WindowFile:
    found: dict[str, Any] = msgpack.unpackb(header)
    if found["format"] != _FORMAT:
        raise ValueError(f"{path}: expected {_FORMAT}, got {found['format']!r}")
    blobs_at = _HEAD.size + len(header)
    begin_us, end_us = found["span_us"]
    entries = [
        Entry(str(w), int(n), blobs_at + int(at), int(size), int(crc)) for w, n, at, size, crc in found["entries"]
    ]
    return WindowFile(
        path,
        first,
        last,
        int(begin_us),
        int(end_us),
        int(found["n_clock_jumps"]),
        tuple(map(str, found["problems"])),
        {entry.what: entry for entry in entries},
    )


def _smallest(largest: int) -> np.dtype[Any]:
    return next(np.dtype(f"<u{n}") for n in (1, 2, 4, 8) if largest < 1 << 8 * n)
