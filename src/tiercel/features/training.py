"""Point-in-time training sets: for every label, the feature values that were known at its time, and no others.

Per view one DuckDB `ASOF LEFT JOIN` on the keys and `label time >= visible time` (see `compute.py`), and the ttl applied
after the join by the online reader's rule: a value is missing when label time - event time > ttl. The matrix `X` holds
exactly what serving would hand the model: float32, text as codes, NaN for missing.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tiercel.errors import SourceError
from tiercel.features import dictionary
from tiercel.features.binding import SQL_TYPES
from tiercel.features.compute import ComputedView, compute_views
from tiercel.features.on_demand import compute_outputs, to_float32
from tiercel.features.sources import ComputeLimits, SourceFiles, attach, connect, first_line, interruptible, quote_name
from tiercel.features.transforms import compiled_dir
from tiercel.types import DType, RequestField, TrainingSnapshot, categories_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy.typing as npt
    import pandas as pd

    from tiercel.features.catalog import Catalog
    from tiercel.types import ServiceSchema

    Labels: TypeAlias = pa.Table | pd.DataFrame | Path | str

_ROW = "__row"
_TIME = "__label_us"


@dataclass(frozen=True)
class TrainingSet:
    """Labels joined with the features of one service.

    Args:
        table: the label table's columns as given, then the stored and computed features (text as text), then ages if asked
            for. One row per label row, in the same order.
        X: float32, shape (n_rows, n_features), C-contiguous, in the service's order: what serving hands the model.
        feature_names: names of X's columns.
        service: the schema this was made for; models register against its fingerprint.
        snapshot: pins what the set was made of.
        categories: text feature -> its values in code order, as X's codes mean them.
    """

    table: pa.Table
    X: npt.NDArray[np.float32]  # the field's name for it
    feature_names: tuple[str, ...]
    service: ServiceSchema
    snapshot: TrainingSnapshot
    label_columns: tuple[str, ...] = ()
    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def to_arrow(self) -> pa.Table:
        """The whole table."""
        return self.table

    def to_df(self) -> pd.DataFrame:
        """The whole table as a pandas DataFrame; needs pandas."""
        return self.table.to_pandas()

    def vectors(self, names: Sequence[str]) -> npt.NDArray[np.float32]:
        """X's columns under these names, in this order; C-contiguous.

        Raises:
            SourceError: a name that X does not have.
        """
        place = {name: index for index, name in enumerate(self.feature_names)}
        unknown = [name for name in names if name not in place]
        if unknown:
            raise SourceError(f"Expected features {', '.join(self.feature_names)}, got {', '.join(unknown)}.")
        return np.ascontiguousarray(self.X[:, [place[name] for name in names]])

    def label(self, name: str | None = None) -> npt.NDArray[Any]:
        """One label column as an array; the only one when there is one.

        Raises:
            SourceError: no such column, or the name is needed.
        """
        if name is None:
            if len(self.label_columns) != 1:
                raise SourceError(
                    f"Expected the name of a label column, one of {', '.join(self.label_columns) or 'none'}."
                )
            name = self.label_columns[0]
        if name not in self.table.column_names:
            raise SourceError(f"The label table has no column '{name}'; it has {', '.join(self.table.column_names)}.")
        values: npt.NDArray[Any] = self.table.column(name).to_numpy()
        return values


@interruptible()
def get_historical_features(
    catalog: Catalog,
    state_dir: Path,
    labels: Labels,
    service: str,
    *,
    timestamp_field: str = "event_timestamp",
    label_columns: Sequence[str] | str = (),
    ages: bool = False,
    limits: ComputeLimits | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> TrainingSet:
    """Join labels with the feature values known at their time.

    Args:
        catalog: in force.
        state_dir: holds computed views; missing ones are computed first.
        labels: pyarrow Table, pandas DataFrame, path of a Parquet or CSV file, or a SELECT over the project's sources. Has the
            service's join keys, its request fields, the time of each decision, and the labels. Duplicates are kept.
        service: name of the feature service.
        timestamp_field: column of decision times; naive ones are UTC. A value with exactly this event time is known.
        label_columns: names, or one name, to check for, and to find with `TrainingSet.label`.
        ages: add `<view>__age_s`, float64 seconds between the value's event and the label, NaN where there is none.
        limits: memory and threads of DuckDB.
        progress: called with (stage, done, total).

    Raises:
        ServiceNotFoundError: no such service.
        SourceError: the labels lack a column or hold a wrong type, or a source cannot be read.
    """
    schema = catalog.service(service)
    state_dir = state_dir.resolve()
    limits = limits or ComputeLimits()
    if isinstance(label_columns, str):
        label_columns = (label_columns,)
    source, table = _read_labels(catalog, schema, state_dir, labels, limits)
    times = _check_labels(schema, table, timestamp_field, label_columns)
    computed = compute_views(catalog, state_dir, catalog.views_of(schema), limits=limits, progress=progress)
    joined = _join(schema, table, times, computed, state_dir, limits, progress, ages=ages)
    given = {field.name: _request_values(field, table.column(field.name)) for field in schema.request_fields}
    made = compute_outputs(schema, {**given, **joined.stored}, times, compiled_dir(state_dir))
    vectors = {**{name: to_float32(column) for name, column in given.items()}, **joined.vectors, **made.vectors}
    matrix = np.empty((table.num_rows, len(schema.features)), dtype=np.float32)
    for index, name in enumerate(schema.features):
        matrix[:, index] = vectors[name]
    matrix.flags.writeable = False
    whole = table
    columns = {**joined.stored, **made.columns}
    for name in schema.features:
        if name in columns:
            whole = whole.append_column(name, columns[name])
    for name, column in joined.ages.items():
        whole = whole.append_column(name, column)
    keys = dict.fromkeys(key.name for group in schema.groups for key in group.keys)
    stored = dictionary.stored_categories(catalog, schema, state_dir)
    snapshot = TrainingSnapshot(
        source=source,
        n_rows=table.num_rows,
        digest=_digest(schema, matrix, times, table.select([*keys, *label_columns])),
        time_start_us=int(times.min()) if len(times) else None,
        time_end_us=int(times.max()) if len(times) else None,
        dictionaries=tuple(sorted((name, len(values), categories_digest(values)) for name, values in stored.items())),
    )
    known = {
        name: values
        for name, values in {**stored, **dictionary.asked_categories(schema)}.items()
        if name in schema.features
    }
    return TrainingSet(whole, matrix, schema.features, schema, snapshot, tuple(label_columns), known)


def _read_labels(
    catalog: Catalog, schema: ServiceSchema, state_dir: Path, labels: Labels, limits: ComputeLimits
) -> tuple[str, pa.Table]:
    """The labels as a table, and a text saying where they came from."""
    if isinstance(labels, pa.Table):
        return "pyarrow.Table", labels
    if isinstance(labels, Path) or (isinstance(labels, str) and _is_path(labels)):
        return str(labels), _read_file(Path(labels).expanduser(), schema, state_dir, limits)
    if isinstance(labels, str):
        return labels.strip(), _query_labels(catalog, state_dir, labels, limits)
    try:
        return "pandas.DataFrame", pa.Table.from_pandas(labels, preserve_index=False)
    except (TypeError, AttributeError, pa.ArrowException) as error:
        raise SourceError(
            f"Labels: expected a pyarrow Table, a pandas DataFrame, the path of a Parquet or CSV file or a SELECT; got "
            f"{type(labels).__name__}: {error}"
        ) from error


def _is_path(text: str) -> bool:
    """Whether a text names a file and is no SELECT: by how it ends, or because there is such a file."""
    try:
        return text.strip().lower().endswith((".parquet", ".csv")) or Path(text).expanduser().is_file()
    except (OSError, ValueError, RuntimeError):  # longer than a name may be, a NUL, a home that nobody has
        return False


def _read_file(path: Path, schema: ServiceSchema, state_dir: Path, limits: ComputeLimits) -> pa.Table:
    """The labels of a file: CSV where it is called so, else Parquet."""
    if not path.is_file():
        raise SourceError(f"Labels {path}: expected a Parquet or CSV file, found no such file.")
    if not path.stat().st_size:
        raise SourceError(f"Labels {path}: expected a Parquet or CSV file, got an empty file.")
    if path.suffix.lower() == ".csv":
        table = _read_csv(path.resolve(), schema, state_dir, limits)
    else:
        try:
            import pyarrow.parquet as pq

            table = pq.read_table(path)
        except (OSError, pa.ArrowException) as error:
            raise SourceError(f"Labels {path}: expected a Parquet file (or CSV, named .csv): {error}") from error
    if not table.num_rows:
        names = ", ".join(table.column_names) or "none"
        raise SourceError(f"Labels {path}: expected a row per label, got no rows; its columns are {names}.")
    return table


def _read_csv(path: Path, schema: ServiceSchema, state_dir: Path, limits: ComputeLimits) -> pa.Table:
    keys = {key.name: key.dtype for group in schema.groups for key in group.keys}
    known = {**keys, **{field.name: field.dtype for field in schema.request_fields}}
    connection = connect(limits, state_dir, read=[path])
    try:
        # What the service knows is not guessed: "007" is a key and no number.
        names = connection.read_csv(str(path), header=True, skiprows=0).columns
        if len(names) == 1 and any(mark in names[0] for mark in ",;|\t"):  # no separator gives rows of one length
            raise SourceError(
                f"Labels {path}: expected as many fields in every row as in the header ({names[0]}), got others."
            )
        types = {name: SQL_TYPES[known[name]] for name in names if name in known}
        return connection.read_csv(str(path), header=True, skiprows=0, dtype=types).to_arrow_table()
    except duckdb.Error as error:
        # Of what DuckDB says: the line, its text and what is wrong with it, and no page of its own options.
        lines = [line for line in first_line(error).splitlines()[:3] if not line.endswith(":")]
        what = "; ".join(line.removesuffix(".") for line in lines)
        raise SourceError(f"Labels {path}: expected a CSV file with a header, in UTF-8: {what}") from error
    finally:
        connection.close()


def _query_labels(catalog: Catalog, state_dir: Path, sql: str, limits: ComputeLimits) -> pa.Table:
    sources, files = catalog.sources, SourceFiles(catalog.project_dir, state_dir)
    try:
        connection = connect(limits, state_dir)
        used = {name.casefold() for name in connection.get_table_names(sql)}
        connection.close()
    except duckdb.Error as error:
        raise SourceError(f"Labels, sql: {first_line(error)}") from error
    named = [source for source in sources.values() if source.name.casefold() in used]
    connection = connect(limits, state_dir, read=[path for source in named for path in files.of(source)])
    try:
        attach(connection, named, files, stage="once")
        return connection.sql(sql).to_arrow_table()
    except (duckdb.Error, AttributeError) as error:  # AttributeError: a statement that yields no rows
        known = ", ".join(sources) or "none"
        raise SourceError(
            f"Labels, sql: expected a SELECT over the project's sources ({known}): {first_line(error)}"
        ) from error
    finally:
        connection.close()


def _check_labels(
    schema: ServiceSchema, table: pa.Table, timestamp_field: str, label_columns: Sequence[str]
) -> npt.NDArray[np.int64]:
    """Check columns and types; return the label times in UTC microseconds."""
    names = table.column_names
    for name in names:
        if names.count(name) > 1 or name.startswith("__"):
            raise SourceError(
                f"Labels: column '{name}' is there twice or starts with '__', which is reserved. Rename it."
            )
    needed = {timestamp_field: "the time of each label (timestamp_field=)"}
    needed |= {key.name: f"a join key of entity '{group.entity}'" for group in schema.groups for key in group.keys}
    needed |= {field.name: "a request feature" for field in schema.request_fields}
    needed |= dict.fromkeys(label_columns, "a label column")
    for name, role in needed.items():
        if name not in names:
            raise SourceError(
                f"Labels: expected a column '{name}', {role} of service '{schema.name}'; got {', '.join(names) or 'none'}."
            )
    stored = {column.name: "stored" for group in schema.groups for column in group.columns}
    computed = {made.name: "computed" for transform in schema.transforms for made in transform.outputs}
    for name, kind in {**stored, **computed}.items():
        if name in names:
            raise SourceError(
                f"Labels: column '{name}' is also a {kind} feature of service '{schema.name}'. Rename or drop it."
            )
    for group in schema.groups:
        for key in group.keys:
            kind = _plain_type(table.schema.field(key.name).type)
            fits = pa.types.is_integer(kind) if key.dtype is DType.INT64 else _is_text(kind)
            if not fits:
                raise SourceError(
                    f"Labels: join key '{key.name}' is {kind}, expected {key.dtype.value}{_first_of(table.column(key.name))}. "
                    f"Convert the column."
                )
    column = table.column(timestamp_field)
    if not pa.types.is_timestamp(column.type):
        raise SourceError(
            f"Labels: '{timestamp_field}' is {column.type}, expected a timestamp{_first_of(column)}. In CSV, in every row: "
            f"2026-01-31T12:00:00Z. With pandas: pd.to_datetime(column, utc=True)."
        )
    if column.null_count:
        raise SourceError(
            f"Labels: '{timestamp_field}' is null in {column.null_count} rows. Drop them or give them a time."
        )
    # Nanoseconds are cut, never rounded up: a label must not move past a value it did not know.
    times = np.asarray(column.cast(pa.int64()).to_numpy())
    ticks = {"s": 1_000_000, "ms": 1_000, "us": 1, "ns": 1}[column.type.unit]
    if len(times) and max(abs(int(times.min())), abs(int(times.max()))) * ticks >= 2**63:
        raise SourceError(f"Labels: '{timestamp_field}' holds times beyond what microseconds since 1970 can count.")
    return np.ascontiguousarray(times // 1000 if column.type.unit == "ns" else times * ticks)


@dataclass
class _Joined:
    stored: dict[str, pa.ChunkedArray]  # typed and exact; also what only an on-demand view reads
    vectors: dict[str, npt.NDArray[np.float32]]  # the same, for X
    ages: dict[str, pa.ChunkedArray]


def _join(
    schema: ServiceSchema,
    table: pa.Table,
    times: npt.NDArray[np.int64],
    computed: Sequence[ComputedView],
    state_dir: Path,
    limits: ComputeLimits,
    progress: Callable[[str, int, int], None] | None,
    *,
    ages: bool,
) -> _Joined:
    columns: dict[str, pa.ChunkedArray] = {}
    vectors: dict[str, npt.NDArray[np.float32]] = {}
    age_columns: dict[str, pa.ChunkedArray] = {}
    by_name = {result.view.name: result for result in computed}
    connection = connect(limits, state_dir, read=[result.path for result in computed], write=state_dir / "offline")
    try:
        done = 0
        for group in schema.groups:
            keys = [(key.name, pa.int64() if key.dtype is DType.INT64 else pa.string()) for key in group.keys]
            left = pa.table({
                **{name: _as(table.column(name), kind, name) for name, kind in keys},
                _TIME: pa.array(times),
                _ROW: pa.array(np.arange(len(times), dtype=np.int64)),
            })  # fmt: skip
            connection.register("__labels", left)
            for index, view in enumerate(group.views):
                if progress is not None:
                    progress(f"join {view.name}", done, len(computed))
                done += 1
                result = by_name[view.name]
                names = [column.name for column in group.columns if column.view == index]
                found = _asof(connection, result, [name for name, _ in keys], names)
                for name in names:
                    columns[name] = found.column(name)
                    vectors[name] = _stored_vector(result, name, columns[name], state_dir)
                if ages and result.view.timestamp_field is not None:
                    age_columns[f"{view.name}__age_s"] = pc.divide(pc.cast(found.column("__age_us"), pa.float64()), 1e6)
            connection.unregister("__labels")
    finally:
        connection.close()
    return _Joined(columns, vectors, age_columns)


def _asof(
    connection: duckdb.DuckDBPyConnection, result: ComputedView, keys: Sequence[str], names: Sequence[str]
) -> pa.Table:
    """Values of one view for `__labels`, in their order; null where none was known or all were older than the ttl."""
    fresh = "TRUE" if result.view.ttl_us is None else f"l.{_TIME} - v.__event_us <= {result.view.ttl_us}"
    # The ttl belongs after the join: inside, DuckDB would look for an older row that satisfies it, or fail.
    selected = [f"CASE WHEN {fresh} THEN v.{quote_name(name)} END AS {quote_name(name)}" for name in names]
    selected.append(f"CASE WHEN {fresh} THEN l.{_TIME} - v.__event_us END AS __age_us")
    on = " AND ".join(f"l.{quote_name(key)} = v.{quote_name(key)}" for key in keys)
    if result.view.timestamp_field is None:
        join = f"LEFT JOIN {result.scan} v ON {on}"  # unique by key: always known
    else:
        join = f"ASOF LEFT JOIN {result.scan} v ON {on} AND l.{_TIME} >= v.__visible_us"
    query = f"SELECT {', '.join(selected)} FROM __labels l {join} ORDER BY l.{_ROW}"  # noqa: S608 - quoted names
    try:
        return connection.sql(query).to_arrow_table()
    except duckdb.Error as error:
        raise SourceError(f"FeatureView '{result.view.name}', point-in-time join: {first_line(error)}") from error


def _stored_vector(
    result: ComputedView, name: str, column: pa.ChunkedArray, state_dir: Path
) -> npt.NDArray[np.float32]:
    field = result.view.field(name)
    if field.dtype is DType.STRING:
        column = dictionary.encode(result.view, field, dictionary.load_values(state_dir, result.view, field), column)
    return to_float32(column)


def _request_values(field: RequestField, column: pa.ChunkedArray) -> pa.ChunkedArray:
    try:
        return _request_column(field, column)
    except pa.ArrowException as error:
        raise SourceError(
            f"Labels: request feature '{field.name}' is {column.type}, expected {field.dtype.value}: {error}"
        ) from error


def _request_column(field: RequestField, column: pa.ChunkedArray) -> pa.ChunkedArray:
    if field.dtype is DType.STRING:
        if not (_is_text(_plain_type(column.type)) or pa.types.is_null(column.type)):
            raise _wrong_type(field, column)
        text = _as(column, pa.string(), field.name)
        codes = pc.index_in(text, value_set=pa.array(field.categories, pa.string()))
        if codes.null_count != text.null_count:
            unknown = pc.unique(text.filter(pc.and_(pc.is_null(codes), pc.is_valid(text)))).to_pylist()
            raise SourceError(
                f"Labels: request feature '{field.name}' has value {unknown[0]!r} outside its categories."
            )
        return codes
    kind = column.type
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    if not (pa.types.is_null(kind) or (pa.types.is_boolean(kind) if field.dtype is DType.BOOL else is_number)):
        # As the server does: neither text nor numbers nor booleans stand for one another.
        raise _wrong_type(field, column)
    target = {DType.BOOL: pa.bool_(), DType.INT64: pa.int64(), DType.FLOAT64: pa.float64(), DType.FLOAT32: pa.float64()}
    # A float32 field takes float64 numbers as a JSON request would; the cast to float32 comes once, at the end.
    return column.cast(target[field.dtype])


def _wrong_type(field: RequestField, column: pa.ChunkedArray) -> SourceError:
    return SourceError(
        f"Labels: request feature '{field.name}' is {column.type}, expected {field.dtype.value}{_first_of(column)}. "
        f"Convert the column."
    )


def _first_of(column: pa.ChunkedArray) -> str:
    """The first value that is there, as messages show it."""
    values = column.drop_null()
    if not len(values):
        return ""
    value = values[0].as_py()
    return f" (got {repr(value) if isinstance(value, str) else str(value):.60})"


def _as(column: pa.ChunkedArray, kind: pa.DataType, name: str) -> pa.ChunkedArray:
    try:
        return column if column.type == kind else column.cast(kind)
    except pa.ArrowException as error:
        raise SourceError(f"Labels: '{name}' is {column.type} and cannot be read as {kind}: {error}") from error


def _plain_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _digest(
    schema: ServiceSchema, matrix: npt.NDArray[np.float32], times: npt.NDArray[np.int64], rest: pa.Table
) -> str:
    """sha256 hex over the vectors, the times, the keys and labels, and the meaning of the columns."""
    digest = hashlib.sha256(schema.fingerprint.encode())
    canonical = np.where(np.isnan(matrix), np.float32(np.nan), matrix)
    digest.update(np.ascontiguousarray(canonical).data)
    digest.update(times.data)
    for name in rest.column_names:
        column = rest.column(name)
        kind = (
            "text" if _is_text(_plain_type(column.type)) else str(column.type)
        )  # pandas and Arrow differ in text types
        digest.update(f"\0{name}\0{kind}\0".encode())
        digest.update(np.packbits(column.is_valid().to_numpy()).tobytes())
        if pa.types.is_primitive(column.type) and not pa.types.is_boolean(column.type):
            values = column.fill_null(pa.scalar(0).cast(column.type)) if column.null_count else column
            digest.update(np.ascontiguousarray(values.to_numpy()).tobytes())
        else:
            encoded = column.combine_chunks().dictionary_encode()
            digest.update(repr(encoded.dictionary.to_pylist()).encode())
            digest.update(encoded.indices.fill_null(-1).to_numpy().tobytes())
    return digest.hexdigest()
