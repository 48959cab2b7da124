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
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tiercel._hot.journal import END, PLAN, PREDICTION, PREDICTION_HEAD, SEGMENT_HEADER_BYTES, next_record
from tiercel.errors import JournalError
from tiercel.monitor.directories import worker_directories
from tiercel.monitor.segments import SEGMENT_FORMAT, SEGMENT_HEAD, SEGMENT_MAGIC, SEGMENT_SUFFIX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

_MAX_SEGMENT_BYTES = 1 << 31
#: Holds a segment's first declaration and record, unless they are of thousands of features.
_FIRST_BYTES = 1 << 16
_RECORD_HEAD_BYTES, _END_BYTES = 16, 24
_KEY_LENGTH = struct.Struct("=H")
_KEY_ABSENT = 0xFFFF
_STAGES = ("parse", "read", "compute", "score", "reply")
#: Bits of a record's flags, as in `ext/tiercel/_hot/prediction.pxd`: bits 8..11 are a rung, bits 12..15 a reason.
_FAST, _MANY, _DEGRADED, _CHALLENGER, _SHADOW = 1, 2, 4, 8, 16
_RUNG_SHIFT, _REASON_SHIFT, _NUMBER = 8, 12, 15
RUNGS = {1: "fallback", 2: "last_score", 3: "default"}
REASONS = {1: "deadline", 2: "overloaded", 3: "unavailable", 4: "failed"}
#: A rung or reason that this version has no name for, or that was not given.
UNKNOWN = "unknown"

Key = int | str | None


@dataclass(frozen=True)
class PlanDeclaration:
    """What answered, as the journal says it.

    join_keys: (name, "int64" or "string") in sorted order. tier: "realtime" too where the journal is older than tiers.
    """

    model: str
    version: int
    service: str | None
    service_fingerprint: str | None
    base: str | None
    features: tuple[str, ...]
    join_keys: tuple[tuple[str, str], ...]
    n_outputs: int
    task: str
    classes: tuple[str, ...]
    tier: str = "realtime"

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> PlanDeclaration:
        """From a PLAN record.

        Raises:
            KeyError, TypeError, ValueError: it is not one.
        """
        return cls(
            model=str(data["model"]),
            version=int(data["version"]),
            service=data["service"],
            service_fingerprint=data["service_fingerprint"],
            base=data["base"],
            features=tuple(map(str, data["features"])),
            join_keys=tuple((str(name), str(dtype)) for name, dtype in data["join_keys"]),
            n_outputs=int(data["n_outputs"]),
            task=str(data["task"]),
            classes=tuple(map(str, data["classes"])),
            tier=str(data.get("tier", "realtime")),
        )


@dataclass(frozen=True, eq=False)
class Record:
    """One answered request, or some rows of a large one.

    Attributes:
        id: the reply's id.
        first_row: place of `rows[0]` in the request; other records hold the others of `request_rows`.
        stage_ns: int64 per stage: parse, read, compute, score, reply.
        rows: float32 (n_rows, n_features), as scored; NaN is missing.
        scores: float64 (n_rows, n_outputs).
        keys: per row, per join key of the plan; None is null or was not sent.
        flags: as written; the properties say what they mean.
    """

    plan: PlanDeclaration
    worker: int
    id: str
    received_us: int
    now_us: int
    oldest_age_us: int | None
    total_ns: int
    stage_ns: tuple[int, ...]
    flags: int
    first_row: int
    request_rows: int
    rows: NDArray[np.float32]
    scores: NDArray[np.float64]
    keys: tuple[tuple[Key, ...], ...]

    @property
    def is_fast(self) -> bool:
        """Answered by the compiled protocol."""
        return bool(self.flags & _FAST)

    @property
    def is_many(self) -> bool:
        """Lists were sent."""
        return bool(self.flags & _MANY)

    @property
    def degraded(self) -> str | None:
        """The rung that answered instead of the asked model: one of `RUNGS`, or "unknown"; None: the model itself."""
        if not self.flags & _DEGRADED:
            return None
        return RUNGS.get(self.flags >> _RUNG_SHIFT & _NUMBER, UNKNOWN)

    @property
    def degrade_reason(self) -> str | None:
        """Why: one of `REASONS`, or "unknown"; None when not degraded."""
        if not self.flags & _DEGRADED:
            return None
        return REASONS.get(self.flags >> _REASON_SHIFT & _NUMBER, UNKNOWN)

    @property
    def arm(self) -> str:
        """Whose share of the entities this is: "champion" or "challenger"."""
        return "challenger" if self.flags & _CHALLENGER else "champion"

    @property
    def is_shadow(self) -> bool:
        """Scored beside the answer and not sent."""
        return bool(self.flags & _SHADOW)


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
    worker, prefix = _check_header(path, data)
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
        body = data[at + _RECORD_HEAD_BYTES : at + size]
        try:
            if kind == END:
                return
            if kind == PLAN:
                plan_number, n_bytes = struct.unpack_from("=II", body.data)
                plans[plan_number] = PlanDeclaration.from_json(json.loads(body[8 : 8 + n_bytes].tobytes()))
            elif kind == PREDICTION:
                if number is None or PREDICTION_HEAD.unpack_from(body.data)[0] == number:
                    yield _parse(body, plans, worker, prefix)
                n_read += 1
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
            raise JournalError(f"{path}: expected a record of this format at byte {at}, got: {error!r}") from error
        at += size


@dataclass(frozen=True, eq=False)
class SegmentScan:
    """Where the records of a segment are; all that is parsed are its plans.

    Attributes:
        worker, prefix: from its header; see `read_header`.
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


def scan_segment(path: Path) -> SegmentScan:
    """Check a segment record by record, as `read_segment` does, for readers of whole columns.

    Raises:
        JournalError: not a segment. Damage behind its header is in the scan.
        OSError: it cannot be read.
    """
    data = _read(path)
    worker, prefix = _check_header(path, data)
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
                number, n_bytes = struct.unpack_from("=II", data.data, at + _RECORD_HEAD_BYTES)
                text = data[at + _RECORD_HEAD_BYTES + 8 :][:n_bytes].tobytes()
                plans[number] = PlanDeclaration.from_json(json.loads(text))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
                damage = JournalError(f"{path}: expected a plan's declaration at byte {at}, got: {error!r}")
                break
        at += size
    whole = data[: len(data) // 8 * 8]
    return SegmentScan(worker, prefix, whole, plans, np.array(offsets, np.int64), is_sealed, damage)


def read_tables(
    directory: Path, *, rows: int = 65_536, on_damage: Callable[[JournalError], None] | None = None
) -> Iterator[tuple[PlanDeclaration, pa.Table]]:
    """The journal as tables, one row per scored row, each of one plan.

    Columns: prediction_id, row, request_rows, worker, model, version, base, received_at, read_at, oldest_age_us, total_us,
    fast, many, degraded (null: not), degrade_reason, arm, is_shadow; `score` (or `score.<class>`); the join keys; the features under their own names. A name that is taken is
    prefixed with `key.` or `feature.`.

    Args:
        directory: as for `read_journal`.
        rows: of a table, about.
        on_damage: as for `read_journal`.
    """
    waiting: dict[PlanDeclaration, list[Record]] = {}
    counts: dict[PlanDeclaration, int] = {}
    for record in read_journal(directory, on_damage=on_damage):
        waiting.setdefault(record.plan, []).append(record)
        counts[record.plan] = counts.get(record.plan, 0) + len(record.rows)
        if counts[record.plan] >= rows:
            del counts[record.plan]
            yield record.plan, to_table(record.plan, waiting.pop(record.plan))
    for plan, records in waiting.items():
        yield plan, to_table(plan, records)


def to_table(plan: PlanDeclaration, records: list[Record]) -> pa.Table:
    """Records of one plan as a table; see `read_tables`."""
    n = [len(record.rows) for record in records]

    def repeated(values: list[Any], dtype: pa.DataType) -> pa.Array:
        return pa.array([value for value, times in zip(values, n, strict=True) for _ in range(times)], dtype)

    moment = pa.timestamp("us", "UTC")
    columns: dict[str, Any] = {
        "prediction_id": repeated([r.id for r in records], pa.string()),
        "row": pa.array([r.first_row + i for r in records for i in range(len(r.rows))], pa.int32()),
        "request_rows": repeated([r.request_rows for r in records], pa.int32()),
        "worker": repeated([r.worker for r in records], pa.int32()),
        "model": repeated([plan.model] * len(records), pa.string()),
        "version": repeated([plan.version] * len(records), pa.int64()),
        "base": repeated([plan.base] * len(records), pa.string()),
        "received_at": repeated([r.received_us for r in records], moment),
        "read_at": repeated([r.now_us for r in records], moment),
        "oldest_age_us": repeated([r.oldest_age_us for r in records], pa.int64()),
        "total_us": repeated([r.total_ns / 1e3 for r in records], pa.float64()),
        "fast": repeated([r.is_fast for r in records], pa.bool_()),
        "many": repeated([r.is_many for r in records], pa.bool_()),
        "degraded": repeated([r.degraded for r in records], pa.string()),
        "degrade_reason": repeated([r.degrade_reason for r in records], pa.string()),
        "arm": repeated([r.arm for r in records], pa.string()),
        "is_shadow": repeated([r.is_shadow for r in records], pa.bool_()),
    }
    scores = np.concatenate([r.scores for r in records])
    names = ["score"] if plan.n_outputs == 1 else [f"score.{i}" for i in range(plan.n_outputs)]
    if plan.n_outputs > 1 and len(set(plan.classes)) == plan.n_outputs:
        names = [f"score.{name}" for name in plan.classes]
    for i, name in enumerate(names):
        columns[name] = pa.array(np.ascontiguousarray(scores[:, i]))
    for i, (name, dtype) in enumerate(plan.join_keys):
        values = [row[i] for r in records for row in r.keys]
        key_type = pa.int64() if dtype == "int64" else pa.string()
        columns[f"key.{name}" if name in columns else name] = pa.array(values, key_type)
    rows = np.concatenate([r.rows for r in records])
    for i, name in enumerate(plan.features):
        column = np.ascontiguousarray(rows[:, i])
        columns[f"feature.{name}" if name in columns else name] = pa.array(column, mask=np.isnan(column))
    return pa.table(columns)


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
    return _check_header(path, _read(path, SEGMENT_HEADER_BYTES))


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
            number: int = PREDICTION_HEAD.unpack_from(data.data, at + _RECORD_HEAD_BYTES)[0]
            return number
        if kind != PLAN:
            break
        at += size
    return None


def _check_header(path: Path, data: NDArray[np.uint8]) -> tuple[int, str]:
    """Worker number and id prefix."""
    if len(data) < SEGMENT_HEADER_BYTES:
        raise JournalError(f"{path}: expected a journal segment, got {len(data)} bytes")
    magic, segment_format, header_bytes, _, _, _, prefix, worker, _ = SEGMENT_HEAD.unpack_from(data.data)
    if magic != SEGMENT_MAGIC:
        raise JournalError(f"{path}: expected a journal segment of tiercel, got something else")
    if segment_format != SEGMENT_FORMAT or header_bytes != SEGMENT_HEADER_BYTES:
        raise JournalError(
            f"{path}: expected journal format {SEGMENT_FORMAT}, got {segment_format}. Read it with the tiercel that wrote it"
        )
    try:
        return worker, prefix.rstrip(b"\0").decode("ascii")
    except UnicodeDecodeError as error:
        raise JournalError(f"{path}: expected an id prefix in its header, got {prefix!r}") from error


def _is_cut(data: NDArray[np.uint8], at: int) -> bool:
    """Whether what is at `at` is the beginning of a record that the file's end cut off."""
    if len(data) - at >= _RECORD_HEAD_BYTES:
        (size,) = struct.unpack_from("=I", data.data, at)
        if size <= len(data) - at:
            return False
    end = len(data) - _END_BYTES
    is_sealed = end % 8 == 0 and end >= SEGMENT_HEADER_BYTES and next_record(data, end) == (END, _END_BYTES)
    return not is_sealed and bool(len(data) < SEGMENT_HEAD.unpack_from(data.data)[3])


def _parse(body: NDArray[np.uint8], plans: dict[int, PlanDeclaration], worker: int, prefix: str) -> Record:
    head = PREDICTION_HEAD.unpack_from(body.data)
    number, received_us, now_us, oldest_age_us, total_ns = head[:5]
    plan_number, flags, first_row, n_rows, request_rows, key_bytes = head[10:]
    plan = plans[plan_number]
    n_features = len(plan.features)
    scores_at = PREDICTION_HEAD.size
    rows_at = scores_at + 8 * n_rows * plan.n_outputs
    keys_at = rows_at + -(-4 * n_rows * n_features // 8) * 8
    if n_rows < 1 or not 0 <= first_row <= request_rows - n_rows or keys_at + -(-key_bytes // 8) * 8 != len(body):
        raise ValueError("sizes that do not fit the record")
    return Record(
        plan=plan,
        worker=worker,
        id=f"{prefix}{number:x}",
        received_us=received_us,
        now_us=now_us,
        oldest_age_us=None if oldest_age_us < 0 else oldest_age_us,
        total_ns=total_ns,
        stage_ns=tuple(head[5:10]),
        flags=flags,
        first_row=first_row,
        request_rows=request_rows,
        rows=body[rows_at : rows_at + 4 * n_rows * n_features].view(np.float32).reshape(n_rows, n_features).copy(),
        scores=body[scores_at:rows_at].view(np.float64).reshape(n_rows, plan.n_outputs).copy(),
        keys=parse_keys(body[keys_at : keys_at + key_bytes].tobytes(), n_rows, plan.join_keys),
    )


def parse_keys(data: bytes, n_rows: int, join_keys: tuple[tuple[str, str], ...]) -> tuple[tuple[Key, ...], ...]:
    """The keys of a record's rows.

    Raises:
        ValueError, struct.error: the bytes are not those.
    """
    if not data:
        return ((None,) * len(join_keys),) * n_rows
    rows: list[tuple[Key, ...]] = []
    at = 0
    for _ in range(n_rows):
        row: list[Key] = []
        for _, dtype in join_keys:
            (length,) = _KEY_LENGTH.unpack_from(data, at)
            at += _KEY_LENGTH.size
            if length == _KEY_ABSENT:
                row.append(None)
                continue
            part = data[at : at + length]
            at += length
            if len(part) != length or (dtype == "int64" and length != 8):
                raise ValueError("a key that does not fit the record")
            row.append(int.from_bytes(part, "big") - (1 << 63) if dtype == "int64" else part.decode("utf-8"))
        rows.append(tuple(row))
    if at != len(data):
        raise ValueError("more keys than join keys")
    return tuple(rows)
