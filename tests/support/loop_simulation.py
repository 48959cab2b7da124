"""An event loop in simulated time: what is ready is run in turns, as a selector finds it; work moves the clock.

Requests wait unseen until the turn after they came, as in the kernel; so does whatever a real loop cannot see.
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass, field

import numpy as np

from tiercel.errors import CapacityError
from tiercel.serving.limits import Limits, Partition
from tiercel.serving.loop_lag import PERIOD_US, LoopLag
from tiercel.serving.loop_share import LoopShare

SECOND_NS = 1_000_000_000


class SimulatedLoop:
    """Callbacks at times, run in turns."""

    def __init__(self):
        self.now_ns = self.cpu_ns = 0
        self._heap = []
        self._order = itertools.count()

    def at(self, when_ns, call, *arguments):
        heapq.heappush(self._heap, (when_ns, next(self._order), call, arguments))

    def work(self, cost_us):
        """The loop is busy with something for so long."""
        self.now_ns += int(1000 * cost_us)
        self.cpu_ns += int(1000 * cost_us)

    def run(self, until_ns):
        while self._heap and self._heap[0][0] < until_ns:
            self.now_ns = max(self.now_ns, self._heap[0][0])
            ready = []
            while self._heap and self._heap[0][0] <= self.now_ns:
                ready.append(heapq.heappop(self._heap))
            for _, _, call, arguments in ready:
                call(*arguments)


@dataclass
class Outcomes:
    """When requests came, by what became of them; in nanoseconds."""

    good: list[int] = field(default_factory=list)
    late: list[int] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)
    waits_ns: list[int] = field(default_factory=list)  # of those that were answered

    def answer(self, came_ns, now_ns, budget_us):
        self.waits_ns.append(now_ns - came_ns)
        (self.good if now_ns - came_ns <= 1000 * budget_us else self.late).append(came_ns)

    def per_s(self, begin_s, end_s, what="good"):
        times = np.asarray(getattr(self, what)) / SECOND_NS
        return np.count_nonzero((times >= begin_s) & (times < end_s)) / (end_s - begin_s)


@dataclass(frozen=True)
class Costs:
    """Microseconds: on the loop, except `model_us`, which is a worker thread's (0: none is needed)."""

    realtime_us: float = 20.0
    realtime_refusal_us: float = 3.0
    near_us: float = 200.0
    near_refusal_us: float = 80.0
    model_us: float = 2000.0
    near_p99_us: float = 10_000.0


class SimulatedWorker:
    """Realtime inline, near-realtime through share, partition and one model thread, with the limits under test."""

    def __init__(self, limits: Limits, costs: Costs, *, is_limited=True):
        self.loop = SimulatedLoop()
        self.costs, self.limits, self.is_limited = costs, limits, is_limited
        clock = lambda: self.loop.now_ns  # noqa: E731
        self.lag = LoopLag(clock)
        self.share = LoopShare(
            limits.turn_us, clock_ns=clock, cpu_ns=lambda: self.loop.cpu_ns, call_later=self._call_later
        )
        near = limits.near_realtime
        self.partition = Partition("near-realtime", near.max_running, near.max_bytes, near.held_us, clock)
        self.realtime, self.near = Outcomes(), Outcomes()
        self._thread_free_ns = 0
        self._tick()

    def offer(self, rng, realtime_per_s, near_per_s, begin_s, end_s):
        """Poisson arrivals of both tiers."""
        for per_s, call in ((realtime_per_s, self._realtime), (near_per_s, self._near)):
            n = rng.poisson(per_s * (end_s - begin_s))
            for when_ns in (rng.uniform(begin_s, end_s, n) * SECOND_NS).astype(int).tolist():
                self.loop.at(when_ns, call, when_ns)

    def run(self, until_s):
        self.loop.run(int(until_s * SECOND_NS))

    def _call_later(self, delay_s, call):
        delay_ms = round(1000 * delay_s)  # as libuv's timers count
        self.loop.at(self.loop.now_ns + 1_000_000 * delay_ms, call)

    def _tick(self):
        if self.lag.is_armed:
            self.lag.run(again=True)
        else:
            self.lag.arm()
        self.loop.at(self.loop.now_ns + 1000 * PERIOD_US, self._tick)

    def _realtime(self, came_ns):
        try:
            if self.is_limited:
                self.limits.refuse_late(self.lag.lag_us())
        except CapacityError:
            self.realtime.refused.append(came_ns)
            self.loop.work(self.costs.realtime_refusal_us)
        else:
            self.loop.work(self.costs.realtime_us)
            self.realtime.answer(came_ns, self.loop.now_ns, 10_000)

    def _near(self, came_ns):
        due_ns = self.loop.now_ns + 100_000_000
        self.loop.work(self.costs.near_refusal_us)  # its head is read whatever follows
        if not self.is_limited:
            self._near_begin(came_ns, due_ns, None)
            return
        self.share.spend(int(1000 * self.costs.near_refusal_us))
        try:
            stay = self.partition.enter(100)
        except CapacityError:
            self.near.refused.append(came_ns)
            return
        stay_in_line = [came_ns, due_ns, stay]

        def wake(error):
            # A callback that is scheduled in one turn runs in the next, after the sockets were looked at.
            self.loop.at(self.loop.now_ns, self._near_begin if error is None else self._near_refused, *stay_in_line)
            return True

        try:
            self.share.ask(self._patience_us(due_ns), wake)
        except CapacityError:
            self._near_refused(*stay_in_line)

    def _near_refused(self, came_ns, _due_ns, stay):
        stay.leave()
        self.near.refused.append(came_ns)

    def _patience_us(self, due_ns):
        return int((due_ns - self.loop.now_ns) / 1000 - self.costs.near_us - self.costs.near_p99_us)

    def _near_begin(self, came_ns, due_ns, stay):
        self.loop.work(self.costs.near_us)
        if self.is_limited:
            self.share.leave(int(1000 * self.costs.near_us))
        done_ns = max(self.loop.now_ns, self._thread_free_ns) + int(1000 * self.costs.model_us)
        if (
            self.is_limited and done_ns + int(1000 * self.costs.near_p99_us) > due_ns
        ):  # as the queue's own admission has it
            self._near_refused(came_ns, due_ns, stay)
            return
        self._thread_free_ns = done_ns
        self.loop.at(done_ns, self._near_done, came_ns, stay)

    def _near_done(self, came_ns, stay):
        if stay is not None:
            stay.leave()
        self.near.answer(came_ns, self.loop.now_ns, 100_000)
