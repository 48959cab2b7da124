"""What would have changed a decision, of real models and of predictions that a server recorded."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tests.models.trained import finite_table, lightgbm_bytes, table
from tests.reference import counterfactuals as reference

from tiercel import models
from tiercel.errors import UnexplainableModelError
from tiercel.explain.counterfactuals import find_counterfactuals
from tiercel.explain.policy import Change, Reason, ReasonPolicy, Wording
from tiercel.serving.what_if import landscape_of

pytest.importorskip("lightgbm")
FEATURES = tuple(f"f{at}" for at in range(6))


def policy_of(**bounds):
    """Changes of these features; each (direction, min, max, step)."""
    return ReasonPolicy(
        reasons=(Reason(Wording("R1", (("en", "one"),)), FEATURES),), insufficient=Wording("R0", (("en", "none"),)),
        locale="en", locales=("en",),
        changes=tuple(Change(name, (("en", name),), *values) for name, values in sorted(bounds.items())),
    )  # fmt: skip


def load(data, rows):
    return models.load(models.prepare(data, feature_names=FEATURES, golden_rows=rows[:64]).artifacts)


@pytest.mark.parametrize("params", [{}, {"zero_as_missing": True}, {"use_missing": False}], ids=str)
def test_forests_change_as_little_as_brute_force_finds(params):
    """On a real LightGBM model the nearest changes of one and of two features are those that trying everything finds."""
    X = table()[0]
    model = load(lightgbm_bytes(n_trees=4, num_leaves=6, **params), X)
    landscape = landscape_of(model, X[:100])
    policy = policy_of(f0=("either", None, None, None), f1=("up", -3.0, 1.0, None), f4=("either", None, 2.0, 1.0))
    threshold = float(np.median(model.scorer.score(X)))
    n_found = 0
    for row in X[:25]:
        found = find_counterfactuals(row, landscape, policy, threshold=threshold, most=9)
        changes = [(FEATURES.index(each.feature), each) for each in policy.changes]
        alone, both = reference.nearest(row, landscape.score, threshold, landscape.spreads, changes, landscape.cuts)
        expected = sorted([*(each for each in alone.values() if math.isfinite(each))])
        if both < min(expected, default=math.inf) - 1e-12:
            expected = [both, *expected]
        assert [each.distance for each in found.found] == pytest.approx(expected, rel=1e-9)
        n_found += len(found.found)
    assert n_found > 10


def test_linear_pipelines_change_at_their_border():
    """A scaled and imputed logistic regression flips at the value found, and not at the float32 before it."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    pytest.importorskip("skl2onnx")
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    X, y, _, _ = table()
    pipeline = make_pipeline(SimpleImputer(strategy="median"), StandardScaler(), linear_model.LogisticRegression())
    model = load(pipeline.fit(X, y), X)
    landscape = landscape_of(model, X[:100])
    policy = policy_of(f0=("either", None, None, None), f1=("either", None, None, None))
    n_found = 0
    for row in X[:20]:
        found = find_counterfactuals(row, landscape, policy, threshold=0.5, pairs=False)
        for each in found.found:
            index, then = FEATURES.index(each.changes[0].feature), np.float32(each.changes[0].then)
            changed = np.repeat(row[None, :], 2, axis=0)
            changed[:, index] = then, np.nextafter(then, np.float32(each.changes[0].now))
            flipped = (landscape.score(changed) >= 0.5) != (found.score >= 0.5)
            assert flipped.tolist() == [True, False]
            n_found += 1
    assert n_found > 20


def test_categories_are_no_way_to_go():
    """A feature that trees split by category is left alone, though the policy lists it: its codes have no order."""
    X = table()[0]
    model = load(lightgbm_bytes(categorical=True), X)
    landscape = landscape_of(model, X[:100])
    assert 5 not in landscape.cuts
    assert 0 in landscape.cuts
    assert len(landscape_of(load(lightgbm_bytes(), X), None).cuts) == 6
    free = ("either", None, None, None)
    found = find_counterfactuals(np.zeros(6, np.float32), landscape, policy_of(f5=free), threshold=0.5)
    assert found.found == ()


def test_models_that_no_search_fits_say_so():
    """Several classes, a model that onnxruntime serves, and rows that are normalized together are named."""
    X, _, y3, _ = finite_table()
    with pytest.raises(UnexplainableModelError, match="one of 3 classes"):
        landscape_of(load(lightgbm_bytes("multiclass"), X), None)
    linear_model = pytest.importorskip("sklearn.linear_model")
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import Normalizer

    y = (y3 > 0).astype(int)
    normalized = make_pipeline(Normalizer(), linear_model.LogisticRegression()).fit(X, y)
    with pytest.raises(UnexplainableModelError, match="normalize_l2"):
        landscape_of(load(normalized, X), None)
    network = MLPClassifier((3,), max_iter=400, tol=0.1, random_state=0).fit(X, y)
    with pytest.raises(UnexplainableModelError, match="onnxruntime serves"):
        landscape_of(load(network, X), None)
