"""The V1 protocol on the wire: rows, columns, both families' status, and every refusal."""

from __future__ import annotations

import pytest
from tests.support.protocols import ENTITIES, FEATURES, FixedEngine, Wire

PREDICT = "/v1/models/late:predict"
COLUMNS = {**ENTITIES, **FEATURES}
ROWS = [{name: column[row] for name, column in COLUMNS.items()} for row in range(3)]


@pytest.fixture(scope="module")
def wire(tmp_path_factory):
    return Wire(FixedEngine(tmp_path_factory.mktemp("features")))


@pytest.mark.parametrize(
    "path", ["late", "late/versions/1", "late/labels/champion", "late@champion", "late%40champion"]
)
def test_rows_by_name(wire, path):
    """Objects by name give exactly the scores of the server's own protocol, at every spelling of the model."""
    reply = wire.post(f"/v1/models/{path}:predict", {"instances": ROWS, "signature_name": "serving_default"})
    assert reply.status_code == 200
    assert reply.json() == {"predictions": wire.scores("late", ENTITIES, FEATURES)}


def test_columns_by_name(wire):
    """Columns give the same scores as "outputs", as [n] or as [n, 1]."""
    expected = {"outputs": wire.scores("late", ENTITIES, FEATURES)}
    assert wire.post(PREDICT, {"inputs": COLUMNS}).json() == expected
    nested = {name: [[value] for value in column] for name, column in COLUMNS.items()}
    assert wire.post(PREDICT, {"inputs": nested}).json() == expected


def test_rows_in_signature_order(wire):
    """Lists are the whole vector in the signature's order, as rows or as the one columnar input."""
    expected = wire.scores("plain", features={"a": [1, 4], "b": [2, None], "c": [3, 6]})
    rows = [[1, 2, 3], [4, None, 6]]
    assert wire.post("/v1/models/plain:predict", {"instances": rows}).json() == {"predictions": expected}
    assert wire.post("/v1/models/plain:predict", {"inputs": rows}).json() == {"outputs": expected}


def test_nan_is_null_and_infinity_is_not(wire):
    """The token NaN, which Python's json module writes, is a missing value; Infinity is refused."""
    reply = wire.post("/v1/models/plain:predict", b'{"instances": [[1, NaN, 3]]}')
    assert reply.json() == {"predictions": wire.scores("plain", features={"a": [1], "b": [None], "c": [3]})}
    for token in (b"Infinity", b"-Infinity", b"1e999"):
        reply = wire.post("/v1/models/plain:predict", b'{"instances": [[1, %s, 3]]}' % token)
        assert (reply.status_code, reply.json()["code"]) == (400, "malformed_json")


def test_multiclass_rows(wire):
    """A multiclass prediction is a list of one number per class."""
    row = {**ROWS[0], "origin": "EWR"}
    predictions = wire.post("/v1/models/kind:predict", {"instances": [row]}).json()["predictions"]
    assert [len(each) for each in predictions] == [3]


REFUSALS = [
    pytest.param({}, 400, "invalid_request", id="neither"),
    pytest.param({"instances": ROWS, "inputs": COLUMNS}, 400, "invalid_request", id="both"),
    pytest.param({"instances": ROWS, "instance": 1}, 400, "unknown_field", id="unknown field"),
    pytest.param({"instances": ROWS, "signature_name": "train"}, 400, "invalid_request", id="another signature"),
    pytest.param({"instances": ROWS, "signature_name": ["x"]}, 400, "invalid_request", id="signature not text"),
    pytest.param({"instances": {}}, 400, "wrong_type", id="instances not a list"),
    pytest.param({"instances": []}, 400, "invalid_request", id="no instance"),
    pytest.param({"instances": [{}]}, 400, "invalid_request", id="empty instance"),
    pytest.param({"instances": ROWS * 34}, 413, "too_many_rows", id="too many instances"),
    pytest.param({"instances": [ROWS[0], {"tailnum": "N1"}]}, 400, "invalid_request", id="instances of other names"),
    pytest.param({"instances": [ROWS[0], [1]]}, 400, "wrong_type", id="object and list"),
    pytest.param({"instances": [[1] * 10, ROWS[0]]}, 400, "wrong_type", id="list and object"),
    pytest.param({"instances": [[1] * 9]}, 400, "wrong_length", id="row too short"),
    pytest.param({"instances": [1]}, 400, "wrong_length", id="one number for ten features"),
    pytest.param({"inputs": 7}, 400, "wrong_type", id="inputs not columns"),
    pytest.param({"inputs": {}}, 400, "wrong_type", id="no columns"),
    pytest.param({"inputs": {**COLUMNS, "rain": 0.5}}, 400, "wrong_type", id="column not a list"),
    pytest.param({"inputs": {**COLUMNS, "rain": []}}, 400, "invalid_request", id="empty column"),
    pytest.param({"inputs": {**COLUMNS, "rain": [0.5]}}, 400, "wrong_length", id="columns of other lengths"),
    pytest.param({"inputs": {**COLUMNS, "rain": [[1], [2, 3], [4]]}}, 400, "wrong_type", id="cells that are lists"),
    pytest.param({"instances": [{**ROWS[0], "speed": 1}]}, 400, "unknown_feature", id="unknown name"),
    pytest.param({"instances": [{**ROWS[0], "rain": "much"}]}, 400, "wrong_type", id="text for a number"),
    pytest.param({"instances": [{**ROWS[0], "gate": 3.5}]}, 400, "wrong_type", id="half a key"),
    pytest.param(b'{"instances": [], "instances": []}', 400, "duplicate_key", id="duplicate key"),
    pytest.param(b"[]", 400, "invalid_request", id="not an object"),
]


@pytest.mark.parametrize(("body", "status", "code"), REFUSALS)
def test_refusals(wire, body, status, code):
    """Each kind of bad request has its status, its stable code and a text that says what was expected."""
    reply = wire.post(PREDICT, body)
    assert (reply.status_code, reply.json()["code"]) == (status, code)
    assert len(reply.json()["error"]) > 20


def test_the_bad_row_is_named(wire):
    """A row that is unlike the first is reported by its index."""
    assert wire.post(PREDICT, {"instances": [*ROWS, {"x": 1}]}).json()["row"] == 3


def test_a_key_that_a_data_frame_made_a_float(wire):
    """3.0 is the key 3: a frame with a gap in a column of integers writes it so."""
    rows = [{**row, "gate": float(row["gate"])} for row in ROWS]
    assert wire.post(PREDICT, {"instances": rows}).json()["predictions"] == wire.scores("late", ENTITIES, FEATURES)


@pytest.mark.parametrize("verb", ["classify", "regress", "Predict", "Explain"])
def test_other_verbs_say_that_they_are_not_here(wire, verb):
    """A verb that this server does not have is refused by a code of its own, not as an unknown model."""
    reply = wire.post(f"/v1/models/late:{verb}", {"instances": ROWS})
    assert (reply.status_code, reply.json()["code"]) == (404, "unsupported_operation")
    assert ":predict" in reply.json()["error"]


def test_status(wire):
    """One object answers KServe's and TensorFlow Serving's clients; an unknown or broken model does not look ready."""
    assert wire.get("/v1/models").json() == {"models": ["kind", "late", "plain"]}
    data = wire.get("/v1/models/kind/labels/tried").json()
    assert (data["name"], data["ready"]) == ("kind", True)
    assert (data["model_version_status"][0]["version"], data["model_version_status"][0]["state"]) == ("4", "AVAILABLE")
    assert wire.get("/v1/models/none").status_code == 404
    assert wire.get("/v1/models/kind/labels/next").status_code == 503
    assert wire.get("/v1/models/late/versions/1/more").json()["code"] == "unsupported_operation"
    assert wire.get("/v1/models/late:predict").status_code == 400


def test_only_json(wire):
    """Another content type is refused before anything is read from the body."""
    reply = wire.post(PREDICT, {"instances": ROWS}, content_type="text/plain")
    assert (reply.status_code, reply.json()["code"]) == (415, "unsupported_media_type")


def test_a_budget_that_is_none(wire):
    """The headers' budgets are read here too."""
    reply = wire.post(PREDICT, {"instances": ROWS}, x_request_timeout_seconds="-1")
    assert (reply.status_code, reply.json()["code"]) == (400, "invalid_deadline")
