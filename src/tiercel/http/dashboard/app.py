"""The dashboard's routes on the admin port. Nothing of it is loaded before somebody looks, or the server has started."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs

from starlette.responses import Response
from starlette.routing import Route

from tiercel.errors import RequestError, TiercelError
from tiercel.http.dashboard import links
from tiercel.http.dashboard.assets import Assets, missing_packages
from tiercel.http.dashboard.replies import (
    CrossOriginError,
    Rendered,
    missing_page,
    redirect,
    require_same_origin,
    respond,
)
from tiercel.http.dashboard.shelf import Shelf
from tiercel.http.status import status_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request

    from tiercel.http.dashboard.pages import Pages
    from tiercel.settings import Settings

log = logging.getLogger("tiercel.http")

_MAX_FORM_BYTES: Final = 8192
_REST_AFTER_S: Final = 1.0
_GRAFANA: Final = Path(__file__).parent / "grafana.json"
_TITLES: Final = {400: "That cannot be shown", 403: "Refused", 404: "Not found", 409: "Too late"}


class Dashboard:
    """Pages for people.

    Args:
        settings: the project.

    Threads: the event loop's only.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._shelf = Shelf()
        self._missing = missing_packages()
        self._assets = Assets()
        self._pages: Pages | None = None

    def routes(self) -> list[Route]:
        """Pages, their assets, and what can be done about alerts."""
        return [
            Route("/", self._page(lambda pages, request: pages.overview(request)), methods=["GET"]),
            Route("/models/{name}", self._page(lambda pages, request: pages.model(request)), methods=["GET"]),
            Route("/features", self._page(lambda pages, request: pages.services(request)), methods=["GET"]),
            Route("/features/{service}", self._page(lambda pages, request: pages.service(request)), methods=["GET"]),
            Route("/alerts", self._page(lambda pages, request: pages.alerts(request)), methods=["GET"]),
            Route("/alerts/{id}/{action}", self._act, methods=["POST"]),
            Route("/assets/{digest}/{name}", self._asset, methods=["GET"]),
            Route("/grafana.json", self._grafana, methods=["GET"]),
        ]

    async def warm(self) -> None:
        """Load and read what the first page would wait for."""
        if self._missing:
            return
        try:
            pages = await self._load()
            await self._shelf.get("warm", pages.warm, 0)
        except Exception as error:  # noqa: BLE001 - the first page will say it again, to somebody
            log.debug("dashboard: %s", error)

    async def warm_rest(self) -> None:
        """Do what other pages would wait for, once the first reader, should there be one already, has the first page."""
        if self._missing:
            return
        await asyncio.sleep(_REST_AFTER_S)
        pages = await self._load()
        self._shelf.peek("others", pages.warm_others, float("inf"))
        self._shelf.peek("assets", self._assets.warm, float("inf"))  # packing takes long

    def close(self) -> None:
        """Begin nothing more."""
        self._shelf.close()
        if self._pages is not None:
            self._pages.close()

    async def _load(self) -> Pages:
        if self._pages is None:
            pages = await self._shelf.get("pages", self._make_pages, float("inf"))
            self._pages = self._pages or pages
        return self._pages

    def _make_pages(self) -> Pages:
        from tiercel.http.dashboard.pages import Pages  # with it come the database and the templates

        return Pages(self._settings, self._shelf, self._assets)

    def _page(self, make: Callable[[Pages, Request], Awaitable[Rendered]]) -> Callable[[Request], Awaitable[Response]]:
        """An endpoint whose failures are pages too."""

        async def answer(request: Request) -> Response:
            if self._missing:
                return respond(request, missing_page(self._missing), 501)
            try:
                pages = await self._load()
                body = await make(pages, request)
            except Exception as error:  # noqa: BLE001 - the reader gets a page, the log the reason
                return await self._failure(request, error)
            return respond(request, body)

        return answer

    async def _act(self, request: Request) -> Response:
        """Do something about an alert, then show them."""
        if self._missing:
            return respond(request, missing_page(self._missing), 501)
        try:
            control = self._settings.control
            require_same_origin(request.headers, control.host, control.allowed_origins)
            form = await _form(request)
            pages = await self._load()
            alert_id = str(request.path_params["id"])
            await pages.act(alert_id, str(request.path_params["action"]), form)
        except Exception as error:  # noqa: BLE001 - as above
            return await self._failure(request, error)
        return redirect(f"{links.alerts(show='all')}#alert-{int(alert_id)}")

    async def _failure(self, request: Request, error: Exception) -> Response:
        if isinstance(error, CrossOriginError):
            status, text = 403, str(error)
        elif isinstance(error, TiercelError):
            status, text = status_of(error), str(error)
        else:
            log.error("%s failed unexpectedly", request.url.path, exc_info=error)
            status, text = 500, "The server failed; its log has the reason"
        title = _TITLES.get(status, "This page cannot be made now")
        pages = await self._load()
        return respond(request, await pages.failure(status, title, text), status)

    async def _asset(self, request: Request) -> Response:
        asset = self._assets.find(str(request.path_params["name"]))
        if asset is None:
            return Response("Not found", 404, media_type="text/plain")
        return await self._shelf.run(lambda: asset.respond(request))

    async def _grafana(self, request: Request) -> Response:
        """The dashboard for those who have Grafana: import it and choose the Prometheus that scrapes /metrics."""
        body = await self._shelf.get("grafana", lambda: Rendered.of(_GRAFANA.read_bytes()), float("inf"))
        return respond(request, body, 200, "application/json")


async def _form(request: Request) -> dict[str, str]:
    """The fields of a form; the last of a name counts.

    Raises:
        RequestError: another kind of body, or a large one.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise RequestError(f"Expected a form, got {kind[:80]!r}", code="unsupported_media_type")
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > _MAX_FORM_BYTES:
            raise RequestError(f"Expected at most {_MAX_FORM_BYTES} bytes, got more", code="body_too_large")
    try:
        fields: dict[str, Any] = parse_qs(data.decode(), keep_blank_values=True, max_num_fields=16)
    except ValueError as error:
        raise RequestError(f"Expected the fields of a form, got: {error}") from error
    return {name: values[-1] for name, values in fields.items()}
