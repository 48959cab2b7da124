"""Distances between two histograms on the same bins, over any number of features at once.

Every function takes counts of shape (..., n_bins) and gives one number per histogram; an empty histogram gives NaN. Each is
SciPy's value for the same bins (the tests compare them), computed without SciPy. What binning does to each:

- Jensen-Shannon, PSI and chi-square are defined on bins: there is nothing beyond them. Merging bins can only make
  Jensen-Shannon and the unsmoothed PSI smaller.
- Kolmogorov-Smirnov on bins is the largest difference of the two distribution functions *at the edges*, so it is at most
  the value on the raw data, and below it by at most the largest share of any bin in either histogram. It is the same where
  every value has a bin of its own.
- Wasserstein on bins moves every value to its bin's place, so it differs from the value on the raw data by at most the sum
  of both histograms' shares times the largest way a value moved. It is the same where every value has a bin of its own. What
  lies outside of the training range stands at its end: beyond it the value is a lower bound.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "PSEUDO_COUNT",
    "chi_square",
    "cramers_v",
    "divergence_parts",
    "is_discrete",
    "jensen_shannon",
    "kolmogorov_smirnov",
    "places",
    "psi",
    "shares",
    "spread",
    "wasserstein",
]

#: Added to each bin for PSI, which is infinite where one histogram has nothing and the other has something.
PSEUDO_COUNT = 0.5


def shares(counts: ArrayLike) -> NDArray[np.float64]:
    """Counts as shares of their sum: float64 (..., n_bins); NaN for empty histograms."""
    cells = np.asarray(counts, dtype=np.float64)
    total = cells.sum(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(total > 0, cells / total, np.nan))


def jensen_shannon(reference: ArrayLike, current: ArrayLike) -> NDArray[np.float64]:
    """Jensen-Shannon distance to base 2: from 0 (equal) to 1 (nothing in common). Symmetric, a metric, never infinite."""
    divergence = divergence_parts(shares(reference), shares(current)).sum(axis=-1)
    # Rounding can leave a divergence just beyond its bounds.
    return np.asarray(np.sqrt(np.clip(divergence, 0, 1)))


def divergence_parts(p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
    """What each bin adds to the square of the Jensen-Shannon distance between shares: float64 (..., n_bins)."""
    m = (p + q) / 2
    return np.asarray((_relative_entropy(p, m) + _relative_entropy(q, m)) / (2 * np.log(2)))


def psi(reference: ArrayLike, current: ArrayLike, *, pseudo_count: float = PSEUDO_COUNT) -> NDArray[np.float64]:
    """Population stability index, natural logarithm: the sum of both relative entropies.

    Args:
        reference: counts.
        current: counts.
        pseudo_count: added first to every bin of both that is not empty in both; 0 gives infinity where only one has
            nothing in a bin.
    """
    p_counts, q_counts = np.broadcast_arrays(
        np.asarray(reference, dtype=np.float64), np.asarray(current, dtype=np.float64)
    )
    is_filled = (p_counts > 0) | (q_counts > 0)
    is_known = (p_counts.sum(axis=-1) > 0) & (q_counts.sum(axis=-1) > 0)
    p = shares(p_counts + pseudo_count * is_filled)
    q = shares(q_counts + pseudo_count * is_filled)
    with np.errstate(invalid="ignore"):
        value = (_relative_entropy(p, q) + _relative_entropy(q, p)).sum(axis=-1)
    return np.asarray(np.where(is_known, value, np.nan))


def kolmogorov_smirnov(reference: ArrayLike, current: ArrayLike) -> NDArray[np.float64]:
    """Largest difference of the distribution functions at the edges of ordered bins: from 0 to 1."""
    difference = np.cumsum(shares(reference), axis=-1) - np.cumsum(shares(current), axis=-1)
    return np.asarray(np.abs(difference).max(axis=-1))


def wasserstein(reference: ArrayLike, current: ArrayLike, at: ArrayLike) -> NDArray[np.float64]:
    """Earth mover's distance, in the unit of `at`.

    Args:
        reference: counts.
        current: counts.
        at: (..., n_bins) ascending: where each bin's values stand; see `places`.
    """
    difference = np.abs(np.cumsum(shares(reference), axis=-1) - np.cumsum(shares(current), axis=-1))
    gaps = np.diff(np.asarray(at, dtype=np.float64), axis=-1)
    return np.asarray((difference[..., :-1] * gaps).sum(axis=-1))


def chi_square(reference: ArrayLike, current: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Pearson's statistic of homogeneity of two samples, without correction, and its degrees of freedom.

    Bins that are empty in both are left out. 0 with 0 degrees of freedom where one bin holds everything.
    """
    counts = np.stack(np.broadcast_arrays(np.asarray(reference, np.float64), np.asarray(current, np.float64)))
    per_bin = counts.sum(axis=0)
    sizes = counts.sum(axis=-1, keepdims=True)
    total = sizes.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = sizes * per_bin / total
        terms = np.where(per_bin > 0, (counts - expected) ** 2 / expected, 0.0)
    statistic = terms.sum(axis=(0, -1))
    is_known = (sizes > 0).all(axis=(0, -1))
    freedom = np.maximum((per_bin > 0).sum(axis=-1) - 1, 0)
    return np.where(is_known, statistic, np.nan), np.where(is_known, freedom, 0)


def cramers_v(reference: ArrayLike, current: ArrayLike) -> NDArray[np.float64]:
    """Cramér's V of the table of two rows: chi-square as an effect from 0 to 1, whatever the number of rows counted."""
    statistic, _ = chi_square(reference, current)
    total = np.asarray(reference, np.float64).sum(axis=-1) + np.asarray(current, np.float64).sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.sqrt(np.clip(statistic / total, 0, 1)))


def is_discrete(edges: NDArray[Any]) -> NDArray[np.bool_]:
    """Which features have a bin for every value seen in training: their last edge lies right behind the one before.

    Args:
        edges: (n, 24) as in `tiercel.monitor.reference`, in the values' own type.
    """
    n_finite = np.isfinite(edges).sum(axis=1)
    rows = np.arange(len(edges))
    last = edges[rows, np.maximum(n_finite - 1, 0)]
    before = edges[rows, np.maximum(n_finite - 2, 0)]
    with np.errstate(over="ignore"):  # of the largest number there is
        behind = np.nextafter(before, np.asarray(np.inf, edges.dtype))
    return np.asarray((n_finite >= 2) & (last == behind))


def places(edges: NDArray[Any]) -> NDArray[np.float64]:
    """Where the values of each of the 24 finite bins stand, for Wasserstein: float64 (n, 25), ascending.

    The value itself where each has a bin, else the bin's middle. The first and the last bin of a range reach out to its
    most extreme values, so there it is their middle or, if that is nearer, where the mean of an exponential tail would be
    that begins as the bin beside it ends. What lies outside of the range stands at its end, +inf (the 25th) too. Rows
    without edges are zeros.
    """
    n, width = edges.shape
    at = np.zeros((n, width + 1))
    discrete = is_discrete(edges)
    for row, (values, has_values) in enumerate(zip(edges.astype(np.float64), discrete, strict=True)):
        finite = values[np.isfinite(values)]
        if not len(finite):
            continue
        inner = finite[:-1] if has_values else _middles(finite)
        at[row, : len(finite) + 1] = np.concatenate([finite[:1], inner, finite[-1:]])
        at[row, len(finite) + 1 :] = finite[-1]
    return at


def _middles(finite: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where the values between neighbouring edges stand."""
    widths = np.diff(finite)
    reach = widths / 2
    if len(widths) > 2:
        # Two bins of equal shares before the end of an exponential tail: the width of one is ln 2 of its mean.
        reach[-1] = min(reach[-1], widths[-2] / np.log(2))
        reach[0] = max(reach[0], widths[0] - widths[1] / np.log(2))
    return np.asarray(finite[:-1] + reach)


def spread(counts: ArrayLike, at: ArrayLike) -> NDArray[np.float64]:
    """Standard deviation of a histogram whose bins stand at `at`; what Wasserstein is divided by to compare features."""
    p, positions = shares(counts), np.asarray(at, dtype=np.float64)
    mean = (p * positions).sum(axis=-1, keepdims=True)
    return np.asarray(np.sqrt((p * (positions - mean) ** 2).sum(axis=-1)))


def _relative_entropy(p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
    """Terms p ln(p / q): 0 where p is 0, infinite where only q is."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(p == 0, 0.0, p * np.log(p / q)))
