"""Materialize: publish, per feature service, the newest known values of every entity as a sealed base.

Reads the same computed files as training sets do, with the same rule (`__visible_us <= as_of`), so a vector served as of
T is the training vector of a label at T.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import duckdb

from tiercel.errors import BaseCorruptError, NotMaterializedError, SourceError, StoreError
from tiercel.features import dictionary
from tiercel.features.base import write_base
from tiercel.features.compute import ComputedView, compute_views
from tiercel.features.files import locked
from tiercel.features.manifest import N_KEPT, read_manifest
from tiercel.features.sources import ComputeLimits, connect, first_line, interruptible, quote_name
from tiercel.types import DType

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import pyarrow as pa

    from tiercel.features.catalog import Catalog, ViewRecord
    from tiercel.features.manifest import Manifest
    from tiercel.types import GroupSchema, ServiceSchema


def materialize(
    state_dir: Path,
    catalog: Catalog,
    services: Sequence[str] | None = None,
    *,
    as_of_us: int | None = None,
    allow_empty: bool = False,
    limits: ComputeLimits | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    on_view: Callable[[ComputedView], None] | None = None,
    n_kept: int = N_KEPT,
) -> list[Manifest]:
    """Compute what is not computed yet and publish a new base for each service.

    Every call publishes, also when nothing changed: the base records the `as_of_us` it is valid for.

    Args:
        state_dir: bases go to `<state>/features/<service>/`.
        catalog: in force.
        services: names; default all. Of a service of request features alone an empty base is published: what serving goes by.
        as_of_us: publish what was known at this time; default now.
        allow_empty: publish even when that replaces rows by none.
        limits: memory and threads of DuckDB.
        progress: called with (stage, done, total); total is rows while a base is written.
        on_view: called with each view's result, which counts the rows that were left out.
        n_kept: older bases of each service that stay.

    Raises:
        ServiceNotFoundError: no such service.
        SourceError: a source cannot be read or does not fit its view.
        StoreError: the base could not be written or did not verify; the previous one stays in force.
    """
    state_dir = state_dir.resolve()
    # From before the sources are read until the result is published: of two runs that overlap, the one that read older
    # data must not publish last.
    with interruptible(), locked(state_dir / "offline" / ".materialize.lock"):
        return _materialize(
            state_dir,
            catalog,
            services,
            as_of_us=time.time_ns() // 1000 if as_of_us is None else as_of_us,
            allow_empty=allow_empty,
            limits=limits or ComputeLimits(),
            progress=progress,
            on_view=on_view,
            n_kept=n_kept,
        )


def _materialize(
    state_dir: Path,
    catalog: Catalog,
    services: Sequence[str] | None,
    *,
    as_of_us: int,
    allow_empty: bool,
    limits: ComputeLimits,
    progress: Callable[[str, int, int], None] | None,
    on_view: Callable[[ComputedView], None] | None,
    n_kept: int,
) -> list[Manifest]:
    schemas = [catalog.service(name) for name in (catalog.services if services is None else services)]
    views = {view.name: view for schema in schemas for view in catalog.views_of(schema)}
    computed = compute_views(catalog, state_dir, list(views.values()), limits=limits, progress=progress)
    by_name = {result.view.name: result for result in computed}
    if on_view is not None:
        for result in computed:
            on_view(result)
    connection = connect(limits, state_dir, read=[result.path for result in computed], write=state_dir / "offline")
    try:
        return [
            _publish(
                connection,
                schema,
                by_name,
                state_dir,
                as_of_us,
                catalog.digest,
                progress,
                allow_empty=allow_empty,
                n_kept=n_kept,
            )
            for schema in schemas
        ]
    finally:
        connection.close()


def _publish(
    connection: duckdb.DuckDBPyConnection,
    schema: ServiceSchema,
    computed: dict[str, ComputedView],
    state_dir: Path,
    as_of_us: int,
    catalog_digest: str,
    progress: Callable[[str, int, int], None] | None,
    *,
    allow_empty: bool,
    n_kept: int,
) -> Manifest:
    tables, categories = [], {}
    for done, group in enumerate(schema.groups):
        if progress is not None:
            progress(f"{schema.name}: newest values of {group.entity}", done, len(schema.groups))
        results = [computed[view.name] for view in group.views]
        table = _newest(connection, group, results, as_of_us)
        for column in group.columns:
            if column.dtype is DType.STRING:
                view = results[column.view].view
                values = dictionary.load_values(state_dir, view, view.field(column.name))
                categories[column.name] = values
                table = _encode(table, view, column.name, values)
        tables.append(table)

    if not allow_empty:
        _refuse_emptying(state_dir / "features" / schema.name, schema, [table.num_rows for table in tables], as_of_us)

    def report(done: int, total: int) -> None:
        if progress is not None:
            progress(f"{schema.name}: write base", done, total)

    return write_base(
        state_dir / "features" / schema.name,
        schema,
        tables,
        categories=categories,
        as_of_us=as_of_us,
        catalog=catalog_digest,
        progress=report,
        n_kept=n_kept,
    )


def _refuse_emptying(directory: Path, schema: ServiceSchema, group_rows: Sequence[int], as_of_us: int) -> None:
    """Nothing at all of an entity is rarely what was meant: a time before every event, a unit mistaken, a file that came up empty."""
    empty = {group.entity for group, n_rows in zip(schema.groups, group_rows, strict=True) if n_rows == 0}
    if not empty:
        return
    try:
        manifest = read_manifest(directory)
    except (NotMaterializedError, BaseCorruptError):
        return
    for group, published in zip(manifest.schema.groups, manifest.group_rows, strict=True):
        if published and group.entity in empty:
            moment = datetime.fromtimestamp(as_of_us / 1e6, tz=UTC)
            raise StoreError(
                f"Service '{schema.name}': nothing was known of entity '{group.entity}' at {moment:%Y-%m-%d %H:%M:%S} UTC, and the "
                f"published base has {published} rows of it. Check --as-of and the sources' times; to publish no rows all the "
                f"same, pass --allow-empty"
            )


def _newest(
    connection: duckdb.DuckDBPyConnection, group: GroupSchema, results: Sequence[ComputedView], as_of_us: int
) -> pa.Table:
    """One row per key that any of the group's views knows at `as_of_us`; see `write_base` for its columns."""
    keys = ", ".join(quote_name(key.name) for key in group.keys)
    parts = []
    for index, result in enumerate(results):
        names = [quote_name(column.name) for column in group.columns if column.view == index]
        event = f"__event_us AS __event_us_{index}"
        if result.view.timestamp_field is None:
            part = f"SELECT {', '.join([keys, *names, event])} FROM {result.scan}"  # noqa: S608 - quoted names
        else:
            # arg_max over a struct, because arg_max over a column would skip its nulls.
            packed = f"struct_pack({', '.join(f'{name} := {name}' for name in [*names, '__event_us'])})"
            unpacked = [f"__newest.{name} AS {name}" for name in names]
            part = (
                f"SELECT {', '.join([keys, *unpacked, f'__newest.{event}'])} FROM ("  # noqa: S608
                f"SELECT {keys}, arg_max({packed}, __visible_us) AS __newest FROM {result.scan} "
                f"WHERE __visible_us <= {as_of_us} GROUP BY {keys})"
            )
        parts.append(f"({part}) AS __view_{index}")
    joined = parts[0] + "".join(f" FULL OUTER JOIN {part} USING ({keys})" for part in parts[1:])
    values = [quote_name(column.name) for column in group.columns]
    events = [f"__event_us_{index}" for index in range(len(results))]
    try:
        return connection.sql(f"SELECT {', '.join([keys, *values, *events])} FROM {joined}").to_arrow_table()  # noqa: S608
    except duckdb.Error as error:
        raise SourceError(f"Newest values of {group.entity}: {first_line(error)}") from error


def _encode(table: pa.Table, view: ViewRecord, name: str, values: Sequence[str]) -> pa.Table:
    codes = dictionary.encode(view, view.field(name), values, table.column(name))
    return table.set_column(table.column_names.index(name), name, codes)
