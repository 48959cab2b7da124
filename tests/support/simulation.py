"""Simulated time for the near-realtime queue: a clock, an executor that completes work when the clock gets there.

The real event loop delivers callbacks, nothing sleeps, and the same seed gives the same run.
"""

from __future__ import annotations

import asyncio
import heapq
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field

import numpy as np

from tiercel.errors import CapacityError, DeadlineError
from tiercel.serving.cost import CostCurve
from tiercel.serving.inline_scoring import Allowance, InlineScoring
from tiercel.serving.near_realtime import Batcher

N_FEATURES = 2


class ExactCurve(CostCurve):
    """A curve that is right: there is nothing to learn from batches."""

    def observe(self, n_rows, us):
        pass


def affine(fixed_us, row_us, kind=ExactCurve):
    return kind([(n, fixed_us + row_us * n, fixed_us + row_us * n) for n in (1, 512)])


def scores_of(rows):
    """What the model says: a function of the row."""
    return np.stack([rows[:, 0] * 1000.0 + rows[:, 1], -rows[:, 1].astype(np.float64)], axis=1)


@dataclass
class Asked:
    """One request of a simulation and what became of it."""

    number: int
    at_ns: int
    n_rows: int
    due_ns: int
    cancel_ns: int | None = None
    refused: Exception | None = None
    future: asyncio.Future | None = None
    done_ns: int | None = None

    @property
    def rows(self):
        return np.stack(
            [np.full(self.n_rows, self.number), np.arange(self.n_rows)], axis=1
        ).astype(np.float32)  # fmt: skip

    @property
    def is_in_time(self):
        is_answered = self.future is not None and not self.future.cancelled() and self.future.exception() is None
        return is_answered and self.done_ns <= self.due_ns


@dataclass
class Scored:
    """One batch: (request, rows of it) in order; what waited and was left behind."""

    at_ns: int
    ends_ns: int
    parts: list
    left: list
    large: set


class Ample(Allowance):
    """There is always enough."""

    def has(self, _ns, _now_ns):
        return True


class Simulation(Executor):
    """A batcher in simulated time, and its executor.

    Args:
        cost: what the batcher believes.
        actual_us: rows -> what a batch takes; None: what the curve says.
        waits_us: rows, what they take -> how long the thread waits for its turns meanwhile, besides; None: not at all.
        fails: called with the rows of a batch before it is scored; may raise.
        inline_ns: of `InlineScoring`; by default everything is scored by the executor.
    """

    def __init__(
        self, cost, *, actual_us=None, waits_us=None, fails=None, score=scores_of, inline_ns=0, **options
    ):  # fmt: skip
        self.now_ns, self.waited_ns, self.waits_us = 10**9, 0, waits_us or (lambda _rows, _us: 0)
        self.cost, self.actual_us, self.fails, self.score = cost, actual_us or cost.us, fails, score
        self.batcher = Batcher(
            self._score, cost, self, n_features=N_FEATURES, n_outputs=2, clock_ns=lambda: self.now_ns,
            waited_ns=lambda: self.waited_ns, inline=InlineScoring(inline_ns, Ample()), **options,
        )  # fmt: skip
        self.batches: list[Scored] = []
        self.asked: dict[int, Asked] = {}
        self.running: tuple[int, Future, object] | None = None
        self.is_shut, self.n_submitted = False, 0

    # The executor

    def submit(self, fn, /, *args, **kwargs):
        if self.is_shut:
            raise RuntimeError("cannot schedule new futures after shutdown")
        assert self.running is None, "one batch at a time"
        self.n_submitted += 1
        begin_ns, done = self.now_ns, Future()
        done.set_running_or_notify_cancel()
        try:
            outcome = fn(*args, **kwargs)
        except BaseException as error:
            outcome = error
        self.running = (self.now_ns, done, outcome)
        self.now_ns = begin_ns
        return done

    def _score(self, rows):
        begin_ns = self.now_ns
        us = self.actual_us(len(rows))
        waited_ns = int(1000 * self.waits_us(len(rows), us))
        self.waited_ns += waited_ns
        self.now_ns += int(1000 * us) + waited_ns
        numbers, counts = np.unique(rows[:, 0], return_counts=True)
        left = [(each.due_ns, int(each.rows[0, 0])) for each in self.batcher._small]
        large = {int(each.rows[0, 0]) for each in self.batcher._large}
        parts = [(int(number), int(count)) for number, count in zip(numbers, counts, strict=True)]
        self.batches.append(Scored(begin_ns, self.now_ns, parts, left, large))
        if self.fails is not None:
            self.fails(rows)
        return self.score(rows)

    def finish(self):
        """The running batch is over."""
        self.now_ns, done, outcome = self.running
        self.running = None
        if isinstance(outcome, BaseException):
            done.set_exception(outcome)
        else:
            done.set_result(outcome)

    # The world around it

    async def settle(self):
        for _ in range(3):
            await asyncio.sleep(0)

    def ask(self, n_rows=1, within_us=100_000, *, cancel_ns=None, can_leave=False):
        """Submit now."""
        asked = Asked(len(self.asked), self.now_ns, n_rows, self.now_ns + int(1000 * within_us), cancel_ns)
        self.asked[asked.number] = asked
        try:
            asked.future = self.batcher.submit(asked.rows, asked.due_ns, can_leave=can_leave)
        except (DeadlineError, CapacityError) as error:
            asked.refused = error
            return asked

        def done(_):
            asked.done_ns = self.now_ns

        asked.future.add_done_callback(done)
        return asked

    async def run(self, arrivals=(), check=None, *, can_leave=False):
        """Play arrivals [(after the start in us, rows, within us, cancelled after us or None)] until nothing is left."""
        events = [(self.now_ns + int(1000 * at), k, "ask", one) for k, (at, *one) in enumerate(arrivals)]
        heapq.heapify(events)
        while events or self.running or self.batcher.n_waiting:
            next_ns = min(
                [each for each in (self.running, *events[:1]) if each], key=lambda each: each[0], default=None
            )
            look_ns = self._look_ns()
            if look_ns is not None and next_ns is not None and look_ns <= next_ns[0]:
                self.now_ns = max(self.now_ns, look_ns)
                await self.settle()
                continue
            if self.running and (not events or self.running[0] <= events[0][0]):
                self.finish()
            elif events:
                at_ns, number, what, one = heapq.heappop(events)
                self.now_ns = max(self.now_ns, at_ns)  # what is scored on the loop keeps it from coming
                if what == "ask":
                    n_rows, within_us, cancel_us = one
                    asked = self.ask(n_rows, within_us, can_leave=can_leave)
                    if cancel_us is not None and asked.future is not None:
                        asked.cancel_ns = self.now_ns + int(1000 * cancel_us)
                        heapq.heappush(events, (asked.cancel_ns, number, "cancel", asked))
                else:
                    one.future.cancel()
            if not events or events[0][0] > self.now_ns:  # what happens at one time is one pass of the loop
                await self.settle()
                if check is not None:
                    check(self)
        await self.settle()
        return self

    def _look_ns(self):
        """When the batcher looks whether somebody is to be told; None: it does not, or its loop is not in simulated time."""
        watch = self.batcher._watch
        if watch is None or watch.cancelled() or not isinstance(asyncio.get_running_loop(), SimulatedLoop):
            return None
        return int(1e9 * watch.when()) + 1_000  # when() is in seconds, and rounded

    def accepted(self):
        return [each for each in self.asked.values() if each.future is not None]


class SimulatedLoop(asyncio.SelectorEventLoop):
    """Timers go off in simulated time: how busy the machine is decides nothing."""

    def __init__(self, simulation):
        self._simulation = simulation
        super().__init__()

    def time(self):
        return self._simulation.now_ns / 1e9


def play(simulation, arrivals=(), check=None, *, can_leave=False):
    """Run a simulation on an event loop of its own."""
    with asyncio.Runner(loop_factory=lambda: SimulatedLoop(simulation)) as runner:
        return runner.run(simulation.run(arrivals, check, can_leave=can_leave))


@dataclass
class Load:
    """Poisson arrivals of mixed requests, by seed."""

    seed: int
    per_second: float
    seconds: float
    sizes: tuple = (1,)
    within_us: tuple = (100_000,)
    cancelled: float = 0.0
    arrivals: list = field(default_factory=list)

    def __post_init__(self):
        rng = np.random.default_rng(self.seed)
        at = 0.0
        while (at := at + rng.exponential(1e6 / self.per_second)) < 1e6 * self.seconds:
            cancel = float(rng.uniform(0, 20_000)) if rng.random() < self.cancelled else None
            self.arrivals.append((at, int(rng.choice(self.sizes)), float(rng.choice(self.within_us)), cancel))
