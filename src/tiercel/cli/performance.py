"""`tiercel performance`: how good a model's predictions turned out, and what they were worth."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tiercel.cli.console import console, json_option, print_json, print_table, project_option
from tiercel.cli.durations import DURATION, MOMENT, shown_moment
from tiercel.cli.freshness import bring_up_to_date
from tiercel.cli.performance_tables import circumstances, label, tables

if TYPE_CHECKING:
    import duckdb

    from tiercel.monitor.review import Review
    from tiercel.project import Project

#: Predictions that are looked at for a change of meaning beyond what the control process has seen.
MOST_ROWS = 50_000


@click.command()
@click.argument("model")
@click.option(
    "--since",
    "span_us",
    type=DURATION,
    default="7d",
    show_default=True,
    help="How far back, such as 36h or 30d.",
)
@click.option("--window", "window_us", type=DURATION, default="1d", show_default=True, help="Length of a window.")
@click.option(
    "--maturity", "maturity_us", type=DURATION, help="Age at which a prediction is judged. Default: as labels come."
)
@click.option("--all-labels", is_flag=True, help="Judge all predictions by whatever labels have come.")
@click.option("--as-of", "as_of_us", type=MOMENT, help="As it was known at this moment (ISO, UTC). Default: now.")
@click.option(
    "--threshold",
    type=float,
    help="Score from which a decision is positive. Default: the project's, or 0.5.",
)
@click.option(
    "--confidence",
    type=click.FloatRange(0.5, 0.9999),
    default=0.95,
    show_default=True,
    help="Of the intervals.",
)
@click.option("--no-estimates", is_flag=True, help="Leave out what is estimated before labels come.")
@click.option("--with-degraded", is_flag=True, help="Judge what a fallback or default answered, too.")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Write a page with plots to this file.")
@project_option
@json_option
def performance(
    model: str,
    span_us: int,
    window_us: int,
    maturity_us: int | None,
    all_labels: bool,
    as_of_us: int | None,
    threshold: float | None,
    confidence: float,
    no_estimates: bool,
    with_degraded: bool,
    html: Path | None,
    project_dir: str,
    as_json: bool,
) -> None:
    """Say how good the predictions of MODEL (a name, NAME:VERSION or NAME@ALIAS) turned out, and what they were worth.

    Only predictions old enough to have their labels are judged, so that fresh ones do not bend a figure; intervals say how
    far the rows behind each figure carry it.
    """
    from tiercel.monitor.concept_state import ConceptStore
    from tiercel.monitor.review import review
    from tiercel.project import Project
    from tiercel.registry import parse_reference

    if all_labels and maturity_us is not None:
        raise click.UsageError("Give either --maturity or --all-labels.")
    as_of_us = time.time_ns() // 1000 if as_of_us is None else as_of_us
    with Project(project_dir) as project:
        name, selector = parse_reference(model)
        version = project.registry.get(name, "latest" if selector is None else selector)
        settings = project.settings.model(name).value
        if threshold is not None:
            settings = replace(settings, threshold=threshold)
        with connect_outcomes(project, name) as connection:
            found = review(
                connection,
                name,
                version.facts.signature.task,
                settings,
                as_of_us=as_of_us,
                version=None if selector is None else version.version,
                span_us=span_us,
                window_us=window_us,
                maturity_us=maturity_us,
                all_labels=all_labels,
                with_degraded=with_degraded,
                with_estimates=not no_estimates,
                confidence=confidence,
                store=ConceptStore(project.settings.state_dir),
                most_rows=MOST_ROWS,
            )
    if html is not None:
        _write_page(html, found)
    if as_json:
        print_json(found.to_json())
    elif html is None:
        _print(found)


def connect_outcomes(project: Project, model: str) -> duckdb.DuckDBPyConnection:
    """A connection with the relation `outcomes` of a model, brought up to date; the caller closes it."""
    from tiercel.monitor.outcomes import open_outcomes

    state_dir, settings = project.settings.state_dir, project.settings.monitor
    bring_up_to_date(project.settings)
    return open_outcomes(state_dir, settings, model=model)


def _print(found: Review) -> None:
    report = found.performance
    console.print(f"[bold]{report.model}[/], {report.task.value}, as known at {shown_moment(report.as_of_us)} UTC")
    for line in circumstances(report):
        console.print(f"  {line}", markup=False)
    for table in tables(found):
        print_table(table.title, table.columns, table.rows)
        for sentence in table.sentences:
            console.print(sentence, markup=False)
    for note in found.notes:
        console.print(f"- {note}", markup=False)


def _write_page(path: Path, found: Review) -> None:
    from tiercel.cli.performance_page import page

    text = page(
        found.performance,
        found.value,
        found.estimates,
        tables=tables(found),
        said=circumstances(found.performance),
        notes=found.notes,
        label=label,
    )
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise click.ClickException(f"{path}: cannot be written: {error.strerror}") from error
    click.echo(f"Wrote {path}", err=True)
