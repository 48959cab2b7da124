"""How far predicted values are from what came. Each figure equals scikit-learn's of the same rows."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

from tiercel.monitor.intervals import CONFIDENCE, Estimate, mean

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Names in the order in which they are shown.
REGRESSION_METRICS: Final = ("mae", "rmse", "bias", "r2")


def regression_metrics(
    scores: NDArray[np.float64], labels: NDArray[np.float64], *, confidence: float = CONFIDENCE
) -> dict[str, Estimate]:
    """All of `REGRESSION_METRICS`; bias is the mean of label less score, R2 comes without an interval.

    Args:
        scores: finite, float64 (n,).
        labels: finite, float64 (n,).
        confidence: of the intervals.
    """
    n = len(scores)
    if not n:
        return {name: Estimate.missing("no labelled rows") for name in REGRESSION_METRICS}
    with np.errstate(over="ignore", invalid="ignore"):
        errors = labels - scores
        squares = errors * errors
        spread = float(((labels - labels.mean()) ** 2).sum())
    if spread > 0 and math.isfinite(spread):
        r2 = Estimate(1 - float(squares.sum()) / spread, n=n, reason="no interval for this figure")
    else:
        r2 = Estimate.missing("all labels are equal" if spread == 0 else "labels beyond the range of numbers", n)
    return {
        "mae": mean(np.abs(errors), confidence=confidence).within(0, math.inf),
        "rmse": mean(squares, confidence=confidence).within(0, math.inf).through(math.sqrt),
        "bias": mean(errors, confidence=confidence),
        "r2": r2,
    }
