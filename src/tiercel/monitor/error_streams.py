"""The streams that concept detectors watch, made of labels and scores.

errors       1 for a wrong decision, 0 for a right one (regression: an error beyond nine in ten of the first ones)
losses       from 0 to 1: the squared error of a probability (regression: the error against the first ones' median)
calibration  label less score, standardized by the first ones: its mean stays 0 while scores are as right as they were
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tiercel.types import Task

if TYPE_CHECKING:
    from numpy.typing import NDArray

STREAMS: Final = ("errors", "losses", "calibration")
#: Beyond so many deviations a single value would be a change by itself.
_FARTHEST: Final = 8.0


@dataclass(frozen=True)
class StreamScale:
    """What the first judged predictions of a stream were like; later ones are measured by it.

    Attributes:
        mean, deviation: of label less score.
        median, decile: of its size: the middle, and what nine in ten stay under.
    """

    mean: float
    deviation: float
    median: float
    decile: float

    @classmethod
    def of(cls, labels: NDArray[np.float64], scores: NDArray[np.float64]) -> StreamScale:
        """From finite values, float64 (n,), at least one."""
        # Halved, and in units of the largest: values at both ends of float64 are as bad as it gets, not infinite.
        apart = labels / 2 - scores / 2
        largest = float(np.abs(apart).max()) or 1.0
        apart = apart / largest
        size = np.abs(apart)
        limit = math.sqrt(np.finfo(np.float64).max)
        mean, deviation, median, decile = (
            max(-limit, min(limit, 2 * (float(number) * largest)))
            for number in (apart.mean(), apart.std(), np.median(size), np.quantile(size, 0.9))
        )
        return cls(mean, deviation if deviation > 0 else 1.0, median, decile)

    def streams(
        self, task: Task, threshold: float, scores: NDArray[np.float64], labels: NDArray[np.float64]
    ) -> dict[str, NDArray[np.float64]]:
        """The values of each stream.

        Args:
            task: binary or regression.
            threshold: of a binary model's decisions.
            scores: finite, float64 (n,).
            labels: finite, float64 (n,).

        Returns:
            Finite, float64 (n,) per name of `STREAMS`.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            apart = labels - scores
            size = np.abs(apart)
            if task is Task.BINARY:
                errors = (scores >= threshold) != (labels > 0.5)
                losses = np.minimum(apart * apart, 1.0)
            else:
                errors = size > self.decile
                losses = size / (size + self.median) if self.median > 0 else (size > 0).astype(np.float64)
                losses = np.where(np.isfinite(losses), losses, 1.0)
            calibration = np.clip((apart - self.mean) / self.deviation, -_FARTHEST, _FARTHEST)
        return {"errors": errors.astype(np.float64), "losses": losses, "calibration": calibration}

    def to_state(self) -> list[float]:
        """Plain values."""
        return list(astuple(self))

    @classmethod
    def from_state(cls, state: Any) -> StreamScale:
        """Inverse of `to_state`.

        Raises:
            TypeError, ValueError: it is not one.
        """
        mean, deviation, median, decile = map(float, state)
        if not all(map(math.isfinite, (mean, deviation, median, decile))) or deviation <= 0 or median < 0:
            raise ValueError(f"expected a stream's scale, got {state!r:.80}")
        return cls(mean, deviation, median, decile)
