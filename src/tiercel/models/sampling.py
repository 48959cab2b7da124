"""Attributions of anything that scores rows: Shapley values from random orders of the features.

Along an order, features turn from a reference row's values into the explained row's one by one, and each gets what the
score changes by. Every order is also walked backwards, which cancels the larger part of the variance (antithetic sampling,
Mitchell et al. 2022); reference rows take turns. The mean over pairs of walks is unbiased, and its standard error follows
from how much the pairs differ. Orders are drawn once, so a row's attributions depend on the row alone, not on its neighbours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

#: Pairs of walks for a row: a standard error of about a tenth of the spread of a feature's effects.
DEFAULT_PAIRS = 50
#: Rows of one call of the scorer: bounds its memory, large enough to be a batch.
CHUNK_ROWS = 8192


class PermutationSampler:
    """Sampled attributions of `score`.

    Args:
        score: float32 (n, p) -> float64 (n,).
        reference: float32 (b, p): what absent features are.
        pairs: pairs of walks for a row; at least 2, or there is no standard error.
        seed: of the orders and of the turns of the reference rows.

    Threads: safe as far as `score` is.
    """

    def __init__(
        self,
        score: Callable[[NDArray[np.float32]], NDArray[np.float64]],
        reference: NDArray[np.float32],
        *,
        pairs: int = DEFAULT_PAIRS,
        seed: int = 0,
    ) -> None:
        if pairs < 2:
            raise ValueError(f"Expected at least 2 pairs of walks, got {pairs}")
        self._score, self._reference = score, np.ascontiguousarray(reference, dtype=np.float32)
        n_reference, n_features = self._reference.shape
        draw = np.random.default_rng(seed)
        self._orders = np.stack([draw.permutation(n_features) for _ in range(pairs)])
        turns = [draw.permutation(n_reference) for _ in range(-(-pairs // n_reference))]
        self._turns = np.concatenate(turns)[:pairs]
        self._reference_scores = score(self._reference)
        self.expected = float(np.mean(self._reference_scores))
        self._rank = np.argsort(self._orders, axis=1)  # of each feature within its order

    @property
    def rows_per_row(self) -> int:
        """Rows that are scored to explain one."""
        pairs, n_features = self._orders.shape
        return int(pairs * 2 * (n_features - 1) + 1)

    def explain(self, rows: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(attributions, standard errors), both (n, p); `expected` and a row's attributions add up to its score.

        What the sampled reference rows differ by from the mean of all is spread over the features in proportion to their
        variances, which leaves a feature that never had an effect at zero as long as any had one.
        """
        rows = np.ascontiguousarray(rows, dtype=np.float32)
        values, errors = np.empty(rows.shape), np.empty(rows.shape)
        if not len(rows):
            return values, errors
        scores = np.concatenate([self._score(rows[k : k + CHUNK_ROWS]) for k in range(0, len(rows), CHUNK_ROWS)])
        for k, row in enumerate(rows):
            values[k], errors[k] = self._explain(row, float(scores[k]))
        return values, errors

    def _explain(self, row: NDArray[np.float32], score: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        pairs, n_features = self._orders.shape
        start = self._reference_scores[self._turns]
        between = self._walk(row)
        effects = np.empty((pairs, n_features))
        half = n_features - 1
        backwards = self._orders[:, ::-1]
        for order, found, first in ((self._orders, between[:, :half], True), (backwards, between[:, half:], False)):
            path = np.concatenate([start[:, None], found, np.full((pairs, 1), score)], axis=1)
            change = np.empty_like(effects)
            np.put_along_axis(change, order, np.diff(path, axis=1), axis=1)
            effects = change if first else (effects + change) / 2
        phi = effects.mean(axis=0)
        variance = effects.var(axis=0, ddof=1) / pairs
        residual = score - self.expected - phi.sum()
        moved = (effects != 0).any(axis=0)
        weight = variance if variance.sum() > 0 else moved.astype(np.float64)
        weight = weight if weight.sum() > 0 else np.ones(n_features)
        return phi + residual * weight / weight.sum(), np.sqrt(variance)

    def _walk(self, row: NDArray[np.float32]) -> NDArray[np.float64]:
        """Scores of every step between a walk's ends: (pairs, 2 (p - 1))."""
        pairs, n_features = self._orders.shape
        step = np.arange(1, n_features)[None, :, None]
        n_steps = 2 * (n_features - 1)
        scores = np.empty((pairs, n_steps))
        together = max(1, CHUNK_ROWS // max(n_steps, 1))
        for first in range(0, pairs if n_steps else 0, together):
            part = slice(first, first + together)
            rank = self._rank[part, None, :]
            # Forwards the first features of the order are the row's, backwards the last.
            present = np.concatenate([rank < step, rank >= n_features - step], axis=1)
            mixed = np.where(present, row, self._reference[self._turns[part]][:, None, :]).reshape(-1, n_features)
            scores[part] = self._score(np.ascontiguousarray(mixed)).reshape(-1, n_steps)
        return scores
