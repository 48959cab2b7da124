"""The data plane on the wire: shapes of replies, every refusal's status and code, limits, both formats."""

from __future__ import annotations

import asyncio
import json

import httpx
import msgpack
import numpy as np
import pytest
from tests.support import stores
from tiercel._hot.plan import ServingPlan

from tiercel.errors import ModelNotFoundError, ServiceNotFoundError
from tiercel.features.online import OnlineBase
from tiercel.http.app import DataPlane
from tiercel.serving.routes import ModelRoutes, Routes
from tiercel.settings import ServerSettings
from tiercel.types import Signature, Task

BODY = {
    "entities": {"tailnum": "N1", "origin": "EWR", "gate": 3},
    "features": {"rain": 0.25, "hour": 7, "night": True, "cabin": "coach"},
    "now": stores.NOW_US,
}


class SumScorer:
    """Scores a row by the sum of what is not missing, once per output."""

    def __init__(self, n_features, n_outputs):
        self.n_features, self.n_outputs = n_features, n_outputs

    def score(self, rows):
        return np.nansum(rows, axis=1, dtype=np.float64)[:, None] * np.ones(self.n_outputs)


class FixedEngine:
    """The part of an engine that endpoints use, over routes that do not change."""

    def __init__(self, directory):
        stores.publish(directory)
        stores.publish(directory, stores.schema("error", name="strict"))
        services = {name: OnlineBase.open(directory / name) for name in ("svc", "strict")}
        models = {
            "late": ModelRoutes({1: self.plan(services["svc"], "late", 1)}, {"champion": 1}),
            "kind": ModelRoutes({4: self.plan(services["strict"], "kind", 4, Task.MULTICLASS)}, {"champion": 4}),
        }
        self.routes = Routes.build(models, services, ())
        self.watch_problems = ()

    @staticmethod
    def plan(base, name, version, task=Task.BINARY):
        classes = ("x", "y", "z") if task is Task.MULTICLASS else ("0", "1")
        signature = Signature(base.schema.features, task, classes)
        scorer = SumScorer(len(signature.features), signature.n_outputs)
        return ServingPlan(name, version, signature, scorer, base.schema, base)

    def profile_of(self, _name, _version):
        return None

    def find_plan(self, reference):
        return self.routes.by_reference.get(reference)

    async def load_plan(self, reference):
        raise ModelNotFoundError(f"Expected a registered model, got '{reference}'")

    def service(self, name):
        if name not in self.routes.services:
            raise ServiceNotFoundError(f"Expected a materialized feature service, got '{name}'")
        return self.routes.services[name]

    def refresh(self):
        return self.routes


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    settings = ServerSettings(max_rows=100, max_body_bytes=20_000, body_timeout_s=0.2)
    return DataPlane(FixedEngine(tmp_path_factory.mktemp("features")), settings)


def send(app, method, path, *, content=b"", headers=None):
    async def exchange():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
            return await client.request(method, path, content=content, headers=headers or {})

    return asyncio.run(exchange())


def post(app, path, body, kind="application/json", headers=None):
    content = body if isinstance(body, bytes) else json.dumps(body) if kind.endswith("json") else msgpack.packb(body)
    return send(app, "POST", path, content=content, headers={"content-type": kind, **(headers or {})})


def test_one_row(app):
    """Scalars give one score, with what was missing and how old the oldest stored value was."""
    reply = post(app, "/predict/late", BODY)
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "application/json"
    data = reply.json()
    assert data.pop("id")
    assert data == {
        "model": "late",
        "version": 1,
        "tier": "realtime",
        "score": float(np.float32(0.25)) + 180 + 12.5 + 7 + 0 + 719 + 1 + 70_000.5 + 1 + 1,
        "features": {"oldest_age_ms": 5 * 3_600_000.0, "missing": []},
    }


def test_many_rows(app):
    """Lists give one score per row; missing values are counted by feature."""
    body = {**BODY, "entities": {"tailnum": ["N1", "N2", "N9"], "origin": "EWR", "gate": 3}}
    data = post(app, "/predict/late", body).json()
    assert len(data["scores"]) == 3
    assert "score" not in data
    assert data["features"]["missing"] == {"seats": 2, "delay": 2, "engine": 1, "is_leased": 1, "weight": 1}


def test_msgpack_equals_json(app):
    """The same request in either format gives the same answer, in the format it came in."""
    as_json = post(app, "/predict/late", BODY).json()
    reply = post(app, "/predict/late", BODY, "application/msgpack")
    assert reply.headers["content-type"] == "application/msgpack"
    as_msgpack = msgpack.unpackb(reply.content)
    assert as_msgpack.pop("id") != as_json.pop("id")
    assert as_msgpack == as_json


def test_multiclass(app):
    """A multiclass score is one number per class, named once."""
    data = post(app, "/predict/kind@champion", BODY).json()
    assert data["classes"] == ["x", "y", "z"]
    assert len(data["score"]) == 3


def test_references(app):
    """A model answers to its name, its alias and its version; each reply has its own id."""
    replies = [post(app, f"/predict/{ref}", BODY).json() for ref in ("late", "late@champion", "late:1")]
    assert {reply["version"] for reply in replies} == {1}
    assert len({reply["id"] for reply in replies}) == 3


@pytest.mark.parametrize("now", [0, "1970-01-01T00:00:00Z"])
def test_the_epoch_is_a_time(app, now):
    """The first moment is a time like any other, not "now"."""
    assert post(app, "/predict/late", {**BODY, "now": now}).json()["features"]["oldest_age_ms"] == 0.0


def test_now_is_iso_text_too(app):
    """The time of the read may be written as people write it."""
    body = {**BODY, "now": "2023-11-14T22:13:20Z"}
    assert post(app, "/predict/late", body).json()["features"] == post(app, "/predict/late", BODY).json()["features"]


REFUSALS = [
    pytest.param("/predict/late", b"{", 400, "malformed_json", id="malformed JSON"),
    pytest.param("/predict/late", b'{"entities": {}, "entities": {}}', 400, "duplicate_key", id="duplicate key"),
    pytest.param("/predict/late", b'{"features": {"rain": NaN}}', 400, "malformed_json", id="NaN literal"),
    pytest.param("/predict/late", b"[1]", 400, "invalid_request", id="not an object"),
    pytest.param("/predict/late", {}, 400, "invalid_request", id="nothing to score"),
    pytest.param("/predict/late", {**BODY, "entity": {}}, 400, "unknown_field", id="unknown field"),
    pytest.param("/predict/late", {**BODY, "entities": []}, 400, "wrong_type", id="entities not an object"),
    pytest.param("/predict/late", {**BODY, "now": "yesterday"}, 400, "wrong_type", id="time not a time"),
    pytest.param("/predict/late", {**BODY, "now": -1}, 400, "wrong_type", id="time before 1970"),
    pytest.param("/predict/late", {**BODY, "entities": {"x": 1}}, 400, "unknown_entity_key", id="unknown entity"),
    pytest.param("/predict/late", {**BODY, "features": {"x": 1}}, 400, "unknown_feature", id="unknown feature"),
    pytest.param("/predict/late", {**BODY, "features": {}}, 400, "missing_feature", id="absent feature"),
    pytest.param(
        "/predict/late", {**BODY, "entities": {"tailnum": ["a", "b"], "origin": ["c"], "gate": 1}}, 400, "wrong_length",
        id="lists of different lengths",
    ),
    pytest.param(
        "/predict/late", {**BODY, "entities": {**BODY["entities"], "tailnum": ["a"] * 101}}, 413, "too_many_rows",
        id="too many rows",
    ),
    pytest.param("/predict/late", b" " * 20_001, 413, "body_too_large", id="too large a body"),
    pytest.param(
        "/predict/kind", {**BODY, "entities": {**BODY["entities"], "tailnum": "N9"}}, 404, "entity_not_found",
        id="entity without a row",
    ),
    pytest.param("/predict/none", BODY, 404, "model_not_found", id="unknown model"),
    pytest.param("/predict/late", {**BODY, "features": {"rain": []}}, 400, "invalid_request", id="no row"),
    pytest.param("/features/svc", {"entities": BODY["entities"], "features": []}, 400, "invalid_request", id="no feature"),
    pytest.param(
        "/features/svc", {"entities": BODY["entities"], "features": ["seats"] * 600}, 400, "invalid_request",
        id="one feature many times",
    ),
    pytest.param("/features/none", {"entities": {"tailnum": "N1"}}, 404, "service_not_found", id="unknown service"),
    pytest.param("/features/svc", {"entities": {}}, 400, "invalid_request", id="no entity to read"),
    pytest.param("/features/svc", {"entities": {"tailnum": "N1"}}, 400, "missing_entity_key", id="absent key"),
    pytest.param(
        "/features/svc", {"entities": BODY["entities"], "features": ["rain"]}, 400, "unknown_feature",
        id="a request feature is not stored",
    ),
    pytest.param(
        "/features/svc", {"entities": BODY["entities"], "features": "seats"}, 400, "wrong_type", id="projection not a list"
    ),
    pytest.param(
        "/features/strict", {"entities": {**BODY["entities"], "gate": 9}}, 404, "entity_not_found",
        id="feature read of an entity without a row",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "status", "code"), REFUSALS)
def test_refusals(app, path, body, status, code):
    """Each kind of bad request has its status, its stable code, and a text that says what was expected."""
    reply = post(app, path, body)
    assert (reply.status_code, reply.json()["code"]) == (status, code)
    assert len(reply.json()["error"]) > 20


@pytest.mark.parametrize("part", ["entities", "features"])
def test_half_a_surrogate_pair_is_no_fault_of_ours(app, part):
    """A key that no text can hold is refused like any other, also where the message quotes it."""
    body = b'{"%s": {"\\ud800": [1, 2], "rain": [1]}}' % part.encode()
    for path in ("/predict/late", "/predict/\ud800".encode("utf-8", "replace").decode()):
        reply = post(app, path, body)
        assert reply.status_code in {400, 404}
        assert set(reply.json()) >= {"error", "code"}


def test_the_bad_row_is_named(app):
    """One bad row among many is reported with its index."""
    body = {**BODY, "entities": {**BODY["entities"], "tailnum": ["N1", 7, "N2"]}}
    reply = post(app, "/predict/late", body)
    assert (reply.status_code, reply.json()["row"]) == (400, 1)


def test_msgpack_errors_are_msgpack(app):
    """A client that speaks msgpack reads its errors in msgpack."""
    reply = post(app, "/predict/late", b"\x81", "application/msgpack")
    assert reply.status_code == 400
    assert msgpack.unpackb(reply.content)["code"] == "malformed_msgpack"


def test_msgpack_extension_types_are_refused(app):
    """A timestamp extension is no number and no text."""
    body = {**BODY, "features": {**BODY["features"], "rain": msgpack.Timestamp(1)}}
    reply = post(app, "/predict/late", body, "application/msgpack")
    assert msgpack.unpackb(reply.content)["code"] == "wrong_type"


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"content-type": "text/plain"}, "unsupported_media_type"),
        ({"content-type": "application/json", "content-encoding": "gzip"}, "unsupported_media_type"),
    ],
)
def test_media_types(app, headers, code):
    """Other types and compressed bodies are refused with 415."""
    reply = send(app, "POST", "/predict/late", content=json.dumps(BODY), headers=headers)
    assert (reply.status_code, reply.json()["code"]) == (415, code)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/predict/late", 405), ("GET", "/features/svc", 405), ("GET", "/nowhere", 404), ("POST", "/readyz", 405)],
)
def test_wrong_paths_and_methods(app, method, path, status):
    """They too are answered in the common error shape."""
    reply = send(app, method, path)
    assert reply.status_code == status
    assert set(reply.json()) == {"error", "code"}


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/predict/late", "POST"),
        ("GET", "/features/svc", "POST"),
        ("POST", "/readyz", "GET, HEAD"),
        ("PUT", "/invocations", "POST"),
        ("GET", "/v2/models/late/infer", "POST"),
        ("DELETE", "/v1/models/late", "GET, HEAD, POST"),  # two routes of one path
        ("GET", "/nowhere", None),
    ],
)
def test_a_wrong_method_is_told_the_right_ones(app, method, path, allow):
    """Every 405 has an `Allow` with all methods of its path, and nothing else has one."""
    assert send(app, method, path).headers.get("allow") == allow


def test_feature_read(app):
    """Stored features come back typed, each with a status and an age, one row per entity."""
    body = {
        "entities": {"tailnum": ["N2", "N3", "N9"], "origin": "EWR", "gate": [3, -4, 3]},
        "features": ["weight", "engine", "is_leased", "seats", "delay", "miles"],
        "now": stores.NOW_US,
    }
    data = post(app, "/features/svc", body).json()
    assert data["features"] == body["features"]
    assert data["values"] == [
        [2.0**60, "prop", False, None, None, 719.0],
        [None, None, None, 4, None, 1.5],
        [None, None, None, None, None, 719.0],
    ]
    assert data["statuses"] == [
        ["PRESENT", "PRESENT", "PRESENT", "NULL", "NULL", "PRESENT"],
        ["OUTSIDE_TTL", "NULL", "NULL", "PRESENT", "OUTSIDE_TTL", "PRESENT"],
        ["NOT_FOUND"] * 5 + ["PRESENT"],
    ]
    assert data["ages_ms"][0] == [
        3_600_000.0,
        9 * 3_600_000.0,
        9 * 3_600_000.0,
        9 * 3_600_000.0,
        3_600_000.0,
        7_200_000.0,
    ]


def test_int64_survives_a_feature_read(app):
    """Reads are exact: no integer passes through a float."""
    body = {"entities": {"tailnum": "N4", "origin": "EWR", "gate": 3}, "features": ["seats"]}
    assert post(app, "/features/svc", body).json()["values"] == [[2**53 + 1]]


def test_health(app):
    """Alive always; ready when something can be served, with what and on which base."""
    assert send(app, "GET", "/livez").json() == {"status": "alive"}
    ready = send(app, "GET", "/readyz")
    assert ready.status_code == 200
    assert ready.json()["models"] == {"kind": {"champion": 4}, "late": {"champion": 1}}
    assert ready.json()["services"] == {"strict": "base-000001.mdb", "svc": "base-000001.mdb"}


def test_not_ready_without_anything_to_serve(tmp_path):
    """A server with no model and no features says so with 503."""
    engine = FixedEngine(tmp_path)
    engine.routes = Routes()
    assert send(DataPlane(engine, ServerSettings()), "GET", "/readyz").status_code == 503


def test_readiness_says_what_the_journal_lacks(tmp_path):
    """What keeps predictions from being recorded is among the problems for as long as it lasts; what can be served still is."""
    told = ["journal: no new segment"]
    plane = DataPlane(FixedEngine(tmp_path), ServerSettings(), troubles=lambda: told)
    ready = send(plane, "GET", "/readyz")
    assert ready.status_code == 200
    assert ready.json()["problems"] == ["journal: no new segment"]
    told.clear()
    assert send(plane, "GET", "/readyz").json()["problems"] == []


async def call(app, messages):
    """Drive the application with raw ASGI messages; the replies' start and body."""
    sent = []
    queue = list(messages)

    async def receive():
        if queue:
            return queue.pop(0)
        await asyncio.sleep(10)
        raise AssertionError

    async def collect(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/predict/late",
             "headers": [(b"content-type", b"application/json")]}  # fmt: skip
    await app(scope, receive, collect)
    return sent[0]["status"], json.loads(sent[1]["body"])


def chunk(body, *, more):
    return {"type": "http.request", "body": body, "more_body": more}


def test_body_in_pieces(app):
    """A body that arrives in any pieces is the same body."""
    whole = json.dumps(BODY).encode()
    pieces = [chunk(whole[i : i + 7], more=True) for i in range(0, len(whole), 7)] + [chunk(b"", more=False)]
    assert asyncio.run(call(app, pieces))[0] == 200


def test_body_that_never_ends(app):
    """A body must arrive within its deadline."""
    status, reply = asyncio.run(call(app, [chunk(b"{", more=True)]))
    assert (status, reply["code"]) == (408, "body_timeout")


def test_body_that_never_begins(app):
    """The deadline runs from the head of the request, whether or not any of the body came."""
    status, reply = asyncio.run(call(app, []))
    assert (status, reply["code"]) == (408, "body_timeout")


def test_body_that_grows_past_the_limit(app):
    """An unannounced body is cut off as soon as it is too large."""
    status, reply = asyncio.run(call(app, [chunk(b" " * 15_000, more=True)] * 3))
    assert (status, reply["code"]) == (413, "body_too_large")


def test_client_that_leaves(app):
    """A disconnect in the middle of a body ends the request without a fault."""
    status, reply = asyncio.run(call(app, [chunk(b"{", more=True), {"type": "http.disconnect"}]))
    assert (status, reply["code"]) == (400, "client_disconnected")


def test_internal_failures_are_not_shown(app, monkeypatch, caplog):
    """A fault of ours is a 500 that tells the client nothing about the inside; the log has it."""
    plan = app._engine.routes.by_reference["late"]

    class Broken:
        model, tier = "late", "realtime"

        def need_us(self, _n_rows):
            return 0

        def prepare(self, *_):
            raise ZeroDivisionError("secret")

    monkeypatch.setattr(app._engine, "find_plan", lambda reference: Broken() if reference == "late" else plan)
    reply = post(app, "/predict/late", BODY)
    assert (reply.status_code, reply.json()["code"]) == (500, "internal_error")
    assert "secret" not in reply.text
    assert "ZeroDivisionError" in caplog.text
