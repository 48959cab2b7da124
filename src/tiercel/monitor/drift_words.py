"""What moved, in words: the sentence beside a verdict."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from tiercel.monitor.distances import divergence_parts, shares

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tiercel.monitor.category_bins import CategoryBins

#: What a window is compared with, in words.
WORDS = {"training": "training", "previous": "the period before", "last-week": "the same time last week"}
#: Bins of categories that a sentence names at most, and the part of the strongest one's change that one must have.
_N_NAMED, _LEAST_PART = 3, 0.1


def describe_shift(
    edges: NDArray[np.float64],
    discrete: bool,
    before: NDArray[np.float64],
    now: NDArray[np.float64],
    beside: str,
) -> str:
    """How present values differ: the interval whose share grew most.

    Args:
        edges: (24,) ascending, unused places +inf; at least one is finite.
        discrete: whether each value has a bin.
        before: (25,) counts of what is compared with, not empty.
        now: (25,) counts, not empty.
        beside: what is compared with, for words.
    """
    finite = edges[np.isfinite(edges)]
    p, q = shares(before), shares(now)
    first, last = _grown_most(q - p)
    where = name_bins(finite, first, last, discrete)
    share, known = float(q[first : last + 1].sum()), float(p[first : last + 1].sum())
    return f"{_share(share)} of the values are {where}, {_share(known)} in {beside}"


def describe_mix(bins: CategoryBins, before: NDArray[np.float64], now: NDArray[np.float64], beside: str) -> str:
    """How the shares of categories differ: those that do most for the Jensen-Shannon distance, most first.

    Args:
        bins: what the counts are of.
        before: (25,) counts of what is compared with, not empty.
        now: (25,) counts, not empty.
        beside: what is compared with, for words.
    """
    p, q = shares(bins.merged(before)), shares(bins.merged(now))
    parts = divergence_parts(p, q)
    named = [i for i in np.argsort(-parts, kind="stable").tolist()[:_N_NAMED] if parts[i] >= _LEAST_PART * parts.max()]
    first, *others = named
    told = [f"{_share(q[first])} of the values are {bins.label(first)} ({_share(p[first])} in {beside})"]
    return ", ".join([*told, *(f"{_share(q[i])} {bins.label(i)} ({_share(p[i])})" for i in others)])


def describe_missing(share: float, known: float, beside: str) -> str:
    """How often it is missing, as the end of a sentence."""
    if not math.isfinite(known):
        return f"missing in {_share(share)} of the rows"
    return f"missing in {_share(share)} of the rows, {_share(known)} in {beside}"


def _grown_most(change: NDArray[np.float64]) -> tuple[int, int]:
    """First and last bin of the run with the largest sum (Kadane's algorithm); the shortest of equal ones."""
    best, best_sum = (0, 0), -math.inf
    start, running = 0, 0.0
    for i, value in enumerate(change.tolist()):
        if running <= 0:
            start, running = i, 0.0
        running += value
        if running > best_sum + 1e-12:
            best, best_sum = (start, i), running
    return best


def name_bins(finite: NDArray[np.float64], first: int, last: int, discrete: bool) -> str:
    """Bins `first` to `last` between finite edges, in words."""
    n = len(finite)
    # In a bin of its own a value stands at the bin's lower edge; the last edge lies right behind the largest value.
    largest = finite[-2] if discrete and n > 1 else finite[-1]
    if first >= n:
        return f"above {_number(largest)}"
    if last == 0:
        return f"below {_number(finite[0])}"
    if discrete and first == last:
        return _number(finite[first - 1])
    low = None if first == 0 else finite[first - 1]
    high = None if last >= n else finite[last - 1] if discrete else finite[last]
    if low is None:
        return "anything" if high is None else f"at most {_number(high)}"
    return f"{_number(low)} or more" if high is None else f"{_number(low)} to {_number(high)}"


def _number(value: float) -> str:
    return f"{value:.4g}"


def _share(share: float) -> str:
    if not math.isfinite(share):
        return "none"
    percent = 100 * share
    if percent in {0, 100}:
        return f"{percent:.0f} %"
    if percent < 0.1:
        return "under 0.1 %"
    return f"{percent:.1f} %" if percent < 99.9 else "over 99.9 %"
