"""`POST /features/{service}`: stored features by entity key, typed, with a status and an age per value."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from tiercel.errors import EntityNotFoundError, RequestError, TiercelError
from tiercel.http import payload
from tiercel.http.body import header, read_body
from tiercel.http.predict import respond
from tiercel.http.request import parse_features
from tiercel.http.status import body_of, status_of
from tiercel.types import ValueStatus

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from tiercel.features.online import OnlineBase
    from tiercel.serving.engine import Engine
    from tiercel.settings import ServerSettings

log = logging.getLogger("tiercel.http")


class FeaturesEndpoint:
    """Reads the live base of a feature service."""

    def __init__(self, engine: Engine, settings: ServerSettings) -> None:
        self._engine = engine
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        kind = payload.JSON
        limits = self._settings
        try:
            kind = payload.media_type(header(scope, b"content-type"))
            body = await read_body(
                scope, receive, max_bytes=limits.max_body_bytes, timeout_s=limits.body_timeout_s
            )
            base = self._engine.service(scope["path_params"]["service"])
            request = parse_features(payload.decode(body, kind, limits.max_rows), limits.max_rows)
            status, reply = 200, read_features(base, request.entities, request.features, request.now_us)
        except TiercelError as error:
            status, reply = status_of(error), body_of(error)
            if status == 500:
                log.exception("Feature read failed")
        except Exception:  # noqa: BLE001 - the client gets an answer, the log the reason
            log.exception("Feature read failed unexpectedly")
            status, reply = 500, {"error": "The server failed; its log has the reason", "code": "internal_error"}
        await respond(send, status, reply, kind)
