"""Labels as SQL: the last state of every key (id, row), whatever order and how often it was told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tiercel.monitor.label_ledger import CHANGED, FIRST

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import duckdb

    from tiercel.monitor.label_ledger import LabelLedger

#: Columns of the view `labels`, and of every part but for `round`.
COLUMNS = {
    "id": "VARCHAR",
    "row": "INTEGER",
    "row_given": "BOOLEAN",
    "label": "DOUBLE",
    "label_text": "VARCHAR",
    "value": "DOUBLE",
    "label_time": "TIMESTAMP",
    "label_received": "TIMESTAMP",
    "label_revision": "INTEGER",
}
#: What a connection of the control process may use.
MEMORY_LIMIT = "2GB"


def quote(text: str) -> str:
    """A text as SQL has it."""
    return "'" + text.replace("'", "''") + "'"


def quote_name(name: str) -> str:
    """A column's name as SQL has it."""
    return '"' + name.replace('"', '""') + '"'


def files(paths: Sequence[Path]) -> str:
    """A table function over Parquet files."""
    return f"read_parquet([{', '.join(quote(str(path)) for path in paths)}])"


def labels_query(directory: Path, ledger: LabelLedger) -> str:
    """A query of the last state of each key; no key comes twice."""
    first, changed = ledger.paths(directory, FIRST), ledger.paths(directory, CHANGED)
    names = ", ".join(quote_name(name) for name in COLUMNS)
    parts = []
    if changed:
        structure = f"struct_pack({', '.join(f'{quote_name(name)} := {quote_name(name)}' for name in COLUMNS)})"
        last = f'(SELECT unnest(s) FROM (SELECT arg_max({structure}, round) AS s FROM {files(changed)} GROUP BY id, "row"))'  # noqa: S608 - files and columns of ours, quoted
        parts.append(f"SELECT {names} FROM {last}")  # noqa: S608
    if first:
        but = f' ANTI JOIN (SELECT id, "row" FROM {files(changed)}) USING (id, "row")' if changed else ""  # noqa: S608
        parts.append(f"SELECT {names} FROM {files(first)}{but}")  # noqa: S608
    if not parts:
        return (
            f"SELECT {', '.join(f'NULL::{kind} AS {quote_name(name)}' for name, kind in COLUMNS.items())} WHERE false"
        )
    return " UNION ALL ".join(parts)


def open_connection(
    spill: Path, *, threads: int | None = None, memory_limit: str | None = None
) -> duckdb.DuckDBPyConnection:
    """A DuckDB in memory that spills into a directory of ours, and only while it must."""
    import duckdb

    config: dict[str, str | int] = {"temp_directory": str(spill), "preserve_insertion_order": "false"}
    if threads is not None:
        config["threads"] = threads
    if memory_limit is not None:
        config["memory_limit"] = memory_limit
    return duckdb.connect(config=config)
