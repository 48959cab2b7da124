"""`tiercel sql`: questions to the prediction table."""

from __future__ import annotations

import csv
import math
import sys
from typing import TYPE_CHECKING, Any

import click

from tiercel.cli.console import errors, json_option, print_json, print_table, project_option
from tiercel.cli.freshness import bring_up_to_date

if TYPE_CHECKING:
    from collections.abc import Sequence


@click.command()
@click.argument("query")
@click.option("--model", help="Only this model's predictions, and only its columns.")
@click.option(
    "--limit", default=100, show_default=True, type=click.IntRange(1), help="Rows of a printed table, at most."
)
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV, all rows.")
@click.option("--no-refresh", is_flag=True, help="Leave out what was predicted or told since the last conversion.")
@project_option
@json_option
def sql(
    query: str, model: str | None, limit: int, as_csv: bool, no_refresh: bool, project_dir: str, as_json: bool
) -> None:
    """Answer QUERY, SQL as DuckDB has it, over predictions, labels and outcomes.

    \b
    predictions   every answered row: id, row, model, version, tier, arm, time (UTC), score, keys, features,
                  degraded, degrade_reason, is_default_filled, is_shadow, n_missing, ...
    labels        the last label of every (id, row)
    outcomes      predictions with label, label_time, value and label_problem
    versions      what answered: model, version, tier, task, classes, features

    \b
    tiercel sql "SELECT version, arm, count(*), avg(score) FROM predictions WHERE NOT is_shadow GROUP BY ALL"
    """  # noqa: D301 - click's mark of lines that stay as they are
    from pathlib import Path

    import duckdb

    from tiercel.errors import QueryError
    from tiercel.monitor.outcomes import open_outcomes
    from tiercel.settings import load_settings

    settings = load_settings(Path(project_dir))
    if not no_refresh:
        bring_up_to_date(settings)
    connection = open_outcomes(settings.state_dir, settings.monitor, model=model)
    try:
        result = connection.execute(query)
        if result is None:  # a comment, or nothing
            raise QueryError(f"Expected SQL that the prediction table can answer, got {query!r}")
        columns = [name for name, *_ in result.description or ()]
        rows = result.fetchall() if as_csv or as_json else result.fetchmany(limit + 1)
    except duckdb.Error as error:
        raise QueryError(f"Expected SQL that the prediction table can answer, got: {error}") from error
    finally:
        connection.close()
    if as_json:
        print_json([dict(zip(columns, map(_plain, row), strict=True)) for row in rows])
    elif as_csv:
        _print_csv(columns, rows)
    else:
        print_table("Result", columns, rows[:limit])
        if len(rows) > limit:
            errors.print(f"Only the first {limit} rows are shown; see --limit, --csv and --json.")


def _print_csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)


def _plain(value: Any) -> Any:
    """As JSON has it: it knows no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
