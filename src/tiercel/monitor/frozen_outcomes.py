"""One model's outcomes at one moment, read once, for reports that ask them many questions."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import duckdb

from tiercel.errors import OutcomesError
from tiercel.monitor.cohorts import REQUIRED, Outcomes, first_line
from tiercel.types import Task

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@contextmanager
def frozen_outcomes(
    connection: duckdb.DuckDBPyConnection,
    model: str,
    *,
    as_of_us: int,
    begin_us: int | None,
    expressions: Sequence[str] = (),
) -> Iterator[None]:
    """Within, `outcomes` on this connection is a table of one model's rows at one moment, with the columns that are needed.

    The relation joins labels to predictions each time it is asked, and a report asks often; and what is written meanwhile
    would show in some of its figures.

    Args:
        connection: with the relation `outcomes`.
        model: whose rows.
        as_of_us: rows up to this time.
        begin_us: rows from this time on; None: from the first.
        expressions: SQL over `outcomes` that must still work.

    Raises:
        OutcomesError: `outcomes` cannot be read.
    """
    source = Outcomes(connection, model, Task.REGRESSION, as_of_us)
    names = _needed_columns(source, expressions)
    columns = "*" if names is None else ", ".join(f'o."{name}"' for name in names)
    try:
        connection.execute(
            f"CREATE OR REPLACE TEMP TABLE outcomes AS SELECT {columns} FROM outcomes o WHERE {source.is_chosen(begin_us)}"
        )
    except duckdb.Error as error:
        raise OutcomesError(f"'outcomes' cannot be read: {first_line(error)}") from error
    try:
        yield
    finally:
        connection.execute("DROP TABLE temp.outcomes")


def _needed_columns(source: Outcomes, expressions: Sequence[str]) -> list[str] | None:
    """Columns that figures and some SQL over `outcomes` use; None: possibly all."""
    used = {*REQUIRED, "value", "label_problem"}
    for sql in expressions:
        try:
            ((tree,),) = source.connection.execute(
                "SELECT json_serialize_sql(?)", [f"SELECT {sql}\n FROM outcomes"]
            ).fetchall()
        except duckdb.Error:
            return None
        found = _column_names(json.loads(tree))
        if found is None:
            return None
        used |= found
    return [name for name in source.column_names if name in used or name.startswith("score.")]


def _column_names(tree: Any) -> set[str] | None:
    """Names in a serialized query that may be columns, in lower case; None where it names columns by a pattern."""
    found: set[str] = set()
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            waiting += node
        elif isinstance(node, dict):
            if node.get("class") == "STAR" or node.get("error") is True:
                return None
            found |= {name.casefold() for name in node.get("column_names") or [] if isinstance(name, str)}
            waiting += node.values()
    return found
