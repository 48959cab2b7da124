"""What reports know of a version's categories: from its own file, and of older versions from facts and dictionaries."""

from __future__ import annotations

import math
from dataclasses import replace

import lightgbm
import pytest
from tests.support import projects

from tiercel import Project
from tiercel.insight.references import reference_of
from tiercel.insight.versions import open_version
from tiercel.monitor.drift import drift_report
from tiercel.monitor.reference import REFERENCE_FILE, Reference, find_reference
from tiercel.monitor.window import empty_window


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A shop whose customers have a `plan`; who asks says the `channel`, which is a category as well."""
    directory = projects.write_project(tmp_path_factory.mktemp("references") / "project")
    text = (directory / "features.py").read_text()
    channel = ', Field("channel", String, categories=["web", "app", "phone"])'
    text = text.replace('Field("amount", Float32)', f'Field("amount", Float32){channel}')
    (directory / "features.py").write_text(text)
    with Project(directory) as opened:
        opened.apply()
        opened.materialize()
        labels = projects.labels()
        channels = ["web", "app", "web", None] * (len(labels) // 4)
        training_set = opened.get_historical_features(labels.append_column("channel", [channels]), "checkout")
        model = lightgbm.LGBMClassifier(n_estimators=2, num_leaves=4, verbose=-1, n_jobs=1)
        model.fit(training_set.X, labels["label"].to_numpy())
        opened.register(model, name="fraud", training_set=training_set, measure=False)
        yield opened


def labels_of(reference, name):
    bins = reference.categories[name]
    return [bins.label(i) for i in range(1, bins.n_edges)]


def as_before(reference):
    """The file of a version from before references had categories."""
    return {REFERENCE_FILE: replace(reference, categories={}).to_bytes()}


def test_a_version_says_what_its_categories_are(project):
    """Registering with a training set keeps names of stored and of asked text features, one nobody had included."""
    record = project.registry.get("fraud", 1)
    artifacts = project.registry.load_artifacts(record)
    reference = find_reference(artifacts)
    assert set(reference.categories) == {"plan", "channel"}
    assert labels_of(reference, "plan") == ["'free'", "'pro'"]
    assert labels_of(reference, "channel") == ["'web'", "'app'", "'phone'"]
    assert reference_of(record, artifacts, project.settings).digest == reference.digest
    assert set(open_version(project.settings, project.registry, record).categories) == {"plan", "channel"}
    assert reference_of(record, {}, project.settings) is None


def test_of_older_versions_dictionaries_tell(project):
    """A reference from before there was this has its names from the dictionaries it was trained with."""
    record = project.registry.get("fraud", 1)
    known = find_reference(project.registry.load_artifacts(record))
    found = reference_of(record, as_before(known), project.settings)
    assert labels_of(found, "plan") == ["'free'", "'pro'"]
    assert labels_of(found, "channel") == ["'web'", "'app'", "'phone'"]


def test_names_that_may_be_wrong_are_none(project, tmp_path):
    """Another dictionary, another service, or none at all: what is known to be a category has codes, and no median."""
    record = project.registry.get("fraud", 1)
    known = find_reference(project.registry.load_artifacts(record))
    snapshot = replace(record.facts.snapshot, dictionaries=(("plan", 2, "0" * 64),))
    other = replace(record, facts=replace(record.facts, snapshot=snapshot, service_fingerprint="0" * 64))
    found = reference_of(other, as_before(known), project.settings)
    assert labels_of(found, "plan") == ["code 0", "code 1"]
    assert set(found.categories) == {"plan"}
    elsewhere = replace(project.settings, state_dir=tmp_path)
    lost = reference_of(record, as_before(known), elsewhere)
    assert labels_of(lost, "plan") == ["code 0", "code 1"]
    window = replace(empty_window("fraud", 1, lost, 0, 1), feature_counts=lost.feature_counts)
    told = {each.name: each for each in drift_report(lost, window).features}
    assert math.isnan(told["plan"].median)
    assert told["amount"].median == told["amount"].reference_median > 0


def test_a_model_without_a_service_has_no_categories(project):
    """Features that only requests have are numbers: nobody said otherwise."""
    record = project.registry.get("fraud", 1)
    known = find_reference(project.registry.load_artifacts(record))
    alone = replace(record, facts=replace(record.facts, service=None))
    found = reference_of(alone, as_before(known), project.settings)
    assert isinstance(found, Reference)
    assert not found.categories


def test_names_of_a_masked_feature_are_not_said(project):
    """As the prediction table does not have them; shares of its codes are no secret."""
    record = project.registry.get("fraud", 1)
    artifacts = project.registry.load_artifacts(record)
    masks = replace(project.settings.monitor, hash_columns=("plan",), drop_columns=("email",))
    for files in (artifacts, as_before(find_reference(artifacts))):
        found = reference_of(record, files, replace(project.settings, monitor=masks))
        assert labels_of(found, "plan") == ["code 0", "code 1"]
        assert labels_of(found, "channel") == ["'web'", "'app'", "'phone'"]
