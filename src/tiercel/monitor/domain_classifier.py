"""Can a model tell a window's rows from those it is compared with? If it can, they differ, in whatever way trees can see.

A classifier two-sample test (Lopez-Paz and Oquab 2017, "Revisiting classifier two-sample tests"): gradient boosting learns on
some requests which side a row is of, and the AUC on the others says how well. The p-value is exact: models are trained anew
after each exchange of requests, since areas out of folds are correlated through the rows that their models share, and
DeLong's variance, which does not know that, would be too small.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tiercel.errors import MissingExtraError
from tiercel.monitor.classification import auc
from tiercel.monitor.exchanges import p_value

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from tiercel.monitor.exchanges import Units

#: Times that each feature is shuffled in the rows that a model did not see.
_SHUFFLES = 3
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class ClassifierSettings:
    """How much is spent.

    Attributes:
        n_folds: each is scored by a model of the others.
        n_rounds: trees of a model.
        n_exchanges: for the p-value, at most.
        n_beyond: exchanges with as large an area, after which the answer is plain and drawing stops.
    """

    n_folds: int = 5
    n_rounds: int = 20
    n_exchanges: int = 199
    n_beyond: int = 20


@dataclass(frozen=True, eq=False)
class Separation:
    """What came out.

    Attributes:
        auc: mean over the folds of the area under the ROC curve of rows that the model did not see.
        p_value: of exchanges of requests.
        n_exchanges: that were drawn.
        chance_limit: area that one exchange in a hundred is beyond; None where drawing stopped early.
        scores: float64 (n,): of each row by the model that did not see it; higher: more like the window's.
        folds: int64 (n,): of each row.
        losses: float64 (n_features,): by how much the area falls when a feature is shuffled in the rows that a model did not
            see; of features that tell the same, each makes little difference by itself. Empty unless asked for.
    """

    auc: float
    p_value: float
    n_exchanges: int
    chance_limit: float | None
    scores: NDArray[np.float64]
    folds: NDArray[np.int64]
    losses: NDArray[np.float64]


def measure_separation(
    rows: NDArray[np.float64],
    units: Units,
    *,
    seed: int = 0,
    settings: ClassifierSettings | None = None,
    rank_at: float = 1.0,
    progress: Callable[[int, int], None] | None = None,
) -> Separation:
    """The area, its probability by chance, and which features carry it.

    Args:
        rows: of both samples, float64 (n, n_features), NaN where missing, no feature constant.
        units: the requests behind them, as many of each side as there are folds at least.
        seed: of everything that is drawn.
        settings: by default as above.
        rank_at: rank features where p is no larger.
        progress: called with (done, total) exchanges.

    Raises:
        MissingExtraError: LightGBM is not installed.
    """
    settings = settings or ClassifierSettings()
    rng = np.random.default_rng([seed, 3])
    folds = units.folds(settings.n_folds, rng)
    models = _Models(rows, folds[units.of_row], settings)
    true = models.fit(units.rows())
    drawn: list[float] = []
    n_beyond = 0
    for exchanged in units.exchanges(rng, folds):
        drawn.append(models.fit(units.rows(exchanged)).auc)
        n_beyond += drawn[-1] >= true.auc - 1e-12
        if progress is not None:
            progress(len(drawn), settings.n_exchanges)
        if n_beyond == settings.n_beyond or len(drawn) == settings.n_exchanges:
            break
    stopped = n_beyond == settings.n_beyond
    p = p_value(n_beyond, len(drawn), stopped=stopped)
    limit = None if stopped or len(drawn) < 99 else float(np.quantile(drawn, 0.99, method="higher"))
    losses = models.losses(true, units.rows(), rng) if p <= rank_at else np.empty(0)
    return Separation(true.auc, p, len(drawn), limit, true.scores, models.folds, losses)


@dataclass(frozen=True, eq=False)
class _Fit:
    """Models of one labelling, one per fold, and what they make of the rows that they did not see."""

    auc: float
    scores: NDArray[np.float64]
    boosters: list[Any]


class _Models:
    """Trains one model per fold for any labelling; values are put into bins once.

    Args:
        rows: float64 (n, n_features).
        folds: int64 (n,).
        settings: of the models.
    """

    def __init__(self, rows: NDArray[np.float64], folds: NDArray[np.int64], settings: ClassifierSettings) -> None:
        try:
            import lightgbm
        except ImportError as error:
            raise MissingExtraError(
                package="lightgbm", extra="lightgbm", purpose="The domain classifier (--test mmd needs nothing)"
            ) from error
        self.folds = folds
        self._lightgbm, self._settings = lightgbm, settings
        self._rows = np.clip(rows, -_LARGEST, _LARGEST)  # an infinity is the farthest value; NaN stays missing
        # One thread: the work is small, and a second one waits for the first as soon as a core is shared.
        self._parameters = {
            "objective": "binary", "num_leaves": 15, "learning_rate": 0.1, "min_data_in_leaf": 20, "max_bin": 63,
            "feature_pre_filter": False, "num_threads": 1, "deterministic": True, "force_row_wise": True, "seed": 0,
            "verbosity": -1,
        }  # fmt: skip
        everything = lightgbm.Dataset(self._rows, np.zeros(len(rows)), params=self._parameters).construct()
        self._members = [np.flatnonzero(folds == i) for i in range(settings.n_folds)]
        self._others = [np.flatnonzero(folds != i) for i in range(settings.n_folds)]
        self._datasets = [everything.subset(others).construct() for others in self._others]

    def fit(self, is_window: NDArray[np.bool_]) -> _Fit:
        """Train on each fold's others and score the fold."""
        scores = np.empty(len(self._rows))
        boosters, areas = [], []
        for members, others, dataset in zip(self._members, self._others, self._datasets, strict=True):
            dataset.set_label(is_window[others].astype(np.float32))
            boosters.append(self._lightgbm.train(self._parameters, dataset, self._settings.n_rounds))
            scores[members] = boosters[-1].predict(self._rows[members], num_threads=1)
            areas.append(_area(scores[members], is_window[members]))
        return _Fit(float(np.mean(areas)), scores, boosters)

    def losses(self, fit: _Fit, is_window: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.float64]:
        """By how much the mean area falls when a feature is shuffled among the rows of each fold: float64 (n_features,)."""
        losses = np.zeros(self._rows.shape[1])
        share = 1 / (_SHUFFLES * len(fit.boosters))
        for members, booster in zip(self._members, fit.boosters, strict=True):
            rows, sides = self._rows[members], is_window[members]
            area = _area(fit.scores[members], sides)
            for feature in np.flatnonzero(booster.feature_importance("split")).tolist():
                for _ in range(_SHUFFLES):
                    shuffled = rows.copy()
                    shuffled[:, feature] = rng.permutation(rows[:, feature])
                    losses[feature] += share * (area - _area(booster.predict(shuffled, num_threads=1), sides))
        return losses


def _area(scores: NDArray[np.float64], is_window: NDArray[np.bool_]) -> float:
    """The area under the ROC curve; 0.5 where one side has no row."""
    value = auc(scores, is_window).value
    return 0.5 if value is None else value
