"""The Open Inference Protocol on the wire: what a model looks like, answers, and every refusal."""

from __future__ import annotations

import contextlib
import json
import struct

import numpy as np
import pytest
from starlette.applications import Starlette
from tests.support import stores
from tests.support.protocols import ENTITIES, FEATURES, SETTINGS, FixedEngine, Wire

from tiercel.errors import CapacityError, DeadlineError
from tiercel.http import oip
from tiercel.http.exchange import Host
from tiercel.http.oip import encode_answer
from tiercel.monitor.counting import WorkerCounters
from tiercel.serving.router import Answer, Degraded
from tiercel.types import Tier

INFER = "/v2/models/late/infer"
MATRIX = [[1.0, 2.5, -3.0], [0.5, float("nan"), 4.0]]


@pytest.fixture(scope="module")
def wire(tmp_path_factory):
    return Wire(FixedEngine(tmp_path_factory.mktemp("features")))


def tensor(name, datatype, data, shape=None):
    return {"name": name, "datatype": datatype, "shape": shape or [len(data)], "data": data}


def named(**changes):
    """The usual request for "late": keys and request features, as JSON."""
    made = {
        "tailnum": tensor("tailnum", "BYTES", ENTITIES["tailnum"]),
        "origin": tensor("origin", "BYTES", ENTITIES["origin"], [3, 1]),
        "gate": tensor("gate", "INT64", ENTITIES["gate"]),
        "rain": tensor("rain", "FP32", FEATURES["rain"]),
        "hour": tensor("hour", "INT64", FEATURES["hour"]),
        "night": tensor("night", "BOOL", FEATURES["night"]),
        "cabin": tensor("cabin", "BYTES", FEATURES["cabin"]),
        **changes,
    }
    return [each for each in made.values() if each is not None]


def matrix_request(matrix, datatype="<f4", **rest):
    """A request with one binary tensor "features", and its header length."""
    data = np.asarray(matrix, datatype).tobytes()
    rows, columns = np.shape(matrix)
    entry = {
        "name": "features",
        "datatype": "FP32" if datatype == "<f4" else "FP64",
        "shape": [rows, columns],
        "parameters": {"binary_data_size": len(data)},
    }
    text = json.dumps({"inputs": [entry], **rest}).encode()
    return text + data, str(len(text))


def scores_of(reply):
    """The scores of a reply, binary or JSON."""
    length = reply.headers.get("inference-header-content-length")
    head = json.loads(reply.content[: int(length)] if length else reply.content)
    output = head["outputs"][0]
    assert (output["name"], output["datatype"]) == ("score", "FP64")
    if length is None:
        return head, np.reshape(output["data"], output["shape"])
    raw = reply.content[int(length) :]
    assert len(raw) == output["parameters"]["binary_data_size"]
    return head, np.frombuffer(raw, "<f8").reshape(output["shape"])


def test_named_tensors_score_as_predict_does(wire):
    """Keys and request features by name give exactly the scores of the server's own protocol."""
    reply = wire.post(INFER, {"id": "mine", "inputs": named()})
    assert reply.status_code == 200
    head, scores = scores_of(reply)
    assert scores.tolist() == wire.scores("late", ENTITIES, FEATURES)
    assert (head["model_name"], head["model_version"], head["id"]) == ("late", "1", "mine")
    assert head["parameters"]["tier"] == "realtime"
    assert head["parameters"]["oldest_age_ms"] > 0
    assert len(head["parameters"]["prediction_id"]) > 16
    assert 0 < head["parameters"]["timing_us"]["parse"] < head["parameters"]["timing_us"]["total"]


@pytest.mark.parametrize("as_binary", [True, False])
@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("late", {"model_name": "late"}),
        ("late", {"model_name": "late", "model_version": "1"}),
        ("late/versions/1", {"model_name": "late", "model_version": "1"}),
        ("late@champion", {"model_name": "late@champion"}),
        ("late@champion", {"model_name": "late", "model_version": None}),
        ("late", {"model_name": None, "model_version": ""}),
    ],
)
def test_a_body_may_name_its_model(wire, path, told, as_binary):
    """KServe's clients name the model in each body too: it is the path's, as it is spelled there or by its name."""
    data = b"".join(struct.pack("<I", len(key)) + key.encode() for key in ENTITIES["tailnum"]) if as_binary else b""
    keys = {"name": "tailnum", "datatype": "BYTES", "shape": [3], "parameters": {"binary_data_size": len(data)}}
    text = json.dumps({**told, "inputs": named(**({"tailnum": keys} if as_binary else {}))}).encode()
    lengths = {"inference_header_content_length": str(len(text))} if as_binary else {}
    reply = wire.post(f"/v2/models/{path}/infer", text + data, **lengths)
    assert reply.status_code == 200, reply.text
    assert scores_of(reply)[1].tolist() == wire.scores("late", ENTITIES, FEATURES)


@pytest.mark.parametrize(
    ("told", "code"),
    [
        ({"model_name": "plain"}, "model_mismatch"),
        ({"model_name": "late", "model_version": "2"}, "model_mismatch"),
        ({"model_name": ["late"]}, "wrong_type"),
        ({"model_version": 1}, "wrong_type"),
    ],
)
def test_a_body_that_names_another_model(wire, told, code):
    """Scoring either of two models that a request names would be a guess."""
    reply = wire.post(INFER, {**told, "inputs": named()})
    assert (reply.status_code, reply.json()["code"]) == (400, code)
    assert f"$.{list(told)[-1]} to be" in reply.json()["error"]


def test_an_id_is_made_where_none_came(wire):
    """Every reply has an id; without one of the client's it is the prediction's."""
    for body in ({"inputs": named()}, {"id": None, "parameters": None, "outputs": None, "inputs": named()}):
        head, _ = scores_of(wire.post(INFER, body))
        assert head["id"] == head["parameters"]["prediction_id"]


@pytest.mark.parametrize("datatype", ["<f4", "<f8"])
@pytest.mark.parametrize("as_binary", [True, False])
def test_vectors_score_as_predict_does(wire, datatype, as_binary):
    """One binary matrix gives exactly the scores of the same values by name; NaN is a missing value."""
    body, length = matrix_request(MATRIX, datatype, parameters={"binary_data_output": as_binary})
    reply = wire.post("/v2/models/plain/infer", body, inference_header_content_length=length)
    assert reply.status_code == 200
    assert ("inference-header-content-length" in reply.headers) is as_binary
    assert reply.headers["content-type"] == ("application/octet-stream" if as_binary else "application/json")
    expected = wire.scores("plain", features={"a": [1.0, 0.5], "b": [2.5, None], "c": [-3.0, 4.0]})
    assert scores_of(reply)[1].tolist() == expected


def test_vectors_of_a_model_with_a_service(wire):
    """The vector of a model with a service holds codes of text and 0 or 1 of truths, and nothing is read from the store."""
    order = stores.schema().features
    values = {
        "rain": [0.25], "seats": [180.0], "delay": [1.5], "hour": [7.0], "engine": [1.0], "miles": [2.0],
        "is_leased": [1.0], "weight": [float("nan")], "night": [0.0], "cabin": [1.0],
    }  # fmt: skip
    body, length = matrix_request(np.transpose([values[name] for name in order]))
    head, scores = scores_of(wire.post(INFER, body, inference_header_content_length=length))
    sent = {**values, "engine": ["prop"], "is_leased": [True], "night": [False], "cabin": ["coach"], "weight": [None]}
    assert scores.tolist() == wire.scores("late", features=sent)
    assert "oldest_age_ms" not in head["parameters"]


@pytest.mark.parametrize(
    ("feature", "value"), [("engine", 2), ("engine", -1), ("cabin", 0.5), ("night", 2), ("is_leased", 0.5)]
)
def test_a_code_that_is_none(wire, feature, value):
    """A number that is no category's code, or neither 0 nor 1, is refused with its row."""
    order = stores.schema().features
    matrix = np.zeros((3, len(order)))
    matrix[1, order.index(feature)] = value
    body, length = matrix_request(matrix)
    reply = wire.post(INFER, body, inference_header_content_length=length)
    assert (reply.status_code, reply.json()["code"], reply.json()["row"]) == (400, "invalid_tensor", 1)
    assert feature in reply.json()["error"]


def test_a_raw_body_is_one_vector(wire):
    """A header length of 0 makes the whole body one row of FP32, and the reply binary."""
    row = np.array([1.0, 2.5, -3.0], "<f4").tobytes()
    reply = wire.post("/v2/models/plain/infer", row, inference_header_content_length="0")
    assert reply.status_code == 200
    _, scores = scores_of(reply)
    assert "inference-header-content-length" in reply.headers
    assert scores.tolist() == wire.scores("plain", features={"a": [1.0], "b": [2.5], "c": [-3.0]})
    for wrong in (row[:-1], row + b"\0", row + row, b""):
        refused = wire.post("/v2/models/plain/infer", wrong, inference_header_content_length="0")
        assert (refused.status_code, refused.json()["code"]) == (400, "invalid_tensor")


def test_a_body_truncated_anywhere_is_refused(wire):
    """No prefix of a binary request is answered with scores."""
    body, length = matrix_request(MATRIX)
    for kept in range(len(body)):
        reply = wire.post("/v2/models/plain/infer", body[:kept], inference_header_content_length=length)
        assert (reply.status_code, reply.json()["code"]) == (400, "invalid_tensor")


def test_multiclass(wire):
    """A multiclass model answers [n, n_classes], at a version and at an alias."""
    keys = [
        tensor("tailnum", "BYTES", ["N1", "N2"]),
        tensor("origin", "BYTES", ["EWR"] * 2),
        tensor("gate", "INT64", [3] * 2),
    ]
    rest = [tensor(name, kind, data) for name, kind, data in (
        ("rain", "FP64", [0.5, 1.0]), ("hour", "INT8", [1, 2]), ("night", "BOOL", [True, True]), ("cabin", "BYTES", ["first"] * 2)
    )]  # fmt: skip
    expected = wire.scores(
        "kind",
        {"tailnum": ["N1", "N2"], "origin": "EWR", "gate": 3},
        {"rain": [0.5, 1.0], "hour": [1, 2], "night": True, "cabin": "first"},
    )
    for path in ("kind", "kind@tried", "kind%40champion", "kind/versions/4"):
        head, scores = scores_of(wire.post(f"/v2/models/{path}/infer", {"inputs": keys + rest}))
        assert scores.tolist() == expected
        assert (head["model_name"], head["model_version"], scores.shape) == ("kind", "4", (2, 3))


def test_stored_features_may_be_sent(wire):
    """A stored feature that the request brings wins over what is stored."""
    sent = tensor("seats", "INT32", [1, 2, 3])
    _, scores = scores_of(wire.post(INFER, {"inputs": [*named(), sent]}))
    assert scores.tolist() == wire.scores("late", ENTITIES, {**FEATURES, "seats": [1, 2, 3]})


MISSING = {
    "rain": ("FP32", [None, None, 1.5]),
    "hour": ("INT64", [7, None, 9]),
    "night": ("BOOL", [None, False, None]),
    "cabin": ("BYTES", ["coach", None, "first"]),
}


@pytest.mark.parametrize("shape", [[3], [3, 1]])
@pytest.mark.parametrize("names", [["rain"], ["hour"], ["night"], ["cabin"], list(MISSING)])
def test_null_is_a_missing_value_of_every_datatype(wire, names, shape):
    """A feature that is not known may be null, whatever its type, as in the server's own protocol."""
    sent = {name: tensor(name, *MISSING[name], shape) for name in names}
    reply = wire.post(INFER, {"inputs": named(**sent)})
    assert reply.status_code == 200, reply.text
    values = {**FEATURES, **{name: MISSING[name][1] for name in names}}
    assert scores_of(reply)[1].tolist() == wire.scores("late", ENTITIES, values)


def test_stored_features_may_be_sent_as_missing(wire):
    """A null wins over what is stored, as in the server's own protocol; an integer will do for a float."""
    sent = [tensor("seats", "INT32", [1, None, 3]), tensor("weight", "INT64", [None, 2, None])]
    _, scores = scores_of(wire.post(INFER, {"inputs": [*named(), *sent]}))
    values = {**FEATURES, "seats": [1, None, 3], "weight": [None, 2, None]}
    assert scores.tolist() == wire.scores("late", ENTITIES, values)


@pytest.mark.parametrize(
    ("name", "datatype", "data"), [("gate", "INT64", [3, None, 3]), ("origin", "BYTES", ["EWR", None, "EWR"])]
)
def test_a_join_key_may_not_be_null(wire, name, datatype, data):
    """Nobody is asked about; the refusal names the key and the row."""
    reply = wire.post(INFER, {"inputs": named(**{name: tensor(name, datatype, data)})})
    assert (reply.status_code, reply.json()["code"], reply.json()["row"]) == (400, "invalid_tensor", 1)
    assert f"'{name}'" in reply.json()["error"]
    assert "join key" in reply.json()["error"]


def test_binary_bytes_and_json_mixed(wire):
    """Text keys in binary beside numbers in JSON give the same scores."""
    data = b"".join(struct.pack("<I", len(key)) + key.encode() for key in ENTITIES["tailnum"])
    first = {"name": "tailnum", "datatype": "BYTES", "shape": [3], "parameters": {"binary_data_size": len(data)}}
    text = json.dumps({"inputs": named(tailnum=first)}).encode()
    reply = wire.post(INFER, text + data, inference_header_content_length=str(len(text)))
    assert scores_of(reply)[1].tolist() == wire.scores("late", ENTITIES, FEATURES)


def test_outputs_are_chosen(wire):
    """`outputs` names what is wanted and overrides the request's binary_data_output."""
    for outputs, parameters, as_binary in (
        ([{"name": "score"}], {"binary_data_output": True}, True),
        ([{"name": "score", "parameters": {"binary_data": True}}], {}, True),
        ([{"name": "score", "parameters": {"binary_data": False}}], {"binary_data_output": True}, False),
        ([], {}, False),
    ):
        body = {"inputs": named(), "outputs": outputs, "parameters": parameters}
        assert ("inference-header-content-length" in wire.post(INFER, body).headers) is as_binary


def changed(**fields):
    return {"inputs": named(), **fields}


REFUSALS = [
    pytest.param(b"{", 400, "malformed_json", id="malformed JSON"),
    pytest.param(b"", 400, "malformed_json", id="no body"),
    pytest.param(b"[]", 400, "invalid_request", id="not an object"),
    pytest.param(b'{"inputs": [], "inputs": []}', 400, "duplicate_key", id="duplicate key"),
    pytest.param(b'{"inputs": [{"name": "rain", "datatype": "FP32", "shape": [1], "data": [NaN]}]}', 400,
                 "malformed_json", id="NaN literal"),
    pytest.param({}, 400, "invalid_tensor", id="no inputs"),
    pytest.param(changed(output=[]), 400, "unknown_field", id="misspelled field"),
    pytest.param(changed(id=7), 400, "wrong_type", id="id not text"),
    pytest.param(changed(parameters=[]), 400, "invalid_request", id="parameters not an object"),
    pytest.param(changed(parameters={"timeout": -1}), 400, "invalid_deadline", id="negative timeout"),
    pytest.param(changed(parameters={"timeout": "10"}), 400, "invalid_deadline", id="timeout is text"),
    pytest.param(changed(parameters={"timeout": False}), 400, "invalid_deadline", id="timeout is a truth"),
    pytest.param(changed(parameters={"priority": -1}), 400, "wrong_type", id="negative priority"),
    pytest.param(changed(parameters={"priority": 1.5}), 400, "wrong_type", id="fractional priority"),
    pytest.param(changed(parameters={"sequence_id": 1}), 400, "invalid_request", id="sequence"),
    pytest.param(changed(parameters={"binary_data_output": 1}), 400, "wrong_type", id="flag is a number"),
    pytest.param(changed(outputs={}), 400, "wrong_type", id="outputs not a list"),
    pytest.param(changed(outputs=["score"]), 400, "invalid_request", id="output not an object"),
    pytest.param(changed(outputs=[{"name": "scores"}]), 400, "unknown_output", id="unknown output"),
    pytest.param(changed(outputs=[{}]), 400, "unknown_output", id="output without a name"),
    pytest.param(changed(outputs=[{"name": "score"}] * 2), 400, "invalid_request", id="output twice"),
    pytest.param(changed(outputs=[{"name": "score", "parameters": {"classification": 2}}]), 400, "invalid_request",
                 id="classification"),
    pytest.param(changed(outputs=[{"name": "score", "parameters": {"binary_data": "yes"}}]), 400, "wrong_type",
                 id="binary_data is text"),
    pytest.param({"inputs": named(extra=tensor("speed", "FP32", [1, 2, 3]))}, 400, "unknown_feature", id="unknown input"),
    pytest.param({"inputs": named(tailnum=None)}, 400, "missing_entity_key", id="absent key"),
    pytest.param({"inputs": named(rain=None)}, 400, "missing_feature", id="absent request feature"),
    pytest.param({"inputs": named(gate=tensor("gate", "FP64", [3, 3, 3]))}, 400, "invalid_tensor", id="float for a key"),
    pytest.param({"inputs": named(gate=tensor("gate", "BYTES", ["3"] * 3))}, 400, "invalid_tensor", id="text for a number"),
    pytest.param({"inputs": named(night=tensor("night", "INT8", [1, 0, 1]))}, 400, "invalid_tensor", id="number for a truth"),
    pytest.param({"inputs": named(hour=tensor("hour", "FP32", [7, 8, 9]))}, 400, "invalid_tensor", id="float for an integer"),
    pytest.param({"inputs": named(cabin=tensor("cabin", "BYTES", ["coach", "roof", "coach"]))}, 400, "unknown_category",
                 id="unknown category"),
    pytest.param({"inputs": named(gate=tensor("gate", "INT64", [3, 4]))}, 400, "invalid_tensor", id="another number of rows"),
    pytest.param({"inputs": named(gate=tensor("gate", "INT64", [3] * 3, [1, 3]))}, 400, "invalid_tensor", id="a row vector"),
    pytest.param({"inputs": named(gate=tensor("gate", "INT64", [3] * 3, [3, 1, 1]))}, 400, "invalid_tensor", id="a cube"),
    pytest.param({"inputs": [tensor("gate", "INT64", [], [0])]}, 400, "invalid_tensor", id="no rows"),
    pytest.param({"inputs": [tensor("gate", "INT64", [1] * 101)]}, 413, "too_many_rows", id="too many rows"),
    pytest.param({"inputs": [tensor("features", "FP32", [0] * 9, [1, 9])]}, 400, "invalid_tensor", id="vector too short"),
    pytest.param({"inputs": [tensor("features", "FP32", [0] * 10)]}, 400, "invalid_tensor", id="vector without rows"),
    pytest.param({"inputs": [tensor("features", "INT64", [0] * 10, [1, 10])]}, 400, "invalid_tensor", id="integer vector"),
    pytest.param({"inputs": [tensor("features", "FP32", [0] * 10, [1, 10]), tensor("gate", "INT64", [1])]}, 400,
                 "invalid_tensor", id="vector and more"),
    pytest.param(b" " * 50_001, 413, "body_too_large", id="too large a body"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "status", "code"), REFUSALS)
def test_refusals(wire, body, status, code):
    """Each kind of bad request has its status, its stable code and a text that says what was expected."""
    reply = wire.post(INFER, body)
    assert (reply.status_code, reply.json()["code"]) == (status, code)
    assert len(reply.json()["error"]) > 20


@pytest.mark.parametrize("datatype", ["<f4", "<f8"])
def test_infinity_is_refused(wire, datatype):
    """No input may be infinite, whichever way it comes."""
    body, length = matrix_request([[1.0, float("inf"), 0.0]], datatype)
    reply = wire.post("/v2/models/plain/infer", body, inference_header_content_length=length)
    assert (reply.status_code, reply.json()["code"]) == (400, "not_finite")


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"content-encoding": "gzip"}, 415, "unsupported_media_type"),
        ({"content-encoding": "deflate"}, 415, "unsupported_media_type"),
        ({"content-type": "application/x-www-form-urlencoded"}, 415, "unsupported_media_type"),
        ({"inference-header-content-length": "7x"}, 400, "invalid_tensor"),
        ({"inference-header-content-length": "99999"}, 400, "invalid_tensor"),
        ({"x-request-timeout-seconds": "soon"}, 400, "invalid_deadline"),
    ],
)
def test_refused_headers(wire, headers, status, code):
    """Compressed bodies, other types, lengths and budgets that make no sense are refused with their codes."""
    reply = wire.send("POST", INFER, content=json.dumps({"inputs": named()}).encode(), headers=headers)
    assert (reply.status_code, reply.json()["code"]) == (status, code)


def test_two_header_lengths_are_refused(wire):
    """Two lengths would let two readers see two requests."""
    body, length = matrix_request(MATRIX)
    headers = [("inference-header-content-length", length)] * 2
    reply = wire.send("POST", "/v2/models/plain/infer", content=body, headers=headers)
    assert (reply.status_code, reply.json()["code"]) == (400, "invalid_tensor")


@pytest.mark.parametrize("media", ["", "application/json; charset=utf-8", "application/octet-stream"])
def test_types_that_clients_send(wire, media):
    """Triton's clients send no type, JSON's or that of octets."""
    headers = {"content-type": media} if media else {}
    reply = wire.send("POST", INFER, content=json.dumps({"inputs": named()}).encode(), headers=headers)
    assert reply.status_code == 200


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v2/models/none/infer", 404, "model_not_found"),
        ("/v2/models/late/versions/9/infer", 404, "model_not_found"),
        ("/v2/models/late/versions/x/infer", 400, "invalid_name"),
        ("/v2/models/late/versions/01/infer", 400, "invalid_name"),
        ("/v2/models/late@champion/versions/1/infer", 400, "invalid_name"),
        ("/v2/models/late/explain", 404, "unknown_path"),
    ],
)
def test_paths_that_lead_nowhere(wire, path, status, code):
    """An unknown model, version or verb is told apart by its code."""
    reply = wire.post(path, {"inputs": named()})
    assert (reply.status_code, reply.json()["code"]) == (status, code)


class StubRouter:
    """Notes the budget it is given and fails as it is told to."""

    def __init__(self, engine, failure=None):
        self.engine, self.failure, self.budgets = engine, failure, []

    def enter(self, reference, n_bytes):
        return contextlib.nullcontext()

    async def find(self, reference):
        return self.engine.find_plan(reference)

    async def answer(self, reference, question, budget, explain=None):
        self.budgets.append(budget)
        if self.failure is not None:
            raise self.failure
        return Answer("p1", "late", 1, Tier.REALTIME, [0.5], False, (), None, {})


def stubbed(wire, failure=None):
    """The protocol's routes over a stub of the router."""
    router, counters = StubRouter(wire.engine, failure), WorkerCounters()
    other = Wire(wire.engine)
    other.app = Starlette(routes=oip.oip_routes(Host(wire.engine, router, SETTINGS, counters)))
    return other, router, counters


@pytest.mark.parametrize(
    ("parameters", "headers", "budget_us", "source"),
    [
        ({}, {}, None, "tier"),
        ({"timeout": 0, "priority": 3}, {}, None, "tier"),
        ({"timeout": None, "priority": None}, {}, None, "tier"),
        ({"timeout": None}, {"x-envoy-expected-rq-timeout-ms": "5"}, 5000, "x-envoy-expected-rq-timeout-ms"),
        ({"timeout": 8000}, {}, 8000, "timeout"),
        ({"timeout": 8000}, {"x-envoy-expected-rq-timeout-ms": "5"}, 5000, "x-envoy-expected-rq-timeout-ms"),
        ({"timeout": 8000}, {"x-request-timeout-seconds": "0.5"}, 8000, "timeout"),
    ],
)
def test_the_smallest_budget_wins(wire, parameters, headers, budget_us, source):
    """Triton's timeout is in microseconds and joins the budgets of the headers; zero or null asks for nothing."""
    other, router, _ = stubbed(wire)
    reply = other.send("POST", INFER, content=json.dumps(changed(parameters=parameters)).encode(), headers=headers)
    assert reply.status_code == 200
    assert (router.budgets[0].budget_us, router.budgets[0].source) == (budget_us, source)


@pytest.mark.parametrize(
    ("failure", "status", "retry_after"),
    [
        (DeadlineError("too late", budget_us=1, needed_us=2), 504, {None}),
        (CapacityError("full", predicted_wait_us=1_500_000), 503, {"2", "3", "4"}),
        (RuntimeError("a bug"), 500, {None}),
    ],
)
def test_failures_are_replies_and_counted(wire, failure, status, retry_after):
    """Whatever the router raises becomes one counted error reply; room to come is said in Retry-After."""
    other, _, counters = stubbed(wire, failure)
    reply = other.post(INFER, {"inputs": named()})
    assert reply.status_code == status
    assert reply.headers.get("retry-after") in retry_after
    assert set(reply.json()) >= {"error", "code"}
    assert counters.get("replies_5xx") == 1


@pytest.mark.parametrize("path", ["/v2/models/plain/infer", "/predict/plain", "/v1/models/plain:predict"])
def test_a_model_that_raises_is_named(tmp_path, monkeypatch, path):
    """Which model could not score, and why, is told in every protocol, under one code."""
    wire = Wire(FixedEngine(tmp_path))

    def raises(rows):
        raise IndexError("idx=5000 is out of bounds")

    monkeypatch.setattr(wire.engine.find_plan("plain").scorer, "score", raises)
    body = {
        "/v2/models/plain/infer": {"inputs": [tensor("features", "FP32", [1, 2, 3], [1, 3])]},
        "/predict/plain": {"features": {"a": 1, "b": 2, "c": 3}},
        "/v1/models/plain:predict": {"instances": [[1, 2, 3]]},
    }[path]
    reply = wire.post(path, body)
    assert (reply.status_code, reply.json()["code"]) == (500, "scoring_failed")
    assert "model 'plain' version 2" in reply.json()["error"]
    assert "IndexError: idx=5000 is out of bounds" in reply.json()["error"]


def test_statistics_count_answers_and_failures(tmp_path):
    """A version's requests, rows and failures are counted, with times that add up; nobody else's are touched."""
    wire = Wire(FixedEngine(tmp_path))
    assert wire.post(INFER, {"inputs": named()}).status_code == 200
    assert wire.post(INFER, {"inputs": named(rain=None)}).status_code == 400
    assert wire.post("/v2/models/late/versions/1/infer", {"inputs": named()}).status_code == 200
    stats = wire.get("/v2/models/late/stats").json()["model_stats"]
    assert [(each["name"], each["version"]) for each in stats] == [("late", "1")]
    assert (stats[0]["inference_count"], stats[0]["execution_count"]) == (6, 2)
    spent = stats[0]["inference_stats"]
    assert (spent["success"]["count"], spent["fail"]["count"]) == (2, 1)
    stages = ("queue", "compute_input", "compute_infer", "compute_output")
    assert 0 < sum(spent[stage]["ns"] for stage in stages) <= spent["success"]["ns"] + 1000
    assert all(spent[stage]["count"] == 2 for stage in stages)
    everything = wire.get("/v2/models/stats").json()["model_stats"]
    assert [each["inference_count"] for each in everything] == [0, 6, 0]
    assert wire.get("/v2/models/none/stats").status_code == 404


def test_metadata(wire):
    """A model with a service lists what a request must bring; one without, its vector; outputs have the score's shape."""
    late = wire.get("/v2/models/late").json()
    assert late["versions"] == ["1"]
    assert late["platform"] == "tiercel_forest"
    assert {each["name"]: each["datatype"] for each in late["inputs"]} == {
        "tailnum": "BYTES", "origin": "BYTES", "gate": "INT64", "rain": "FP32", "hour": "INT64", "night": "BOOL",
        "cabin": "BYTES",
    }  # fmt: skip
    assert all(each["shape"] == [-1, 1] for each in late["inputs"])
    assert late["outputs"] == [{"name": "score", "datatype": "FP64", "shape": [-1]}]
    plain = wire.get("/v2/models/plain/versions/2").json()
    assert plain["inputs"] == [{"name": "features", "datatype": "FP32", "shape": [-1, 3]}]
    assert wire.get("/v2/models/kind").json()["outputs"][0]["shape"] == [-1, 3]
    assert wire.get("/v2/models/kind@tried").json()["platform"] == "onnxruntime_onnx"


def test_configuration(wire):
    """The configuration lists exactly the metadata's inputs, by row, and says the vector's order."""
    config = wire.get("/v2/models/late/config").json()
    assert (config["name"], config["max_batch_size"], config["backend"]) == ("late", 100, "tiercel")
    metadata = wire.get("/v2/models/late").json()
    assert [each["name"] for each in config["input"]] == [each["name"] for each in metadata["inputs"]]
    assert {"name": "tailnum", "data_type": "TYPE_STRING", "dims": [1]} in config["input"]
    assert config["output"] == [{"name": "score", "data_type": "TYPE_FP64", "dims": []}]
    assert config["parameters"]["features"]["string_value"].split(",") == list(stores.schema().features)
    assert config["parameters"]["feature_service"]["string_value"] == "svc"
    assert "computed_features" not in config["parameters"]
    assert wire.get("/v2/models/plain/config").json()["input"] == [
        {"name": "features", "data_type": "TYPE_FP32", "dims": [3]}
    ]


def test_health(wire, tmp_path):
    """Live always, ready when something can be served; 400 otherwise, which is what Triton's clients know."""
    assert wire.get("/v2/health/live").status_code == 200
    assert wire.get("/v2/health/ready").status_code == 200
    assert wire.get("/v2/models/late/ready").json() == {"name": "late", "ready": True}
    assert wire.get("/v2/models/late/versions/1/ready").status_code == 200
    assert wire.get("/v2/models/none/ready").status_code == 404
    broken = wire.get("/v2/models/kind@next/ready")
    assert (broken.status_code, broken.json()["code"]) == (400, "model_unavailable")
    empty = FixedEngine(tmp_path)
    empty.routes = type(empty.routes)()
    reply = Wire(empty).get("/v2/health/ready")
    assert (reply.status_code, reply.json()["code"]) == (400, "model_unavailable")


def test_server_metadata(wire):
    """The server says which extensions it has, binary tensors among them."""
    data = wire.get("/v2").json()
    assert data["name"] == "tiercel"
    assert "binary_tensor_data" in data["extensions"]


def test_repository_index(wire):
    """The index lists what is loaded and, unless only the ready are wanted, what could not be."""
    for body in (b"", {}):
        listed = wire.post("/v2/repository/index", body).json()
        assert {"name": "kind", "version": "4", "state": "READY"} in listed
        assert {"name": "kind@next", "version": "", "state": "UNAVAILABLE", "reason": "broken"} in listed
    ready = wire.post("/v2/repository/index", {"ready": True}).json()
    assert {each["state"] for each in ready} == {"READY"}
    assert len(ready) == 3


@pytest.mark.parametrize("verb", ["load", "unload"])
def test_the_registry_decides_what_is_served(wire, verb):
    """Loading and unloading over this protocol is refused, and the refusal says what to do."""
    reply = wire.post(f"/v2/repository/models/late/{verb}", {})
    assert (reply.status_code, reply.json()["code"]) == (404, "unsupported_operation")
    assert "tiercel promote" in reply.json()["error"]


def test_degraded_answers_say_so():
    """Who answered instead of whom, and why, stands in the reply's parameters, as plain values."""
    degraded = Degraded("fallback", "late:1", "deadline")
    answer = Answer("p1", "small", 3, Tier.REALTIME, [0.5], False, (), 12.0, {}, degraded, stage_us={"score": 1.25})
    data = json.loads(encode_answer(answer, None, {"score": False}, {"parse": 2.0}).body)
    assert (data["model_name"], data["model_version"]) == ("small", "3")
    assert data["parameters"] == {
        "tier": "realtime", "prediction_id": "p1", "degraded": "fallback", "degraded_instead_of": "late:1",
        "degraded_reason": "deadline", "oldest_age_ms": 12.0, "timing_us": {"parse": 2.0},
    }  # fmt: skip
