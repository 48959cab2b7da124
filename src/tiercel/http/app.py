"""The data plane as one ASGI application: predictions straight to their endpoint, everything else through Starlette."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, Any

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

from tiercel.http import payload
from tiercel.http.allowed import allow_header
from tiercel.http.explanations import ExplanationEndpoint
from tiercel.http.features import FeaturesEndpoint
from tiercel.http.predict import PredictEndpoint, make_ids, respond
from tiercel.http.protocols import protocol_routes
from tiercel.monitor.counting import WorkerCounters
from tiercel.serving.engine import Engine, keep_current
from tiercel.serving.limits import describe
from tiercel.serving.recorded import RecordedExplanations
from tiercel.serving.rooms import cores_of_worker
from tiercel.serving.router import Router

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from tiercel.http.feedback import FeedbackEndpoint
    from tiercel.http.jobs import JobEndpoints
    from tiercel.http.native import NativeHttp
    from tiercel.http.tracing import Tracing
    from tiercel.monitor.group_commit import GroupCommit
    from tiercel.settings import ModelSettings, ServerSettings, Settings

PREDICT = "/predict/"


class DataPlane:
    """The ASGI application. Routes `POST /predict/...` itself: Starlette's stack would double the cost of a request."""

    def __init__(
        self,
        engine: Engine,
        settings: ServerSettings,
        native: NativeHttp | None = None,
        worker: str | None = None,
        *,
        declared: Sequence[ModelSettings] = (),
        jobs: JobEndpoints | None = None,
        feedback: FeedbackEndpoint | None = None,
        tracing: Tracing | None = None,
        project: Settings | None = None,
        commit: GroupCommit | None = None,
        troubles: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        self._engine, self._commit = engine, commit
        self._worker, self._troubles = worker, troubles
        self._native = native
        ids, counters = (make_ids(settings), WorkerCounters()) if native is None else (native.ids, native.counters)
        self._counters = counters
        self._router = Router(
            engine,
            ids,
            declared,
            counters,
            max_body_bytes=settings.max_body_bytes,
            n_cores=cores_of_worker(settings.workers, is_pinned=settings.pin_cores),
            commit=commit,
        )
        if native is not None:
            native.queue_with(self._router)
            if commit is not None:
                native.audit_with(commit)
        self._predict = PredictEndpoint(engine, settings, ids, counters, self._router, jobs=jobs, tracing=tracing)
        self._explanations = None
        if project is not None:
            self._explanations = ExplanationEndpoint(
                RecordedExplanations(project, self._router.find), counters, is_open=settings.tells_earlier
            )
        self._starlette = Starlette(
            routes=[
                Route("/features/{service}", FeaturesEndpoint(engine, settings, counters), methods=["POST"]),
                Route("/livez", self._livez, methods=["GET"]),
                Route("/readyz", self._readyz, methods=["GET"]),
                *protocol_routes(
                    engine, self._router, settings, counters, os.environ, None if native is None else native.statistics
                ),
                *(() if self._explanations is None else self._explanations.routes()),
                *(() if jobs is None else jobs.routes()),
                *(() if feedback is None else [Route("/feedback", feedback, methods=["POST"])]),
            ],
            exception_handlers={HTTPException: self._http_error},
            lifespan=self._lifespan,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection scope."""
        if scope["type"] == "http" and scope["path"].startswith(PREDICT):
            if scope["method"] == "POST":
                await self._predict(scope, receive, send)
            else:
                self._counters.count_reply(405, "method_not_allowed")
                reply = {"error": f"Expected POST, got {scope['method']}", "code": "method_not_allowed"}
                await respond(send, 405, reply, payload.JSON, [(b"allow", b"POST")])
            return
        await self._starlette(scope, receive, send)

    @property
    def limits(self) -> list[str]:
        """What each tier of this worker may hold, in words."""
        return describe(self._router.limits)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        watch = asyncio.create_task(keep_current(self._engine))
        if self._commit is not None:
            self._commit.attach()
        try:
            yield
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
            await self._router.close()
            if self._explanations is not None:
                self._explanations.close()
            if self._native is not None:
                self._native.close()

    async def _http_error(self, request: Request, error: Exception) -> Response:
        """Starlette's own refusals (404, 405) in the body shape of every other error."""
        status, detail = (error.status_code, error.detail) if isinstance(error, HTTPException) else (500, "")
        code = {404: "unknown_path", 405: "method_not_allowed"}.get(status, "http_error")
        text = {
            404: (
                "Expected /predict/{model}, /features/{service}, /v2/..., /v1/models/..., /invocations, "
                "/get-online-features, /feedback, /jobs/{id}, /predictions/{id}/explanation, /ping, /livez or /readyz, got "
                "another path"
            ),
            405: "Expected another method on this path",
        }.get(status, detail)
        self._counters.count_reply(status, code)
        return _json({"error": text, "code": code}, status, allow_header(request, status))

    async def _livez(self, _request: Request) -> Response:
        return _json({"status": "alive"})

    async def _readyz(self, _request: Request) -> Response:
        """200 when something can be served; the body says what, and what is wrong."""
        routes = self._engine.routes
        ready = routes.is_ready
        waiting = (
            "waiting for what the problems name"
            if routes.problems
            else "materialize a feature service, promote a model"
        )
        body: dict[str, Any] = {
            "status": "ready" if ready else f"nothing to serve: {waiting}",
            "models": {name: dict(model.aliases) for name, model in sorted(routes.models.items())},
            "services": {name: base.manifest.base_name for name, base in sorted(routes.services.items())},
            "limits": self.limits,
            "problems": [*routes.problems, *self._engine.watch_problems, *self._router.problems, *self._troubles()],
        }
        if self._worker is not None:
            body["worker"] = self._worker
        if self._native is not None:
            body["fast_path"] = self._native.counts  # of this worker
        return _json(body, 200 if ready else 503)


def _json(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(orjson.dumps(body), status, headers, media_type=payload.JSON)
