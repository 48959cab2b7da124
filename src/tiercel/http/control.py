"""The control plane: the admin port's application, in a process of its own so that nothing it does delays a prediction."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

from tiercel.errors import TiercelError
from tiercel.http.admin_protocol import AdminProtocol
from tiercel.http.alerts import AlertAdmin
from tiercel.http.allowed import allow_header
from tiercel.http.dashboard.app import Dashboard
from tiercel.http.explanations import ExplanationEndpoint
from tiercel.http.job_runner import JobRunner
from tiercel.http.jobs import JobAdmin
from tiercel.http.openapi import document
from tiercel.http.supervised import SupervisedServer
from tiercel.http.watcher import Watcher
from tiercel.monitor.metrics import CONTENT_TYPE_LATEST, render_metrics
from tiercel.monitor.recording import COUNTERS
from tiercel.monitor.totals import fold
from tiercel.priority import stand_back
from tiercel.serving.jobs import JobStore
from tiercel.serving.recorded import RecordedExplanations
from tiercel.serving.version_shelf import VersionShelf

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
    from pathlib import Path

    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send

    from tiercel.serving.channel import Channel, Message
    from tiercel.settings import Settings

log = logging.getLogger("tiercel.http")

CONTROL = "control"
PATHS = (
    "/, /models/{name}, /features, /alerts, /livez, /readyz, /metrics, /api/openapi.json, /api/workers, /api/jobs, /api/alerts "
    "or /api/predictions/{id}/explanation"
)
# Nobody waits long for an admin page.
GRACE_S = 5.0
FOLD_INTERVAL_S = 60.0
# What the port waits for, at most, so that its first page is made at once: a second of computing (bench_dashboard).
WARM_S = 5.0


class ControlPlane:
    """The ASGI application. What it knows of the workers is what the supervisor last said.

    Args:
        settings: the project.
    """

    def __init__(self, settings: Settings) -> None:
        self._state_dir = settings.state_dir
        jobs = JobStore(settings.state_dir)
        self._runner = JobRunner(settings, jobs)
        self._watcher = Watcher(settings)
        self._dashboard = Dashboard(settings)
        self._shelf = VersionShelf(settings)
        self._explanations = ExplanationEndpoint(RecordedExplanations(settings, self._shelf.find_beside))
        self._processes: list[dict[str, Any]] = []
        self._has_served = asyncio.Event()
        self._starlette = Starlette(
            routes=[
                Route("/livez", self._livez, methods=["GET"]),
                Route("/readyz", self._readyz, methods=["GET"]),
                Route("/metrics", self._metrics, methods=["GET"]),
                Route("/api/openapi.json", self._openapi, methods=["GET"]),
                Route("/api/workers", self._workers, methods=["GET"]),
                *JobAdmin(jobs).routes(),
                *AlertAdmin(settings.state_dir).routes(),
                *self._explanations.routes("/api"),
                *self._dashboard.routes(),  # last: the others are found first
            ],
            exception_handlers={HTTPException: _http_error},
            lifespan=self._lifespan,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection scope."""
        await self._starlette(scope, receive, send)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        keeping = [
            asyncio.create_task(each)
            for each in (
                keep_folded(self._state_dir),
                self._runner.keep(),
                self._once_served(self._watcher.keep),
                self._once_served(self._dashboard.warm_rest),
                self._dashboard.warm(),
            )
        ]
        # Who opens the first page waits for none of it; nor does the port wait for long, should a disk be slow.
        await asyncio.wait(keeping[-1:], timeout=WARM_S)
        try:
            yield
        finally:
            for task in keeping:
                task.cancel()
            await asyncio.gather(*keeping, return_exceptions=True)
            self._dashboard.close()
            self._explanations.close()
            self._shelf.close()

    def hear(self, message: Message) -> None:
        """Take what the supervisor says."""
        if "processes" in message:
            self._processes = message["processes"]
        if message.get("has_served"):
            self._has_served.set()

    async def _once_served(self, keep: Callable[[], Awaitable[None]]) -> None:
        """Begin when workers have served: until then they need the processor, and why they cannot start is theirs to say."""
        await self._has_served.wait()
        await keep()

    async def _livez(self, _request: Request) -> Response:
        return _json({"status": "alive"})

    async def _readyz(self, _request: Request) -> Response:
        """200 when every worker serves."""
        names = {process["name"] for process in self._processes} - {CONTROL}
        ready = {process["name"] for process in self._processes if process["state"] == "ready"} - {CONTROL}
        is_ready = bool(names) and ready == names
        status = "ready" if is_ready else f"{len(ready)} of {len(names)} workers serve"
        waiting = [process for process in self._processes if process["name"] in names - ready]
        return _json({"status": status, "waiting": waiting}, 200 if is_ready else 503)

    async def _metrics(self, request: Request) -> Response:
        """What all workers counted, in Prometheus' text format; `?group=triton` adds Triton's names for it."""
        triton = "triton" in request.query_params.getlist("group")
        text = await asyncio.to_thread(render_metrics, self._state_dir, triton=triton)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    async def _openapi(self, _request: Request) -> Response:
        return _json(document())

    async def _workers(self, _request: Request) -> Response:
        """Every process: pid, state, since when, how often it was started again and how it last ended."""
        return _json({"processes": self._processes})


async def keep_folded(state_dir: Path) -> None:
    """Add the counters of workers that are gone to the totals and remove their files, until cancelled."""
    while True:
        try:
            await asyncio.to_thread(fold, state_dir / COUNTERS)
        except (TiercelError, OSError) as error:  # they stay readable; the next turn tries again
            log.warning("Counters of ended workers stay in files of their own: %s", error)
        await asyncio.sleep(FOLD_INTERVAL_S)


def _json(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(orjson.dumps(body), status, headers, media_type="application/json")


async def _http_error(request: Request, error: Exception) -> Response:
    """Refusals in the body shape of every other error."""
    status, detail = (error.status_code, error.detail) if isinstance(error, HTTPException) else (500, "")
    code = {404: "unknown_path", 405: "method_not_allowed"}.get(status, "http_error")
    text = {404: f"Expected {PATHS}, got another path", 405: "Expected another method on this path"}.get(status, detail)
    return _json({"error": text, "code": code}, status, allow_header(request, status))


def server_config(app: ASGIApp) -> uvicorn.Config:
    """How the admin port's application is served."""
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=AdminProtocol,
        ws="none",
        lifespan="on",
        interface="asgi3",
        access_log=False,
        log_config=None,
        server_header=False,
    )


def serve_control(settings: Settings, listener: socket.socket, channel: Channel) -> None:
    """Serve the admin port until the supervisor or SIGTERM says so; the listener is closed on return."""
    stand_back()  # with all threads: a page, a scrape or a look at the workers comes after every prediction
    plane = ControlPlane(settings)
    config = server_config(plane)
    grace_s = min(GRACE_S, settings.server.shutdown_grace_s)
    with listener:
        SupervisedServer(config, listener, channel, grace_s=grace_s, on_message=plane.hear).serve_until_told()
