"""Figures of one's own: SQL aggregates over `outcomes`, per group, with intervals.

    [models.fraud.value.metrics]
    refused = "avg(CAST(score >= 0.3 AS DOUBLE))"
    lost_per_order = "sum(amount) FILTER (label = 1 AND score < 0.3) / count(*)"

An aggregate sees the cohort's rows as `outcomes` has them, except that `label` is null where no label came in time. Its
interval comes from computing it again without each of 20 folds of requests: right for averages, ratios and what is as
smooth, rough for a median, wrong for a maximum. Rows of one request stay together, so that they need not be independent.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import duckdb
import numpy as np

from tiercel.errors import DefinitionError
from tiercel.monitor.cohorts import first_line
from tiercel.monitor.intervals import CONFIDENCE, Estimate, jackknife

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tiercel.monitor.cohorts import Cohort, GroupKey, Outcomes

N_FOLDS: Final = 20


def custom_metrics(
    outcomes: Outcomes, cohort: Cohort, metrics: Sequence[tuple[str, str]], *, confidence: float = CONFIDENCE
) -> dict[GroupKey, dict[str, Estimate]]:
    """Each metric of each group.

    Args:
        outcomes: of the model.
        cohort: whose rows.
        metrics: (name, SQL aggregate).
        confidence: of the intervals.

    Raises:
        DefinitionError: a metric is not an aggregate over `outcomes` that gives a number.
    """
    found: dict[GroupKey, dict[str, Estimate]] = {}
    for name, sql in metrics:
        for key, estimate in _metric(outcomes, cohort, name, sql, confidence).items():
            found.setdefault(key, {})[name] = estimate
    return found


def _metric(outcomes: Outcomes, cohort: Cohort, name: str, sql: str, confidence: float) -> dict[GroupKey, Estimate]:
    codes = outcomes.codes(cohort)
    dimensions = [f"__{each}" for each in codes.names]
    sets = ", ".join(
        f"({', '.join(['__k', '__version', '__role', *more])})" for more in [[], *([d] for d in dimensions)]
    )
    # Fold N_FOLDS is nobody's: leaving it out is the figure of all rows.
    query = f"""
        SELECT __version, __role, {"".join(f"{each}, " for each in dimensions)} __k, count(*),
               CAST(({sql}\n) AS DOUBLE)
        FROM (SELECT *, hash(id) % {N_FOLDS} AS __fold FROM ({outcomes.whole_rows(cohort, codes)})) __rows
        JOIN (SELECT unnest(range({N_FOLDS + 1})) AS __k) __folds ON __fold <> __k
        GROUP BY GROUPING SETS ({sets})
    """
    try:
        rows = outcomes.connection.execute(query, codes.parameters).fetchall()
    except duckdb.Error as error:
        raise DefinitionError(
            f"models.{outcomes.model}.value.metrics.{name}: expected an SQL aggregate over 'outcomes' that gives a number, "
            f"got: {first_line(error)}"
        ) from error
    values: dict[GroupKey, dict[int, tuple[int, float]]] = {}
    for version, role, *rest in rows:
        *places, fold, n, value = rest
        key = codes.key(int(version), int(role), places)
        values.setdefault(key, {})[int(fold)] = int(n), math.nan if value is None else float(value)
    return {key: _estimate(of_fold, confidence) for key, of_fold in values.items()}


def _estimate(of_fold: dict[int, tuple[int, float]], confidence: float) -> Estimate:
    n, whole = of_fold[N_FOLDS]
    without = np.array([of_fold.get(fold, (0, math.nan))[1] for fold in range(N_FOLDS)])
    return jackknife(whole, without, confidence=confidence, n=n)
