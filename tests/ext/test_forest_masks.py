"""One row by masks gives the bits that walking it gives, and that the training libraries give."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ext.test_forest import random_forest, random_rows
from tests.ext.test_forest_blocks import CUTS, OPTIONS, assert_same_bits, chain, rows_around, stumps
from tests.models.trained import lightgbm_bytes, table, xgboost_booster, xgboost_bytes
from tests.reference.forest import score_forest
from tiercel._hot import forest_masks
from tiercel._hot.forest_masks import MAX_LEAVES, MODES

from tiercel.errors import UnsupportedModelError
from tiercel.models.ir import Aggregate, Post, Step, StepKind
from tiercel.models.parity import probe_rows
from tiercel.models.readers import read_model

ALWAYS = [mode for mode in MODES if mode.startswith("always")]


def by_masks(forest, rows, mode="always"):
    """Scores of rows one by one, never in a block."""
    scorer = forest.compile(blocks="never", masks=mode)
    assert scorer.mask_bytes > 0
    return scorer.score(rows)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    n_rows=st.integers(1, 12),
    n_features=st.integers(1, 40),
    n_raw=st.integers(1, 4),
    n_trees=st.integers(1, 60),
    options=OPTIONS,
    mode=st.sampled_from(ALWAYS),
)
def test_masks_equal_the_obvious_walk(seed, n_rows, n_features, n_raw, n_trees, options, mode):
    """Whatever the nodes, a row's masks end on the leaves of its walk, and add them in its order."""
    forest = random_forest(seed, n_features=n_features, n_raw=n_raw, n_trees=n_trees, **options)
    rows = random_rows(forest, seed, n_rows)
    scorer = forest.compile(blocks="never", masks=mode)
    expected = score_forest(forest, rows)
    assert_same_bits(scorer.score(rows), expected)
    assert_same_bits(forest.compile(blocks="never", masks="never").score(rows), expected)


@settings(max_examples=60, deadline=None)
@given(
    cuts=CUTS,
    seed=st.integers(0, 2**32),
    mode=st.sampled_from(ALWAYS),
)
def test_masks_place_every_value(cuts, seed, mode):
    """A value on a threshold, beside it, infinite, missing, denormal or -0.0 goes where the comparison sends it."""
    forest = stumps(cuts, np.random.default_rng(seed))
    rows = rows_around(cuts)
    assert_same_bits(by_masks(forest, rows, mode), score_forest(forest, rows))


@pytest.mark.parametrize("n_nodes", [1, 30, 31, 32, 62, 63])
def test_masks_of_every_length(n_nodes):
    """Trees of up to 32 leaves take four bytes each, of up to 64 leaves eight, however deep they are."""
    forest = chain(n_nodes, np.random.default_rng(n_nodes))
    rows = random_rows(forest, n_nodes, 300)
    assert forest.compile(masks="always").mask_bytes == (4 if n_nodes < 32 else 8)
    assert_same_bits(by_masks(forest, rows), score_forest(forest, rows))


def test_what_masks_cannot_hold_is_walked(monkeypatch):
    """More leaves than a mask has bits, more trees than lines or a longer table than allowed: walked, with the same scores."""
    rng = np.random.default_rng(5)
    for forest in (chain(MAX_LEAVES, rng), stumps(rng.normal(size=1025), rng)):
        rows = random_rows(forest, 5, 20)
        scorer = forest.compile(blocks="never", masks="always")
        assert scorer.mask_bytes == 0
        assert_same_bits(scorer.score(rows), score_forest(forest, rows))

    forest = stumps(rng.normal(size=1024), rng)  # a table of 1,026 rows, each of 1,024 masks
    monkeypatch.setattr(forest_masks, "MAX_TABLE_BYTES", 1026 * 1024 * 4 - 1)
    assert forest.compile(masks="always").mask_bytes == 0
    monkeypatch.setattr(forest_masks, "MAX_TABLE_BYTES", 1026 * 1024 * 4)
    assert_same_bits(by_masks(forest, random_rows(forest, 5, 20)), score_forest(forest, random_rows(forest, 5, 20)))


@pytest.mark.parametrize("aggregate", list(Aggregate))
@pytest.mark.parametrize("mode", ALWAYS)
def test_masks_of_every_aggregate_and_prepared_rows(aggregate, mode):
    """Minima, maxima and sums over rows that the forest's own steps prepare are those of the walk."""
    a = np.array([0.5, 1, 2, 3], dtype=np.float32)
    steps = (Step(StepKind.IMPUTE_NAN, a, a), Step(StepKind.SCALE, a, a))
    forest = random_forest(
        5, n_raw=2, vector=True, aggregate=aggregate, divisor=9.0, base_first=False, post=Post.SOFTMAX_F64, steps=steps
    )
    rows = random_rows(forest, 6, 140)
    walked = forest.compile(blocks="never", masks="never").score(rows)
    assert_same_bits(by_masks(forest, rows, mode), walked)


@pytest.mark.parametrize("mode", ALWAYS)
@pytest.mark.parametrize("categorical", [False, True])
@pytest.mark.parametrize("params", [{}, {"zero_as_missing": True}, {"use_missing": False}], ids=str)
def test_equal_to_lightgbm(mode, categorical, params):
    """One row gives LightGBM's own double, for every kind of missing value and for categories."""
    lightgbm = pytest.importorskip("lightgbm")
    data = lightgbm_bytes("regression", categorical, **params)
    parsed = read_model(data, "lightgbm")
    rows = np.concatenate([table()[0][:300], probe_rows(parsed, 6, 200, np.random.default_rng(0))])
    expected = lightgbm.Booster(model_str=data.decode()).predict(rows, num_threads=1)
    assert_same_bits(by_masks(parsed.body, rows, mode)[:, 0], expected)


@pytest.mark.parametrize("mode", ALWAYS)
@pytest.mark.parametrize("objective", ["reg:squarederror", "multi:softprob"])
@pytest.mark.parametrize("categorical", [False, True])
def test_equal_to_xgboost(mode, objective, categorical):
    """One row gives XGBoost's own float32 sums, for one output and for three."""
    xgboost = pytest.importorskip("xgboost")
    parsed = read_model(xgboost_bytes(objective, categorical), "xgboost-ubj")
    rows = table()[0][:300]
    types = ["q"] * 5 + ["c"] if categorical else None
    matrix = xgboost.DMatrix(rows, feature_types=types, enable_categorical=categorical)
    raw = xgboost_booster(objective, categorical).predict(matrix, output_margin=True).astype(np.float64)
    forest = replace(parsed.body, post=Post.IDENTITY)
    assert_same_bits(by_masks(forest, rows, mode), raw.reshape(len(rows), -1))


def test_unknown_modes_are_refused():
    """A mode that does not exist is named."""
    with pytest.raises(UnsupportedModelError, match="Expected one of auto, never"):
        random_forest(1).compile(masks="sometimes")
