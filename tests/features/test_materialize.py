"""Materialize: what is published, for when, from which rows."""

from __future__ import annotations

import pyarrow as pa
import pytest
from tests.features.projects import DAY_US, applied, times, us

from tiercel.errors import DefinitionError, ServiceNotFoundError, SourceError
from tiercel.features.manifest import read_manifest
from tiercel.features.materialize import materialize
from tiercel.features.online import OnlineBase
from tiercel.types import ValueStatus

TEXT = """
user = Entity('uid')
events = ParquetSource('events', 'events.parquet', timestamp_field='ts', created_timestamp_column='seen')
v = FeatureView('v', [user], [Field('x', Float64), Field('s', String)], source=events, ttl=timedelta(days=1))
facts = FeatureView('facts', [user], [Field('k', Bool)], source=ParquetSource('f', 'facts.parquet'))
r = RequestSource('r', [Field('amount', Float64)])
one = FeatureService('one', [v, facts, r], on_missing_entity="null")
two = FeatureService('two', [facts])
only_request = FeatureService('only_request', [r])
"""
EVENTS = pa.table(
    {
        "uid": ["a", "a", "a", "b", "a"],
        "ts": times([us(1), us(2), us(2), us(2), us(9)]),
        "seen": times([us(1), us(2), us(3), us(2), us(9)]),
        "x": [1.0, 2.0, 3.0, None, 9.0],
        "s": ["m", "m", "k", None, "z"],
    }
)
FACTS = {"uid": ["a", "c"], "k": [True, False]}


@pytest.fixture
def project(tmp_path):
    return applied(tmp_path, TEXT, events=EVENTS, facts=FACTS)


def read(state, service, keys, now_us):
    values = OnlineBase.open(state / "features" / service).read_values({"uid": keys}, now_us)
    return {name: [(cell.value, cell.status) for cell in column] for name, column in values.items()}


def test_last_known_wins(project):
    """Per key the row with the latest (event, created) known at as_of is published; text is found again."""
    catalog, state = project
    materialize(state, catalog, ["one"], as_of_us=us(2, 12))
    early = read(state, "one", ["a"], us(2, 12))
    materialize(state, catalog, ["one"], as_of_us=us(3))
    late = read(state, "one", ["a"], us(3))
    assert (early["x"][0][0], early["s"][0][0]) == (2.0, "m")
    assert (late["x"][0][0], late["s"][0][0]) == (3.0, "k")


def test_status_of_every_kind(project):
    """Present, null, unknown to the view, and outside the ttl are told apart; the static view never ages."""
    catalog, state = project
    materialize(state, catalog, ["one"], as_of_us=us(3))
    present, null, missing, stale = (
        ValueStatus.PRESENT,
        ValueStatus.NULL,
        ValueStatus.NOT_FOUND,
        ValueStatus.OUTSIDE_TTL,
    )
    at_edge = read(state, "one", ["a", "b", "c", "d"], us(2) + DAY_US)
    assert at_edge["x"] == [(3.0, present), (None, null), (None, missing), (None, missing)]
    assert at_edge["k"] == [(True, present), (None, missing), (False, present), (None, missing)]
    after = read(state, "one", ["a"], us(2) + DAY_US + 1)
    assert after["x"] == [(None, stale)]
    assert after["k"] == [(True, present)]


def test_services_and_manifest(project):
    """All services are published, those of request features alone too; the manifest names the catalog and the time."""
    catalog, state = project
    manifests = materialize(state, catalog, as_of_us=us(20))
    assert [manifest.service for manifest in manifests] == ["one", "two", "only_request"]
    for manifest in manifests:
        assert read_manifest(state / "features" / manifest.service) == manifest
        assert (manifest.catalog, manifest.as_of_us) == (catalog.digest, us(20))
    assert [manifest.n_rows for manifest in manifests] == [3, 2, 0]


def test_same_input_same_content(project):
    """Publishing again from unchanged input stores the same rows."""
    catalog, state = project
    first, again = (materialize(state, catalog, ["one"], as_of_us=us(20))[0] for _ in range(2))
    assert first.content_digest == again.content_digest
    assert again.sequence == first.sequence + 1


def test_before_any_event(project):
    """As of a time before the first event only static rows exist."""
    catalog, state = project
    assert materialize(state, catalog, ["one"], as_of_us=us(1) - 1)[0].n_rows == 2


def test_progress(project):
    """Progress names views, groups and rows, and never exceeds its total."""
    seen = []
    catalog, state = project
    materialize(state, catalog, as_of_us=us(3), progress=lambda *step: seen.append(step))
    assert {stage for stage, _, _ in seen} >= {"v", "facts", "one: newest values of uid", "one: write base"}
    assert all(0 <= done <= total for _, done, total in seen)


def test_unknown_service(project):
    """An unknown service is refused before anything is written."""
    catalog, state = project
    with pytest.raises(ServiceNotFoundError):
        materialize(state, catalog, ["three"])
    assert not (state / "features").exists()


def test_failure_keeps_the_published_base(project, tmp_path):
    """When a source goes bad, the previous base stays in force."""
    catalog, state = project
    before = materialize(state, catalog, ["two"], as_of_us=us(3))[0]
    (tmp_path / "facts.parquet").write_bytes(b"not parquet")
    with pytest.raises(SourceError, match="'f'"):
        materialize(state, catalog, ["two"], as_of_us=us(3))
    assert read_manifest(state / "features" / "two") == before


def test_too_wide_service_is_refused_at_apply(tmp_path, monkeypatch):
    """A row that the store cannot hold is refused when the service is applied, with its line."""
    monkeypatch.setattr("tiercel.features.layout.MAX_ROW_BYTES", 32)
    with pytest.raises(DefinitionError, match=r"features.py:\d+: FeatureService 'one'"):
        applied(tmp_path, TEXT, events=EVENTS, facts=FACTS)
