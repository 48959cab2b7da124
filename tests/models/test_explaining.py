"""Explanations of real models equal those of the libraries that trained them, or add up where there is no such library."""

from __future__ import annotations

import itertools
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from tests.ext.test_forest import random_forest, random_rows
from tests.models.trained import N_FEATURES, lightgbm_bytes, table, xgboost_booster
from tests.reference.shapley import interactions, interventional_game, shapley

from tiercel.errors import ReferenceSetError, UnexplainableModelError
from tiercel.models.explaining import MAX_REFERENCE_ROWS, make_explainer, reference_digest
from tiercel.models.ir import Aggregate, Linear, Post, Step, StepKind
from tiercel.models.lightgbm_text import read_lightgbm
from tiercel.models.onnx_scorer import OnnxScorer
from tiercel.models.sources import convert_to_onnx
from tiercel.models.xgboost_model import read_xgboost
from tiercel.types import Signature, Task

lightgbm = pytest.importorskip("lightgbm")
xgboost = pytest.importorskip("xgboost")

NAMES = tuple(f"f{k}" for k in range(N_FEATURES))
SIGNATURES = {
    "binary": Signature(NAMES, Task.BINARY, ("no", "yes")),
    "multiclass": Signature(NAMES, Task.MULTICLASS, ("a", "b", "c")),
    "regression": Signature(NAMES, Task.REGRESSION),
}


def regression_of(n_features):
    return Signature(tuple(f"f{k}" for k in range(n_features)), Task.REGRESSION)


@pytest.mark.parametrize(
    ("objective", "params"),
    [
        ("binary", {}),
        ("binary", {"categorical": True}),
        ("binary", {"zero_as_missing": True}),
        ("binary", {"use_missing": False}),
        ("binary", {"boosting": "dart"}),
        ("regression", {"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.6}),
        ("multiclass", {}),
    ],
)
def test_lightgbm_pred_contrib(objective, params):
    """Path-dependent attributions equal LightGBM's pred_contrib, with categories, missing values and several classes."""
    data = lightgbm_bytes(objective, **params)
    signature = SIGNATURES.get(objective)
    rows = table()[0][:200]
    explainer = make_explainer(data, signature, kind="path_dependent")
    wanted = lightgbm.Booster(model_str=data.decode()).predict(rows, pred_contrib=True, num_threads=1)
    wanted = wanted.reshape(len(rows), -1, N_FEATURES + 1)
    if params.get("boosting") == "rf":
        wanted = wanted / 12  # LightGBM explains the sum of a random forest's trees, and predicts their average
    for k, output in enumerate(explainer.outputs or (None,)):
        found = explainer.explain(rows, output)
        np.testing.assert_allclose(found.values, wanted[:, k, :-1], rtol=0, atol=1e-6)
        np.testing.assert_allclose(found.expected, wanted[:, k, -1], rtol=0, atol=1e-6)
        assert (found.kind, found.method, found.output) == ("path_dependent", "exact", output)


@pytest.mark.parametrize(
    ("objective", "params"),
    [
        ("binary:logistic", {}),
        ("binary:logistic", {"categorical": True}),
        ("reg:squarederror", {"booster": "dart", "rate_drop": 0.3}),
        ("multi:softprob", {}),
    ],
)
def test_xgboost_pred_contribs(objective, params):
    """Path-dependent attributions and interactions equal XGBoost's, which adds in float32: to 1e-6 of the largest."""
    booster = xgboost_booster(objective, **params)
    rows = table()[0][:100]
    parsed = read_xgboost(bytes(booster.save_raw("json")), is_ubjson=False)
    name = {Task.BINARY: "binary", Task.MULTICLASS: "multiclass"}.get(parsed.task, "regression")
    explainer = make_explainer(parsed, SIGNATURES[name], kind="path_dependent")
    types = ["q"] * 5 + ["c" if params.get("categorical") else "q"]
    matrix = xgboost.DMatrix(rows, feature_types=types, enable_categorical=True)
    wanted = booster.predict(matrix, pred_contribs=True).reshape(len(rows), -1, N_FEATURES + 1)
    scale = max(1.0, float(np.abs(wanted).max()))
    for k, output in enumerate(explainer.outputs or (None,)):
        found = explainer.explain(rows, output)
        np.testing.assert_allclose(found.values, wanted[:, k, :-1], rtol=0, atol=2e-6 * scale)
        np.testing.assert_allclose(found.expected, wanted[:, k, -1], rtol=0, atol=2e-6 * scale)
    if not params.get("categorical"):
        joint = booster.predict(matrix, pred_interactions=True).reshape(len(rows), -1, N_FEATURES + 1, N_FEATURES + 1)
        for k, output in enumerate(explainer.outputs or (None,)):
            pairs, _ = explainer.interactions(rows, output)
            np.testing.assert_allclose(pairs, joint[:, k, :-1, :-1], rtol=0, atol=4e-6 * scale)


@pytest.mark.parametrize("objective", ["binary", "multiclass", "regression"])
def test_interventional_adds_up_to_the_margin(objective):
    """What a reference set explains of a LightGBM model adds up to LightGBM's own raw score."""
    data = lightgbm_bytes(objective)
    X = table()[0]
    explainer = make_explainer(data, SIGNATURES[objective], X[:100])
    raw = lightgbm.Booster(model_str=data.decode()).predict(X[100:400], raw_score=True).reshape(300, -1)
    for k, output in enumerate(explainer.outputs or (None,)):
        found = explainer.explain(X[100:400], output)
        np.testing.assert_allclose(found.expected + found.values.sum(axis=1), raw[:, k], rtol=1e-12, atol=1e-12)
        assert found.reference == reference_digest(X[:100])
        assert found.kind == "interventional"


def test_interventional_equals_definition_on_a_real_model():
    """A trained model with categories and missing values gets its Shapley values to 1e-9, and so do its pairs."""
    data = lightgbm_bytes("binary", categorical=True)
    X = table()[0]
    explainer = make_explainer(data, SIGNATURES["binary"], X[:8])
    body, rows = read_lightgbm(data).body, X[50:53]
    games = [interventional_game(body, row, X[:8], 0) for row in rows]
    found = explainer.explain(rows)
    np.testing.assert_allclose(found.values, [shapley(game, N_FEATURES) for game in games], rtol=0, atol=1e-9)
    pairs, expected = explainer.interactions(rows[:1])
    np.testing.assert_allclose(pairs[0], interactions(games[0], N_FEATURES), rtol=0, atol=1e-9)
    assert expected == found.expected


def test_a_float32_model_adds_up_to_its_rounding():
    """XGBoost's margins are sums in float32; attributions add up to them as far as those sums are exact."""
    booster = xgboost_booster("binary:logistic", n_trees=40)
    X = table()[0]
    explainer = make_explainer(bytes(booster.save_raw("ubj")), SIGNATURES["binary"], X[:50])
    found = explainer.explain(X[:300])
    raw = booster.predict(xgboost.DMatrix(X[:300]), output_margin=True)
    np.testing.assert_allclose(found.expected + found.values.sum(axis=1), raw, rtol=1e-5, atol=1e-6)


def test_random_forest_probability_is_exact():
    """Where trees vote with probabilities the margin is the probability, which is explained exactly."""
    ensemble = pytest.importorskip("sklearn.ensemble")
    pytest.importorskip("skl2onnx")
    X = np.nan_to_num(table()[0])
    model = ensemble.RandomForestClassifier(10, max_depth=6, random_state=0).fit(X, table()[1])
    data = onnx_of(model)
    explainer = make_explainer(data, SIGNATURES["binary"], X[:30])
    found = explainer.explain(X[:50], scale="probability")
    np.testing.assert_allclose(found.expected + found.values.sum(axis=1), model.predict_proba(X[:50])[:, 1], atol=1e-6)
    assert (found.method, found.scale, found.output) == ("exact", "probability", "yes")
    same = explainer.explain(X[:50])
    np.testing.assert_array_equal(same.values, found.values)
    assert same.scale == explainer.margin_scale == "probability"  # not "margin", which reads as log odds


def test_linear_pipeline_is_explained_in_closed_form():
    """A scaled and imputed logistic regression: weight times distance from the reference's mean, to 1e-9 by definition."""
    pipeline = pytest.importorskip("sklearn.pipeline")
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    pytest.importorskip("skl2onnx")
    X, y = table()[:2]
    model = pipeline.make_pipeline(SimpleImputer(), StandardScaler(), LogisticRegression()).fit(X, y)
    explainer = make_explainer(onnx_of(model), SIGNATURES["binary"], X[:20])
    found = explainer.explain(X[:40])
    assert (found.kind, found.method, explainer.compiled.method) == ("linear", "exact", "linear")
    np.testing.assert_allclose(
        found.expected + found.values.sum(axis=1), model.decision_function(X[:40]), rtol=1e-5, atol=1e-5
    )
    prepared = pipeline.make_pipeline(*model[:-1])
    weights = model[-1].coef_[0]
    wanted = weights * (prepared.transform(X[:40]) - prepared.transform(X[:20]).mean(axis=0))
    np.testing.assert_allclose(found.values, wanted, rtol=1e-4, atol=1e-5)
    pairs, _ = explainer.interactions(X[:2])
    np.testing.assert_allclose(pairs.sum(axis=2), found.values[:2], rtol=0, atol=1e-12)


def test_linear_equals_definition():
    """A linear model of several outputs, with an imputer, gets its Shapley values to 1e-9."""
    rng = np.random.default_rng(3)
    a = rng.normal(size=4).astype(np.float32)
    body = Linear(rng.normal(size=(3, 4)), rng.normal(size=3), steps=(Step(StepKind.IMPUTE_NAN, a, a),))
    rows, reference = rng.normal(size=(2, 3, 4)).astype(np.float32)
    rows[0, 1] = reference[2, 0] = np.nan
    explainer = make_explainer(body, replace(SIGNATURES["multiclass"], features=NAMES[:4]), reference)
    filled = np.where(np.isnan(reference), a, reference).astype(np.float64)

    for k, output in enumerate(("a", "b", "c")):
        found = explainer.explain(rows, output)
        for row, phi in zip(np.where(np.isnan(rows), a, rows).astype(np.float64), found.values, strict=True):

            def value(chosen, row=row, k=k):
                mixed = filled.copy()
                mixed[:, sorted(chosen)] = row[sorted(chosen)]
                return float((mixed @ body.weights[k] + body.intercept[k]).mean())

            np.testing.assert_allclose(phi, shapley(value, 4), rtol=0, atol=1e-9)


def onnx_of(model):
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType

    options = {id(model): {"zipmap": False}}
    return convert_sklearn(model, initial_types=[("x", FloatTensorType([None, N_FEATURES]))], options=options).SerializeToString()  # fmt: skip


def test_onnxruntime_models_are_sampled():
    """A model that can only be scored is explained within its stated error, adds up exactly, and says it is sampled."""
    data = lightgbm_bytes("binary")
    scorer = OnnxScorer(convert_to_onnx(data, "lightgbm", N_FEATURES))
    X = np.nan_to_num(table()[0])
    explainer = make_explainer(scorer, SIGNATURES["binary"], X[:40], pairs=100)
    assert (explainer.kind, explainer.method, explainer.compiled) == ("permutation", "sampled", None)
    found = explainer.explain(X[50:60], scale="margin")
    exact = make_explainer(data, SIGNATURES["binary"], X[:40]).explain(X[50:60])
    assert np.all(np.abs(found.values - exact.values) <= 5 * found.standard_error + 1e-4)
    margin = lightgbm.Booster(model_str=data.decode()).predict(X[50:60], raw_score=True)
    np.testing.assert_allclose(found.expected + found.values.sum(axis=1), margin, atol=1e-4)
    probability = explainer.explain(X[50:60], scale="probability")
    np.testing.assert_allclose(probability.expected + probability.values.sum(axis=1), scorer.score(X[50:60])[:, 0], atol=1e-9)  # fmt: skip
    assert explainer.predicted_us(2) > explainer.predicted_us(1) > 0


def test_probability_of_a_forest_is_sampled_by_its_own_scorer():
    """The probability of a boosted classifier is no sum of trees: its explanation says sampled, and adds up to the score."""
    data, X = lightgbm_bytes("binary"), table()[0]
    explainer = make_explainer(data, SIGNATURES["binary"], X[:20])
    assert explainer.explain(X[:3], "yes").scale == explainer.margin_scale == "margin"
    found = explainer.explain(X[:3], "yes", "probability")
    scores = lightgbm.Booster(model_str=data.decode()).predict(X[:3])
    assert (found.method, found.kind, found.scale) == ("sampled", "permutation", "probability")
    np.testing.assert_allclose(found.expected + found.values.sum(axis=1), scores, rtol=1e-12)


@pytest.mark.parametrize("aggregate", [Aggregate.MIN, Aggregate.MAX])
def test_minima_and_maxima_are_named(aggregate):
    """A forest that takes the minimum of its trees cannot be explained exactly: an error says so, auto samples it."""
    forest = random_forest(1, aggregate=aggregate, base_first=False)
    reference = random_rows(forest, 2, 5)
    for kind in ("interventional", "path_dependent"):
        with pytest.raises(UnexplainableModelError, match=f"takes their {aggregate.name}"):
            make_explainer(forest, regression_of(4), reference, kind)
    explainer = make_explainer(forest, regression_of(4), reference)
    assert explainer.method == "sampled"
    assert aggregate.name in explainer.why


def test_mixed_features_are_named():
    """A normalizer in front of the model mixes a row's features: the error names it."""
    ones = np.ones(4, np.float32)
    forest = replace(random_forest(1), steps=(Step(StepKind.NORMALIZE_L2, ones, ones),))
    with pytest.raises(UnexplainableModelError, match="NORMALIZE_L2"):
        make_explainer(forest, regression_of(4), random_rows(forest, 2, 5), "interventional")
    linear = Linear(np.ones((1, 4)), np.zeros(1), steps=forest.steps)
    with pytest.raises(UnexplainableModelError, match="NORMALIZE_L2"):
        make_explainer(linear, regression_of(4), np.zeros((2, 4), np.float32), "linear")


def test_a_file_without_covers_is_named():
    """Path-dependent attributions of a file that counts nothing are refused, and what to do instead is said."""
    forest = random_forest(1)
    with pytest.raises(UnexplainableModelError, match="how much training data"):
        make_explainer(forest, regression_of(4), kind="path_dependent")
    cut = b"\n".join(line for line in lightgbm_bytes("binary").split(b"\n") if not line.startswith(b"internal_count"))
    assert read_lightgbm_without_sizes(cut).body.cover is None


def read_lightgbm_without_sizes(data):
    trees = data.split(b"\nTree=")
    last = trees[-1].split(b"\nend of trees")
    sizes = [len(tree) + 6 for tree in trees[1:-1]] + [len(last[0]) + 6]
    lines = trees[0].split(b"\n")
    lines = [b"tree_sizes=" + b" ".join(b"%d" % size for size in sizes) if line.startswith(b"tree_sizes") else line for line in lines]  # fmt: skip
    return read_lightgbm(b"\n".join(lines) + b"\nTree=" + b"\nTree=".join(trees[1:]))


def with_hessians(edit, tree=0):
    """An XGBoost file with other sums of second derivatives in one tree."""
    document = json.loads(bytes(xgboost_booster().save_raw("json")))
    edited = document["learner"]["gradient_booster"]["model"]["trees"][tree]
    edited["sum_hessian"] = edit(edited)
    return json.dumps(document).encode()


@pytest.mark.parametrize("broken", [[1.0, 2.0], ["x"]])
def test_damaged_covers_are_refused(broken):
    """An XGBoost file whose sum_hessian is cut short or no number is refused as damaged."""
    from tiercel.errors import UnsupportedModelError

    data = with_hessians(lambda tree: broken * (len(tree["sum_hessian"]) if len(broken) == 1 else 1))
    with pytest.raises(UnsupportedModelError):
        read_xgboost(data, is_ubjson=False)


@pytest.mark.parametrize(
    ("value", "is_inner", "message"),
    [
        (-1.0, True, "sum_hessian more than zero at a node that is split of tree 2, got -1"),
        (0.0, True, "sum_hessian more than zero at a node that is split of tree 2, got 0"),
        (-0.5, False, "sum_hessian no less than zero at a leaf of tree 2, got -0.5"),
        (math.inf, False, "a leaf of tree 2, got inf"),
    ],
)
def test_covers_that_cannot_be_cost_path_dependent_explanations_alone(value, is_inner, message):
    """A model of an objective that is not convex scores and is explained by reference rows; by path the reason is named."""

    def edit(tree):
        found = list(tree["sum_hessian"])
        node = next(i for i, child in enumerate(tree["left_children"]) if (child >= 0) == is_inner)
        found[node] = value
        return found

    booster, rows = xgboost_booster(), table()[0][:20]
    parsed = read_xgboost(with_hessians(edit, tree=2), is_ubjson=False)
    sound = read_xgboost(bytes(booster.save_raw("json")), is_ubjson=False)
    np.testing.assert_array_equal(parsed.body.compile().score(rows), sound.body.compile().score(rows))
    against = [make_explainer(each, SIGNATURES["binary"], rows, "interventional") for each in (parsed, sound)]
    np.testing.assert_array_equal(*(each.explain(rows).values for each in against))
    with pytest.raises(UnexplainableModelError, match="interventional") as caught:
        make_explainer(parsed, SIGNATURES["binary"], kind="path_dependent")
    assert message in str(caught.value)


def test_a_leaf_without_training_data_is_never_followed():
    """A zero at a leaf is no reason against path-dependent explanations, which still add up to the margin."""

    def edit(tree):
        found = list(tree["sum_hessian"])
        found[next(i for i, child in enumerate(tree["left_children"]) if child < 0)] = 0.0
        return found

    rows = table()[0][:20]
    parsed = read_xgboost(with_hessians(edit), is_ubjson=False)
    explainer = make_explainer(parsed, SIGNATURES["binary"], kind="path_dependent")
    found = explainer.explain(rows)
    assert np.isfinite(found.values).all()
    margins = make_explainer(parsed, SIGNATURES["binary"], rows, "interventional").explain(rows)
    np.testing.assert_allclose(
        found.expected + found.values.sum(axis=1), margins.expected + margins.values.sum(axis=1), rtol=1e-9, atol=1e-9
    )


def test_counts_below_zero_are_no_counts():
    """A LightGBM file with a negative count is read; explaining it by path names the count."""
    data = re.sub(rb"internal_count=\d+", b"internal_count=-5", lightgbm_bytes("binary"), count=1)
    parsed = read_lightgbm_without_sizes(data)
    with pytest.raises(
        UnexplainableModelError, match="leaf_count more than zero at a node that is split of tree 0, got -5"
    ):
        make_explainer(parsed, SIGNATURES["binary"], kind="path_dependent")


def test_reference_sets_are_checked():
    """None where one is needed, too many rows, another number of features: each is named."""
    data, X = lightgbm_bytes("binary"), table()[0]
    with pytest.raises(ReferenceSetError, match="got none"):
        make_explainer(data, SIGNATURES["binary"])
    with pytest.raises(ReferenceSetError, match=f"1 to {MAX_REFERENCE_ROWS} reference rows"):
        make_explainer(data, SIGNATURES["binary"], X[: MAX_REFERENCE_ROWS + 1])
    with pytest.raises(ReferenceSetError, match="6 features"):
        make_explainer(data, SIGNATURES["binary"], X[:10, :5])
    with pytest.raises(ReferenceSetError, match="got none"):
        make_explainer(data, SIGNATURES["binary"], kind="permutation")


def test_kinds_and_outputs_are_checked():
    """A kind that does not fit the model, an unknown class, a missing one, a probability of a number: each is named."""
    data, X = lightgbm_bytes("multiclass"), table()[0]
    with pytest.raises(ValueError, match="one of auto"):
        make_explainer(data, SIGNATURES["multiclass"], X[:5], "exact")
    with pytest.raises(UnexplainableModelError, match="linear"):
        make_explainer(data, SIGNATURES["multiclass"], X[:5], "linear")
    explainer = make_explainer(data, SIGNATURES["multiclass"], X[:5])
    for output in (None, "d"):
        with pytest.raises(ValueError, match="'a', 'b', 'c'"):
            explainer.explain(X[:1], output)
    with pytest.raises(ValueError, match="no probabilities"):
        make_explainer(lightgbm_bytes("regression"), SIGNATURES["regression"], X[:5]).explain(
            X[:1], scale="probability"
        )
    with pytest.raises(ValueError, match="6 features"):
        explainer.explain(X[:1, :4], "a")


def test_softmax_of_two_is_explained_by_its_log_odds():
    """Two outputs through a softmax, one kept: what is explained is their difference, whose sigmoid is the score."""
    forest = replace(random_forest(3, n_raw=2, vector=True), post=Post.SOFTMAX_F64, pick=1)
    rows, reference = random_rows(forest, 4, 20), random_rows(forest, 5, 9)
    signature = replace(SIGNATURES["binary"], features=NAMES[:4])
    for body in (forest, replace(random_forest(3, n_raw=2), post=Post.SOFTMAX_F64, pick=1)):
        found = make_explainer(body, signature, reference).explain(rows)
        margin = found.expected + found.values.sum(axis=1)
        np.testing.assert_allclose(1 / (1 + np.exp(-margin)), body.compile().score(rows)[:, 0], rtol=1e-9)


def test_costs_are_predicted_and_then_measured():
    """A cost is known without explaining anything; measuring replaces it; more rows cost more."""
    explainer = make_explainer(lightgbm_bytes("binary"), SIGNATURES["binary"], table()[0][:50])
    assert 0 < explainer.predicted_us(1) < explainer.predicted_us(100)
    cost = explainer.measure()
    assert cost.measured
    assert explainer.predicted_us(1) == cost.one_row_us
    assert all(a < b for a, b in itertools.pairwise(explainer.predicted_us(n) for n in (1, 10, 1000)))
