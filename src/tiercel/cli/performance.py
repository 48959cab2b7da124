"""`tiercel performance`: how good a model's predictions turned out, and what they were worth."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from tiercel.cli.console import console, json_option, print_json, print_table, project_option
from tiercel.cli.durations import DURATION, MOMENT, shown_duration, shown_moment

if TYPE_CHECKING:
    from collections.abc import Iterable

    import duckdb

    from tiercel.monitor.business import GroupValue, ValueReport
    from tiercel.monitor.estimation import EstimationReport
    from tiercel.monitor.intervals import Estimate
    from tiercel.monitor.outcomes import Counts, GroupKey
    from tiercel.monitor.performance import GroupPerformance, PerformanceReport
    from tiercel.project import Project

#: Of windows and segments, where a row has no room for all.
_IN_ROWS = ("auc", "log_loss", "calibration_gap", "mae", "rmse", "bias")
_LABELS = {
    "auc": "AUC", "log_loss": "log loss", "brier": "Brier score", "ece": "calibration error", "f1": "F1", "mae": "MAE",
    "calibration_gap": "labels - scores", "base_rate": "positive labels", "rmse": "RMSE", "r2": "R2", "bias": "bias",
}  # fmt: skip


@click.command()
@click.argument("model")
@click.option("--since", "span_us", type=DURATION, default="7d", show_default=True, help="How far back.")
@click.option("--window", "window_us", type=DURATION, default="1d", show_default=True, help="Length of a window.")
@click.option(
    "--maturity", "maturity_us", type=DURATION, help="Age at which a prediction is judged. Default: as labels come."
)
@click.option("--all-labels", is_flag=True, help="Judge all predictions by whatever labels have come.")
@click.option("--as-of", "as_of_us", type=MOMENT, help="As it was known at this moment (ISO, UTC). Default: now.")
@click.option("--threshold", type=float, help="Of decisions. Default: the project's, or 0.5.")
@click.option("--confidence", type=click.FloatRange(0.5, 0.9999), default=0.95, show_default=True, help="Of intervals.")
@click.option("--no-estimates", is_flag=True, help="Leave out what is estimated before labels come.")
@click.option("--with-degraded", is_flag=True, help="Judge what a fallback or default answered, too.")
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
    project_dir: str,
    as_json: bool,
) -> None:
    """Say how good the predictions of MODEL (a name, NAME:VERSION or NAME@ALIAS) turned out, and what they were worth.

    Only predictions old enough to have their labels are judged, so that fresh ones do not bend a figure; intervals say how
    far the rows behind each figure carry it.
    """
    from tiercel.monitor.business import value_report
    from tiercel.monitor.estimation import estimation_report
    from tiercel.monitor.outcomes import Cohort
    from tiercel.monitor.performance import choose_cohort, performance_report
    from tiercel.project import Project
    from tiercel.registry import parse_reference

    if all_labels and maturity_us is not None:
        raise click.UsageError("Give either --maturity or --all-labels.")
    as_of_us = time.time_ns() // 1000 if as_of_us is None else as_of_us
    with Project(project_dir) as project:
        name, selector = parse_reference(model)
        version = project.registry.get(name, "latest" if selector is None else selector)
        only = None if selector is None else version.version
        task = version.facts.signature.task
        settings = project.settings.model(name).value
        if threshold is not None:
            settings = replace(settings, threshold=threshold)
        if maturity_us is None and settings.label_maturity_s is not None:
            maturity_us = round(settings.label_maturity_s * 1e6)
        with connect_outcomes(project) as connection:
            cohort, delay = choose_cohort(
                connection,
                name,
                task,
                as_of_us=as_of_us,
                version=only,
                maturity_us=0 if all_labels else maturity_us,
                span_us=span_us,
                window_us=window_us,
            )
            if all_labels:
                cohort = Cohort(None, cohort.begin_us, cohort.end_us, cohort.window_us)
            report = performance_report(
                connection,
                name,
                task,
                cohort,
                as_of_us=as_of_us,
                version=only,
                settings=settings,
                with_degraded=with_degraded,
                confidence=confidence,
                delay=delay,
            )
            value = value_report(
                connection, name, task, cohort, settings, as_of_us=as_of_us, version=only, confidence=confidence
            )
            estimates = None
            if not no_estimates and report.groups:
                estimates = estimation_report(
                    connection,
                    name,
                    task,
                    cohort,
                    as_of_us=as_of_us,
                    version=only,
                    settings=settings,
                    coverage=delay.final_share or 1.0,
                    confidence=confidence,
                )
    if as_json:
        parts = {"value": value, "estimates": estimates}
        print_json({**report.to_json(), **{k: None if part is None else part.to_json() for k, part in parts.items()}})
        return
    _print(report, value, estimates)


def connect_outcomes(project: Project) -> duckdb.DuckDBPyConnection:
    """A connection with the relation `outcomes`, up to date; the caller closes it."""
    from tiercel.monitor.joined import open_outcomes, refresh

    settings = project.settings
    refresh(settings.state_dir, settings.monitor)
    return open_outcomes(settings.state_dir, settings.monitor)


def _print(report: PerformanceReport, value: ValueReport | None, estimates: EstimationReport | None) -> None:
    console.print(f"[bold]{report.model}[/], {report.task.value}, as known at {shown_moment(report.as_of_us)} UTC")
    for line in _circumstances(report):
        console.print(f"  {line}")
    if report.groups:
        money = {} if value is None else {group.key: group for group in value.groups}
        unit = "" if value is None else value.unit
        columns = ["", *(_who(group.key) for group in report.groups)]
        print_table("Versions", columns, list(_facts(report.groups, money, unit)))
        for title, groups, values in (
            ("Windows", report.windows, [] if value is None else value.windows),
            ("Segments", report.segments, [] if value is None else value.segments),
        ):
            if groups:
                _print_rows(title, groups, {each.key: each for each in values}, unit)
    if value is not None:
        for each in value.comparisons:
            gain = f"{shown(each.per_prediction)} {value.unit}".rstrip()
            console.print(f"{_who(each.challenger)} over {_who(each.champion)}: {gain} per answer.", markup=False)
    if estimates is not None and any(window.estimated for window in estimates.windows):
        _print_estimates(estimates, report, unit="" if value is None else value.unit)
    for note in [note for part in (report, value, estimates) if part is not None for note in part.notes]:
        console.print(f"- {note}", markup=False)


def _circumstances(report: PerformanceReport) -> list[str]:
    cohort, delay = report.cohort, report.delay
    begin = "the first prediction" if cohort.begin_us is None else f"{shown_moment(cohort.begin_us)} UTC"
    if cohort.maturity_us is None:
        lines = [f"judged: predictions from {begin} on, by whatever labels have come"]
    else:
        age = shown_duration(cohort.maturity_us)
        lines = [f"judged: predictions from {begin} on that are {age} old or more, by labels that came within {age}"]
    median, most = delay.quantile_us(0.5), delay.quantile_us(0.95)
    if median is not None and most is not None:
        lines.append(
            f"labels: {delay.final_share:.0%} of predictions get one, half of them within {shown_duration(median)}, "
            f"95% within {shown_duration(most)}"
        )
    lines.append(f"intervals: {report.confidence:.4g} confidence")
    return lines


def _facts(groups: list[GroupPerformance], money: dict[GroupKey, GroupValue], unit: str) -> Iterable[list[str | None]]:
    """Rows of the table whose columns are versions and arms."""

    def counts(name: str, title: str, *, always: bool = False) -> Iterable[list[str | None]]:
        numbers = [getattr(group.counts, name) for group in groups]
        if always or any(numbers):
            yield [title, *(f"{n:,}" for n in numbers)]

    yield from counts("n_predictions", "predictions", always=True)
    yield from counts("n_degraded", "left out: degraded")
    yield from counts("n_fresh", "too young")
    yield from counts("n_cohort", "judged", always=True)
    yield ["labelled", *(_covered(group.counts, group.coverage) for group in groups)]
    yield from counts("n_late", "labelled too late")
    yield from counts("n_bad_label", "left out: no such label")
    yield from counts("n_bad_score", "left out: no such score")
    for name in dict.fromkeys(name for group in groups for name in group.metrics):
        yield [_LABELS.get(name, name), *(shown(group.metrics.get(name)) for group in groups)]
    if not money:
        return
    of = f" {unit}" if unit else ""
    found = [money.get(group.key) for group in groups]
    yield ["realized" + of, *(None if each is None else _number(each.realized) for each in found)]
    yield [f"projected{of} in all", *(None if each is None else shown(each.total) for each in found)]
    yield [
        f"{of.strip() or 'value'} per answer",
        *(None if each is None else shown(each.per_prediction) for each in found),
    ]
    for name, title in (("always_positive", "were all positive"), ("always_negative", "were all negative")):
        if any(each is not None and getattr(each, name) is not None for each in found):
            yield [title, *(None if each is None else shown(getattr(each, name)) for each in found)]


def _print_rows(title: str, groups: list[GroupPerformance], money: dict[GroupKey, GroupValue], unit: str) -> None:
    """A table of a row per window or segment's value."""
    present = {name for group in groups for name in group.metrics}
    names = [name for name in _IN_ROWS if name in present]
    names += [name for name in dict.fromkeys(n for g in groups for n in g.metrics) if _is_own(name)]
    has_many = len({(group.key.version, group.key.arm) for group in groups}) > 1
    columns = [
        title[:-1].lower(),
        *(["version"] if has_many else []),
        "judged",
        "labelled",
        *(_LABELS.get(n, n) for n in names),
    ]
    if money:
        columns.append(f"{unit or 'value'} per answer")
    rows: list[list[Any]] = []
    for group in groups:
        key = group.key
        what = shown_moment(key.begin_us) if key.begin_us is not None else f"{key.segment} = {key.value}"
        row: list[Any] = [what, *([_who(key)] if has_many else [])]
        row += [f"{group.counts.n_cohort:,}", _covered(group.counts, group.coverage)]
        row += [shown(group.metrics.get(name)) for name in names]
        if money:
            row.append(shown(money[key].per_prediction) if key in money else None)
        rows.append(row)
    print_table(title, columns, rows)


def _print_estimates(estimates: EstimationReport, report: PerformanceReport, *, unit: str) -> None:
    """Estimates beside what was realized, and whether they could be relied on."""
    from tiercel.monitor.estimation import VALUE

    begin_us = report.cohort.begin_us or 0
    windows = [window for window in estimates.windows if window.estimated and (window.key.begin_us or 0) >= begin_us]
    names = [name for name in ("auc", "log_loss", VALUE) if any(name in window.estimated for window in windows)]
    titles = {VALUE: f"{unit or 'value'} per answer"} | _LABELS
    has_many = len({(window.key.version, window.key.arm) for window in windows}) > 1
    columns = ["window", *(["version"] if has_many else []), "rows"]
    columns += [title for name in names for title in (f"{titles[name]} estimated", "realized")]
    rows: list[list[Any]] = []
    for window in windows:
        row: list[Any] = [
            shown_moment(window.key.begin_us or 0),
            *([_who(window.key)] if has_many else []),
            f"{window.n:,}",
        ]
        for name in names:
            realized = None if window.realized is None else window.realized.get(name)
            row += [shown(window.estimated.get(name)), "not yet" if realized is None else _value(realized)]
        rows.append(row)
    print_table("Estimates before labels", columns, rows)
    for audit in estimates.audits:
        if audit.metric in names:
            verdict = "they hold" if audit.holds else "THEY DO NOT HOLD"
            what = f"{titles[audit.metric]} of version {audit.version} ({audit.arm})"
            console.print(
                f"{what}: {audit.n_inside} of {audit.n_windows} realized inside the estimate's interval, "
                f"mean gap {_number(audit.mean_gap)}: {verdict}.",
                markup=False,
            )


def _value(estimate: Estimate) -> str:
    return f"- ({estimate.reason})" if estimate.value is None else _number(estimate.value)


def _is_own(name: str) -> bool:
    """Whether a metric is one of the project's."""
    from tiercel.monitor.classification import BINARY_METRICS
    from tiercel.monitor.regression import REGRESSION_METRICS

    return name not in BINARY_METRICS and name not in REGRESSION_METRICS


def _who(key: GroupKey) -> str:
    return f"version {key.version}" if key.arm == "champion" else f"version {key.version} ({key.arm})"


def _covered(counts: Counts, coverage: Estimate) -> str:
    return f"{counts.n_labelled:,}" + ("" if coverage.value is None else f" ({coverage.value:.1%})")


def shown(estimate: Estimate | None) -> str | None:
    """A figure with its interval, or why there is none."""
    if estimate is None:
        return None
    if estimate.value is None:
        return f"- ({estimate.reason})"
    if estimate.low is None or estimate.high is None:
        return _number(estimate.value)
    return f"{_number(estimate.value)} [{_number(estimate.low)}, {_number(estimate.high)}]"


def _number(value: float) -> str:
    size = abs(value)
    if size >= 1e7:
        return f"{value:.4g}"
    if size >= 100:
        return f"{value:,.0f}"
    if size >= 10:
        return f"{value:.2f}"
    return f"{value:.4f}" if 0 < size < 0.1 else f"{value:.3f}"
