"""Maximum mean discrepancy: how far apart two samples of rows lie as wholes, correlations included, by a Gaussian kernel.

Gretton, Borgwardt, Rasch, Schoelkopf and Smola 2012, "A kernel two-sample test": the unbiased estimate of MMD^2, a bandwidth
that is the median distance between rows of both samples, and a p-value from exchanging rows, here whole requests.

Features are made comparable first: each becomes the normal score of its rank among all rows, so neither unit nor a far value
decides what distance means; a missing value lies in the middle, and an indicator beside says that it is missing. Codes of
categories count as numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from tiercel.monitor.exchanges import p_value

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from tiercel.monitor.exchanges import Units

#: Exchanges for a p-value.
EXCHANGES = 999
#: Rows of the kernel matrix that are held at a time, and columns.
_BLOCK = 512
#: Rows whose distances the bandwidth is the median of.
_BANDWIDTH_ROWS = 1_000
#: Rows of each side on which features are ranked, and how often each is shuffled.
_RANKED_ROWS, _SHUFFLES = 1_000, 2


@dataclass(frozen=True, eq=False)
class Discrepancy:
    """What came out.

    Attributes:
        mmd2: the unbiased estimate; below 0 where samples are closer than chance puts them.
        p_value: of exchanges of requests.
        n_exchanges: that were drawn.
        chance_limit: MMD^2 that one exchange in a hundred is beyond.
        bandwidth: of the kernel exp(-d^2 / (2 bandwidth^2)), in standard deviations.
    """

    mmd2: float
    p_value: float
    n_exchanges: int
    chance_limit: float
    bandwidth: float


@dataclass(frozen=True, eq=False)
class ComparableRows:
    """Rows as the kernel sees them.

    Attributes:
        values: float64 (n, n_columns): normal scores, then indicators of missing values, each of mean 0 and variance 1.
        columns: of each feature, its columns.
    """

    values: NDArray[np.float64]
    columns: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, rows: NDArray[np.float64]) -> ComparableRows:
        """From rows of both samples together, float64 (n, n_features), NaN where missing; infinities are the farthest values.

        A feature that is constant where present has no column of its own; one that is always or never missing no indicator.
        """
        n, n_features = rows.shape
        scores: list[NDArray[np.float64]] = []
        indicators: list[NDArray[np.float64]] = []
        columns: list[tuple[int, ...]] = [() for _ in range(n_features)]
        for i in range(n_features):
            missing = np.isnan(rows[:, i])
            score = np.zeros(n)
            score[~missing] = _normal_scores(rows[~missing, i])
            if score.any():
                columns[i] += (len(scores),)
                scores.append(score)
        for i in range(n_features):
            missing = np.isnan(rows[:, i])
            if missing.any() and not missing.all():
                columns[i] += (len(scores) + len(indicators),)
                indicators.append((missing - missing.mean()) / missing.std())
        parts = [*scores, *indicators]
        return cls(np.column_stack(parts) if parts else np.empty((n, 0)), tuple(columns))


def _normal_scores(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Normal quantiles of mean ranks, of mean 0 and variance 1; all 0 for equal values."""
    n = len(values)
    if not n:
        return np.empty(0)
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    if len(counts) == 1:
        return np.zeros(n)
    middles = (np.cumsum(counts) - counts / 2) / n
    normal = NormalDist()
    scores = np.array([normal.inv_cdf(each) for each in middles.tolist()])[places]
    scores -= scores.mean()
    return np.asarray(scores / scores.std(), np.float64)


def measure_discrepancy(
    rows: ComparableRows,
    units: Units,
    *,
    seed: int = 0,
    n_exchanges: int = EXCHANGES,
    progress: Callable[[int, int], None] | None = None,
) -> Discrepancy:
    """MMD^2 between window and comparison, and its probability by chance.

    The kernel matrix is made in blocks and never held: memory is n x n_exchanges bytes and some blocks.

    Args:
        rows: of both samples, with a column at least.
        units: the requests behind them, two of each side at least.
        seed: of everything that is drawn.
        n_exchanges: for the p-value.
        progress: called with (done, total) blocks.
    """
    rng = np.random.default_rng([seed, 1])
    bandwidth = median_distance(rows.values, rng)
    sides = np.empty((len(rows.values), 1 + n_exchanges), np.uint8)
    sides[:, 0] = units.rows()
    for place, exchanged in zip(range(n_exchanges), units.exchanges(rng), strict=False):
        sides[:, 1 + place] = units.rows(exchanged)
    found = mmd2(rows.values, sides, bandwidth, progress)
    observed, by_chance = float(found[0]), found[1:]
    # Sums of equal values in another order differ in their last digits; that is no difference.
    n_beyond = int((by_chance >= observed - 1e-12).sum())
    limit = float(np.quantile(by_chance, 0.99, method="higher"))
    return Discrepancy(observed, p_value(n_beyond, n_exchanges), n_exchanges, limit, bandwidth)


def median_distance(values: NDArray[np.float64], rng: np.random.Generator) -> float:
    """The median distance between rows, of a sample where there are many; the mean where most rows are equal.

    It looks at both samples together, so exchanges do not change it.
    """
    if len(values) > _BANDWIDTH_ROWS:
        values = values[rng.choice(len(values), _BANDWIDTH_ROWS, replace=False)]
    squares = _squared_distances(values, values)[np.triu_indices(len(values), 1)]
    middle = float(np.median(squares)) if len(squares) else 0.0
    if not middle > 1e-12:
        middle = float(squares.mean()) if len(squares) else 0.0
    return math.sqrt(middle) if middle > 0 else 1.0


def mmd2(
    values: NDArray[np.float64],
    sides: NDArray[np.uint8],
    bandwidth: float,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float64]:
    """The unbiased estimate for several divisions of the same rows: float64 (n_divisions,).

    Args:
        values: float64 (n, n_columns).
        sides: 0 or 1, uint8 (n, n_divisions): whose a row is; two rows on either side at least.
        bandwidth: of the kernel.
        progress: called with (done, total) blocks.
    """
    n, n_divisions = sides.shape
    starts = range(0, n, _BLOCK)
    inside = np.zeros(n_divisions)  # over ordered pairs within side 1, a row with itself left out
    to_all = np.zeros(n)  # of each row to all others
    total = len(starts) * (len(starts) + 1) // 2
    done = 0
    for i in starts:
        of_i = sides[i : i + _BLOCK].astype(np.float64)
        for j in range(i, n, _BLOCK):
            kernel = np.exp(_squared_distances(values[i : i + _BLOCK], values[j : j + _BLOCK]) / (-2 * bandwidth**2))
            if i == j:
                np.fill_diagonal(kernel, 0.0)
            else:
                to_all[j : j + _BLOCK] += kernel.sum(axis=0)
            to_all[i : i + _BLOCK] += kernel.sum(axis=1)
            of_j = of_i if i == j else sides[j : j + _BLOCK].astype(np.float64)
            inside += (1 if i == j else 2) * np.einsum("ab,ab->b", of_i, kernel @ of_j)
            done += 1
            if progress is not None:
                progress(done, total)
    n_1 = sides.sum(axis=0, dtype=np.float64)
    n_0 = n - n_1
    from_1 = to_all @ sides
    between = from_1 - inside
    outside = to_all.sum() - 2 * from_1 + inside
    return np.asarray(inside / (n_1 * (n_1 - 1)) + outside / (n_0 * (n_0 - 1)) - 2 * between / (n_1 * n_0))


def rank_features(
    rows: ComparableRows, is_window: NDArray[np.bool_], bandwidth: float, *, seed: int = 0
) -> NDArray[np.float64]:
    """By how much MMD^2 falls when a feature is shuffled over all rows, so that it tells nothing any more: float64 (n_features,).

    Of features that tell the same, each makes little difference by itself, because the other is still there.

    Args:
        rows: of both samples, in random order within each.
        is_window: bool (n,).
        bandwidth: of the kernel.
        seed: of the shuffles.
    """
    chosen = np.concatenate([np.flatnonzero(is_window == side)[:_RANKED_ROWS] for side in (False, True)])
    values, sides = rows.values[chosen], is_window[chosen].astype(np.uint8)[:, None]
    rng = np.random.default_rng([seed, 2])
    whole = float(mmd2(values, sides, bandwidth)[0])
    falls = np.zeros(len(rows.columns))
    for feature, columns in enumerate(rows.columns):
        if not columns:
            continue
        for _ in range(_SHUFFLES):
            shuffled = values.copy()
            shuffled[:, columns] = values[rng.permutation(len(values))][:, columns]
            falls[feature] += (whole - float(mmd2(shuffled, sides, bandwidth)[0])) / _SHUFFLES
    return falls


def _squared_distances(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """float64 (len(a), len(b)); rounding may not make one negative."""
    squares: NDArray[np.float64] = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)[None, :] - 2 * (a @ b.T)
    np.maximum(squares, 0.0, out=squares)
    return squares
