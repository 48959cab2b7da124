"""What moved, in words: the sentence beside a verdict."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from tiercel.monitor.distances import shares

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: What a window is compared with, in words.
WORDS = {"training": "training", "previous": "the period before", "last-week": "the same time last week"}


def describe_shift(
    edges: NDArray[np.float64],
    discrete: bool,
    before: NDArray[np.float64],
    now: NDArray[np.float64],
    medians: tuple[float, float],
    beside: str,
) -> str:
    """How present values differ, by what moved most.

    Args:
        edges: (24,) ascending, unused places +inf.
        discrete: whether each value has a bin.
        before: (25,) counts of what is compared with, not empty.
        now: (25,) counts, not empty.
        medians: now and before.
        beside: what is compared with, for words.
    """
    finite = edges[np.isfinite(edges)]
    p, q = shares(before), shares(now)
    change = q - p
    below, above = float(change[0]), float(change[len(finite) :].sum())
    largest = max(range(len(change)), key=lambda i: abs(change[i]))
    if max(below, above) >= 0.5 * np.abs(change).sum() / 2:  # most of what moved left the range
        where = f"below {_number(finite[0])}" if below >= above else f"above {_number(_last_value(finite, discrete))}"
        share = float(q[0] if below >= above else q[len(finite) :].sum())
        known = float(p[0] if below >= above else p[len(finite) :].sum())
        return f"{_share(share)} of the values are {where}, where {beside} had {_share(known)}"
    if discrete and 1 <= largest < len(finite):
        return f"{_number(finite[largest - 1])} is {_share(q[largest])} of the values, {_share(p[largest])} in {beside}"
    now_median, known_median = medians
    if math.isfinite(now_median) and _number(now_median) != _number(known_median):
        return f"The median is {_number(now_median)}, {_number(known_median)} in {beside}"
    return f"{_share(q[largest])} of the values are {_interval(finite, largest)}, {_share(p[largest])} in {beside}"


def describe_missing(share: float, known: float, beside: str) -> str:
    """How often it is missing, as the end of a sentence."""
    if not math.isfinite(known):
        return f"missing in {_share(share)} of the rows"
    return f"missing in {_share(share)} of the rows, {_share(known)} in {beside}"


def _interval(finite: NDArray[np.float64], i: int) -> str:
    if i == 0:
        return f"below {_number(finite[0])}"
    if i >= len(finite):
        return f"above {_number(finite[-1])}"
    return f"from {_number(finite[i - 1])} to {_number(finite[i])}"


def _last_value(finite: NDArray[np.float64], discrete: bool) -> float:
    return float(finite[-2] if discrete and len(finite) > 1 else finite[-1])


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
