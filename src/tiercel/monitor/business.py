"""What a model's answers were worth: money per window, arm and segment, from a cost matrix or from values that came with labels.

All answers count that were sent, a fallback's and a default's too, for they were acted on; shadows were not. A label says
what an answer was worth only once it is there, so money of rows without one is projected: by the mean of labelled rows with
the same decision, because whether a label comes often depends on the decision (whoever is refused never defaults).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tiercel.errors import DefinitionError
from tiercel.monitor.cohorts import Cohort, GroupKey, Outcomes
from tiercel.monitor.intervals import CONFIDENCE, Estimate, Moments, difference, mean, proportion
from tiercel.types import Task

if TYPE_CHECKING:
    import duckdb

    from tiercel.settings import ValueSettings

#: Draws for the interval of a matrix' mean; from a fixed seed, so that the same counts give the same interval.
_DRAWS: Final = 5_000
_SEED: Final = 20_260_101


@dataclass(frozen=True)
class Decided:
    """Rows of one decision: how many there are, and what those with a known outcome were worth.

    Attributes:
        is_positive: the decision; None where a column says the value and decisions do not matter.
        n: rows of the cohort.
        outcomes: rows per distinct value, of a cost matrix: ((value when the label is 1, rows), (when it is 0, rows)).
        moments: of the known values.
    """

    is_positive: bool | None
    n: int
    outcomes: tuple[tuple[float, int], ...]
    moments: Moments


@dataclass(frozen=True)
class GroupValue:
    """What a group's answers were worth.

    Attributes:
        n_cohort: answers that were sent and are old enough.
        n_known: of those, with a known outcome.
        realized: the sum over known outcomes; a fact, without an interval.
        per_prediction: the mean over the whole cohort, projected by decision, with its interval.
        total: `per_prediction` times `n_cohort`.
        always_positive, always_negative: the mean had every decision been the same; None without a cost matrix. A model
            that is worth less than the better of the two is worth nothing.
    """

    key: GroupKey
    n_cohort: int
    n_known: int
    coverage: Estimate
    realized: float
    per_prediction: Estimate
    total: Estimate
    always_positive: Estimate | None = None
    always_negative: Estimate | None = None
    moments: Moments = field(default_factory=lambda: Moments(0, 0.0, 0.0, 0.0), repr=False)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        constant = {"always_positive": self.always_positive, "always_negative": self.always_negative}
        return {
            **self.key.to_json(),
            "n_cohort": self.n_cohort,
            "n_known": self.n_known,
            "coverage": self.coverage.to_json(),
            "realized": self.realized if math.isfinite(self.realized) else None,
            "per_prediction": self.per_prediction.to_json(),
            "total": self.total.to_json(),
            **{name: each.to_json() for name, each in constant.items() if each is not None},
        }


@dataclass(frozen=True)
class ArmComparison:
    """What an answer of the challenger was worth more than one of the champion: a difference of means, with its interval."""

    challenger: GroupKey
    champion: GroupKey
    per_prediction: Estimate

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "challenger": self.challenger.to_json(),
            "champion": self.champion.to_json(),
            "per_prediction": self.per_prediction.to_json(),
        }


@dataclass(frozen=True)
class ValueReport:
    """A model's money as it was known at a moment; groups as in a `PerformanceReport`."""

    model: str
    unit: str
    groups: list[GroupValue]
    windows: list[GroupValue]
    segments: list[GroupValue]
    comparisons: list[ArmComparison]
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "model": self.model,
            "unit": self.unit,
            "groups": [each.to_json() for each in self.groups],
            "windows": [each.to_json() for each in self.windows],
            "segments": [each.to_json() for each in self.segments],
            "comparisons": [each.to_json() for each in self.comparisons],
            "notes": self.notes,
        }


def value_report(
    connection: duckdb.DuckDBPyConnection,
    model: str,
    task: Task,
    cohort: Cohort,
    settings: ValueSettings,
    *,
    as_of_us: int,
    version: int | None = None,
    confidence: float = CONFIDENCE,
) -> ValueReport | None:
    """Count a model's money.

    Args:
        connection: with the relation `outcomes`.
        model: its name.
        task: what it predicts; a cost matrix needs decisions, and so a binary model.
        cohort: which answers, known by when.
        settings: `[models.NAME.value]`.
        as_of_us: what came later is not looked at.
        version: only this one.
        confidence: of the intervals.

    Returns:
        None when the settings say nothing of value.

    Raises:
        DefinitionError: a matrix for a model without decisions, or a column that is not there or holds no numbers.
        OutcomesError: `outcomes` cannot be read.
    """
    is_matrix = settings.true_positive is not None
    if not is_matrix and settings.column is None:
        return None
    if is_matrix and task is not Task.BINARY:
        raise DefinitionError(
            f"models.{model}.value: a cost matrix is for a binary model's decisions, '{model}' is a {task.value} model. "
            f'Send the value with feedback and set column = "value"'
        )
    outcomes = Outcomes(
        connection, model, task, as_of_us, version=version, with_degraded=True, segments=settings.segments
    )
    if is_matrix:
        decided = _by_matrix(outcomes, cohort, settings)
    else:
        decided = _by_column(outcomes, cohort, str(settings.column))
    groups = [
        _group(key, parts, settings, confidence) for key, parts in sorted(decided.items(), key=lambda i: i[0].order)
    ]
    whole = [g for g in groups if g.key.is_whole]
    return ValueReport(
        model,
        settings.unit,
        whole,
        [g for g in groups if g.key.begin_us is not None],
        [g for g in groups if g.key.segment is not None],
        _comparisons(whole, confidence),
        _notes(whole, decided),
    )


def _by_matrix(outcomes: Outcomes, cohort: Cohort, settings: ValueSettings) -> dict[GroupKey, list[Decided]]:
    """Rows per decision and label, counted by the database."""
    codes = outcomes.codes(cohort)
    known = "in_time AND good_label"
    sets = ", ".join(["(version, role, decided)", *(f"(version, role, decided, {name})" for name in codes.names)])
    query = f"""
        SELECT version, role, {"".join(f"{name}, " for name in codes.names)} decided,
               count(*), count(*) FILTER ({known} AND y = 1), count(*) FILTER ({known} AND y = 0)
        FROM (SELECT *, score >= {float(settings.threshold)!r} AS decided FROM ({outcomes.judged(cohort, codes)}))
        WHERE in_cohort AND good_score AND role <> 2
        GROUP BY GROUPING SETS ({sets})
    """
    found: dict[GroupKey, list[Decided]] = {}
    for version, role, *rest in outcomes.run(query, codes.parameters):
        *places, decided, n, n_positive, n_negative = rest
        values = matrix_values(settings, is_positive=bool(decided))
        counts = ((values[0], int(n_positive)), (values[1], int(n_negative)))
        part = Decided(bool(decided), int(n), counts, _moments_of_counts(counts))
        found.setdefault(codes.key(int(version), int(role), places), []).append(part)
    return found


def _by_column(outcomes: Outcomes, cohort: Cohort, column: str) -> dict[GroupKey, list[Decided]]:
    """Moments of a column's values, of rows whose label came in time (or that have a value and no label)."""
    if not outcomes.has_column(column):
        raise DefinitionError(
            f"models.{outcomes.model}.value.column: expected a column of 'outcomes', got '{column}'. "
            f'The value that feedback brings is "value"'
        )
    codes = outcomes.codes(cohort)
    quoted = '"' + column.replace('"', '""') + '"'
    query = f"""
        SELECT CAST(__version AS BIGINT) AS version, __role AS role, __money AS money
               {"".join(f", __{name} AS {name}" for name in codes.names)}
        FROM (SELECT *, CASE WHEN __in_time THEN TRY_CAST({quoted} AS DOUBLE) END AS __money
              FROM ({outcomes.whole_rows(cohort, codes)})) WHERE __role <> 2
    """
    arrays = outcomes.columns(query, codes.parameters)
    money = np.ma.filled(np.ma.asarray(arrays["money"], dtype=np.float64), np.nan)
    found: dict[GroupKey, list[Decided]] = {}
    for key, members in codes.members(arrays).items():
        values = money[members]
        found[key] = [Decided(None, len(members), (), Moments.of(values[np.isfinite(values)]))]
    return found


def _group(key: GroupKey, parts: list[Decided], settings: ValueSettings, confidence: float) -> GroupValue:
    n = sum(part.n for part in parts)
    n_known = sum(part.moments.n for part in parts)
    moments = sum((part.moments for part in parts[1:]), parts[0].moments)
    per_prediction = _projected(parts, confidence)
    constants: dict[str, Estimate] = {}
    if settings.true_positive is not None:
        for name, is_positive in (("always_positive", True), ("always_negative", False)):
            values = matrix_values(settings, is_positive=is_positive)
            swapped = [
                Decided(
                    part.is_positive,
                    part.n,
                    tuple((v, k) for v, (_, k) in zip(values, part.outcomes, strict=True)),
                    part.moments,
                )
                for part in parts
            ]
            constants[name] = _projected(swapped, confidence)
    return GroupValue(
        key,
        n,
        n_known,
        proportion(n_known, n, confidence=confidence, nothing="no prediction is old enough"),
        moments.mean * moments.n,
        per_prediction,
        per_prediction.through(lambda value: value * n),
        constants.get("always_positive"),
        constants.get("always_negative"),
        moments,
    )


def _projected(parts: list[Decided], confidence: float) -> Estimate:
    """The mean over all rows: each decision's mean of known outcomes, by the decision's share of rows."""
    n, n_known = sum(part.n for part in parts), sum(part.moments.n for part in parts)
    if not n_known:
        return Estimate.missing("no outcome is known yet")
    for part in parts:
        if part.n and not part.moments.n:
            name = "positive" if part.is_positive else "negative"
            return Estimate.missing(f"no outcome of a {name} decision is known, so nothing can be said of all", n_known)
    if parts[0].is_positive is None:
        return mean(parts[0].moments, confidence=confidence)
    value = 0.0
    draws = np.zeros(_DRAWS)
    # Jeffreys' posterior of each decision's hit rate. It has a width where the costly outcome has not been seen yet, which
    # a variance of what was seen has not; that it covers is tested by simulation.
    rng = np.random.default_rng(_SEED)
    for part in sorted(parts, key=lambda part: bool(part.is_positive)):
        (yes, n_yes), (no, n_no) = part.outcomes
        share = part.n / n
        value += share * (yes * n_yes + no * n_no) / (n_yes + n_no)
        rates = rng.beta(n_yes + 0.5, n_no + 0.5, _DRAWS)
        draws += share * (rates * yes + (1 - rates) * no)
    # How often which decision is made is part of what varies from one stretch of traffic to the next.
    if len(parts) > 1:
        means = [
            (yes * n_yes + no * n_no) / (n_yes + n_no) for part in parts for (yes, n_yes), (no, n_no) in [part.outcomes]
        ]
        shares = [part.n / n for part in parts]
        between = math.sqrt(shares[0] * shares[1] / n) * abs(means[0] - means[1])
        draws += between * rng.standard_normal(_DRAWS)
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(value, min(value, float(low)), max(value, float(high)), n_known)


def _comparisons(groups: list[GroupValue], confidence: float) -> list[ArmComparison]:
    """Each challenger against the champion that most answers came from."""
    champions = [g for g in groups if g.key.arm == "champion" and g.moments.n]
    if not champions:
        return []
    champion = max(champions, key=lambda g: g.n_cohort)
    return [
        ArmComparison(g.key, champion.key, _gap(g, champion, confidence)) for g in groups if g.key.arm == "challenger"
    ]


def _gap(one: GroupValue, other: GroupValue, confidence: float) -> Estimate:
    """Difference of projected means: each with half its interval for a deviation, or Welch's where values are a column's."""
    if one.always_positive is None:
        return difference(one.moments, other.moments, confidence=confidence)
    a, b = one.per_prediction, other.per_prediction
    if a.value is None or b.value is None:
        return Estimate.missing(a.reason or b.reason, a.n + b.n)
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return Estimate(a.value - b.value, n=a.n + b.n)
    # Zou and Donner 2008 (MOVER): the ends of a difference from the ends of both intervals, lopsided ones too.
    gap = a.value - b.value
    below = math.hypot(a.value - a.low, b.high - b.value)
    above = math.hypot(a.high - a.value, b.value - b.low)
    return Estimate(gap, gap - below, gap + above, a.n + b.n)


def matrix_values(settings: ValueSettings, *, is_positive: bool) -> tuple[float, float]:
    """What a decision is worth when the label is 1, and when it is 0."""
    cells = (
        (settings.true_positive, settings.false_positive)
        if is_positive
        else (settings.false_negative, settings.true_negative)
    )
    return float(cells[0] or 0.0), float(cells[1] or 0.0)


def _moments_of_counts(counts: tuple[tuple[float, int], ...]) -> Moments:
    parts = [Moments(n, value, 0.0, 0.0) for value, n in counts]
    return sum(parts[1:], parts[0])


def _notes(groups: list[GroupValue], decided: dict[GroupKey, list[Decided]]) -> list[str]:
    notes = []
    for group in groups:
        parts = {part.is_positive: part for part in decided[group.key]}
        yes, no = parts.get(True), parts.get(False)
        if yes and no and min(yes.n, no.n) >= 20:
            a, b = yes.moments.n / yes.n, no.moments.n / no.n
            if abs(a - b) > 0.1:
                notes.append(
                    f"Version {group.key.version} ({group.key.arm}): {a:.0%} of positive and {b:.0%} of negative decisions have "
                    f"a known outcome. Money is projected decision by decision."
                )
    return notes
