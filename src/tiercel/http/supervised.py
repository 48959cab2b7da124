"""A uvicorn server as a process of a supervisor: ready is reported, orders are obeyed, a stop loses nothing."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import time
from typing import TYPE_CHECKING, Any

import uvicorn

from tiercel.http.acceptor import Acceptor
from tiercel.serving.listening import n_waiting, shut_door

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from tiercel.serving.board import ConnectionBoard
    from tiercel.serving.channel import Channel, Message

log = logging.getLogger("tiercel.http")
# After the door is shut: what has begun a handshake gets this long to finish it, on any network worth serving.
HANDSHAKE_S = 0.1
# A queue that does not empty by then belongs to a worker that accepts nothing.
QUEUE_S = 5.0
DRAIN_INTERVAL_S = 0.01


class SupervisedServer(uvicorn.Server):
    """A server that reports to a supervisor and stops without losing an accepted request, or one that waits to be.

    Args:
        config: uvicorn's.
        listener: what it accepts from; closed in the end.
        channel: to the supervisor, which says "stop" (nobody accepts after you) or "retire" (others do); that it is
            gone means "stop". SIGTERM to this process alone means "retire".
        grace_s: what requests in flight get.
        on_message: receives whatever else the supervisor says.
        share: the board of the workers that share the listener, and which of them this is; None accepts alone.
        tell: gives what to say to people beside that it is ready, a line each.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        listener: socket.socket,
        channel: Channel,
        *,
        grace_s: float,
        on_message: Callable[[Message], None] | None = None,
        share: tuple[ConnectionBoard, int] | None = None,
        tell: Callable[[], list[str]] | None = None,
    ) -> None:
        super().__init__(config)
        self._listener = listener
        self._channel = channel
        self._grace_s = grace_s
        self._on_message = on_message
        self._share = share
        self._tell = tell
        self._acceptor: Acceptor | None = None
        self._is_last = False  # nobody else accepts from this socket

    def serve_until_told(self) -> None:
        """Serve; return when everything is answered or the grace is over."""
        self._channel.set_blocking(False)
        self._hear()
        if not self.should_exit:
            self.run(sockets=[self._listener] if self._share is None else [])

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGTERM starts the drain. Unlike uvicorn's own, a drained server ends with status 0."""
        before = signal.signal(signal.SIGTERM, self.handle_exit)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then report."""
        await super().startup(sockets=sockets)
        # What lives now lives until the end: the collector need not walk it again while requests are answered.
        gc.collect()
        gc.freeze()
        # PERF: a request leaves no cycles behind; looking for some every 700 objects cost it about 6 us (bench_http).
        gc.set_threshold(50_000, 20, 20)
        if self.started:
            if self._share is not None:
                self._acceptor = Acceptor(
                    self._listener, self._new_protocol, self.server_state.connections, *self._share
                )
            asyncio.get_running_loop().add_reader(self._channel.fileno(), self._hear)
            self._channel.send({"event": "ready", "told": [] if self._tell is None else self._tell()})

    async def on_tick(self, counter: int) -> bool:
        """What uvicorn does ten times a second; and the other workers learn of connections that ended."""
        if self._acceptor is not None:
            self._acceptor.publish()
        return await super().on_tick(counter)

    def _new_protocol(self) -> Any:
        return self.config.http_protocol_class(  # type: ignore[call-arg]  # ours and uvicorn's take these
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
            _loop=asyncio.get_running_loop(),
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002 - ours is the only one
        """Drain: empty the queue if nobody else will, stop accepting, see every connection to its end."""
        self._hear()  # an order that came with the signal
        begun = time.monotonic()
        shut_at = begun if self._is_last and shut_door(self._listener) else None
        state = self.server_state
        told: set[Any] = set()
        is_accepting, n_quiet = True, 0
        while n_quiet < 2:  # twice: a connection just accepted shows only in the loop's next round
            now = time.monotonic()
            if is_accepting and self._may_close(shut_at, now):
                is_accepting = False
                for server in self.servers:
                    server.close()
                if self._acceptor is not None:
                    self._acceptor.close()
                self._listener.close()
                self._channel.send({"event": "closed"})
            for connection in state.connections - told:
                connection.shutdown()
                told.add(connection)
            if now - begun > self._grace_s:
                log.error(
                    "Stopped after %g s with %d connections and %d requests unfinished",
                    self._grace_s, len(state.connections), len(state.tasks),
                )  # fmt: skip
                break
            await asyncio.sleep(DRAIN_INTERVAL_S)
            n_arriving = 0 if self._acceptor is None else self._acceptor.n_arriving
            n_quiet = 0 if is_accepting or n_arriving or state.connections or state.tasks else n_quiet + 1
        for task in state.tasks:
            task.cancel(msg="the server stops")
        await self.lifespan.shutdown()

    def _may_close(self, shut_at: float | None, now: float) -> bool:
        """Whether closing the listener loses nobody: others share the queue, or it is empty and stays so."""
        if shut_at is None:
            return True
        return now - shut_at >= QUEUE_S or (now - shut_at >= HANDSHAKE_S and not n_waiting(self._listener))

    def _hear(self) -> None:
        """Read what the supervisor says."""
        was_open = self._channel.is_open
        for message in self._channel.receive():
            order = message.get("order")
            if order in {"stop", "retire"}:
                self._is_last = order == "stop"
                self.should_exit = True
            elif self._on_message is not None:
                self._on_message(message)
        if was_open and not self._channel.is_open:
            log.error("The supervisor is gone: stopping")
            self._is_last = self.should_exit = True
            with contextlib.suppress(RuntimeError):  # before the loop runs there is no reader to remove
                asyncio.get_running_loop().remove_reader(self._channel.fileno())
