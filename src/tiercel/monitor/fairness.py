"""Whom a model decides for and against, by segment: selection rates, error rates, and how far each group is from the others.

A decision is positive where the score is at or above the declared threshold. Selection rates are of every prediction that
the model answered, labelled or not; error rates are of those with a label in time, as `tiercel.monitor.performance` judges
them. Each group is set beside all others of its segment: its rate, the difference with Newcombe's interval for independent
proportions (Newcombe 1998, method 10) at a confidence that allows for as many comparisons as there are, and the ratio of its
selection rate to the highest one, which the four-fifths rule of thumb looks at. None of this says why groups differ.

A handful of decisions says next to nothing of a group, and a ratio has no interval that would show it. So a rate of fewer
than `MIN_DECISIONS` is shown with its wide interval and compared with nothing: no gap, no ratio, and no ratio of others to it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from tiercel.monitor.cohorts import OTHER, Cohort, GroupKey, Outcomes
from tiercel.monitor.intervals import CONFIDENCE, Estimate, proportion
from tiercel.types import Task

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import duckdb

    from tiercel.settings import ValueSettings

#: Rates by name, as they are shown: what of what.
RATES: Final = {
    "selection_rate": "positive decisions",
    "true_positive_rate": "positive decisions of positive labels",
    "false_positive_rate": "positive decisions of negative labels",
    "precision": "positive labels of positive decisions",
}
#: A selection rate below so much of the highest one is what the four-fifths rule asks about.
FOUR_FIFTHS: Final = 0.8
#: What a rate must be of at the least to be compared. At 30 Wilson's interval of a share of a half is still 0.34 wide. The
#: Uniform Guidelines that the four-fifths rule is from (29 CFR 1607.4 D) give no number; they say that differences "based on
#: small numbers" may be no adverse impact.
MIN_DECISIONS: Final = 30
#: Groups too small for that which a note names; the rest are counted.
_MOST_NAMED: Final = 10


@dataclass(frozen=True)
class Tally:
    """What became of a group's decisions.

    Attributes:
        n_scored: predictions that the model answered with a sound score.
        n_selected: of them, decided positively.
        n_positive, n_negative: labelled ones by their label.
        n_true, n_false: of these, decided positively.
    """

    n_scored: int = 0
    n_selected: int = 0
    n_positive: int = 0
    n_negative: int = 0
    n_true: int = 0
    n_false: int = 0

    def __sub__(self, other: Tally) -> Tally:
        return Tally(*(a - b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def hits(self, rate: str) -> tuple[int, int]:
        """What a rate is of: hits, and how many could have been."""
        return {
            "selection_rate": (self.n_selected, self.n_scored),
            "true_positive_rate": (self.n_true, self.n_positive),
            "false_positive_rate": (self.n_false, self.n_negative),
            "precision": (self.n_true, self.n_true + self.n_false),
        }[rate]


@dataclass(frozen=True)
class GroupFairness:
    """One group's rates.

    Attributes:
        key: a version, an arm, a segment and its value.
        tally: the counts.
        rates: name of `RATES` -> the group's rate.
        gaps: name -> the rate less that of all others of the segment, with an interval; missing where either is of fewer than
            `MIN_DECISIONS`.
        ratio: its selection rate by the highest of the segment's groups that are not small; None where that is not defined.
    """

    key: GroupKey
    tally: Tally
    rates: dict[str, Estimate]
    gaps: dict[str, Estimate]
    ratio: float | None

    @property
    def is_small(self) -> bool:
        """It has too few decisions to be compared with others."""
        return self.tally.n_scored < MIN_DECISIONS

    @property
    def differs(self) -> tuple[str, ...]:
        """Rates that differ from the others' beyond chance."""
        return tuple(name for name, gap in self.gaps.items() if gap.value is not None and not gap.covers(0.0))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            **self.key.to_json(),
            "counts": vars(self.tally),
            "rates": {name: each.to_json() for name, each in self.rates.items()},
            "gaps": {name: each.to_json() for name, each in self.gaps.items()},
            "ratio": self.ratio,
            "is_small": self.is_small,
            "differs": list(self.differs),
        }


@dataclass(frozen=True)
class FairnessReport:
    """Groups of all segments.

    Attributes:
        model: registered name.
        threshold: of decisions.
        groups: by segment and value; the champion first.
        confidence: of the rates' intervals, and of all gaps of one rate in a segment together.
        notes: what a reader must know, in sentences.
    """

    model: str
    threshold: float
    groups: tuple[GroupFairness, ...]
    confidence: float
    notes: tuple[str, ...]

    def of(self, version: int, arm: str = "champion") -> tuple[GroupFairness, ...]:
        """The groups of a version in an arm."""
        return tuple(each for each in self.groups if (each.key.version, each.key.arm) == (version, arm))

    @property
    def of_any_arm(self) -> tuple[GroupFairness, ...]:
        """All groups but those of shadows, which decide nothing."""
        return tuple(each for each in self.groups if each.key.arm != "shadow")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "model": self.model,
            "threshold": self.threshold,
            "confidence": self.confidence,
            "min_decisions": MIN_DECISIONS,
            "groups": [each.to_json() for each in self.groups],
            "notes": list(self.notes),
        }


def fairness_report(
    connection: duckdb.DuckDBPyConnection,
    model: str,
    task: Task,
    cohort: Cohort,
    settings: ValueSettings,
    *,
    as_of_us: int,
    version: int | None = None,
    confidence: float = CONFIDENCE,
) -> FairnessReport:
    """Count and compare.

    Args:
        connection: with the relation `outcomes`.
        model: its name.
        task: what it predicts; only binary models decide.
        cohort: which predictions' labels count, see `tiercel.monitor.performance.choose_cohort`.
        settings: the threshold and segments of `[models.NAME.value]`.
        as_of_us: what came later is not looked at.
        version: only this one.
        confidence: of the intervals.

    Raises:
        OutcomesError: `outcomes` cannot be read.
        DefinitionError: a segment is not SQL over it.
    """
    notes = []
    if task is not Task.BINARY:
        notes.append(f"A {task.value} model makes no yes-or-no decisions: there are no selection rates.")
    elif not settings.segments:
        notes.append(f"No segments are declared. Name them in [models.{model}.value.segments] of tiercel.toml.")
    if notes:
        return FairnessReport(model, settings.threshold, (), confidence, tuple(notes))
    outcomes = Outcomes(connection, model, task, as_of_us, version=version, segments=settings.segments)
    tallies = _tallies(outcomes, replace(cohort, window_us=None), settings.threshold)
    if not any(tally.n_positive + tally.n_negative for tally in tallies.values()):
        notes.append("No labels that count have come: there are no error rates yet.")
    segments: dict[tuple[int, str, str], list[GroupKey]] = {}
    for key in tallies:
        if key.segment is not None:
            segments.setdefault((key.version, key.arm, key.segment), []).append(key)
    groups = []
    for (number, arm, _), keys in segments.items():
        whole = tallies[GroupKey(number, arm)]
        large = [tallies[key] for key in keys if tallies[key].n_scored >= MIN_DECISIONS]
        highest = max((each.n_selected / each.n_scored for each in large), default=0.0)
        groups += [_group(key, tallies[key], whole, highest, len(keys), confidence) for key in keys]
    if any(each.key.value == OTHER for each in groups):
        notes.append("Rare values of a segment are one group.")
    groups.sort(key=lambda each: each.key.order)
    notes += _small(groups)
    return FairnessReport(model, settings.threshold, tuple(groups), confidence, tuple(notes))


def difference(first: Estimate, second: Estimate) -> Estimate:
    """The difference of two independent shares, each with Wilson's interval: Newcombe's hybrid interval."""
    ends = [(each.value, each.low, each.high) for each in (first, second)]
    for each in (first, second):
        if each.value is None or each.low is None or each.high is None:
            return Estimate.missing(each.reason or "no interval", each.n)
    (p, low, high), (q, other_low, other_high) = (tuple(end or 0.0 for end in each) for each in ends)
    below, above = math.hypot(p - low, other_high - q), math.hypot(high - p, q - other_low)
    return Estimate(p - q, max(-1.0, p - q - below), min(1.0, p - q + above), min(first.n, second.n))


def _group(
    key: GroupKey, tally: Tally, whole: Tally, highest: float, n_groups: int, confidence: float
) -> GroupFairness:
    others = whole - tally
    strict = 1 - (1 - confidence) / max(1, n_groups)  # Bonferroni's, over the segment's groups, for each rate
    rates, gaps = {}, {}
    for name, what in RATES.items():
        nothing = f"no {what.rpartition(' of ')[2]}" if " of " in what else "no predictions"
        rates[name] = proportion(*tally.hits(name), confidence=confidence, nothing=nothing)
        sides = [
            _comparable(proportion(*each.hits(name), confidence=strict, nothing=f"{nothing}{where}"), what, where)
            for each, where in ((tally, ""), (others, " of others"))
        ]
        gaps[name] = difference(*sides)
    selected = rates["selection_rate"].value
    ratio = None if selected is None or tally.n_scored < MIN_DECISIONS or highest <= 0 else selected / highest
    return GroupFairness(key, tally, rates, gaps, ratio)


def _comparable(rate: Estimate, what: str, where: str) -> Estimate:
    """The rate, or that it is of too few."""
    if not 0 < rate.n < MIN_DECISIONS:
        return rate
    counted = what.rpartition(" of ")[2] if " of " in what else "predictions"
    return Estimate.missing(f"{rate.n} {counted}{where}: fewer than {MIN_DECISIONS} are not compared", rate.n)


def _small(groups: Sequence[GroupFairness]) -> list[str]:
    """The note that names the groups that were too small, if any was."""
    small = [each for each in groups if each.is_small]
    if not small:
        return []
    named = [
        f"{each.key.segment} = {each.key.value} ({each.tally.n_scored} of version {each.key.version}"
        + (")" if each.key.arm == "champion" else f", {each.key.arm})")
        for each in small[:_MOST_NAMED]
    ]
    rest = f" and {len(small) - len(named)} more" if len(small) > len(named) else ""
    return [f"Groups of fewer than {MIN_DECISIONS} decisions are not compared: {', '.join(named)}{rest}."]


def _tallies(outcomes: Outcomes, cohort: Cohort, threshold: float) -> Mapping[GroupKey, Tally]:
    """The counts of all groups, and of each version and arm in all."""
    codes = outcomes.codes(cohort)
    sets = ", ".join(["(version, role)", *(f"(version, role, {name})" for name in codes.names)])
    scored, selected = "NOT is_out AND good_score", f"score >= {float(threshold)!r}"
    labelled = f"{scored} AND in_cohort AND in_time AND good_label"
    query = f"""
        SELECT version, role, {", ".join(codes.names)},
               count(*) FILTER ({scored}), count(*) FILTER ({scored} AND {selected}),
               count(*) FILTER ({labelled} AND y = 1), count(*) FILTER ({labelled} AND y = 0),
               count(*) FILTER ({labelled} AND y = 1 AND {selected}), count(*) FILTER ({labelled} AND y = 0 AND {selected})
        FROM ({outcomes.judged(cohort, codes)}) GROUP BY GROUPING SETS ({sets})
    """  # noqa: S608 - numbers and names of this module's own
    n = len(codes.names)
    return {
        codes.key(int(version), int(role), rest[:n]): Tally(*map(int, rest[n:]))
        for version, role, *rest in outcomes.run(query, codes.parameters)
    }
