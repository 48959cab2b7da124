"""More requests than can be answered: a share is refused so that the others are in time, and who was refused is read later."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time

import numpy as np
import pytest
from tests.http.test_protocol import Running, peer, request
from tests.support.tiers import BODY, World, held
from tiercel._hot.aside import Aside

from tiercel.models.ir import Linear
from tiercel.settings import ModelSettings, ServerSettings

# What these tests call on the loop comes before what they send next: a poller that waits awake would read that first.
SETTINGS = ServerSettings(max_rows=200, max_body_bytes=200_000, max_connections=100, idle_timeout_s=20, busy_poll_us=0)
CURVE = ((1, 100, 150), (8, 200, 300), (64, 900, 1200))
MS = 1_000_000
NOW = 10**12
QUEUED, INLINE = True, False


@pytest.fixture
def world(tmp_path, base):
    """A model `net` in near-realtime and one in realtime, `late`, which stands in for `laddered`."""
    world = World(
        tmp_path,
        base,
        [ModelSettings("laddered", fallback="late"), ModelSettings("readied", fallback="late", default_score=0.5)],
    )
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


def ask_of(model, deadline_ms=None):
    body = BODY if deadline_ms is None else {**BODY, "deadline_ms": deadline_ms}
    return request(body, target=f"/predict/{model}")


@contextlib.contextmanager
def stalled(server, stall_ms):
    """What is sent within waits in its socket for the rest of so long, and somewhat longer."""
    door, begun = server.native._door, threading.Event()

    def stall(loop):
        door.poll(loop)  # a byte is under way, that tells how long
        begun.set()
        time.sleep(stall_ms / 1000)

    with peer(server) as one:
        assert one.ask(ask_of("net")) == 200  # and so there is a door's wait, and its loop
    loop = door._wait._loop
    time.sleep(0.003)
    loop.call_soon_threadsafe(stall, loop)
    assert begun.wait(10)
    yield


@contextlib.contextmanager
def peers(server, n):
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(peer(server)) for _ in range(n)]


class Connections:
    """Connections that stand aside, and come back."""

    def __init__(self):
        self.back = []

    def make(self, name):
        back = self.back

        class One:
            def come_back(self):
                back.append(name)

        return One()


class Loop:
    """An event loop whose timers never fire."""

    def call_later(self, _delay, _call):
        return self

    def cancel(self):
        pass


def spent(aside):
    """An Aside in an overload that has gone on for a while: no refusal is free."""
    while not aside.is_too_much(time.monotonic_ns(), 0):
        pass
    return aside


def test_no_more_are_refused_than_reading_is_behind():
    """With reading behind by twice what the deadlines allow, every other request is refused; none while it keeps up."""
    aside = Aside()
    assert not aside.sheds(QUEUED, 1000 * MS, NOW)
    aside.note(QUEUED, 100 * MS, NOW)
    assert not any(aside.sheds(QUEUED, 66 * MS, NOW) for _ in range(100))
    assert [aside.sheds(QUEUED, 132 * MS, NOW) for _ in range(100)] == [False, True] * 50
    assert sum(aside.sheds(QUEUED, 660 * MS, NOW) for _ in range(1000)) == pytest.approx(900, abs=2)
    assert not any(aside.sheds(INLINE, 50 * MS, NOW) for _ in range(100))


def test_a_model_that_takes_long_is_not_read_too_late():
    """Unread may be waited what is left when a queued request's own model has had its time, twice."""
    aside = Aside()
    aside.note(QUEUED, 100 * MS, NOW, 10 * MS)  # it leaves more than two thirds
    assert not any(aside.sheds(QUEUED, 66 * MS, NOW) for _ in range(100))
    aside.note(QUEUED, 100 * MS, NOW, 30 * MS)
    assert not any(aside.sheds(QUEUED, 40 * MS, NOW) for _ in range(100))
    assert [aside.sheds(QUEUED, 80 * MS, NOW) for _ in range(100)] == [False, True] * 50
    aside.note(QUEUED, 100 * MS, NOW, 80 * MS)  # a quarter of the deadline, though that leaves too little
    assert not any(aside.sheds(QUEUED, 25 * MS, NOW) for _ in range(100))
    assert [aside.sheds(QUEUED, 50 * MS, NOW) for _ in range(100)] == [False, True] * 50


def test_queued_requests_make_room_for_inline_ones():
    """Where realtime requests have deadlines, near-realtime ones are refused long before those would be."""
    aside = Aside()
    aside.note(QUEUED, 100 * MS, NOW)
    aside.note(INLINE, 10 * MS, NOW)
    assert any(aside.sheds(QUEUED, 2 * MS, NOW) for _ in range(100))
    assert not any(aside.sheds(INLINE, 2 * MS, NOW) for _ in range(100))
    assert any(aside.sheds(INLINE, 5 * MS, NOW) for _ in range(100))
    # Of queued ones a half is read at 2.5 ms; at twice that, where inline ones are half late, no quarter but a sixteenth.
    for wait_ns, kept in ((2_500_000, 500), (5 * MS, 62)):
        assert sum(not aside.sheds(QUEUED, wait_ns, NOW) for _ in range(1000)) == pytest.approx(kept, abs=2)
    # A deadline that nobody has named for a while counts no more.
    later = NOW + 2000 * MS
    aside.note(QUEUED, 100 * MS, later)
    assert not any(aside.sheds(QUEUED, 5 * MS, later) for _ in range(100))


def test_who_is_read_last_makes_no_room_for_who_is_read_first():
    """A near-realtime request on a connection that is read after the others is refused for its own deadline alone."""
    aside = Aside()
    aside.note(QUEUED, 100 * MS, NOW)
    aside.note(INLINE, 10 * MS, NOW)
    assert not any(aside.sheds(QUEUED, 66 * MS, NOW, True) for _ in range(100))
    assert [aside.sheds(QUEUED, 132 * MS, NOW, True) for _ in range(100)] == [False, True] * 50
    while not aside.is_too_much(NOW, 0):
        pass
    aside.inline_ns = NOW
    assert not aside.is_too_much(NOW, 0)
    assert aside.is_too_much(NOW, 0, True)  # nobody's inline request comes on that


def test_nobody_stands_aside_where_others_are_answered_inline():
    """Beside inline requests no connection waits for its turn: its next request may be one of those."""
    aside = Aside()
    while not aside.is_too_much(NOW, 0):
        pass
    aside.inline_ns = NOW
    assert not any(aside.is_too_much(NOW + 100 * MS, 20 * MS) for _ in range(100))
    assert aside.is_too_much(NOW + 2000 * MS, 0)


def test_who_was_refused_stands_aside_where_inline_requests_are_read_too_late():
    """Thousands of connections, each read in turn, would all be read too late: some are not read, so that others are in time."""
    aside = Aside()
    aside.poll(NOW, 8 * MS)
    while not aside.is_too_much(NOW, 0):
        pass
    aside.inline_ns = NOW
    assert not any(aside.is_too_much(NOW, 50 * MS) for _ in range(100))  # they have all the time there is
    aside.note(INLINE, 10 * MS, NOW)
    assert not any(aside.is_too_much(NOW, 5 * MS) for _ in range(100))
    assert all(aside.is_too_much(NOW, 8 * MS) for _ in range(100))
    aside.n_read = 320
    aside.poll(NOW, 8 * MS)  # one refusal for 32 that are read is free there too
    assert sum(aside.is_too_much(NOW, 8 * MS) for _ in range(100)) == 90
    aside.note(INLINE, 1 * MS, NOW)  # one who cannot wait makes nobody else wait
    assert not any(aside.is_too_much(NOW, 5 * MS) for _ in range(100))
    aside.note(INLINE, 40 * MS, NOW + 1100 * MS)
    aside.inline_ns = NOW + 1100 * MS
    assert not any(aside.is_too_much(NOW + 1100 * MS, 25 * MS) for _ in range(100))
    assert aside.is_too_much(NOW + 1100 * MS, 35 * MS)


def test_who_was_refused_comes_back_in_turn():
    """While reading is behind, one comes back for so many requests that are read, or for so much time; all soon after it."""
    aside, connections = Aside(), Connections()
    aside.poll(NOW, 50 * MS)
    for name in range(64):  # as many as may come back after a quiet time
        aside.add(connections.make(name), Loop())
    aside.poll(NOW, 50 * MS)
    assert connections.back == list(range(64))
    connections.back.clear()
    for name in range(100):
        aside.add(connections.make(name), Loop())
    aside.poll(NOW, 50 * MS)
    assert connections.back == []
    aside.n_read = 320
    aside.poll(NOW, 50 * MS)
    assert connections.back == list(range(10))
    aside.poll(NOW + 10 * MS, 50 * MS)
    assert connections.back == list(range(15))
    aside.poll(NOW + 11 * MS, 0)
    assert connections.back == list(range(65))
    aside.close()
    assert connections.back == list(range(100))
    assert len(aside) == 0


def test_a_share_is_refused(server, world):
    """A near-realtime server that is behind refuses a share with 503 and when to come again, and answers the others."""
    with peers(server, 24) as many:
        assert many[0].ask(ask_of("net", 400)) == 200
        with stalled(server, 160):
            for each in many:
                each.send(ask_of("net", 400))
        found = [each.reply() for each in many]
    statuses = [status for status, _, _ in found]
    assert set(statuses) == {200, 503}
    refused = next(each for each in found if each[0] == 503)
    assert json.loads(refused[2])["code"] == "overloaded"
    assert "retry-after" in refused[1]
    assert world.counters.get("refused_capacity") == statuses.count(503)
    assert server.native.counts["handed_on"] == 0


def test_a_refusal_is_written_once_for_each_sort(server):
    """Whoever is refused between, the same words are said again to others like the first, without writing them anew."""
    door, written = server.native._door, []
    door.late = lambda asked, *rest, write=door.late: written.append(asked.plan.model) or write(asked, *rest)
    with peers(server, 12) as many:
        with stalled(server, 120):
            for at, each in enumerate(many):
                each.send(ask_of("net" if at % 2 else "late", 50))
        assert [each.reply()[0] for each in many] == [504] * 12
    assert sorted(written) == ["late", "net"]


@pytest.mark.parametrize(
    ("scorer", "n_rows", "statuses"), [("compiled", 1, {200}), ("compiled", 50, {200, 503}), ("slow", 1, {200, 503})]
)
def test_a_quick_inline_model_answers_rather_than_refuse(server, world, base, scorer, n_rows, statuses):
    """Where an answer takes no longer than a refusal, nobody who is in time makes room; where it takes longer, a share does."""
    n = len(base.schema.features)
    weights = Linear(weights=np.zeros((1, n)), intercept=np.zeros(1), single_precision=False)
    world.add("inline", needs_us=(1, 2, 1), scorer=weights.compile() if scorer == "compiled" else None)
    del world.scorers["inline", 1]  # it holds nobody
    rows = BODY if n_rows == 1 else {**BODY, "entities": {**BODY["entities"], "tailnum": ["N1"] * n_rows}}
    question = request({**rows, "deadline_ms": 400}, target="/predict/inline")
    with peers(server, 24) as many:
        assert [each.ask(ask_of("inline", 400)) for each in many] == [200] * 24
        with stalled(server, 160):
            for each in many:
                each.send(question)
        assert {each.reply()[0] for each in many} == statuses


@pytest.mark.parametrize("kind", ["net", "late"])
def test_time_in_the_socket_counts(server, world, kind):
    """Whoever has waited unread for all of its deadline is refused on the compiled path; without one it is answered."""
    with peers(server, 4) as many, peers(server, 4) as others:
        with stalled(server, 120):
            for each, other in zip(many, others, strict=True):
                each.send(ask_of(kind, 50))
                other.send(ask_of("late"))
        for each in many:
            status, _, body = each.reply()
            assert (status, json.loads(body)["code"]) == (504, "deadline_exceeded")
        assert [other.reply()[0] for other in others] == [200] * 4
        assert world.counters.get("refused_deadline") == 4
        # Who comes after the stall has just come.
        assert [each.ask(ask_of("late", 500)) for each in many] == [200] * 4
    assert server.native.counts["handed_on"] == 0


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel stamps what comes on Linux alone")
def test_a_stall_that_no_probe_saw_counts(server, world):
    """The first requests after it have waited, though nothing said so when it began."""
    begun = threading.Event()

    def stall():
        begun.set()
        time.sleep(0.2)

    with peers(server, 3) as many:
        for each in many:
            assert [each.ask(ask_of("late")) for _ in range(2)] == [200, 200]  # read by the poller now
        loop = next(iter(server.server.server_state.connections)).loop
        time.sleep(0.05)  # a probe that was under way is back
        loop.call_soon_threadsafe(stall)
        assert begun.wait(10)
        many[0].send(ask_of("late", 20))
        many[1].send(ask_of("late", 5000))
        status, _, body = many[0].reply()
        assert (status, json.loads(body)["code"]) == (504, "deadline_exceeded")
        assert many[1].reply()[0] == 200
        assert many[2].ask(ask_of("late", 150)) == 200  # it has just come
    assert server.native.counts["handed_on"] == 0


@pytest.mark.parametrize("tier", ["realtime", "near-realtime"])
def test_who_is_too_late_for_a_stand_in_too_is_refused_at_once(server, world, tier):
    """In the words of the general path, and without it: it would hold up those who come next until they are late as well."""
    world.add("laddered", tier=tier, needs_us=(5, 2000, 10), curve=CURVE if tier == "near-realtime" else None)
    world.add("readied", tier=tier, needs_us=(5, 2000, 10), curve=CURVE if tier == "near-realtime" else None)
    world.add("late", needs_us=(5, 100, 10))  # its stand-in
    late = {**BODY, "deadline_ms": 0.001}
    wrong = {**late, "features": {**BODY["features"], "rain": "much"}}

    def chunked(body):
        content = json.dumps(body).encode()
        head = b"POST /predict/laddered HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        return head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(content), content)

    with peer(server) as one:
        told = []
        for sent in (request(late, target="/predict/laddered"),) * 2 + (chunked(late),):
            one.send(sent)
            status, _, body = one.reply()
            assert status == 504
            told.append(json.loads(body))
        assert told[0] == told[1] == told[2]
        assert "(fallback, late:1)" in told[0]["error"]
        assert world.counters.get("refused_deadline") == 3
        assert server.native.counts["handed_on"] == 1  # the one of a shape that it takes
        assert one.ask(request(wrong, target="/predict/laddered")) == one.ask(chunked(wrong)) == 400
        one.send(request(late, target="/predict/readied"))
        status, _, body = one.reply()  # what exists already is never too late
        assert (status, json.loads(body)["degraded"]["by"]) == (200, "default")
        assert one.ask(ask_of("laddered", 5000)) == 200


def test_a_stand_in_answers_what_makes_room(server, world):
    """Where somebody can stand in, who has to make room is answered by it and told why; a wrong question is not."""
    world.add("laddered", tier="near-realtime", needs_us=(5, 100, 10), curve=CURVE)
    wrong = request(
        {**BODY, "features": {**BODY["features"], "rain": "much"}, "deadline_ms": 400}, target="/predict/laddered"
    )
    with peers(server, 24) as many, peers(server, 24) as others:
        assert many[0].ask(ask_of("laddered", 400)) == 200
        with stalled(server, 200):
            for each, other in zip(many, others, strict=True):
                each.send(ask_of("laddered", 400))
                other.send(wrong)
        found = [each.reply() for each in many]
        assert {status for status, _, _ in found} == {200}
        assert "overloaded" in {json.loads(body).get("degraded", {}).get("reason") for _, _, body in found}
        assert {other.reply()[0] for other in others} == {400}


def test_who_stands_aside_is_read_again(server):
    """A connection that was put aside is answered in its turn, what it sent meanwhile too, and one that leaves is let go."""
    aside = server.native._path.aside
    late = ask_of("net", 0.001)
    with peer(server) as one, peer(server) as gone:
        assert one.ask(ask_of("net")) == 200
        for _ in range(20):
            spent(aside)
            assert one.ask(late) == 504
            assert one.ask(ask_of("net")) == 200
        spent(aside)
        assert gone.ask(late) == 504
        gone.connection.close()
        assert [one.ask(ask_of("late")) for _ in range(5)] == [200] * 5


def test_a_stopping_server_reads_who_stands_aside(server):
    """Shutting down calls everybody back: a request on its way is answered, and told that it was the last."""
    late = ask_of("net", 0.001)
    with peer(server) as one:
        spent(server.native._path.aside)
        assert one.ask(late) == 504
        server.server.should_exit = True
        one.send(ask_of("net"))
        assert one.reply()[0] == 200
        assert one.reply() is None


def test_a_slow_inline_model_is_asked_as_often_as_others_can_wait(server, world):
    """Each answer of a slowed model is in time; so many in a row would make others late, and its stand-in takes some."""
    scorer = world.add("laddered", needs_us=(5, 2000, 10), takes_s=0.008)
    ask = ask_of("laddered", 40)
    with peer(server) as one:
        told = []
        while "overloaded" not in told:
            assert len(told) < 200  # on a busy machine it is asked less often
            one.send(ask)
            status, _, body = one.reply()
            assert status == 200
            told.append(json.loads(body).get("degraded", {}).get("reason"))
        assert told[0] is None
        assert len(scorer.calls) < len(told)
        time.sleep(0.1)
        one.send(ask)
        assert "degraded" not in json.loads(one.reply()[2])


def test_what_one_has_waited_others_wait_too(server, world):
    """After a stall a slow model leaves the others to its stand-in until they have caught up; one that was idle answers."""
    second_us, wait_ns = 1_000_000, 300 * MS
    world.add("laddered", needs_us=(5, 2000, 10), takes_s=0.05)
    plan = world.models["laddered"][0][1]
    assert not plan.is_behind(1, second_us, wait_ns)
    for _ in range(200):  # a busy machine may take so long between the two that nothing is left of it
        with peer(server) as one:
            assert one.ask(ask_of("laddered")) == 200
        if plan.is_behind(1, second_us, wait_ns):
            break
    else:
        pytest.fail("whoever comes after a stall is not sent to the stand-in")
    assert not plan.is_behind(1, second_us, 0)


def test_the_general_path_looks_at_that_too(server, world):
    """A request of another shape meets the same choice; where nobody can stand in after all, the model answers."""
    world.add("laddered", needs_us=(5, 2000, 10), takes_s=0.008)

    def chunked(model):
        content = json.dumps({**BODY, "deadline_ms": 40}).encode()
        head = f"POST /predict/{model} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        return head.encode() + b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content)

    with peer(server) as one:
        told = []
        while "overloaded" not in told:
            assert len(told) < 200
            one.send(chunked("laddered"))
            status, _, body = one.reply()
            assert status == 200
            told.append(json.loads(body).get("degraded", {}).get("reason"))
        world.remove("late", 1)
        world.route()
        assert {one.ask(chunked("laddered")) for _ in range(6)} == {200}


def test_who_can_leave_does_not_wait_for_a_batch(server, world):
    """A batch that does not come back in time costs nobody its deadline who has a stand-in."""
    scorer = world.add("laddered", tier="near-realtime", needs_us=(5, 100, 10), curve=CURVE)
    ask = ask_of("laddered", 2000)
    with peer(server) as one, peer(server) as two:
        assert one.ask(ask) == 200
        # On a busy machine the loop wakes up late.
        server.native._path.socket_peak_ns = server.native._path.queue._wait.peak_ns = 500 * MS
        with held(scorer):
            one.send(ask)
            assert scorer.entered.wait(10)
            two.send(ask)
            for each in (one, two):
                told = json.loads(each.reply()[2])
                assert (told["model"], told["degraded"]["reason"]) == ("late", "deadline")
        assert one.ask(ask_of("late")) == 200
