"""`tiercel feedback`: labels from a file, and how far labels have come."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from tiercel.cli.console import console, json_option, print_json, print_table, progress, project_option

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import duckdb

    from tiercel.monitor.feedback_events import Checked
    from tiercel.monitor.outcomes import LabelReport

#: Events that are written with one sync.
BATCH = 20_000
_NAMES = {"id": ("id", "prediction_id"), "row": ("row",), "label": ("label",), "value": ("value",), "time": ("time",)}


@click.command()
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False))
@click.option("--id-column", help="Column of prediction ids; default: id, or prediction_id.")
@click.option("--label-column", help="Column of labels; default: label.")
@click.option("--value-column", help="Column of what outcomes were worth; default: value.")
@click.option("--time-column", help="Column of when they became so; default: time.")
@project_option
@json_option
def feedback(
    file: str | None,
    id_column: str | None,
    label_column: str | None,
    value_column: str | None,
    time_column: str | None,
    project_dir: str,
    as_json: bool,
) -> None:
    """Take labels of predictions from FILE (CSV, Parquet or JSON lines), and say how many predictions have one.

    FILE has columns id, label, and where there are any, row, value and time (UTC). The last label of a prediction counts; the
    same file may be given again. Without FILE the labels that came otherwise are reported.
    """
    from pathlib import Path

    from tiercel.monitor.outcomes import label_report, refresh
    from tiercel.settings import load_settings

    settings = load_settings(Path(project_dir))
    taken: _Taken | None = None
    if file is not None:
        chosen = {"id": id_column, "label": label_column, "value": value_column, "time": time_column}
        taken = _take(Path(file), settings.state_dir, {name: each for name, each in chosen.items() if each is not None})
    refresh(settings.state_dir, settings.monitor, waits=True)
    report = label_report(settings.state_dir, settings.monitor)
    if as_json:
        told = {} if taken is None else {"accepted": taken.n_accepted, "refused": taken.refused, "notes": taken.notes}
        print_json(told | {"report": report.to_json()})
        return
    if taken is not None:
        console.print(f"Accepted {taken.n_accepted:,} events.")
        for code, n in taken.refused.items():
            example = next(each for each in taken.described if each["code"] == code)
            console.print(f"Refused {n:,} ({code}), such as event {example['event']}: {example['error']}", markup=False)
        for note, n in taken.notes.items():
            console.print(f"Accepted all the same, {note}: {n:,}")
    _print(report)


def _take(path: Path, state_dir: Path, chosen: dict[str, str]) -> _Taken:
    from tiercel.monitor.labels import LabelStore

    store = LabelStore(state_dir)
    total = _Taken()
    try:
        with progress() as report:
            for events, n_all in _read(path, chosen):
                total.add(store.append(events))
                report("labels", total.n_events, n_all)
    finally:
        store.close()
    return total


class _Taken:
    """The sum of batches."""

    def __init__(self) -> None:
        self.n_events = self.n_accepted = 0
        self.refused: dict[str, int] = {}
        self.notes: dict[str, int] = {}
        self.described: list[dict[str, Any]] = []

    def add(self, checked: Checked) -> None:
        for mine, more in ((self.refused, checked.refused), (self.notes, checked.notes)):
            for name, n in more.items():
                mine[name] = mine.get(name, 0) + n
        known = {each["code"] for each in self.described}
        self.described += [
            {**each, "event": self.n_events + each["event"]} for each in checked.described if each["code"] not in known
        ]
        self.n_accepted += len(checked.events)
        self.n_events += len(checked.events) + sum(checked.refused.values())


def _read(path: Path, chosen: dict[str, str]) -> Iterator[tuple[list[dict[str, Any]], int]]:
    """Batches of events of a file, each with the number of all."""
    import duckdb

    from tiercel.errors import SourceError
    from tiercel.monitor.label_query import quote, quote_name

    reader = {".csv": "read_csv", ".parquet": "read_parquet", ".jsonl": "read_json", ".ndjson": "read_json"}.get(
        path.suffix.lower()
    )
    if reader is None:
        raise SourceError(f"{path}: expected a file that ends in .csv, .parquet or .jsonl, got {path.suffix!r}")
    connection = duckdb.connect()
    try:
        source = f"{reader}({quote(str(path))})"
        types = _types(connection, source)
        if reader == "read_csv":  # an id of digits alone is a text all the same, and "yes" is a class' name
            own = {field: (chosen.get(field), *_NAMES[field]) for field in ("id", "label")}
            as_text = [
                name for name in types if name in own["id"] or (name in own["label"] and types[name] == "BOOLEAN")
            ]
            forced = ", ".join(f"{quote(name)}: 'VARCHAR'" for name in as_text)
            source = f"read_csv({quote(str(path))}, types = {{{forced}}})" if forced else source
            types = _types(connection, source)
        columns = []
        for field, names in _NAMES.items():
            wanted = (chosen[field],) if field in chosen else names
            found = next((name for name in wanted if name in types), None)
            if found is None and (field == "id" or field in chosen):
                raise SourceError(f"{path}: expected a column {' or '.join(wanted)}, got {', '.join(types)}")
            if found is not None:
                columns.append(f"{_converted(quote_name(found), field, types[found])} AS {field}_")
        ((n_all,),) = connection.execute(f"SELECT count(*) FROM {source}").fetchall()  # noqa: S608
        result = connection.execute(f"SELECT {', '.join(columns)} FROM {source}")  # noqa: S608
        given = [name.removesuffix("_") for name, *_ in result.description]
        while rows := result.fetchmany(BATCH):
            yield [_event(dict(zip(given, row, strict=True))) for row in rows], n_all
    except duckdb.Error as error:
        raise SourceError(f"{path}: expected a readable file, got: {error}") from error
    finally:
        connection.close()


def _event(row: dict[str, Any]) -> dict[str, Any]:
    """A row as an event: what it has nothing of is not said."""
    label = row.get("label")
    if isinstance(label, str):
        row["label"] = {"true": True, "false": False}.get(label.lower(), label)
    return {name: each for name, each in row.items() if each is not None}


def _types(connection: duckdb.DuckDBPyConnection, source: str) -> dict[str, str]:
    """Columns of a file and their types."""
    described = connection.execute(f"DESCRIBE SELECT * FROM {source}").fetchall()  # noqa: S608
    return {name: str(kind) for name, kind, *_ in described}


def _converted(column: str, field: str, kind: str) -> str:
    """A column as an event has it."""
    if field == "time":
        return f"epoch_us({column})" if kind.startswith(("TIMESTAMP", "DATE")) else column
    if field == "id":
        return f"{column}::VARCHAR"
    is_number = kind.startswith(("DECIMAL", "FLOAT", "DOUBLE")) or kind.endswith(("INT", "INTEGER"))
    if field in {"label", "value"} and is_number:
        return f"{column}::DOUBLE"
    return f"{column}::BIGINT" if field == "row" and is_number else column


def _print(report: LabelReport) -> None:
    rows = [
        (
            f"{each.model}:{each.version}",
            f"{each.rows:,}",
            f"{each.labelled:,}",
            f"{each.coverage:.1%}",
            _duration(each.delay_p50_s),
            _duration(each.delay_p90_s),
            _problems(each.out_of_range, each.unknown_class, each.row_missing, each.late, each.early),
        )
        for each in report.versions
    ]
    columns = ["version", "rows", "labelled", "coverage", "delay p50", "delay p90", "problems"]
    print_table("Labels", columns, rows)
    totals = report.label_totals
    console.print(
        f"{totals.events:,} events: {totals.first:,} first labels, {totals.duplicates:,} repeated, {totals.corrections:,} corrected, "
        f"{totals.additions:,} completed; {sum(totals.refused.values()):,} refused"
    )
    if report.unknown:
        console.print(
            f"{report.unknown:,} of {report.labels:,} labels are of no prediction in the table: never made, not converted yet, or "
            f"past retention"
        )
    table = report.table_totals
    if table.segments_lost or table.segments_damaged:
        console.print(
            f"The journal removed {table.segments_lost} segments before they were converted; {table.segments_damaged} were damaged"
        )


def _problems(out_of_range: int, unknown_class: int, row_missing: int, late: int, early: int) -> str:
    named = {
        "out of range": out_of_range,
        "unknown class": unknown_class,
        "row missing": row_missing,
        "a year late": late,
        "before the prediction": early,
    }
    return ", ".join(f"{n:,} {name}" for name, n in named.items() if n)


def _duration(seconds: float | None) -> str | None:
    from tiercel.cli.jobs import age

    return None if seconds is None else age(seconds)
