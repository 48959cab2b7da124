"""How good probabilities of a binary label are: ranking, loss, calibration, and decisions at a threshold.

Each figure equals scikit-learn's of the same rows (`roc_auc_score`, `log_loss`, `brier_score_loss`, `precision_score`, ...).
Labels are 0 and 1; a score at or above the threshold is a positive decision.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tiercel.monitor.intervals import CONFIDENCE, Estimate, mean, normal_quantile, proportion, student_quantile

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Names in the order in which they are shown.
BINARY_METRICS: Final = (
    "auc", "log_loss", "brier", "ece", "calibration_gap", "base_rate", "accuracy", "precision", "recall", "f1",
)  # fmt: skip
#: Bins of the calibration curve, of about equal counts.
CALIBRATION_BINS: Final = 10
#: With fewer rows of a class, DeLong's variance is too rough to build on.
_FEW: Final = 15
_NOT_PROBABILITIES: Final = "scores outside of 0 to 1"
_EPSILON: Final = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class CalibrationBin:
    """Rows of about equal scores: what was predicted of them, and what came.

    Attributes:
        low, high: the scores; above `low` up to and with `high`, the first bin with `low` too.
        mean_score: of its rows.
        rate: the share of positives, with its interval.
    """

    low: float
    high: float
    mean_score: float
    rate: Estimate

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"low": self.low, "high": self.high, "mean_score": self.mean_score, "rate": self.rate.to_json()}


def binary_metrics(
    scores: NDArray[np.float64],
    labels: NDArray[np.float64],
    *,
    threshold: float = 0.5,
    confidence: float = CONFIDENCE,
) -> dict[str, Estimate]:
    """All of `BINARY_METRICS`.

    Args:
        scores: finite, float64 (n,).
        labels: 0.0 or 1.0, float64 (n,).
        threshold: of decisions.
        confidence: of the intervals.

    Returns:
        A figure per name; one that these rows do not define has a reason instead of a value.
    """
    n = len(scores)
    if n == 0:
        return {name: Estimate.missing("no labelled rows") for name in BINARY_METRICS}
    positive = labels > 0.5
    found = {"auc": auc(scores, positive, confidence=confidence)}
    if scores.min() < 0 or scores.max() > 1:
        missing = Estimate.missing(_NOT_PROBABILITIES, n)
        found |= dict.fromkeys(("log_loss", "brier", "ece", "calibration_gap"), missing)
    else:
        found["log_loss"] = mean(row_log_loss(scores, positive), confidence=confidence).within(0, math.inf)
        found["brier"] = mean((scores - labels) ** 2, confidence=confidence).within(0, 1)
        found["ece"] = calibration_error(calibration_bins(scores, labels), confidence=confidence)
        found["calibration_gap"] = mean(labels - scores, confidence=confidence).within(-1, 1)
    return found | decisions(scores, positive, threshold=threshold, confidence=confidence)


def decisions(
    scores: NDArray[np.float64], positive: NDArray[np.bool_], *, threshold: float, confidence: float = CONFIDENCE
) -> dict[str, Estimate]:
    """Base rate, accuracy, precision, recall and F1.

    Each is a proportion given what it is a share of, and has Wilson's interval: F1 through J = tp / (tp + fp + fn), of
    which it is the increasing function 2 J / (1 + J).
    """
    n, decided = len(scores), scores >= threshold
    n_positive, n_decided = int(positive.sum()), int(decided.sum())
    n_hits = int((decided & positive).sum())
    n_right = n - n_positive - n_decided + 2 * n_hits
    overlap = proportion(
        n_hits,
        n_positive + n_decided - n_hits,
        confidence=confidence,
        nothing="no positive label and no positive decision",
    )
    return {
        "base_rate": proportion(n_positive, n, confidence=confidence),
        "accuracy": proportion(n_right, n, confidence=confidence),
        "precision": proportion(n_hits, n_decided, confidence=confidence, nothing=f"no score of {threshold:g} or more"),
        "recall": proportion(n_hits, n_positive, confidence=confidence, nothing="no positive label"),
        "f1": overlap.through(lambda share: 2 * share / (1 + share)),
    }


def auc(scores: NDArray[np.float64], positive: NDArray[np.bool_], *, confidence: float = CONFIDENCE) -> Estimate:
    """Area under the ROC curve: how often a positive scores above a negative, ties by half.

    The interval is DeLong's (DeLong, DeLong and Clarke-Pearson 1988; in n log n as by Sun and Xu 2014) on the logit
    scale. Where a class has few rows, or nothing overlaps and that variance is 0, it is Newcombe's score interval
    (Newcombe 2006, method 5), which then still has a width.

    Args:
        scores: finite, float64 (n,).
        positive: bool (n,).
        confidence: of the interval.
    """
    n = len(scores)
    above, below = np.sort(scores[positive]), np.sort(scores[~positive])
    m, k = len(above), len(below)
    if not m or not k:
        return Estimate.missing(f"only {'positive' if m else 'negative'} labels" if n else "no rows", n)
    # Twice the number of negatives under each positive, and of positives over each negative, ties by half: whole numbers.
    won = np.searchsorted(below, above, "left") + np.searchsorted(below, above, "right")
    value = int(won.sum()) / (2 * m * k)
    if min(m, k) >= _FEW and 0 < value < 1:
        lost = 2 * m - np.searchsorted(above, below, "left") - np.searchsorted(above, below, "right")
        variance = float(np.var(won / (2 * k), ddof=1)) / m + float(np.var(lost / (2 * m), ddof=1)) / k
        # Student by the smaller class: the variance is estimated from that many placements.
        half = student_quantile(confidence, min(m, k) - 1) * math.sqrt(variance) / (value * (1 - value))
        if half > 0:
            centre = math.log(value / (1 - value))
            return Estimate(value, _logistic(centre - half), _logistic(centre + half), n)
    low, high = _newcombe(value, m, k, normal_quantile(confidence))
    return Estimate(value, low, high, n)


def row_log_loss(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The log loss of each row, of probabilities kept off 0 and 1 as scikit-learn keeps them: float64 (n,)."""
    kept = np.clip(scores, _EPSILON, 1 - _EPSILON)
    return -np.log(np.where(positive, kept, 1 - kept))


def calibration_bins(
    scores: NDArray[np.float64],
    labels: NDArray[np.float64],
    *,
    n_bins: int = CALIBRATION_BINS,
    confidence: float = CONFIDENCE,
) -> list[CalibrationBin]:
    """The calibration curve: `sklearn.calibration.calibration_curve(..., strategy="quantile")` with counts and intervals.

    Bins that would be empty (equal scores) are left out.

    Args:
        scores: probabilities, float64 (n,).
        labels: 0.0 or 1.0, float64 (n,).
        n_bins: at most so many.
        confidence: of each bin's interval.
    """
    if not len(scores):
        return []
    edges = np.percentile(scores, np.linspace(0, 1, n_bins + 1) * 100)
    places = np.searchsorted(edges[1:-1], scores)
    counts = np.bincount(places, minlength=n_bins)
    hits = np.bincount(places, weights=labels, minlength=n_bins)
    sums = np.bincount(places, weights=scores, minlength=n_bins)
    return [
        CalibrationBin(
            float(edges[i]),
            float(edges[i + 1]),
            float(sums[i] / counts[i]),
            proportion(round(hits[i]), int(counts[i]), confidence=confidence),
        )
        for i in range(n_bins)
        if counts[i]
    ]


def calibration_error(bins: list[CalibrationBin], *, confidence: float = CONFIDENCE) -> Estimate:
    """Expected calibration error: the mean gap between predicted and seen rates over the bins, by their rows.

    Noise alone makes it positive, so no interval around it is both short and right. This one holds at least its confidence,
    and more where calibration is good: the gaps' noise adds at most sqrt(2 / pi) of its deviation to each bin, which is
    taken off the lower end; the error's own deviation is at most that of the bins' rates.
    """
    n = sum(each.rate.n for each in bins)
    if not n:
        return Estimate.missing("no rows")
    value = noise = variance = 0.0
    for each in bins:
        rate, weight = each.rate.value or 0.0, each.rate.n / n
        # (hits + 1) / (n + 2): a bin of only zeros is not certain to be one.
        shrunk = (rate * each.rate.n + 1) / (each.rate.n + 2)
        deviation = math.sqrt(shrunk * (1 - shrunk) / each.rate.n)
        value += weight * abs(rate - each.mean_score)
        noise += weight * deviation
        variance += (weight * deviation) ** 2
    half = normal_quantile(confidence) * math.sqrt(variance)
    return Estimate(value, max(0.0, value - math.sqrt(2 / math.pi) * noise - half), min(1.0, value + half), n)


def _newcombe(value: float, m: int, k: int, z: float) -> tuple[float, float]:
    """Ends of the score interval: where |value - area| = z * sqrt(variance of an area estimated from m and k rows)."""
    half_count = (m + k) / 2 - 1

    def is_inside(area: float) -> bool:
        spread = 1 + half_count * ((1 - area) / (2 - area) + area / (1 + area))
        return (value - area) ** 2 <= z * z * area * (1 - area) * spread / (m * k)

    def end(outside: float) -> float:
        inside = value
        for _ in range(60):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if is_inside(middle) else (inside, middle)
        return inside

    return (0.0 if value == 0 else end(0.0)), (1.0 if value == 1 else end(1.0))


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
