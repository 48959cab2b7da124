"""`tiercel drift`: what has changed in the inputs and scores, by how much, and whether chance explains it."""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.markup import escape
from rich.table import Table

from tiercel.cli.console import console, errors, json_option, print_json, project_option
from tiercel.cli.durations import DURATION, MOMENT
from tiercel.errors import TiercelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tiercel.monitor.drift import Compared, DriftReport, FeatureDrift
    from tiercel.monitor.reference import Reference
    from tiercel.monitor.score_shift import ScoreShift
    from tiercel.monitor.windows import WindowStore
    from tiercel.project import Project
    from tiercel.registry import Registry

_STYLES = {
    "drift": "bold red",
    "missing": "bold yellow",
    "stable": "green",
    "too few rows": "dim",
    "not comparable": "dim",
}


@click.command()
@click.argument("model", required=False)
@click.option(
    "--against",
    type=click.Choice(["training", "previous", "last-week"]),
    help="What to compare with. Default: training; with --test, previous.",
)
@click.option(
    "--window",
    "length_us",
    type=DURATION,
    default="1h",
    show_default=True,
    help="How far back to look, such as 15min, 6h or 7d.",
)
@click.option("--end", "end_us", type=MOMENT, help="End of the window (ISO 8601). Default: now.")
@click.option(
    "--false-alarms",
    type=click.FloatRange(0, min_open=True),
    help="Accepted per quarter and model version, with a look per window. Default: 1.",
)
@click.option("--html", "html_file", type=click.Path(dir_okay=False, path_type=Path), help="Write a report with plots.")
@click.option(
    "--test",
    type=click.Choice(["classifier", "mmd", "leaves"]),
    help="Compare rows as wholes instead of features one by one: can a model tell which of the two a row is of, how far "
    "apart are they, or do they end in other leaves of the model's trees?",
)
@click.option("--rows", type=click.IntRange(100, 20_000), help="With --test: rows drawn of either side. Default: 4000.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), help="With --test: seed of what is drawn. Default: 0.")
@click.option(
    "--score-shift/--no-score-shift",
    "wants_shift",
    default=None,
    help="Say which features moved the mean score, from sampled rows. Default: where a MODEL is named.",
)
@project_option
@json_option
def drift(
    model: str | None,
    against: str | None,
    length_us: int,
    end_us: int | None,
    false_alarms: float | None,
    html_file: Path | None,
    test: str | None,
    rows: int | None,
    seed: int | None,
    wants_shift: bool | None,
    project_dir: str,
    as_json: bool,
) -> None:
    """Compare what MODEL (NAME, NAME@ALIAS or NAME:VERSION) was asked and answered with what it was trained on.

    Without MODEL: every champion and challenger, and whatever else answered in the window.

    With --test, rows of the prediction table are compared as wholes with earlier ones, or with rows of the training set: that
    sees features that move apart while each stays as it was. It takes seconds to minutes.
    """
    if test is not None:
        from tiercel.cli.drift_rows import compare_rows

        for option, given in (
            ("--html", html_file), ("--false-alarms", false_alarms), ("--score-shift", wants_shift or None),
        ):  # fmt: skip
            if given is not None:
                raise click.UsageError(f"{option} is of features one by one: leave it or --test out.")
        if model is None:
            raise click.UsageError("Name the MODEL to --test.")
        compare_rows(
            project_dir,
            model,
            test,
            against or "previous",
            length_us,
            end_us,
            rows=rows,
            seed=seed or 0,
            as_json=as_json,
        )
        return
    if rows is not None or seed is not None:
        raise click.UsageError("--rows and --seed are of --test.")
    against, false_alarms = against or "training", 1.0 if false_alarms is None else false_alarms
    from tiercel.errors import WindowError
    from tiercel.monitor.drift import FalseAlarmBudget, find_compared
    from tiercel.monitor.windows import WindowStore
    from tiercel.project import Project

    problems: list[str] = []
    found: list[Compared] = []
    with Project(project_dir) as project:
        store = WindowStore(project.settings.state_dir)
        now_us = time.time_ns() // 1000
        try:
            store.record(now_us)
        except WindowError as error:  # what was recorded before is still there to be looked at
            problems.append(str(error))
        problems += store.problems
        until_us = now_us if end_us is None else end_us
        span = until_us - length_us, until_us
        for name, version in _chosen(project.registry, store, model, *span):
            reference = _reference(project, name, version, problems)
            compared = find_compared(
                store, reference, name, version,
                begin_us=span[0], end_us=span[1], against=against, or_latest=end_us is None,
            )  # fmt: skip
            if compared is None:
                problems.append(f"{name} version {version}: nothing was counted, and it has no reference")
            else:
                found.append(compared)
        shifts: dict[tuple[str, int], ScoreShift] = {}
        if wants_shift or (wants_shift is None and model is not None):
            from tiercel.cli.drift_scores import find_shifts

            shifts = find_shifts(project, found, against, problems)
    budget = FalseAlarmBudget(per_quarter=false_alarms, every_us=length_us)
    reports = [compared.report(budget) for compared in found]
    if html_file is not None:
        from tiercel.cli.drift_page import write_page

        write_page(html_file, found, reports, shifts)
    if as_json:
        told = [
            {
                **report.to_json(),
                "score_shift": None
                if (shift := shifts.get((report.model, report.version))) is None
                else shift.to_json(),
            }
            for report in reports
        ]
        print_json({"reports": told, "problems": problems})
        return
    for problem in problems:
        errors.print(f"[yellow]note[/]: {escape(problem)}")
    if not reports and not problems:
        console.print("No model has a champion and none was served. Register one, then run: tiercel serve")
    for report in reports:
        _print(report)
        if (report.model, report.version) in shifts:
            from tiercel.cli.drift_scores import print_shift

            print_shift(shifts[report.model, report.version])
    if html_file is not None:
        console.print(f"Report with plots: {html_file}")


def _chosen(
    registry: Registry, store: WindowStore, model: str | None, begin_us: int, end_us: int
) -> list[tuple[str, int]]:
    """The versions to look at."""
    if model is not None:
        from tiercel.registry import parse_reference

        name, selector = parse_reference(model)
        return [(name, registry.get(name, selector).version)]
    chosen = {
        (each.name, version)
        for each in registry.list_models()
        for alias, version in each.aliases.items()
        if alias in {"champion", "challenger"}
    }
    answered = {key for key in store.versions() if store.merged(*key, begin_us, end_us) is not None}
    return sorted(chosen | answered)


def _reference(project: Project, name: str, version: int, problems: list[str]) -> Reference | None:
    """The version's reference; None, with a problem where that is one, without."""
    from tiercel.insight.references import reference_of

    try:
        record = project.registry.get(name, version)
        return reference_of(record, project.registry.load_artifacts(record), project.settings)
    except TiercelError as error:  # a window can still be compared with earlier ones
        problems.append(f"{name} version {version} has no usable reference: {error}")
        return None


def _print(report: DriftReport) -> None:
    from tiercel.monitor.drift_words import WORDS

    alarms, judged = report.alarms, (*report.features, *report.scores)
    against = WORDS[report.against]
    console.print(
        f"[bold]{report.model}[/] version [bold]{report.version}[/] against {against}: {_summary(report, alarms)}"
    )
    compared = f"compared with {report.n_reference:,}" if report.n_reference else "nothing to compare with"
    console.print(
        f"  {_time(report.begin_us)} to {_time(report.end_us)} UTC, {_many(report.n_requests, 'request')}, "
        f"{_many(report.n_counted, 'row')} in the histograms, {compared}"
    )
    console.print(f"  by chance {_percent(report.alpha)} of such windows would show anything at all")
    for note in report.notes:
        console.print(f"  [yellow]note[/]: {escape(note)}")
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("feature", "effect", "threshold", "p", "missing", "verdict", "why"):
        is_number = column in {"effect", "threshold", "p"}
        table.add_column(column, justify="right" if is_number else "left", overflow="fold", no_wrap=is_number)
    for each in sorted(judged, key=lambda each: (not each.is_alarm, -each.strength)):
        table.add_row(
            escape(each.name) if each.kind == "feature" else f"[italic]{escape(each.name)}[/]",
            f"{_number(each.effect)} {each.measure}" if math.isfinite(each.effect) else "-",
            _number(each.threshold),
            _probability(each.p_value),
            _missing(each),
            f"[{_STYLES[each.verdict]}]{each.verdict}[/]",
            escape(each.reason),
        )
    console.print(table)
    console.print("[dim]effect: js = Jensen-Shannon distance, ks = Kolmogorov-Smirnov distance, both from 0 to 1[/]\n")


def _summary(report: DriftReport, alarms: Sequence[FeatureDrift]) -> str:
    if not alarms:
        style = _STYLES[report.verdict]
        return f"[{style}]{report.verdict}[/]"
    parts = []
    for verdict, words in (("drift", "drift"), ("missing", "a changed share of missing values")):
        names = [escape(each.name) for each in alarms if each.verdict == verdict]
        if names:
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            parts.append(f"[{_STYLES[verdict]}]{words}[/] in {shown}")
    return "; ".join(parts)


def _missing(each: FeatureDrift) -> str:
    if math.isnan(each.missing_share):
        return "-"
    now = _percent(each.missing_share)
    if math.isnan(each.reference_missing_share) or now == _percent(each.reference_missing_share):
        return now
    return f"{_percent(each.reference_missing_share)} -> {now}"


def _percent(share: float) -> str:
    if share == 0:
        return "0 %"
    return f"{100 * share:.1f} %" if share >= 0.001 else f"{100 * share:.2g} %"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _probability(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.3f}" if value >= 0.001 else "<1e-9" if value < 1e-9 else f"{value:.0e}"


def _many(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _time(moment_us: int) -> str:
    return datetime.fromtimestamp(moment_us // 1_000_000, tz=UTC).strftime("%Y-%m-%d %H:%M:%S")
