"""What is registered reproduces what was trained, says which engine serves it and why, and loads without the trainer."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from tests.models.trained import finite_table, lightgbm_bytes, table, xgboost_booster, xgboost_bytes

from tiercel.errors import ArtifactCorruptError, ParityError, UnsupportedModelError
from tiercel.models import OnnxScorer, load, parity, prepare, preparing
from tiercel.models.golden import Golden
from tiercel.types import Task

sklearn = pytest.importorskip("sklearn")
from sklearn.ensemble import (  # noqa: E402 - after the skip
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.impute import SimpleImputer  # noqa: E402
from sklearn.linear_model import LinearRegression, LogisticRegression, PoissonRegressor, Ridge, SGDClassifier  # noqa: E402
from sklearn.neural_network import MLPClassifier  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, Normalizer, StandardScaler  # noqa: E402
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor  # noqa: E402

CLASSIFIERS = [
    (LogisticRegression(), "linear"),
    (SGDClassifier(loss="log_loss", random_state=0), None),
    (make_pipeline(StandardScaler(), LogisticRegression()), "linear"),
    (make_pipeline(SimpleImputer(), StandardScaler(), LogisticRegression()), "linear"),
    (make_pipeline(MinMaxScaler(), LogisticRegression()), "linear"),
    (make_pipeline(MaxAbsScaler(), LogisticRegression()), "linear"),
    (make_pipeline(Normalizer(), LogisticRegression()), "linear"),
    (make_pipeline(Normalizer("l1"), LogisticRegression()), "linear"),
    (DecisionTreeClassifier(max_depth=4), "forest"),
    (RandomForestClassifier(8, max_depth=5, random_state=0), "forest"),
    (ExtraTreesClassifier(8, max_depth=5, random_state=0), "forest"),
    (GradientBoostingClassifier(n_estimators=6, random_state=0), "forest"),
    (HistGradientBoostingClassifier(max_iter=6, random_state=0), "forest"),
    (make_pipeline(StandardScaler(), RandomForestClassifier(5, max_depth=4, random_state=0)), "forest"),
]
REGRESSORS = [
    (Ridge(), "linear"),
    (LinearRegression(), "linear"),
    (PoissonRegressor(), "linear"),
    (make_pipeline(SimpleImputer(), StandardScaler(), Ridge()), "linear"),
    (DecisionTreeRegressor(max_depth=5), "forest"),
    (RandomForestRegressor(6, max_depth=6, random_state=0), "forest"),
    (GradientBoostingRegressor(n_estimators=6, random_state=0), "forest"),
    (HistGradientBoostingRegressor(max_iter=6, random_state=0), "forest"),
]


def name(value):
    return str(value)[:40] if not isinstance(value, str) else value


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize(("estimator", "engine"), CLASSIFIERS, ids=name)
def test_sklearn_classifiers(estimator, engine, n_classes):
    """Probabilities of a registered classifier are the estimator's own, and trees and linear models are compiled."""
    X, y, y3, _ = finite_table()
    labels = np.array(["late", "on time", "very late"])[y if n_classes == 2 else y3]
    fitted = sklearn.clone(estimator).fit(X, labels)
    prepared = prepare(fitted, golden_rows=X[:100])
    loaded = load(prepared.artifacts)
    expected = fitted.predict_proba(X)
    np.testing.assert_allclose(
        loaded.scorer.score(X), expected[:, 1:] if n_classes == 2 else expected, rtol=1e-4, atol=2e-6
    )
    assert engine is None or prepared.engine == engine, prepared.reason
    assert prepared.signature.classes == tuple(fitted.classes_)
    assert prepared.signature.task is (Task.BINARY if n_classes == 2 else Task.MULTICLASS)


@pytest.mark.parametrize(("estimator", "engine"), REGRESSORS, ids=name)
def test_sklearn_regressors(estimator, engine):
    """Predictions of a registered regressor are the estimator's own."""
    X, _, _, r = finite_table()
    fitted = sklearn.clone(estimator).fit(X, np.abs(r))
    prepared = prepare(fitted, golden_rows=X[:100])
    np.testing.assert_allclose(load(prepared.artifacts).scorer.score(X)[:, 0], fitted.predict(X), rtol=1e-4, atol=2e-5)
    assert prepared.engine == engine, prepared.reason
    assert (prepared.signature.task, prepared.signature.classes) == (Task.REGRESSION, ())


def test_missing_values_are_accepted_only_where_they_were():
    """An imputer makes a linear model accept missing values; without one it does not."""
    X, y, _, _ = finite_table()
    with_imputer = prepare(make_pipeline(SimpleImputer(), LogisticRegression()).fit(X, y))
    without = prepare(LogisticRegression().fit(X, y))
    assert with_imputer.signature.accepts_missing
    assert not without.signature.accepts_missing
    assert prepare(lightgbm_bytes()).signature.accepts_missing


def test_a_pipeline_that_adds_columns_is_refused_in_words():
    """An imputer's extra column for what was missing is lost in the conversion: its name and what to do instead."""
    X, y, _, _ = finite_table()
    X = X.copy()
    X[::3, 0] = np.nan
    fitted = make_pipeline(SimpleImputer(add_indicator=True), LogisticRegression()).fit(X, y)
    with pytest.raises(UnsupportedModelError, match=r"one for each feature, got .*SimpleImputer\(add_indicator=True\)"):
        prepare(fitted, golden_rows=X[:100])


def test_other_models_are_served_by_onnxruntime():
    """What is not compiled is served by onnxruntime, and the version names the operator that decided it."""
    X, y, _, _ = finite_table()
    fitted = MLPClassifier((4,), solver="lbfgs", max_iter=2000, tol=1e-2, random_state=0).fit(X[:200] / 10, y[:200])
    prepared = prepare(fitted, golden_rows=X[:50] / 10)
    loaded = load(prepared.artifacts)
    assert prepared.engine == "onnxruntime"
    assert "Relu" in prepared.reason
    assert isinstance(loaded.scorer, OnnxScorer)
    np.testing.assert_allclose(loaded.scorer.score(X[:50] / 10), fitted.predict_proba(X[:50] / 10)[:, 1:], atol=1e-5)


def test_lightgbm_estimators():
    """A fitted LGBMClassifier brings its labels, names and parameters."""
    lightgbm = pytest.importorskip("lightgbm")
    X, _, y3, _ = table()
    fitted = lightgbm.LGBMClassifier(n_estimators=5, verbose=-1, n_jobs=1).fit(X, np.array(["a", "b", "c"])[y3])
    prepared = prepare(fitted, feature_names=list("uvwxyz"), golden_rows=X[:300])
    assert prepared.engine == "forest"
    assert prepared.signature.features == tuple("uvwxyz")
    assert prepared.signature.classes == ("a", "b", "c")
    assert prepared.hyperparameters["n_estimators"] == 5
    assert len(Golden.from_bytes(prepared.artifacts["golden.msgpack"]).rows) == 256
    np.testing.assert_allclose(
        load(prepared.artifacts).scorer.score(X[:50]), fitted.booster_.predict(X[:50]), rtol=1e-14
    )


def test_xgboost_estimators_stop_early():
    """An early-stopped XGBClassifier is registered with the trees it predicts with."""
    xgboost = pytest.importorskip("xgboost")
    X, y, _, _ = table()
    fitted = xgboost.XGBClassifier(n_estimators=60, early_stopping_rounds=3, n_jobs=1, learning_rate=1.0)
    fitted.fit(X[:700], y[:700], eval_set=[(X[700:], y[700:])], verbose=False)
    prepared = prepare(fitted)
    got = load(prepared.artifacts).scorer.score(X[:50])
    assert fitted.best_iteration < 59
    np.testing.assert_allclose(got, fitted.predict_proba(X[:50])[:, 1:], rtol=1e-6)


@pytest.mark.parametrize("make", [lightgbm_bytes, xgboost_bytes, xgboost_booster], ids=["lightgbm", "ubj", "booster"])
def test_report_says_what_was_compared(make):
    """The report of a version names the library, the rows and the bound, in JSON."""
    prepared = prepare(make())
    facts = json.loads(prepared.artifacts["model.json"])
    assert prepared.parity.passed
    assert prepared.parity.n_rows >= 20_000
    assert facts["parity"]["source"].split()[0] in ("lightgbm", "xgboost")
    assert facts["engine"] == prepared.engine == "forest"
    assert load(prepared.artifacts).signature == prepared.signature


def test_a_scorer_that_differs_never_serves(monkeypatch):
    """When the compiled scorer does not reproduce its source, onnxruntime serves and the reason holds the worst row."""
    real = preparing.read_model

    def wrong(data, model_format):
        parsed = real(data, model_format)
        values = parsed.body.values.copy()
        values[0] += 0.5
        return replace(parsed, body=replace(parsed.body, values=values))

    X, y, _, _ = finite_table()
    monkeypatch.setattr(preparing, "read_model", wrong)
    prepared = prepare(DecisionTreeClassifier(max_depth=3).fit(X, y))
    assert prepared.engine == "onnxruntime"
    assert "does not reproduce" in prepared.reason
    assert "for the row f0 = " in prepared.reason


def test_models_nobody_reproduces_are_refused():
    """LightGBM's linear trees are lost in conversion: neither engine reproduces them, so they are not registered."""
    pytest.importorskip("onnxmltools")
    with pytest.raises(ParityError, match="Neither") as caught:
        prepare(lightgbm_bytes("regression", linear_tree=True), feature_names=["age", *"bcdef"])
    assert re.search(
        r"onnxruntime: expected \S+, got \S+ for the row age = .*\. Nothing is registered", str(caught.value)
    )


def test_an_estimator_that_adds_to_its_model_is_refused():
    """The message has the share of rows, one of them by its features' names, both scores, and what to do."""
    lightgbm = pytest.importorskip("lightgbm")

    class Shifted(lightgbm.LGBMClassifier):
        def predict_proba(self, X, **options):
            return super().predict_proba(X, **options) * 0.5

    X, y, _, _ = table()
    model = Shifted(n_estimators=3, num_leaves=5, verbose=-1).fit(X, y)
    names = ["age", *"bcdef"]
    with pytest.raises(ParityError, match=r"on 100\.0% of .* expected .* for the row age = .*plain estimator"):
        prepare(model, feature_names=names)


def test_large_rows_are_shown_in_part():
    """Of many features a message names the first; of scores of another shape there is no row to show."""
    rows = np.zeros((2, 500), dtype=np.float32)
    bound = parity.Bound(0, single_precision=True)
    worst = parity.compare(np.ones((2, 1)), np.zeros((2, 1)), rows, bound, "x").describe_worst()
    assert worst.endswith("f29 = 0.0 and 470 more")
    shapeless = parity.compare(np.ones((2, 2)), np.zeros((2, 1)), rows, bound, "xgboost").describe_worst()
    assert shapeless == "of xgboost; shape (2, 1), the scores have another shape"


@pytest.mark.parametrize("objective", ["binary:logistic", "reg:squarederror", "count:poisson", "multi:softprob"])
def test_linear_boosters_are_compiled(objective):
    """XGBoost's gblinear is compiled; what is missing adds nothing to its sum."""
    xgboost = pytest.importorskip("xgboost")
    rng = np.random.default_rng(4)
    X = rng.random((300, 4)).astype(np.float32)
    X[::5, 1] = np.nan
    y = (X[:, 0] > 0.4).astype(int) + (objective == "multi:softprob") * (X[:, 2] > 0.5)
    options = {"booster": "gblinear", "objective": objective, **({"num_class": 3} if y.max() > 1 else {})}
    booster = xgboost.train(options, xgboost.DMatrix(X, y), 5)
    prepared = prepare(booster)
    assert (prepared.engine, prepared.signature.accepts_missing) == ("linear", True)
    scores = load(prepared.artifacts).scorer.score(X)
    np.testing.assert_allclose(scores, booster.predict(xgboost.DMatrix(X)).reshape(scores.shape), rtol=1e-5, atol=1e-6)


def test_what_no_engine_serves_says_why_of_each():
    """A booster that is not compiled and cannot be converted says both, and what to do."""
    xgboost = pytest.importorskip("xgboost")
    pytest.importorskip("onnxmltools")
    X = np.random.default_rng(4).random((50, 3)).astype(np.float32)
    options = {"booster": "gblinear", "objective": "binary:hinge"}
    booster = xgboost.train(options, xgboost.DMatrix(X, X[:, 0] > 0.5), 2)
    with pytest.raises(
        UnsupportedModelError, match=r"'binary:hinge'.* not compiled; and for onnxruntime, onnxmltools.*ONNX"
    ):
        prepare(booster)


def test_loaded_rows_must_score_as_registered():
    """A version whose golden rows score differently here is refused, unless the check is skipped."""
    prepared = prepare(lightgbm_bytes())
    golden = Golden.from_bytes(prepared.artifacts["golden.msgpack"])
    changed = {**prepared.artifacts, "golden.msgpack": Golden(golden.rows, golden.scores + 1e-9).to_bytes()}
    with pytest.raises(ParityError):
        load(changed)
    assert load(changed, verify=False).engine == "forest"


@pytest.mark.parametrize("file", ["model.json", "model.txt", "golden.msgpack"])
@pytest.mark.parametrize(
    "damage", [lambda data: None, lambda data: b"", lambda data: data[: len(data) // 2], lambda data: b"{}"]
)
def test_incomplete_versions_are_refused(file, damage):
    """A missing, empty, cut or foreign file is an error of the version."""
    artifacts = dict(prepare(lightgbm_bytes()).artifacts)
    changed = damage(artifacts.pop(file))
    if changed is not None:
        artifacts[file] = changed
    with pytest.raises((ArtifactCorruptError, UnsupportedModelError)):
        load(artifacts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"feature_names": ["a", "b"]}, "6 features, got 2"),
        ({"feature_names": ["a"] * 6}, "different feature names"),
        ({"classes": ["a", "b", "c"]}, "2 classes"),
        ({"golden_rows": np.zeros((3, 5), dtype=np.float32)}, "golden rows of shape"),
        ({"golden_rows": "rows"}, "golden rows of 6 numbers each.*got str"),
        ({"task": Task.MULTICLASS}, "1 scores"),
    ],
)
def test_arguments_that_do_not_fit_the_model(arguments, message):
    """Names, labels and rows that do not fit the model are refused with both numbers."""
    with pytest.raises(UnsupportedModelError, match=message):
        prepare(lightgbm_bytes(), **arguments)


def test_unknown_types_are_refused():
    """Anything that is no model says what would be."""
    with pytest.raises(UnsupportedModelError, match="Expected a path, bytes"):
        prepare(object())


def test_loading_needs_no_training_library():
    """Serving imports neither lightgbm, xgboost, onnx, sklearn nor pickle-based loaders."""
    code = "import sys, tiercel.models as m; print([n for n in ('lightgbm','xgboost','onnx','sklearn','skl2onnx','joblib') if n in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
