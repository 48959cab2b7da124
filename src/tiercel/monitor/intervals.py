"""Figures with their uncertainty: proportions, means of skewed losses, and what is a monotone function of either.

An interval says where the figure would lie in endless traffic of the same kind, at the confidence that was asked for. Rows
count as independent; rows of one request that share an entity are less than that, and then intervals are too narrow.
Formulas are closed: nothing is drawn at random, so the same rows give the same interval.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

CONFIDENCE: Final = 0.95
_NORMAL: Final = NormalDist()


@dataclass(frozen=True)
class Estimate:
    """One figure.

    Attributes:
        value: the figure; None when it is not defined, and `reason` says why.
        low, high: ends of the interval; None when there is none.
        n: rows (or pairs, or events) it rests on.
        reason: why there is no value or no interval, in words; empty otherwise.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    reason: str = ""

    @classmethod
    def missing(cls, reason: str, n: int = 0) -> Estimate:
        """A figure that is not defined."""
        return cls(None, n=n, reason=reason)

    @property
    def half_width(self) -> float | None:
        """Half the interval's length."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    def through(self, function: Callable[[float], float]) -> Estimate:
        """The figure and its interval under an increasing function."""
        if self.value is None:
            return self
        low = None if self.low is None else function(self.low)
        high = None if self.high is None else function(self.high)
        return Estimate(function(self.value), low, high, self.n, self.reason)

    def within(self, least: float, most: float) -> Estimate:
        """The same with its interval cut to what the figure can be."""
        if self.low is None or self.high is None:
            return self
        return Estimate(self.value, max(least, self.low), min(most, self.high), self.n, self.reason)

    def covers(self, value: float) -> bool:
        """Whether the interval holds a value."""
        return self.low is not None and self.high is not None and self.low <= value <= self.high

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; infinite ends (a side without a bound) become null."""
        data: dict[str, Any] = {
            "value": _plain(self.value),
            "low": _plain(self.low),
            "high": _plain(self.high),
            "n": self.n,
        }
        return {**data, "reason": self.reason} if self.reason else data


def proportion(n_hits: int, n: int, *, confidence: float = CONFIDENCE, nothing: str = "no rows") -> Estimate:
    """A share, with Wilson's score interval (Wilson 1927), which holds near 0 and 1 too.

    Args:
        n_hits: of `n`.
        n: how many could have been hits; 0: `nothing` is the reason.
        confidence: of the interval.
        nothing: why there may be none.
    """
    if n <= 0:
        return Estimate.missing(nothing)
    z = normal_quantile(confidence)
    share = n_hits / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low = 0.0 if n_hits == 0 else max(0.0, centre - half)
    high = 1.0 if n_hits == n else min(1.0, centre + half)
    return Estimate(share, low, high, n)


@dataclass(frozen=True)
class Moments:
    """Count, mean and central sums of squares and cubes of values. Adding two gives those of both sets."""

    n: int
    mean: float
    squares: float
    cubes: float

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Moments:
        """The moments of finite values, float64 (n,)."""
        n = len(values)
        if n == 0:
            return cls(0, 0.0, 0.0, 0.0)
        # A huge value overflows to inf; the interval then says that it has no bound.
        with np.errstate(over="ignore", invalid="ignore"):
            mean = float(values.mean())
            apart = values - mean
            squared = apart * apart
            return cls(n, mean, float(squared.sum()), float((squared * apart).sum()))

    def __add__(self, other: Moments) -> Moments:
        n = self.n + other.n
        if not self.n or not other.n:
            return self if self.n else other
        # Chan, Golub and LeVeque 1979, and Pebay 2008 for the third moment.
        gap = other.mean - self.mean
        product = self.n * other.n
        return Moments(
            n,
            self.mean + gap * other.n / n,
            self.squares + other.squares + gap * gap * product / n,
            self.cubes
            + other.cubes
            + gap**3 * product * (self.n - other.n) / (n * n)
            + 3 * gap * (self.n * other.squares - other.n * self.squares) / n,
        )

    @property
    def variance(self) -> float:
        """Unbiased; 0 for fewer than two values."""
        return self.squares / (self.n - 1) if self.n > 1 else 0.0

    @property
    def skewness(self) -> float:
        """Third standardized moment; 0 without spread."""
        spread = self.squares / self.n if self.n else 0.0
        if not spread > 0:
            return 0.0
        skewness = self.cubes / self.n / spread**1.5 if spread**1.5 > 0 else 0.0
        return skewness if math.isfinite(skewness) else 0.0


def mean(values: NDArray[np.float64] | Moments, *, confidence: float = CONFIDENCE) -> Estimate:
    """A mean, with an interval that allows for skewed values.

    Losses and money are skewed, and the usual interval then misses on one side. Hall's transformation (Hall 1992, "On the
    removal of skewness by transformation") removes the skewness of Student's ratio and is inverted here in closed form.

    Args:
        values: finite, float64 (n,), or their moments.
        confidence: of the interval.
    """
    found = values if isinstance(values, Moments) else Moments.of(values)
    if not found.n:
        return Estimate.missing("no rows")
    if found.n == 1:
        return Estimate(found.mean, n=1, reason="one row has no spread")
    if not math.isfinite(found.mean) or not math.isfinite(found.squares):
        return Estimate(found.mean, n=found.n, reason="values beyond the range of numbers")
    t = student_quantile(confidence, found.n - 1)
    error = math.sqrt(found.variance / found.n)
    return Estimate(
        found.mean,
        found.mean - error * _unskewed(t, found.skewness, found.n),
        found.mean - error * _unskewed(-t, found.skewness, found.n),
        found.n,
    )


def difference(one: Moments, other: Moments, *, confidence: float = CONFIDENCE) -> Estimate:
    """Mean of `one` less mean of `other`, independent of each other, with Welch's interval (Welch 1947)."""
    n = one.n + other.n
    if not one.n or not other.n:
        return Estimate.missing("no rows on one side", n)
    gap = one.mean - other.mean
    if one.n < 2 or other.n < 2:
        return Estimate(gap, n=n, reason="one row has no spread")
    a, b = one.variance / one.n, other.variance / other.n
    if a + b <= 0:
        return Estimate(gap, gap, gap, n)
    freedom = (a + b) ** 2 / (a * a / (one.n - 1) + b * b / (other.n - 1))
    half = student_quantile(confidence, freedom) * math.sqrt(a + b)
    return Estimate(gap, gap - half, gap + half, n)


def jackknife(whole: float, without: NDArray[np.float64], *, confidence: float = CONFIDENCE, n: int = 0) -> Estimate:
    """Any smooth statistic, with an interval from leaving out one fold of rows at a time (delete-a-group jackknife, Kott 2001).

    Args:
        whole: the statistic of all rows.
        without: float64 (n_folds,): of all rows but each fold's; folds of about equal size.
        confidence: of the interval.
        n: rows.
    """
    kept = without[np.isfinite(without)]
    if not math.isfinite(whole):
        return Estimate.missing("not a number", n)
    if len(kept) < len(without) or len(kept) < 2:
        return Estimate(whole, n=n, reason="too few rows to leave some out")
    folds = len(kept)
    error = math.sqrt((folds - 1) / folds * float(((kept - kept.mean()) ** 2).sum()))
    half = student_quantile(confidence, folds - 1) * error
    return Estimate(whole, whole - half, whole + half, n)


def normal_quantile(confidence: float) -> float:
    """The z of a two-sided interval: 1.96 for 0.95.

    Raises:
        ValueError: a confidence that is not between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"Expected a confidence between 0 and 1, got {confidence}")
    return _NORMAL.inv_cdf((1 + confidence) / 2)


@lru_cache(maxsize=1024)
def student_quantile(confidence: float, freedom: float) -> float:
    """The t of a two-sided interval with `freedom` (> 0) degrees of freedom, to 1e-9 of its size.

    Raises:
        ValueError: a confidence that is not between 0 and 1.
    """
    low = normal_quantile(confidence)
    if freedom > 1e7:
        return low
    tail = 1 - confidence  # both sides together
    high = low
    while _student_tails(high, freedom) > tail:
        low, high = high, 2 * high
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_tails(middle, freedom) > tail else (low, middle)
    return (low + high) / 2


def _student_tails(t: float, freedom: float) -> float:
    """Probability of more than t or less than -t, t > 0: the regularized incomplete beta function."""
    a, b = freedom / 2, 0.5
    x = freedom / (freedom + t * t)
    # 1 - x by itself: of many degrees of freedom x is close to 1.
    rest = t * t / (freedom + t * t)
    scale = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(rest))
    if x < (a + 1) / (a + b + 2):
        return scale * _beta_fraction(a, b, x) / a
    return 1 - scale * _beta_fraction(b, a, rest) / b


def _beta_fraction(a: float, b: float, x: float) -> float:
    """Its continued fraction, evaluated forward (Lentz 1976; DLMF 8.17.22)."""
    tiny = 1e-300
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1) or tiny)
    value = d
    for i in range(1, 500):
        even = i * (b - i) * x / ((a + 2 * i - 1) * (a + 2 * i))
        odd = -(a + i) * (a + b + i) * x / ((a + 2 * i) * (a + 2 * i + 1))
        step = 1.0
        for term in (even, odd):
            d = 1 / (1 + term * d or tiny)
            c = 1 + term / c or tiny
            step = c * d
            value *= step
        if abs(step - 1) < 1e-15:
            break
    return value


def _unskewed(x: float, skewness: float, n: int) -> float:
    """Where Hall's transformed ratio of n values equals x."""
    tilt = skewness / math.sqrt(n)
    if abs(tilt) < 1e-9:
        return x
    return 3 / tilt * (math.cbrt(1 + tilt * (x - tilt / 6)) - 1)


def _plain(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
