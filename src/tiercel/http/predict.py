"""`POST /predict/{model}`: plain ASGI, because every layer between the socket and the plan costs each request."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from tiercel._hot.reply import ReplyIds
from tiercel.errors import TiercelError
from tiercel.http import payload
from tiercel.http.body import header, read_body
from tiercel.http.request import parse_predict
from tiercel.http.status import body_of, status_of
from tiercel.monitor.counting import WorkerCounters

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.types import Receive, Scope, Send

    from tiercel.serving.engine import Engine
    from tiercel.settings import ServerSettings

__all__ = ["PredictEndpoint", "ReplyIds", "make_ids", "respond", "send_body"]

log = logging.getLogger("tiercel.http")


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
    ) -> None:
        self._engine = engine
        self._max_rows = settings.max_rows
        self._max_body_bytes = settings.max_body_bytes
        self._body_timeout_s = settings.body_timeout_s
        self._ids = make_ids(settings) if ids is None else ids
        self._counters = WorkerCounters() if counters is None else counters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; every failure becomes an error body, none escapes to the server."""
        kind, code = payload.JSON, None
        try:
            # The reply, and so an error too, is in the request's own format.
            kind = payload.media_type(header(scope, b"content-type"))
            body = await read_body(scope, receive, max_bytes=self._max_body_bytes, timeout_s=self._body_timeout_s)
            reference = scope["path"][len("/predict/") :]
            status, content = 200, await self._predict(reference, body, kind)
        except TiercelError as error:
            status, content, code = status_of(error), payload.encode(body_of(error), kind), error.code
            if status == 500:
                log.exception("Prediction failed")
        except Exception:  # whatever went wrong, the client gets an answer and the log the reason
            log.exception("Prediction failed unexpectedly")
            failure = {"error": "The server failed; its log has the reason", "code": "internal_error"}
            status, content, code = 500, payload.encode(failure, kind), failure["code"]
        self._counters.count_reply(status, code)
        await send_body(send, status, content, kind)

    async def _predict(self, reference: str, body: bytes, kind: str) -> bytes:
        request = parse_predict(payload.decode(body, kind, self._max_rows), self._max_rows)
        plan = self._engine.find_plan(reference)
        if plan is None:
            plan = await self._engine.load_plan(reference)
        format_number = 0 if kind == payload.JSON else 1
        return plan.reply(request.entities, request.features, request.now_us, format_number, self._ids)


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
