"""Infer requests over real sockets: the compiled path answers what it can, and nobody can tell but by the counters."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from tests.ext.test_tensors import ANSWERED, MATRIX, request, tensor, usual, vector
from tests.http.test_protocol import Peer, Running
from tests.reference.infer import TIMES
from tests.support.protocols import SETTINGS, FixedEngine, SumScorer
from tiercel._hot.plan import ServingPlan

from tiercel.http.native import NativeHttp
from tiercel.serving.routes import ModelRoutes, Routes
from tiercel.types import Signature, Task, Tier

AGE = re.compile(rb'"oldest_age_ms":[0-9.]+,')
PREDICTION = re.compile(rb'"prediction_id":"([0-9a-f]+)"')
LATE = "/v2/models/late/infer"


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return FixedEngine(tmp_path_factory.mktemp("features"))


@pytest.fixture(scope="module")
def running(engine):
    with Running(engine, SETTINGS) as server:
        yield server


class NoRoutes:
    """What a compiled path sees that knows no model."""

    routes = Routes.build({}, {}, ())


@pytest.fixture(scope="module")
def general(engine):
    """A server of the same models whose compiled path knows none of them."""
    with Running(engine, SETTINGS, known=NoRoutes) as server:
        yield server
    assert server.native.counts["answered"] == 0


def message(body, length=-1, *, path=LATE, headers=()):
    """A request; `length` below zero sends no length of the JSON."""
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers]
    if length >= 0:
        lines.append(f"Inference-Header-Content-Length: {length}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def exchange(server, sent):
    """(status, headers, body, requests the compiled path answered)."""
    before = server.native.counts["answered"]
    with server.connect() as connection:
        peer = Peer(connection)
        peer.send(sent)
        status, headers, body = peer.reply()
    return status, headers, body, server.native.counts["answered"] - before


def settled(headers, body):
    """A reply without ids, times and ages, nor the lengths that depend on them; its JSON has as many bytes as is said."""
    length = int(headers.pop("inference-header-content-length", len(body)))
    text, scores = body[:length], body[length:]
    json.loads(text)
    headers = {name: value for name, value in headers.items() if name not in {"date", "content-length"}}
    number = PREDICTION.search(text)[1]
    return headers, AGE.sub(b"", TIMES.sub(b"", text.replace(number, b"ID"))), scores


@pytest.mark.parametrize("case", ANSWERED)
def test_both_paths_reply_alike(running, general, case):
    """Status, headers, JSON and scores are the same; only the counters say who answered."""
    sent = message(*ANSWERED[case])
    status, headers, body, answered = exchange(running, sent)
    expected = exchange(general, sent)
    assert (status, answered) == (expected[0], 1) == (200, 1)
    assert list(headers) == list(expected[1])
    assert settled(headers, body) == settled(*expected[1:3])


@pytest.mark.parametrize(
    "path",
    ["kind", "kind@tried", "kind@champion", "kind:4", "kind/versions/4"],
)
def test_every_way_to_name_a_model(running, general, path):
    """Aliases and versions, in the name or in the path, are answered here, as the model they mean."""
    body, length = request(*usual(binary=True))
    sent = message(body, length, path=f"/v2/models/{path}/infer")
    status, headers, content, answered = exchange(running, sent)
    assert (status, answered) == (200, 1)
    told, text, scores = settled(headers, content)
    assert (json.loads(text[: text.index(b'"parameters"') - 1] + b"}"))["model_version"] == "4"
    assert (told, text, scores) == settled(*exchange(general, sent)[1:3])


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        pytest.param(message(*request(*usual()), path="/v2/models/none/infer"), 404, id="unknown model"),
        pytest.param(message(*request(*usual()), path="/v2/models/late/versions/2/infer"), 404, id="unknown version"),
        pytest.param(
            message(*request(*usual()), path="/v2/models/late@champion/versions/1/infer"), 400, id="two versions"
        ),
        pytest.param(message(*request(*usual()), path="/v2/models/late:1/versions/1/infer"), 400, id="a version twice"),
        pytest.param(message(*request(*usual(rain=None))), 400, id="absent feature"),
        pytest.param(message(*request(*usual()), headers=["X-Request-Timeout-Seconds: -1"]), 400, id="negative budget"),
        pytest.param(message(b"", 0), 400, id="no body"),
        pytest.param(message(b"{}", 10**14), 400, id="JSON longer than the body"),
        pytest.param(message(*request(*usual()), headers=["Content-Type: application/msgpack"]), 415, id="msgpack"),
        pytest.param(
            message(*request(*usual()), headers=["Inference-Header-Content-Length: 3"]), 400, id="two lengths"
        ),
        pytest.param(message(*request(*usual(rain=("FP16", [1, 2, 3]), binary=True))), 200, id="FP16"),
        pytest.param(message(*request(*usual(), id='"')), 200, id="an escaped id"),
        pytest.param(
            message(*request(*usual(), model_name="late")), 200, id="the model's name as KServe's clients have it"
        ),
        pytest.param(message(*request(*usual(), model_name="kind")), 400, id="another model's name"),
        pytest.param(message(*request(*usual(hour=("INT64", [7, None, 9])))), 200, id="null among integers"),
        pytest.param(message(*request(*usual(night=("BOOL", [None, True, False])))), 200, id="null among truths"),
        pytest.param(message(*request(*usual(cabin=("BYTES", ["coach", None, None])))), 200, id="null among texts"),
        pytest.param(message(*request(*usual(gate=("INT64", [3, None, 3])))), 400, id="null among keys"),
        pytest.param(message(*request(*usual(), parameters={"mine": 1})), 200, id="a parameter nobody knows"),
        pytest.param(message(*request(*usual()), path="/v2/models/l%61te/infer"), 200, id="an escaped path"),
    ],
)
def test_what_is_handed_on_ends_as_before(running, general, sent, status):
    """Errors and oddities are the general path's, unchanged."""
    found = exchange(running, sent)
    expected = exchange(general, sent)
    assert (found[0], found[3]) == (expected[0], 0) == (status, 0)
    if status != 200:
        assert found[2] == expected[2]
    else:
        assert settled(*found[1:3]) == settled(*expected[1:3])


@pytest.mark.parametrize(
    ("headers", "parameters", "told"),
    [
        ([], {"timeout": 9_000_000}, (9_000_000, "timeout")),
        (["X-Request-Timeout-Seconds: 8"], {"timeout": 9_000_000}, (8_000_000, "x-request-timeout-seconds")),
        (
            ["X-Envoy-Expected-Rq-Timeout-Ms: 9000"],
            {"timeout": 9_000_000},
            (9_000_000, "x-envoy-expected-rq-timeout-ms"),
        ),
        (["X-Request-Timeout-Seconds: 9"], {"timeout": 8_000_000}, (8_000_000, "timeout")),
    ],
)
def test_the_smallest_budget_is_told(running, general, headers, parameters, told):
    """Headers and `timeout` join in one budget, and both paths name its source alike; on a tie the header counts."""
    body, length = request(*usual(), parameters=parameters)
    sent = message(body, length, headers=headers)
    *_, content, answered = exchange(running, sent)
    said = json.loads(content)["parameters"]
    assert (answered, said["budget_us"], said["budget_from"]) == (1, *told)
    other = json.loads(exchange(general, sent)[2])["parameters"]
    assert list(other) == list(said)
    assert (other["budget_us"], other["budget_from"]) == told


@pytest.mark.parametrize("kind", [None, "application/json; charset=utf-8", "application/octet-stream"])
def test_types_that_clients_send(running, kind):
    """No Content-Type, JSON's or that of octets: all are answered here."""
    headers = [] if kind is None else [f"Content-Type: {kind}"]
    assert exchange(running, message(*ANSWERED["a vector"], headers=headers))[::3] == (200, 1)


def test_requests_are_answered_in_order_with_others(running):
    """Infer requests and predictions on one connection, sent at once, byte by byte or with one handed on between."""
    predict = json.dumps({"features": {"a": 1, "b": 2, "c": 3}}).encode()
    raw = np.array([1, 2, 3], "<f4").tobytes()
    head = b"POST /predict/plain HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    stream = [
        message(raw, 0, path="/v2/models/plain/infer"),
        head % len(predict) + predict,
        message(*request(vector([1, 2, 3], 3)), path="/v2/models/plain/versions/2/infer"),
        message(raw[1:], 0, path="/v2/models/plain/infer"),
        message(*request(vector([1, 2, 3], 3, binary=True)), path="/v2/models/plain/infer"),
    ]
    for parts in ([b"".join(stream)], [bytes([byte]) for byte in b"".join(stream)]):
        with running.connect() as connection:
            peer = Peer(connection)
            for part in parts:
                peer.send(part)
            replies = [peer.reply() for _ in stream]
        assert [status for status, *_ in replies] == [200, 200, 200, 400, 200]
        assert replies[0][2].endswith(np.array([6.0], "<f8").tobytes())
        assert json.loads(replies[1][2])["score"] == 6
        assert json.loads(replies[2][2])["outputs"][0]["data"] == [6.0]


def test_many_rows(running, general):
    """A batch large enough to be read and scored without the GIL, JSON and binary, in and out."""
    rows = np.tile(MATRIX, 50)
    for options in ({"binary": True}, {"nested": True}):
        values = rows if options == {"binary": True} else [None if np.isnan(v) else v for v in rows.tolist()]
        for as_binary in (True, False):
            body, length = request(vector(values, 10, "FP64", **options), parameters={"binary_data_output": as_binary})
            sent = message(body, length)
            status, headers, content, answered = exchange(running, sent)
            assert (status, answered) == (200, 1)
            assert settled(headers, content) == settled(*exchange(general, sent)[1:3])


def test_statistics_count_both_paths(tmp_path):
    """What either path answered of a version is one count, with times that add up; failures are counted once."""
    with Running(FixedEngine(tmp_path), SETTINGS) as server:
        assert exchange(server, message(*request(*usual(binary=True))))[::3] == (200, 1)
        assert exchange(server, message(*request(*usual()), path="/v2/models/late/versions/1/infer"))[::3] == (200, 1)
        assert exchange(server, message(*request(*usual(), id="\n")))[::3] == (200, 0)
        assert exchange(server, message(*request(*usual(rain=None))))[::3] == (400, 0)
        asked = exchange(server, b"GET /v2/models/late/stats HTTP/1.1\r\nHost: x\r\n\r\n")
        again = exchange(server, b"GET /v2/models/late/stats HTTP/1.1\r\nHost: x\r\n\r\n")
    assert asked[2] == again[2]
    (found,) = json.loads(asked[2])["model_stats"]
    assert (found["inference_count"], found["execution_count"]) == (9, 3)
    spent = found["inference_stats"]
    assert (spent["success"]["count"], spent["fail"]["count"]) == (3, 1)
    stages = [spent[name] for name in ("queue", "compute_input", "compute_infer", "compute_output")]
    assert {stage["count"] for stage in stages} == {3}
    assert 0 < sum(stage["ns"] for stage in stages) <= spent["success"]["ns"] + 3000
    assert found["last_inference"] > 1_600_000_000_000


def test_models_with_a_queue_are_handed_on(engine):
    """A model whose requests wait in a queue is asked on the general path, which has the protocol's replies for it."""
    queued = FixedEngine.__new__(FixedEngine)
    signature = Signature(("a", "b", "c"), Task.REGRESSION)
    plan = ServingPlan("slow", 1, signature, SumScorer(3, 1), tier=Tier.NEAR_REALTIME.value, is_inline=False)
    assert plan.is_queued
    assert plan.answer(np.zeros(3, "<f4").tobytes(), 2, 0, NativeHttp(engine, SETTINGS).ids, header_length=0) is None
    queued.routes = Routes.build({"slow": ModelRoutes({1: plan}, {"champion": 1})}, {}, ())
    queued.watch_problems = ()
    with Running(queued, SETTINGS) as server:
        status, _, body, answered = exchange(
            server, message(*request(vector([1, 2, 3], 3)), path="/v2/models/slow/infer")
        )
    assert (status, answered) == (200, 0)
    assert json.loads(body)["outputs"][0]["data"] == [6.0]


def test_requests_of_a_trace(engine):
    """Where traces are exported, a request that belongs to one is the general path's, whatever its protocol."""
    body, length = request(tensor("a", "FP32", [1]), tensor("b", "FP32", [2]), tensor("c", "FP32", [3]))
    sent = message(
        body, length, path="/v2/models/plain/infer", headers=["traceparent: 00-" + "a" * 32 + "-" + "b" * 16 + "-01"]
    )
    for hands_on_traced in (False, True):
        with Running(engine, SETTINGS, hands_on_traced=hands_on_traced) as server:
            assert exchange(server, sent)[::3] == (200, 0 if hands_on_traced else 1)
