"""From a version's files to explained replies: forests, linear models and what can only be scored; and what is damaged."""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
from tests.models.trained import finite_table, lightgbm_bytes, table, xgboost_bytes
from tiercel._hot.plan import ServingPlan
from tiercel._hot.reply import ReplyIds

from tiercel import models
from tiercel.explain.policy_file import parse_policy
from tiercel.explain.reference_set import REFERENCE_SET_FILE, ReferenceSet
from tiercel.explain.version_files import POLICY_FILE, make_explanation_files
from tiercel.models.profile import CostProfile, Quantiles, this_host
from tiercel.serving.explain_request import ExplainRequest
from tiercel.serving.explaining import explain_here
from tiercel.serving.version_explainer import add_up, bound_by, make_explanations, margins_of, settings_that_bind
from tiercel.settings import ExplainSettings, ModelSettings
from tiercel.types import Task

POLICY = """
version = 1
locale = "en"
k = 2
[insufficient]
code = "R00"
text = { en = "Nothing in particular", de = "Nichts Bestimmtes" }
[[reasons]]
code = "R01"
text = { en = "The first measurements", de = "Die ersten Messungen" }
features = ["Column_0", "Column_1", "Column_2"]
[[reasons]]
code = "R02"
text = { en = "The other measurements", de = "Die anderen Messungen" }
features = ["Column_3", "Column_4", "Column_5"]
"""


def sklearn_onnx(model):
    from skl2onnx import to_onnx

    return to_onnx(model, np.zeros((1, 6), np.float32), options={"zipmap": False}).SerializeToString()


def forest_onnx():
    from sklearn.ensemble import RandomForestClassifier

    X, y, _, _ = finite_table()
    return sklearn_onnx(RandomForestClassifier(8, max_depth=4, random_state=0).fit(X, y))


def linear_onnx():
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    X, y, _, _ = finite_table()
    return sklearn_onnx(make_pipeline(StandardScaler(), LogisticRegression()).fit(X, y))


def network_onnx():
    from sklearn.neural_network import MLPClassifier

    X, y, _, _ = finite_table()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # five iterations are enough for a network that only has to exist
        return sklearn_onnx(MLPClassifier((4,), max_iter=5, random_state=0).fit(X, y))


def artifacts_of(data, *, with_reference=True, policy=None):
    X, *_ = finite_table()
    prepared = models.prepare_file(data, golden_rows=X[:32])
    rows = X if with_reference else None
    return {**prepared.artifacts, **make_explanation_files(prepared.signature, policy=policy, rows=rows)}


def plan_of(artifacts, declared=None, profile=None):
    model = models.load(artifacts)
    made = make_explanations(model, artifacts, declared, profile, label="m:1")
    return ServingPlan("m", 1, model.signature, model.scorer, explanations=made)


def explained(plan, rows, **asked):
    prepared = plan.recall(rows, plan.scorer.score(rows), is_single=False)
    explain_here(prepared, ExplainRequest(is_full=True, **asked))
    return json.loads(prepared.explanation("1" * 17))


@pytest.mark.parametrize(
    ("make", "method", "kind"),
    [
        pytest.param(lightgbm_bytes, "exact", "interventional", id="LightGBM"),
        pytest.param(lambda: lightgbm_bytes("regression"), "exact", "interventional", id="LightGBM regression"),
        pytest.param(lambda: lightgbm_bytes("multiclass"), "exact", "interventional", id="LightGBM classes"),
        pytest.param(lambda: lightgbm_bytes(categorical=True), "exact", "interventional", id="LightGBM categories"),
        pytest.param(lambda: xgboost_bytes(n_trees=60), "exact", "interventional", id="XGBoost"),
        pytest.param(lambda: xgboost_bytes("multi:softprob"), "exact", "interventional", id="XGBoost classes"),
        pytest.param(forest_onnx, "exact", "interventional", id="random forest"),
        pytest.param(linear_onnx, "exact", "linear", id="linear"),
        pytest.param(network_onnx, "sampled", "permutation", id="network"),
    ],
)
def test_every_kind_of_model(make, method, kind):
    """A version of each kind explains its scores: checked against margins of its own, in double precision."""
    plan = plan_of(artifacts_of(make()))
    rows = np.ascontiguousarray(finite_table()[0][50:60])
    told = explained(plan, rows)["explanation"]
    assert (told["method"], told["kind"], told.get("why")) == (method, kind, None)
    assert len(told["contributions"]) == 10
    totals = [told["expected"] + sum(row.values()) for row in told["contributions"]]
    if method == "exact":
        margins = margins_of(models.load(artifacts_of(make())).body, plan.explanations.explainer.compiled).score(rows)
        output = 0 if margins.shape[1] == 1 else plan.signature.classes.index(told["output"])
        np.testing.assert_allclose(totals, margins[:, output], rtol=1e-6, atol=1e-9)
    if plan.signature.task is Task.BINARY and kind != "interventional":
        scores = plan.scorer.score(rows)[:, 0]
        np.testing.assert_allclose(1 / (1 + np.exp(-np.array(totals))), scores, rtol=1e-5)


def test_what_is_a_probability_is_called_one_on_both_paths():
    """Trees that average probabilities: contributions add up to the score itself, and no path calls that a margin."""
    plan = plan_of(artifacts_of(forest_onnx()))
    row = finite_table()[0][7]
    features = dict(zip(plan.signature.features, map(float, row), strict=True))
    told = json.loads(plan.answer(json.dumps({"features": features, "explain": "full"}).encode(), 0, 0, ReplyIds(9)))
    general = explained(plan, np.ascontiguousarray(row[None], np.float32))["explanation"]
    assert told["explanation"]["scale"] == general["scale"] == "probability"
    total = told["explanation"]["expected"] + sum(told["explanation"]["contributions"].values())
    assert total == pytest.approx(told["score"], abs=1e-6)


def test_the_compiled_path_says_what_the_general_one_does():
    """A real forest with missing values: one body, both paths, the same bytes but for the id."""
    plan = plan_of(artifacts_of(lightgbm_bytes()))
    row = table()[0][7]
    features = dict(zip(plan.signature.features, [None if np.isnan(v) else float(v) for v in row], strict=True))
    body = json.dumps({"features": features, "explain": "full"}).encode()
    told = json.loads(plan.answer(body, 0, 0, ReplyIds(9)))
    prepared = plan.prepare({}, features, 0)
    prepared.score()
    explain_here(prepared, ExplainRequest(is_full=True))
    assert json.loads(prepared.reply(0, ReplyIds(9))) | {"id": ""} == told | {"id": ""}


def test_without_a_reference_set_golden_rows_are_it():
    """A version that was registered without rows to draw from is explained against its golden rows, and says so."""
    plan = plan_of(artifacts_of(lightgbm_bytes(), with_reference=False))
    told = explained(plan, np.ascontiguousarray(finite_table()[0][:2]))["explanation"]
    assert told["method"] == "exact"
    with_set = artifacts_of(lightgbm_bytes())
    assert told["reference"] != ReferenceSet.from_bytes(with_set[REFERENCE_SET_FILE]).digest


def without_rows(data):
    """A version whose golden rows are made up, too."""
    return models.prepare_file(data).artifacts


def test_with_nobody_to_compare_with_the_file_is_asked():
    """Without any real rows a forest that counted its training data is explained by those counts; another says what is missing."""
    rows = np.ascontiguousarray(finite_table()[0][:2])
    told = explained(plan_of(without_rows(lightgbm_bytes())), rows)["explanation"]
    assert (told["method"], told["kind"], told["reference"]) == ("exact", "path_dependent", None)
    told = explained(plan_of(without_rows(linear_onnx())), rows)["explanation"]
    assert told["method"] == "none"
    assert "no reference set" in told["why"]


def test_a_file_whose_counts_cannot_be_is_served_and_says_why():
    """With nobody to compare with and counts below zero, the model answers, and the explanation names both."""
    data = re.sub(rb"leaf_count=\d+", b"leaf_count=-7", lightgbm_bytes(), count=1)
    sizes = b"tree_sizes=" + b" ".join(
        b"%d" % (len(tree) + 6) for tree in data.partition(b"\nend of trees")[0].split(b"\nTree=")[1:]
    )
    plan = plan_of(without_rows(re.sub(rb"tree_sizes=[\d ]+", sizes, data)))
    rows = np.ascontiguousarray(finite_table()[0][:2])
    told = explained(plan, rows)["explanation"]
    assert told["method"] == "none"
    assert "no reference set" in told["why"]
    assert "got -7" in told["why"]


def test_path_dependent_has_no_reference():
    """Asked for in tiercel.toml, contributions follow the file's own counts, and there is no reference to name."""
    declared = ModelSettings("m", explain=ExplainSettings(kind="path_dependent"))
    plan = plan_of(artifacts_of(lightgbm_bytes()), declared)
    told = explained(plan, np.ascontiguousarray(finite_table()[0][:2]))["explanation"]
    assert (told["kind"], told["reference"]) == ("path_dependent", None)
    bound = bound_by(plan.explanations)
    assert (bound["explainer_kind"], bound["reference_digest"]) == ("path_dependent", None)


@pytest.mark.parametrize("policy", [None, POLICY.encode()], ids=["default policy", "own policy"])
@pytest.mark.parametrize(
    "then", [ExplainSettings(), ExplainSettings(kind="path_dependent", k=3, locale="de"), ExplainSettings(k=7)], ids=str
)
def test_settings_of_then_are_told_by_what_was_bound(policy, then):
    """From kind and digests alone settings are found whose explanations follow from the same, whatever today's are."""
    artifacts = artifacts_of(lightgbm_bytes(), policy=policy)
    plan = plan_of(artifacts, ModelSettings("m", explain=then))
    bound = dict(bound_by(plan.explanations))
    for today in (ExplainSettings(), ExplainSettings(kind="interventional", k=5, locale="en")):
        found = settings_that_bind(bound, artifacts, plan.signature, today)
        assert dict(bound_by(plan_of(artifacts, ModelSettings("m", explain=found)).explanations)) == bound
    today = ExplainSettings(k=2)
    foreign = {**bound, "policy_digest": "0" * 64}
    assert settings_that_bind(foreign, artifacts, plan.signature, today).k == 2


def test_a_policy_speaks_the_locale_that_is_nearest():
    """Reasons are the policy's groups; a request's locale falls back to its language, then to the policy's own."""
    plan = plan_of(artifacts_of(lightgbm_bytes(), policy=POLICY.encode()))
    rows = np.ascontiguousarray(finite_table()[0][:1])

    def texts(**asked):
        return {reason["text"] for reason in explained(plan, rows, **asked)["reasons"][0]}

    german = {"Die ersten Messungen", "Die anderen Messungen", "Nichts Bestimmtes"}
    assert texts(locale="de-AT") <= german
    assert not texts() & german
    assert texts(locale="fr") == texts()
    assert len(explained(plan, rows, k=1)["reasons"][0]) == 1


def test_what_a_request_asks_changes_no_digest():
    """However few reasons are wanted, in whichever language: the explanation names the policy that its plan is bound to."""
    plan = plan_of(artifacts_of(lightgbm_bytes(), policy=POLICY.encode()))
    rows = np.ascontiguousarray(finite_table()[0][:1])
    bound = bound_by(plan.explanations)
    assert bound["policy_digest"] == parse_policy(POLICY.encode()).digest
    for asked in ({}, {"k": 1}, {"k": 16}, {"locale": "de"}, {"locale": "de", "k": 3}):
        told = explained(plan, rows, **asked)["explanation"]
        assert (told["policy"], told["reference"]) == (bound["policy_digest"], bound["reference_digest"])


def test_forms_are_made_once():
    """Requests that ask for the same language and number share a form, and those that ask for nothing the plan's own."""
    explainer = plan_of(artifacts_of(lightgbm_bytes(), policy=POLICY.encode())).explanations.explainer
    assert explainer.form_of() is explainer.form_of("en", 2) is explainer.form_of("fr")
    assert explainer.form_of("de", 1) is explainer.form_of("de-AT", 1) is not explainer.form_of("de")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param({REFERENCE_SET_FILE: b"\x93"}, "Expected", id="a damaged reference set"),
        pytest.param({POLICY_FILE: b"reasons = 3"}, "reasons.toml", id="a damaged policy"),
    ],
)
def test_what_is_damaged_costs_the_explanation_only(change, said):
    """A file of the version that is not what was registered: it is served, and each explanation says what is wrong."""
    plan = plan_of(artifacts_of(lightgbm_bytes(), policy=POLICY.encode()) | change)
    told = explained(plan, np.ascontiguousarray(finite_table()[0][:1]))
    assert told["explanation"]["method"] == "none"
    assert said in told["explanation"]["why"]
    assert bound_by(plan.explanations) == {}


def test_a_reference_set_of_other_features_is_named():
    """The reference set of another schema explains nothing here."""
    other = ReferenceSet(("a", "b"), np.zeros((2, 2), np.float32), 2, "given")
    plan = plan_of(artifacts_of(lightgbm_bytes()) | {REFERENCE_SET_FILE: other.to_bytes()})
    told = explained(plan, np.ascontiguousarray(finite_table()[0][:1]))["explanation"]
    assert told["method"] == "none"
    assert "features" in told["why"]


def test_an_operator_that_cannot_be_explained_exactly_is_named():
    """Asked for by a kind that the model cannot have, the explanation says which it can."""
    declared = ModelSettings("m", explain=ExplainSettings(kind="interventional"))
    plan = plan_of(artifacts_of(network_onnx()), declared)
    told = explained(plan, np.ascontiguousarray(finite_table()[0][:1]))["explanation"]
    assert told["method"] == "none"
    assert "interventional" in told["why"]


def profile_with(explain):
    quantiles = Quantiles(1.0, 2.0, 3.0)
    return CostProfile(this_host(), 1, 10, None, quantiles, quantiles, ((1, 1.0, 2.0),), 1.0, 1.0, explain=explain)


def test_the_profile_says_what_explaining_costs():
    """What was measured when the version was registered decides; a stall of the host is not believed; without it: now."""
    artifacts = artifacts_of(lightgbm_bytes())
    measured = plan_of(artifacts, profile=profile_with(Quantiles(20.0, 30.0, 40.0))).explanations
    assert measured.need_us(1) == pytest.approx(30.0, abs=0.01)
    assert measured.need_us(100) < 3000.0
    assert plan_of(artifacts, profile=profile_with(Quantiles(20.0, 9e4, 1e5))).explanations.need_us(1) == 200.0
    assert plan_of(artifacts, profile=profile_with(None)).explanations.need_us(1) > 0


def test_a_profile_keeps_what_explaining_costs():
    """It is stored with the profile; one from before explanations has none."""
    profile = profile_with(Quantiles(20.0, 30.0, 40.0))
    assert CostProfile.from_json(profile.to_json()) == profile
    older = profile.to_json()
    del older["explain"]
    assert CostProfile.from_json(older) == replace(profile, explain=None)


def test_sampled_contributions_are_checked_too():
    """Contributions that do not make the score's log odds are not sent; the last bits of a float32 score are allowed for."""
    values = np.array([[0.5, -0.25], [2.0, 5.0]])
    scores = 1 / (1 + np.exp(-(0.125 + values.sum(axis=1))))
    assert add_up(values, 0.125, scores, has_classes=True)
    assert add_up(values, 0.125, scores.astype(np.float32).astype(np.float64), has_classes=True)
    assert not add_up(values + 1e-4, 0.125, scores, has_classes=True)
    assert add_up(values, 0.125, 0.125 + values.sum(axis=1), has_classes=False)
    assert not add_up(values, 0.125001, 0.125 + values.sum(axis=1), has_classes=False)
    assert add_up(
        np.array([[np.nan, 1.0]]), 0.0, np.array([0.5]), has_classes=False
    )  # the form says what is not finite


def test_measuring_explains():
    """The process that measures a version is given the files that its explanations follow from."""
    profile = models.measure(artifacts_of(lightgbm_bytes()), quick=True)
    assert profile.explain is not None
    assert 0 < profile.explain.p50_us < 1e6
    from tiercel.models.measuring import EXPLANATION_FILES

    assert set(EXPLANATION_FILES) == {POLICY_FILE, REFERENCE_SET_FILE}
