"""The engine follows the disk and the registry; what cannot be loaded never replaces what serves."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import replace

import numpy as np
import pytest
from tests.support import projects

from tiercel import Project
from tiercel.errors import (
    AliasNotFoundError,
    InvalidNameError,
    ModelNotFoundError,
    ModelUnavailableError,
    ServiceNotFoundError,
    VersionNotFoundError,
)
from tiercel.registry import Registry
from tiercel.serving.engine import MAX_PINNED, Engine, keep_current
from tiercel.settings import ModelSettings

ENTITIES = {"customer_id": 5, "shop": "a", "country": "nl"}
FEATURES = {"amount": 0.5}
NOW_US = 1_800_000_000_000_000


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return projects.ready_project(tmp_path_factory.mktemp("template") / "project")


@pytest.fixture
def project(template, tmp_path):
    """A copy of a project with a materialized service and a champion, to change at will."""
    shutil.copytree(template, tmp_path / "project")
    with Project(tmp_path / "project") as opened:
        yield opened


@pytest.fixture
def engine(project):
    engine = Engine(project.settings, project.registry)
    engine.refresh()
    return engine


def score(engine, reference="fraud"):
    return engine.find_plan(reference).predict(ENTITIES, FEATURES, NOW_US)[1]


def test_the_plan_gives_the_library_answer(project, engine):
    """From keys to score, the answer is LightGBM's on the training vector of that customer."""
    _, model, training_set = projects.train(project, seed=0)
    table = training_set.to_arrow().to_pandas()
    plan = engine.find_plan("fraud")
    expected = model.predict_proba(np.asarray(training_set.X))[:, 1]
    entities = {key: table[key].tolist() for key in ENTITIES}
    _, scores, _, _ = plan.predict(entities, {"amount": table["amount"].tolist()}, NOW_US)
    np.testing.assert_allclose(scores, expected, rtol=1e-12)


def test_nothing_changed_is_not_stale(engine):
    """The watch costs a look, not a refresh."""
    assert not engine.stale()
    plan = engine.find_plan("fraud")
    engine.refresh()
    assert engine.find_plan("fraud") is plan


@pytest.mark.parametrize(
    ("table", "is_plain", "has_stand_in"),
    [
        ({}, True, False),
        ({"deadline_ms": 5.0}, True, False),
        ({"default_score": 0.5}, True, True),
        ({"fallback": "small"}, True, True),
        ({"last_score_max_age_s": 1.0}, False, True),
        ({"challenger_weight": 0.5}, False, False),
    ],
)
def test_whose_scores_must_be_seen_is_no_plain_model(project, table, is_plain, has_stand_in):
    """The compiled path answers unless the router has to see every score, and knows whether anybody may stand in."""
    engine = Engine(replace(project.settings, models=(ModelSettings("fraud", **table),)), project.registry)
    engine.refresh()
    plan = engine._wire(engine._load("fraud", 1), engine.service("checkout"))
    assert (plan.is_plain, plan.has_stand_in) == (is_plain, has_stand_in)


def test_promotion_is_followed(project, engine):
    """A new champion answers after a refresh, under every spelling; the one before keeps its number and alias."""
    before = score(engine)
    version, _, _ = projects.train(project, seed=1, colsample_bytree=0.5)
    assert not engine.find_plan(f"fraud:{version.version}")
    project.promote("fraud", version.version)
    assert engine.stale()
    engine.refresh()
    assert not engine.stale()
    assert engine.find_plan("fraud").version == engine.find_plan("fraud@champion").version == 2
    assert engine.find_plan("fraud@previous").version == engine.find_plan("fraud:1").version == 1
    assert score(engine, "fraud:1") == before


def test_a_new_base_is_followed(project, engine):
    """Published features reach the next prediction; the plan in use keeps reading the base it has."""
    held, before = engine.find_plan("fraud"), score(engine)
    projects.write_project(project.settings.project_dir, seed=9, shift=0.7)
    project.materialize()
    assert engine.stale()
    engine.refresh()
    assert score(engine) != before
    assert held.predict(ENTITIES, FEATURES, NOW_US)[1] == before


def test_a_corrupt_base_is_not_made_live(project, engine, caplog):
    """A base that is not what its MANIFEST says is refused; the one before keeps serving, and readiness says why."""
    before = score(engine)
    projects.write_project(project.settings.project_dir, seed=9, shift=0.7)
    manifest = project.materialize()[0]
    base = project.settings.features_dir / "checkout" / manifest.base_name
    damaged = bytearray(base.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    base.write_bytes(damaged)
    assert engine.stale()
    routes = engine.refresh()
    assert score(engine) == before
    assert "sha256" in routes.problems[0]
    assert "keeps serving" in routes.problems[0]
    assert len(caplog.records) == 1
    assert engine.refresh().problems == routes.problems  # still said, not logged again
    assert len(caplog.records) == 1
    project.materialize()
    assert engine.refresh().problems == ()
    assert score(engine) != before


def truncate(project, manifest):
    base = project.settings.features_dir / "checkout" / manifest.base_name
    base.chmod(0o644)
    base.write_bytes(base.read_bytes()[:4096])


def test_a_start_beside_a_damaged_base_serves_the_older_one(project, engine, monkeypatch, caplog):
    """A worker that starts while the current base is damaged answers from the one before, loudly, until the next one."""
    monkeypatch.setattr("tiercel.serving.engine.RETRY_INTERVAL_S", 0.0)
    before = score(engine)
    projects.write_project(project.settings.project_dir, seed=9, shift=0.7)
    damaged = project.materialize()[0]
    truncate(project, damaged)
    started = Engine(project.settings, project.registry)
    routes = started.refresh()
    assert routes.is_ready
    assert score(started) == before
    (problem,) = routes.problems
    assert damaged.base_name in problem
    assert f"{damaged.previous[0].base_name}, keeps serving" in problem
    assert "Materialize" in problem
    assert started.stale()  # tried again
    plan = started.find_plan("fraud")
    assert started.refresh().problems == (problem,)
    assert started.find_plan("fraud") is plan
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == [problem]
    project.materialize()
    assert started.stale()
    assert started.refresh().problems == ()
    assert score(started) != before


def test_a_start_without_any_intact_base_says_the_cause(project, engine):
    """Who asks for a model whose features are damaged hears what is wrong with them, not that there are none."""
    truncate(project, engine.service("checkout").manifest)
    started = Engine(project.settings, project.registry)
    assert not started.refresh().is_ready
    with pytest.raises(ModelUnavailableError, match=r"base-000001\.mdb of \d+ bytes, got 4096") as raised:
        asyncio.run(started.load_plan("fraud"))
    assert "not materialized" not in str(raised.value)
    with pytest.raises(ServiceNotFoundError, match="got 4096"):
        started.service("checkout")
    project.materialize()
    assert started.refresh().problems == ()
    assert started.find_plan("fraud") is not None


def test_a_corrupt_artifact_is_not_made_live(project, engine):
    """A model file that does not match its digest is refused; the champion before keeps answering to the alias."""
    version, _, _ = projects.train(project, seed=1, colsample_bytree=0.5)
    for file in version.files:
        path = project.settings.state_dir / "artifacts" / file.sha256[:2] / file.sha256
        path.chmod(0o644)
        path.write_bytes(path.read_bytes()[:-1])
    before = score(engine)
    project.promote("fraud", version.version)
    routes = engine.refresh()
    assert engine.find_plan("fraud").version == 1
    assert score(engine) == before
    assert any("fraud:2" in problem for problem in routes.problems)


def test_a_changed_schema_keeps_the_old_pair_serving(project, engine):
    """Features published under new definitions do not reach a model that was trained on the old ones."""
    before = score(engine)
    path = project.settings.project_dir / "features.py"
    path.write_text(
        path.read_text()
        .replace('Field("staff", Int64)', 'Field("staff", Float32)')
        .replace("source=shops,", 'source=shops, sql="SELECT shop, country, CAST(staff AS FLOAT) AS staff FROM shops",')
    )
    project.apply()
    project.materialize()
    routes = engine.refresh()
    assert score(engine) == before
    assert "register a model trained on the new ones" in routes.problems[0]


def test_what_failed_is_tried_again(project, engine, monkeypatch):
    """A file put back in order is noticed although nothing announces it."""
    monkeypatch.setattr("tiercel.serving.engine.RETRY_INTERVAL_S", 0.0)
    version, _, _ = projects.train(project, seed=1, colsample_bytree=0.5)
    path = project.settings.state_dir / "artifacts" / version.files[0].sha256[:2] / version.files[0].sha256
    whole = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(whole[:-1])
    project.promote("fraud", version.version)
    assert engine.refresh().problems
    path.write_bytes(whole)
    assert engine.stale()
    assert engine.refresh().problems == ()
    assert engine.find_plan("fraud").version == version.version
    assert not engine.stale()


def test_a_champion_that_cannot_be_loaded_at_start(project):
    """A server that never had the champion is not ready, and says the reason to whoever asks for it."""
    version, _, _ = projects.train(project, seed=1, colsample_bytree=0.5)
    project.promote("fraud", version.version)
    digest = next(file.sha256 for file in version.files if file.name == "model.txt")
    path = project.settings.state_dir / "artifacts" / digest[:2] / digest
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1])
    engine = Engine(project.settings, project.registry)
    routes = engine.refresh()
    assert not routes.is_ready
    with pytest.raises(ModelUnavailableError, match=r"digest|sha256|bytes"):
        asyncio.run(engine.load_plan("fraud"))
    assert engine.find_plan("fraud:1") is not None  # the alias `previous` keeps it loaded
    project.promote("fraud", 1)
    assert engine.refresh().is_ready


def test_lost_dictionaries_are_noticed(project, engine):
    """A base whose text codes mean something else than the model learned is not made live."""
    snapshot = project.registry.get("fraud").facts.snapshot
    before = score(engine)
    name, n, _ = snapshot.dictionaries[0]
    record = engine._loaded["fraud", 1].record
    other = replace(record.facts.snapshot, dictionaries=((name, n, "0" * 64),))
    engine._loaded["fraud", 1] = replace(
        engine._loaded["fraud", 1], record=replace(record, facts=replace(record.facts, snapshot=other))
    )
    project.materialize()
    assert "categories" in engine.refresh().problems[0]
    assert score(engine) == before


def test_a_model_before_its_features(project, tmp_path):
    """A server that starts before anything is materialized comes alive when it is."""
    shutil.rmtree(project.settings.features_dir / "checkout")
    engine = Engine(project.settings, project.registry)
    assert "not materialized" in engine.refresh().problems[0]
    assert engine.find_plan("fraud") is None
    project.materialize()
    assert engine.stale()
    assert engine.refresh().problems == ()
    assert engine.find_plan("fraud").version == 1


def test_versions_without_alias_are_loaded_on_demand(project, engine):
    """An explicit version is loaded when first asked for, kept, and only so many are."""
    for seed in range(1, MAX_PINNED + 3):
        projects.train(project, seed=seed, colsample_bytree=0.5, min_child_samples=seed + 5)
    for version in range(2, MAX_PINNED + 4):
        plan = asyncio.run(engine.load_plan(f"fraud:{version}"))
        assert plan.version == version
        assert engine.find_plan(f"fraud:{version}") is plan
    assert engine.find_plan("fraud:2") is None
    assert engine.find_plan("fraud:1") is not None
    engine.refresh()
    assert engine.find_plan(f"fraud:{MAX_PINNED + 3}").version == MAX_PINNED + 3


@pytest.mark.parametrize(
    ("reference", "error"),
    [
        ("none", ModelNotFoundError),
        ("none:3", ModelNotFoundError),
        ("fraud:9", VersionNotFoundError),
        ("fraud@shadow", AliasNotFoundError),
        ("fraud@", InvalidNameError),
        ("../fraud", InvalidNameError),
        ("fraud:x", InvalidNameError),
        ("", InvalidNameError),
    ],
)
def test_unknown_references(engine, reference, error):
    """What does not exist is said so, with what does."""
    with pytest.raises(error):
        asyncio.run(engine.load_plan(reference))


def test_other_spellings(engine):
    """`latest`, an alias in capitals and a models:/ URI lead to the same plan."""
    plan = engine.find_plan("fraud")
    for reference in ("fraud:latest", "fraud@CHAMPION", "models:/fraud/1", "fraud:v1"):
        assert asyncio.run(engine.load_plan(reference)) is plan


def test_unknown_service(engine):
    """A feature read of a service that is not there names those that are."""
    with pytest.raises(ServiceNotFoundError, match="Materialized: checkout"):
        engine.service("none")


def test_the_watch_survives_failures(engine, monkeypatch, caplog):
    """A registry that cannot be read for a while stops neither serving nor watching."""
    looked = asyncio.Event()
    calls = []

    def broken():
        calls.append(engine.watch_problems)
        if len(calls) <= 4:
            raise OSError("disk on fire")
        if len(calls) > 5:
            looked.set()
        return False

    monkeypatch.setattr(engine, "stale", broken)

    async def watch():
        task = asyncio.create_task(keep_current(engine, interval_s=0.001))
        await asyncio.wait_for(looked.wait(), 10)
        task.cancel()

    asyncio.run(watch())
    assert len([record for record in caplog.records if "disk on fire" in record.message]) == 1
    assert "disk on fire" in calls[1][0]
    assert calls[5] == ()
    assert score(engine) > 0


def test_a_registry_overwritten_while_serving_is_a_problem(project, monkeypatch):
    """Garbage in the registry's file is said by the watch while what is live keeps serving, until it is put back."""
    monkeypatch.setattr("tiercel.registry.database.SETTLED_NS", 0)
    path = project.settings.state_dir / "registry.db"
    project.registry.close()  # empties the log into the file
    whole = path.read_bytes()
    with Registry.for_state(project.settings.state_dir) as registry:
        engine = Engine(project.settings, registry)
        engine.refresh()

        async def until(is_met):
            async with asyncio.timeout(20):
                while not is_met():  # noqa: ASYNC110 - the watch tells nobody when it has looked
                    await asyncio.sleep(0.01)

        async def watch():
            task = asyncio.create_task(keep_current(engine, interval_s=0.01))
            await asyncio.sleep(0.1)
            assert engine.watch_problems == ()
            path.write_bytes(b"garbage " * (len(whole) // 8))
            await until(lambda: engine.watch_problems)
            assert "not a database" in engine.watch_problems[0]
            assert score(engine) > 0
            path.write_bytes(whole)
            await until(lambda: not engine.watch_problems)
            task.cancel()

        asyncio.run(watch())
