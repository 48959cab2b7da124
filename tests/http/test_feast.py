"""Feast's `/get-online-features` on the wire.

The shape is the one that Feast's own remote store reads: names in `metadata.feature_names`, results aligned with them,
times that `datetime.fromisoformat` takes. `tests/e2e/test_protocol_clients.py` asks with that store itself.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from tests.support import stores
from tests.support.protocols import ENTITIES, FixedEngine, Wire

from tiercel.http import feast
from tiercel.types import STATIC_EVENT_US

PATH = "/get-online-features"


@pytest.fixture(scope="module")
def wire(tmp_path_factory):
    return Wire(FixedEngine(tmp_path_factory.mktemp("features")))


@pytest.fixture(autouse=True)
def at_the_time_of_the_store(monkeypatch):
    monkeypatch.setattr(feast.time, "time_ns", lambda: stores.NOW_US * 1000)


def read(reply):
    """By name: (values, statuses, times), as Feast's clients align them."""
    assert reply.status_code == 200, reply.text
    data = reply.json()
    names = data["metadata"]["feature_names"]
    assert len(names) == len(data["results"])
    return {
        name: (each["values"], each["statuses"], each["event_timestamps"])
        for name, each in zip(names, data["results"], strict=True)
    }


def text_of(event_us):
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=event_us)).strftime("%Y-%m-%dT%H:%M:%SZ")


def test_a_feature_service(wire):
    """Keys first, then every stored feature, exact and typed, with the status and the time of each."""
    found = read(wire.post(PATH, {"feature_service": "svc", "entities": ENTITIES}))
    assert list(found)[:3] == ["tailnum", "origin", "gate"]
    assert found["tailnum"] == (["N1", "N2", "N9"], ["PRESENT"] * 3, ["1970-01-01T00:00:00Z"] * 3)
    assert set(found) == {*ENTITIES, "seats", "engine", "is_leased", "delay", "weight", "miles"}
    values, statuses, times = found["seats"]
    assert values == [180, None, None]
    assert statuses == ["PRESENT", "NULL_VALUE", "NOT_FOUND"]
    assert times[0] == text_of(stores.NOW_US - 5 * stores.HOUR_US)
    assert times[2] == "1970-01-01T00:00:00Z"
    assert found["engine"][0] == ["jet", "prop", None]
    assert found["weight"][0] == [70_000.5, 2.0**60, None]


def test_values_equal_those_of_our_own_endpoint(wire):
    """The same store, the same values as POST /features."""
    found = read(wire.post(PATH, {"feature_service": "svc", "entities": ENTITIES}))
    own = wire.post("/features/svc", {"entities": ENTITIES, "now": stores.NOW_US}).json()
    for place, name in enumerate(own["features"]):
        assert found[name][0] == [row[place] for row in own["values"]]


def test_a_value_past_its_ttl(wire):
    """A ttl is honoured: null and OUTSIDE_MAX_AGE one microsecond later, with the time it has."""
    body = {"features": ["history:delay"], "entities": {"tailnum": ["N2", "N3", "N4"]}}
    values, statuses, times = read(wire.post(PATH, body))["delay"]
    assert values == [None, None, None]
    assert statuses == ["NULL_VALUE", "OUTSIDE_MAX_AGE", "NOT_FOUND"]
    assert times[1].endswith(".999999Z")
    assert datetime.fromisoformat(times[1]).microsecond == 999_999


def test_features_by_view(wire):
    """Only the keys of what is asked for are needed, and only that comes back."""
    body = {"features": ["facts:seats", "history:weight"], "entities": {"tailnum": ["N1"]}}
    found = read(wire.post(PATH, body))
    assert list(found) == ["tailnum", "seats", "weight"]
    assert found["seats"][0] == [180]


def test_full_feature_names(wire):
    """With full names a feature says its view; keys stay what they are."""
    body = {"features": ["facts:seats"], "entities": {"tailnum": ["N1"]}, "full_feature_names": True}
    assert list(read(wire.post(PATH, body))) == ["tailnum", "facts__seats"]


def test_the_fields_that_feast_sends(wire):
    """Feast's own store sends its flags always, and an empty list beside a service."""
    flags = {"full_feature_names": False, "include_feature_view_version_metadata": False}
    body = {"feature_service": "svc", "features": [], "entities": ENTITIES, **flags}
    assert "seats" in read(wire.post(PATH, body))


def test_an_unknown_entity_is_no_error(wire):
    """Feast's clients expect NOT_FOUND also of a service that refuses unknown entities over our own protocol."""
    entities = {"tailnum": ["N9"], "origin": ["XXX"], "gate": [1]}
    found = read(wire.post(PATH, {"feature_service": "strict", "entities": entities}))
    assert found["miles"] == ([None], ["NOT_FOUND"], ["1970-01-01T00:00:00Z"])


def test_request_features_come_back(wire):
    """Request features among the entities are echoed, as Feast does."""
    found = read(wire.post(PATH, {"features": ["facts:seats"], "entities": {"tailnum": ["N1"], "rain": [0.5]}}))
    assert found["rain"] == ([0.5], ["PRESENT"], ["1970-01-01T00:00:00Z"])


def changed(**fields):
    return {"features": ["facts:seats"], "entities": {"tailnum": ["N1"]}, **fields}


REFUSALS = [
    pytest.param(changed(features=None), 400, "invalid_request", id="neither"),
    pytest.param(changed(feature_service="svc"), 400, "invalid_request", id="both"),
    pytest.param(changed(feature_service=7, features=None), 400, "wrong_type", id="service not text"),
    pytest.param(changed(feature_service="none", features=None), 404, "service_not_found", id="unknown service"),
    pytest.param(changed(features="facts:seats"), 400, "wrong_type", id="features not a list"),
    pytest.param(changed(features=[]), 400, "invalid_request", id="no features"),
    pytest.param(changed(features=["seats"]), 400, "unknown_feature", id="feature without a view"),
    pytest.param(changed(features=["facts:"]), 400, "unknown_feature", id="view without a feature"),
    pytest.param(changed(features=["facts:seats"] * 2), 400, "invalid_request", id="one feature twice"),
    pytest.param(changed(features=["history:seats"]), 404, "service_not_found", id="feature of another view"),
    pytest.param(changed(entities=None), 400, "wrong_type", id="no entities"),
    pytest.param(changed(entities={}), 400, "wrong_type", id="no key"),
    pytest.param(changed(entities={"tailnum": "N1"}), 400, "wrong_type", id="key not a list"),
    pytest.param(changed(entities={"tailnum": []}), 400, "invalid_request", id="no row"),
    pytest.param(changed(entities={"tailnum": ["N1"] * 101}), 413, "too_many_rows", id="too many rows"),
    pytest.param(changed(entities={"tailnum": ["N1"], "gate": [1, 2]}), 400, "wrong_length", id="other lengths"),
    pytest.param(changed(entities={"gate": [1]}), 400, "missing_entity_key", id="absent key"),
    pytest.param(changed(entities={"tailnum": ["N1"], "x": [1]}), 400, "unknown_entity_key", id="unknown key"),
    pytest.param(changed(entities={"tailnum": [7]}), 400, "wrong_type", id="number for a text key"),
    pytest.param(changed(full_feature_names="yes"), 400, "wrong_type", id="flag is text"),
    pytest.param(changed(include_feature_view_version_metadata=1), 400, "wrong_type", id="flag is a number"),
    pytest.param(changed(feature=1), 400, "unknown_field", id="unknown field"),
]


@pytest.mark.parametrize(("body", "status", "code"), REFUSALS)
def test_refusals(wire, body, status, code):
    """Each kind of bad request has its status, its stable code and a text that says what was expected."""
    reply = wire.post(PATH, body)
    assert (reply.status_code, reply.json()["code"]) == (status, code)
    assert len(reply.json()["error"]) > 20


@pytest.mark.parametrize(
    ("event_us", "text"),
    [
        (None, "1970-01-01T00:00:00Z"),
        (STATIC_EVENT_US, "1970-01-01T00:00:00Z"),
        (1_700_000_000_000_000, "2023-11-14T22:13:20Z"),
        (1_700_000_000_120_000, "2023-11-14T22:13:20.120Z"),
        (1_700_000_000_000_001, "2023-11-14T22:13:20.000001Z"),
        (2**62, "9999-12-31T23:59:59.999999Z"),
        (-(2**62), "0001-01-01T00:00:00Z"),
        (-1, "1969-12-31T23:59:59.999999Z"),
    ],
)
def test_times_as_protobuf_writes_them(event_us, text):
    """No, three or six digits of a second, as many as are needed; the epoch where there is no time."""
    assert feast.format_time(event_us) == text
