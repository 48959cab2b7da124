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
from urllib.parse import unquote

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from tiercel.errors import MonitorStorageError
from tiercel.monitor.journal import segment_paths
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
#: A label as text, as a class may be called.
_TOLD = """coalesce(l.label_text, CASE WHEN l.label = floor(l.label) AND abs(l.label) < 1e15
    THEN l.label::BIGINT::VARCHAR ELSE l.label::VARCHAR END)"""
#: What a label means for a version; null: nothing. PERF: most labels are places, or numbers that are; they need no text.
_JUDGED = f"""
    CASE WHEN coalesce(v.is_regression, true) THEN coalesce(l.label, try_cast(l.label_text AS DOUBLE))
        WHEN l.label IS NOT NULL AND v.are_places
            THEN CASE WHEN l.label >= 0 AND l.label < v.n_classes AND l.label = floor(l.label) THEN l.label END
        WHEN list_position(v.classes, {_TOLD}) > 0 THEN (list_position(v.classes, {_TOLD}) - 1)::DOUBLE END
"""

#: Several rows were asked about, and the label does not say which it is of.
_AMBIGUOUS = "p.request_rows > 1 AND l.row_given = false"


def connect_views(
    state_dir: Path,
    ledger: TableLedger,
    *,
    model: str | None = None,
    threads: int | None = None,
) -> duckdb.DuckDBPyConnection:
    """A connection with the views over a state directory.

    Args:
        state_dir: of the project.
        ledger: of its prediction table, read before.
        model: only this one's predictions; None: all.
        threads: of DuckDB; None: as many as cores.

    Raises:
        TableError: the ledger of the labels is damaged. MonitorStorageError: a file cannot be read.
    """
    connection = open_connection(state_dir / "predictions" / ".spill", threads=threads)
    try:
        _make_versions(connection, ledger)
        _make_predictions(connection, state_dir, ledger, model)
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


def _make_predictions(
    connection: duckdb.DuckDBPyConnection, state_dir: Path, ledger: TableLedger, model: str | None
) -> None:
    """The view `predictions`.

    Files of segments that are still written to may be replaced by longer ones. DuckDB reads a file in several turns and may
    open it anew for each, so those are read here, at once, into memory; they are no longer than a segment.
    """
    below = "model=*" if model is None else f"model={quote_path(model, safe='')}"
    paths = sorted((state_dir / "predictions").glob(f"{below}/date=*/*.parquet"))
    # After the files: each that was found belongs to a segment that was there before it.
    done = {name for name, entry in ledger.segments.items() if entry.is_done}
    growing = {f"{path.parent.name}/{path.stem}" for path in segment_paths(state_dir / "journal")} - done
    settled = [path for path in paths if _segment_of(path) not in growing]
    sources = []
    if settled:
        sources.append(
            f"SELECT * FROM read_parquet([{', '.join(quote(str(path)) for path in settled)}], union_by_name = true, "  # noqa: S608
            f"hive_partitioning = true, hive_types = {{'model': VARCHAR, 'date': DATE}})"
        )
    if _read_growing(connection, [path for path in paths if _segment_of(path) in growing]):
        sources.append("SELECT * FROM growing")
    if not sources:
        columns = ", ".join(f"NULL::{kind} AS {quote_name(name)}" for name, kind in _EMPTY.items())
        connection.execute(f"CREATE VIEW predictions AS SELECT {columns} WHERE false")
        return
    source = " UNION ALL BY NAME ".join(sources)
    found = [name for name, *_ in connection.execute(f"DESCRIBE {source}").fetchall()]
    score = "" if "score" in found else ", NULL::DOUBLE AS score"  # a multiclass model has one per class
    connection.execute(f"CREATE VIEW predictions AS SELECT *{score} FROM ({source})")  # noqa: S608


def _segment_of(path: Path) -> str:
    """The segment that a file holds rows of."""
    start, _, number = path.name.rpartition("-")[0].rpartition("-")
    return f"{start}/{number}"


def _read_growing(connection: duckdb.DuckDBPyConnection, paths: list[Path]) -> bool:
    """Make the table `growing` of files as they are now; returns whether there is anything in it."""
    parts: list[str] = []
    for path in paths:
        try:
            with path.open("rb") as stream:  # the file of this moment, whatever takes its name
                table = pq.ParquetFile(stream).read()
        except FileNotFoundError:
            continue
        name = f"growing_{len(parts)}"
        connection.register(name, table)
        model, date = unquote(path.parent.parent.name), path.parent.name.removeprefix("date=")
        parts.append(
            f"SELECT *, {quote(model.removeprefix('model='))} AS model, {quote(date)}::DATE AS date FROM {name}"  # noqa: S608
        )
    if parts:
        connection.execute(f"CREATE TABLE growing AS {' UNION ALL BY NAME '.join(parts)}")
    for place in range(len(parts)):
        connection.unregister(f"growing_{place}")
    return bool(parts)


def _make_outcomes(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute(
        f"""
        CREATE VIEW outcomes AS
        SELECT p.*, CASE WHEN {_AMBIGUOUS} THEN NULL ELSE {_JUDGED} END AS label, l.label_time,
            CASE WHEN {_AMBIGUOUS} THEN NULL ELSE l.value END AS value, l.label_received, l.label_revision,
            CASE WHEN l.id IS NULL OR l.label IS NULL AND l.label_text IS NULL AND NOT ({_AMBIGUOUS}) THEN NULL
                WHEN {_AMBIGUOUS} THEN 'row_missing'
                WHEN {_JUDGED} IS NOT NULL THEN NULL
                WHEN l.label IS NULL THEN 'unknown_class' ELSE 'out_of_range' END AS label_problem
        FROM predictions p LEFT JOIN labels l ON p.id = l.id AND p."row" = l."row"
        LEFT JOIN (
            SELECT model, version, classes, len(classes) AS n_classes, task = 'regression' AS is_regression,
                classes = list_transform(range(len(classes)), lambda i: i::VARCHAR)
                    OR len(list_filter(classes, lambda c: try_cast(c AS DOUBLE) IS NOT NULL)) = 0 AS are_places
            FROM versions
        ) v ON p.model = v.model AND p.version = v.version
        """  # noqa: S608 - constants
    )
