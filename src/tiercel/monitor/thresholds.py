"""How far apart two histograms of the same population fall by chance: what a drift threshold is made of.

The one knob is a budget of false alarms in time. It gives a probability per window and, divided among everything that is
looked at, one per feature. How large a distance has that probability depends on how many rows the window has and on how the
feature is distributed, so it is found by replay: a reference and a window are drawn again and again from what the reference
holds, and a gamma distribution is fitted to their squares. Without sampling error of its own it would be a chi-square (PSI
and Jensen-Shannon are, for large windows: Yurdakul, 2018); with few rows, rare values and small references it is not.

Rows are not independent where one customer makes ten of them. Earlier windows tell: if neighbours differ more than
independent rows would, that ratio (`dispersion`) widens every limit. It comes from successive differences and is a median,
so that neither a drift that came and stayed nor one wild hour widens it.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from tiercel.monitor.distances import chi_square, jensen_shannon, kolmogorov_smirnov
from tiercel.monitor.reference import ABOVE_ALL, BELOW_ALL
from tiercel.monitor.tails import SkewedTail, kolmogorov_quantile, kolmogorov_tail, predicted_limit, predicted_tail

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tiercel.monitor.window import Window

QUARTER_US = 7_889_400_000_000
#: Bins of values: 24 finite ones, and +inf; -inf counts with what is below the range.
BINS = 25
#: Draws per replay. Their moments are known to 1.5 %, which moves a threshold by less than 1 %.
REPLAYS = 4000
#: Part of a window's probability that is spent on distributions; the rest is for shares of missing values.
DISTRIBUTION_PART = 0.9
#: Part of a feature's probability for each of its two distances.
EACH_PART = 0.5
#: With fewer expected rows outside of the commonest bin, such rows are counted instead of fitted.
_RARE_ROWS = 10.0
#: Where the Kolmogorov-Smirnov distances of a replay are compared with their limit's quantiles.
_SCALE_AT = (0.1, 0.05, 0.02, 0.01)
#: A sum of squares leans to the right; that a sample of it does not is the sample's error.
_LEAST_SKEWNESS = 0.1
#: Pairs of neighbouring windows, and rows of each, before they tell anything.
_LEAST_PAIRS, _LEAST_PAIR_ROWS = 6, 100
_SEED = 20_131_101
#: Makes a squared distance to base 2, times nm / (n + m), the statistic that tends to a chi-square.
_UNIT = 8 * math.log(2)


@dataclass(frozen=True)
class FalseAlarmBudget:
    """How many false alarms are accepted, and how often there is an opportunity.

    Attributes:
        per_quarter: expected false alarms per model version in three months.
        every_us: how often a window is judged.
    """

    per_quarter: float = 1.0
    every_us: int = 3_600_000_000

    def __post_init__(self) -> None:
        if not (self.per_quarter > 0 and math.isfinite(self.per_quarter) and self.every_us > 0):
            raise ValueError(
                f"Expected a positive budget and interval, got {self.per_quarter} per quarter every {self.every_us} us"
            )

    @property
    def alpha(self) -> float:
        """The probability of a false alarm that one window may have; at most 0.2, however rarely there are windows."""
        return min(self.per_quarter * self.every_us / QUARTER_US, 0.2)


@dataclass(frozen=True)
class Noise:
    """What chance does to a distance.

    Attributes:
        limit: the distance that is reached by chance with the probability that was asked for; above 1 where no
            window of this size could be told from chance.
        p_value: probability of a distance as large as the one seen, or larger.
    """

    limit: float
    p_value: float


def value_bins(cells: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Cells (..., 28) as bins of values in ascending order: float64 (..., 25). Missing ones are left out."""
    bins = np.zeros((*cells.shape[:-1], BINS))
    bins[..., : BINS - 1] = cells[..., : BINS - 1]
    bins[..., 0] += cells[..., BELOW_ALL]
    bins[..., BINS - 1] = cells[..., ABOVE_ALL]
    return bins


def distribution_noise(
    reference: NDArray[np.float64],
    window: NDArray[np.float64],
    alpha: float,
    dispersion: float = 1.0,
    *,
    has_values: bool = False,
) -> Noise:
    """Limit and probability of the Jensen-Shannon distance between two histograms of 25 bins, neither of them empty.

    Args:
        reference: counts.
        window: counts.
        alpha: probability of reaching the limit by chance.
        dispersion: how much more than independent rows windows vary.
        has_values: each value has a bin: nothing is expected outside of them.
    """
    m, n = int(reference.sum()), int(window.sum())
    if _is_rare(reference, n):
        return _rare_noise(reference, window, int(np.argmax(reference)), alpha, dispersion)
    tail, _ = _tails_of(reference, n, has_values=has_values)
    unit = _UNIT * (n / (n + m)) * m / dispersion
    distance = float(jensen_shannon(reference, window))
    return Noise(math.sqrt(_quantile(tail, alpha) / unit), tail.tail(distance**2 * unit))


def ordered_noise(
    reference: NDArray[np.float64],
    window: NDArray[np.float64],
    alpha: float,
    dispersion: float = 1.0,
    *,
    has_values: bool = False,
) -> Noise:
    """As `distribution_noise`, of the Kolmogorov-Smirnov distance at the edges: it sees a small shift of everything sooner.

    By its limiting distribution, which is that of values without ties; the replay says by how much bins make it smaller.
    """
    m, n = int(reference.sum()), int(window.sum())
    scale = 1.0 if _is_rare(reference, n) else _tails_of(reference, n, has_values=has_values)[1]
    unit = math.sqrt(n / (n + m) * m / dispersion) / scale
    distance = float(kolmogorov_smirnov(reference, window))
    return Noise(_kolmogorov_quantile(alpha) / unit, kolmogorov_tail(unit * distance))


def share_noise(
    n: int, k: int, seen: int, of: int, alpha: float, dispersion: float = 1.0
) -> tuple[float, float, float]:
    """Limits of a share by chance, and the probability of the one seen.

    Args:
        n: rows of the window.
        k: of these, how many had it.
        seen: rows of the reference that had it.
        of: rows of the reference.
        alpha: probability of being outside of the limits by chance, on both sides together.
        dispersion: how much more than independent rows windows vary.

    Returns:
        Lower and upper limit (a share outside of them is not chance; -1 and 2 where every share is) and p-value.
    """
    n_free, k_free = _thinned(n, dispersion), _thinned(k, dispersion)
    upper = predicted_limit(n_free, alpha / 2, seen, of)
    lower = n_free - predicted_limit(n_free, alpha / 2, of - seen, of)
    p_value = 2 * min(
        predicted_tail(n_free, k_free, seen, of), predicted_tail(n_free, n_free - k_free, of - seen, of), 0.5
    )
    return (
        lower / n_free if lower >= 0 else -1.0,
        upper / n_free if upper <= n_free else 2.0,
        p_value,
    )


def dispersion_of(history: Sequence[Window]) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """How much more than independent rows neighbouring windows differ: per feature and per output, at least 1.

    Args:
        history: windows of the same version, edges and length, in order.

    Returns:
        None where there are too few of them to tell.
    """
    filled = [window for window in history if window.n_counted >= _LEAST_PAIR_ROWS]
    pairs = [(one, other) for one, other in pairwise(filled) if one.has_edges_of(other)]
    if len(pairs) < _LEAST_PAIRS:
        return None
    features = _dispersion([(one.feature_counts, other.feature_counts) for one, other in pairs])
    scores = _dispersion([(one.score_counts, other.score_counts) for one, other in pairs])
    return features, scores


def _dispersion(pairs: Sequence[tuple[NDArray[np.uint64], NDArray[np.uint64]]]) -> NDArray[np.float64]:
    ones = value_bins(np.stack([one for one, _ in pairs]))
    others = value_bins(np.stack([other for _, other in pairs]))
    statistic, freedom = chi_square(ones, others)
    factors = np.ones(ones.shape[1])
    for i in range(len(factors)):
        is_known = (freedom[:, i] > 0) & np.isfinite(statistic[:, i])
        if is_known.sum() >= _LEAST_PAIRS:
            ratios = statistic[is_known, i] / [_chi_square_median(int(df)) for df in freedom[is_known, i]]
            factors[i] = max(1.0, float(np.median(ratios)))
    return factors


@functools.lru_cache(maxsize=64)
def _chi_square_median(freedom: int) -> float:
    return SkewedTail.chi_square(freedom).quantile(0.5)


def _rare_noise(
    reference: NDArray[np.float64], window: NDArray[np.float64], main: int, alpha: float, dispersion: float
) -> Noise:
    """Of a feature that nearly always has one value: the rows that do not are so few that they are counted."""
    m, n = int(reference.sum()), int(window.sum())
    seen = m - int(reference[main])
    other = window.copy()
    other[main] = 0
    n_other = int(other.sum())
    n_free = _thinned(n, dispersion)
    limit = predicted_limit(n_free, alpha, seen, m)
    p_value = predicted_tail(n_free, _thinned(n_other, dispersion), seen, m)
    if limit > n_free:
        return Noise(2.0, p_value)
    if not n_other:  # arranged as seen, else as in the reference, else as something new
        other = reference.copy()
        other[main] = 0
        if not other.any():
            other[0 if main else 1] = 1
    fictitious = other / other.sum() * limit
    fictitious[main] = n_free - limit
    return Noise(float(jensen_shannon(reference, fictitious)), p_value)


def _is_rare(reference: NDArray[np.float64], n: int) -> bool:
    """Whether so few rows are expected outside of the commonest bin that they are counted."""
    m = int(reference.sum())
    seen = m - int(reference.max())
    return not seen or n * (seen + 1) / (m + 2) < _RARE_ROWS


def _tails_of(reference: NDArray[np.float64], n: int, *, has_values: bool) -> tuple[SkewedTail, float]:
    """How both distances are distributed when reference and window come from the same population."""
    m = int(reference.sum())
    digits = np.format_float_scientific
    chances = tuple(float(digits(chance, 1)) for chance in reference[reference > 0] / m)
    return _replayed(chances, _rounded(m), _rounded(n), has_values)


@functools.lru_cache(maxsize=4096)
def _replayed(chances: tuple[float, ...], m: int, n: int, has_values: bool) -> tuple[SkewedTail, float]:
    """As `_tails_of`, for rounded sizes and the rounded shares of the bins: features of one shape share a replay.

    Returns:
        The distribution of Jensen-Shannon's statistic, and what Kolmogorov-Smirnov's is to that of values without ties.
    """
    rng = np.random.default_rng(_SEED)
    filled = np.array([0.0, *chances, 0.0])
    beyond = np.tile(filled, (REPLAYS, 1))
    if not has_values:
        # The share of the population beyond the largest of m values varies as an exponential of mean 1 / m, and likewise
        # below the smallest: edges that the reference itself, by its making, has nothing beyond.
        beyond[:, [0, -1]] = rng.exponential(1 / m, (REPLAYS, 2))
    references = rng.multinomial(m, filled / filled.sum(), size=REPLAYS)
    windows = rng.multinomial(n, beyond / beyond.sum(axis=1, keepdims=True))
    rows = n / (n + m) * m
    # Tails of sums over bins fall as that of the limit does; where they begin is what the bins change.
    gaps = math.sqrt(rows) * kolmogorov_smirnov(references, windows)
    scale = float(np.mean([np.quantile(gaps, 1 - p) / _kolmogorov_quantile(p) for p in _SCALE_AT]))
    statistic = _UNIT * rows * jensen_shannon(references, windows) ** 2
    mean, deviation = float(statistic.mean()), float(statistic.std())
    if not deviation:
        return SkewedTail(mean, 0.0, 0.0), scale or 1.0
    skewness = float(((statistic - mean) ** 3).mean()) / deviation**3
    return SkewedTail(mean, deviation, max(skewness, _LEAST_SKEWNESS)), scale or 1.0


@functools.lru_cache(maxsize=64)
def _kolmogorov_quantile(alpha: float) -> float:
    return kolmogorov_quantile(alpha)


@functools.lru_cache(maxsize=4096)
def _quantile(tail: SkewedTail, alpha: float) -> float:
    return tail.quantile(alpha)


def _rounded(n: int) -> int:
    """To half powers of two, of which a replay serves many windows: the statistic hardly depends on so large an n."""
    steps = 2 if n > 1 << 12 else 16
    return max(1, round(2 ** (round(steps * math.log2(n)) / steps)))


def _thinned(n: int, dispersion: float) -> int:
    """As many rows as would tell as much if they were independent; at least one of any."""
    return max(min(n, 1), round(n / dispersion))
