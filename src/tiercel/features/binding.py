"""Binding a view's query to its sources: which columns it yields, and whether the declared types can hold them exactly."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import duckdb

from tiercel.errors import DefinitionError, SourceError
from tiercel.features.sources import SourceFiles, attach, connect, first_line, quote_name, quote_text
from tiercel.types import DType

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from tiercel.features.catalog import ViewRecord
    from tiercel.features.sources import ComputeLimits

SQL_TYPES = {
    DType.FLOAT32: "FLOAT",
    DType.FLOAT64: "DOUBLE",
    DType.INT64: "BIGINT",
    DType.BOOL: "BOOLEAN",
    DType.STRING: "VARCHAR",
}
_SMALL = frozenset({"TINYINT", "UTINYINT", "SMALLINT", "USMALLINT"})
_MEDIUM = _SMALL | {"INTEGER", "UINTEGER"}
#: DuckDB types whose every value the dtype holds unchanged.
_EXACT = {
    DType.FLOAT32: _SMALL | {"FLOAT"},
    DType.FLOAT64: _MEDIUM | {"FLOAT", "DOUBLE"},
    DType.INT64: _MEDIUM | {"BIGINT"},
    DType.BOOL: frozenset({"BOOLEAN"}),
    DType.STRING: frozenset({"VARCHAR"}),  # and any ENUM
}
_TIMES = frozenset({"TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS", "TIMESTAMP WITH TIME ZONE"})
#: Depends on the time although DuckDB's catalog does not say so: keywords that the parser rewrites.
_CLOCKS = frozenset(
    ["current_date", "current_timestamp", "current_time", "today", "current_localtime", "current_localtimestamp"]
)
#: Window functions whose values depend on the rows' order, so without ORDER BY on the threads' timing.
_ORDERED_WINDOWS = frozenset(
    f"WINDOW_{name}" for name in ("ROW_NUMBER", "NTILE", "LEAD", "LAG", "FIRST_VALUE", "LAST_VALUE", "NTH_VALUE")
)


@dataclass(frozen=True)
class BoundView:
    """The columns a view's query yields: name as written there (case ignored when looked up) -> DuckDB type."""

    columns: dict[str, str]

    def type_of(self, name: str) -> str | None:
        """DuckDB type of a column, or None."""
        return self.columns.get(name.casefold())


class ViewChecker:
    """Proves, without reading the data, that views' queries yield what the views declare, from their own sources only.

    Views over the same sources share a connection. Close it after use.
    """

    def __init__(self, files: SourceFiles, limits: ComputeLimits, state_dir: Path) -> None:
        self._files, self._limits, self._state_dir = files, limits, state_dir
        self._connections: dict[tuple[str, ...], duckdb.DuckDBPyConnection] = {}

    def check(self, view: ViewRecord) -> None:
        """Check one view.

        Raises:
            DefinitionError: not one SELECT, an unknown name, a missing column, a type that does not fit.
            SourceError: a source cannot be read.
        """
        names = tuple(source.name for source in view.sources)
        if names not in self._connections:
            allowed = [path for source in view.sources for path in self._files.of(source)]
            self._connections[names] = connect(self._limits, self._state_dir, read=allowed)
            attach(self._connections[names], view.sources, self._files, stage="columns")
        check_columns(view, bind(self._connections[names], view))

    def close(self) -> None:
        """Release the connections."""
        for connection in self._connections.values():
            connection.close()


def bind(connection: duckdb.DuckDBPyConnection, view: ViewRecord) -> BoundView:
    """Describe the view's query on a connection that has its sources.

    Raises:
        DefinitionError: DuckDB refuses the query, or it is not a single repeatable SELECT.
    """
    what = f"FeatureView '{view.name}'"
    try:
        statements = connection.extract_statements(view.query)
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            raise DefinitionError(f"{what}, sql: expected one SELECT statement.")
        _check_repeatable(connection, what, view.query)
        described = connection.execute(f"DESCRIBE {view.query}").fetchall()
    except duckdb.IOException as error:
        raise SourceError(f"{what}: {first_line(error)}") from error
    except duckdb.PermissionException as error:
        raise DefinitionError(
            f"{what}, sql: {first_line(error)} A view reads its declared sources by name and nothing else."
        ) from error
    except duckdb.Error as error:
        raise DefinitionError(f"{what}, sql: {first_line(error)}") from error
    columns: dict[str, str] = {}
    needed = {name.casefold() for name in _needed(view)}
    for name, sql_type, *_ in described:
        key = str(name).casefold()
        if key in columns and key in needed:
            raise DefinitionError(f"{what}, sql: two columns are named '{name}'; give one another name with AS.")
        columns[key] = str(sql_type)
    return BoundView(columns)


def check_columns(view: ViewRecord, bound: BoundView) -> None:
    """Check names and types of all columns the view needs.

    Raises:
        DefinitionError: a column is missing or its type does not fit; the message has the CAST to write.
    """
    what = f"FeatureView '{view.name}'"
    for name in _needed(view):
        if bound.type_of(name) is None:
            raise DefinitionError(
                f"{what}: its query yields no column '{name}'; it yields {', '.join(bound.columns) or 'nothing'}."
            )
    for name in filter(None, (view.timestamp_field, view.created_timestamp_column)):
        sql_type = bound.type_of(name)
        if sql_type in _TIMES:
            continue
        hint = f"CAST({quote_name(name)} AS TIMESTAMP)"
        if sql_type == "DATE":
            hint += " + INTERVAL 1 DAY, if the day's facts are known only when it is over"
        elif sql_type in _MEDIUM | {"BIGINT"}:
            hint = (
                f"to_timestamp({quote_name(name)}) for seconds or make_timestamp({quote_name(name)}) for microseconds"
            )
        raise DefinitionError(f"{what}: timestamp column '{name}' is {sql_type}, expected TIMESTAMP. Write {hint}.")
    for key in view.keys:
        _check_type(f"{what}, join key '{key.name}'", key.name, key.dtype, bound.type_of(key.name) or "")
    for record in view.fields:
        _check_type(f"{what}, field '{record.name}'", record.name, record.dtype, bound.type_of(record.name) or "")


def _check_type(what: str, name: str, dtype: DType, sql_type: str) -> None:
    if sql_type in _EXACT[dtype] or (dtype is DType.STRING and sql_type.startswith("ENUM(")):
        return
    fitting = [other.value for other in DType if sql_type in _EXACT[other]]
    advice = f"Write CAST({quote_name(name)} AS {SQL_TYPES[dtype]}) AS {quote_name(name)} in the view's sql"
    if fitting:
        advice += f", or declare it {' or '.join(fitting)}"
    raise DefinitionError(
        f"{what} is declared {dtype.value}, the query yields {sql_type}, which {dtype.value} may not hold exactly. {advice}."
    )


def _needed(view: ViewRecord) -> list[str]:
    times = [name for name in (view.timestamp_field, view.created_timestamp_column) if name is not None]
    return [*(key.name for key in view.keys), *times, *(record.name for record in view.fields)]


def _check_repeatable(connection: duckdb.DuckDBPyConnection, what: str, query: str) -> None:
    """Refuse what may give another result on the next run: it could not be reused, nor be the same for training and serving."""
    row = connection.execute(f"SELECT json_serialize_sql({quote_text(query)})").fetchone()
    nodes = list(_nodes(json.loads(row[0]))) if row is not None else []
    if any(node.get("sample") for node in nodes):
        raise DefinitionError(
            f"{what}, sql: takes a sample, so its result would differ from run to run. Select rows by a condition, such as "
            "hash(key) % 10 = 0."
        )
    for node in nodes:
        if node.get("type") in _ORDERED_WINDOWS and not (node.get("orders") or node.get("arg_orders")):
            raise DefinitionError(
                f"{what}, sql: {node.get('function_name')}() OVER a window without ORDER BY, so its result would differ from "
                "run to run. Order the window by columns that are unique within it."
            )
    for name in sorted(_calls(nodes) & (_CLOCKS | _unrepeatable(connection))):
        raise DefinitionError(
            f"{what}, sql: calls {name.removesuffix('()')}(), so its result would differ from run to run. Freshness is the ttl's business; "
            "derive times from the sources' columns."
        )


def _unrepeatable(connection: duckdb.DuckDBPyConnection) -> frozenset[str]:
    """Functions that DuckDB itself does not call consistent, and the macros that mention one."""
    rows = connection.execute(
        "SELECT lower(function_name), stability, lower(macro_definition), parameter_types, return_type "
        "FROM duckdb_functions() WHERE stability <> 'CONSISTENT' OR macro_definition IS NOT NULL"
    ).fetchall()
    # error() is how a view refuses bad rows; it gives no value.
    names = {
        name
        for name, stability, _, types, returned in rows
        if stability not in (None, "CONSISTENT") and not _depends_on_zone(types, returned)
    } - {"error"}
    clocks = re.compile(rf"\b(?:{'|'.join(map(re.escape, sorted(names | _CLOCKS)))})\b")
    macros = {name for name, _, definition, *_ in rows if definition is not None and clocks.search(definition)}
    return frozenset(names | macros | {"age()"})


def _depends_on_zone(parameter_types: list[str] | None, return_type: str | None) -> bool:
    """Whether an overload computes on times with a zone. DuckDB 2 does not call it consistent because the zone is a setting.

    Ours is always UTC (sources.connect). What has no parameters is a clock.
    """
    if not parameter_types:
        return False
    types = [*parameter_types, return_type or ""]
    return any("WITH TIME ZONE" in each or "TIMESTAMPTZ" in each for each in types)


def _calls(nodes: Iterable[dict[str, Any]]) -> set[str]:
    """Names of all functions called; `age()` is age with one argument, which counts from today."""
    names: set[str] = set()
    for node in nodes:
        if "function_name" in node:
            name = str(node["function_name"]).lower()
            names.add(
                "age()" if name == "age" and len(node.get("arguments") or node.get("children") or ()) == 1 else name
            )
        # A bare CURRENT_DATE is parsed as a column until it is bound.
        if node.get("class") == "COLUMN_REF" and len(node.get("column_names", ())) == 1:
            names |= {str(node["column_names"][0]).lower()} & _CLOCKS
    return names


def _nodes(node: Any) -> Iterator[dict[str, Any]]:
    """Every object in a parsed statement."""
    if isinstance(node, list):
        for item in node:
            yield from _nodes(item)
    elif isinstance(node, dict):
        yield node
        for item in node.values():
            yield from _nodes(item)
