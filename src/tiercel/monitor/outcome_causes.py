"""From realized figures to their causes: has what scores mean changed, and does the model achieve what it is for?

The newest window that is old enough is judged once, beside the windows before it. Money decides about impact; where scores
no longer mean what they meant, or errors have grown, that is a matter of concept, which is shown and wakes nobody.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tiercel.monitor.alert import AlertClass, Finding, Look, TopFeature
from tiercel.monitor.intervals import Estimate
from tiercel.types import Task

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tiercel.monitor.cohorts import GroupKey
    from tiercel.monitor.concept import ConceptStatus
    from tiercel.monitor.review import Review

__all__ = ["OutcomeWindow", "newest_mature", "outcome_look", "pooled"]

#: A figure that is worse by less than this part of what it was is not alarming, however certain it is.
LEAST_PART = 0.05
#: Fewer labels tell nothing, and so do fewer windows before.
LEAST_LABELS = 50
LEAST_WINDOWS = 3
#: Figures of a task: name, and whether more is better.
_FIGURES: dict[Task, tuple[tuple[str, bool], ...]] = {
    Task.BINARY: (("auc", True), ("log_loss", False)),
    Task.REGRESSION: (("mae", False), ("rmse", False)),
    Task.MULTICLASS: (("macro_auc", True), ("log_loss", False)),
}
#: Estimates that have to come true as long as scores mean what they meant.
_AUDITED = ("calibration_gap", "brier")


@dataclass(frozen=True)
class OutcomeWindow:
    """Which window is judged, and beside which.

    Attributes:
        model, version, arm: whose.
        begin_us, length_us: the window.
        good_until_us: windows from here on are not compared with: they were found bad themselves. None: all are good.
        as_of_us: the moment everything was known at.
        span_us: how far back windows reach.
    """

    model: str
    version: int
    arm: str
    begin_us: int
    length_us: int
    good_until_us: int | None
    as_of_us: int
    span_us: int

    @property
    def name(self) -> str:
        """Of the version, as commands take it."""
        return f"{self.model}:{self.version}"

    @property
    def command(self) -> str:
        """What shows it again."""
        as_of = datetime.fromtimestamp(self.as_of_us / 1e6, tz=UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")
        span, length = (f"{us / 1e6:.15g}s" for us in (self.span_us, self.length_us))
        return f"tiercel performance {self.name} --since {span} --window {length} --as-of {as_of}"

    def is_before(self, key: GroupKey) -> bool:
        """Whether a group is a window that this one is compared with."""
        until_us = self.begin_us if self.good_until_us is None else min(self.begin_us, self.good_until_us)
        return self._is_of(key) and key.begin_us is not None and key.begin_us + self.length_us <= until_us

    def is_it(self, key: GroupKey) -> bool:
        """Whether a group is this window."""
        return self._is_of(key) and key.begin_us == self.begin_us

    def _is_of(self, key: GroupKey) -> bool:
        return (key.version, key.arm) == (self.version, self.arm)


def newest_mature(review: Review, version: int, arm: str, length_us: int, *, as_of_us: int) -> int | None:
    """Begin of the newest window in which every prediction is as old as labels need, and enough have one; None without."""
    maturity_us = review.performance.cohort.maturity_us or 0
    begins = [
        group.key.begin_us
        for group in review.performance.windows
        if (group.key.version, group.key.arm) == (version, arm)
        and group.key.begin_us is not None
        and group.key.begin_us + length_us <= as_of_us - maturity_us
        and group.counts.n_used >= LEAST_LABELS
    ]
    return max(begins, default=None)


def outcome_look(review: Review, window: OutcomeWindow, *, new_changes: Sequence[TopFeature] = ()) -> Look:
    """Judge a window.

    Args:
        review: of the model, with windows; made with the confidence that the false-alarm budget asks for.
        window: which.
        new_changes: changes that detectors found in the stream of errors since the look before.
    """
    findings: list[Finding] = []
    limits: dict[str, dict[str, float]] = {}
    for cause, finding, of_cause in (_impact(review, window), _concept(review, window, new_changes)):
        if of_cause:
            limits[cause] = of_cause
        if finding is not None:
            findings.append(finding)
    return Look(f"outcomes:{window.name}:{window.arm}", tuple(findings), limits, n_confirm=1, n_clear=1)


def pooled(estimates: Iterable[Estimate]) -> Estimate:
    """Several windows' figure as one: weighted by rows; errors of windows are independent."""
    known = [e for e in estimates if e.value is not None and e.low is not None and e.high is not None and e.n > 0]
    n = sum(e.n for e in known)
    if not known:
        return Estimate.missing("no earlier window")

    def mean_of(values: Iterable[float | None]) -> float:
        return sum(e.n * (v or 0.0) for e, v in zip(known, values, strict=True)) / n

    value = mean_of(e.value for e in known)
    below = math.sqrt(sum((e.n * ((e.value or 0.0) - (e.low or 0.0))) ** 2 for e in known)) / n
    above = math.sqrt(sum((e.n * ((e.high or 0.0) - (e.value or 0.0))) ** 2 for e in known)) / n
    return Estimate(value, value - below, value + above, n)


# -- impact


def _impact(review: Review, window: OutcomeWindow) -> tuple[str, Finding | None, dict[str, float]]:
    """Money per answer: less than in the windows before, or than one decision for all would bring."""
    cause = f"{AlertClass.IMPACT}:{window.name}:{window.arm}"
    value = review.value
    group = None if value is None else next((g for g in value.windows if window.is_it(g.key)), None)
    if value is None or group is None or group.n_known < LEAST_LABELS:
        return cause, None, {}
    now = group.per_prediction
    earlier = [g.per_prediction for g in value.windows if window.is_before(g.key)]
    before = pooled(earlier)
    unit = f" {value.unit}" if value.unit else ""
    limits: dict[str, float] = {}
    shown: list[tuple[float, float, str, str]] = []  # loss, limit, figure, sentence
    fall = _worse(now, before, more_is_better=True) if len(earlier) >= LEAST_WINDOWS else None
    if fall is not None:
        limits["value_per_prediction"] = fall[1]
        shown.append((*fall, "value_per_prediction", f"{_n(before)}{unit} in the windows before"))
    for name, constant in (("always_positive", group.always_positive), ("always_negative", group.always_negative)):
        gap = None if constant is None else _worse(now, constant, more_is_better=True)
        if gap is not None and constant is not None:
            limits[name] = gap[1]
            decision = name.removeprefix("always_")
            shown.append((*gap, name, f"{_n(constant)}{unit} had every decision been {decision}"))
    bad = sorted((each for each in shown if each[0] >= each[1]), key=lambda each: each[1] - each[0])
    if not bad:
        return cause, None, limits
    loss, limit, name, sentence = bad[0]
    message = f"An answer of {window.name} was worth {_n(now)}{unit}; {sentence}. {group.n_known:,} outcomes are known."
    features = tuple(TopFeature(n, size, text) for size, _, n, text in bad)
    return (
        cause,
        _finding(
            window,
            AlertClass.IMPACT,
            cause,
            "value",
            group.n_known,
            (loss, limit, f"loss{unit} per answer"),
            features,
            message,
        ),
        limits,
    )


# -- concept


def _concept(
    review: Review, window: OutcomeWindow, new_changes: Sequence[TopFeature]
) -> tuple[str, Finding | None, dict[str, float]]:
    """Estimates that did not come true, figures that got worse, and changes in the stream of errors.

    Sizes are in units of what would be one, so that they can be compared.
    """
    cause = f"{AlertClass.CONCEPT}:{window.name}:{window.arm}"
    group = next((g for g in review.performance.windows if window.is_it(g.key)), None)
    if group is None or group.counts.n_used < LEAST_LABELS:
        return cause, None, {}
    shown: list[tuple[float, str, str]] = []
    estimated = next((e for e in (review.estimates.windows if review.estimates else ()) if window.is_it(e.key)), None)
    if estimated is not None and estimated.realized is not None:
        for name in _AUDITED:
            size = _missed(estimated.estimated.get(name), estimated.realized.get(name))
            if size is not None:
                said, came = estimated.estimated[name], estimated.realized[name]
                shown.append((size, name, f"{name} is {_n(came)}, its estimate before labels was {_n(said)}"))
    for name, more_is_better in _FIGURES[review.performance.task]:
        earlier = [g.metrics[name] for g in review.performance.windows if window.is_before(g.key) and name in g.metrics]
        worse = None
        if len(earlier) >= LEAST_WINDOWS and name in group.metrics:
            worse = _worse(group.metrics[name], pooled(earlier), more_is_better=more_is_better)
        if worse is not None:
            sentence = f"{name} is {_n(group.metrics[name])}, {_n(pooled(earlier))} in the windows before"
            shown.append((worse[0] / worse[1], name, sentence))
    limits = {"": 1.0, **{name: 1.0 for _, name, _ in shown}}
    bad = sorted((each for each in shown if each[0] >= 1), reverse=True)
    features = (*(TopFeature(name, size, text) for size, name, text in bad), *new_changes)
    if not features:
        return cause, None, limits
    first = features[0]
    message = (
        f"What scores of {window.name} mean has changed: {first.reason}. {group.counts.n_used:,} labels are known."
    )
    sizes = (max(1.0, first.effect), 1.0, "size in units of what is beyond chance")
    return (
        cause,
        _finding(window, AlertClass.CONCEPT, cause, "errors", group.counts.n_used, sizes, features, message),
        limits,
    )


def changes_of(status: ConceptStatus, since_us: int) -> list[TopFeature]:
    """Trusted changes in a stream of errors from a time on, as what shows a finding."""
    found = []
    for alarm in status.changes(since_us):
        means = "" if alarm.before is None or alarm.after is None else f", from {alarm.before:.3g} to {alarm.after:.3g}"
        when = datetime.fromtimestamp(alarm.time_us / 1e6, tz=UTC).strftime("%Y-%m-%d %H:%M")
        text = f"{alarm.detector} found a change of {alarm.stream} at {when} UTC{means}"
        found.append(TopFeature(f"{alarm.stream} {alarm.detector}", 1.0, text))
    return found


# -- helpers


def _worse(now: Estimate, before: Estimate, *, more_is_better: bool) -> tuple[float, float] | None:
    """By how much a figure is worse, and from where on that is beyond chance and matters; None where it is not known."""
    if now.value is None or before.value is None:
        return None
    ends = (now.high, before.low) if more_is_better else (now.low, before.high)
    if ends[0] is None or ends[1] is None:
        return None
    sign = 1 if more_is_better else -1
    loss = sign * (before.value - now.value)
    chance = abs(ends[0] - now.value) + abs(before.value - ends[1])
    return loss, max(chance, LEAST_PART * abs(before.value), 1e-12)


def _missed(said: Estimate | None, came: Estimate | None) -> float | None:
    """How far a realized figure lies from its estimate, in half widths of the estimate's interval on that side."""
    if said is None or came is None or came.value is None or said.value is None:
        return None
    end = said.high if came.value > said.value else said.low
    if end is None:
        return None
    # A hundredth is not alarming, however certain it is.
    return abs(came.value - said.value) / max(abs(end - said.value), 0.01)


def _finding(
    window: OutcomeWindow,
    alert_class: AlertClass,
    cause: str,
    subject: str,
    n: int,
    sizes: tuple[float, float, str],
    features: tuple[TopFeature, ...],
    message: str,
) -> Finding:
    return Finding(
        cause=cause,
        alert_class=alert_class,
        model=window.model,
        version=window.version,
        subject=subject,
        begin_us=window.begin_us,
        end_us=window.begin_us + window.length_us,
        n=n,
        effect=sizes[0],
        effect_name=sizes[2],
        threshold=sizes[1],
        features=features,
        message=message,
        command=window.command,
    )


def _n(estimate: Estimate) -> str:
    return "unknown" if estimate.value is None else f"{estimate.value:.4g}"
