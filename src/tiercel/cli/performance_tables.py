"""What `tiercel performance` shows, as tables and sentences: for a terminal and for a page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tiercel.cli.durations import shown_duration, shown_moment

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tiercel.monitor.business import GroupValue
    from tiercel.monitor.cohorts import Counts, GroupKey
    from tiercel.monitor.concept import ConceptStatus
    from tiercel.monitor.estimation import EstimationReport
    from tiercel.monitor.intervals import Estimate
    from tiercel.monitor.performance import GroupPerformance, PerformanceReport
    from tiercel.monitor.review import Review

#: Of windows and segments, where a row has no room for all.
_IN_ROWS = ("auc", "macro_auc", "log_loss", "calibration_gap", "mae", "rmse", "bias")
_LABELS = {
    "auc": "AUC", "log_loss": "log loss", "brier": "Brier score", "ece": "calibration error", "f1": "F1", "mae": "MAE",
    "macro_auc": "macro AUC", "macro_f1": "macro F1", "calibration_gap": "labels - scores", "base_rate": "positive labels", "rmse": "RMSE", "r2": "R2", "bias": "bias",
}  # fmt: skip


@dataclass(frozen=True)
class Shown:
    """A table, and sentences below it."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    sentences: Sequence[str] = ()


def label(name: str) -> str:
    """A metric's name as people read it."""
    return _LABELS.get(name, name)


def tables(review: Review) -> list[Shown]:
    """Versions, windows, segments, estimates, changes of meaning; those of which there is anything."""
    report, value = review.performance, review.value
    if not report.groups:
        return []
    unit = "" if value is None else value.unit
    money = {} if value is None else {group.key: group for group in value.groups}
    gains = []
    for each in [] if value is None else value.comparisons:
        gain = f"{shown(each.per_prediction)} {unit}".rstrip()
        gains.append(f"{_who(each.challenger)} over {_who(each.champion)}: {gain} per answer.")
    columns = ["", *(_who(group.key) for group in report.groups)]
    found = [Shown("Versions", columns, list(_facts(report.groups, money, unit)), gains)]
    found += [_confusion(group) for group in report.groups if group.confusion is not None]
    for title, groups, values in (
        ("Windows", report.windows, [] if value is None else value.windows),
        ("Segments", report.segments, [] if value is None else value.segments),
    ):
        if groups:
            found.append(_by_row(title, groups, {each.key: each for each in values}, unit))
    if review.estimates is not None and any(window.estimated for window in review.estimates.windows):
        found.append(_estimates(review.estimates, report, unit=unit))
    if review.concept:
        found.append(_changes(review.concept))
    return found


def circumstances(report: PerformanceReport) -> list[str]:
    """Who is judged, by what, and how long labels take."""
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
    yield ["realized" + of, *(_number(each.realized) if each is not None and each.n_known else None for each in found)]
    yield [f"projected{of} in all", *(None if each is None else shown(each.total) for each in found)]
    yield [
        f"{of.strip() or 'value'} per answer",
        *(None if each is None else shown(each.per_prediction) for each in found),
    ]
    for name, title in (("always_positive", "were all positive"), ("always_negative", "were all negative")):
        if any(each is not None and getattr(each, name) is not None for each in found):
            yield [title, *(None if each is None else shown(getattr(each, name)) for each in found)]


def _confusion(group: GroupPerformance) -> Shown:
    """Rows are what came, columns what was likeliest."""
    assert group.confusion is not None  # noqa: S101 - for the type checker
    names = group.confusion.classes
    rows = [
        [name, *(f"{n:,}" for n in counts), f"{counts[place] / sum(counts):.1%}" if sum(counts) else "-"]
        for place, (name, counts) in enumerate(zip(names, group.confusion.counts, strict=True))
    ]
    return Shown(f"Labels (rows) and decisions of {_who(group.key)}", ["", *names, "right"], rows)


def _by_row(title: str, groups: list[GroupPerformance], money: dict[GroupKey, GroupValue], unit: str) -> Shown:
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
    return Shown(title, columns, rows)


def _estimates(estimates: EstimationReport, report: PerformanceReport, *, unit: str) -> Shown:
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
    sentences = []
    for audit in estimates.audits:
        if audit.metric in names:
            verdict = "they hold" if audit.holds else "THEY DO NOT HOLD"
            sentences.append(
                f"{titles[audit.metric]} of version {audit.version} ({audit.arm}): {audit.n_inside} of {audit.n_windows} realized "
                f"inside the estimate's interval, mean gap {_number(audit.mean_gap)}: {verdict}."
            )
    return Shown("Estimates before labels", columns, rows, sentences)


def _changes(concept: Sequence[ConceptStatus]) -> Shown:
    """The trusted detectors of each version and arm; the others are in the JSON."""
    rows: list[list[Any]] = []
    for status in concept:
        state = status.state
        who = f"version {state.version} ({state.arm})"
        if state.scale is None:
            rows.append([who, f"{state.n_rows:,}", "- (too few predictions to know what is usual)", None, None, None])
            continue
        found = [alarm for alarm in state.alarms if alarm.is_trusted]
        if not found:
            rows.append([who, f"{state.n_rows:,}", "none", None, None, None])
        for alarm in found[-5:]:
            size = (
                ""
                if alarm.before is None or alarm.after is None
                else f"{_number(alarm.before)} to {_number(alarm.after)}"
            )
            rows.append([who, f"{state.n_rows:,}", shown_moment(alarm.time_us), alarm.stream, alarm.detector, size])
    columns = ["version", "looked at", "change at", "of", "found by", "mean before and after"]
    return Shown("Changes of what scores mean", columns, rows)


def _value(estimate: Estimate) -> str:
    return f"- ({estimate.reason})" if estimate.value is None else _number(estimate.value)


def _is_own(name: str) -> bool:
    """Whether a metric is one of the project's."""
    from tiercel.monitor.classification import BINARY_METRICS
    from tiercel.monitor.multiclass import MULTICLASS_METRICS
    from tiercel.monitor.regression import REGRESSION_METRICS

    return name not in {*BINARY_METRICS, *MULTICLASS_METRICS, *REGRESSION_METRICS}


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
