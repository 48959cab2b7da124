"""`POST /predict/{model}`: plain ASGI, because every layer between the socket and the plan costs each request."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tiercel._hot.reply import ReplyIds
from tiercel.errors import JobsDisabledError, RequestError, TiercelError
from tiercel.http import payload
from tiercel.http.body import announced_bytes, header, read_body, read_ns_of
from tiercel.http.presence import while_connected
from tiercel.http.request import parse_predict
from tiercel.http.status import body_of, headers_of, request_id_of, status_of
from tiercel.http.timing import server_timing
from tiercel.http.tracing import find_parent
from tiercel.monitor.counting import WorkerCounters
from tiercel.serving.deadline import TIER_DEFAULT, Budget, budget_of
from tiercel.serving.rollout import CHAMPION_ARM
from tiercel.serving.router import Question, Router, Served
from tiercel.types import Tier

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import Receive, Scope, Send

    from tiercel.http.jobs import JobEndpoints
    from tiercel.http.tracing import Tracing
    from tiercel.serving.deadline import Deadline
    from tiercel.serving.engine import Engine
    from tiercel.serving.limits import Stay
    from tiercel.settings import ServerSettings

__all__ = ["PredictEndpoint", "ReplyIds", "make_ids", "respond", "send_body"]

log = logging.getLogger("tiercel.http")

#: What is smaller is read within a millisecond or so.
BESIDE_BYTES = 1 << 16

Headers = Sequence[tuple[bytes, bytes]]


def make_ids(settings: ServerSettings) -> ReplyIds:
    """Ids for the replies of one worker; all its paths share them."""
    return ReplyIds(settings.max_rows)


class PredictEndpoint:
    """Scores what a request names: `/predict/flights`, `/predict/flights@challenger`, `/predict/flights:3`.

    Args:
        engine: what serves.
        settings: the limits.
        ids: of the replies.
        counters: of the worker.
        router: decides who answers.
        jobs: takes what is asked for as a batch; None: nobody does.
        tracing: exports spans of requests that belong to a trace; None: no.
    """

    def __init__(
        self,
        engine: Engine,
        settings: ServerSettings,
        ids: ReplyIds | None = None,
        counters: WorkerCounters | None = None,
        router: Router | None = None,
        *,
        jobs: JobEndpoints | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self._max_rows = settings.max_rows
        self._max_body_bytes = settings.max_body_bytes
        self._body_timeout_s = settings.body_timeout_s
        self._ids = make_ids(settings) if ids is None else ids
        self._router = Router(engine, self._ids) if router is None else router
        self._counters = WorkerCounters() if counters is None else counters
        self._jobs, self._tracing = jobs, tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; every failure becomes an error body, none escapes to the server."""
        kind, code = payload.JSON, None
        headers: Headers = ()
        done: _Done | None = None
        begin_ns, wall_ns = read_ns_of(scope), time.time_ns()
        try:
            # The reply, and so an error too, is in the request's own format.
            kind = payload.media_type(header(scope, b"content-type"))
            budget = budget_of(scope["headers"], begin_ns)
            reference = scope["path"][len("/predict/") :]
            with self._router.enter(reference, announced_bytes(scope)) as stay, ExitStack() as places:
                body = await read_body(scope, receive, max_bytes=self._max_body_bytes, timeout_s=self._body_timeout_s)
                status, content, headers, done = await self._predict(
                    reference, body, kind, budget, receive, stay, places
                )
        except TiercelError as error:
            request_id = request_id_of(scope["headers"])
            status, content, code = status_of(error), payload.encode(body_of(error, request_id), kind), error.code
            headers = headers_of(error, request_id)
            if status == 500:
                log.exception("Prediction failed")
        except Exception:  # whatever went wrong, the client gets an answer and the log the reason
            log.exception("Prediction failed unexpectedly")
            failure = {"error": "The server failed; its log has the reason", "code": "internal_error"}
            status, content, code = 500, payload.encode(failure, kind), failure["code"]
        self._counters.count_reply(status, code)
        await send_body(send, status, content, kind, headers)
        if done is not None:
            self._router.after(done.served, done.question)
        if self._tracing is not None:
            self._trace(scope, begin_ns, wall_ns, status, code, done)

    async def _predict(
        self,
        reference: str,
        body: bytes,
        kind: str,
        budget: Budget,
        receive: Receive,
        stay: Stay | None,
        places: ExitStack,
    ) -> tuple[int, bytes, Headers, _Done | None]:
        # A large job's body would keep the loop for many milliseconds. One that asks for a job says so; looking for the word
        # costs next to nothing, and a body that has it by accident is read beside the loop too.
        is_large = len(body) >= BESIDE_BYTES
        if self._jobs is not None and is_large and (self._router.is_job(stay) or b"batch" in body):
            stay = places.enter_context(self._router.enter_job(stay, len(body))) or stay
            data = await self._jobs.beside(payload.decode, body, kind, self._max_rows)
        else:
            data = payload.decode(body, kind, self._max_rows)
        request = parse_predict(data, self._max_rows)
        of_exchange, of_answer = budget, Budget(budget.begin_ns)
        if request.deadline_ms is not None:
            of_answer = of_answer.with_us(request.deadline_ms, 1e3, "deadline_ms", "$.deadline_ms")
            budget = budget.with_us(request.deadline_ms, 1e3, "deadline_ms", "$.deadline_ms")
        question = Question(request.entities, request.features, request.now_us)
        plan = await self._router.plan_for_job(reference, request.tier)
        if plan is not None:
            if request.explain is not None:
                raise RequestError(
                    "Expected a question without $.explain for a batch job, whose scores have no ids to explain them by. Ask for "
                    "the explanation of a row in another tier",
                    code="invalid_explain",
                )
            if self._jobs is None:
                raise JobsDisabledError(
                    f"Expected a prediction in another tier than {Tier.BATCH}: this server takes no jobs"
                )
            places.enter_context(self._router.enter_job(stay, len(body)))
            # Here the two differ: the exchange ends with the 202, the answer comes later.
            dues = of_exchange.over(Tier.BATCH), of_answer.over(Tier.BATCH)
            status, told, headers = await self._jobs.submit(plan, question, *dues)
            self._counters.add("jobs_submitted")
            return status, payload.encode(told, kind), headers, None
        places.close()
        served = await while_connected(
            self._router.serve(reference, question, budget, request.tier, request.explain), receive
        )
        content = served.prepared.reply(0 if kind == payload.JSON else 1, self._ids, served.flags)
        await self._router.make_durable(reference, served)
        more: dict[str, Any] = {}
        if served.degraded is not None:
            more["degraded"] = served.degraded.to_json()
        if served.arm != CHAMPION_ARM:
            more["arm"] = served.arm
        if more:
            content = payload.extend(content, more, kind)
        return 200, content, [timing_header(served.prepared.stage_us(), served.deadline)], _Done(served, question)

    def _trace(
        self, scope: Scope, begin_ns: int, wall_ns: int, status: int, code: str | None, done: _Done | None
    ) -> None:
        tracing, parent = self._tracing, find_parent(scope["headers"])
        if tracing is None or parent is None:
            return
        attributes: dict[str, Any] = {
            "http.request.method": scope["method"],
            "http.route": "/predict/{model}",
            "http.response.status_code": status,
        }
        stage_us: Mapping[str, float] = {}
        if done is not None:
            plan = done.served.prepared.plan
            attributes |= {"tiercel.model": plan.model, "tiercel.version": plan.version, "tiercel.tier": plan.tier}
            stage_us = done.served.prepared.stage_us()
        total_us = (time.monotonic_ns() - begin_ns) / 1000
        tracing.add(
            parent, "POST /predict/{model}", begin_ns=wall_ns, total_us=total_us, stage_us=stage_us,
            attributes=attributes, error=code,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Done:
    """An answered question, for what is done after the reply."""

    served: Served
    question: Question


def timing_header(stage_us: Mapping[str, float], deadline: Deadline | None) -> tuple[bytes, bytes]:
    """Server-Timing: each stage in milliseconds, and the budget where somebody asked for one."""
    value = server_timing(stage_us)
    if deadline is not None and deadline.source != TIER_DEFAULT:
        value += f', budget;dur={deadline.budget_us / 1000:.3f};desc="{deadline.source}"'
    return b"server-timing", value.encode("ascii")


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
