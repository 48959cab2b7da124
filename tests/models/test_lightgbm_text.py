"""LightGBM text models score as LightGBM does, bit for bit, and damaged ones are refused."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models.trained import lightgbm_bytes
from tests.reference.forest import score_forest

from tiercel.errors import ModelError, UnsupportedModelError
from tiercel.models.ir import NotCompiledError, Post
from tiercel.models.lightgbm_text import read_lightgbm
from tiercel.models.parity import probe_rows
from tiercel.types import Task

lightgbm = pytest.importorskip("lightgbm")

VARIANTS = [
    ("binary", {}),
    ("binary", {"sigmoid": 0.5}),
    ("binary", {"zero_as_missing": True}),
    ("binary", {"use_missing": False}),
    ("binary", {"boosting": "dart"}),
    ("binary", {"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.6}),
    ("multiclass", {}),
    ("multiclassova", {}),
    ("regression", {}),
    ("regression", {"reg_sqrt": True}),
    ("regression", {"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.6}),
    ("regression_l1", {}),
    ("huber", {}),
    ("quantile", {}),
    ("poisson", {}),
    ("gamma", {}),
    ("tweedie", {}),
    ("cross_entropy", {}),
    ("cross_entropy_lambda", {}),
]


@pytest.mark.parametrize("categorical", [False, True])
@pytest.mark.parametrize(("objective", "params"), VARIANTS, ids=str)
def test_scores_equal_lightgbm(objective, params, categorical):
    """Raw sums equal LightGBM bit for bit on hostile rows; transforms agree to 4 units in the last place."""
    data = lightgbm_bytes(objective, categorical, **params)
    parsed = read_lightgbm(data)
    booster = lightgbm.Booster(model_str=data.decode())
    rows = probe_rows(parsed, 6, 3000, np.random.default_rng(1))
    scorer = parsed.body.compile()
    expected = booster.predict(rows, num_threads=1).reshape(len(rows), -1)
    np.testing.assert_array_max_ulp(scorer.score(rows), expected, maxulp=4)
    raw = booster.predict(rows, num_threads=1, raw_score=True).reshape(len(rows), -1)
    np.testing.assert_array_equal(replace(parsed.body, post=Post.IDENTITY, divisor=0.0).compile().score(rows), raw)


@pytest.mark.parametrize("categorical", [False, True])
@pytest.mark.parametrize("objective", ["binary", "multiclass"])
def test_leaves_are_those_that_lightgbm_predicts(objective, categorical):
    """Leaf numbers are LightGBM's own `pred_leaf` on hostile rows, of plain trees and of those with category sets."""
    data = lightgbm_bytes(objective, categorical)
    parsed = read_lightgbm(data)
    rows = probe_rows(parsed, 6, 2000, np.random.default_rng(3))
    expected = lightgbm.Booster(model_str=data.decode()).predict(rows, num_threads=1, pred_leaf=True)
    np.testing.assert_array_equal(parsed.body.compile().leaves(rows), expected)


@pytest.mark.parametrize("categorical", [False, True])
def test_scores_equal_reference(categorical):
    """The obvious walk over what was read gives the same sums."""
    body = replace(read_lightgbm(lightgbm_bytes("multiclass", categorical)).body, post=Post.IDENTITY)
    rows = probe_rows(None, 6, 60, np.random.default_rng(2))
    np.testing.assert_array_equal(body.compile().score(rows), score_forest(body, rows))


@pytest.mark.parametrize(
    ("objective", "task", "classes"),
    [
        ("binary", Task.BINARY, ("0", "1")),
        ("multiclass", Task.MULTICLASS, ("0", "1", "2")),
        ("poisson", Task.REGRESSION, ()),
    ],
)
def test_task_comes_from_the_objective(objective, task, classes):
    """The file says what the model predicts, and the names of its features."""
    parsed = read_lightgbm(lightgbm_bytes(objective))
    assert (parsed.task, parsed.classes) == (task, classes)
    assert parsed.features == tuple(f"Column_{k}" for k in range(6))
    assert parsed.hyperparameters["num_leaves"] == "15"


def test_one_leaf_trees_score_a_constant():
    """A model that found nothing to split is a constant, and serves."""
    X = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    booster = lightgbm.train(
        {"objective": "regression", "verbose": -1, "min_data_in_leaf": 30}, lightgbm.Dataset(X, X[:, 0].copy()), 3
    )
    scorer = read_lightgbm(booster.model_to_string().encode()).body.compile()
    np.testing.assert_array_equal(scorer.score(X)[:, 0], booster.predict(X))


def test_thresholds_within_the_zero_range_follow_lightgbm():
    """|x| <= 1e-35 is zero to LightGBM: thresholds just around zero are folded to the edges of that range."""
    data = lightgbm_bytes("regression").decode()
    lines = data.split("\n")
    at = next(k for k, line in enumerate(lines) if line.startswith("threshold="))
    values = lines[at].split("=")[1].split()
    for k, tiny in enumerate(["1e-36", "-1e-36", "1e-40", "1.0000000180025095e-35", "-1e-35", "0"]):
        values[k] = tiny
    lines[at] = "threshold=" + " ".join(values)
    edited = "\n".join(lines)
    sizes = np.diff([found.start() for found in re.finditer(r"^(?:Tree=|end of trees)", edited, re.MULTILINE)])
    edited = re.sub(r"tree_sizes=.*", "tree_sizes=" + " ".join(map(str, sizes)), edited)
    # The header is in front of the trees, so its own length changes none of their sizes.
    booster = lightgbm.Booster(model_str=edited)
    specials = np.array(
        [0, -0.0, 1e-35, -1e-35, 1e-36, -1e-36, 1e-45, 2e-35, -2e-35, 1.0, -1.0, np.nan], dtype=np.float32
    )
    rows = np.random.default_rng(0).choice(specials, (2000, 6))
    scorer = read_lightgbm(edited.encode()).body.compile()
    np.testing.assert_array_equal(scorer.score(rows)[:, 0], booster.predict(rows, num_threads=1))


def test_linear_trees_are_left_to_others():
    """Linear trees are recognised and named, not scored as ordinary ones."""
    with pytest.raises(NotCompiledError, match="linear"):
        read_lightgbm(lightgbm_bytes("regression", linear_tree=True))


def test_unknown_objectives_are_named():
    """An objective whose output is not known is not guessed."""
    edited = lightgbm_bytes().replace(b"objective=binary sigmoid:1", b"objective=surprise")
    with pytest.raises(NotCompiledError, match="surprise"):
        read_lightgbm(edited)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"num_leaves=15", b"num_leaves=16"),
        (b"num_leaves=15", b"num_leaves=-1"),
        (b"num_leaves=15", b"num_leaves=99999999999"),
        (b"left_child=", b"left_child=99 "),
        (b"split_feature=", b"split_feature=6 "),
        (b"leaf_value=", b"leaf_value=x "),
        (b"end of trees", b"the end"),
        (b"max_feature_idx=5", b"max_feature_idx=7"),
        (b"tree\n", b"forest\n"),
        (b"Tree=3", b"Three"),
    ],
)
def test_altered_files_are_refused(old, new):
    """Counts, indices and sections that do not fit each other are errors of the file."""
    data = lightgbm_bytes("binary")
    assert old in data
    with pytest.raises(UnsupportedModelError):
        read_lightgbm(data.replace(old, new, 1)).body.compile()


@settings(max_examples=60, deadline=None)
@given(at=st.floats(0, 1), value=st.binary(min_size=1, max_size=4), categorical=st.booleans())
def test_damaged_bytes_never_crash(at, value, categorical):
    """Any overwritten bytes give a model or a ModelError, and a model that compiles can score."""
    data = bytearray(lightgbm_bytes("binary", categorical, n_trees=3))
    where = int(at * (len(data) - 1))
    data[where : where + len(value)] = value
    try:
        scorer = read_lightgbm(bytes(data)).body.compile()
    except ModelError:
        return
    scorer.score(np.zeros((9, scorer.n_features), dtype=np.float32))


@settings(max_examples=40, deadline=None)
@given(kept=st.floats(0, 1))
def test_cut_files_are_refused(kept):
    """A file cut before the end of its trees is never served."""
    data = lightgbm_bytes("binary", n_trees=3)
    end = data.index(b"end of trees")
    with pytest.raises(UnsupportedModelError):
        read_lightgbm(data[: int(kept * end)])
