"""Figures of regression models: scikit-learn's values, intervals that cover."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics
from tests.monitor.test_intervals import REPEATS, is_nominal

from tiercel.monitor.regression import REGRESSION_METRICS, regression_metrics

VALUES = st.floats(-1e6, 1e6)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=60))
def test_figures_equal_scikit_learn(rows):
    """Each figure is scikit-learn's of the same rows."""
    scores, labels = np.array(rows).T
    found = {name: each.value for name, each in regression_metrics(scores, labels).items()}
    assert found["mae"] == pytest.approx(metrics.mean_absolute_error(labels, scores))
    assert found["rmse"] == pytest.approx(metrics.root_mean_squared_error(labels, scores))
    assert found["bias"] == pytest.approx((labels - scores).mean())
    if len(np.unique(labels)) > 1 and found["r2"] is not None:
        assert found["r2"] == pytest.approx(metrics.r2_score(labels, scores), rel=1e-6)


@pytest.mark.parametrize("name", ["mae", "rmse", "bias"])
def test_errors_are_covered(name):
    """Figures of skewed errors lie in their 95 % interval 95 times in 100."""
    rng = np.random.default_rng(6)
    expected = {"mae": 1.0, "rmse": math.sqrt(2), "bias": 0.0}[name]  # of Laplace errors

    def is_covered():
        labels = rng.normal(0, 5, 250)
        return regression_metrics(labels + rng.laplace(0, 1, 250), labels)[name].covers(expected)

    assert is_nominal(sum(is_covered() for _ in range(REPEATS)), slack=0.02)


def test_what_cannot_be_told_has_a_reason():
    """No rows, equal labels and labels beyond squaring are stated."""
    assert all(each.reason for each in regression_metrics(np.array([]), np.array([])).values())
    assert regression_metrics(np.array([1.0, 2.0]), np.array([3.0, 3.0]))["r2"].reason == "all labels are equal"
    huge = regression_metrics(np.array([0.0, 0.0]), np.array([1e300, -1e300]))
    assert tuple(huge) == REGRESSION_METRICS
    assert huge["r2"].value is None
    assert huge["rmse"].low is None
    assert huge["mae"].value == 1e300
