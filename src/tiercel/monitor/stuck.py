"""Features that stand still: every value in one bin, where the windows before had several.

A feed that repeats itself looks like a population that moved, and is none: a population does not come to one place at once.
What tells a stuck feed from a feature that is constant by its nature - the month, within an hour - is that earlier windows of
the same length varied, each of them. A feature that has values of its own for bins stands at one value then; another stands
within one of 24 parts of what was usual, or outside of all of it, which is what a changed unit or a stand-in like -999 does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import numpy as np

from tiercel.monitor.distances import is_discrete
from tiercel.monitor.drift_words import name_bins
from tiercel.monitor.tails import predicted_tail
from tiercel.monitor.thresholds import dispersion_of, value_bins

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from numpy.typing import NDArray

    from tiercel.monitor.category_bins import CategoryBins
    from tiercel.monitor.window import Window

#: Fewer present values, now or in an earlier window, tell nothing.
LEAST_VALUES: Final = 100
#: Earlier windows that must have varied before one that does not is strange.
LEAST_WINDOWS: Final = 6


@dataclass(frozen=True)
class Stuck:
    """A feature that stands still.

    Attributes:
        name: of the feature.
        n: present values in the window, all at one place.
        where: that place, in words.
        usual_share: share of values at that place in the windows before; NaN where they all stood still as well.
        p_value: probability by chance that all are.
    """

    name: str
    n: int
    where: str
    usual_share: float
    p_value: float

    @property
    def reason(self) -> str:
        """One sentence why."""
        return f"All {self.n:,} values are {self.where}; {self.usual}"

    @property
    def usual(self) -> str:
        """How often a value was at that place, in words."""
        if math.isnan(self.usual_share):
            return "it has stood still for long"
        return f"{self.usual_share:.1%} were in the windows before"


@dataclass(frozen=True)
class Stillness:
    """What a window shows: features that stand still, and those that are seen to vary."""

    stuck: tuple[Stuck, ...] = ()
    varied: frozenset[str] = field(default_factory=frozenset)


def find_stuck(
    window: Window,
    history: Sequence[Window],
    alpha: float,
    *,
    known: Collection[str] = (),
    categories: Mapping[str, CategoryBins] = MappingProxyType({}),
) -> Stillness:
    """Features that stand still beyond chance.

    Args:
        window: what is judged. One of a few minutes is not for this: a customer's batch may be all there is in it.
        history: earlier windows of the same length, oldest first.
        alpha: probability by chance of calling any of the features stuck.
        known: features that stood still in the window before: once no earlier window is left in which they varied, they
            stand still for as long as they do.
        categories: the bins of features that are categories, for words.
    """
    alpha /= max(1, len(window.features))
    bins = value_bins(window.feature_counts)
    totals, filled = bins.sum(axis=1), (bins > 0).sum(axis=1)
    varied = frozenset(
        name for name, total, n in zip(window.features, totals, filled, strict=True) if total >= LEAST_VALUES and n > 1
    )
    still = [int(i) for i in np.flatnonzero((totals >= LEAST_VALUES) & (filled == 1))]
    if not still:
        return Stillness(varied=varied)
    earlier = [value_bins(each.feature_counts) for each in history if each.has_edges_of(window)]
    dispersion = dispersion_of(history)
    discrete = is_discrete(window.feature_edges)
    found = []
    for i in still:
        name, at, n = window.features[i], int(np.argmax(bins[i])), int(totals[i])
        usual = _usual([each[i] for each in earlier], at)
        if usual is not None and dispersion is not None:
            # Rows of one request are hardly independent, nor are those of one busy customer.
            n_free = max(1, min(round(n / float(dispersion[0][i])), window.n_requests))
            p_value = predicted_tail(n_free, n_free, int(usual[at]), int(usual.sum()))
            share = float(usual[at] / usual.sum())
        elif name in known:
            p_value, share = 0.0, math.nan
        else:
            continue
        if p_value <= alpha:
            edges = window.feature_edges[i]
            if name in categories:
                where = categories[name].on(edges).label(at)
            else:
                where = name_bins(edges[np.isfinite(edges)].astype(np.float64), at, at, bool(discrete[i]))
            found.append(Stuck(name, n, where, share, p_value))
    return Stillness(tuple(found), varied)


def _usual(earlier: Sequence[NDArray[np.float64]], at: int) -> NDArray[np.float64] | None:
    """One feature's values in earlier windows, before it came to stand at `at`; None where it is not known to vary.

    The newest windows that stand at the same place belong to what is judged: a feed that has stood still for hours does
    not become usual by it.
    """
    full = [bins for bins in earlier if bins.sum() >= LEAST_VALUES]
    while full and full[-1][at] == full[-1].sum():
        full.pop()
    if len(full) < LEAST_WINDOWS or any((bins > 0).sum() < 2 for bins in full):
        return None
    return np.asarray(np.sum(full, axis=0))
