"""How good predictions probably are before their labels come, and how well that was guessed before.

From calibrated probabilities the expected confusion of scores and labels follows, and from it every figure (confidence-based
performance estimation, CBPE; Garg et al. 2022 discuss when such estimates hold). It follows a change of the inputs as long
as a score still means what it meant; a change of that is what it cannot see. Hence the audit: once labels come, each
estimate stands beside what was realized, and where they disagree the relation has changed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tiercel.errors import CalibrationError
from tiercel.monitor.business import matrix_values
from tiercel.monitor.calibration import Calibration
from tiercel.monitor.classification import binary_metrics
from tiercel.monitor.cohorts import ARMS, Cohort, GroupKey, Outcomes
from tiercel.monitor.intervals import CONFIDENCE, Estimate, mean
from tiercel.monitor.score_bins import ScoreBins
from tiercel.settings import ValueSettings
from tiercel.types import Task

if TYPE_CHECKING:
    import duckdb
    from numpy.typing import NDArray

    from tiercel.monitor.cohorts import ScoredRows

#: What can be estimated; the calibration error cannot, its estimate would be noise.
ESTIMATED_METRICS: Final = (
    "auc", "log_loss", "brier", "calibration_gap", "base_rate", "accuracy", "precision", "recall", "f1",
)  # fmt: skip
#: Name of the money per answer among the figures, where a cost matrix is set.
VALUE: Final = "value_per_prediction"
#: Rows to calibrate on: the newest that are old enough.
MAX_REFERENCE_ROWS: Final = 100_000
#: Windows to audit, the newest.
MAX_AUDITED: Final = 30
_DRAWS: Final = 300
_BINS: Final = 200
_SEED: Final = 20_260_101
#: Why a figure is not defined, of whatever labels.
_REASONS: Final = {
    "precision": "no score at or above the threshold", "auc": "no pair of different labels is possible",
    "recall": "no positive label is possible", "f1": "no positive label is possible",
}  # fmt: skip


@dataclass(frozen=True)
class WindowEstimate:
    """A window's estimate, and what became of it.

    Attributes:
        key: version, arm and window.
        n: rows the estimate is of: with a label where it is audited, otherwise all.
        n_reference: labelled rows its calibration was learned from; none of them is of this window or later.
        method: of the calibration.
        estimated: a figure per name; the interval is of what will be realized.
        realized: likewise, once the window is old enough; None before.
        reason: why there is no estimate.
    """

    key: GroupKey
    n: int
    n_reference: int
    method: str
    estimated: dict[str, Estimate]
    realized: dict[str, Estimate] | None
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        realized = None if self.realized is None else {name: each.to_json() for name, each in self.realized.items()}
        return {
            **self.key.to_json(),
            "n": self.n,
            "n_reference": self.n_reference,
            "calibration": self.method,
            "estimated": {name: each.to_json() for name, each in self.estimated.items()},
            "realized": realized,
            **({"reason": self.reason} if self.reason else {}),
        }


@dataclass(frozen=True)
class Audit:
    """How estimates of one figure compared with what was realized.

    Attributes:
        n_windows: compared.
        mean_gap: realized less estimated, on average.
        mean_abs_gap: how far apart they were, on average.
        n_inside: windows in which the realized figure lay in the estimate's interval.
        holds: whether no fewer lay inside than chance explains (at 1 in 100), so that estimates can be relied on.
    """

    version: int
    arm: str
    metric: str
    n_windows: int
    mean_gap: float
    mean_abs_gap: float
    n_inside: int
    holds: bool

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dict(vars(self))


@dataclass(frozen=True)
class EstimationReport:
    """Estimates per version, arm and window in order of time, and their audit."""

    model: str
    windows: list[WindowEstimate]
    audits: list[Audit]
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "model": self.model,
            "windows": [each.to_json() for each in self.windows],
            "audits": [each.to_json() for each in self.audits],
            "notes": self.notes,
        }


def estimate_metrics(
    calibration: Calibration,
    scores: NDArray[np.float64],
    *,
    threshold: float = 0.5,
    settings: ValueSettings | None = None,
    coverage: float = 1.0,
    confidence: float = CONFIDENCE,
) -> dict[str, Estimate]:
    """The figures of scores whose labels are not known.

    Args:
        calibration: what the scores mean.
        scores: finite, float64 (n,).
        threshold: of decisions.
        settings: with a cost matrix, money per answer is estimated too.
        coverage: share of rows whose label will come; the fewer, the less certain what they will show.
        confidence: that the realized figure will be within the interval: labels are random even where probabilities are
            known, and the calibration was learned from a sample.

    Returns:
        A figure per name of `ESTIMATED_METRICS` (and `VALUE`); what is not defined has a reason.
    """
    names = (*ESTIMATED_METRICS, *((VALUE,) if _has_matrix(settings) else ()))
    n = len(scores)
    if not n:
        return {name: Estimate.missing("no rows") for name in names}
    exact = ScoreBins.of(scores)
    point = exact.figures(calibration.apply(exact.scores)[None], threshold, settings)
    coarse = exact.merged(_BINS, threshold)
    rng = np.random.default_rng(_SEED)
    rates = np.concatenate([calibration.apply(coarse.scores)[None], calibration.variants(coarse.scores, _DRAWS, rng)])
    seen = np.maximum(1, np.rint(coarse.rows * min(1.0, max(coverage, 0.0)))).astype(np.int64)
    hits = rng.binomial(seen, rates[1:]) / seen
    # The coarse figure of the point stands for what binning costs; only the spread around it is used.
    around = coarse.figures(np.concatenate([rates[:1], hits]), threshold, settings)
    found = {}
    for name in names:
        value = float(point[name][0])
        if not math.isfinite(value):
            found[name] = Estimate.missing(_REASONS.get(name, "scores outside of 0 to 1"), n)
            continue
        spread = around[name][1:] - around[name][0]
        spread = spread[np.isfinite(spread)]
        if len(spread) < _DRAWS / 2:
            found[name] = Estimate(value, n=n, reason="too few positive labels are expected")
            continue
        low, high = np.quantile(spread, [(1 - confidence) / 2, (1 + confidence) / 2])
        bounded = Estimate(value, value + min(0.0, float(low)), value + max(0.0, float(high)), n)
        found[name] = bounded if name in {"calibration_gap", VALUE, "log_loss"} else bounded.within(0, 1)
    return found


def estimation_report(
    connection: duckdb.DuckDBPyConnection,
    model: str,
    task: Task,
    cohort: Cohort,
    *,
    as_of_us: int,
    version: int | None = None,
    settings: ValueSettings | None = None,
    coverage: float = 1.0,
    confidence: float = CONFIDENCE,
) -> EstimationReport:
    """Estimate every window of a model, and audit those whose labels have come.

    Each window's calibration knows only labels of predictions that were old enough when the window began: what is audited is
    what would have been said then.

    Args:
        connection: with the relation `outcomes`.
        model: its name.
        task: what it predicts; only binary models can be estimated.
        cohort: with a `window_us`, and the maturity of labels.
        as_of_us: what came later is not looked at.
        version: only this one.
        settings: threshold and cost matrix.
        coverage: share of predictions that get a label in the end.
        confidence: of the intervals.

    Raises:
        OutcomesError: `outcomes` cannot be read, or there would be too many windows.
    """
    settings = ValueSettings() if settings is None else settings
    if task is not Task.BINARY:
        return EstimationReport(
            model, [], [], [f"Estimates before labels are for binary models; '{model}' is a {task.value} one."]
        )
    if cohort.window_us is None:
        raise ValueError("Expected a cohort with windows")
    outcomes = Outcomes(connection, model, task, as_of_us, version=version)
    outcomes.codes(cohort)  # says when there would be too many windows
    # Rows to calibrate on may be older than the windows that are looked at.
    rows = outcomes.scored(Cohort(cohort.maturity_us, None, cohort.end_us))
    windows = []
    for version_found in np.unique(rows.versions).tolist():
        windows += _windows(rows, version_found, cohort, as_of_us, settings, coverage, confidence)
    windows.sort(key=lambda each: each.key.order)
    audits = _audits(windows, confidence)
    return EstimationReport(model, windows, audits, _notes(windows, audits))


def _windows(
    rows: ScoredRows,
    version: int,
    cohort: Cohort,
    as_of_us: int,
    settings: ValueSettings,
    coverage: float,
    confidence: float,
) -> list[WindowEstimate]:
    """A version's windows. Its labelled rows of all arms teach its calibration: a score means the same in each."""
    length_us, maturity_us = cohort.window_us or 1, cohort.maturity_us or 0
    own = rows.versions == version
    times, scores, labels, roles = rows.times_us[own], rows.scores[own], rows.labels[own], rows.roles[own]
    labelled = np.flatnonzero(~np.isnan(labels))
    known = rows.known_us[own][labelled]
    numbers = times // length_us
    first = 0 if cohort.begin_us is None else int(np.searchsorted(times, cohort.begin_us))
    found = []
    for number in np.unique(numbers[first:]).tolist()[-MAX_AUDITED:]:
        begin_us = number * length_us
        # Known when the window began, and old enough then: the fastest labels alone would teach something else. Without a
        # maturity they must.
        is_known = known <= begin_us
        if cohort.maturity_us is not None:
            is_known &= times[labelled] <= begin_us - cohort.maturity_us
        reference = labelled[is_known][-MAX_REFERENCE_ROWS:]
        calibration, reason = _calibrate(scores[reference], labels[reference])
        is_mature = begin_us + length_us <= as_of_us - maturity_us
        inside = np.arange(
            max(first, int(np.searchsorted(numbers, number))), int(np.searchsorted(numbers, number, side="right"))
        )
        for role in np.unique(roles[inside]).tolist():
            members = inside[roles[inside] == role]
            realized = None
            if is_mature:
                members = members[~np.isnan(labels[members])]
                if not len(members):
                    continue
                realized = _realized(scores[members], labels[members], settings, confidence)
            estimated = {}
            if calibration is not None:
                estimated = estimate_metrics(
                    calibration,
                    scores[members],
                    threshold=settings.threshold,
                    settings=settings,
                    coverage=1.0 if is_mature else coverage,
                    confidence=confidence,
                )
            key = GroupKey(version, ARMS[role], begin_us=begin_us)
            method = "" if calibration is None else calibration.method
            found.append(WindowEstimate(key, len(members), len(reference), method, estimated, realized, reason))
    return found


def _calibrate(scores: NDArray[np.float64], labels: NDArray[np.float64]) -> tuple[Calibration | None, str]:
    try:
        return Calibration.fit(scores, labels), ""
    except CalibrationError as error:
        return None, str(error)


def _realized(
    scores: NDArray[np.float64], labels: NDArray[np.float64], settings: ValueSettings, confidence: float
) -> dict[str, Estimate]:
    found = binary_metrics(scores, labels, threshold=settings.threshold, confidence=confidence)
    found = {name: found[name] for name in ESTIMATED_METRICS}
    if _has_matrix(settings):
        decided = scores >= settings.threshold
        yes, no = matrix_values(settings, is_positive=True), matrix_values(settings, is_positive=False)
        money = np.where(decided, np.where(labels > 0.5, *yes), np.where(labels > 0.5, *no))
        found[VALUE] = mean(money, confidence=confidence)
    return found


def _audits(windows: list[WindowEstimate], confidence: float) -> list[Audit]:
    gaps: dict[tuple[int, str, str], list[tuple[float, bool]]] = {}
    for window in windows:
        for name, realized in (window.realized or {}).items():
            estimated = window.estimated.get(name)
            if estimated is None or estimated.low is None or estimated.value is None or realized.value is None:
                continue
            gap = realized.value - estimated.value
            gaps.setdefault((window.key.version, window.key.arm, name), []).append(
                (gap, estimated.covers(realized.value))
            )
    audits = []
    for (version, arm, name), found in gaps.items():
        n, n_inside = len(found), sum(inside for _, inside in found)
        audits.append(
            Audit(
                version,
                arm,
                name,
                n,
                sum(gap for gap, _ in found) / n,
                sum(abs(gap) for gap, _ in found) / n,
                n_inside,
                _at_most(n_inside, n, confidence) > 0.01,
            )
        )
    return audits


def _notes(windows: list[WindowEstimate], audits: list[Audit]) -> list[str]:
    notes = []
    failed = [each for each in audits if not each.holds]
    if failed:
        names = ", ".join(f"{each.metric} of version {each.version} ({each.arm})" for each in failed)
        notes.append(
            f"Estimates did not hold where labels have come: {names}. What a score means has changed since it was calibrated; "
            f"do not rely on the estimates of newer windows."
        )
    fresh = [each for each in windows if each.realized is None and each.estimated]
    if fresh and not audits:
        notes.append("No estimate could be compared with labels yet.")
    reasons = {each.reason for each in windows if each.reason and each.realized is None}
    return notes + [f"No estimate: {reason}." for reason in sorted(reasons)]


def _at_most(k: int, n: int, rate: float) -> float:
    """The probability of at most k hits in n tries."""
    return sum(math.comb(n, i) * rate**i * (1 - rate) ** (n - i) for i in range(k + 1))


def _has_matrix(settings: ValueSettings | None) -> bool:
    return settings is not None and settings.true_positive is not None
