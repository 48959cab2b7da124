"""What Evidently and NannyML make of a window, as statistics: the largest over all columns, as their defaults choose tests.

Each is set up as its documentation advises for a reference of this size; only the limit, which `bench_drift` sets for all alike,
is not theirs. A peer that is not installed is named with the reason.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Statistic = Callable[[np.ndarray, Any], float]
#: Evidently tests a numeric column of no more distinct values than this as a categorical one.
_FEW_VALUES = 5


def peer_statistics(X: np.ndarray) -> Iterator[tuple[str, Statistic]]:
    """Name and statistic of each peer that is installed.

    Args:
        X: reference rows.
    """
    for name, make in (("evidently", _evidently), ("nannyml", _nannyml)):
        try:
            with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
                warnings.simplefilter("ignore")
                statistic = make(X)
        except Exception as error:  # noqa: BLE001 - whatever keeps a peer from running is its line in the table
            print(f"  {name} is left out: {type(error).__name__}: {(str(error) or '-').splitlines()[0]}")
            continue
        yield f"{name} {importlib.metadata.version(name)}, defaults", statistic


def _evidently(X: np.ndarray) -> Statistic:
    """Of references beyond 1,000 rows: Wasserstein over the deviation, or Jensen-Shannon for columns of few values."""
    import pandas as pd
    from evidently.legacy.calculations.stattests import jensenshannon_stat_test, wasserstein_stat_test
    from evidently.legacy.core import ColumnType

    columns = [pd.Series(column) for column in X.T]
    few = [column.nunique() <= _FEW_VALUES for column in columns]

    def statistic(now: np.ndarray, _: Any) -> float:
        scores = []
        for column, is_few, values in zip(columns, few, now.T, strict=True):
            test = jensenshannon_stat_test if is_few else wasserstein_stat_test
            kind = ColumnType.Categorical if is_few else ColumnType.Numerical
            scores.append(test(column, pd.Series(values), kind, None).drift_score)
        return float(max(scores))

    statistic(X[:100], None)
    return statistic


def _nannyml(X: np.ndarray) -> Statistic:
    """Jensen-Shannon distance per column on its bins of the reference, continuous and categorical."""
    import pandas as pd
    from nannyml.chunk import SizeBasedChunker
    from nannyml.drift.univariate.methods import CategoricalJensenShannonDistance, ContinuousJensenShannonDistance
    from nannyml.thresholds import StandardDeviationThreshold

    methods = []
    for column in X.T:
        is_few = len(np.unique(column)) <= 10
        kind = CategoricalJensenShannonDistance if is_few else ContinuousJensenShannonDistance
        method = kind(chunker=SizeBasedChunker(500), threshold=StandardDeviationThreshold())
        series = pd.Series(column, name="column")
        methods.append((method.fit(series.astype("category") if is_few else series), is_few))

    def statistic(now: np.ndarray, _: Any) -> float:
        found = []
        for (method, is_few), values in zip(methods, now.T, strict=True):
            series = pd.Series(values, name="column")
            found.append(method.calculate(series.astype("category") if is_few else series))
        return float(np.nanmax(found))

    statistic(X[:100], None)
    return statistic
