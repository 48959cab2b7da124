"""Counts of scores, and what any rates of positive labels among them would make of each figure.

Figures of a million rows and of two hundred bins of them are computed by the same formulas, so that a figure's spread can be
found by drawing labels for bins instead of rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from tiercel.monitor.business import matrix_values

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tiercel.settings import ValueSettings

_EPSILON: Final = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, eq=False)
class ScoreBins:
    """Scores by bin, ascending. No bin is empty.

    Attributes:
        rows: int64 (n_bins,).
        scores: float64 (n_bins,): the mean score of each.
        least: float64 (n_bins,): the lowest score of each; it decides, for a mean may be rounded over a threshold.
        loss_yes, loss_no: float64: sums of the log loss of its scores, were their labels 1 or 0; None: no probabilities.
        square_yes, square_no: likewise of the squared error.
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float64]
    least: NDArray[np.float64]
    loss_yes: NDArray[np.float64] | None
    loss_no: NDArray[np.float64] | None
    square_yes: NDArray[np.float64]
    square_no: NDArray[np.float64]

    @classmethod
    def of(cls, scores: NDArray[np.float64]) -> ScoreBins:
        """A bin for each different score."""
        values, counts = np.unique(scores, return_counts=True)
        rows = counts.astype(np.float64)
        loss_yes: NDArray[np.float64] | None = None
        loss_no: NDArray[np.float64] | None = None
        if values[0] >= 0 and values[-1] <= 1:
            kept = np.clip(values, _EPSILON, 1 - _EPSILON)
            loss_yes, loss_no = -rows * np.log(kept), -rows * np.log(1 - kept)
        return cls(
            counts.astype(np.int64), values, values, loss_yes, loss_no, rows * (1 - values) ** 2, rows * values**2
        )

    def merged(self, n_bins: int, threshold: float) -> ScoreBins:
        """About `n_bins` bins of about equal counts; none holds scores on both sides of the threshold."""
        before = np.cumsum(self.rows) - self.rows
        places = before * n_bins // int(self.rows.sum())
        places = places * 2 + (self.least >= threshold)
        starts = np.flatnonzero(np.diff(places, prepend=-1))

        def total(values: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.add.reduceat(values, starts)

        rows = np.add.reduceat(self.rows, starts)
        return ScoreBins(
            rows,
            total(self.rows * self.scores) / rows,
            self.least[starts],
            None if self.loss_yes is None else total(self.loss_yes),
            None if self.loss_no is None else total(self.loss_no),
            total(self.square_yes),
            total(self.square_no),
        )

    def figures(
        self, rates: NDArray[np.float64], threshold: float, settings: ValueSettings | None = None
    ) -> dict[str, NDArray[np.float64]]:
        """The figures under some rates of positive labels.

        Args:
            rates: float64 (k, n_bins). The first line holds probabilities, and its figures are expectations; the others hold
                shares of labels as they may come.
            threshold: of decisions.
            settings: with a cost matrix, for money per answer.

        Returns:
            float64 (k,) per name; NaN where it is not defined.
        """
        n = int(self.rows.sum())
        yes = rates * self.rows
        no = self.rows - yes
        n_yes, n_no = yes.sum(axis=1), no.sum(axis=1)
        decided = self.least >= threshold
        n_decided = int(self.rows[decided].sum())
        hits, right_no = yes[:, decided].sum(axis=1), no[:, ~decided].sum(axis=1)
        # Pairs in order, ties by half. A row makes no pair with itself: with probabilities that has to be taken off.
        ordered = (yes * (np.cumsum(no, axis=1) - no / 2)).sum(axis=1)
        pairs = n_yes * n_no
        itself = float((rates[0] * (1 - rates[0]) * self.rows).sum())
        ordered[0] -= itself / 2
        pairs[0] -= itself
        with np.errstate(divide="ignore", invalid="ignore"):
            found = {
                "auc": ordered / np.where(pairs > 0, pairs, np.nan),
                "base_rate": n_yes / n,
                "accuracy": (hits + right_no) / n,
                "precision": hits / (n_decided or np.nan),
                "recall": hits / n_yes,
                "f1": 2 * hits / (n_decided + n_yes),
            }
        if self.loss_yes is None or self.loss_no is None:
            nothing = np.full(len(rates), np.nan)
            found |= {"log_loss": nothing, "brier": nothing, "calibration_gap": nothing}
        else:
            found["log_loss"] = (rates * self.loss_yes + (1 - rates) * self.loss_no).sum(axis=1) / n
            found["brier"] = (rates * self.square_yes + (1 - rates) * self.square_no).sum(axis=1) / n
            found["calibration_gap"] = (n_yes - float((self.rows * self.scores).sum())) / n
        if settings is not None and settings.true_positive is not None:
            true_positive, false_positive = matrix_values(settings, is_positive=True)
            false_negative, true_negative = matrix_values(settings, is_positive=False)
            money = hits * true_positive + (n_decided - hits) * false_positive
            found["value_per_prediction"] = (money + (n_yes - hits) * false_negative + right_no * true_negative) / n
        return found
