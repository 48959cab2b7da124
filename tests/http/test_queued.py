"""Near-realtime predictions on the compiled path: assembled there, scored in a batch, answered in order, whatever happens."""

from __future__ import annotations

import contextlib
import gc
import json
import re
import threading
import time

import msgpack
import pytest
from tests.http.test_protocol import LIVEZ, Running, answer, peer, request
from tests.support.tiers import BODY, World, constant, failing, held
from tiercel._hot.plan import ServingPlan

from tiercel.settings import ModelSettings, ServerSettings

# What these tests call on the loop comes before what they send next: a poller that waits awake would read that first.
SETTINGS = ServerSettings(max_rows=200, max_body_bytes=200_000, max_connections=100, idle_timeout_s=5, busy_poll_us=0)
CURVE = ((1, 100, 150), (8, 200, 300), (64, 900, 1200))
NET = request(BODY, target="/predict/net")
READYZ = LIVEZ.replace(b"livez", b"readyz")


@pytest.fixture
def world(tmp_path, base):
    """A model `net` in near-realtime and one in realtime, `late`."""
    declared = [
        ModelSettings("degrading", default_score=0.5),
        ModelSettings("laddered", fallback="late"),
        ModelSettings("large", fallback="small", default_score=0.25),
        ModelSettings("bounded", fallback="late", deadline_ms=20),
    ]
    world = World(tmp_path, base, declared)
    world.add("late")
    world.add("net", tier="near-realtime", needs_us=(5, 100, 10), curve=CURVE)
    yield world
    world.close()


@pytest.fixture
def server(world):
    with Running(world, SETTINGS, world.ids, world.counters, world.declared) as running:
        yield running
        for scorer in world.scorers.values():
            scorer.gate.set()


def chunked(body, target, kind="application/json", head=""):
    """The same request in a shape that the compiled path hands on."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = f"POST {target} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n{head}Transfer-Encoding: chunked\r\n\r\n"
    return lines.encode() + b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content)


def wait_for(condition, timeout_s=10):
    """Until another thread has made it so."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def batcher(server, label="net:1"):
    return server.plane._router._queues.batchers()[label]


@pytest.mark.parametrize("kind", ["application/json", "application/msgpack"])
@pytest.mark.parametrize(
    "body",
    [
        BODY,
        {**BODY, "deadline_ms": 900},
        {**BODY, "entities": {**BODY["entities"], "tailnum": ["N1", "N2", "N1"]}},
        {**BODY, "entities": {**BODY["entities"], "tailnum": ["N1"]}},
    ],
    ids=["one", "deadline", "three", "list of one"],
)
def test_both_paths_answer_alike(server, world, kind, body):
    """What the compiled path queues is answered, and recorded, as the general path does, apart from who parsed it."""
    encode = msgpack.packb if kind.endswith("msgpack") else lambda value: json.dumps(value).encode()
    with peer(server) as one:
        one.send(request(encode(body), target="/predict/net", kind=kind))
        fast = one.reply()
        assert server.native.counts == {"answered": 1, "handed_on": 0}
        one.send(chunked(encode(body), "/predict/net", kind))
        general = one.reply()
        assert server.native.counts == {"answered": 1, "handed_on": 1}
    assert fast[0] == 200
    assert answer(fast) == answer(general)
    assert list(fast[1]) == list(general[1])
    assert world.counters.get("near_realtime_requests") == 2
    first, second = world.records().values()
    assert (first.flags ^ second.flags) == 1
    for field in ("rows", "scores", "keys", "now_us", "request_rows"):
        assert repr(getattr(first, field)) == repr(getattr(second, field))


def test_waiting_requests_share_a_batch(server, world):
    """Whoever comes while a batch is scored is in the next one, all together, and every connection gets its own answer."""
    scorer, peers = world.scorers["net", 1], [server.connect() for _ in range(6)]
    bodies = [{**BODY, "features": {**BODY["features"], "rain": float(i)}} for i in range(6)]
    with held(scorer):
        peers[0].sendall(request(bodies[0], target="/predict/net"))
        assert scorer.entered.wait(10)
        for each, body in zip(peers[1:], bodies[1:], strict=True):
            each.sendall(request(body, target="/predict/net"))
        wait_for(lambda: batcher(server).n_waiting == 5)
    scores = []
    for each in peers:
        scores.append(json.loads(each.recv(65536).partition(b"\r\n\r\n")[2])["score"])
        each.close()
    assert scorer.calls == [1, 5]
    assert [score - scores[0] for score in scores] == [float(i) for i in range(6)]


def test_pipelined_requests_are_answered_in_order(server, world):
    """What follows a waiting request on its connection waits with it; another connection does not."""
    scorer = world.scorers["net", 1]
    with peer(server) as one, peer(server) as other:
        with held(scorer):
            one.send(request(BODY) + NET + request(BODY) + LIVEZ + NET + request(b"{") + NET)
            assert json.loads(one.reply()[2])["model"] == "late"
            assert scorer.entered.wait(10)
            assert other.ask(request(BODY)) == 200
            assert one.silent(0.05)
        found = [one.reply() for _ in range(6)]
    assert [reply[0] for reply in found] == [200, 200, 200, 200, 400, 200]
    assert [json.loads(reply[2]).get("model") for reply in found] == ["net", "late", None, "net", None, "net"]


def test_split_at_any_byte(server):
    """A queued request cut in two anywhere, with another behind it, is answered by the compiled path."""
    with peer(server) as one:
        for cut in range(1, len(NET)):
            one.send(NET[:cut])
            time.sleep(0.0003)
            one.send(NET[cut:] + NET)
            assert (one.reply()[0], one.reply()[0]) == (200, 200)
    assert server.native.counts == {"answered": 2 * (len(NET) - 1), "handed_on": 0}


def test_a_client_that_leaves_is_not_scored(server, world):
    """The question of a connection that is gone leaves the queue, and its neighbours do not notice."""
    scorer = world.scorers["net", 1]
    with peer(server) as first, peer(server) as gone, peer(server) as stays:
        with held(scorer):
            first.send(NET)
            assert scorer.entered.wait(10)
            for each in (gone, stays):
                each.send(NET)
            wait_for(lambda: batcher(server).n_waiting == 2)
            gone.connection.close()
            wait_for(lambda: batcher(server).n_waiting == 1)
        assert (first.reply()[0], stays.reply()[0]) == (200, 200)
    assert scorer.calls == [1, 1]
    assert batcher(server).cancelled == 1


def test_a_client_that_leaves_while_it_is_scored(server, world):
    """Scores that come for a connection that is gone are dropped, and the next request finds a working server."""
    scorer = world.scorers["net", 1]
    with held(scorer):
        with peer(server) as gone:
            gone.send(NET)
            assert scorer.entered.wait(10)
        wait_for(lambda: server.n_connections == 0)
    with peer(server) as one:
        assert one.ask(NET) == 200
    assert server.native.counts["answered"] == 1


def test_a_failing_model(server, world):
    """A model that fails is an error of the same body on both paths, and the connection lives on."""
    world.add("broken", tier="near-realtime", needs_us=(5, 100, 10), curve=CURVE, what=failing)
    with peer(server) as one:
        one.send(request(BODY, target="/predict/broken"))
        fast = one.reply()
        one.send(chunked(BODY, "/predict/broken"))
        general = one.reply()
        assert one.ask(NET) == 200
    assert fast[0] == general[0] == 500
    assert fast[2] == general[2]
    assert json.loads(fast[2])["code"] == "scoring_failed"
    assert "model 'broken' version 1, got an error of what runs it: ZeroDivisionError: broken model" in fast[2].decode()
    assert list(fast[1]) == list(general[1])
    assert world.counters.get("replies_5xx") == 2


@pytest.mark.parametrize("kind", ["application/json", "application/msgpack"])
def test_no_room(server, world, kind):
    """A question that finds no room is refused with the general path's status, headers and body shape; nothing is closed."""
    world.add("slow", tier="near-realtime", needs_us=(5, 4_000_000, 10), curve=((1, 4_000_000, 4_000_000),))
    question = {**BODY, "deadline_ms": 10_000}  # room for two
    body = json.dumps(question).encode() if kind.endswith("json") else msgpack.packb(question)
    decode = json.loads if kind.endswith("json") else msgpack.unpackb
    ask = request(body, target="/predict/slow", kind=kind)
    scorer, peers = world.scorers["slow", 1], [server.connect() for _ in range(2)]
    with peer(server) as fast, peer(server) as general:
        with held(scorer):
            peers[0].sendall(ask)
            assert scorer.entered.wait(10)
            peers[1].sendall(ask)
            wait_for(lambda: batcher(server, "slow:1").n_waiting == 1)
            fast.send(ask)
            refused = fast.reply()
            general.send(chunked(body, "/predict/slow", kind))
            likewise = general.reply()
        assert fast.ask(NET) == 200
    for each in peers:
        each.close()
    assert refused[0] == likewise[0] == 503
    assert list(refused[1]) == list(likewise[1])
    assert "retry-after" in refused[1]
    assert decode(refused[2])["code"] == decode(likewise[2])["code"] == "overloaded"
    assert decode(refused[2]).keys() == decode(likewise[2]).keys()
    assert world.counters.get("refused_capacity") == 2


def test_too_little_time(server, world):
    """A deadline that cannot be met is refused before anything is queued, in the words of the general path."""
    late, told = {**BODY, "deadline_ms": 0.05}, []
    with peer(server) as one:
        for ask in (request(late, target="/predict/net"), chunked(late, "/predict/net")):
            one.send(ask)
            status, headers, body = one.reply()
            assert status == 504
            data = json.loads(body)
            data["error"] = re.sub(r"got [0-9.]+ ms", "got # ms", data["error"])
            told.append((list(headers), data))
        assert one.ask(NET) == 200
    assert told[0] == told[1]
    assert told[0][1]["code"] == "deadline_exceeded"
    assert server.native.counts == {"answered": 1, "handed_on": 1}
    assert world.counters.get("refused_deadline") == 2
    assert world.scorers["net", 1].calls == [1]


def test_what_waits_unread_loses_time(server, world):
    """A request that was read behind a waiting one has been here since then, however late its turn comes."""
    scorer = world.scorers["net", 1]
    tight, ample = (request({**BODY, "deadline_ms": ms}, target="/predict/net") for ms in (30, 900))
    with peer(server) as one, held(scorer):
        one.send(NET + tight)
        assert scorer.entered.wait(10)
        time.sleep(0.02)
        one.send(tight + ample)
        time.sleep(0.04)
        scorer.gate.set()
        assert [one.reply()[0] for _ in range(4)] == [200, 504, 504, 200]
        assert one.ask(tight) == 200


def test_a_stand_in_answers_what_fails(server, world):
    """A model with a default answers with it where its own scorer fails, after its question has waited in the queue."""
    world.add("degrading", tier="near-realtime", needs_us=(5, 100, 10), curve=CURVE, what=failing)
    ask = request(BODY, target="/predict/degrading")
    with peer(server) as one:
        one.send(ask + ask + NET)
        found = [json.loads(one.reply()[2]) for _ in range(3)]
    for each in found[:2]:
        assert each["score"] == 0.5
        assert each["degraded"] == {"by": "default", "instead_of": "degrading:1", "reason": "failed"}
    assert found[2]["model"] == "net"


def test_draining_answers_what_waits(server, world):
    """A server told to stop answers the waiting request, says that it closes, and closes."""
    scorer = world.scorers["net", 1]
    with peer(server) as one:
        with held(scorer):
            one.send(NET)
            assert scorer.entered.wait(10)
            server.server.should_exit = True
            wait_for(lambda: not server.server.servers or not server.server.servers[0].is_serving())
            time.sleep(0.05)
        status, headers, _ = one.reply()
        assert (status, headers["connection"]) == (200, "close")
        assert one.reply() is None


def test_reading_ahead_is_bounded(server, world):
    """Of what a peer sends behind a waiting request only so much is read; it is answered once there is an answer before it."""
    scorer, n = world.scorers["net", 1], 100_000  # more than the kernel's buffers hold
    with peer(server) as one:
        with held(scorer):
            one.send(NET)
            assert scorer.entered.wait(10)
            one.connection.settimeout(0.3)
            sent, data = 0, request(BODY) * n
            with contextlib.suppress(TimeoutError):
                while sent < len(data):
                    sent += one.connection.send(data[sent : sent + 65536])
            one.connection.settimeout(10)
        assert sent < len(data)
        assert one.reply()[0] == 200
        for _ in range(1000):
            assert one.reply()[0] == 200


def test_refusals_repeat(server, world):
    """Once time is over, the same words refuse every question like it, each counted; another model's get their own."""
    world.add("other", tier="near-realtime", needs_us=(5, 100, 10), curve=CURVE)
    late = {**BODY, "deadline_ms": 0.001}
    with peer(server) as one:
        found = []
        for model in ("net", "net", "other", "net", "net"):
            one.send(request(late, target=f"/predict/{model}"))
            status, headers, body = one.reply()
            assert status == 504
            headers.pop("date")
            found.append((headers, json.loads(body)))
        assert one.ask(NET) == 200
    assert found[0] == found[1] == found[3] == found[4]
    assert "'other'" in found[2][1]["error"]
    assert world.counters.get("refused_deadline") == 5
    assert world.counters.get("replies_5xx") == 5


def test_who_finds_no_room_either_is_told_so_at_once(server, world, monkeypatch):
    """Behind a full queue the words of the last refusal are used again, for who has more time left as well; not for long."""
    world.add("slow", tier="near-realtime", needs_us=(5, 4_000_000, 10), curve=((1, 4_000_000, 4_000_000),))
    ask = request({**BODY, "deadline_ms": 10_000}, target="/predict/slow")  # room for two
    door, looked = server.native._door, []
    take = door._router.take
    monkeypatch.setattr(door._router, "take", lambda seat: looked.append(seat.due_ns) or take(seat))
    peers = [server.connect() for _ in range(2)]

    def refused(one):
        one.send(ask)
        status, _, body = one.reply()
        assert (status, json.loads(body)["code"]) == (503, "overloaded")

    with peer(server) as one:
        with held(world.scorers["slow", 1]):
            peers[0].sendall(ask)
            assert world.scorers["slow", 1].entered.wait(10)
            peers[1].sendall(ask)
            wait_for(lambda: batcher(server, "slow:1").n_waiting == 1)
            looked.clear()
            begin = time.monotonic()
            for _ in range(20):
                refused(one)  # each is due later than the one before
            n_looks, took_s = len(looked), time.monotonic() - begin
            time.sleep(0.05)
            refused(one)
            assert len(looked) == n_looks + 1
        assert n_looks <= 1 + took_s / 0.011
        assert world.counters.get("refused_capacity") == 21
        assert one.ask(NET) == 200
    for each in peers:
        each.close()


def test_refusals_keep_no_plan(server, world):
    """Once there are other plans, nothing holds those that were refused: their bases can go."""
    late = {**BODY, "deadline_ms": 0.001}
    path = server.native._path
    with peer(server) as one:
        assert one.ask(request(late, target="/predict/net")) == 504
        assert len(path.late) == 1
        world.add("other", tier="near-realtime", needs_us=(5, 100, 10), curve=CURVE)
        assert one.ask(request(BODY, target="/predict/other")) == 200
    assert len(path.late) == 0


def test_ever_other_deadlines_do_not_fill_memory(server):
    """Refusals of so many sorts of questions are remembered, and no more."""
    path = server.native._path
    with peer(server) as one:
        for at in range(200):
            assert one.ask(request({**BODY, "deadline_ms": 0.001 + at / 1e6}, target="/predict/net")) == 504
            assert len(path.late) <= 64


@pytest.mark.parametrize("tier", ["near-realtime", "realtime"])
def test_a_stand_in_answers_for_what_is_no_number(server, world, tier):
    """Where somebody can stand in, a score that is NaN counts as a failure, on the compiled path too; elsewhere it is told."""
    for name in ("degrading", "plain"):
        world.add(name, tier=tier, needs_us=(5, 100, 10), curve=CURVE, what=constant(float("nan")))
    with peer(server) as one:
        one.send(request(BODY, target="/predict/degrading"))
        told = json.loads(one.reply()[2])
        assert (told["score"], told["degraded"]["reason"]) == (0.5, "failed")
        before = server.native.counts["answered"]
        one.send(request(BODY, target="/predict/plain"))
        assert json.loads(one.reply()[2])["score"] is None
    assert server.native.counts["answered"] == before + 1


def told_degraded(reply, decode=json.loads):
    data = decode(reply[2])
    return data["model"], data["degraded"]


@pytest.mark.parametrize("kind", ["application/json", "application/msgpack"])
@pytest.mark.parametrize("tier", ["near-realtime", "realtime"])
def test_a_fallback_answers_on_the_compiled_path(server, world, tier, kind):
    """A champion that cannot be in time is replaced on the compiled path, in the general path's words; a version is not."""
    world.add("laddered", tier=tier, needs_us=(5, 2_000_000, 10), curve=((1, 2_000_000, 2_000_000),))
    encode = msgpack.packb if kind.endswith("msgpack") else lambda value: json.dumps(value).encode()
    decode = msgpack.unpackb if kind.endswith("msgpack") else json.loads
    body = encode({**BODY, "deadline_ms": 1000})
    with peer(server) as one:
        one.send(request(body, target="/predict/laddered", kind=kind))
        fast = one.reply()
        assert server.native.counts == {"answered": 1, "handed_on": 0}
        one.send(chunked(body, "/predict/laddered", kind))
        general = one.reply()
        one.send(request(body, target="/predict/laddered:1", kind=kind))
        assert one.reply()[0] == 504
    assert fast[0] == general[0] == 200
    assert answer(fast) == answer(general)
    assert list(fast[1]) == list(general[1])
    assert told_degraded(fast, decode) == (
        "late",
        {"by": "fallback", "instead_of": "laddered:1", "reason": "deadline"},
    )
    first, second = world.records().values()
    assert (first.flags ^ second.flags) == 1
    assert first.degraded == "fallback"
    assert world.counters.get("degraded_fallback") == 2


def test_a_fallback_answers_for_a_full_queue_and_a_failing_model(server, world):
    """Who finds no room, and whose batch fails, is answered by the fallback at once, in order, on the compiled path."""
    scorer = world.add(
        "laddered", tier="near-realtime", needs_us=(5, 4_000_000, 10), curve=((1, 4_000_000, 4_000_000),)
    )
    ask = request({**BODY, "deadline_ms": 10_000}, target="/predict/laddered")  # room for two
    with peer(server) as one, peer(server) as two, peer(server) as three:
        with held(scorer):
            one.send(ask)
            assert scorer.entered.wait(10)
            two.send(ask)
            wait_for(lambda: batcher(server, "laddered:1").n_waiting == 1)
            three.send(ask + request(BODY))
            assert told_degraded(three.reply())[1]["reason"] == "overloaded"
            assert json.loads(three.reply()[2])["model"] == "late"
            scorer.what = failing
        assert told_degraded(one.reply())[1]["reason"] == "failed"
        assert told_degraded(two.reply())[1]["reason"] in {"failed", "deadline"}
    assert server.native.counts == {"answered": 4, "handed_on": 0}


def test_who_stands_in_after_a_wait_says_how_long_it_was(server, world):
    """The stages in Server-Timing are all of a request's time, that which it waited for its champion in vain too."""
    scorer = world.add("laddered", tier="near-realtime", needs_us=(5, 100, 10), curve=CURVE)
    question = request({**BODY, "deadline_ms": 900}, target="/predict/laddered")
    with peer(server) as one:
        assert one.ask(question) == 200
    # On a busy machine the loop wakes up late.
    server.native._path.socket_peak_ns = server.native._path.queue._wait.peak_ns = 200_000_000
    with peer(server) as one, held(scorer):
        begin = time.monotonic()
        one.send(question)
        status, headers, body = one.reply()
        took_s = time.monotonic() - begin
    assert (status, json.loads(body)["degraded"]["reason"]) == (200, "deadline")
    stages = {name: float(ms) for name, ms in re.findall(r"(\w+);dur=([0-9.]+)", headers["server-timing"])}
    spent_s = (sum(stages.values()) - stages["budget"]) / 1000
    assert 0.6 < spent_s <= took_s


def test_a_certain_version_waits_for_its_own_answer(server, world):
    """Whoever asks for a version has no stand-in: it keeps its place until its own deadline, where the model's name leaves."""
    scorer = world.add("laddered", tier="near-realtime", needs_us=(5, 100, 10), curve=CURVE)
    for reference, can_leave in (("laddered", True), ("laddered:1", False)):
        with peer(server) as one:
            scorer.entered.clear()
            with held(scorer):
                one.send(request({**BODY, "deadline_ms": 5000}, target=f"/predict/{reference}"))
                assert scorer.entered.wait(10)
                wait_for(lambda: batcher(server, "laddered:1")._running is not None)
                ((seat, _, _),) = batcher(server, "laddered:1")._running.parts
                assert seat.can_leave is can_leave
                assert (seat.due_ns == seat.prepared.due_ns) is not can_leave
            assert one.reply()[0] == 200


def test_a_champion_that_becomes_slow_is_replaced(server, world):
    """What scoring inline takes is learned: once a champion is far slower than it was measured, its fallback is in time."""
    scorer = world.add("laddered", needs_us=(5, 50, 10))
    ask = request({**BODY, "deadline_ms": 3}, target="/predict/laddered")
    with peer(server) as one:
        assert one.ask(request(BODY, target="/predict/laddered")) == 200
        scorer.takes_s = 0.005
        by = set()
        for _ in range(400):
            one.send(ask)
            status, _, body = one.reply()
            by.add(json.loads(body).get("degraded", {}).get("by") if status == 200 else status)
            if "fallback" in by:
                break
    assert "fallback" in by


def test_a_model_that_is_quick_again_answers_again(server, world):
    """Without anybody in time to be scored, what is learned of a slow time is doubted, and given up when it is over."""
    scorer = world.add("moody", needs_us=(5, 50, 10))
    ask = request({**BODY, "deadline_ms": 3}, target="/predict/moody")
    with peer(server) as one:
        scorer.takes_s = 0.005
        wait_for(lambda: one.ask(ask) == 504)
        scorer.takes_s = 0
        wait_for(lambda: all(one.ask(ask) == 200 for _ in range(50)))


LATE_ASK = {"features": {"a": 1.0, "b": 2.0}, "deadline_ms": 50}


@pytest.fixture
def large(world):
    """A model that is never in time, and needs more than its fallback."""
    world.add("small", features=["a"], what=constant(0.75))
    return world.add("large", features=["a", "b"], needs_us=(5, 1_000_000, 10))


@pytest.mark.parametrize("features", [{"a": 1.0}, {"a": 1.0, "b": "x"}], ids=["missing", "wrong"])
@pytest.mark.usefixtures("large")
def test_no_stand_in_answers_a_wrong_question(server, features):
    """What a model refuses is refused when there is no time for it too, though its fallback would not have noticed."""
    with peer(server) as one:
        told = []
        for ask in (request, chunked):
            one.send(ask({**LATE_ASK, "features": features}, target="/predict/large"))
            told.append(one.reply())
        assert one.ask(chunked(LATE_ASK, "/predict/large")) == 200
    assert [reply[0] for reply in told] == [400, 400]
    assert told[0][2] == told[1][2]


def test_a_stand_in_that_gives_no_number_is_replaced(server, world):
    """A fallback's score that is NaN is nobody's answer: the next one of the ladder is asked, on both paths."""
    world.add("small", features=["a"], what=constant(float("nan")))
    world.add("large", features=["a"], needs_us=(5, 1_000_000, 10))
    ask = {"features": {"a": 1.0}, "deadline_ms": 50}
    with peer(server) as one:
        for send in (request, chunked):
            one.send(send(ask, target="/predict/large"))
            data = json.loads(one.reply()[2])
            assert (data["score"], data["degraded"]["by"]) == (0.25, "default")


def test_a_stand_in_answers_tensors_once(server, world):
    """An infer request that its model would answer late is scored and recorded by the fallback once."""
    small = world.add("small", features=["a"], what=constant(0.75))
    world.add("large", features=["a"], needs_us=(5, 1_000_000, 10))
    inputs = [{"name": "a", "shape": [1], "datatype": "FP32", "data": [1.0]}]
    with peer(server) as one:
        one.send(request({"inputs": inputs, "parameters": {"timeout": 50_000}}, target="/v2/models/large/infer"))
        status, _, body = one.reply()
    assert status == 200
    assert json.loads(body)["parameters"]["degraded"] == "fallback"
    assert small.calls == [1]
    assert len(world.records()) == 1


def test_stand_ins_keep_no_plan(server, world):
    """What is remembered of who stood in holds no version that is gone, nor the base that it reads."""
    ask = request({**BODY, "deadline_ms": 50}, target="/predict/laddered")
    with peer(server) as one:
        for _ in range(3):
            world.add("laddered", needs_us=(5, 1_000_000, 10))
            one.send(ask)
            assert json.loads(one.reply()[2])["model"] == "late"
        one.send(READYZ)  # whose answer follows the routes
        assert one.reply()[0] == 200
    gc.collect()
    plans = [each for each in gc.get_objects() if type(each) is ServingPlan and each.model == "laddered"]
    assert plans == [world.find_plan("laddered")]


def test_a_refusal_that_closes_is_not_repeated(server, world):
    """While a server stops, the last refusal of one connection says that it closes; one with more behind it does not."""
    scorer = world.scorers["net", 1]
    late = request({**BODY, "deadline_ms": 0.001}, target="/predict/net")
    with peer(server) as one, peer(server) as other:
        with held(scorer):
            one.send(NET)
            assert scorer.entered.wait(10)
            other.send(NET)
            wait_for(lambda: batcher(server).n_waiting == 1)
            server.server.should_exit = True
            wait_for(lambda: not server.server.servers or not server.server.servers[0].is_serving())
            time.sleep(0.05)
            one.send(late)
            other.send(late + NET)
            time.sleep(0.05)
        told = []
        for each in (one, other):
            replies = iter(each.reply, None)
            told.append([(status, headers.get("connection")) for status, headers, _ in replies])
    # What waits may be answered or, by a slow host, be refused.
    assert [connection for _, connection in told[0]] == [None, "close"]
    assert [connection for _, connection in told[1]] == [None, None, "close"]
    assert told[0][1][0] == told[1][1][0] == 504


def test_a_question_that_cannot_be_answered_ends_its_connection(server, world, monkeypatch):
    """Should telling an error fail, the connection is closed, and its client does not wait for ever."""

    def refusal(*_):
        raise RuntimeError("a mistake of our own")

    monkeypatch.setattr(server.native._door, "refusal", refusal, raising=False)
    world.scorers["net", 1].what = failing
    with peer(server) as one, peer(server) as other:
        one.send(NET)
        with contextlib.suppress(ConnectionResetError):
            assert one.reply() is None
        wait_for(lambda: server.n_connections == 1)
        assert other.ask(request(BODY)) == 200


def test_what_comes_behind_a_slow_body_has_just_come(server):
    """However many pieces a request came in before, the one behind it has its own time."""
    slow, ask = (request({**BODY, "deadline_ms": ms}, target="/predict/net") for ms in (60_000, 300))
    with peer(server) as one:
        for at in range(25):
            one.send(slow[6 * at : 6 * at + 6])
            time.sleep(0.005)
        time.sleep(0.4)
        one.send(slow[150:] + ask)
        assert [one.reply()[0] for _ in range(2)] == [200, 200]


def test_a_stall_that_is_over_is_nobodys_wait(server):
    """What was read late in a stall of the event loop says nothing of a request that comes after it."""
    ask = request({**BODY, "deadline_ms": 60}, target="/predict/net")

    def stall(loop):
        server.native._door.poll(loop)  # a byte is under way
        time.sleep(0.2)
        over.set()

    over = threading.Event()
    with peer(server) as one:
        assert one.ask(ask) == 200
        loop = server.native._door._wait._loop
        time.sleep(0.005)
        loop.call_soon_threadsafe(stall, loop)
        assert over.wait(10)
        time.sleep(0.05)
        assert one.ask(ask) == 200


def test_a_models_own_deadline_is_its_stand_ins(server, world):
    """A fallback that takes longer than the deadline declared of the model that was asked does not answer on either path."""
    world.add("bounded", needs_us=(5, 1_000_000, 10))
    with peer(server) as one:
        for send in (request, chunked):
            assert one.ask(send(BODY, target="/predict/bounded")) == 200
        world.add("late", needs_us=(5, 30_000, 10))
        for send in (request, chunked):
            assert one.ask(send(BODY, target="/predict/bounded")) == 504
