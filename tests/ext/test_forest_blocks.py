"""Many rows at once give the bits that one row at a time gives, and that the training libraries give."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ext.test_forest import random_forest, random_rows
from tests.models.trained import lightgbm_bytes, table, xgboost_booster, xgboost_bytes
from tests.reference.forest import score_forest
from tiercel._hot.forest_blocks import MODES, ForestBlocks

from tiercel.errors import UnsupportedModelError
from tiercel.models.ir import Aggregate, Forest, Post, Step, StepKind
from tiercel.models.parity import probe_rows
from tiercel.models.readers import read_model

ALWAYS = [mode for mode in MODES if mode.startswith("always")]
#: Of random_forest.
OPTIONS = st.fixed_dictionaries(
    {
        "vector": st.booleans(),
        "sets": st.booleans(),
        "skew": st.booleans(),
        "single_precision": st.booleans(),
        "base_first": st.booleans(),
        "floor_negative": st.booleans(),
        "divisor": st.sampled_from([0.0, 7.0]),
    }
)
#: Thresholds of any kind, some of them alike.
CUTS = st.lists(
    st.one_of(
        st.floats(width=32, allow_nan=True, allow_infinity=True),
        st.floats(-(2.0**-126), 2.0**-126, width=32),
        st.integers(-3, 3).map(float),
    ),
    min_size=1,
    max_size=80,
)


def assert_same_bits(got, expected):
    """Equal doubles, NaN for NaN and -0.0 for -0.0."""
    assert got.shape == expected.shape
    differ = (got.view(np.int64) != expected.view(np.int64)) & ~(np.isnan(got) & np.isnan(expected))
    assert not differ.any(), f"row {np.argwhere(differ)[0]}: expected {expected[differ][0]!r}, got {got[differ][0]!r}"


def one_by_one(scorer, rows):
    return np.concatenate([scorer.score(row[None]) for row in rows])


def chain(n_nodes, rng, n_features=3):
    """A tree in which every inner node has a leaf for one child."""
    n, node = 2 * n_nodes + 1, np.arange(2 * n_nodes + 1)
    inner = (node % 2 == 0) & (node < n - 1)
    near, far = np.where(inner, node + 1, -1), np.where(inner, node + 2, -1)
    turned = rng.random(n) < 0.5
    return replace(
        random_forest(3, n_trees=1, n_features=n_features),
        tree_start=np.array([0, n]),
        feature=rng.integers(0, n_features, n).astype(np.int32),
        threshold=rng.normal(size=n).astype(np.float32),
        left=np.where(turned, near, far).astype(np.int32),
        right=np.where(turned, far, near).astype(np.int32),
        missing_left=rng.integers(0, 2, n).astype(np.uint8),
        set_of=np.full(n, -1, np.int32),
        leaf=np.where(inner, -1, np.cumsum(~inner) - 1),
        values=rng.normal(size=(n_nodes + 1, 1)),
    )


def stumps(cuts, rng, missing_left=None):
    """A forest of one-node trees on feature 0, one per threshold; a row's score tells which of them it passes."""
    k = len(cuts)
    node = np.arange(3 * k)
    return Forest(
        n_features=1,
        n_raw=1,
        tree_start=np.arange(k + 1, dtype=np.int64) * 3,
        feature=np.zeros(3 * k, np.int32),
        threshold=np.repeat(np.asarray(cuts, np.float32), 3),
        left=np.where(node % 3 == 0, node + 1, -1).astype(np.int32),
        right=np.where(node % 3 == 0, node + 2, -1).astype(np.int32),
        missing_left=np.repeat(rng.integers(0, 2, k) if missing_left is None else missing_left, 3).astype(np.uint8),
        set_of=np.full(3 * k, -1, np.int32),
        leaf=np.where(node % 3 == 0, -1, node // 3 * 2 + node % 3 - 1).astype(np.int64),
        values=rng.normal(size=(2 * k, 1)),
        tree_raw=np.zeros(k, np.int32),
        base=np.zeros(1),
        base_first=True,
        single_precision=False,
    )


def rows_around(cuts):
    """Rows of one feature: every threshold, the values beside it, and those that are no ordinary numbers."""
    points = np.array([*cuts, 0.0, -0.0, 1e-45, -1e-45, np.nan, np.inf, -np.inf, 3.4028235e38], dtype=np.float32)
    with np.errstate(over="ignore", under="ignore"):
        near = [np.nextafter(points, np.float32(end)) for end in (np.inf, -np.inf)]
    return np.concatenate([points, *near])[:, None]


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    n_rows=st.integers(1, 300),
    n_features=st.integers(1, 40),
    n_raw=st.integers(1, 4),
    n_trees=st.integers(1, 60),
    options=OPTIONS,
    mode=st.sampled_from(ALWAYS),
)
def test_blocks_equal_one_row_at_a_time(seed, n_rows, n_features, n_raw, n_trees, options, mode):
    """For any number of rows, a block gives the bits of the walk, whatever the nodes and however long the ranks."""
    forest = random_forest(seed, n_features=n_features, n_raw=n_raw, n_trees=n_trees, **options)
    rows = random_rows(forest, seed, n_rows)
    scorer = forest.compile(blocks=mode)
    assert scorer.block_lanes == (32 if "two_bytes" in mode else 64)
    assert_same_bits(scorer.score(rows), one_by_one(forest.compile(blocks="never", masks="never"), rows))


@settings(max_examples=60, deadline=None)
@given(
    cuts=CUTS,
    seed=st.integers(0, 2**32),
    mode=st.sampled_from(ALWAYS),
)
def test_ranks_place_every_value(cuts, seed, mode):
    """A value on a threshold, beside it, infinite, missing, denormal or -0.0 goes where the comparison sends it."""
    forest = stumps(cuts, np.random.default_rng(seed))
    rows = rows_around(cuts)
    assert_same_bits(forest.compile(blocks=mode).score(rows), score_forest(forest, rows))


@pytest.mark.parametrize("n_cuts", [1, 3, 4, 253, 254, 255, 600])
@pytest.mark.parametrize("spread", ["even", "normal", "lognormal", "clustered"])
def test_any_number_and_spread_of_thresholds(n_cuts, spread):
    """Ranks are exact up to the last threshold that fits a byte, past it, in crowded buckets and without buckets."""
    rng = np.random.default_rng(n_cuts)
    drawn = {
        "even": np.linspace(-5, 5, n_cuts),
        "normal": rng.normal(size=n_cuts),
        "lognormal": np.exp(8 * rng.normal(size=n_cuts)),
        "clustered": 1 + np.arange(n_cuts) * 1e-6 + (np.arange(n_cuts) == n_cuts - 1) * 1e30,
    }[spread].astype(np.float32)
    forest = stumps(drawn, rng)
    near = [np.nextafter(drawn, np.float32(end)) for end in (np.inf, -np.inf)]
    rows = rng.permutation(np.concatenate([drawn, *near, np.float32([np.nan, -np.inf, np.inf, 0.0])]))[:, None]
    scorer = forest.compile(blocks="always")
    assert scorer.block_lanes == (64 if len(np.unique(drawn)) <= 254 else 32)
    assert_same_bits(scorer.score(rows), one_by_one(forest.compile(blocks="never", masks="never"), rows))


@pytest.mark.parametrize(
    "n_rows", [*range(1, 10), 15, 16, 17, 31, 32, 33, 63, 64, 65, 95, 127, 128, 129, 255, 256, 257]
)
@pytest.mark.parametrize("mode", ["auto", "always", "always two_bytes"])
def test_every_length_around_a_vector(n_rows, mode):
    """Blocks, half vectors and the walked rest cover each row once, at every length around their edges."""
    forest = random_forest(4, n_trees=90, n_raw=2)
    rows = random_rows(forest, n_rows, n_rows)
    assert_same_bits(
        forest.compile(blocks=mode).score(rows), one_by_one(forest.compile(blocks="never", masks="never"), rows)
    )


@pytest.mark.parametrize("mode", ALWAYS)
@pytest.mark.parametrize("n_nodes", [1, 2, 255, 256, 700])
def test_chains(n_nodes, mode):
    """A tree as deep as it has nodes, with up to a byte of leaves and with more, is evaluated from its end."""
    rng = np.random.default_rng(n_nodes)
    forest = chain(n_nodes, rng)
    rows = rng.normal(size=(100, 3)).astype(np.float32)
    rows[rng.random(rows.shape) < 0.1] = np.nan
    scorer = forest.compile(blocks=mode)
    assert scorer.block_lanes == (32 if "two_bytes" in mode or n_nodes > 255 else 64)
    assert_same_bits(scorer.score(rows), one_by_one(forest.compile(blocks="never", masks="never"), rows))


@pytest.mark.parametrize("mode", ALWAYS)
def test_trees_of_one_leaf(mode):
    """A forest that asks nothing of its rows adds its leaves."""
    forest = replace(
        random_forest(1, n_trees=3),
        tree_start=np.arange(4),
        leaf=np.arange(3),
        values=np.array([[0.1], [0.2], [0.3]]),
        **{name: np.zeros(3, np.float32) for name in ("threshold",)},
        **{name: np.full(3, -1, np.int32) for name in ("feature", "left", "right", "set_of")},
        missing_left=np.zeros(3, np.uint8),
    )
    rows = np.zeros((70, 4), dtype=np.float32)
    assert_same_bits(forest.compile(blocks=mode).score(rows), score_forest(forest, rows))


@pytest.mark.parametrize("aggregate", list(Aggregate))
@pytest.mark.parametrize("mode", ALWAYS)
def test_aggregates_and_steps(aggregate, mode):
    """Minima, maxima and sums over prepared rows are those of one row at a time."""
    a = np.array([0.5, 1, 2, 3], dtype=np.float32)
    steps = (Step(StepKind.IMPUTE_NAN, a, a), Step(StepKind.SCALE, a, a))
    forest = random_forest(
        5, n_raw=2, vector=True, aggregate=aggregate, divisor=9.0, base_first=False, post=Post.SOFTMAX_F64, steps=steps
    )
    rows = random_rows(forest, 6, 140)
    assert_same_bits(
        forest.compile(blocks=mode).score(rows), one_by_one(forest.compile(blocks="never", masks="never"), rows)
    )


def test_huge_trees_are_walked():
    """Where evaluating every node would cost more than walking to one leaf, nothing is laid out for blocks."""
    rng = np.random.default_rng(0)
    assert random_forest(1, n_trees=40).compile().block_lanes == 64
    assert chain(3000, rng).compile(blocks="never", masks="never").block_lanes == 0
    wide = 2 ** np.arange(14)  # a complete tree of 8,191 inner nodes and depth 13
    n = int(wide.sum())
    inner = np.arange(n) < 2**13 - 1
    forest = replace(
        chain(1, rng),
        tree_start=np.array([0, n]),
        feature=rng.integers(0, 3, n).astype(np.int32),
        threshold=rng.normal(size=n).astype(np.float32),
        left=np.where(inner, 2 * np.arange(n) + 1, -1).astype(np.int32),
        right=np.where(inner, 2 * np.arange(n) + 2, -1).astype(np.int32),
        missing_left=np.zeros(n, np.uint8),
        set_of=np.full(n, -1, np.int32),
        leaf=np.where(inner, -1, np.arange(n) - (2**13 - 1)),
        values=rng.normal(size=(2**13, 1)),
    )
    assert forest.compile().block_lanes == 0


@pytest.mark.parametrize("mode", ALWAYS)
@pytest.mark.parametrize("categorical", [False, True])
@pytest.mark.parametrize("params", [{}, {"zero_as_missing": True}, {"use_missing": False}], ids=str)
def test_equal_to_lightgbm(mode, categorical, params):
    """Batches give LightGBM's own double, for every kind of missing value and for categories."""
    lightgbm = pytest.importorskip("lightgbm")
    data = lightgbm_bytes("regression", categorical, **params)
    parsed = read_model(data, "lightgbm")
    rows = np.concatenate([table()[0][:300], probe_rows(parsed, 6, 200, np.random.default_rng(0))])
    expected = lightgbm.Booster(model_str=data.decode()).predict(rows, num_threads=1)
    assert_same_bits(parsed.body.compile(blocks=mode).score(rows)[:, 0], expected)


@pytest.mark.parametrize("mode", ALWAYS)
@pytest.mark.parametrize("objective", ["reg:squarederror", "multi:softprob"])
@pytest.mark.parametrize("categorical", [False, True])
def test_equal_to_xgboost(mode, objective, categorical):
    """Batches give XGBoost's own float32 sums, for one output and for three."""
    xgboost = pytest.importorskip("xgboost")
    parsed = read_model(xgboost_bytes(objective, categorical), "xgboost-ubj")
    rows = table()[0][:300]
    types = ["q"] * 5 + ["c"] if categorical else None
    matrix = xgboost.DMatrix(rows, feature_types=types, enable_categorical=categorical)
    raw = xgboost_booster(objective, categorical).predict(matrix, output_margin=True).astype(np.float64)
    forest = replace(parsed.body, post=Post.IDENTITY)
    assert_same_bits(forest.compile(blocks=mode).score(rows), raw.reshape(len(rows), -1))


def test_unknown_mode_is_refused():
    """A mode that does not exist is an error, not a slower path."""
    with pytest.raises(UnsupportedModelError, match="never"):
        random_forest(1).compile(blocks="sometimes")


def test_blocks_are_not_pickled():
    """Blocks hold pointers; a pickle of them is refused."""
    with pytest.raises(TypeError):
        ForestBlocks.__new__(ForestBlocks).__reduce__()
