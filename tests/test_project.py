"""Registering from a notebook: names, orders and facts end up as they were meant."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from tests.support import projects

from tiercel import Project, models
from tiercel.errors import (
    InvalidFactsError,
    ModelNotFoundError,
    RequestError,
    SchemaMismatchError,
    TierDeniedError,
    UnsupportedModelError,
)
from tiercel.models import ProfileStore, Quantiles, scratch
from tiercel.monitor.reference import Reference, find_reference
from tiercel.project import login_name
from tiercel.serving.engine import Engine
from tiercel.types import Tier

lightgbm = pytest.importorskip("lightgbm")


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return projects.ready_project(tmp_path_factory.mktemp("template") / "project")


@pytest.fixture
def project(template, tmp_path):
    shutil.copytree(template, tmp_path / "project")
    with Project(tmp_path / "project") as opened:
        yield opened


@pytest.fixture
def training_set(project):
    return project.get_historical_features(projects.labels(), "checkout", label_columns=["label"])


def fit(training_set, names):
    """A LightGBM classifier trained on a DataFrame with the columns in this order."""
    frame = training_set.to_df()[list(names)]
    frame = frame.assign(**{name: training_set.vectors([name])[:, 0] for name in names})
    model = lightgbm.LGBMClassifier(n_estimators=8, num_leaves=7, verbose=-1, n_jobs=1)
    return model.fit(frame, training_set.label()), frame


@pytest.mark.parametrize("as_file", [False, True])
def test_a_model_keeps_the_order_it_was_trained_in(project, training_set, tmp_path, as_file):
    """Columns in another order than the service's are matched by name: the served score is the library's."""
    names = tuple(reversed(training_set.feature_names))
    model, frame = fit(training_set, names)
    given = model
    if as_file:
        given = tmp_path / "model.txt"
        model.booster_.save_model(given)
    version = project.register(given, name="reversed", training_set=training_set)
    assert version.facts.signature.features == names
    loaded = models.load(project.registry.load_artifacts(version))
    np.testing.assert_allclose(
        loaded.scorer.score(training_set.vectors(names))[:, 0], model.predict_proba(frame)[:, 1], rtol=1e-12
    )


def test_a_subset_of_the_service_is_enough(project, training_set):
    """A model may use fewer features than its service has; golden rows follow its names."""
    model, _ = fit(training_set, ("amount", "n_orders"))
    version = project.register(model, name="small", training_set=training_set)
    assert version.facts.signature.features == ("amount", "n_orders")
    assert version.facts.snapshot.n_rows == 600


def test_names_that_contradict_the_model_are_refused(project, training_set):
    """Naming a model's inputs otherwise than it was trained is refused, whether other names or another order."""
    model, _ = fit(training_set, training_set.feature_names)
    with pytest.raises(UnsupportedModelError, match="in another order"):
        project.register(model, name="m", service="checkout", feature_names=tuple(reversed(training_set.feature_names)))
    with pytest.raises(UnsupportedModelError, match="that differ"):
        models.prepare(model, feature_names=("a", "b", "c", "d", "e"))


def test_a_model_of_another_service_is_refused(project, training_set):
    """A feature that the service does not have is named."""
    frame = training_set.to_df()[["amount", "n_orders"]].rename(columns={"amount": "height"})
    model = lightgbm.LGBMClassifier(n_estimators=3, verbose=-1, n_jobs=1).fit(frame, training_set.label())
    with pytest.raises(SchemaMismatchError, match="height"):
        project.register(model, name="m", service="checkout")


def test_numbered_columns_take_the_service_names(project, training_set):
    """A model trained on a bare matrix has no names of its own; the training set's order names them."""
    model = lightgbm.LGBMClassifier(n_estimators=3, verbose=-1, n_jobs=1)
    model.fit(np.asarray(training_set.X), training_set.label())
    assert models.own_names(model) is None
    version = project.register(model, name="m", training_set=training_set)
    assert version.facts.signature.features == training_set.feature_names


def test_a_user_without_a_name(monkeypatch):
    """A container's user id without a passwd entry still signs its changes."""

    def nobody():
        raise KeyError("uid not found")

    monkeypatch.setattr("getpass.getuser", nobody)
    assert login_name().startswith("uid:")


def test_online_features_from_python(project):
    """A notebook reads what a server would; a bare text is not mistaken for a list of letters."""
    found = project.get_online_features(
        "checkout", {"customer_id": [1, 17], "shop": ["a", "b"], "country": ["nl", "de"]}
    )
    assert found["n_orders"] == [1, None]
    assert found["staff"] == [3, 5]
    with pytest.raises(RequestError, match="list"):
        project.get_online_features("checkout", {"customer_id": [1], "shop": "a", "country": ["nl"]})
    with pytest.raises(RequestError, match="join key -> values"):
        project.get_online_features("checkout", [{"customer_id": 1, "shop": "a", "country": "nl"}])
    with pytest.raises(RequestError, match="Expected a datetime, got '2026-01-01'"):
        project.get_online_features(
            "checkout", {"customer_id": [1], "shop": ["a"], "country": ["nl"]}, now="2026-01-01"
        )


@pytest.mark.parametrize("make", [np.array, pd.Series, pa.array])
def test_online_features_of_arrays(project, make):
    """Keys as other libraries hold them are read as the lists they stand for."""
    keys = {"customer_id": [1, 2], "shop": ["a", "b"], "country": ["nl", "de"]}
    found = project.get_online_features("checkout", {key: make(column) for key, column in keys.items()})
    assert found == project.get_online_features("checkout", keys)


def test_materialize_takes_one_name(project):
    """One service's name is no list of letters, and a time is a datetime."""
    assert [each.service for each in project.materialize("checkout")] == ["checkout"]
    with pytest.raises(RequestError, match="Expected a datetime, got '2026-01-01'"):
        project.materialize(as_of="2026-01-01")


def test_a_service_of_request_features_alone_is_served(tmp_path):
    """Nothing is stored, an empty base is published, and who asks gets the model's own score."""
    (tmp_path / "tiercel.toml").write_text("")
    (tmp_path / "features.py").write_text("""
from tiercel import FeatureService, Field, Float32, RequestSource, String, on_demand_feature_view

form = RequestSource("form", [Field("x", Float32), Field("color", String, categories=["red", "green"])])


@on_demand_feature_view(sources=[form], schema=[Field("twice", Float32)])
def doubled(x):
    return x * 2


service = FeatureService("form", features=[form, doubled])
""")
    x, color = np.linspace(-1, 1, 200, dtype=np.float32), ["red", "green"] * 100
    times = pa.array([datetime(2026, 1, 1, tzinfo=UTC)] * 200, pa.timestamp("us", tz="UTC"))
    labels = pa.table({"x": x, "color": color, "event_timestamp": times, "y": (x > 0).astype(np.int32)})
    with Project(tmp_path) as project:
        project.apply()
        (manifest,) = project.materialize()
        training_set = project.get_historical_features(labels, "form", label_columns=["y"])
        model = lightgbm.LGBMClassifier(n_estimators=5, verbose=-1, n_jobs=1).fit(training_set.X, training_set.label())
        project.register(model, name="m", training_set=training_set, alias="champion")
        engine = Engine(project.settings, project.registry)
        engine.refresh()
        scores = engine.find_plan("m").predict({}, {"x": x.tolist(), "color": color}, 10**15)[1]
        assert manifest.n_rows == 0
        assert project.get_online_features("form", {}) == {}
    np.testing.assert_allclose(scores, model.predict_proba(training_set.X)[:, 1], rtol=1e-12)


def test_a_training_set_of_older_definitions_is_refused(project, training_set):
    """What a model learned is recorded against the definitions it learned from, never against newer ones."""
    path = project.settings.project_dir / "features.py"
    path.write_text(
        path.read_text().replace(
            "source=shops,", 'source=shops, sql="SELECT shop, country, staff * 1000 AS staff FROM shops",'
        )
    )
    project.apply()
    model = lightgbm.LGBMClassifier(n_estimators=3, verbose=-1, n_jobs=1).fit(training_set.X, training_set.label())
    with pytest.raises(SchemaMismatchError, match="Build the training set again"):
        project.register(model, name="m", training_set=training_set)


def test_a_version_keeps_what_its_training_data_looked_like(project, training_set):
    """A version registered with its training set has a reference of it, counted in the model's own feature order."""
    names = list(reversed(training_set.feature_names))
    model = lightgbm.LGBMClassifier(n_estimators=3, verbose=-1, n_jobs=1)
    model.fit(training_set.vectors(names), training_set.label())
    version = project.register(model, name="m", training_set=training_set, feature_names=names)
    again = project.register(model, name="m", training_set=training_set, feature_names=names)
    assert again.version == version.version
    reference = find_reference(project.registry.load_artifacts(version))
    assert reference.features == tuple(names)
    assert reference.n_rows == len(training_set.X)
    missing = np.isnan(training_set.vectors(names)).sum(axis=0)
    np.testing.assert_array_equal(reference.feature_counts[:, 25], missing)
    assert reference.score_counts[:, 1:24].sum() == reference.n_rows


def test_what_is_no_training_set_and_no_fitted_model(project, training_set):
    """A matrix for a training set, rows of other features, and a model without fit are refused as what they are."""
    with pytest.raises(InvalidFactsError, match=r"get_historical_features\(\) returned, got ndarray"):
        project.register(fit(training_set, ("amount",))[0], name="m", training_set=training_set.X)
    xgboost = pytest.importorskip("xgboost")
    with pytest.raises(UnsupportedModelError, match="fitted XGBoost model, got XGBClassifier"):
        project.register(xgboost.XGBClassifier(), name="m", training_set=training_set)
    narrow = xgboost.XGBClassifier(n_estimators=2).fit(training_set.X[:, :2], training_set.label())
    with pytest.raises(UnsupportedModelError, match=r"2 features that the model takes.*feature_names="):
        project.register(narrow, name="m", training_set=training_set)
    assert [model.name for model in project.registry.list_models()] == ["fraud"]


def test_a_file_is_never_loaded_by_who_registers_it(project, training_set, tmp_path, monkeypatch):
    """The scratch process scores the training rows too: nobody else opens what nobody vouches for, or opens it twice."""
    model, _ = fit(training_set, training_set.feature_names)
    path = tmp_path / "model.txt"
    model.booster_.save_model(path)

    def refuse(*_args, **_options):
        raise AssertionError("the model was loaded here")

    monkeypatch.setattr(models, "load", refuse)
    monkeypatch.setattr(models.loading, "read_model", refuse)
    version = project.register(path, name="m", training_set=training_set, measure=False)
    monkeypatch.undo()
    scorer = models.load(project.registry.load_artifacts(version)).scorer
    reference = find_reference(project.registry.load_artifacts(version))
    scores = scorer.score(training_set.X)
    again = Reference.build(training_set.X, scores, training_set.feature_names, training_set.categories)
    assert set(reference.categories) == {"plan"}
    assert reference.digest == again.digest


def test_a_version_without_training_data_has_no_reference(project, training_set):
    """A model registered from its file alone loads and simply has no reference."""
    model = lightgbm.LGBMClassifier(n_estimators=3, verbose=-1, n_jobs=1).fit(training_set.X, training_set.label())
    version = project.register(model.booster_.model_to_string().encode(), name="m")
    artifacts = project.registry.load_artifacts(version)
    assert find_reference(artifacts) is None
    assert models.load(artifacts).scorer is not None


@pytest.fixture(scope="module")
def measured(template):
    """A real profile of this host."""
    with Project(template) as opened:
        return models.measure(opened.registry.load_artifacts(opened.registry.get("fraud")), quick=True)


@pytest.fixture
def costing(monkeypatch, measured):
    """Make every measurement find this p99 in microseconds."""

    def cost(p99_us):
        total = Quantiles(p99_us / 2, p99_us, p99_us)
        monkeypatch.setattr(models, "measure", lambda *_, **__: replace(measured, total=total))

    return cost


def n_files(project):
    """Files of the state directory but for the database, which makes some when it is opened."""
    return sum(1 for path in project.settings.state_dir.rglob("*") if path.is_file() and "registry.db" not in path.name)


def test_registering_measures(project, training_set):
    """A registered version has a full profile with the read of its service, and the tier that follows from it."""
    model, _ = fit(training_set, training_set.feature_names)
    version = project.register(model, name="m", training_set=training_set)
    profile = project.profile(version)
    assert profile.read is not None
    assert not profile.quick
    assert profile.n_samples >= 2000
    assert project.tier(version).tier is Tier.REALTIME
    assert version.facts.tier is None
    assert "tier" not in version.to_json()


def test_registering_twice_makes_one_version(project, training_set):
    """No measurement becomes part of a version: the same files are the same version however they measured."""
    model, _ = fit(training_set, training_set.feature_names)
    first = project.register(model, name="m", training_set=training_set)
    before = project.profile(first)
    again = project.register(model, name="m", training_set=training_set)
    assert (again.version, again.reused, again.manifest_digest) == (1, True, first.manifest_digest)
    assert project.profile(again) != before
    assert project.register(model, name="m", training_set=training_set, measure=False).reused
    assert set(project.registry.load_artifacts(again)) == {
        "model.txt", "golden.msgpack", "model.json", "reference.msgpack", "training_rows.msgpack",
        "explain_reference.msgpack",
    }  # fmt: skip


@pytest.mark.parametrize("asked", ["realtime", Tier.NEAR_REALTIME])
def test_a_tier_that_the_evidence_denies_registers_nothing(project, training_set, costing, asked):
    """The refusal has the numbers; no version, file, alias or profile comes of it."""
    costing(60_000.0)
    model, _ = fit(training_set, training_set.feature_names)
    before, head = n_files(project), project.registry.head()
    with pytest.raises(TierDeniedError, match=r"60\.000 ms"):
        project.register(model, name="slow", training_set=training_set, tier=asked, alias="champion")
    assert (n_files(project), project.registry.head()) == (before, head)
    with pytest.raises(ModelNotFoundError):
        project.registry.get("slow", 1)
    version = project.register(model, name="slow", training_set=training_set)
    assert project.tier(version).tier is Tier.BATCH


def test_a_slower_tier_may_be_asked_for(project, training_set, costing):
    """What was asked for is a fact of the version and another version than the one that asked for nothing."""
    costing(100.0)
    model, _ = fit(training_set, training_set.feature_names)
    plain = project.register(model, name="m", training_set=training_set)
    slower = project.register(model, name="m", training_set=training_set, tier="near-realtime")
    assert (plain.version, slower.version) == (1, 2)
    assert slower.facts.tier == "near-realtime"
    assert slower.to_json()["tier"] == "near-realtime"
    assert project.tier(slower).tier is Tier.NEAR_REALTIME
    assert project.register(model, name="m", training_set=training_set, tier=Tier.NEAR_REALTIME).version == 2
    with pytest.raises(InvalidFactsError, match="'fast'"):
        project.register(model, name="m", training_set=training_set, tier="fast")


def test_a_model_that_crashes_its_measurement_is_not_registered(project, training_set, monkeypatch):
    """A crash in the scratch process is an error about the model, and nothing is registered."""
    monkeypatch.setattr(scratch, "command", lambda _: [sys.executable, "-c", "import os; os.kill(os.getpid(), 11)"])
    model, _ = fit(training_set, training_set.feature_names)
    before = n_files(project)
    with pytest.raises(UnsupportedModelError, match="measured it crashed with SIGSEGV"):
        project.register(model, name="m", training_set=training_set)
    with pytest.raises(UnsupportedModelError, match="opened it crashed with SIGSEGV"):
        project.register(model.booster_.model_to_string().encode(), name="m", measure=False)
    assert n_files(project) == before


def test_a_profile_that_cannot_be_kept_does_not_undo_a_registration(
    project, training_set, costing, monkeypatch, caplog
):
    """The version is what was asked for; its profile can be taken again."""

    def full(*_):
        raise OSError(28, "No space left on device")

    costing(100.0)
    monkeypatch.setattr(ProfileStore, "put", full)
    model, _ = fit(training_set, training_set.feature_names)
    version = project.register(model, name="m", training_set=training_set)
    assert "No space left" in caplog.text
    assert project.profile(version) is None
    assert project.tier(version).reason == "not measured on this host"
