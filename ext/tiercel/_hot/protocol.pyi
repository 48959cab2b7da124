import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from tiercel._hot.counters import WorkerCounters
from tiercel._hot.plan import Prepared
from tiercel._hot.reply import ReplyIds
from tiercel._hot.tensors import TensorTallies

class Place(Protocol):
    """Where an accepted question waits."""

    def cancel(self) -> object:
        """Nobody waits for it any more."""

class Queue(Protocol):
    """Where questions wait that are scored in batches; all of it on the event loop's thread, none of it raises."""

    def enter(self, asked: Prepared, hot: HotProtocol, close: bool, /) -> Place | bytes | None:
        """A place, after which `hot.complete(asked, ...)` is called once, later, unless the place is cancelled; or the whole
        reply that refuses it; or None: the general path is to answer it.

        close: no other request of the connection will be answered.
        """

    def poll(self, loop: asyncio.AbstractEventLoop, /) -> None:
        """Called every now and then while requests are read on `loop`, between two of them."""

    def late(self, asked: Prepared, hot: HotProtocol, close: bool, /) -> bytes | None:
        """The whole reply to a question that would be late; None: the general path's."""

    def refusal(self, asked: Prepared, error: Exception, hot: HotProtocol, close: bool, /) -> bytes:
        """The whole reply to a question that was accepted, and failed."""

class Refusal:
    """The refusal of a question, to be given again to others like it.

    Args:
        asked: the question.
        reply: all of it.
        headers: the list of uvicorn's headers that `reply` was made with; once there is another one, the reply is stale.
        status, code, cell: what is counted with each.
        until_ns: of the monotonic clock: how long its words stay true.
        slack_ns: of questions that are due no later than this.
    """

    def __init__(
        self,
        asked: Prepared,
        reply: bytes,
        headers: object,
        *,
        status: int,
        code: str,
        cell: str,
        until_ns: int,
        slack_ns: int,
    ) -> None: ...

class FastPath:
    """What the connections of one server share: limits, counts, the way to the plans.

    Args:
        engine: has `routes` (`tiercel.serving.routes.Routes`, replaced whole).
        ids: gives every reply its id.
        hand_on: `(protocol, transport, data, deadline_s, write_paused, draining)`: takes the connection, with the
            bytes not yet answered and the seconds left to complete them.
        refuse: `(protocol, transport, status, code, text)`: answers with an error, then closes.
        counters: answers and connections are counted there.
        hands_on_traced: whether requests with a traceparent are the general path's.
        tallies: where answered infer requests are counted.
    """

    @property
    def answered(self) -> int: ...
    header_timeout_s: float
    body_timeout_s: float
    idle_timeout_s: float
    max_body_bytes: int
    max_connections: int
    queue: Queue | None
    late: Refusal | None
    full: Refusal | None
    socket_wait_ns: int
    def __init__(
        self,
        engine: Any,
        *,
        header_timeout_s: float,
        body_timeout_s: float,
        idle_timeout_s: float,
        max_body_bytes: int,
        max_connections: int,
        ids: ReplyIds,
        hand_on: Callable[[HotProtocol, asyncio.Transport, bytes, float, bool, bool], None],
        refuse: Callable[[HotProtocol, asyncio.Transport, int, str, str], None],
        counters: WorkerCounters | None = None,
        hands_on_traced: bool = False,
        tallies: TensorTallies | None = None,
    ) -> None: ...

class HotProtocol:
    """The asyncio protocol of one connection."""

    path: FastPath
    config: Any
    server_state: Any
    app_state: dict[str, Any]
    loop: asyncio.AbstractEventLoop
    begun_ns: int
    def __init__(
        self, path: FastPath, config: Any, server_state: Any, app_state: dict[str, Any], loop: asyncio.AbstractEventLoop
    ) -> None: ...
    def connection_made(self, transport: asyncio.BaseTransport) -> None: ...
    def data_received(self, data: bytes) -> None: ...
    def eof_received(self) -> bool | None: ...
    def connection_lost(self, exc: Exception | None) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...
    def adopt(self, transport: asyncio.Transport, write_paused: bool) -> None: ...
    def shutdown(self) -> None: ...
    def complete(self, asked: Prepared, scores: Any, error: Exception | None, /) -> None:
        """Answer a question that waited: with its scores, or with `error`."""
