"""Where the compiled path's questions wait that are scored in batches: their door to the router's queues."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from tiercel.errors import CapacityError, DeadlineError, TiercelError
from tiercel.http import payload
from tiercel.http.status import body_of, headers_of, status_of
from tiercel.serving.asked import require_time
from tiercel.serving.deadline import Deadline

if TYPE_CHECKING:
    from tiercel._hot.plan import Prepared
    from tiercel._hot.protocol import HotProtocol, Place
    from tiercel.monitor.counting import WorkerCounters
    from tiercel.serving.router import Router

log = logging.getLogger("tiercel.http")

#: By the kind of a question's body: an error is in the request's own format.
_MEDIA = (payload.JSON, payload.MSGPACK)


class QueueDoor:
    """What `FastPath.queue` is in a server; see `tiercel._hot.protocol.Queue`.

    Args:
        router: whose queues these are.
        counters: of the worker.

    Threads: the event loop's only.
    """

    def __init__(self, router: Router, counters: WorkerCounters) -> None:
        self._router, self._counters = router, counters

    def enter(self, asked: Prepared, hot: HotProtocol, close: bool, /) -> Place | bytes | None:
        """Queue a question; a question that finds no room is refused here, unless somebody else may answer it."""
        try:
            return self._router.submit(asked, partial(hot.complete, asked))
        except CapacityError as error:
            return None if asked.plan.has_stand_in else self.refusal(asked, error, hot, close)
        except DeadlineError as error:
            # Without a deadline of its own, a question that takes longer than its tier promises is given that time.
            handed_on = asked.plan.has_stand_in or (not asked.is_asked and self._router.outlasts_tier(asked))
            return None if handed_on else self.refusal(asked, error, hot, close)

    def late(self, asked: Prepared, hot: HotProtocol, close: bool, /) -> bytes | None:
        """Refuse a question whose deadline is too near, or over."""
        plan, deadline = asked.plan, Deadline(asked.due_ns - 1000 * asked.budget_us, asked.budget_us, asked.source)
        try:
            require_time(deadline, plan.need_us(asked.n_rows), plan.model)
        except DeadlineError as error:
            return self.refusal(asked, error, hot, close)
        return None

    def refusal(self, asked: Prepared, error: Exception, hot: HotProtocol, close: bool, /) -> bytes:
        """The same reply that `PredictEndpoint` would give."""
        if isinstance(error, DeadlineError):
            self._counters.add("refused_deadline")
            error = DeadlineError(str(error), budget_us=asked.budget_us, needed_us=error.needed_us)
        elif isinstance(error, CapacityError):
            self._counters.add("refused_capacity")
        kind, headers = _MEDIA[asked.kind], []
        if isinstance(error, TiercelError):
            status, body, headers, code = status_of(error), body_of(error), headers_of(error), error.code
        else:
            status, code = 500, "internal_error"
            body = {"error": "The server failed; its log has the reason", "code": code}
        if status == 500:
            log.error("Prediction failed", exc_info=error)
        self._counters.count_reply(status, code)
        content = payload.encode(body, kind)
        told = [
            *hot.server_state.default_headers,
            (b"content-type", kind.encode()),
            (b"content-length", str(len(content)).encode()),
            *headers,
        ]
        if close:
            told.append((b"connection", b"close"))
        return b"".join([STATUS_LINE[status], *(b"%b: %b\r\n" % each for each in told), b"\r\n", content])
