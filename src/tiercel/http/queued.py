"""Where the compiled path's questions wait that are scored in batches: their door to the router's queues."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgpack
import orjson

from tiercel._hot.fast_path import Refusal
from tiercel.errors import CapacityError, DeadlineError
from tiercel.http.raw_reply import error_bytes
from tiercel.http.socket_wait import SocketWait
from tiercel.http.status import status_of
from tiercel.serving.answers import Degraded, degrade_flags
from tiercel.serving.asked import require_time
from tiercel.serving.deadline import Deadline
from tiercel.serving.ladder import Candidate, Reason, Rung, reason_of, too_late
from tiercel.serving.waiters import Seat

if TYPE_CHECKING:
    import asyncio

    from tiercel._hot.fast_path import FastPath, Place, Refusals
    from tiercel._hot.plan import Prepared, ServingPlan
    from tiercel._hot.protocol import HotProtocol
    from tiercel.monitor.counting import WorkerCounters
    from tiercel.serving.router import Router
    from tiercel.serving.schedule import Lines

#: Versions that others stood in for, and are remembered with it. No plan is: it would keep its base from going.
MAX_STAND_INS = 100
#: How long a refusal is given again without a look: a queue that is full, a time that is over, a place that is needed.
FULL_NS = 1_000_000
LATE_NS = 1_000_000_000
SHED_NS = 10_000_000
#: Of the monotonic clock.
NEVER_NS = 1 << 62


class QueueDoor:
    """What `FastPath.queue` is in a server; see `tiercel._hot.fast_path.Queue`.

    Args:
        router: whose queues these are.
        path: whose requests wait.
        counters: of the worker.

    Threads: the event loop's only.
    """

    def __init__(self, router: Router, path: FastPath, counters: WorkerCounters) -> None:
        self._router, self._path, self._counters = router, path, counters
        self._wait: SocketWait | None = None
        self._stand_ins: dict[tuple[str, int, str], tuple[tuple[bytes, bytes], int]] = {}

    def enter(self, asked: Prepared, hot: HotProtocol, close: bool, can_leave: bool, /) -> Place | bytes | str | None:
        """Queue a question; a question that finds no room is refused here, unless somebody else may answer it."""
        try:
            return self._router.take(Seat(asked, hot, self._path.queue_due_ns(asked, can_leave), can_leave))
        except CapacityError as error:
            if asked.plan.has_stand_in:
                return "overloaded"
            reply = self.refusal(asked, error, hot, close)
            if close:  # which says so, and nobody else's is to
                return reply
            slack_ns = asked.due_ns - time.monotonic_ns()
            self._keep(self._path.full, asked, error, reply, hot, for_ns=FULL_NS, slack_ns=slack_ns)
            return reply
        except DeadlineError as error:
            if asked.plan.has_stand_in:
                return "deadline"
            # Without a deadline of its own, a question that takes longer than its tier promises is given that time.
            if not asked.is_asked and self._router.outlasts_tier(asked):
                return None
            return self.refusal(asked, error, hot, close)

    def lines(self, plan: ServingPlan, /) -> Lines:
        """See `tiercel._hot.fast_path.Queue`."""
        return self._router.lines(plan)

    def stand_in(self, plan: ServingPlan, reason: str, /) -> tuple[ServingPlan, tuple[bytes, bytes], int] | None:
        """See `tiercel._hot.fast_path.Queue`."""
        fallback = self._router.compiled_fallback(plan)
        if fallback is None:
            return None
        known = self._stand_ins.get((plan.model, plan.version, reason))
        if known is None:
            degraded = Degraded(Rung.FALLBACK.value, f"{plan.model}:{plan.version}", reason)
            more = {"degraded": degraded.to_json()}
            # As `payload.extend` has it.
            told = b"," + orjson.dumps(more)[1:], msgpack.packb("degraded") + msgpack.packb(more["degraded"])
            if len(self._stand_ins) >= MAX_STAND_INS:
                self._stand_ins.clear()
            known = told, degrade_flags(Rung.FALLBACK, Reason(reason))
            self._stand_ins[plan.model, plan.version, reason] = known
        return fallback, *known

    def reason(self, error: Exception, /) -> str:
        """See there."""
        return reason_of(error).value

    def poll(self, loop: asyncio.AbstractEventLoop, /) -> None:
        """Keep the queues moving while nothing but reading happens, and see how far behind reading is."""
        if self._wait is None:
            self._wait = SocketWait(loop, reader=self._path)
        self._path.socket_wait_ns = self._wait.probe()
        self._path.socket_peak_ns = self._wait.peak_ns
        self._router.poll()

    def close(self) -> None:
        """The event loop is about to end."""
        for refusals in (self._path.late, self._path.full, self._path.shed):
            refusals.clear()
        self._path.aside.close()
        if self._wait is not None:
            self._wait.close()
            self._wait = None

    def shed(self, asked: Prepared, hot: HotProtocol, close: bool, /) -> bytes:
        """Refuse a question that is to make room for others, since reading is behind."""
        behind_us = self._path.socket_wait_ns // 1000
        error = CapacityError(
            f"Requests come faster than they are answered: they wait {behind_us / 1000:.3f} ms to be read, and some are "
            f"refused so that the others are in time. Try again later, or ask fewer at once",
            predicted_wait_us=max(1, behind_us),
        )
        reply = self.refusal(asked, error, hot, close)
        if not close:
            self._keep(self._path.shed, asked, error, reply, hot, for_ns=SHED_NS, slack_ns=NEVER_NS)
        return reply

    def late(self, asked: Prepared, hot: HotProtocol, close: bool, /) -> bytes | None:
        """Refuse a question whose deadline is too near, or over."""
        plan, deadline = asked.plan, Deadline(asked.due_ns - 1000 * asked.budget_us, asked.budget_us, asked.source)
        is_over = deadline.remaining_us() <= 0
        error: DeadlineError | None = None
        if plan.has_stand_in:
            error = self._too_late_for_all(asked) if is_over else None
        else:
            try:
                require_time(deadline, plan.need_us(asked.n_rows), plan.model)
            except DeadlineError as found:
                error = found
        if error is None:
            return None
        reply = self.refusal(asked, error, hot, close)
        if is_over and not close:  # once it is over, the words do not depend on how long
            self._keep(self._path.late, asked, error, reply, hot, for_ns=LATE_NS, slack_ns=0)
        return reply

    def _too_late_for_all(self, asked: Prepared) -> DeadlineError | None:
        """What the ladder says to a question whose deadline is over; None: somebody may have an answer already.

        PERF: on the general path each takes 0.15 ms more, in which the next ones get too late: a worker that was held up
        for a moment would not catch up again (bench_slowed).
        """
        fallback = self._router.compiled_fallback(asked.plan, is_last=True)
        if fallback is None:
            return None
        return too_late(
            [
                Candidate(rung, plan.model, plan.version, int(plan.need_us(asked.n_rows)))
                for rung, plan in ((Rung.CHAMPION, asked.plan), (Rung.FALLBACK, fallback))
            ],
            asked.budget_us,
        )

    def refusal(self, asked: Prepared, error: Exception, hot: HotProtocol, close: bool, /) -> bytes:
        """The same reply that `PredictEndpoint` would give."""
        if isinstance(error, DeadlineError):
            self._counters.add("refused_deadline")
            error = DeadlineError(str(error), budget_us=asked.budget_us, needed_us=error.needed_us)
        elif isinstance(error, CapacityError):
            self._counters.add("refused_capacity")
        return error_bytes(error, asked.kind, self._counters, hot.server_state.default_headers, close=close)

    def _keep(
        self,
        refusals: Refusals,
        asked: Prepared,
        error: CapacityError | DeadlineError,
        reply: bytes,
        hot: HotProtocol,
        *,
        for_ns: int,
        slack_ns: int,
    ) -> None:
        """Have the compiled path give a refusal again, for so long, to questions like this that have no more time left."""
        refusals.keep(
            asked,
            Refusal(
                reply,
                hot.server_state.default_headers,
                status=status_of(error),
                code=error.code,
                cell="refused_deadline" if isinstance(error, DeadlineError) else "refused_capacity",
                until_ns=time.monotonic_ns() + for_ns,
                slack_ns=slack_ns,
            ),
        )
