"""The journal as Arrow tables, for notebooks and tests; see `journal` for what is in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tiercel.monitor.journal import read_journal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tiercel.errors import JournalError
    from tiercel.monitor.prediction_record import PlanDeclaration, Record


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
