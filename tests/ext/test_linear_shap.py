"""Attributions of linear models: closed form, wrong calls, many threads' worth of features."""

from __future__ import annotations

import numpy as np
import pytest
from tiercel._hot.linear_shap import LinearExplainer


@pytest.mark.parametrize("n_features", [1, 5, 700])
def test_weight_times_distance(n_features):
    """Each feature gets its weight times how far it is from the mean, also where the row does not fit the stack."""
    rng = np.random.default_rng(0)
    weights, intercept, mean = rng.normal(size=(2, n_features)), rng.normal(size=2), rng.normal(size=n_features)
    rows = rng.normal(size=(9, n_features)).astype(np.float32)
    explainer = LinearExplainer(weights=weights, intercept=intercept, mean=mean, steps=[])
    for raw in range(2):
        found = explainer.explain(rows, raw)
        np.testing.assert_array_equal(found, weights[raw] * (rows.astype(np.float64) - mean))
        total = explainer.expected_margin(raw) + found.sum(axis=1)
        np.testing.assert_allclose(total, rows.astype(np.float64) @ weights[raw] + intercept[raw], rtol=0, atol=1e-10)


def test_shapes_that_do_not_fit_are_refused():
    """A mean of other features, steps of another width and unknown steps are errors that say so."""
    weights, intercept, mean = np.ones((1, 3)), np.zeros(1), np.zeros(3)
    with pytest.raises(ValueError, match="mean of 3 features"):
        LinearExplainer(weights=weights, intercept=intercept, mean=np.zeros(2), steps=[])
    with pytest.raises(ValueError, match="Expected weights"):
        LinearExplainer(weights=weights, intercept=np.zeros(2), mean=mean, steps=[])
    for kind, width in ((0, 2), (99, 3)):
        step = (kind, np.zeros(width, np.float32), np.zeros(width, np.float32))
        with pytest.raises(ValueError, match="step 0"):
            LinearExplainer(weights=weights, intercept=intercept, mean=mean, steps=[step])
    explainer = LinearExplainer(weights=weights, intercept=intercept, mean=mean, steps=[])
    with pytest.raises(ValueError, match="rows of 3 features"):
        explainer.explain(np.zeros((1, 2), np.float32))
    with pytest.raises(TypeError, match="twice"):
        explainer.__init__(weights=weights, intercept=intercept, mean=mean, steps=[])
