"""What chance does: whole requests exchanged between two samples, and the p-value of a statistic among such exchanges.

Rows of one request share an entity, a moment, often a caller; they are not independent, and a test that exchanges them one by
one finds drift where there is none. Requests are the units here. An entity that asks very often is not accounted for: then p
is too small.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Units:
    """The requests behind the rows of two samples laid one behind the other.

    Attributes:
        of_row: int64 (n,): a row's request.
        is_window: bool (n_requests,): whether a request is of the second sample, the window.
    """

    of_row: NDArray[np.int64]
    is_window: NDArray[np.bool_]

    @classmethod
    def of(cls, beside: NDArray[np.int64], window: NDArray[np.int64]) -> Units:
        """From each sample's own request numbers, which begin at 0 and leave none out."""
        n_beside = int(beside.max()) + 1 if len(beside) else 0
        n_window = int(window.max()) + 1 if len(window) else 0
        return cls(np.concatenate([beside, window + n_beside]), np.arange(n_beside + n_window) >= n_beside)

    def rows(self, is_window: NDArray[np.bool_] | None = None) -> NDArray[np.bool_]:
        """Which rows are the window's, of requests on these sides: bool (n,)."""
        return (self.is_window if is_window is None else is_window)[self.of_row]

    def folds(self, n_folds: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """A fold for each request, as many of either side in each as can be: int64 (n_requests,)."""
        folds = np.empty(len(self.is_window), np.int64)
        for side in (False, True):
            members = np.flatnonzero(self.is_window == side)
            folds[members] = rng.permutation(np.arange(len(members)) % n_folds)
        return folds

    def exchanges(
        self, rng: np.random.Generator, folds: NDArray[np.int64] | None = None
    ) -> Iterator[NDArray[np.bool_]]:
        """Sides of all requests after random exchanges, without end: bool (n_requests,).

        Args:
            rng: draws.
            folds: int64 (n_requests,): exchange within each only. Folds that were laid by the true sides stay what they are
                under exchanges within them, which is what makes p exact.
        """
        members = (
            [np.arange(len(self.is_window))]
            if folds is None
            else [np.flatnonzero(folds == i) for i in np.unique(folds)]
        )
        while True:
            sides = self.is_window.copy()
            for of_fold in members:
                sides[of_fold] = rng.permutation(sides[of_fold])
            yield sides


def p_value(n_beyond: int, n_drawn: int, *, stopped: bool = False) -> float:
    """Probability by chance of a statistic that `n_beyond` of `n_drawn` exchanges reach.

    The true sides count as one exchange (Phipson and Smyth 2010), but where drawing stopped at a number of exchanges beyond
    that was fixed before: then it is the share (Besag and Clifford 1991). Both are exact.
    """
    return n_beyond / n_drawn if stopped else (n_beyond + 1) / (n_drawn + 1)
