"""Shadow scoring: another version scores what was already answered, on capacity nobody else wants.

A shadow must never be felt. It is offered a question only after the reply is written; what finds the queue full is dropped,
the newest first, because those that wait have waited; one runs at a time, each after a look whether the worker is idle; what
it raises or returns goes to the log, the counts and the recorder, and nowhere else. While nothing waits there is no task
and no timer.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tiercel.serving.rollout import is_finite

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

log = logging.getLogger("tiercel.serving")

#: Between looks whether the worker is idle; doubles up to the second while it is not.
FIRST_PAUSE_S, LAST_PAUSE_S = 0.002, 0.064
#: What waited longer is dropped: the features it would read are no longer those the champion read.
MAX_WAIT_S = 5.0
#: A shadow that has not answered by then is given up, or it would be the last.
MAX_RUN_S = 10.0


@dataclass(slots=True)
class ShadowCounts:
    """What became of the questions that were offered; each is counted once, when that is known."""

    recorded: int = 0
    full: int = 0  # no room
    late: int = 0  # waited too long
    failed: int = 0  # raised, or took too long
    not_finite: int = 0
    closed: int = 0  # the worker ended


#: The worker's cell that each outcome is counted in.
_CELLS = {
    "recorded": "shadow_scored",
    "full": "shadow_dropped",
    "late": "shadow_dropped",
    "failed": "shadow_failed",
    "not_finite": "shadow_failed",
    "closed": "shadow_dropped",
}


@dataclass(frozen=True, slots=True)
class _Waiting:
    label: str
    work: Callable[[], Any]
    record: Callable[[Any], None]
    n_bytes: int
    since_s: float


class ShadowQueue:
    """Questions that wait to be scored by a shadow.

    Args:
        max_waiting: how many may wait.
        is_idle: whether there is capacity to spare, at this moment.
        max_bytes: how much they may hold in all: a question keeps the values of its request.
        clock_s: monotonic.
        sleep: how it waits.
        count: called with the worker's cell of an outcome, and how many had it; None: only `counts` tells.

    Attributes:
        counts: what became of them.

    Threads: the event loop's only; `offer` needs it to be running.
    """

    def __init__(
        self,
        max_waiting: int,
        is_idle: Callable[[], bool],
        *,
        max_bytes: int = 16 << 20,
        max_wait_s: float = MAX_WAIT_S,
        max_run_s: float = MAX_RUN_S,
        clock_s: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        count: Callable[[str, int], Any] | None = None,
    ) -> None:
        self._count = count
        self._max_waiting, self._max_bytes = max_waiting, max_bytes
        self._max_wait_s, self._max_run_s = max_wait_s, max_run_s
        self._is_idle, self._clock_s, self._sleep = is_idle, clock_s, sleep
        self._waiting: deque[_Waiting] = deque()
        self._n_bytes = 0
        self._runner: asyncio.Task[None] | None = None
        self._is_closed = False
        self._told: set[str] = set()
        self.counts = ShadowCounts()

    def __len__(self) -> int:
        return len(self._waiting)

    def offer(self, label: str, work: Callable[[], Any], record: Callable[[Any], None], *, n_bytes: int = 0) -> bool:
        """Queue a question for the shadow. Never waits, never raises.

        Args:
            label: of the version, "name:version"; its failures are logged once under it.
            work: scores the question: returns the scores (one per row, or a list per row), or an awaitable of them.
            record: is given the scores, all of them finite.
            n_bytes: about what the question holds.

        Returns:
            False: there is no room, or the worker is ending.
        """
        if self._is_closed:
            self._note("closed")
            return False
        if len(self._waiting) >= self._max_waiting or self._n_bytes + n_bytes > self._max_bytes:
            self._note("full")
            return False
        self._waiting.append(_Waiting(label, work, record, n_bytes, self._clock_s()))
        self._n_bytes += n_bytes
        if self._runner is None or self._runner.done():
            self._runner = asyncio.get_running_loop().create_task(self._run(), name="shadow")
        return True

    async def close(self, drain_s: float = 0.0) -> None:
        """Take no more; run what waits for at most `drain_s`, as far as the worker is idle, and drop the rest."""
        self._is_closed = True
        if self._runner is not None:
            if drain_s > 0 and not self._runner.done():
                await asyncio.wait({self._runner}, timeout=drain_s)
            self._runner.cancel()
            await asyncio.gather(self._runner, return_exceptions=True)
        self._note("closed", len(self._waiting))
        self._waiting.clear()
        self._n_bytes = 0

    async def _run(self) -> None:
        pause_s = FIRST_PAUSE_S
        while self._waiting:
            # Also after each one: whatever arrived meanwhile is read and answered before the next is begun.
            await self._sleep(0)
            if not self._is_idle():
                self._drop_late()
                await self._sleep(pause_s)
                pause_s = min(2 * pause_s, LAST_PAUSE_S)
                continue
            pause_s = FIRST_PAUSE_S
            self._drop_late()
            if self._waiting:
                await self._answer(self._take())

    def _take(self) -> _Waiting:
        item = self._waiting.popleft()
        self._n_bytes -= item.n_bytes
        return item

    def _drop_late(self) -> None:
        oldest_s = self._clock_s() - self._max_wait_s
        while self._waiting and self._waiting[0].since_s < oldest_s:
            self._take()
            self._note("late")

    async def _answer(self, item: _Waiting) -> None:
        try:
            scores = item.work()
            if inspect.isawaitable(scores):
                async with asyncio.timeout(self._max_run_s):
                    scores = await scores
            if not is_finite(scores):
                self._note("not_finite")
                self._tell(item.label, "its scores are not finite numbers")
                return
            item.record(scores)
            self._note("recorded")
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                self._note("closed")
                raise
            self._note("failed")  # what it waited for was cancelled, not this
            self._tell(item.label, "it was cancelled")
        except Exception as error:  # noqa: BLE001 - whatever a shadow does is nobody's but the log's
            self._note("failed")
            self._tell(item.label, f"{type(error).__name__}: {error}", error)

    def _note(self, outcome: str, n: int = 1) -> None:
        setattr(self.counts, outcome, getattr(self.counts, outcome) + n)
        if self._count is not None:
            self._count(_CELLS[outcome], n)

    def _tell(self, label: str, why: str, error: Exception | None = None) -> None:
        """Once for each version: a shadow that fails, fails thousands of times."""
        if label not in self._told:
            self._told.add(label)
            log.warning(
                "Shadow %s: %s. Nobody's answer depends on it; further failures are only counted.",
                label,
                why,
                exc_info=error,
            )
