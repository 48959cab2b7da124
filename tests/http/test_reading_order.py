"""Who asks near-realtime models alone is read after the others, and a long batch is told with pauses for them."""

from __future__ import annotations

import time
from functools import partial

import numpy as np
import pytest
from tests.http.test_overload import CURVE, MS, ask_of, peers, stalled
from tests.http.test_poller import eventually, poller_of
from tests.http.test_protocol import Running, peer, request
from tests.support.seats import Told, plan_of, seat
from tests.support.tiers import BODY, World, held
from tiercel._hot.lines import Lines

from tiercel.settings import ModelSettings, ServerSettings

# What these tests call on the loop comes before what they send next: a poller that waits awake would read that first.
SETTINGS = ServerSettings(max_rows=200, max_body_bytes=200_000, max_connections=500, idle_timeout_s=60, busy_poll_us=0)

#: Requests in a row after which a connection can wait, and what is read of such ones between two looks at the others.
PATIENT, AT_ONCE = 32, 16
#: The same for who has never asked another kind.
SOON = 4
#: Reads of a turn that has come to those who can wait, until the event loop goes on; what is read between comes on top.
A_TURN, BETWEEN = 1024, 64
#: A row more costs a batch of these next to nothing.
CHEAP = ((1, 30, 50), (8, 40, 60), (64, 60, 100))


@pytest.fixture
def world(tmp_path, base):
    """Queued models, `net`, of the least cost a row `cheap`, and `laddered`; and in realtime its stand-in, `late`."""
    world = World(tmp_path, base, [ModelSettings("laddered", fallback="late")])
    world.add("late")
    world.add("laddered", tier="near-realtime", needs_us=(5, 100, 10), curve=CURVE)
    world.add("net", tier="near-realtime", needs_us=(5, 100, 10), curve=CURVE)
    world.add("cheap", tier="near-realtime", needs_us=(5, 30, 1), curve=CHEAP)
    yield world
    world.close()


@pytest.fixture
def server(world):
    with Running(world, SETTINGS, world.ids, world.counters, world.declared) as running:
        yield running
        for scorer in world.scorers.values():
            scorer.gate.set()


def make_patient(server, connections):
    """Have them be read after the others."""
    for one in connections:
        for _ in range(PATIENT + 1):
            assert one.ask(ask_of("net")) == 200
    assert eventually(lambda: poller_of(server).n_later == len(connections))


def test_who_asks_only_queued_models_can_wait(server):
    """So many requests in a row show it; one of another kind, and the connection is read with the others at once."""
    with peer(server) as one, peer(server) as mixed:
        for _ in range(3):
            make_patient(server, [one])
            assert one.ask(ask_of("late")) == 200
            assert eventually(lambda: poller_of(server).n_later == 0)
            assert one.ask(ask_of("late")) == 200
        for at in range(3 * PATIENT):
            assert mixed.ask(ask_of("late" if at % PATIENT == 0 else "net")) == 200
        assert poller_of(server).n_later == 0
        make_patient(server, [one])
        one.send(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")  # the general path's, and back
        assert one.reply()[0] == 200
        assert poller_of(server).n_later == 0
        assert one.ask(ask_of("net")) == 200
        make_patient(server, [one])
    assert eventually(lambda: server.n_connections == 0)
    assert len(poller_of(server)) == 0


def test_who_has_asked_nothing_else_is_soon_believed(server):
    """A new connection shows it with a few requests; one that has asked another kind, with as many as ever."""
    with peer(server) as one:
        for _ in range(SOON - 1):
            assert one.ask(ask_of("net")) == 200
        assert poller_of(server).n_later == 0
        for _ in range(2):
            assert one.ask(ask_of("net")) == 200
        assert eventually(lambda: poller_of(server).n_later == 1)
        assert one.ask(ask_of("late")) == 200
        for _ in range(PATIENT - 1):
            assert one.ask(ask_of("net")) == 200
        assert poller_of(server).n_later == 0
        # What the general path answered may have been of any kind.
        assert one.ask(ask_of("late")) == 200
        one.send(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert one.reply()[0] == 200
        for _ in range(PATIENT - 1):
            assert one.ask(ask_of("net")) == 200
        assert poller_of(server).n_later == 0


class Order:
    """In which order requests are looked at: late ones of queued models by their number, others as "late".

    At the request of number `at`, `then()` is called, in the middle of reading.
    """

    def __init__(self, server, world, at=None, then=None):
        self.seen = []
        door, late = server.native._door, server.native._door.late

        def note(asked, *rest):
            number = asked.budget_us // 10
            self.seen.append(number)
            if number == at:
                then()
            return late(asked, *rest)

        door.late = note
        world.scorers["late", 1].what = lambda rows: self.seen.append("late") or np.zeros(len(rows))

    @staticmethod
    def ask(number):
        """It is late when it is read, and no other has the same deadline: each is refused in words of its own."""
        return ask_of("net", (10 * number) / 1000)


def test_others_are_read_first(server, world):
    """Of those who wait to be read, who cannot wait comes first, though it came last."""
    with peers(server, 40) as many, peer(server) as one:
        make_patient(server, many)
        assert one.ask(ask_of("late")) == one.ask(ask_of("late")) == 200
        order = Order(server, world)
        with stalled(server, 100):
            for number, each in enumerate(many, 1):
                each.send(Order.ask(number))
            one.send(ask_of("late"))
        assert one.reply()[0] == 200
        assert [each.reply()[0] for each in many] == [504] * 40
        assert order.seen == ["late", *range(1, 41)]


def test_who_comes_meanwhile_is_read_between(server, world):
    """Of those who can wait so many are read, and then whoever of the others has come since."""
    with peers(server, 40) as many, peer(server) as one:
        make_patient(server, many)
        assert one.ask(ask_of("late")) == one.ask(ask_of("late")) == 200
        path = server.native._path

        def then():
            one.send(ask_of("late"))
            time.sleep(0.02)
            path.read_between()  # not while something is read: it stands in the buffer

        order = Order(server, world, 3, then)
        with stalled(server, 100):
            for number, each in enumerate(many, 1):
                each.send(Order.ask(number))
        assert one.reply()[0] == 200
        assert [each.reply()[0] for each in many] == [504] * 40
        at = order.seen.index("late")
        assert AT_ONCE - 1 <= at <= AT_ONCE  # the byte that tells how long reading takes stands among them
        assert [each for each in order.seen if each != "late"] == list(range(1, 41))


def test_others_are_read_while_a_batch_is_told(server, world):
    """A request that comes while a batch is answered is itself answered before the rest of that batch."""
    n_told, n_late, late = [], [], world.scorers["late", 1]
    with peers(server, 64) as many, peer(server) as one:
        assert many[0].ask(ask_of("net")) == 200  # few batches were scored: the next ones are on a thread
        assert one.ask(ask_of("late")) == one.ask(ask_of("late")) == 200
        lines = server.native._door.lines(world.models["net"][0][1])
        read_between, n_before = lines.between, len(late.calls)

        def between():
            if not n_told:
                one.send(ask_of("late"))
                time.sleep(0.02)
            read_between()
            n_told.append(world.counters.get("near_realtime_requests"))
            n_late.append(len(late.calls) - n_before)

        lines.between = between
        scorer = world.scorers["net", 1]
        with held(scorer):
            many[0].send(ask_of("net", 5000))
            assert scorer.entered.wait(10)
            for each in many[1:]:
                each.send(ask_of("net", 5000))
            assert eventually(lambda: lines.n_rows == len(many) - 1)
        assert {each.reply()[0] for each in many} == {200}
        assert one.reply()[0] == 200
        assert n_late[0] == 1
        assert n_told[1] - n_told[0] == AT_ONCE


@pytest.mark.parametrize("is_patient", [False, True])
def test_who_leaves_while_it_waits_is_let_go(server, world, is_patient):
    """A polled connection that ends while its question is in a queue withdraws it; nobody else's is."""
    with peer(server) as gone, peer(server) as one:
        assert gone.ask(ask_of("net")) == gone.ask(ask_of("net")) == one.ask(ask_of("net")) == 200
        if is_patient:
            make_patient(server, [gone])
        lines, scorer = server.native._door.lines(world.models["net"][0][1]), world.scorers["net", 1]
        with held(scorer):
            one.send(ask_of("net", 5000))
            assert scorer.entered.wait(10)
            gone.send(ask_of("net", 5000))
            assert eventually(lambda: lines.n_rows == 1)
            gone.connection.close()
            assert eventually(lambda: lines.n_rows == 0)
            assert eventually(lambda: server.n_connections == 1)
        assert one.reply()[0] == 200
        assert len(poller_of(server)) <= 1


@pytest.mark.parametrize("model", ["net", "laddered"])
def test_every_queue_pauses(server, world, model):
    """Also that of a model that somebody can stand in for."""
    with peer(server) as one:
        assert one.ask(ask_of(model)) == 200
    assert server.native._door.lines(world.models[model][0][1]).between is not None


def test_nobody_is_read_in_the_middle_of_its_own_bytes(server, world):
    """Queues are looked after while what a connection sent early is answered: what it sends then is not read into that.

    `one` waits for its question (A) with another (B) behind it. When A is answered, B is taken from the buffer, and before
    that the batch of the others is found to be done and told. In its pause C comes.
    """
    net, cheap, late = (world.scorers[name, 1] for name in ("net", "cheap", "late"))
    with peers(server, 2 * AT_ONCE + 8) as many, peer(server) as one:
        for each in many:
            assert each.ask(ask_of("net", 5000)) == 200
        for _ in range(3):
            assert one.ask(ask_of("cheap", 5000)) == 200
        lines = server.native._door.lines(world.models["net"][0][1])
        read_between, n_late = lines.between, []

        def between():
            if not n_late:
                one.send(ask_of("late"))  # C
                time.sleep(0.02)
            read_between()
            n_late.append(len(late.calls))

        n_before = len(late.calls)
        loop = next(iter(server.server.server_state.connections)).loop
        for scorer in (net, cheap):
            scorer.entered.clear()
            scorer.gate.clear()
        one.send(ask_of("cheap", 5000))  # A
        assert cheap.entered.wait(10)
        loop.call_soon_threadsafe(time.sleep, 0.1)  # so that all of the others are in one batch
        time.sleep(0.02)
        for each in many:
            each.send(ask_of("net", 5000))
        assert net.entered.wait(10)
        one.send(ask_of("late"))  # B
        time.sleep(0.1)

        def both_end():  # A's batch first; neither is looked at before this returns
            cheap.gate.set()
            time.sleep(0.05)
            net.gate.set()
            time.sleep(0.05)

        lines.between = between
        loop.call_soon_threadsafe(both_end)
        assert {each.reply()[0] for each in many} == {200}
        assert [one.reply()[0] for _ in range(3)] == [200] * 3
        assert len(late.calls) == n_before + 2
        assert one.ask(ask_of("late")) == 200


def test_a_turn_has_an_end(server, world):
    """However many can wait, and however many others come between, the event loop goes on after a bounded number of reads."""
    with peers(server, 400) as many, peers(server, 80) as first:
        make_patient(server, many)
        for one in first:
            assert one.ask(ask_of("late")) == one.ask(ask_of("late")) == 200
        loop = next(iter(server.server.server_state.connections)).loop
        order, n_seen, asks_again = Order(server, world), [], iter(range(10_000))

        def what(rows):
            order.seen.append("late")
            at = next(asks_again)
            if at == 0:
                loop.call_soon(lambda: n_seen.append(len(order.seen)))
            if not n_seen:  # this client asks again at once
                first[at % len(first)].send(ask_of("late"))
            return np.zeros(len(rows))

        world.scorers["late", 1].what = what
        with stalled(server, 200):
            for number, each in enumerate(many, 1):
                each.send(Order.ask(number % 90 + 1))
            for one in first:
                one.send(ask_of("late"))
        assert [each.reply()[0] for each in many] == [504] * len(many)
        assert eventually(lambda: n_seen)
        assert n_seen[0] <= len(first) + A_TURN + BETWEEN + AT_ONCE


def test_pauses_count_for_who_is_told_after_them():
    """Whoever a pause made late is counted as late."""
    for pause_s, n_late in ((0.0, 0), (0.3, 48 - AT_ONCE)):
        told, lines = Told(), Lines([], [], [])
        lines.set_pace([10.0] * 65, 1.0, 0, 64, 10_000, 640)
        lines.is_open = lines.is_woken = True
        lines.between = partial(time.sleep, pause_s)
        now_ns, plan = time.monotonic_ns(), plan_of()
        for k in range(48):
            assert lines.take(seat(plan, [[k]], now_ns + 200 * MS, told), now_ns)
        parts = lines.cut(now_ns)
        lines.gather(parts, 1)
        lines.answer(parts, np.zeros((48, 2)), now_ns)
        assert lines.late == n_late


def test_lines_pause_after_each_few_answers():
    """Between the answers of a batch, not after each and not at its end alone; with nobody to call they do not."""
    plan = plan_of()
    for is_called in (False, True):
        told, pauses = Told(), []
        lines = Lines([], [], [])
        lines.set_pace([10.0] * 65, 1.0, 0, 64, 10_000, 640)
        lines.is_open = lines.is_woken = True
        if is_called:
            lines.between = partial(_note, told, pauses)
        now_ns = time.monotonic_ns()
        for k in range(40):
            assert lines.take(seat(plan, [[k]], now_ns + 10**10, told), now_ns)
        parts = lines.cut(now_ns)
        assert len(lines.gather(parts, 1)) == 40
        assert lines.answer(parts, np.arange(80.0).reshape(40, 2), now_ns) == []
        assert len(told.found) == 40
        assert pauses == ([AT_ONCE, 2 * AT_ONCE] if is_called else [])


def _note(told, pauses):
    pauses.append(len(told.found))


@pytest.mark.parametrize(
    ("model", "n_rows", "is_answered_inline", "statuses"),
    [
        ("cheap", 1, True, {200}),
        ("cheap", 1, False, {200, 503}),
        ("cheap", 50, True, {200, 503}),
        ("net", 1, True, {200, 503}),
    ],
)
def test_what_costs_its_batch_next_to_nothing_makes_no_room(server, model, n_rows, is_answered_inline, statuses):
    """Beside inline requests nobody stands aside, so refusing a row that costs less than the refusal helps nobody."""
    entities = BODY["entities"] if n_rows == 1 else {**BODY["entities"], "tailnum": ["N1"] * n_rows}
    question = request({**BODY, "entities": entities, "deadline_ms": 400}, target=f"/predict/{model}")
    aside = server.native._path.aside
    with peers(server, 24) as many:
        assert many[0].ask(question) == 200
        with stalled(server, 160):
            for each in many:
                each.send(question)
            aside.inline_ns = time.monotonic_ns() if is_answered_inline else time.monotonic_ns() - 10_000 * MS
        assert {each.reply()[0] for each in many} == statuses
