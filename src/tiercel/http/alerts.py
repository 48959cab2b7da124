"""`/api/alerts` on the admin port: what is wrong, and what people do about it.

    GET  /api/alerts?all=1&class=pipeline      those that last; with `all`, those that are over too; and how the watch is doing
    GET  /api/alerts/{id}
    POST /api/alerts/{id}/acknowledge          {"by": "ann", "note": "..."}
    POST /api/alerts/{id}/silence              the same and "for_s": 3600
    POST /api/alerts/{id}/resolve

What changes something takes JSON and nothing else: a page of another origin cannot send that here without being asked first.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

import orjson
from starlette.responses import Response
from starlette.routing import Route

from tiercel.errors import RequestError, TiercelError
from tiercel.http.status import body_of, headers_of, request_id_of, status_of
from tiercel.monitor.alert import AlertClass
from tiercel.monitor.alerts import AlertStore
from tiercel.monitor.watch_state import WatchState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from starlette.requests import Request

    from tiercel.monitor.alert import Alert

log = logging.getLogger("tiercel.http")

MAX_BODY_BYTES = 16_384
MAX_SILENCE_S = 31_536_000
DEFAULT_LIMIT, MAX_LIMIT = 200, 2000
_FIELDS = {"by", "note", "for_s"}


class AlertAdmin:
    """The endpoints.

    Args:
        state_dir: of the project.
    """

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._store = AlertStore(state_dir)

    def routes(self) -> list[Route]:
        """All of them."""
        return [
            Route("/api/alerts", self._answered(self._list), methods=["GET"]),
            Route("/api/alerts/{id}", self._answered(self._show), methods=["GET"]),
            *(
                Route(f"/api/alerts/{{id}}/{name}", self._answered(action), methods=["POST"])
                for name, action in (
                    ("acknowledge", self._acknowledge),
                    ("silence", self._silence),
                    ("resolve", self._resolve),
                )
            ),
        ]

    async def _list(self, request: Request) -> dict[str, Any]:
        query = request.query_params
        wanted = query.get("class")
        if wanted is not None and wanted not in list(AlertClass):
            raise RequestError(f"Expected class to be one of {', '.join(AlertClass)}, got {wanted[:30]!r}")
        limit = _number(query.get("limit", str(DEFAULT_LIMIT)), "limit", MAX_LIMIT)
        with_resolved = query.get("all", "0").lower() not in {"", "0", "false", "no"}
        found = await asyncio.to_thread(self._store.find_all, with_resolved=with_resolved)
        watch = await asyncio.to_thread(WatchState.load, self._state_dir)
        shown = [alert.to_json() for alert in found if wanted in {None, alert.finding.alert_class.value}]
        return {
            "alerts": shown[:limit],
            "n_alerts": len(shown),
            "open": sum(not alert.is_over for alert in found),
            "watch": watch.to_json(),
        }

    async def _show(self, request: Request) -> dict[str, Any]:
        alert = await asyncio.to_thread(self._store.get, _id(request))
        return alert.to_json()

    async def _acknowledge(self, request: Request) -> dict[str, Any]:
        said = await _said(request)
        return await self._changed(self._store.acknowledge, _id(request), said)

    async def _silence(self, request: Request) -> dict[str, Any]:
        said = await _said(request)
        for_s: Any = said.get("for_s")
        if type(for_s) not in {int, float} or not 0 < for_s <= MAX_SILENCE_S:
            raise RequestError(f"Expected for_s to be seconds from 0 to {MAX_SILENCE_S:,}, got {for_s!r}")
        until_us = time.time_ns() // 1000 + round(for_s * 1e6)
        return await self._changed(self._store.silence, _id(request), said, until_us)

    async def _resolve(self, request: Request) -> dict[str, Any]:
        said = await _said(request)
        return await self._changed(self._store.resolve, _id(request), said)

    async def _changed(
        self, action: Callable[..., Alert], alert_id: int, said: dict[str, Any], *arguments: Any
    ) -> dict[str, Any]:
        now_us = time.time_ns() // 1000
        by, note = said.get("by", "admin port"), said.get("note", "")
        alert = await asyncio.to_thread(action, alert_id, *arguments, by=by, note=note, now_us=now_us)
        return alert.to_json()

    @staticmethod
    def _answered(
        endpoint: Callable[[Request], Awaitable[dict[str, Any]]],
    ) -> Callable[[Request], Awaitable[Response]]:
        """An endpoint whose failures become replies."""

        async def answer(request: Request) -> Response:
            try:
                return _json(await endpoint(request))
            except TiercelError as error:
                status = status_of(error)
                if status >= 500:
                    log.error("%s", error)  # noqa: TRY400 - the text says it all
                request_id = request_id_of(request.headers.raw)
                response = _json(body_of(error, request_id), status)
                response.raw_headers += headers_of(error, request_id)
                return response
            except Exception:
                log.exception("Alerts failed unexpectedly")
                return _json({"error": "The server failed; its log has the reason", "code": "internal_error"}, 500)

        return answer


async def _said(request: Request) -> dict[str, Any]:
    """What somebody sent with a change: an object of known fields, in JSON."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        error = RequestError(f"Expected application/json, got {kind or 'no content type'}")
        error.code = "unsupported_media_type"
        raise error
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            error = RequestError(f"Expected at most {MAX_BODY_BYTES:,} bytes")
            error.code = "body_too_large"
            raise error
    try:
        said = orjson.loads(body or b"{}")
    except ValueError as error:
        raise RequestError(f"Expected a JSON object, got: {error}") from error
    if not isinstance(said, dict) or not set(said) <= _FIELDS:
        raise RequestError(f"Expected an object with {', '.join(sorted(_FIELDS))}, got {str(said)[:100]}")
    for name in ("by", "note"):
        if not isinstance(said.get(name, ""), str):
            raise RequestError(f"Expected {name} to be text, got {str(said[name])[:100]}")
    return said


def _id(request: Request) -> int:
    return _number(request.path_params["id"], "the alert's id", 10**12)


def _number(text: str, name: str, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 13 and 1 <= int(text) <= most):
        raise RequestError(f"Expected {name} to be a number from 1 to {most:,}, got {text[:30]!r}")
    return int(text)


def _json(body: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(body), status, media_type="application/json")
