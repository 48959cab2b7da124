"""`POST /predict/{model}`: plain ASGI, because every layer between the socket and the plan costs each request."""

from __future__ import annotations

import itertools
import logging
import secrets
from typing import TYPE_CHECKING, Any

from tiercel.errors import TiercelError
from tiercel.http import payload
from tiercel.http.body import header, read_body
from tiercel.http.request import parse_predict
from tiercel.http.status import body_of, status_of

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from tiercel.http.request import PredictRequest
    from tiercel.serving.engine import Engine
    from tiercel.settings import ServerSettings

log = logging.getLogger("tiercel.http")
REALTIME = "realtime"


class Replies:
    """Makes replies of plans' answers. Ids are unique across restarts and workers: 64 random bits, then a counter."""

    def __init__(self) -> None:
        self._id_prefix = secrets.token_hex(8)
        self._counter = itertools.count(1)

    def reply(self, plan: Any, request: PredictRequest) -> dict[str, Any]:
        """Score one request.

        Raises:
            TiercelError: as `ServingPlan.predict`.
        """
        single, scores, oldest_age_us, missing = plan.predict(request.entities, request.features, request.now_us)
        reply: dict[str, Any] = {
            "id": f"{self._id_prefix}{next(self._counter):x}",
            "model": plan.model,
            "version": plan.version,
            "tier": REALTIME,
            "score" if single else "scores": scores,
        }
        if plan.n_outputs > 1:
            reply["classes"] = plan.signature.classes
        reply["features"] = {
            "oldest_age_ms": None if oldest_age_us is None else oldest_age_us / 1000,
            "missing": [name for name, _ in missing] if single else dict(missing),
        }
        return reply


class PredictEndpoint:
    """Scores what a request names: `/predict/flights`, `/predict/flights@challenger`, `/predict/flights:3`."""

    def __init__(self, engine: Engine, settings: ServerSettings) -> None:
        self._engine = engine
        self._max_rows = settings.max_rows
        self._max_body_bytes = settings.max_body_bytes
        self._body_timeout_s = settings.body_timeout_s
        self._replies = Replies()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; every failure becomes an error body, none escapes to the server."""
        kind = payload.JSON
        try:
            # The reply, and so an error too, is in the request's own format.
            kind = payload.media_type(header(scope, b"content-type"))
            body = await read_body(scope, receive, max_bytes=self._max_body_bytes, timeout_s=self._body_timeout_s)
            reference = scope["path"][len("/predict/") :]
            status, reply = 200, await self._predict(reference, body, kind)
        except TiercelError as error:
            status, reply = status_of(error), body_of(error)
            if status == 500:
                log.exception("Prediction failed")
        except Exception:  # whatever went wrong, the client gets an answer and the log the reason
            log.exception("Prediction failed unexpectedly")
            status, reply = 500, {"error": "The server failed; its log has the reason", "code": "internal_error"}
        await respond(send, status, reply, kind)

    async def _predict(self, reference: str, body: bytes, kind: str) -> dict[str, Any]:
        request = parse_predict(payload.decode(body, kind, self._max_rows), self._max_rows)
        plan = self._engine.find_plan(reference)
        if plan is None:
            plan = await self._engine.load_plan(reference)
        return self._replies.reply(plan, request)


async def respond(send: Send, status: int, reply: Any, kind: str) -> None:
    """Send one complete reply."""
    body = payload.encode(reply, kind)
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())],
        }
    )
    await send({"type": "http.response.body", "body": body})
