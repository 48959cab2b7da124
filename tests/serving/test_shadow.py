"""A shadow takes what is left over, and nobody ever notices it."""

from __future__ import annotations

import asyncio
import logging
import math

import pytest

from tiercel.monitor.counting import WorkerCounters
from tiercel.serving.shadow import ShadowQueue


class World:
    """A worker's idleness and clock, and a queue's view of them. Sleeping takes no time: it lets the others run."""

    def __init__(self, max_waiting=10, **options):
        self.idle = True
        self.now_s = 100.0
        self.slept_s = []
        self.recorded = []
        self.queue = ShadowQueue(
            max_waiting,
            lambda: self.idle,
            clock_s=lambda: self.now_s,
            sleep=self.sleep,
            **options,
        )

    async def sleep(self, seconds):
        if seconds:
            self.slept_s.append(seconds)
            self.now_s += seconds
        await asyncio.sleep(0)

    def offer(self, scores=(0.5,), label="fraud:4", n_bytes=0):
        def work():
            if isinstance(scores, BaseException):
                raise scores
            return scores

        return self.queue.offer(label, work, self.recorded.append, n_bytes=n_bytes)


async def settle(queue, turns=200):
    for _ in range(turns):
        if not len(queue):
            break
        await asyncio.sleep(0)
    for _ in range(3):
        await asyncio.sleep(0)


def test_runs_after_the_offer_not_in_it():
    """`offer` returns before anything is scored: the reply of the next request comes first."""

    async def run():
        world = World()
        assert world.offer([0.25])
        assert world.recorded == []
        await settle(world.queue)
        assert world.recorded == [[0.25]]
        assert world.queue.counts.recorded == 1

    asyncio.run(run())


def test_every_outcome_is_counted_in_a_cell_that_the_worker_has():
    """What /metrics tells of shadows is what became of them: scored, failed, or dropped for whatever reason."""

    async def run():
        counters = WorkerCounters()
        world = World(max_waiting=2, count=counters.add)
        for scores in ([0.25], ValueError("no"), [0.5]):
            world.offer(scores)
        await settle(world.queue)
        world.offer([math.nan])
        await settle(world.queue)
        world.offer([0.5])
        await world.queue.close()
        assert not world.offer([0.5])
        return {name: counters.get(f"shadow_{name}") for name in ("scored", "failed", "dropped")}

    assert asyncio.run(run()) == {"scored": 1, "failed": 2, "dropped": 3}


def test_waits_for_an_idle_worker():
    """While the worker is busy nothing runs, and looks become rarer; when it is idle everything does, in order."""

    async def run():
        world = World()
        world.idle = False
        world.offer([1.0])
        world.offer([2.0])
        for _ in range(40):
            await asyncio.sleep(0)
        assert world.recorded == []
        assert world.slept_s[:6] == [0.002, 0.004, 0.008, 0.016, 0.032, 0.064]
        assert max(world.slept_s) == 0.064
        world.idle = True
        await settle(world.queue)
        assert world.recorded == [[1.0], [2.0]]

    asyncio.run(run())


def test_idleness_is_asked_before_each():
    """A shadow that makes the worker busy is not followed by another."""

    async def run():
        world = World()

        def record(scores):
            world.recorded.append(scores)
            world.idle = False

        for i in range(3):
            world.queue.offer("fraud:4", lambda i=i: [float(i)], record)
        for _ in range(20):
            await asyncio.sleep(0)
        assert world.recorded == [[0.0]]
        await world.queue.close()

    asyncio.run(run())


def test_the_newest_is_dropped_when_full():
    """What finds no room is dropped, by number or by bytes, and those that wait keep their places."""

    async def run():
        world = World(max_waiting=2)
        assert [world.offer([float(i)]) for i in range(4)] == [True, True, False, False]
        await settle(world.queue)
        assert world.recorded == [[0.0], [1.0]]
        assert world.queue.counts.full == 2
        world = World(max_bytes=100)
        assert [world.offer(n_bytes=n) for n in (60, 41, 40)] == [True, False, True]
        await settle(world.queue)
        assert world.offer(n_bytes=100)  # what was taken gave its bytes back
        await settle(world.queue)
        assert (world.queue.counts.recorded, world.queue.counts.full) == (3, 1)

    asyncio.run(run())


def test_what_waited_too_long_is_dropped():
    """A question older than the limit is not scored: the features it would read are others by now."""

    async def run():
        world = World(max_wait_s=5.0)
        world.idle = False
        world.offer([1.0])
        world.now_s += 4.0
        world.offer([2.0])
        world.now_s += 1.5
        world.idle = True
        await settle(world.queue)
        assert world.recorded == [[2.0]]
        assert world.queue.counts.late == 1

    asyncio.run(run())


@pytest.mark.parametrize(
    ("scores", "count", "text"),
    [
        (ZeroDivisionError("divided"), "failed", "ZeroDivisionError: divided"),
        (asyncio.CancelledError(), "failed", "it was cancelled"),
        ([0.1, math.nan], "not_finite", "not finite"),
        ([[0.1, math.inf]], "not_finite", "not finite"),
        (7, "failed", "TypeError"),
    ],
    ids=["raises", "is cancelled", "NaN", "infinite class", "no scores at all"],
)
def test_failures_are_counted_and_told_once(caplog, scores, count, text):
    """Whatever a shadow does, the next one runs; a version's failure is one line in the log, however often it fails."""

    async def run():
        world = World()
        for _ in range(3):
            world.offer(scores)
        world.offer(scores, label="fraud:5")
        world.offer([0.5])
        await settle(world.queue)
        assert world.recorded == [[0.5]]
        assert getattr(world.queue.counts, count) == 4

    with caplog.at_level(logging.WARNING, "tiercel.serving"):
        asyncio.run(run())
    assert [record.getMessage().split(":")[1][0] for record in caplog.records] == ["4", "5"]
    assert all(text in record.getMessage() for record in caplog.records)


def test_a_failing_recorder_does_not_stop_the_queue():
    """Where the results go may be broken, too."""

    async def run():
        world = World()
        world.queue.offer("fraud:4", lambda: [0.5], {}.__getitem__)
        world.offer([1.0])
        await settle(world.queue)
        assert world.recorded == [[1.0]]
        assert world.queue.counts.failed == 1

    asyncio.run(run())


def test_work_may_be_awaited():
    """A shadow that is scored through a queue is waited for, one at a time; one that never answers is given up."""

    async def run():
        world = World(max_run_s=0.01)
        running = []

        async def slow(i):
            running.append(i)
            assert len(running) == 1
            await asyncio.sleep(0)
            running.remove(i)
            return [float(i)]

        world.queue.offer("fraud:4", asyncio.Event().wait, world.recorded.append)
        for i in range(3):
            world.queue.offer("fraud:4", lambda i=i: slow(i), world.recorded.append)
        done = asyncio.Event()
        world.queue.offer("fraud:4", lambda: [9.0], lambda _: done.set())
        async with asyncio.timeout(5):
            await done.wait()
        assert world.recorded == [[0.0], [1.0], [2.0]]
        assert world.queue.counts.failed == 1

    asyncio.run(run())


def test_closing_drains_then_drops():
    """At the end what can still run does, the rest is dropped, every question is counted once, and none is taken."""

    async def run():
        world = World()
        for i in range(3):
            world.offer([float(i)])
        await world.queue.close(drain_s=5)
        assert len(world.recorded) == 3
        assert not world.offer()
        world = World()
        world.offer()
        world.queue.offer("fraud:4", asyncio.Event().wait, world.recorded.append)
        world.offer()
        await world.queue.close(drain_s=0.01)
        counts = world.queue.counts
        assert (counts.recorded, counts.closed, len(world.queue)) == (1, 2, 0)
        busy = World()
        busy.idle = False
        busy.offer()
        await busy.queue.close()
        assert (busy.queue.counts.closed, busy.recorded) == (1, [])

    asyncio.run(run())


def test_an_empty_queue_has_no_task():
    """Nothing ticks while nothing waits, and the next offer starts it again."""

    async def run():
        world = World()
        for _ in range(2):
            world.offer()
            await settle(world.queue)
            assert len(asyncio.all_tasks()) == 1
        assert world.queue.counts.recorded == 2

    asyncio.run(run())
