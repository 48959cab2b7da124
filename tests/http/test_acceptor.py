"""Workers that share a socket share its connections, and none waits for one that is gone or stuck."""

from __future__ import annotations

import asyncio
import socket

import pytest
import uvloop

from tiercel.http.acceptor import Acceptor
from tiercel.serving.board import ABSENT, ConnectionBoard
from tiercel.serving.listening import bind, n_waiting


class Kept(asyncio.Protocol):
    """Stays in its worker's set while the connection lives."""

    def __init__(self, connections):
        self.connections = connections

    def connection_made(self, transport):
        self.transport = transport
        self.connections.add(self)

    def connection_lost(self, _error):
        self.connections.discard(self)


@pytest.fixture
def board():
    made = ConnectionBoard.make(2)
    yield made
    made.close()


def accept_all(board, n_clients, n_acceptors):
    """How many connections each of `n_acceptors` on one socket gets of `n_clients` opened at once."""

    async def run():
        listener = bind("127.0.0.1", 0)
        listeners = [listener.dup() for _ in range(n_acceptors)]
        sets = [set() for _ in listeners]
        clients = [socket.create_connection(listener.getsockname()) for _ in range(n_clients)]
        acceptors = [
            Acceptor(own, lambda kept=kept: Kept(kept), kept, board, i)
            for i, (own, kept) in enumerate(zip(listeners, sets, strict=True))
        ]
        async with asyncio.timeout(20):
            while sum(map(len, sets)) < n_clients:  # noqa: ASYNC110 - the sets are what is under test
                await asyncio.sleep(0.001)
        counts = [len(kept) for kept in sets]
        for acceptor in acceptors:
            acceptor.close()
        for client in clients:
            client.close()
        for kept in sets:
            for protocol in list(kept):
                protocol.transport.close()
        await asyncio.sleep(0.01)
        for each in (listener, *listeners):
            each.close()
        return counts

    return uvloop.run(run())


def test_a_burst_is_shared(board):
    """Two workers that are equally free get about the same number of connections."""
    first, second = accept_all(board, 60, 2)
    assert first + second == 60
    assert abs(first - second) <= 10


def test_alone_it_takes_everything(board):
    """A worker whose peers do not accept takes every connection."""
    assert accept_all(board, 30, 1) == [30]


def test_a_stuck_worker_is_not_waited_for(board):
    """Connections left to a worker that does not come for them are taken after a moment."""
    board.put(1, 0)
    assert accept_all(board, 20, 1) == [20]


def test_a_closed_acceptor_is_absent(board):
    """A worker that accepts no more is out of the comparison."""
    accept_all(board, 2, 1)
    assert board.fewest_elsewhere(1) is None


def test_the_board_is_shared_memory(board):
    """Two views of one board see each other's numbers."""
    import os

    other = ConnectionBoard(os.dup(board.fd), 2)
    assert other.fewest_elsewhere(0) is None
    board.put(1, 7)
    assert other.fewest_elsewhere(0) == 7
    other.put(1, ABSENT)
    assert board.fewest_elsewhere(0) is None
    other.close()


def test_the_queue_is_counted():
    """The kernel says how many connections nobody has accepted yet."""
    with bind("127.0.0.1", 0) as listener:
        if n_waiting(listener) is None:
            pytest.skip("this system does not say")
        clients = [socket.create_connection(listener.getsockname()) for _ in range(3)]
        assert n_waiting(listener) == 3
        listener.accept()[0].close()
        assert n_waiting(listener) == 2
        for client in clients:
            client.close()
