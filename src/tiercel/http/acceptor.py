"""Accepting from a socket that several workers share: a worker takes a connection unless another one has fewer."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from typing import TYPE_CHECKING, Any

from tiercel.serving.board import ABSENT

if TYPE_CHECKING:
    from collections.abc import Callable, Sized

    from tiercel.serving.board import ConnectionBoard

log = logging.getLogger("tiercel.http")
# A connection left to another worker is looked at again after this long; if it is still there that worker is stuck.
YIELD_S = 0.002
MAX_YIELDS = 2
# Without a free descriptor accepting fails at once, again and again: wait for one.
EXHAUSTED_S = 0.1


class Acceptor:
    """Accepts connections while it is open. For the thread of a running loop.

    Args:
        listener: non-blocking, shared.
        make_protocol: the protocol of a new connection.
        connections: those that live.
        board, worker: where the workers' numbers are, and which is ours.
    """

    def __init__(
        self,
        listener: socket.socket,
        make_protocol: Callable[[], Any],
        connections: Sized,
        board: ConnectionBoard,
        worker: int,
    ) -> None:
        self._listener, self._make_protocol, self._connections = listener, make_protocol, connections
        self._board, self._worker = board, worker
        self._loop = asyncio.get_running_loop()
        self._arriving: set[asyncio.Task[Any]] = set()
        self._paused: asyncio.TimerHandle | None = None
        self._n_yields = 0
        listener.setblocking(False)
        self.publish()
        self._loop.add_reader(listener.fileno(), self._accept)

    @property
    def n_arriving(self) -> int:
        """Connections that were accepted and have no protocol yet."""
        return len(self._arriving)

    def publish(self) -> int:
        """Tell the other workers how many connections there are here."""
        n = len(self._connections) + len(self._arriving)
        self._board.put(self._worker, n)
        return n

    def close(self) -> None:
        """Accept nothing more; what has been accepted lives on."""
        self._board.put(self._worker, ABSENT)
        if self._paused is not None:
            self._paused.cancel()
        self._loop.remove_reader(self._listener.fileno())

    def _accept(self) -> None:
        """Take one connection, as many other rounds of the loop as there are others: requests come in between."""
        here, elsewhere = self.publish(), self._board.fewest_elsewhere(self._worker)
        if elsewhere is not None and here > elsewhere + elsewhere // 8 and self._n_yields < MAX_YIELDS:
            self._n_yields += 1
            self._pause(YIELD_S)
            return
        self._n_yields = 0
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            if error.errno in {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}:
                log.warning("Cannot accept a connection: %s", error.strerror)
            self._pause(EXHAUSTED_S)
            return
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = self._loop.create_task(self._welcome(connection))
        self._arriving.add(task)
        task.add_done_callback(self._arriving.discard)
        self.publish()

    async def _welcome(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._make_protocol, connection)
        except OSError:  # it is gone already
            connection.close()

    def _pause(self, seconds: float) -> None:
        self._loop.remove_reader(self._listener.fileno())
        self._paused = self._loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        self._paused = None
        self._loop.add_reader(self._listener.fileno(), self._accept)
