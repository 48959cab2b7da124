"""Tails of the distributions that thresholds are read from, without SciPy; the tests compare with it.

Sources: the incomplete gamma function by series and continued fraction, as in DLMF 8.7 and 8.9; the beta-binomial's
probabilities by the ratio of neighbours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MAX_TERMS = 10_000
_MAX_COUNTS = 1 << 13


def gamma_tail(shape: float, x: float) -> float:
    """Probability that a gamma variable of this shape and scale 1 is beyond x: the regularized upper incomplete gamma."""
    if x <= 0:
        return 1.0
    if math.isinf(x):
        return 0.0
    front = math.exp(shape * math.log(x) - x - math.lgamma(shape))
    if x < shape + 1:
        term = total = 1 / shape
        for n in range(1, _MAX_TERMS):
            term *= x / (shape + n)
            total += term
            if term < total * 1e-16:
                break
        return max(0.0, 1 - front * total)
    # Lentz's way through the continued fraction.
    tiny = 1e-300
    b = x + 1 - shape
    c, d = 1 / tiny, 1 / b
    fraction = d
    for n in range(1, _MAX_TERMS):
        a = -n * (n - shape)
        b += 2
        d = a * d + b
        d = 1 / (d if abs(d) > tiny else tiny)
        c = b + a / c
        c = c if abs(c) > tiny else tiny
        fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return front * fraction


def chi_square_tail(statistic: float, freedom: int) -> float:
    """Probability of a larger chi-square; 1 without degrees of freedom."""
    return gamma_tail(freedom / 2, statistic / 2) if freedom > 0 else 1.0


def kolmogorov_tail(x: float) -> float:
    """Probability that the limit of the Kolmogorov-Smirnov statistic, times the root of its rows, is beyond x."""
    if x < 0.2:  # within 1e-12 of 1, where the series needs many terms
        return 1.0
    terms = (-((-1) ** k) * math.exp(-2 * (k * x) ** 2) for k in range(1, 101))
    return min(1.0, max(0.0, 2 * math.fsum(terms)))


def kolmogorov_quantile(probability: float) -> float:
    """The value that is exceeded with this probability."""
    low, high = 0.0, 20.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (middle, high) if kolmogorov_tail(middle) > probability else (low, middle)
    return high


@dataclass(frozen=True)
class SkewedTail:
    """A gamma distribution moved and stretched to a mean, a deviation and a skewness: Pearson's type III.

    A chi-square's where the moments are a chi-square's; sums of squares of rare counts are not quite one. `skewness` is
    positive wherever `deviation` is.
    """

    mean: float
    deviation: float
    skewness: float

    @classmethod
    def chi_square(cls, freedom: int) -> SkewedTail:
        """The chi-square distribution itself."""
        return cls(freedom, math.sqrt(2 * freedom), math.sqrt(8 / freedom))

    def tail(self, x: float) -> float:
        """Probability of a value beyond x."""
        if self.deviation <= 0:
            return 1.0 if x <= self.mean else 0.0
        shape = 4 / self.skewness**2
        return gamma_tail(shape, shape + (x - self.mean) / self.deviation * math.sqrt(shape))

    def quantile(self, probability: float) -> float:
        """The value that is exceeded with this probability, to twelve digits of the deviation."""
        if self.deviation <= 0:
            return self.mean
        low, high = self.mean - 2 / self.skewness * self.deviation, self.mean + self.deviation
        while self.tail(high) > probability:
            low, high = high, high + 2 * (high - self.mean)
        while high - low > 1e-12 * self.deviation:
            middle = (low + high) / 2
            if middle in {low, high}:
                break
            low, high = (middle, high) if self.tail(middle) > probability else (low, middle)
        return high


def predicted_tail(n: int, k: int, seen: int, of: int) -> float:
    """Probability of k or more among n rows, when `seen` among `of` rows had it before: a beta-binomial prediction.

    What is uncertain about the earlier share is part of it, so that a first odd row in a million is not called impossible.
    The prior is Laplace's: one row more of each.
    """
    if k <= 0:
        return 1.0
    if k > n:
        return 0.0
    counts, chances = _predicted(n, seen, of)
    return float(chances[np.searchsorted(counts, k) :].sum())


def predicted_limit(n: int, probability: float, seen: int, of: int) -> int:
    """The smallest k with a `predicted_tail` of at most this probability; n + 1 where even n has a larger one."""
    counts, chances = _predicted(n, seen, of)
    beyond = np.cumsum(chances[::-1])[::-1]  # of counts[i] or more
    below = np.flatnonzero(beyond <= probability)
    if len(below):
        return int(counts[below[0]])
    return n + 1 if counts[-1] >= n else int(counts[-1]) + 1


def _predicted(n: int, seen: int, of: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Counts and their probabilities; what is left out is below 1e-15.

    Where there are many, one stands for a stretch of them: their number is bounded whatever n is.
    """
    a, b = seen + 1.0, of - seen + 1.0
    mean = n * a / (a + b)
    deviation = math.sqrt(mean * (b / (a + b)) * (a + b + n) / (a + b + 1))
    # Beyond the normal reach for the geometric tails of counts that were never or nearly always seen.
    reach = 12 * deviation + 60
    upper, lower = reach + 40 * deviation / math.sqrt(a), reach + 40 * deviation / math.sqrt(b)
    start, stop = max(0, math.floor(mean - lower)), min(n, math.ceil(mean + upper))
    step = max(1, (stop - start) // _MAX_COUNTS)
    counts = np.arange(start, stop + 1, step, dtype=np.float64)
    middle = counts[:-1] + (step - 1) / 2
    ratios = np.log((n - middle) * (a + middle)) - np.log((middle + 1) * (b + n - middle - 1))
    logs = np.concatenate([[0.0], np.cumsum(ratios * step)])
    chances = np.exp(logs - logs.max())
    return counts, chances / chances.sum()
