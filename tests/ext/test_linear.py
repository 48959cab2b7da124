"""The compiled linear model equals exact sums."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.reference.linear import score_linear

from tiercel.errors import UnsupportedModelError
from tiercel.models.ir import Linear, Post, Step, StepKind


def random_linear(seed, n_raw=1, n_features=5, **rest):
    rng = np.random.default_rng(seed)
    return Linear(rng.normal(size=(n_raw, n_features)), rng.normal(size=n_raw), **rest)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    n_raw=st.integers(1, 40),
    n_features=st.sampled_from([1, 2, 5, 600]),
    single_precision=st.booleans(),
    n_rows=st.integers(1, 9),
)
def test_linear_equals_reference(seed, n_raw, n_features, single_precision, n_rows):
    """Compiled sums are the exact ones up to float64 rounding (and one float32 rounding where that is asked)."""
    linear = random_linear(seed, n_raw, n_features, single_precision=single_precision)
    rows = np.random.default_rng(seed).normal(size=(n_rows, n_features)).astype(np.float32)
    tolerance = {"rtol": 2e-7, "atol": 2e-7} if single_precision else {"rtol": 1e-12, "atol": 1e-12}
    np.testing.assert_allclose(linear.compile().score(rows), score_linear(linear, rows), **tolerance)


@pytest.mark.parametrize("post", [Post.SIGMOID_ORT, Post.SOFTMAX_ORT, Post.SIGMOID_MLAS, Post.EXP_XGB, Post.IDENTITY])
@pytest.mark.parametrize("pick", [-1, 1])
def test_transforms_and_pick_equal_reference(post, pick):
    """Transforms see all outputs before one is picked."""
    linear = random_linear(3, 3, post=post, pick=pick, normalize=post is Post.SIGMOID_ORT)
    rows = np.random.default_rng(4).normal(size=(20, 5)).astype(np.float32)
    np.testing.assert_allclose(linear.compile().score(rows), score_linear(linear, rows), rtol=2e-6, atol=2e-7)


def test_steps_come_first():
    """Imputing and scaling happen in order, in float32, before the sum."""
    ones = np.ones(5, dtype=np.float32)
    linear = random_linear(5, steps=(Step(StepKind.IMPUTE_NAN, 3 * ones, ones), Step(StepKind.SCALE, ones, 2 * ones)))
    rows = np.array([[np.nan, 1, 2, 3, np.nan]], dtype=np.float32)
    np.testing.assert_allclose(linear.compile().score(rows), score_linear(linear, rows), rtol=1e-6)
    assert np.isfinite(linear.compile().score(rows)).all()


def test_missing_values_reach_the_score():
    """Without an imputer a NaN is not silently anything else."""
    rows = np.array([[np.nan, 1, 2, 3, 4]], dtype=np.float32)
    assert np.isnan(random_linear(6).compile().score(rows)).all()


@pytest.mark.parametrize(
    "linear",
    [
        pytest.param(Linear(np.zeros((2, 3)), np.zeros(3)), id="intercepts of another length"),
        pytest.param(Linear(np.zeros((0, 3)), np.zeros(0)), id="no outputs"),
        pytest.param(Linear(np.zeros((1, 3)), np.zeros(1), pick=1), id="a picked output too many"),
        pytest.param(
            Linear(np.zeros((1, 3)), np.zeros(1), steps=(Step(StepKind.ADD, np.zeros(2), np.zeros(2)),)),
            id="a step of another width",
        ),
    ],
)
def test_shapes_that_do_not_fit_are_refused(linear):
    """Shapes are checked once, when the scorer is built."""
    with pytest.raises(UnsupportedModelError):
        linear.compile()
