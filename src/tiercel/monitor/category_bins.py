"""Bins of a feature that is a category: a text whose dictionary gives each value a code.

Counters see codes. Their order is that of a dictionary and means nothing, so nothing may be made of it: no median, no
distribution function, no "3 or more". What a bin holds are the categories whose codes lie between its edges: one where bins
reach, several rare ones where they do not. A code keeps its category for as long as a version is served (dictionaries only
grow, and a base that gives codes other meanings is refused); what training had no code for is counted behind the last edge.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

#: What a bin outside of the edges holds, in words.
NEW: Final = "new categories"
#: Names that are kept of a bin of several categories, the commonest first.
MAX_NAMES: Final = 3
#: A name that is longer is cut: it is for reading, and may be a whole text.
MAX_NAME_CHARS: Final = 60


@dataclass(frozen=True)
class CategoryGroup:
    """What one bin holds.

    Attributes:
        n: categories.
        names: of all of them where they are few, else of the commonest; in full up to `MAX_NAME_CHARS`.
    """

    n: int
    names: tuple[str, ...]

    @property
    def label(self) -> str:
        """In words."""
        shown = [repr(name) for name in self.names]
        if self.n > len(shown):
            shown = [*shown[: MAX_NAMES - 1], f"{self.n - len(shown[: MAX_NAMES - 1])} others"]
        return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} or {shown[-1]}"


@dataclass(frozen=True, eq=False)
class CategoryBins:
    """The bins of one feature.

    Attributes:
        edges: (24,) ascending, unused places +inf; of codes.
        groups: a group for each bin between finite edges; None: what codes mean is not known.
    """

    edges: NDArray[np.float32]
    groups: tuple[CategoryGroup, ...] | None = None

    @classmethod
    def of(
        cls, edges: NDArray[np.float32], categories: Sequence[str], counts: NDArray[Any] | None = None
    ) -> CategoryBins:
        """Bins of known categories.

        Args:
            edges: (24,).
            categories: in code order.
            counts: (n_categories,): how often each was seen; None: in code order.
        """
        n = len(categories)
        seen = np.zeros(n) if counts is None else np.asarray(counts)
        starts = np.ceil(edges[np.isfinite(edges)]).astype(np.int64).tolist()
        groups = []
        for first, behind in pairwise(min(start, n) for start in starts):
            commonest = first + np.argsort(-seen[first:behind], kind="stable")[:MAX_NAMES]
            names = tuple(_cut(categories[code]) for code in commonest.tolist())
            groups.append(CategoryGroup(max(1, behind - first), names))
        return cls(edges, tuple(groups))

    @property
    def n_edges(self) -> int:
        """Finite ones."""
        return int(np.isfinite(self.edges).sum())

    def on(self, edges: NDArray[Any]) -> CategoryBins:
        """These bins, if they are those of the edges that were counted on; else bins of those edges, whose names are not known."""
        return self if np.array_equal(self.edges, edges) else CategoryBins(np.asarray(edges, np.float32))

    def group(self, i: int) -> CategoryGroup | None:
        """Of bin i; None for what lies outside of the edges, or where nothing is known."""
        return self.groups[i - 1] if self.groups is not None and 0 < i < self.n_edges else None

    def label(self, i: int) -> str:
        """What bin i holds, in words."""
        if not 0 < i < self.n_edges:
            return NEW
        if (group := self.group(i)) is not None and group.names:
            return group.label
        first, behind = (math.ceil(edge) for edge in self.edges[i - 1 : i + 1].tolist())
        return f"code {first}" if behind - first == 1 else f"codes {first} to {behind - 1}"

    def merged(self, counts: NDArray[np.float64]) -> NDArray[np.float64]:
        """Counts (25,) with what lies outside of the edges in the bin behind the last one; below the first are none then."""
        merged, n = counts.copy(), self.n_edges
        merged[n] += counts[n + 1 :].sum() + (counts[0] if n else 0)
        merged[n + 1 :] = 0
        if n:
            merged[0] = 0
        return merged

    def count(self, codes: NDArray[Any]) -> NDArray[np.float64]:
        """Codes by bin, as `thresholds.value_bins` gives those of counters: float64 (25,). Missing ones are left out."""
        present = codes[~np.isnan(codes)]
        found = np.searchsorted(self.edges, present, side="right")
        return np.bincount(found, minlength=len(self.edges) + 1).astype(np.float64)


def category_starts(counts: NDArray[Any], n_bins: int) -> list[int]:
    """Where bins of codes begin: as many as there may be, each of neighbouring codes.

    The commonest categories have a bin of their own, first of all, as long as one has more than a fair part of the rows that
    are left: whoever has a tenth of all rows, always. The other bins then share the rest so that they tell the most, which is
    measured by entropy: again and again the bin is split that gains most by it. A category that was never seen counts as a
    little: if there is room, it is not in one bin with one that was.

    Args:
        counts: (n_categories,): how often each code was seen.
        n_bins: at most; the tenth is promised of the 22 that a reference has.

    Returns:
        First codes, ascending, from 0.
    """
    n = len(counts)
    weights = np.asarray(counts, np.float64) + 1 / n
    weights /= weights.sum()
    starts, left = {0}, 1.0
    for code in np.argsort(-weights, kind="stable")[:n_bins].tolist():
        alone = starts | {code} | ({code + 1} if code + 1 < n else set())
        if len(alone) > n_bins or weights[code] * max(1, n_bins - len(starts)) <= left:
            break
        starts, left = alone, left - weights[code]
    sums = np.concatenate([[0.0], np.cumsum(weights)])

    def best_split(first: int, behind: int) -> tuple[float, int, int, int]:
        places = np.arange(first + 1, behind)
        parts = sums[places] - sums[first], sums[behind] - sums[places]
        gains = _surprise(parts[0]) + _surprise(parts[1]) - _surprise(parts[0] + parts[1])
        at = int(np.argmax(gains))
        return -float(gains[at]), first, int(places[at]), behind

    whole = sorted(starts)
    splits = [best_split(*part) for part in pairwise([*whole, n]) if part[1] - part[0] > 1]
    heapq.heapify(splits)
    while splits and len(starts) < n_bins:
        _, first, at, behind = heapq.heappop(splits)
        starts.add(at)
        for part in ((first, at), (at, behind)):
            if part[1] - part[0] > 1:
                heapq.heappush(splits, best_split(*part))
    return sorted(starts)


def _surprise(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(-shares * np.log(np.maximum(shares, 1e-300)))


def _cut(name: str) -> str:
    return name if len(name) <= MAX_NAME_CHARS else f"{name[: MAX_NAME_CHARS - 1]}…"
