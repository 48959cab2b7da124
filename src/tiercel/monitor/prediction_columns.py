"""A journal segment as columns: gathered for all records at once, because a record by itself costs 20 microseconds.

What is here is what the files of the prediction table hold:

    id, row, request_rows, version, tier, arm, time, read_time, oldest_age_us, total_us, worker, base, degraded,
    degrade_reason, is_default_filled, is_shadow, n_missing; then score (or score.<class>), the join keys, the features

Times are UTC. Keys and features keep their own names; one that is taken is prefixed with `key.` or `feature.`. DuckDB's names
do not depend on case, so neither does "taken", and what the views add is taken too.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tiercel.errors import JournalError
from tiercel.monitor.prediction_record import REASONS, RECORD_HEAD_BYTES, RUNGS, UNKNOWN, parse_keys

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from tiercel.monitor.journal import Key, PlanDeclaration, SegmentScan

#: A record's fields behind its own head of 16 bytes; what `prediction_record.HEADS` are to `struct`. By segment format.
_FIELDS = [
    ("number", "=u8"),
    ("received_us", "=i8"),
    ("now_us", "=i8"),
    ("oldest_age_us", "=i8"),
    ("total_ns", "=i8"),
    ("stage_ns", "=i8", 5),
    ("plan", "=u4"),
    ("flags", "=u4"),
    ("first_row", "=i4"),
    ("n_rows", "=i4"),
    ("request_rows", "=i4"),
    ("key_bytes", "=u4"),
]
_REQUEST_FIELDS = [("request_kind", "=u4"), ("request_bytes", "=u4"), ("request_header", "=i8")]
_HEADS = {1: np.dtype(_FIELDS), 2: np.dtype([*_FIELDS, *_REQUEST_FIELDS])}
_DEGRADED, _CHALLENGER, _SHADOW = 4, 8, 16
_RUNG_SHIFT, _REASON_SHIFT, _NUMBER = 8, 12, 15
_DEFAULT_RUNG = next(number for number, name in RUNGS.items() if name == "default")
#: Names by number, as a column's dictionary; what has no name is UNKNOWN.
_RUNG_NAMES = [RUNGS.get(number, UNKNOWN) for number in range(_NUMBER + 1)]
_REASON_NAMES = [REASONS.get(number, UNKNOWN) for number in range(_NUMBER + 1)]
#: Of a table made at a time.
CHUNK_ROWS = 65_536
DAY_US = 86_400_000_000
#: Days since the epoch that a date of four digits can name; a clock may say anything.
_FIRST_DAY, _LAST_DAY = 0, 2_932_896
_FIXED: dict[str, pa.DataType] = {
    "id": pa.string(),
    "row": pa.int32(),
    "request_rows": pa.int32(),
    "version": pa.int64(),
    "tier": pa.string(),
    "arm": pa.string(),
    "time": pa.timestamp("us"),
    "read_time": pa.timestamp("us"),
    "oldest_age_us": pa.int64(),
    "total_us": pa.float64(),
    "worker": pa.int32(),
    "base": pa.string(),
    "degraded": pa.string(),
    "degrade_reason": pa.string(),
    "is_default_filled": pa.bool_(),
    "is_shadow": pa.bool_(),
    "n_missing": pa.int32(),
}
#: Columns of every file, in order.
FIXED_COLUMNS = tuple(_FIXED)
#: Names that a feature cannot have: partitions, and what the views add.
TAKEN = frozenset({*FIXED_COLUMNS, "model", "date", "filename"}) | {
    "label", "label_text", "label_time", "label_received", "label_problem", "label_revision", "value", "score",
}  # fmt: skip


@dataclass(frozen=True)
class ColumnNames:
    """What the columns of a plan's scores, keys and features are called."""

    scores: tuple[str, ...]
    keys: tuple[str, ...]
    features: tuple[str, ...]


def column_names(plan: PlanDeclaration) -> ColumnNames:
    """See the module; the same for equal plans."""
    if plan.n_outputs == 1:
        scores = ["score"]
    elif len({name.casefold() for name in plan.classes}) == plan.n_outputs:
        scores = [f"score.{name}" for name in plan.classes]
    else:
        scores = [f"score.{i}" for i in range(plan.n_outputs)]
    taken = set(TAKEN) | {name.casefold() for name in scores}

    def own(name: str, prefix: str) -> str:
        while name.casefold() in taken:
            name = f"{prefix}.{name}"
        taken.add(name.casefold())
        return name

    keys = [own(name, "key") for name, _ in plan.join_keys]
    return ColumnNames(tuple(scores), tuple(keys), tuple(own(name, "feature") for name in plan.features))


def shape_of(plan: PlanDeclaration) -> str:
    """Equal for plans whose rows fit one file: the same columns of the same types, in the same order."""
    text = json.dumps([column_names(plan).scores, plan.join_keys, plan.features])
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def day_of(received_us: NDArray[np.int64]) -> NDArray[np.int64]:
    """Days since the epoch, those that no date can name moved to the nearest that has one."""
    return np.clip(received_us // DAY_US, _FIRST_DAY, _LAST_DAY)


class SegmentColumns:
    """The records of a scanned segment.

    Attributes:
        heads: structured array of the sound records.
        damage: of the scan, or a record whose sizes do not fit it.
    """

    def __init__(self, scan: SegmentScan) -> None:
        self._scan, self.damage = scan, scan.damage
        words = scan.data.view(np.uint64)
        places = scan.offsets // 8 + RECORD_HEAD_BYTES // 8
        head = _HEADS[scan.segment_format]
        self._scores_at = RECORD_HEAD_BYTES + head.itemsize
        n_words = head.itemsize // 8
        self.heads = words[places[:, None] + np.arange(n_words)].view(head)[:, 0] if len(places) else np.zeros(0, head)
        sound = self._sound()
        if not sound.all():
            first = int(np.argmin(sound))
            self.damage = JournalError(
                f"Expected a record of this format at byte {scan.offsets[first]} of a segment of worker {scan.worker}, "
                f"got sizes that do not fit it"
            )
            self.heads = self.heads[:first]
        self._offsets = scan.offsets[: len(self.heads)]

    def _sound(self) -> NDArray[np.bool_]:
        heads, plans = self.heads, self._scan.plans
        n_features = np.zeros(len(heads), np.int64)
        n_outputs = np.zeros(len(heads), np.int64)
        known = np.zeros(len(heads), bool)
        for number, plan in plans.items():
            of_plan = heads["plan"] == number
            known |= of_plan
            n_features[of_plan], n_outputs[of_plan] = len(plan.features), plan.n_outputs
        n_rows = heads["n_rows"].astype(np.int64)
        size = self._scan.data.view(np.uint32)[self._scan.offsets // 4].astype(np.int64)
        expected = self._scores_at + 8 * n_rows * n_outputs + -(-4 * n_rows * n_features // 8) * 8
        for name in {"key_bytes", "request_bytes"} & set(heads.dtype.names or ()):
            expected += -(-heads[name].astype(np.int64) // 8) * 8
        first = heads["first_row"].astype(np.int64)
        fits: NDArray[np.bool_] = (
            known & (n_rows >= 1) & (first >= 0) & (first <= heads["request_rows"] - n_rows) & (size == expected)
        )
        return fits

    @property
    def plans(self) -> dict[int, PlanDeclaration]:
        """By number, as heads name them."""
        return self._scan.plans

    @property
    def worker(self) -> int:
        """Of the segment."""
        return self._scan.worker

    @property
    def prefix(self) -> str:
        """What the ids of the segment's records begin with."""
        return self._scan.prefix

    @property
    def segment_format(self) -> int:
        """Of the segment."""
        return self._scan.segment_format

    def whole_records(self, records: NDArray[np.int64]) -> pa.Array:
        """The bytes of some records as they are in the segment, from commit word to end, as large binary.

        Args:
            records: indices, ascending.
        """
        starts = self._offsets[records]
        sizes = self._scan.data.view(np.uint32)[starts // 4].astype(np.int64)
        # Every other value is what lies between two of them: so the segment's bytes serve as they are.
        bounds = np.append(np.stack([starts, starts + sizes], axis=1).ravel(), len(self._scan.data))
        both = pa.Array.from_buffers(
            pa.large_binary(), 2 * len(starts), [None, pa.py_buffer(bounds), pa.py_buffer(self._scan.data)]
        )
        return both.take(pa.array(np.arange(0, 2 * len(starts), 2)))

    def plan_of(self, record: int) -> PlanDeclaration:
        """The plan of a record."""
        return self._scan.plans[int(self.heads["plan"][record])]

    def tables(self, records: NDArray[np.int64]) -> Iterator[pa.Table]:
        """Records as tables of about CHUNK_ROWS rows, in order.

        Args:
            records: indices of records whose plans have one shape.
        """
        rows_before = np.cumsum(self.heads["n_rows"][records]) - self.heads["n_rows"][records]
        cuts = np.flatnonzero(np.diff(rows_before // CHUNK_ROWS)) + 1
        for part in np.split(records, cuts):
            yield self._table(part)

    def _table(self, records: NDArray[np.int64]) -> pa.Table:
        heads, offsets = self.heads[records], self._offsets[records]
        numbers, n_rows = heads["plan"], heads["n_rows"].astype(np.int64)
        plans = {number: self._scan.plans[number] for number in np.unique(numbers).tolist()}
        plan = next(iter(plans.values()))
        names = column_names(plan)
        of_row = np.repeat(np.arange(len(records)), n_rows)
        place = np.arange(len(of_row)) - np.repeat(np.cumsum(n_rows) - n_rows, n_rows)
        data = self._scan.data
        scores_at = offsets + self._scores_at
        rows_at = scores_at + 8 * n_rows * plan.n_outputs
        starts = scores_at[of_row] // 8 + place * plan.n_outputs
        scores = data.view(np.float64)[starts[:, None] + np.arange(plan.n_outputs)]
        starts = rows_at[of_row] // 4 + place * len(plan.features)
        rows = data.view(np.float32)[starts[:, None] + np.arange(len(plan.features))]
        missing = np.isnan(rows)

        def coded(codes: NDArray[Any], values: Sequence[str | None], mask: NDArray[np.bool_] | None = None) -> pa.Array:
            taken = codes.astype(np.int32)[of_row]
            array = pa.array(taken, mask=None if mask is None else mask[of_row])
            return pa.DictionaryArray.from_arrays(array, pa.array(values, pa.string())).cast(pa.string())

        which = np.searchsorted(np.array(list(plans), np.uint32), numbers)
        flags = heads["flags"]
        degraded = (flags & _DEGRADED) != 0
        rung, reason = flags >> _RUNG_SHIFT & _NUMBER, flags >> _REASON_SHIFT & _NUMBER
        ids = [f"{self._scan.prefix}{number:x}" for number in heads["number"].tolist()]
        ages = heads["oldest_age_us"][of_row]
        columns: dict[str, Any] = {
            "id": pa.array(ids, pa.string()).take(pa.array(of_row)),
            "row": heads["first_row"][of_row] + place,
            "request_rows": heads["request_rows"][of_row],
            "version": np.array([each.version for each in plans.values()])[which][of_row],
            "tier": coded(which, [each.tier for each in plans.values()]),
            "arm": coded((flags & _CHALLENGER) != 0, ["champion", "challenger"]),
            "time": heads["received_us"][of_row],
            "read_time": heads["now_us"][of_row],
            "oldest_age_us": pa.array(ages, mask=ages < 0),
            "total_us": heads["total_ns"][of_row] / 1e3,
            "worker": np.full(len(of_row), self._scan.worker, np.int32),
            "base": coded(which, [each.base for each in plans.values()]),
            "degraded": coded(rung, _RUNG_NAMES, ~degraded),
            "degrade_reason": coded(reason, _REASON_NAMES, ~degraded),
            "is_default_filled": (degraded & (rung == _DEFAULT_RUNG))[of_row],
            "is_shadow": ((flags & _SHADOW) != 0)[of_row],
            "n_missing": missing.sum(axis=1, dtype=np.int32),
        }
        arrays = {name: pa.array(columns[name]).cast(kind) for name, kind in _FIXED.items()}
        for i, name in enumerate(names.scores):
            arrays[name] = pa.array(np.ascontiguousarray(scores[:, i]))
        arrays |= dict(zip(names.keys, self._keys(plan, heads, rows_at, n_rows), strict=True))
        for i, name in enumerate(names.features):
            column = np.ascontiguousarray(rows[:, i])
            arrays[name] = pa.array(column, mask=np.ascontiguousarray(missing[:, i]))
        return pa.table(arrays)

    def _keys(
        self, plan: PlanDeclaration, heads: NDArray[Any], rows_at: NDArray[np.int64], n_rows: NDArray[np.int64]
    ) -> list[pa.Array]:
        """A column per join key. Keys that do not fit their record are null, and damage."""
        if not plan.join_keys:
            return []
        starts = rows_at + -(-4 * n_rows * len(plan.features) // 8) * 8
        found: list[tuple[Key, ...]] = []
        for start, n_bytes, n in zip(starts.tolist(), heads["key_bytes"].tolist(), n_rows.tolist(), strict=True):
            try:
                found += parse_keys(self._scan.data[start : start + n_bytes].tobytes(), n, plan.join_keys)
            except (ValueError, struct.error) as error:
                found += ((None,) * len(plan.join_keys),) * n
                self.damage = JournalError(f"Expected the keys of a record at byte {start} of a segment, got: {error}")
        types = [pa.int64() if dtype == "int64" else pa.string() for _, dtype in plan.join_keys]
        return [pa.array(values, kind) for values, kind in zip(zip(*found, strict=True), types, strict=True)]
