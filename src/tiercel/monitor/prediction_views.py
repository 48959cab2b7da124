"""Predictions, labels and their outcomes as SQL views, for `tiercel sql` and everything that measures a model.

    versions      model, version, tier, task, n_outputs, classes, features
    predictions   the rows of the table, with model and date (of `time`, UTC)
    labels        the last label of every key (id, row)
    outcomes      predictions with label, label_time, value, label_received, label_revision and label_problem

In `outcomes` a classifier's label is the class' place among the version's classes, however it was told: by name, by a number
that is a name, or as the place itself where no class is named by a number. What fits none is null there, and `label_problem`
says so: "unknown_class", "out_of_range", or "row_missing" where several rows were asked about and nobody said which.

A request that was scored by a shadow has two rows of one id; `is_shadow` tells them apart, and the label is for both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote as quote_path

import duckdb
import pyarrow as pa

from tiercel.errors import MonitorStorageError
from tiercel.monitor.label_ledger import LabelLedger
from tiercel.monitor.label_query import labels_query, open_connection, quote, quote_name

if TYPE_CHECKING:
    from pathlib import Path

    from tiercel.monitor.prediction_ledger import TableLedger

_EMPTY = {
    "id": "VARCHAR", "row": "INTEGER", "request_rows": "INTEGER", "version": "BIGINT", "tier": "VARCHAR", "arm": "VARCHAR",
    "time": "TIMESTAMP", "read_time": "TIMESTAMP", "oldest_age_us": "BIGINT", "total_us": "DOUBLE", "worker": "INTEGER",
    "base": "VARCHAR", "degraded": "VARCHAR", "degrade_reason": "VARCHAR", "is_default_filled": "BOOLEAN",
    "is_shadow": "BOOLEAN", "n_missing": "INTEGER", "score": "DOUBLE", "date": "DATE", "model": "VARCHAR",
}  # fmt: skip
#: What a label means for a version: its number, and why it has none.
_JUDGED = """
    CASE WHEN v.task = 'regression' OR v.task IS NULL THEN coalesce(l.label, try_cast(l.label_text AS DOUBLE))
        WHEN list_position(v.classes, l.told) > 0 THEN (list_position(v.classes, l.told) - 1)::DOUBLE
        WHEN l.label IS NOT NULL AND NOT v.has_numbers AND l.label = floor(l.label) AND l.label >= 0
            AND l.label < v.n_classes THEN l.label END
"""


def connect_views(
    state_dir: Path, ledger: TableLedger, *, model: str | None = None, threads: int | None = None
) -> duckdb.DuckDBPyConnection:
    """A connection with the views over a state directory.

    Args:
        state_dir: of the project.
        ledger: of its prediction table.
        model: only this one's predictions; None: all.
        threads: of DuckDB; None: as many as cores.

    Raises:
        TableError: the ledger of the labels is damaged. MonitorStorageError: a file cannot be read.
    """
    connection = open_connection(state_dir / "predictions" / ".spill", threads=threads)
    try:
        _make_versions(connection, ledger)
        _make_predictions(connection, state_dir / "predictions", model)
        labels = state_dir / "labels"
        connection.execute(f"CREATE VIEW labels AS {labels_query(labels, LabelLedger.read(labels))}")
        _make_outcomes(connection)
    except (duckdb.Error, OSError) as error:
        connection.close()
        raise MonitorStorageError(f"{state_dir}: expected readable predictions and labels, got: {error}") from error
    except BaseException:
        connection.close()
        raise
    return connection


def _make_versions(connection: duckdb.DuckDBPyConnection, ledger: TableLedger) -> None:
    names = [name.rpartition(":") for name in ledger.versions]
    rows = list(ledger.versions.values())
    table = pa.table(
        {
            "model": pa.array([model for model, _, _ in names], pa.string()),
            "version": pa.array([int(version) for _, _, version in names], pa.int64()),
            "tier": pa.array([row["tier"] for row in rows], pa.string()),
            "task": pa.array([row["task"] for row in rows], pa.string()),
            "n_outputs": pa.array([row["n_outputs"] for row in rows], pa.int32()),
            "classes": pa.array([row["classes"] for row in rows], pa.list_(pa.string())),
            "features": pa.array([row["features"] for row in rows], pa.list_(pa.string())),
        }
    )
    connection.register("versions_read", table)
    connection.execute("CREATE TABLE versions AS SELECT * FROM versions_read")
    connection.unregister("versions_read")


def _make_predictions(connection: duckdb.DuckDBPyConnection, directory: Path, model: str | None) -> None:
    below = "model=*" if model is None else f"model={quote_path(model, safe='')}"
    if not any(directory.glob(f"{below}/date=*/*.parquet")):
        columns = ", ".join(f"NULL::{kind} AS {quote_name(name)}" for name, kind in _EMPTY.items())
        connection.execute(f"CREATE VIEW predictions AS SELECT {columns} WHERE false")
        return
    source = (
        f"read_parquet({quote(str(directory / below / 'date=*' / '*.parquet'))}, union_by_name = true, "
        f"hive_partitioning = true, hive_types = {{'model': VARCHAR, 'date': DATE}})"
    )
    found = [name for name, *_ in connection.execute(f"DESCRIBE SELECT * FROM {source}").fetchall()]  # noqa: S608
    score = "" if "score" in found else ", NULL::DOUBLE AS score"  # a multiclass model has one per class
    connection.execute(f"CREATE VIEW predictions AS SELECT *{score} FROM {source}")  # noqa: S608


def _make_outcomes(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute(
        f"""
        CREATE VIEW outcomes AS
        SELECT p.*, CASE WHEN l.id IS NULL OR is_ambiguous THEN NULL ELSE {_JUDGED} END AS label,
            l.label_time, CASE WHEN is_ambiguous THEN NULL ELSE l.value END AS value, l.label_received, l.label_revision,
            CASE WHEN l.id IS NULL THEN NULL WHEN is_ambiguous THEN 'row_missing'
                WHEN l.told IS NULL OR {_JUDGED} IS NOT NULL THEN NULL
                WHEN l.label IS NULL THEN 'unknown_class' ELSE 'out_of_range' END AS label_problem
        FROM predictions p LEFT JOIN (
            SELECT *, coalesce(label_text, CASE WHEN label = floor(label) AND abs(label) < 1e15
                THEN label::BIGINT::VARCHAR ELSE label::VARCHAR END) AS told FROM labels
        ) l ON p.id = l.id AND p."row" = l."row"
        LEFT JOIN (
            SELECT model, version, task, classes, len(classes) AS n_classes,
                len(list_filter(classes, lambda c: try_cast(c AS DOUBLE) IS NOT NULL)) > 0 AS has_numbers FROM versions
        ) v ON p.model = v.model AND p.version = v.version
        CROSS JOIN LATERAL (SELECT p.request_rows > 1 AND NOT coalesce(l.row_given, true) AS is_ambiguous)
        """  # noqa: S608 - constants
    )
