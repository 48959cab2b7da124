"""What monitoring is told of versions: who is served, references, and what each feature is made of."""

from __future__ import annotations

import pytest
from tests.support import projects

from tiercel import Project
from tiercel.batch.watched_versions import RegistryVersions, feature_origins
from tiercel.errors import VersionNotFoundError
from tiercel.types import Task


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return projects.ready_project(tmp_path_factory.mktemp("watched") / "project")


def test_a_version_with_its_reference_and_origins(directory):
    """Stored features come from their view's source, request features from the request."""
    with Project(directory) as project:
        versions = RegistryVersions(project.settings, project.registry)
        assert versions.served() == {("fraud", 1)}
        watched = versions.find("fraud", 1)
        assert versions.find("fraud", 1) is watched
        with pytest.raises(VersionNotFoundError):
            versions.find("fraud", 9)
    assert (watched.task, watched.reference.n_rows) == (Task.BINARY, 600)
    keys = {name: [origin.key for origin in found] for name, found in watched.origins.items()}
    assert keys == {
        "n_orders": ["source:orders"], "mean_amount": ["source:orders"], "plan": ["source:orders"],
        "amount": ["request"], "staff": ["source:shops"],
    }  # fmt: skip
    assert watched.origins["plan"][0].view == "customer_orders"


def test_aliases_that_get_traffic(directory):
    """Challengers and shadows are served, other aliases are not; a change of the registry is noticed."""
    with Project(directory) as project:
        versions = RegistryVersions(project.settings, project.registry)
        assert versions.served() == {("fraud", 1)}
        projects.train(project, seed=5)
        assert versions.served() == {("fraud", 1)}
        project.promote("fraud", 2, alias="baseline")
        assert versions.served() == {("fraud", 1)}
        project.promote("fraud", 2, alias="challenger")
        assert versions.served() == {("fraud", 1), ("fraud", 2)}


def test_computed_features_belong_to_what_they_are_made_of():
    """A transform's output has the origins of its inputs, stored ones first; a view of several sources stands for itself."""
    from types import SimpleNamespace

    view = SimpleNamespace(name="history")
    schema = SimpleNamespace(
        request_fields=[SimpleNamespace(name="amount")],
        groups=[SimpleNamespace(views=[view], columns=[SimpleNamespace(name="mean", view=0)])],
        transforms=[
            SimpleNamespace(inputs=("amount", "mean"), outputs=[SimpleNamespace(name="ratio")]),
            SimpleNamespace(inputs=("now_us",), outputs=[SimpleNamespace(name="hour")]),
        ],
    )
    sources = [SimpleNamespace(name="a"), SimpleNamespace(name="b")]
    found = feature_origins(SimpleNamespace(views={"history": SimpleNamespace(sources=sources)}), schema)
    assert {name: [origin.key for origin in origins] for name, origins in found.items()} == {
        "amount": ["request"], "mean": ["view:history"], "ratio": ["view:history", "request"], "hour": ["request"],
    }  # fmt: skip
