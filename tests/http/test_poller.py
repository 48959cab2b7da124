"""Connections are read by the poller from their second request on: nothing about them may differ, and nothing may stay behind."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import resource
import socket
import struct
import threading
import time
from functools import partial

import numpy as np
import pytest
from tests.http.test_app import FixedEngine
from tests.http.test_protocol import GOOD, LIMITS, LIVEZ, Peer, Running, peer, request

from tiercel.http.native import NativeHttp
from tiercel.settings import ServerSettings

# What these tests call on the loop comes before what they send next: a poller that waits awake would read that first.
ROOMY = ServerSettings(
    max_rows=100, max_connections=3000, header_timeout_s=10, body_timeout_s=10, idle_timeout_s=30, busy_poll_us=0
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return FixedEngine(tmp_path_factory.mktemp("features"))


@pytest.fixture(scope="module")
def running(engine):
    with Running(engine, ROOMY) as server:
        yield server


def eventually(what):
    """Whether something comes true within a few seconds."""
    for _ in range(500):
        if what():
            return True
        time.sleep(0.01)
    return False


def poller_of(running):
    return running.native._path.poller


def only(running):
    """The one connection that lives."""
    assert eventually(lambda: running.n_connections == 1)
    (found,) = running.server.server_state.connections
    return found


def test_the_poller_reads_from_the_second_request_on(running):
    """The transport brings the first request, the poller the others, and again after the general path had the connection."""
    assert eventually(lambda: running.n_connections == 0)
    with peer(running) as one:
        connection = only(running)
        assert not connection.is_polled
        for _ in range(3):
            assert one.ask(GOOD) == 200
            assert eventually(lambda: connection.is_polled)  # the reply is out before the poller has it
        one.send(LIVEZ)
        assert one.reply()[0] == 200
        assert not connection.is_polled
        assert one.ask(GOOD) == 200
        assert eventually(lambda: connection.is_polled)
        assert one.ask(GOOD) == 200
    assert eventually(lambda: running.n_connections == 0)


@pytest.mark.parametrize("how", ["close", "half", "reset", "reset unread", "half after part"])
def test_every_way_to_go_is_noticed(running, how):
    """The poller only sees that something came; that the peer ended, or is gone, the transport then finds out."""
    assert eventually(lambda: running.n_connections == 0)
    lost = running.native.counters.get("disconnections")
    with running.connect() as connection:
        one = Peer(connection)
        assert one.ask(GOOD) == one.ask(GOOD) == 200
        assert len(poller_of(running)) == 1
        if how == "half":
            one.send(GOOD + GOOD)
            connection.shutdown(socket.SHUT_WR)
            assert one.statuses() == [200, 200]
        elif how == "half after part":
            one.send(GOOD + GOOD[:-3])
            connection.shutdown(socket.SHUT_WR)
            assert one.statuses() == [200]
        elif how.startswith("reset"):
            if how == "reset unread":
                one.send(GOOD * 3)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert eventually(lambda: running.n_connections == 0)
    assert eventually(lambda: running.native.counters.get("disconnections") == lost + 1)
    assert len(poller_of(running)) == 0


def test_descriptors_that_are_used_again(running):
    """Connections come and go in any order, so that their descriptors are others' soon: each gets its own answers."""
    chance = random.Random(5)
    opened = running.native.counters.get("connections")
    with contextlib.ExitStack() as stack:
        peers = []
        for turn in range(1500):
            if peers and (len(peers) > 20 or chance.random() < 0.4):
                one, kind = peers.pop(chance.randrange(len(peers)))
                if kind == 0:
                    one.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                elif kind == 1:
                    one.send(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                    assert one.statuses() == [200]
                one.connection.close()
            else:
                one = Peer(stack.enter_context(running.connect()))
                peers.append((one, turn % 3))
                assert one.ask(GOOD) == 200
            if peers:
                assert chance.choice(peers)[0].ask(GOOD) == 200
        assert running.native.counters.get("connections") > opened + 500
    assert eventually(lambda: running.n_connections == 0)
    assert eventually(lambda: len(poller_of(running)) == 0)


def test_more_connections_than_one_turn_reads(running):
    """Everybody who is ready is read in the end, also where one turn of the poller has no room for all of them."""
    n = 1300
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2 * n + 200:
        pytest.skip(f"at most {hard} open files here, {2 * n + 200} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * n + 200), hard))
    try:
        with contextlib.ExitStack() as stack:
            peers = [Peer(stack.enter_context(running.connect())) for _ in range(n)]
            for one in peers:
                assert one.ask(GOOD) == 200
            assert eventually(lambda: len(poller_of(running)) == n)
            for _ in range(2):
                loop = next(iter(running.server.server_state.connections)).loop
                loop.call_soon_threadsafe(time.sleep, 0.5)  # all of them are ready before one is read
                time.sleep(0.05)
                for one in peers:
                    one.send(GOOD)
                assert {one.reply()[0] for one in peers} == {200}
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert eventually(lambda: running.n_connections == 0)


class Breaking:
    """An engine whose routes raise so many times."""

    watch_problems = ()

    def __init__(self, engine):
        self._engine, self.n_failures = engine, 0

    @property
    def routes(self):
        if self.n_failures:
            self.n_failures -= 1
            raise ZeroDivisionError("broken on purpose")
        return self._engine.routes


def test_what_fails_ends_its_own_connection_only(engine):
    """An error of ours while one connection is read closes that one; the others of the same turn are read on."""
    broken = Breaking(engine)
    with Running(engine, ROOMY, known=broken) as running:
        with peer(running) as one, peer(running) as other:
            assert one.ask(GOOD) == other.ask(GOOD) == 200
            loop = next(iter(running.server.server_state.connections)).loop
            loop.call_soon_threadsafe(time.sleep, 0.2)  # both are read in the same turn
            time.sleep(0.05)
            broken.n_failures = 1
            one.send(GOOD)
            other.send(GOOD)
            with contextlib.suppress(ConnectionResetError):
                assert one.statuses() == []
            assert other.reply()[0] == 200
            assert broken.n_failures == 0
            assert running.n_connections == 1
        assert eventually(lambda: running.n_connections == 0)


def test_a_connection_that_cannot_be_handed_on_is_closed(engine, monkeypatch):
    """An error between the two paths, when the connection is nobody's, ends it all the same."""
    failures = []

    def fail(*_):
        failures.append(1)
        raise ZeroDivisionError("broken on purpose")

    monkeypatch.setattr(NativeHttp, "_hand_on", fail)
    with Running(engine, ROOMY) as running:
        for n in (1, 2):
            with peer(running) as one:
                for _ in range(n - 1):
                    assert one.ask(GOOD) == 200
                one.send(LIVEZ)
                with contextlib.suppress(ConnectionResetError):
                    assert one.statuses() == []
        assert failures == [1, 1]
        assert eventually(lambda: running.n_connections == 0)
        assert len(poller_of(running)) == 0


def test_a_closed_poller_leaves_connections_to_their_transports(engine):
    """They are answered as before, and their ends are noticed."""
    with Running(engine, ROOMY) as running:
        with peer(running) as one:
            assert one.ask(GOOD) == one.ask(GOOD) == 200
            connection = only(running)
            connection.loop.call_soon_threadsafe(running.native._path.close)
            assert one.ask(GOOD) == one.ask(GOOD) == 200
            assert not connection.is_polled
        assert eventually(lambda: running.n_connections == 0)


def test_without_a_poller_transports_read(engine):
    """Where the system has none to give, nothing else changes."""
    with Running(engine) as running:
        running.native._path.close()
        with peer(running) as one:
            for _ in range(3):
                assert one.ask(GOOD) == 200
            assert not only(running).is_polled
            one.send(GOOD[:50])
            assert one.statuses() == [408]
        assert poller_of(running) is None


def test_deadlines_hold_for_polled_connections(engine):
    """A head, a body and an idle connection are given up in time, however slowly more bytes come."""
    with Running(engine) as running:
        for sent, status in ((GOOD[:60], 408), (GOOD[:-5], 408)):
            with peer(running) as one:
                assert one.ask(GOOD) == one.ask(GOOD) == 200
                began = time.monotonic()
                one.send(sent[:-40])
                for k in range(len(sent) - 40, len(sent)):
                    with contextlib.suppress(OSError):
                        one.send(sent[k : k + 1])
                    time.sleep(LIMITS.header_timeout_s / 20)
                assert one.statuses() == [status]
                assert time.monotonic() - began < 10 * LIMITS.header_timeout_s
        with peer(running) as one:
            assert one.ask(GOOD) == one.ask(GOOD) == 200
            assert one.statuses() == []
        assert eventually(lambda: running.n_connections == 0)
        assert len(poller_of(running)) == 0


def test_large_bodies_and_pipelines(running):
    """What takes many reads is put together by the poller as by a transport."""
    with peer(running) as one:
        assert one.ask(GOOD) == 200
        one.send(GOOD * 3000)
        assert [one.reply()[0] for _ in range(3000)] == [200] * 3000
        padded = request(b'{"a":"' + b"x" * 900_000 + b'"}')
        one.send(padded)
        assert one.reply()[0] == 400
        assert one.ask(GOOD) == 200


def test_other_descriptors_take_their_turn(engine):
    """What `watch` is given is called in turn with the connections, until it is taken away."""
    with Running(engine, ROOMY) as running:
        (mine, theirs), called = socket.socketpair(), []

        def call():
            called.append(mine.recv(10))

        path = running.native._path
        with mine, theirs, peer(running) as one:
            assert one.ask(GOOD) == 200
            loop = only(running).loop
            loop.call_soon_threadsafe(path.watch, loop, mine.fileno(), call)
            theirs.send(b"a")
            assert eventually(lambda: called == [b"a"])
            loop.call_soon_threadsafe(path.unwatch, loop, mine.fileno(), call)
            assert one.ask(LIVEZ) == 200  # by then it is
            theirs.send(b"b")
            assert one.ask(GOOD) == 200
            assert called == [b"a"]
            # One that fails is not called again, and keeps nobody from being read.
            fails = partial(call, "one argument too many")
            loop.call_soon_threadsafe(path.watch, loop, mine.fileno(), fails)
            assert one.ask(GOOD) == one.ask(GOOD) == 200
            assert called == [b"a"]


@pytest.fixture(scope="module")
def awake(engine):
    """A server that waits awake for as long as may be set: a client of this process is slow."""
    with Running(engine, dataclasses.replace(ROOMY, busy_poll_us=1000)) as server:
        yield server


def polls(running):
    """How often somebody it waited for came, how often not, and the nanoseconds that took."""
    return np.array([running.native.counters.get(f"busy_poll{what}") for what in ("s_came", "s_in_vain", "_ns")])


def test_a_client_that_asks_in_a_row_is_waited_for(awake):
    """And answered in the same turn. Whether it comes within the time is up to the machine: mostly, of two thousand."""
    with peer(awake) as one:
        one.ask(GOOD)
        assert eventually(lambda: only(awake).is_polled)
        before = polls(awake)
        assert all(one.ask(GOOD) == 200 for _ in range(2000))
        came, in_vain, ns = polls(awake) - before
    assert came > 0
    assert 0 < ns <= 1e6 * (came + in_vain)


def test_clients_that_ask_in_turn_are_waited_for(awake):
    """As one is that asks by itself: whose request comes next does not matter."""
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(peer(awake)) for _ in range(8)]
        for one in peers:
            assert one.ask(GOOD) == one.ask(GOOD) == 200
        assert eventually(lambda: len(poller_of(awake)) == len(peers))
        before = polls(awake)
        assert all(one.ask(GOOD) == 200 for _ in range(250) for one in peers)
        came, in_vain, ns = polls(awake) - before
    assert came > 0
    assert 0 < ns <= 1e6 * (came + in_vain)


def test_who_comes_meanwhile_is_answered(awake):
    """A new connection, another that asks, a timer of the loop and one that leaves, while one client asks without pause."""
    ticks, stop = [], threading.Event()
    with peer(awake) as first:
        first.ask(GOOD)
        loop = poller_of(awake).loop

    def tick():
        ticks.append(None)
        if not stop.is_set():
            loop.call_later(0.001, tick)

    loop.call_soon_threadsafe(tick)

    def hammer():
        with peer(awake) as one:
            while not stop.is_set():
                assert one.ask(GOOD) == 200

    hammering = threading.Thread(target=hammer)
    hammering.start()
    try:
        with peer(awake) as other:
            for _ in range(200):
                assert other.ask(GOOD) == 200
        for _ in range(50):
            with peer(awake) as newcomer:
                assert newcomer.ask(GOOD) == 200
        n = len(ticks)
        assert eventually(lambda: len(ticks) >= n + 20)
        assert hammering.is_alive()
    finally:
        stop.set()
        hammering.join()
    assert eventually(lambda: awake.n_connections == 0)


def test_nobody_is_waited_for_while_the_loop_has_work(engine):
    """A turn that hands a request on ends at once: the general path's answer comes before whoever might ask next."""
    with Running(engine, dataclasses.replace(ROOMY, busy_poll_us=1000)) as server, peer(server) as one:
        assert one.ask(GOOD) == 200
        for _ in range(10):  # none of which brings so many waits in vain that it gives up
            assert one.ask(LIVEZ) == 200  # the poller reads this one, and the transport the next
            assert one.ask(GOOD) == 200
        assert not polls(server).any()
        assert all(one.ask(GOOD) == 200 for _ in range(10))
        assert polls(server).any()


def test_nobody_is_waited_for_where_that_is_not_wanted(engine):
    with Running(engine, ROOMY) as server:
        with peer(server) as one:
            assert all(one.ask(GOOD) == 200 for _ in range(100))
        assert not polls(server).any()


def test_a_server_that_waits_awake_stops_at_once(engine):
    """In the middle of a client that never pauses."""
    with Running(engine, dataclasses.replace(ROOMY, busy_poll_us=1000, shutdown_grace_s=5)) as server:
        answered = []

        def hammer():
            with contextlib.suppress(OSError), peer(server) as one:
                one.send(GOOD)
                while one.reply() is not None:
                    answered.append(None)
                    one.send(GOOD)

        hammering = threading.Thread(target=hammer)
        hammering.start()
        assert eventually(lambda: len(answered) > 50)
        began = time.monotonic()
    hammering.join(10)
    assert not hammering.is_alive()
    assert time.monotonic() - began < 5
