"""`POST /predict/{model}`: plain ASGI, because every layer between the socket and the plan costs each request."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tiercel._hot.reply import ReplyIds
from tiercel.errors import TiercelError
from tiercel.http import payload
from tiercel.http.body import header, read_body, read_ns_of
from tiercel.http.request import parse_predict
from tiercel.http.status import body_of, status_of
from tiercel.monitor.counting import WorkerCounters
from tiercel.serving.deadline import TIER_DEFAULT, budget_of
from tiercel.serving.router import Question, Router

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import Receive, Scope, Send

    from tiercel.serving.deadline import Budget, Deadline
    from tiercel.serving.engine import Engine
    from tiercel.settings import ServerSettings

__all__ = ["PredictEndpoint", "ReplyIds", "make_ids", "respond", "send_body"]

log = logging.getLogger("tiercel.http")

Headers = Sequence[tuple[bytes, bytes]]


def make_ids(settings: ServerSettings) -> ReplyIds:
    """Ids for the replies of one worker; all its paths share them."""
    return ReplyIds(settings.max_rows)


class PredictEndpoint:
    """Scores what a request names: `/predict/flights`, `/predict/flights@challenger`, `/predict/flights:3`."""

    def __init__(
        self,
        engine: Engine,
        settings: ServerSettings,
        ids: ReplyIds | None = None,
        counters: WorkerCounters | None = None,
        router: Router | None = None,
    ) -> None:
        self._max_rows = settings.max_rows
        self._max_body_bytes = settings.max_body_bytes
        self._body_timeout_s = settings.body_timeout_s
        self._ids = make_ids(settings) if ids is None else ids
        self._router = Router(engine, self._ids) if router is None else router
        self._counters = WorkerCounters() if counters is None else counters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; every failure becomes an error body, none escapes to the server."""
        kind, code = payload.JSON, None
        headers: Headers = ()
        try:
            # The reply, and so an error too, is in the request's own format.
            kind = payload.media_type(header(scope, b"content-type"))
            budget = budget_of(scope["headers"], read_ns_of(scope))
            body = await read_body(scope, receive, max_bytes=self._max_body_bytes, timeout_s=self._body_timeout_s)
            reference = scope["path"][len("/predict/") :]
            content, headers = await self._predict(reference, body, kind, budget)
            status = 200
        except TiercelError as error:
            status, content, code = status_of(error), payload.encode(body_of(error), kind), error.code
            if status == 500:
                log.exception("Prediction failed")
        except Exception:  # whatever went wrong, the client gets an answer and the log the reason
            log.exception("Prediction failed unexpectedly")
            failure = {"error": "The server failed; its log has the reason", "code": "internal_error"}
            status, content, code = 500, payload.encode(failure, kind), failure["code"]
        self._counters.count_reply(status, code)
        await send_body(send, status, content, kind, headers)

    async def _predict(self, reference: str, body: bytes, kind: str, budget: Budget) -> tuple[bytes, Headers]:
        request = parse_predict(payload.decode(body, kind, self._max_rows), self._max_rows)
        if request.deadline_ms is not None:
            budget = budget.with_us(request.deadline_ms, 1e3, "deadline_ms", "$.deadline_ms")
        question = Question(request.entities, request.features, request.now_us)
        served = await self._router.serve(reference, question, budget)
        content = served.prepared.reply(0 if kind == payload.JSON else 1, self._ids, served.flags)
        return content, [(b"server-timing", timing(served.prepared.stage_us(), served.deadline))]


def timing(stage_us: Mapping[str, float], deadline: Deadline | None) -> bytes:
    """The value of a Server-Timing header: each stage in milliseconds, and the budget if one was asked for."""
    parts = [f"{stage};dur={us / 1000:.3f}" for stage, us in stage_us.items()]
    if deadline is not None and deadline.source != TIER_DEFAULT:
        parts.append(f'budget;dur={deadline.budget_us / 1000:.3f};desc="{deadline.source}"')
    return ", ".join(parts).encode("ascii")


async def respond(send: Send, status: int, reply: Any, kind: str, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
    """Send one complete reply."""
    await send_body(send, status, payload.encode(reply, kind), kind, headers)


async def send_body(
    send: Send, status: int, body: bytes, kind: str, headers: Sequence[tuple[bytes, bytes]] = ()
) -> None:
    """Send a reply that is already encoded."""
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode()), *headers],
        }
    )
    await send({"type": "http.response.body", "body": body})
