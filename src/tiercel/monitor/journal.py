"""Reading the journal: every prediction a worker answered, from segments that are live, sealed, killed or cut short.

    <state>/journal/<start>-<worker>-<pid>/000001.log ...

`ext/tiercel/_hot/journal.pxd` is the format. What is read is checked: a record counts if it was committed and its checksum
is right; bytes that are neither are reported, never interpreted.
"""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tiercel._hot.journal import END, PLAN, PREDICTION, SEGMENT_HEADER_BYTES, next_record
from tiercel.errors import JournalError
from tiercel.monitor.directories import worker_directories
from tiercel.monitor.prediction_record import (
    HEADS,
    REASONS,
    RECORD_HEAD_BYTES,
    RUNGS,
    UNKNOWN,
    Key,
    PlanDeclaration,
    Record,
    SentRequest,
    parse_keys,
    parse_record,
)
from tiercel.monitor.segments import READABLE_FORMATS, SEGMENT_FORMAT, SEGMENT_HEAD, SEGMENT_MAGIC, SEGMENT_SUFFIX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = [
    "REASONS",
    "RUNGS",
    "UNKNOWN",
    "Key",
    "PlanDeclaration",
    "Record",
    "SegmentScan",
    "SentRequest",
    "parse_keys",
    "read_journal",
    "read_segment",
    "scan_segment",
    "segment_paths",
]

_MAX_SEGMENT_BYTES = 1 << 31
#: Holds a segment's first declaration and record, unless they are of thousands of features.
_FIRST_BYTES = 1 << 16
_END_BYTES = 24


def read_journal(directory: Path, *, on_damage: Callable[[JournalError], None] | None = None) -> Iterator[Record]:
    """Every record under a state's `journal` directory, or a single worker's: by worker start, then as answered.

    Args:
        directory: `<state>/journal` or one of the directories in it.
        on_damage: called with each damage; reading goes on with the next segment. None: raise it.

    Raises:
        JournalError: damage, after all records before it.
    """
    for path in segment_paths(directory):
        try:
            yield from read_segment(path)
        except FileNotFoundError:  # retention was faster
            continue
        except JournalError as error:
            if on_damage is None:
                raise
            on_damage(error)


def segment_paths(directory: Path) -> list[Path]:
    """The segments below a directory, in order."""
    places = [directory, *worker_directories(directory)]
    return [path for place in places for path in sorted(place.glob(f"[0-9]*{SEGMENT_SUFFIX}"))]


def read_segment(path: Path, *, number: int | None = None) -> Iterator[Record]:
    """The records of one segment, up to where its writer is, was sealed, was killed, or the file was cut.

    Args:
        path: of the segment.
        number: only the records of this number; the others are checked and skipped.

    Raises:
        JournalError: not a segment, or damage, after all records before it.
        OSError: it cannot be read.
    """
    data = _read(path)
    worker, prefix, segment_format = _check_header(path, data)
    head = HEADS[segment_format]
    plans: dict[int, PlanDeclaration] = {}
    at = SEGMENT_HEADER_BYTES
    n_read = 0
    is_reread = False
    while at <= len(data):
        kind, size = next_record(data, at)
        if kind < 0 and not is_reread:
            # A live segment may be copied while a record is written. Once more, then it is damage.
            data, is_reread = _read(path), True
            if at <= len(data):
                continue
            return
        if kind < 0:
            if _is_cut(data, at):
                return  # the file was cut inside a record
            raise JournalError(
                f"{path}: expected a record at byte {at}, got damaged bytes. The {n_read} records before are sound; "
                f"restore the file from a backup to read what follows"
            )
        if kind == 0:
            return
        body = data[at + RECORD_HEAD_BYTES : at + size]
        try:
            if kind == END:
                return
            if kind == PLAN:
                plan_number, n_bytes = struct.unpack_from("=II", body.data)
                plans[plan_number] = PlanDeclaration.from_json(json.loads(body[8 : 8 + n_bytes].tobytes()))
            elif kind == PREDICTION:
                if number is None or head.unpack_from(body.data)[0] == number:
                    yield parse_record(body, plans, worker, prefix, segment_format)
                n_read += 1
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
            raise JournalError(f"{path}: expected a record of this format at byte {at}, got: {error!r}") from error
        at += size


@dataclass(frozen=True, eq=False)
class SegmentScan:
    """Where the records of a segment are; all that is parsed are its plans.

    Attributes:
        worker, prefix: from its header; see `read_header`.
        segment_format: likewise.
        data: uint8, the segment's bytes, 8-aligned and a multiple of 8 long.
        plans: by number.
        offsets: int64, the first byte of each prediction record, in order.
        is_sealed: nothing will follow, whatever its writer does.
        damage: why reading stopped early, if it did; the records before are sound.
    """

    worker: int
    prefix: str
    data: NDArray[np.uint8]
    plans: dict[int, PlanDeclaration]
    offsets: NDArray[np.int64]
    is_sealed: bool
    damage: JournalError | None
    segment_format: int = SEGMENT_FORMAT


def scan_segment(path: Path) -> SegmentScan:
    """Check a segment record by record, as `read_segment` does, for readers of whole columns.

    Raises:
        JournalError: not a segment. Damage behind its header is in the scan.
        OSError: it cannot be read.
    """
    data = _read(path)
    worker, prefix, segment_format = _check_header(path, data)
    plans: dict[int, PlanDeclaration] = {}
    offsets: list[int] = []
    at, is_reread, is_sealed = SEGMENT_HEADER_BYTES, False, False
    damage: JournalError | None = None
    while at <= len(data):
        kind, size = next_record(data, at)
        if kind < 0 and not is_reread:  # as in read_segment
            data, is_reread = _read(path), True
            continue
        if kind < 0 and not _is_cut(data, at):
            damage = JournalError(f"{path}: expected a record at byte {at}, got damaged bytes")
        is_sealed = kind == END
        if kind not in {PLAN, PREDICTION}:
            break
        if kind == PREDICTION:
            offsets.append(at)
        else:
            try:
                number, n_bytes = struct.unpack_from("=II", data.data, at + RECORD_HEAD_BYTES)
                text = data[at + RECORD_HEAD_BYTES + 8 :][:n_bytes].tobytes()
                plans[number] = PlanDeclaration.from_json(json.loads(text))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
                damage = JournalError(f"{path}: expected a plan's declaration at byte {at}, got: {error!r}")
                break
        at += size
    whole = data[: len(data) // 8 * 8]
    return SegmentScan(worker, prefix, whole, plans, np.array(offsets, np.int64), is_sealed, damage, segment_format)


def _read(path: Path, most_bytes: int = _MAX_SEGMENT_BYTES) -> NDArray[np.uint8]:
    """A segment's bytes, 8-aligned. Read, not mapped: sealing trims files, and a map would then fault."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb", buffering=0) as stream:
        data = np.zeros(min(os.fstat(descriptor).st_size, most_bytes), np.uint8)
        n = stream.readinto(data.data) if len(data) else 0
    return data[: n or 0]


def read_header(path: Path) -> tuple[int, str]:
    """Worker number and id prefix of a segment.

    Raises:
        JournalError: not a segment. OSError: it cannot be read.
    """
    return _check_header(path, _read(path, SEGMENT_HEADER_BYTES))[:2]


def first_number(path: Path) -> int | None:
    """The number of a segment's first record; None when it has none yet or is damaged before it.

    Raises:
        OSError: it cannot be read.
    """
    data = _read(path, _FIRST_BYTES)
    at = SEGMENT_HEADER_BYTES
    while at <= len(data):
        kind, size = next_record(data, at)
        if kind == PREDICTION:
            number: int = struct.unpack_from("=Q", data.data, at + RECORD_HEAD_BYTES)[0]  # of every format
            return number
        if kind != PLAN:
            break
        at += size
    return None


class _Header(NamedTuple):
    worker: int
    prefix: str
    segment_format: int


def _check_header(path: Path, data: NDArray[np.uint8]) -> _Header:
    if len(data) < SEGMENT_HEADER_BYTES:
        raise JournalError(f"{path}: expected a journal segment, got {len(data)} bytes")
    magic, segment_format, header_bytes, _, _, _, prefix, worker, _ = SEGMENT_HEAD.unpack_from(data.data)
    if magic != SEGMENT_MAGIC:
        raise JournalError(f"{path}: expected a journal segment of tiercel, got something else")
    if segment_format not in READABLE_FORMATS or header_bytes != SEGMENT_HEADER_BYTES:
        known = " or ".join(map(str, READABLE_FORMATS))
        raise JournalError(
            f"{path}: expected journal format {known}, got {segment_format}. Read it with the tiercel that wrote it"
        )
    try:
        return _Header(worker, prefix.rstrip(b"\0").decode("ascii"), segment_format)
    except UnicodeDecodeError as error:
        raise JournalError(f"{path}: expected an id prefix in its header, got {prefix!r}") from error


def _is_cut(data: NDArray[np.uint8], at: int) -> bool:
    """Whether what is at `at` is the beginning of a record that the file's end cut off."""
    if len(data) - at >= RECORD_HEAD_BYTES:
        (size,) = struct.unpack_from("=I", data.data, at)
        if size <= len(data) - at:
            return False
    end = len(data) - _END_BYTES
    is_sealed = end % 8 == 0 and end >= SEGMENT_HEADER_BYTES and next_record(data, end) == (END, _END_BYTES)
    return not is_sealed and bool(len(data) < SEGMENT_HEAD.unpack_from(data.data)[3])
