"""Batch jobs over HTTP: accepted by a prediction's path, looked after under `/jobs` (data plane) and `/api/jobs` (control plane).

Everything here waits for the disk, so everything here runs beside the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from tiercel.errors import DeadlineError, JobsDisabledError, JobStateError, RequestError, TiercelError
from tiercel.http import payload
from tiercel.http.job_replies import ARROW, encode_results, results_length
from tiercel.http.status import body_of, headers_of, request_id_of, status_of
from tiercel.monitor.counting import WorkerCounters
from tiercel.serving.job_question import first_row, measure
from tiercel.serving.jobs import JobStore
from tiercel.serving.score_check import predict

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from starlette.requests import Request

    from tiercel._hot.plan import ServingPlan
    from tiercel.serving.deadline import Deadline
    from tiercel.serving.job_results import ResultsReader
    from tiercel.serving.jobs import JobStatus
    from tiercel.serving.router import Question
    from tiercel.settings import Settings

log = logging.getLogger("tiercel.http")

_T = TypeVar("_T")

#: Nobody is told to come back sooner, or later.
MIN_RETRY_S, MAX_RETRY_S = 1, 3600
MAX_LISTED = 1000
#: Of results that are sent in one piece.
BLOCK_BYTES = 1 << 18


def retry_after(wait_us: int) -> tuple[bytes, bytes]:
    """The header that says when to come back: whole seconds, as measured, within reason."""
    return b"retry-after", str(min(MAX_RETRY_S, max(MIN_RETRY_S, math.ceil(wait_us / 1e6)))).encode()


class JobEndpoints:
    """The data plane's side of the batch tier.

    Args:
        settings: the project.
        counters: of the worker.
        store: default: the project's.

    Threads: the event loop's only.
    """

    def __init__(
        self, settings: Settings, counters: WorkerCounters | None = None, store: JobStore | None = None
    ) -> None:
        self._is_enabled = settings.control.enabled
        self._store = JobStore(settings.state_dir) if store is None else store
        self._counters = WorkerCounters() if counters is None else counters
        # One: what is read and written down there competes for the interpreter with the loop, and never with more than one.
        self._submitting = ThreadPoolExecutor(1, "tiercel-jobs")

    async def beside(self, work: Callable[..., _T], *arguments: Any) -> _T:
        """Do a part of a submission in the thread that all of them share, in turn."""
        return await asyncio.get_running_loop().run_in_executor(self._submitting, partial(work, *arguments))

    def routes(self) -> list[Route]:
        """`GET` and `DELETE /jobs/{id}`, `GET /jobs/{id}/results`."""
        return [
            Route("/jobs/{id}", self._answered(self._status), methods=["GET"]),
            Route("/jobs/{id}", self._answered(self._cancel), methods=["DELETE"]),
            Route("/jobs/{id}/results", self._answered(self._results), methods=["GET"]),
        ]

    async def submit(
        self, plan: ServingPlan, question: Question, reply: Deadline | None = None, results: Deadline | None = None
    ) -> tuple[int, dict[str, Any], list[tuple[bytes, bytes]]]:
        """Accept a question as a job of the plan's version; what its first row shows to be wrong is refused at once.

        Args:
            plan: of the version that will answer.
            question: what to score.
            reply: when this call's own answer is due, as proxies and clients say in headers; None: nobody says.
            results: when the job's are, as the question says; None: whenever they are there.

        Returns:
            Status 202, body and headers of the reply. The job is on disk.

        Raises:
            JobsDisabledError: there is no control process to run it.
            RequestError, NotFoundError: the question does not fit the model.
            DeadlineError: whoever asked is gone already, or the job would be late, as measured. Nothing was accepted.
            CapacityError: too much waits already.
            JobStorageError: it cannot be written.
        """
        if not self._is_enabled:
            raise JobsDisabledError(
                "Expected a prediction in another tier: batch jobs are run by the control process, which is switched off. "
                "Set control.enabled = true in tiercel.toml and restart the server"
            )
        status = await self.beside(self._accept, plan, question, reply, results)
        where = f"/jobs/{status.job.id}"
        wait_us = await asyncio.to_thread(self._store.wait_us, status)
        body = {"job": status.job.id, "status": where, "results": f"{where}/results"}
        return 202, body, [(b"location", where.encode()), retry_after(wait_us)]

    def _accept(
        self, plan: ServingPlan, question: Question, reply: Deadline | None, results: Deadline | None
    ) -> JobStatus:
        measure(question)
        entities, features = first_row(question)
        predict(plan, entities, features, question.now_us)
        signature = plan.signature
        classes = signature.classes if signature.n_outputs > 1 else ()
        if reply is not None:
            _require_listener(reply)
        due_us = None if results is None else time.time_ns() // 1000 + results.remaining_us()
        job = self._store.submit(question, model=plan.model, version=plan.version, classes=classes, due_us=due_us)
        return self._store.status(job.id)

    async def _status(self, request: Request) -> Response:
        status, wait_us = await asyncio.to_thread(_look, self._store, request.path_params["id"])
        return _reply(request, status.to_json(), wait_us=None if status.state.is_final else wait_us)

    async def _cancel(self, request: Request) -> Response:
        status = await asyncio.to_thread(self._store.cancel, request.path_params["id"])
        return _reply(request, status.to_json())

    async def _results(self, request: Request) -> Response:
        kind = accepted_type(request.headers.get("accept", ""), (payload.JSON, payload.MSGPACK, ARROW))
        status, reader = await asyncio.to_thread(self._store.results, request.path_params["id"])
        length = results_length(status, kind)
        headers = {} if length is None else {"content-length": str(length)}
        return StreamingResponse(_stream(status, reader, kind), 200, headers, media_type=kind)

    def _answered(self, endpoint: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """An endpoint whose failures become replies, counted with the others."""

        async def answer(request: Request) -> Response:
            code = None
            try:
                response = await endpoint(request)
            except Exception as error:  # noqa: BLE001 - the client gets an answer, the log the reason
                response, code = _failure(request, error)
            self._counters.count_reply(response.status_code, code)
            return response

        return answer


class JobAdmin:
    """The control plane's side: what there is, and an end to it.

    Args:
        store: of the project.
    """

    def __init__(self, store: JobStore) -> None:
        self._store = store

    def routes(self) -> list[Route]:
        """`GET /api/jobs`, `GET /api/jobs/{id}`, `POST /api/jobs/{id}/cancel`."""
        return [
            Route("/api/jobs", self._list, methods=["GET"]),
            Route("/api/jobs/{id}", self._status, methods=["GET"]),
            Route("/api/jobs/{id}/cancel", self._cancel, methods=["POST"]),
        ]

    async def _list(self, request: Request) -> Response:
        """The newest jobs (`?limit=`, 100 by default), how many wait or run, and how many were removed."""
        try:
            limit = _limit(request.query_params.get("limit", "100"))
            jobs = await asyncio.to_thread(self._store.list_jobs, limit)
            n_open = len(await asyncio.to_thread(self._store.open_jobs))
            removed = await asyncio.to_thread(self._store.removed)
        except Exception as error:  # noqa: BLE001 - as above
            return _failure(request, error)[0]
        return _reply(request, {"jobs": [job.to_json() for job in jobs], "open": n_open, "removed": asdict(removed)})

    async def _status(self, request: Request) -> Response:
        try:
            status, wait_us = await asyncio.to_thread(_look, self._store, request.path_params["id"])
        except Exception as error:  # noqa: BLE001 - as above
            return _failure(request, error)[0]
        return _reply(request, status.to_json(), wait_us=None if status.state.is_final else wait_us)

    async def _cancel(self, request: Request) -> Response:
        try:
            status = await asyncio.to_thread(self._store.cancel, request.path_params["id"])
        except Exception as error:  # noqa: BLE001 - as above
            return _failure(request, error)[0]
        return _reply(request, status.to_json())


def accepted_type(accept: str, known: tuple[str, ...]) -> str:
    """The best of `known` for an Accept header; the first where nothing fits or nothing is said (RFC 9110, 12.5.1)."""
    best, best_quality = known[0], 0.0
    for part in accept.lower().split(","):
        name, *parameters = [piece.strip() for piece in part.split(";")]
        name = payload.MSGPACK if name in payload.MSGPACK_NAMES else name
        quality = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    quality = float(parameter[2:])
                except ValueError:
                    quality = 0.0
        name = known[0] if name in {"*/*", "application/*"} else name
        if name in known and quality > best_quality:
            best, best_quality = name, quality
    return best


def _require_listener(reply: Deadline) -> None:
    """Refuse a job whose id nobody would hear of: it would be run for nobody.

    Raises:
        DeadlineError: the call's own deadline is over.
    """
    if reply.remaining_us() < 0:
        raise DeadlineError(
            f"Expected a batch job to be submitted before the deadline of this call, which was over already, got 0.000 ms: "
            f"what is left of {reply.budget_us / 1000:g} ms from {reply.source}. Nothing was accepted. Allow the call more "
            f"time; the results' own deadline is $.deadline_ms",
            budget_us=reply.budget_us,
            needed_us=0,
        )


def _look(store: JobStore, job_id: str) -> tuple[JobStatus, int]:
    status = store.status(job_id)
    return status, store.wait_us(status)


async def _stream(status: JobStatus, reader: ResultsReader, kind: str) -> AsyncIterator[bytes]:
    """The results in pieces of BLOCK_BYTES or more. A file that turns out to be damaged ends without the reply's end."""
    parts = encode_results(status, reader, kind)
    try:
        while block := await asyncio.to_thread(_gather, parts):
            yield block
    finally:
        reader.close()


def _gather(parts: Any) -> bytes:
    gathered, n_bytes = [], 0
    for part in parts:
        gathered.append(part)
        n_bytes += len(part)
        if n_bytes >= BLOCK_BYTES:
            break
    return b"".join(gathered)


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= MAX_LISTED):
        raise RequestError(f"Expected limit to be a number from 1 to {MAX_LISTED}, got {text[:30]!r}")
    return int(text)


def _reply(request: Request, body: dict[str, Any], status: int = 200, *, wait_us: int | None = None) -> Response:
    """In JSON, or msgpack for those who ask."""
    kind = accepted_type(request.headers.get("accept", ""), (payload.JSON, payload.MSGPACK))
    response = Response(payload.encode(body, kind), status, media_type=kind)
    if wait_us is not None:
        response.raw_headers.append(retry_after(wait_us))
    return response


def _failure(request: Request, error: Exception) -> tuple[Response, str]:
    """The reply to a failed request, and its code."""
    if not isinstance(error, TiercelError):
        log.error("Jobs failed unexpectedly", exc_info=error)
        body = {"error": "The server failed; its log has the reason", "code": "internal_error"}
        return _reply(request, body, 500), "internal_error"
    status = status_of(error)
    if status >= 500:
        log.error("%s", error)
    wait_us = error.wait_us if isinstance(error, JobStateError) else None
    request_id = request_id_of(request.headers.raw)
    response = _reply(request, body_of(error, request_id), status, wait_us=wait_us)
    response.raw_headers += headers_of(error, request_id)
    return response, error.code
