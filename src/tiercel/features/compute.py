"""Evaluating feature views to Parquet: once per (definition, source content), for training and serving alike.

A computed file holds, per row: the join keys, `__visible_us` (from when the row is the newest known one for its key),
`__event_us` (when its facts were true), and the fields. Rows are clustered by (keys, `__visible_us`), which is unique.

Why `__visible_us`: "the latest event that had happened and was known at time t" has two inequalities, event <= t and
created <= t, and an ASOF join takes one. So each row is keyed by the later of the two, and rows that never are the
newest known one (an older event arriving after a newer one) are left out. Then one inequality, visible <= t, gives
exactly the rows that the two would; tests/features/test_training.py proves it against a brute-force search.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import duckdb

from tiercel.errors import SourceError
from tiercel.features import dictionary
from tiercel.features.binding import SQL_TYPES, bind, check_columns
from tiercel.features.files import remove_stale, replace_file, sync, temporary
from tiercel.features.sources import ComputeLimits, SourceFiles, attach, connect, first_line, quote_name, quote_text
from tiercel.types import DType

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tiercel.features.catalog import Catalog, ViewRecord

#: Part of every digest: raise it when the same definition and data would be computed differently.
_VERSION = 2
#: Files of earlier definitions or data kept per view, so that whoever reads one while it is replaced can finish.
_KEPT_FILES = 3
#: Static rows are visible from before any label, and carry the epoch as their event time.
STATIC_VISIBLE_US = -(2**63) + 1
STATIC_EVENT_US = 0


@dataclass(frozen=True)
class ComputedView:
    """The offline file of one view, and what became of the query's rows."""

    view: ViewRecord
    path: Path
    digest: str  # sha256 hex over definition and source content; the file's name
    n_rows: int
    n_read: int
    n_null_keys: int  # dropped: a join key was null
    n_null_times: int  # dropped: no (finite) timestamp
    n_superseded: int  # dropped: duplicates, and late rows that never were the newest known
    is_reused: bool

    @property
    def scan(self) -> str:
        """SQL that reads it."""
        return f"read_parquet({quote_text(str(self.path))})"


def compute_views(
    catalog: Catalog,
    state_dir: Path,
    views: Sequence[ViewRecord] | None = None,
    *,
    limits: ComputeLimits | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[ComputedView]:
    """Compute the views whose definition or source content has no file yet; reuse the rest.

    Args:
        catalog: in force.
        state_dir: files go to `<state>/offline/<view>/<digest>.parquet`.
        views: default all of the catalog.
        limits: memory and threads of DuckDB.
        progress: called with (view name, views done, views).

    Raises:
        SourceError: a source is missing, does not fit its view, changed during the computation, or the query failed.
        DefinitionError: the sources' columns no longer fit the definition.
    """
    views = list(catalog.views.values()) if views is None else list(views)
    state_dir = state_dir.resolve()
    files = SourceFiles(catalog.project_dir, state_dir)
    # Stamped before anything is read: a file replaced between its digest and its rows would pass for the old one.
    before = files.stamp(source for view in views for source in view.sources)
    digests = [_digest(view, files) for view in views]
    found = [_load(view, state_dir, digest) for view, digest in zip(views, digests, strict=True)]
    pending = [view for view, computed in zip(views, found, strict=True) if computed is None]
    if not pending:
        return [computed for computed in found if computed is not None]
    sources = {source.name: source for view in pending for source in view.sources}
    (state_dir / "offline").mkdir(parents=True, exist_ok=True)
    connection = connect(
        limits or ComputeLimits(),
        state_dir,
        read=[path for source in sources.values() for path in files.of(source)],
        write=state_dir / "offline",
    )
    try:
        attach(connection, sources.values(), files, stage="rows")
        results = []
        for done, (view, digest, known) in enumerate(zip(views, digests, found, strict=True)):
            if progress is not None:
                progress(view.name, done, len(views))
            results.append(known or _compute(connection, view, state_dir, digest))
        if files.stamp(source for view in views for source in view.sources) != before:
            for result in results:
                if not result.is_reused:
                    result.path.unlink(missing_ok=True)
            raise SourceError("A source file was replaced while it was being read. Run the command again.")
    finally:
        connection.close()
    return results


def is_computed(view: ViewRecord, files: SourceFiles, state_dir: Path) -> bool:
    """Whether a computed file exists for the view as defined and its sources as they are now."""
    return _load(view, state_dir, _digest(view, files)) is not None


def _digest(view: ViewRecord, files: SourceFiles) -> str:
    parts = [_VERSION, view.definition, *(files.digest(source) for source in view.sources)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _load(view: ViewRecord, state_dir: Path, digest: str) -> ComputedView | None:
    path = state_dir / "offline" / view.name / f"{digest}.parquet"
    try:
        counts = json.loads(path.with_suffix(".json").read_bytes())
        if _content_digest(path) != counts.pop("sha256"):
            return None
        return ComputedView(view=view, path=path, digest=digest, is_reused=True, **counts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # not computed yet, or a damaged leftover: computing it again is always right


_digests: dict[tuple[int, int, int, int, int], str] = {}


def _content_digest(path: Path) -> str:
    """sha256 hex of a computed file; remembered within the process by what the file system says of it."""
    with path.open("rb") as stream:
        stat = os.fstat(stream.fileno())
        identity = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        if identity not in _digests:
            _digests[identity] = hashlib.file_digest(stream, "sha256").hexdigest()
        return _digests[identity]


def _compute(connection: duckdb.DuckDBPyConnection, view: ViewRecord, state_dir: Path, digest: str) -> ComputedView:
    what = f"FeatureView '{view.name}'"
    check_columns(view, bind(connection, view))
    path = state_dir / "offline" / view.name / f"{digest}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(path.parent)
    try:
        connection.execute(f"CREATE OR REPLACE TEMP TABLE __computed AS {_projection(view)}")
        keys_known = " AND ".join(f"{quote_name(key.name)} IS NOT NULL" for key in view.keys)
        row = connection.execute(
            f"SELECT count(*), count(*) FILTER (NOT ({keys_known})), "  # noqa: S608 - quoted names from the catalog
            f"count(*) FILTER ({keys_known} AND __visible_us IS NULL) FROM __computed"
        ).fetchone()
        n_read, n_null_keys, n_null_times = row or (0, 0, 0)
        with temporary(path) as unfinished:
            newest = _newest_known(view, f"{keys_known} AND __visible_us IS NOT NULL")
            connection.execute(f"COPY ({newest}) TO {quote_text(str(unfinished))} (FORMAT parquet, COMPRESSION zstd)")
            (n_rows,) = connection.execute(
                f"SELECT count(*) FROM read_parquet({quote_text(str(unfinished))})"  # noqa: S608
            ).fetchone() or (0,)
            if view.timestamp_field is None and n_rows < n_read - n_null_keys:
                raise _repeated_key(connection, view, keys_known)
            _extend_dictionaries(connection, view, state_dir, unfinished)
            counts = {
                "n_rows": n_rows,
                "n_read": n_read,
                "n_null_keys": n_null_keys,
                "n_null_times": n_null_times,
                "n_superseded": n_read - n_null_keys - n_null_times - n_rows,
            }
            sync(unfinished)
            facts = {**counts, "sha256": _content_digest(unfinished)}
            replace_file(path.with_suffix(".json"), json.dumps(facts).encode())
            unfinished.replace(path)
    except duckdb.Error as error:
        raise SourceError(f"{what}: {first_line(error)}") from error
    finally:
        connection.execute("DROP TABLE IF EXISTS __computed")
    _prune(path)
    return ComputedView(view=view, path=path, digest=digest, is_reused=False, **counts)


def _repeated_key(connection: duckdb.DuckDBPyConnection, view: ViewRecord, keys_known: str) -> SourceError:
    keys = ", ".join(quote_name(key.name) for key in view.keys)
    row = connection.execute(
        f"SELECT {keys}, count(*) FROM __computed WHERE {keys_known} GROUP BY {keys} "  # noqa: S608 - quoted names
        f"HAVING count(*) > 1 ORDER BY {keys} LIMIT 1"
    ).fetchone() or ("?",)
    shown = ", ".join(f"{key.name}={value!r}" for key, value in zip(view.keys, row[:-1], strict=False))
    return SourceError(
        f"FeatureView '{view.name}' has no timestamp, so it holds one row per key; got {row[-1]} for {shown}. Name a "
        f"timestamp_field, or aggregate in the view's sql."
    )


def _projection(view: ViewRecord) -> str:
    """The query's columns under their declared names and types, and the two times; NaN counts as missing."""
    columns = [f"CAST({quote_name(key.name)} AS {SQL_TYPES[key.dtype]}) AS {quote_name(key.name)}" for key in view.keys]
    if view.timestamp_field is None:
        columns += [f"{STATIC_VISIBLE_US}::BIGINT AS __visible_us", f"{STATIC_EVENT_US}::BIGINT AS __event_us"]
    else:
        event, created = _microseconds(view.timestamp_field), view.created_timestamp_column
        if created is None:
            visible = _visible(view.timestamp_field)
        else:  # without an arrival time a row is taken to have come at once; an infinite one never comes
            happened, arrived = _visible(view.timestamp_field), _visible(created)
            visible = (
                f"CASE WHEN {quote_name(created)} IS NULL OR {arrived} <= {happened} THEN {happened} "
                f"WHEN {arrived} > {happened} THEN {arrived} END"
            )
            columns.append(f"{_microseconds(created)} AS __created_us")
        columns += [f"{visible} AS __visible_us", f"{event} AS __event_us"]
    for field in view.fields:
        name, value = quote_name(field.name), f"CAST({quote_name(field.name)} AS {SQL_TYPES[field.dtype]})"
        if field.dtype in (DType.FLOAT32, DType.FLOAT64):
            # + 0 turns -0.0 into 0.0, which Parquet statistics and the store would otherwise treat each their own way.
            value = f"CASE WHEN isnan({value}) THEN NULL ELSE {value} + 0 END"
        columns.append(f"{value} AS {name}")
    return f"SELECT {', '.join(columns)} FROM (\n{view.query}\n) AS __query"  # noqa: S608 - the user's own SQL


def _microseconds(column: str) -> str:
    """UTC microseconds of a timestamp column, null if infinite. Naive timestamps are UTC."""
    name = quote_name(column)
    return f"CASE WHEN isfinite({name}) THEN epoch_us({name}) END"


def _visible(column: str) -> str:
    """From which microsecond on something of that time is known: never before it, so nanoseconds are rounded up."""
    name = quote_name(column)
    return f"CASE WHEN isfinite({name}) THEN epoch_us({name}) + (nanosecond({name}) % 1000 > 0)::BIGINT END"


def _newest_known(view: ViewRecord, condition: str) -> str:
    """The rows that are, for some time, the newest known one of their key; see the module's docstring.

    Rows of one key are ranked by (event, created, all values): the last clause only makes the choice between full
    duplicates of both times the same on every run.
    """
    keys = ", ".join(quote_name(key.name) for key in view.keys)
    fields = [quote_name(field.name) for field in view.fields]
    values = ", ".join(f"{name} NULLS FIRST" for name in fields)
    output = f"{keys}, __visible_us, __event_us, {', '.join(fields)}"
    if view.created_timestamp_column is None:
        return (
            f"SELECT {output} FROM __computed WHERE {condition} "  # noqa: S608 - quoted names from the catalog
            f"QUALIFY lead(__visible_us) OVER (PARTITION BY {keys} ORDER BY __visible_us, {values}) "
            f"IS DISTINCT FROM __visible_us ORDER BY {keys}, __visible_us"
        )
    return (
        f"WITH ranked AS (SELECT *, row_number() OVER (PARTITION BY {keys} ORDER BY __event_us, "  # noqa: S608
        f"__created_us NULLS FIRST, {values}) AS __rank FROM __computed WHERE {condition}), "
        f"timed AS (SELECT *, max(__rank) OVER (PARTITION BY {keys} ORDER BY __visible_us, __rank "
        "ROWS UNBOUNDED PRECEDING) AS __newest, "
        f"lead(__visible_us) OVER (PARTITION BY {keys} ORDER BY __visible_us, __rank) AS __next FROM ranked) "
        f"SELECT {output} FROM timed WHERE __rank = __newest AND __next IS DISTINCT FROM __visible_us "
        f"ORDER BY {keys}, __visible_us"
    )


def _extend_dictionaries(connection: duckdb.DuckDBPyConnection, view: ViewRecord, state_dir: Path, path: Path) -> None:
    for field in view.fields:
        if field.dtype is DType.STRING:
            name = quote_name(field.name)
            seen = connection.execute(
                f"SELECT DISTINCT {name} FROM read_parquet({quote_text(str(path))}) WHERE {name} IS NOT NULL"  # noqa: S608
            ).fetchall()
            dictionary.extend(state_dir, view, field, (value for (value,) in seen))


def _prune(path: Path) -> None:
    """Delete the view's oldest files beyond the few that somebody may still be reading."""
    by_age = sorted(path.parent.glob("*.parquet"), key=lambda other: other.stat().st_mtime_ns, reverse=True)
    for old in by_age[_KEPT_FILES:]:
        old.unlink(missing_ok=True)
        old.with_suffix(".json").unlink(missing_ok=True)
