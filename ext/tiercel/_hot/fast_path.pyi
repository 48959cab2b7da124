import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from tiercel._hot.aside import Aside
from tiercel._hot.counters import WorkerCounters
from tiercel._hot.lines import Lines
from tiercel._hot.plan import Prepared, ServingPlan
from tiercel._hot.poller import Poller
from tiercel._hot.protocol import HotProtocol
from tiercel._hot.reply import ReplyIds
from tiercel._hot.tensors import TensorTallies

class Place(Protocol):
    """Where an accepted question waits."""

    def cancel(self) -> object:
        """Nobody waits for it any more."""

class Queue(Protocol):
    """Where questions wait that are scored in batches; all of it on the event loop's thread, none of it raises."""

    def enter(self, asked: Prepared, hot: HotProtocol, close: bool, can_leave: bool, /) -> Place | bytes | str | None:
        """A place, after which `hot.complete(asked, ...)` is called once, later, unless the place is cancelled; or the whole
        reply that refuses it; or the reason why somebody else is to answer; or None: the general path is to.

        close: no other request of the connection will be answered.
        can_leave: somebody else may answer what has no scores in time.
        """

    def lines(self, plan: ServingPlan, /) -> Lines:
        """Of a plan's queue: who is obviously in time is let in there, without `enter`."""

    def poll(self, loop: asyncio.AbstractEventLoop, /) -> None:
        """Called every now and then while requests are read on `loop`, between two of them."""

    def late(self, asked: Prepared, hot: HotProtocol, close: bool, /) -> bytes | None:
        """The whole reply to a question that would be late; None: the general path's."""

    def shed(self, asked: Prepared, hot: HotProtocol, close: bool, /) -> bytes:
        """The whole reply to a question that could be answered, and has to make room for others."""

    def stand_in(self, plan: ServingPlan, reason: str, /) -> tuple[ServingPlan, tuple[bytes, bytes], int] | None:
        """Who answers instead of a model: its plan, what the reply says of it (the end of a JSON object; more fields of a
        msgpack map), and the flags of its record. None: nobody whom the compiled path may ask."""

    def reason(self, error: Exception, /) -> str:
        """Why somebody else answers, in a word."""

    def refusal(self, asked: Prepared, error: Exception, hot: HotProtocol, close: bool, /) -> bytes:
        """The whole reply to a question that was accepted, and failed."""

class Audit(Protocol):
    """Who knows when records are durable; all of it on the event loop's thread, none of it raises."""

    def hold(self, hot: HotProtocol, held: bytes, kind: int, close: bool, /) -> object:
        """Call `hot.release(held, ...)` once, later: when everything that is recorded by now is durable, or cannot be.

        Args:
            kind: of the request's body.
            close: no other request of the connection will be answered.
        """

    def refusal(self, hot: HotProtocol, kind: int, close: bool, /) -> bytes:
        """The whole reply to a request whose record cannot be made durable."""

class Refusal:
    """The refusal of a question, to be given again to others like it.

    Args:
        reply: all of it.
        headers: the list of uvicorn's headers that `reply` was made with; once there is another one, the reply is stale.
        status, code, cell: what is counted with each.
        until_ns: of the monotonic clock: how long its words stay true.
        slack_ns: of questions that are due no later than this.
    """

    def __init__(
        self,
        reply: bytes,
        headers: object,
        *,
        status: int,
        code: str,
        cell: str,
        until_ns: int,
        slack_ns: int,
    ) -> None: ...

class Refusals:
    """The last refusal of each sort of question."""

    def __len__(self) -> int: ...
    def keep(self, asked: Prepared, refusal: Refusal) -> None: ...
    def clear(self) -> None: ...

class FastPath:
    """What the connections of one server share: limits, counts, the way to the plans.

    Args:
        engine: has `routes` (`tiercel.serving.routes.Routes`, replaced whole).
        ids: gives every reply its id.
        hand_on: `(protocol, transport, data, deadline_s, write_paused, draining)`: takes the connection, with the
            bytes not yet answered and the seconds left to complete them.
        refuse: `(protocol, transport, status, code, text)`: answers with an error, then closes.
        busy_poll_us: how long to wait awake for the next request, at most; 0: not at all.
        counters: answers and connections are counted there.
        hands_on_traced: whether requests with a traceparent are the general path's.
        tallies: where answered infer requests are counted.
    """

    @property
    def answered(self) -> int: ...
    header_timeout_s: float
    body_timeout_s: float
    idle_timeout_s: float
    busy_poll_us: float
    max_body_bytes: int
    max_connections: int
    queue: Queue | None
    audit: Audit | None
    late: Refusals
    full: Refusals
    shed: Refusals
    aside: Aside
    socket_wait_ns: int
    socket_peak_ns: int
    def __init__(
        self,
        engine: Any,
        *,
        header_timeout_s: float,
        body_timeout_s: float,
        idle_timeout_s: float,
        busy_poll_us: float = 0,
        max_body_bytes: int,
        max_connections: int,
        ids: ReplyIds,
        hand_on: Callable[[HotProtocol, asyncio.Transport, bytes, float, bool, bool], None],
        refuse: Callable[[HotProtocol, asyncio.Transport, int, str, str], None],
        counters: WorkerCounters | None = None,
        hands_on_traced: bool = False,
        tallies: TensorTallies | None = None,
    ) -> None: ...
    @property
    def poller(self) -> Poller | None:
        """What reads the connections; None: there were none yet, or their transports do."""
    def read_between(self) -> None:
        """In the middle of something longer, and with nothing in the output buffer: answer who cannot wait.

        Nothing happens in the middle of reading, or of the bytes of a connection.
        """

    def watch(self, loop: asyncio.AbstractEventLoop, fd: int, call: Callable[[], object]) -> None:
        """Call `call` on `loop` whenever `fd` can be read, in its turn among the connections where there is a poller."""
    def unwatch(self, loop: asyncio.AbstractEventLoop, fd: int, call: Callable[[], object]) -> None:
        """End it, before `fd` is closed."""
    def queue_due_ns(self, asked: Prepared, can_leave: bool) -> int: ...
    def close(self) -> None:
        """The event loop is about to end: the transports of connections read what still comes."""
