"""The near-realtime queues of a worker: one for each version that needs one, over a few threads that all share."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from tiercel.priority import stand_back
from tiercel.serving.cost import CostCurve
from tiercel.serving.inline_scoring import Allowance, InlineScoring
from tiercel.serving.near_realtime import Batcher
from tiercel.serving.score_check import named

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy as np
    from numpy.typing import NDArray

    from tiercel._hot.plan import ServingPlan
    from tiercel.monitor.counting import WorkerCounters
    from tiercel.serving.schedule import Lines
    from tiercel.serving.waiters import Seat

#: Scoring threads of a worker. Two: while one version scores, another need not wait for all of it.
N_THREADS = 2
#: Theirs: what is scored here has time, what the event loop answers has not. On a core that is always busy they still get
#: a quarter of it.
NICENESS = 5


class Queues:
    """Made when first asked; closed when their version is no longer served.

    Args:
        cost_of: the measured cost of a plan's scorer; None: not measured.
        counters: of the worker; None: nothing is counted.

    Threads: the event loop's only.
    """

    def __init__(
        self, cost_of: Callable[[ServingPlan], CostCurve | None], counters: WorkerCounters | None = None
    ) -> None:
        self._cost_of, self._counters = cost_of, counters
        self._allowance = Allowance()
        self._executor: ThreadPoolExecutor | None = None
        self._batchers: dict[int, tuple[object, str, Batcher]] = {}  # by id of the scorer, which the entry keeps alive
        self._closing: set[asyncio.Task[None]] = set()

    def of(self, plan: ServingPlan) -> Batcher:
        """The plan's queue. A new base makes a new plan over the same scorer, and so the same queue."""
        found = self._batchers.get(id(plan.scorer))
        if found is None:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(N_THREADS, "tiercel-score", stand_back, (NICENESS,))
            cost = self._cost_of(plan) or CostCurve.unmeasured()
            batcher = Batcher(
                named(plan),
                cost,
                self._executor,
                n_features=plan.n_features,
                n_outputs=plan.n_outputs,
                counters=self._counters,
                inline=InlineScoring(allowance=self._allowance),
            )
            found = self._batchers[id(plan.scorer)] = plan.scorer, f"{plan.model}:{plan.version}", batcher
        return found[2]

    async def score(
        self, plan: ServingPlan, rows: NDArray[np.float32], due_ns: int, *, can_leave: bool = False
    ) -> NDArray[np.float64]:
        """Scores of `rows` by `due_ns`. Arguments and errors as `Batcher.submit` and its future."""
        return await self.of(plan).submit(rows, due_ns, can_leave=can_leave)

    def lines(self, plan: ServingPlan) -> Lines:
        """As `Batcher.lines`."""
        return self.of(plan).lines()

    def take(self, seat: Seat) -> Seat:
        """As `Batcher.take`, in the queue of the question's plan."""
        return self.of(seat.prepared.plan).take(seat)

    def poll(self) -> None:
        """`Batcher.poll` of every queue."""
        for _, _, batcher in list(self._batchers.values()):
            batcher.poll()

    def wait_us(self, plan: ServingPlan, n_rows: int) -> int:
        """What `n_rows` of a plan would wait for now, their own scoring included."""
        return self.of(plan).predicted_wait_us(n_rows)

    def need_us(self, plan: ServingPlan, n_rows: int) -> int:
        """What scoring `n_rows` of a plan takes where nothing else waits."""
        return self.of(plan).need_us(n_rows)

    def keep(self, plans: Iterable[ServingPlan]) -> None:
        """Close the queues of scorers that none of these plans uses; what they accepted is still answered."""
        used = {id(plan.scorer) for plan in plans}
        for key in [key for key in self._batchers if key not in used]:
            _, _, batcher = self._batchers.pop(key)
            task = asyncio.get_running_loop().create_task(batcher.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def batchers(self) -> dict[str, Batcher]:
        """Every queue by "name:version", for the counts."""
        return {label: batcher for _, label, batcher in self._batchers.values()}

    async def close(self) -> None:
        """Answer what was accepted, refuse the rest, end the threads."""
        self.keep(())
        await asyncio.gather(*self._closing, return_exceptions=True)
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._executor = None
