"""Do rows end in other leaves of a forest than they did? A test of whole rows that sees what the model itself tells apart.

A forest's leaves are cells of the feature space, cut where the score changes. Counts of rows per leaf are therefore a
histogram over whole rows on bins that matter to the model: a shift along a direction it ignores leaves them as they are, and
a combination of features that it does tell apart moves them though each feature stays where it was.

Of each tree the distance between the two samples' shares p and q by leaf is half the symmetric chi-square (Vincze 1981, Le
Cam 1986): sum (p - q)^2 / (p + q) / 2, which is 0 where they are equal, 1 where no leaf has rows of both, and needs no
smoothing where a leaf is empty. The statistic is its mean over the trees. Its probability by chance is counted among
exchanges of whole requests, so that trees that look at the same features need not be independent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from tiercel.monitor.exchanges import p_value

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from tiercel.monitor.exchanges import Units

    Leaves = Callable[[NDArray[np.float32]], NDArray[np.int32]]

#: Exchanges for the p-value, at most; drawing stops when so many were as far apart.
EXCHANGES: Final = 499
BEYOND: Final = 20
#: Of more trees so many are looked at, evenly spaced: boosted trees of neighbouring rounds say much the same.
MAX_TREES: Final = 256
#: Empty bins of the population stability index are filled with this share, as is usual.
_PSI_FLOOR: Final = 1e-4
_SHUFFLES: Final = 2


@dataclass(frozen=True, eq=False)
class Occupancy:
    """What came out.

    Attributes:
        distance: mean over the trees, from 0 to 1.
        psi: mean over the trees of the population stability index, for those who know that scale.
        by_tree: float64 (n_trees,): each tree's distance.
        p_value: of exchanges of requests.
        n_exchanges: that were drawn.
        chance_mean: distance that exchanges have on average: more the fewer rows there are.
        chance_limit: distance that one exchange in a hundred is beyond; None where drawing stopped early.
        n_trees: looked at.
    """

    distance: float
    psi: float
    by_tree: NDArray[np.float64]
    p_value: float
    n_exchanges: int
    chance_mean: float
    chance_limit: float | None
    n_trees: int


class _Counted:
    """Rows' leaves as places in one array of counts over all trees.

    Args:
        leaves: int32 (n, n_trees).
    """

    def __init__(self, leaves: NDArray[np.int32]) -> None:
        chosen = np.unique(np.linspace(0, leaves.shape[1] - 1, min(MAX_TREES, leaves.shape[1])).astype(np.int64))
        leaves = leaves[:, chosen]
        sizes = leaves.max(axis=0, initial=0).astype(np.int64) + 1
        self.starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        self.n_places = int(sizes.sum())
        self._places = leaves + self.starts
        self.totals = np.bincount(self._places.ravel(), minlength=self.n_places)

    @property
    def n_trees(self) -> int:
        return len(self.starts)

    def shares(self, is_window: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Of the window's rows and of the others, by place."""
        n_window = int(is_window.sum())
        is_few = 2 * n_window <= len(is_window)  # the smaller side is counted, the other follows
        counted = np.bincount(self._places[is_window if is_few else ~is_window].ravel(), minlength=self.n_places)
        now = counted if is_few else self.totals - counted
        return now / n_window, (self.totals - now) / (len(is_window) - n_window)

    def by_tree(self, is_window: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Each tree's distance."""
        now, before = self.shares(is_window)
        both = now + before
        parts = np.divide((now - before) ** 2, 2 * both, out=np.zeros(self.n_places), where=both > 0)
        return np.add.reduceat(parts, self.starts)

    def psi(self, is_window: NDArray[np.bool_]) -> float:
        """Mean over the trees."""
        now, before = (np.maximum(each, _PSI_FLOOR) for each in self.shares(is_window))
        parts = np.where(self.totals > 0, (now - before) * np.log(now / before), 0.0)
        return float(parts.sum()) / self.n_trees


def measure_occupancy(
    leaves: NDArray[np.int32],
    units: Units,
    *,
    seed: int = 0,
    n_exchanges: int = EXCHANGES,
    progress: Callable[[int, int], None] | None = None,
) -> Occupancy:
    """The distance between window and comparison, and its probability by chance.

    Args:
        leaves: of both samples' rows, int32 (n, n_trees), one tree at least.
        units: the requests behind them, one of each side at least.
        seed: of the exchanges.
        n_exchanges: for the p-value, at most.
        progress: called with (done, total) exchanges.
    """
    counted = _Counted(leaves)
    rng = np.random.default_rng([seed, 4])
    is_window = units.rows()
    by_tree = counted.by_tree(is_window)
    true = float(by_tree.mean())
    drawn: list[float] = []
    n_beyond = 0
    for exchanged in units.exchanges(rng):
        drawn.append(float(counted.by_tree(units.rows(exchanged)).mean()))
        n_beyond += drawn[-1] >= true - 1e-12
        if progress is not None:
            progress(len(drawn), n_exchanges)
        if n_beyond == BEYOND or len(drawn) == n_exchanges:
            break
    stopped = n_beyond == BEYOND
    return Occupancy(
        distance=true,
        psi=counted.psi(is_window),
        by_tree=by_tree,
        p_value=p_value(n_beyond, len(drawn), stopped=stopped),
        n_exchanges=len(drawn),
        chance_mean=float(np.mean(drawn)),
        chance_limit=None if stopped or len(drawn) < 99 else float(np.quantile(drawn, 0.99, method="higher")),
        n_trees=counted.n_trees,
    )


def rank_by_leaves(
    rows: NDArray[np.float32], is_window: NDArray[np.bool_], leaves_of: Leaves, *, seed: int = 0
) -> NDArray[np.float64]:
    """By how much the distance falls when a feature is shuffled over all rows, so that it tells nothing: float64 (n_features,).

    Of features that tell the same, each makes little difference by itself, because the other is still there.

    Args:
        rows: of both samples, float32 (n, n_features), as the model takes them.
        is_window: bool (n,).
        leaves_of: rows -> leaves, int32 (n, n_trees).
        seed: of the shuffles.
    """
    rng = np.random.default_rng([seed, 5])
    whole = float(_Counted(leaves_of(rows)).by_tree(is_window).mean())
    falls = np.zeros(rows.shape[1])
    for feature in range(rows.shape[1]):
        for _ in range(_SHUFFLES):
            shuffled = rows.copy()
            shuffled[:, feature] = rng.permutation(rows[:, feature])
            falls[feature] += whole - float(_Counted(leaves_of(shuffled)).by_tree(is_window).mean())
    return falls / _SHUFFLES
