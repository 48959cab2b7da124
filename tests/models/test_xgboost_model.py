"""XGBoost models score as XGBoost does, from JSON and UBJSON, and damaged ones are refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models.trained import xgboost_booster, xgboost_bytes
from tests.reference.forest import score_forest

from tiercel.errors import ModelError, UnsupportedModelError
from tiercel.models.ir import Linear, NotCompiledError, Post
from tiercel.models.parity import probe_rows
from tiercel.models.sources import reference_of
from tiercel.models.ubjson import read_ubjson
from tiercel.models.xgboost_model import read_xgboost

xgboost = pytest.importorskip("xgboost")

VARIANTS = [
    ("binary:logistic", {}),
    ("binary:logistic", {"base_score": 0.3}),
    ("binary:logistic", {"num_parallel_tree": 3}),
    ("binary:logistic", {"booster": "dart", "rate_drop": 0.3}),
    ("binary:logitraw", {}),
    ("reg:logistic", {}),
    ("reg:squarederror", {}),
    ("reg:squarederror", {"tree_method": "exact", "gamma": 5}),
    ("reg:absoluteerror", {}),
    ("multi:softprob", {}),
    ("multi:softmax", {}),
    ("count:poisson", {}),
    ("reg:gamma", {}),
    ("reg:tweedie", {}),
    ("rank:pairwise", {}),
]


@pytest.mark.parametrize("raw_format", ["ubj", "json"])
@pytest.mark.parametrize(("objective", "params"), VARIANTS, ids=str)
def test_scores_equal_xgboost(objective, params, raw_format):
    """Margins equal XGBoost bit for bit on hostile rows; transforms agree to 4 units in the last place."""
    categorical = params.get("tree_method") != "exact" and raw_format == "ubj"
    data = xgboost_bytes(objective, categorical, raw_format, **params)
    parsed = read_xgboost(data, is_ubjson=raw_format == "ubj")
    rows = probe_rows(parsed, 6, 2000, np.random.default_rng(1))
    rows = np.where(np.isinf(rows), np.float32(1e30), rows)  # XGBoost refuses infinities itself
    reference = reference_of(data, "xgboost-ubj" if raw_format == "ubj" else "xgboost-json", n_features=6, task=None)
    got = parsed.body.compile().score(rows)
    np.testing.assert_array_max_ulp(got.astype(np.float32), reference.predict(rows).astype(np.float32), maxulp=4)
    booster = xgboost_booster(objective, categorical, **params)
    matrix = xgboost.DMatrix(rows, feature_types=booster.feature_types, enable_categorical=categorical)
    margins = booster.predict(matrix, output_margin=True).reshape(len(rows), -1)
    raw = replace(parsed.body, post=Post.IDENTITY).compile().score(rows)
    np.testing.assert_array_equal(raw.astype(np.float32), margins)


def test_scores_equal_reference():
    """The obvious walk over what was read gives the same sums."""
    body = replace(read_xgboost(xgboost_bytes("multi:softprob", True), is_ubjson=True).body, post=Post.IDENTITY)
    rows = probe_rows(None, 6, 60, np.random.default_rng(2))
    np.testing.assert_array_equal(body.compile().score(rows), score_forest(body, rows))


@pytest.mark.parametrize("text", ["5E-1", "[5E-1]", "0.5"])
def test_base_score_is_a_number_or_a_list(text):
    """3.1 and later write a list; both give the same model."""
    document = json.loads(xgboost_bytes(raw_format="json"))
    document["learner"]["learner_model_param"]["base_score"] = text
    parsed = read_xgboost(json.dumps(document).encode(), is_ubjson=False)
    np.testing.assert_array_equal(parsed.body.base, [0.0])


@pytest.mark.parametrize("text", ["", "[]", "nan", "[1E-1,2E-1]", "2", "x"])
def test_base_scores_that_make_no_sense_are_refused(text):
    """A base score outside its range or of another length is an error of the file."""
    document = json.loads(xgboost_bytes(raw_format="json"))
    document["learner"]["learner_model_param"]["base_score"] = text
    with pytest.raises(UnsupportedModelError):
        read_xgboost(json.dumps(document).encode(), is_ubjson=False)


def test_gblinear_becomes_a_linear_model():
    """A linear booster is its weights, its bias and the base score."""
    data = xgboost_bytes("reg:squarederror", booster="gblinear")
    body = read_xgboost(data, is_ubjson=True).body
    rows = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    assert isinstance(body, Linear)
    expected = reference_of(data, "xgboost-ubj", n_features=6, task=None).predict(rows)
    np.testing.assert_allclose(body.compile().score(rows), expected, rtol=1e-5, atol=1e-6)


def test_unknown_objectives_are_named():
    """An objective whose output is not known is not guessed."""
    with pytest.raises(NotCompiledError, match="binary:hinge"):
        read_xgboost(xgboost_bytes("binary:hinge"), is_ubjson=True)


def change(path, value):
    document = json.loads(xgboost_bytes(raw_format="json", categorical=True))
    place = document["learner"]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return json.dumps(document).encode()


TREE = ("gradient_booster", "model", "trees", 0)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ((*TREE, "left_children", 0), 10**6),
        ((*TREE, "left_children", 0), 0),
        ((*TREE, "right_children"), []),
        ((*TREE, "split_indices", 0), 6),
        ((*TREE, "split_conditions"), "text"),
        ((*TREE, "split_conditions"), {"a": 1}),
        ((*TREE, "tree_param"), None),
        (("gradient_booster", "model", "tree_info"), [0]),
        (("gradient_booster", "model", "trees"), []),
        (("learner_model_param", "num_feature"), "0"),
        (("learner_model_param", "num_feature"), "99999999999999"),
        (("objective",), []),
    ],
)
def test_altered_files_are_refused(path, value):
    """Indices, lengths and types that do not fit are errors of the file."""
    with pytest.raises(UnsupportedModelError):
        read_xgboost(change(path, value), is_ubjson=False).body.compile()


@settings(max_examples=80, deadline=None)
@given(at=st.floats(0, 1), value=st.binary(min_size=1, max_size=4))
def test_damaged_bytes_never_crash(at, value):
    """Any overwritten bytes of a UBJSON file give a model or a ModelError."""
    data = bytearray(xgboost_bytes(categorical=True, n_trees=3))
    where = int(at * (len(data) - 1))
    data[where : where + len(value)] = value
    try:
        scorer = read_xgboost(bytes(data), is_ubjson=True).body.compile()
    except ModelError:
        return
    scorer.score(np.zeros((9, scorer.n_features), dtype=np.float32))


@settings(max_examples=40, deadline=None)
@given(kept=st.floats(0, 1, exclude_max=True), is_ubjson=st.booleans())
def test_cut_files_are_refused(kept, is_ubjson):
    """A file without its last bytes is never served."""
    data = xgboost_bytes(raw_format="ubj" if is_ubjson else "json", n_trees=3)
    with pytest.raises(UnsupportedModelError):
        read_xgboost(data[: int(kept * len(data))], is_ubjson=is_ubjson)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[" * 100_000,
        b"[#L" + b"\x7f" * 8,
        b"[$d#L\x00\x00\x00\x7f\xff\xff\xff\xff",
        b"{L\x00\x00\x00\x00\x00\x00\x00\x01a{" * 100,
        b"SL\xff\xff\xff\xff\xff\xff\xff\xff",
        b"Zx",
        b"[$S#U\x02",
    ],
)
def test_hostile_ubjson_is_refused_at_once(data):
    """Depth, counts and lengths are checked before anything is allocated."""
    with pytest.raises(UnsupportedModelError):
        read_ubjson(data)


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"{U\x01ai\x05U\x01bSU\x02hi}", {"a": 5, "b": "hi"}),
        (b"[i\x01T[]{}Z]", [1, True, [], {}, None]),
        (b"[#U\x02i\x01i\x02", [1, 2]),
        (b"{#U\x01U\x01kD?\xf0\x00\x00\x00\x00\x00\x00", {"k": 1.0}),
    ],
)
def test_ubjson_values(data, value):
    """Objects, arrays, counted containers and constants read as they were written."""
    assert read_ubjson(data) == value
