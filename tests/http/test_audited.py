"""Strict models over HTTP: no reply before its record is durable, on any path, and a refusal when it cannot be."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time

import msgpack
import pytest
from tests.http.test_protocol import Running, peer, request
from tests.http.test_queued import chunked
from tests.support.tiers import BODY, World
from tiercel._hot.plan import ServingPlan

from tiercel.errors import AuditUnavailableError
from tiercel.monitor.journal import read_journal
from tiercel.settings import ExplainSettings, ModelSettings, ServerSettings
from tiercel.types import Signature, Task, Tier

# What these tests call on the loop comes before what they send next: a poller that waits awake would read that first.
SETTINGS = ServerSettings(max_rows=200, max_connections=100, idle_timeout_s=5, busy_poll_us=0)
STRICT = request(BODY, target="/predict/strict")
PLAIN = request(BODY, target="/predict/late")


class Commit:
    """What `GroupCommit` is to the server, in the hands of a test."""

    def __init__(self):
        self.waiting, self.error, self.is_held = [], None, False

    def submit(self, done):
        if self.is_held:
            self.waiting.append((asyncio.get_running_loop(), done))
        else:
            asyncio.get_running_loop().call_soon(done, self.error)

    async def wait(self):
        future = asyncio.get_running_loop().create_future()
        self.submit(lambda error: future.set_result(None) if error is None else future.set_exception(error))
        await future

    def let_go(self):
        waiting, self.waiting, self.is_held = self.waiting, [], False
        for loop, done in waiting:
            loop.call_soon_threadsafe(done, self.error)


@pytest.fixture
def world(tmp_path, base):
    """A strict model `strict`, one that is not, `late`, and one that a strict model stands in for."""
    made = World(tmp_path, base, [ModelSettings("strict", explain=ExplainSettings(audit="strict"))])
    made.add("late")
    signature = Signature(base.schema.features, Task.BINARY, ("0", "1"))
    scorer = made.add("strict")
    recorder = made.recorder.for_plan("strict", 1, signature, base.schema, base.manifest.base_name, None, Tier.REALTIME)
    plan = ServingPlan("strict", 1, signature, scorer, base.schema, base, recorder=recorder, is_strict=True)
    made.models["strict"][0][1] = plan
    made.route()
    yield made
    made.close()


@pytest.fixture
def commit():
    return Commit()


@pytest.fixture
def server(world, commit):
    with Running(world, SETTINGS, world.ids, world.counters, world.declared, commit=commit) as running:
        yield running
        commit.let_go()


def wait_for(condition, timeout_s=10):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def is_silent(one, seconds=0.1):
    """Whether nothing comes within that time."""
    one.connection.settimeout(seconds)
    try:
        return one.connection.recv(1, socket.MSG_PEEK) == b"nothing"
    except TimeoutError:
        return True
    finally:
        one.connection.settimeout(5)


@pytest.mark.parametrize("wire", [STRICT, chunked(BODY, "/predict/strict")], ids=["compiled", "general"])
def test_a_reply_waits_for_its_record(server, commit, wire):
    """While the record is not durable nothing is sent; then the whole reply is."""
    commit.is_held = True
    with peer(server) as one:
        one.send(wire)
        wait_for(lambda: commit.waiting)
        assert is_silent(one)
        commit.let_go()
        status, _, body = one.reply()
    assert (status, json.loads(body)["model"]) == (200, "strict")


def test_both_paths_answer_the_same(server):
    """A strict model's reply differs between the paths in nothing but its id and times."""
    with peer(server) as one:
        one.send(STRICT)
        fast = json.loads(one.reply()[2])
        one.send(chunked(BODY, "/predict/strict"))
        general = json.loads(one.reply()[2])
    assert fast.pop("id") != general.pop("id")
    assert fast == general
    assert server.native.counts["answered"] == 1


def test_other_connections_and_models_do_not_wait(server, commit):
    """While one reply is held, other models answer on other connections."""
    commit.is_held = True
    with peer(server) as one, peer(server) as two:
        one.send(STRICT)
        wait_for(lambda: commit.waiting)
        two.send(PLAIN)
        assert two.reply()[0] == 200
        assert is_silent(one, 0.02)
        commit.let_go()
        assert one.reply()[0] == 200


def test_a_pipeline_is_answered_in_order(server):
    """Strict and other requests in one write are answered one after the other, each once."""
    with peer(server) as one:
        one.send(PLAIN + STRICT + STRICT + PLAIN + chunked(BODY, "/predict/strict") + STRICT)
        models = [json.loads(one.reply()[2])["model"] for _ in range(6)]
    assert models == ["late", "strict", "strict", "late", "strict", "strict"]


@pytest.mark.parametrize("wire", [STRICT, chunked(BODY, "/predict/strict")], ids=["compiled", "general"])
def test_what_cannot_be_made_durable_is_refused(server, commit, wire):
    """A failed sync gives 503 with a stable code in place of the score, and the connection goes on."""
    commit.error = AuditUnavailableError("Expected a disk, got none")
    with peer(server) as one:
        one.send(wire)
        status, headers, body = one.reply()
        assert (status, json.loads(body)) == (503, {"error": "Expected a disk, got none", "code": "audit_unavailable"})
        assert headers["content-type"] == "application/json"
        commit.error = None
        one.send(wire)
        assert one.reply()[0] == 200


def infer_body(*, binary=False):
    """The usual question as an infer request."""
    kinds = {"rain": "FP32", "hour": "INT64", "night": "BOOL", "gate": "INT64"}
    inputs = [
        {"name": name, "shape": [1], "datatype": kinds.get(name, "BYTES"), "data": [value]}
        for name, value in {**BODY["entities"], **BODY["features"]}.items()
    ]
    return {"inputs": inputs, **({"parameters": {"binary_data_output": True}} if binary else {})}


def stats_of(one):
    """Counts of answered and failed infer requests, rows, and nanoseconds of each."""
    one.send(b"GET /v2/models/strict/stats HTTP/1.1\r\nHost: x\r\n\r\n")
    (found,) = json.loads(one.reply()[2])["model_stats"]
    spent = found["inference_stats"]
    return [spent["success"]["count"], spent["fail"]["count"], found["inference_count"]], spent


@pytest.mark.parametrize("binary", [False, True], ids=["JSON", "binary"])
@pytest.mark.parametrize("path", ["compiled", "general"])
def test_what_is_refused_counts_as_failed(server, commit, path, binary):
    """Statistics of infer requests have a refused one among the failures, on both paths, and nothing of it elsewhere."""
    target, body = "/v2/models/strict/infer", infer_body(binary=binary)
    wire = request(body, target=target) if path == "compiled" else chunked(body, target)
    with peer(server) as one:
        one.send(wire)
        assert one.reply()[0] == 200
        assert stats_of(one)[0] == [1, 0, 1]
        commit.error = AuditUnavailableError("no disk")
        one.send(wire)
        assert one.reply()[0] == 503
        counts, spent = stats_of(one)
    assert counts == [1, 1, 1]
    assert spent["compute_infer"]["count"] == 1
    assert all(spent[name]["ns"] > 0 for name in ("success", "fail"))
    stages = ("queue", "compute_input", "compute_infer", "compute_output")
    assert all(0 <= spent[stage]["ns"] < 10**10 for stage in stages)


def test_a_refusal_is_in_the_request_s_own_format(server, commit):
    """A msgpack request is refused in msgpack."""
    commit.error = AuditUnavailableError("no disk")
    with peer(server) as one:
        one.send(request(msgpack.packb(BODY), target="/predict/strict", kind="application/msgpack"))
        status, _, body = one.reply()
    assert (status, msgpack.unpackb(body)["code"]) == (503, "audit_unavailable")


@pytest.mark.parametrize("wire", [STRICT, chunked(BODY, "/predict/strict")], ids=["compiled", "general"])
def test_without_room_in_the_journal_nothing_is_answered(server, world, wire):
    """A record that is dropped is no record: the request is refused at once."""
    world.recorder._keeper.close()  # no segment is made any more
    world.recorder._journal.seal()
    with peer(server) as one:
        one.send(wire)
        status, _, body = one.reply()
        assert (status, json.loads(body)["code"]) == (503, "audit_unavailable")
        one.send(PLAIN)
        assert one.reply()[0] == 200


def test_a_client_that_leaves_is_forgotten_and_its_record_kept(server, world, commit):
    """Going away while the reply is held breaks nothing; the record is there."""
    commit.is_held = True
    with peer(server) as one:
        one.send(STRICT)
        wait_for(lambda: commit.waiting)
    wait_for(lambda: server.n_connections == 0)
    commit.let_go()
    with peer(server) as two:
        two.send(STRICT)
        assert two.reply()[0] == 200
    assert len(list(read_journal(world.journal))) == 2


def test_without_a_journal_a_strict_model_does_not_answer(world):
    """Where nothing can make records durable the model is refused, on both paths, and others are served."""
    with Running(world, SETTINGS, world.ids, world.counters, world.declared) as running, peer(running) as one:
        for wire in (STRICT, chunked(BODY, "/predict/strict")):
            one.send(wire)
            status, _, body = one.reply()
            assert (status, json.loads(body)["code"]) == (503, "audit_unavailable")
        one.send(PLAIN)
        assert one.reply()[0] == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v2/models/strict/infer", None),
        ("/v1/models/strict:predict", {"instances": [{**BODY["entities"], **BODY["features"]}]}),
        ("/invocations", {"dataframe_records": [{**BODY["entities"], **BODY["features"]}]}),
    ],
)
def test_every_protocol_waits(server, commit, path, body):
    """V1, V2 and /invocations hold a strict model's reply like the native one."""
    body = infer_body() if body is None else body
    commit.is_held = True
    with peer(server) as one:
        one.send(request(body, target=path, headers=["x-tiercel-model: strict"]))
        end = time.monotonic() + 10
        while not commit.waiting and is_silent(one, 0.01):
            assert time.monotonic() < end
        assert commit.waiting, one.reply()
        assert is_silent(one)
        commit.let_go()
        assert one.reply()[0] == 200


def test_draining_answers_what_is_held(server, commit):
    """A server that stops sends the reply that is held, answers what comes after it, and says then that it closes."""
    commit.is_held = True
    with peer(server) as one:
        one.send(STRICT)
        wait_for(lambda: commit.waiting)
        server.server.should_exit = True
        threading.Timer(0.3, commit.let_go).start()
        status, headers, _ = one.reply()
        assert (status, headers.get("connection")) == (200, None)
        one.send(STRICT)
        status, headers, _ = one.reply()
        assert (status, headers.get("connection")) == (200, "close")
        assert one.reply() is None
