"""Queues that learned of a slow host, or are called back from within: nobody is refused for ever, nobody is lost."""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import Future

import numpy as np
import pytest
from tests.support.seats import Told, plan_of, seat

from tiercel.errors import DeadlineError, ModelError
from tiercel.serving.admission import DOUBT_ASKED, DOUBT_NS
from tiercel.serving.cost import CostCurve
from tiercel.serving.near_realtime import Batcher

MS = 1_000_000
ROW = np.ones((1, 1), np.float32)


class Threads:
    """An executor that scores when told, and takes as long as told."""

    def __init__(self):
        self.now, self.takes_ns, self.waiting = 10**12, MS, []

    def submit(self, score, *args):
        done = Future()
        self.waiting.append((done, score, args))
        return done

    def run(self):
        done, score, args = self.waiting.pop(0)
        done.set_result(score(*args))

    def score(self, rows):
        self.now += self.takes_ns
        return rows.astype(np.float64)


def batcher_of(threads, cost):
    return Batcher(threads.score, cost, threads, n_features=1, n_outputs=1, clock_ns=lambda: threads.now)


def measured():
    return CostCurve([(1, 1000, 1200)])


async def refusing():
    """Threads that take 40 ms, and a queue that refuses 15 ms for it, long and often enough to doubt it."""
    threads = Threads()
    batcher = batcher_of(threads, measured())
    threads.takes_ns = 40 * MS
    for _ in range(10):
        with contextlib.suppress(DeadlineError):
            answer = batcher.submit(ROW, threads.now + 15 * MS)
            await asyncio.sleep(0)
            threads.run()
            await answer
    for _ in range(DOUBT_ASKED + 1):
        with pytest.raises(DeadlineError):
            batcher.submit(ROW, threads.now + 15 * MS)
    threads.now += DOUBT_NS
    return threads, batcher


@pytest.mark.parametrize("curve", [measured, CostCurve.unmeasured], ids=["measured", "unmeasured"])
def test_a_host_that_was_slow_is_tried_again(curve):
    """Once all are refused for what was learned of a slow host, one is let in now and then; a quick answer ends it."""

    async def main():
        threads = Threads()
        batcher = batcher_of(threads, curve())

        async def ask():
            threads.now += 10 * MS
            try:
                answer = batcher.submit(ROW, threads.now + 15 * MS)
            except DeadlineError:
                return "refused"
            await asyncio.sleep(0)
            threads.run()
            await answer
            return "answered"

        assert await ask() == "answered"
        threads.takes_ns = 40 * MS
        first = [await ask() for _ in range(200)]
        assert "refused" in first
        still = first[first.index("refused") :]
        # One in so many is tried while the host is slow, and what it shows is not forgotten for it.
        assert still.count("answered") <= len(still) // min(DOUBT_ASKED, DOUBT_NS // (10 * MS)) + 1
        threads.takes_ns = MS
        later = [await ask() for _ in range(100)]
        assert later[-50:] == ["answered"] * 50
        assert later.index("answered") <= 2 * DOUBT_ASKED + DOUBT_NS // (10 * MS)

    asyncio.run(main())


def test_what_was_measured_is_not_doubted():
    """A deadline that the measured cost does not fit is refused however often it is asked for."""

    async def main():
        threads = Threads()
        batcher = batcher_of(threads, measured())
        for _ in range(100):
            threads.now += 10 * MS
            with pytest.raises(DeadlineError):
                batcher.submit(ROW, threads.now + MS // 2)

    asyncio.run(main())


def test_only_one_is_tried_on_a_host_that_was_slow():
    """While the one that is tried has not come back, the others are judged by what was learned; then by what it took."""

    async def main():
        threads, batcher = await refusing()

        def ask():
            return batcher.submit(ROW, threads.now + 15 * MS)

        threads.takes_ns = MS
        tried = ask()
        for _ in range(5):
            with pytest.raises(DeadlineError):
                ask()
            assert batcher._lines.entry(seat(plan_of(), [[1]], threads.now + 15 * MS), threads.now) == "undecided"
        await asyncio.sleep(0)
        for within in (15, 50):  # the second would be in time behind the other if the host were quick
            with pytest.raises(DeadlineError):
                batcher.submit(ROW, threads.now + within * MS)
        threads.run()
        await tried
        later = [ask() for _ in range(3)]
        while not all(each.done() for each in later):
            await asyncio.sleep(0)
            if threads.waiting:
                threads.run()
        assert [each.result().tolist() for each in later] == [[[1.0]]] * 3

    asyncio.run(main())


def test_a_trial_that_fails_shows_nothing():
    """Where the one that is tried gets an error, what was learned is still in doubt: the queue stays closed to the others."""

    async def main():
        threads, batcher = await refusing()
        tried = batcher.submit(ROW, threads.now + 15 * MS)
        await asyncio.sleep(0)
        done, _, _ = threads.waiting.pop(0)
        done.set_exception(ZeroDivisionError("a mistake of the model's"))
        with pytest.raises(ModelError):
            await tried
        assert not batcher._lines.is_open
        threads.takes_ns = MS
        answer = batcher.submit(ROW, threads.now + 15 * MS)
        await asyncio.sleep(0)
        threads.run()
        assert (await answer).tolist() == [[1.0]]
        assert batcher._lines.is_open

    asyncio.run(main())


def test_another_is_tried_when_the_one_that_was_has_left():
    """A client that hangs up before it is scored leaves nobody refused behind it."""

    async def main():
        threads, batcher = await refusing()
        batcher.submit(ROW, threads.now + 15 * MS).cancel()
        threads.takes_ns = MS
        answer = batcher.submit(ROW, threads.now + 15 * MS)
        await asyncio.sleep(0)
        threads.run()
        assert (await answer).tolist() == [[1.0]]

    asyncio.run(main())


def test_who_hears_that_it_is_over_may_ask_and_poll():
    """Requests that come from within the refusals of others, and polls, start no batch beside the one that is started."""

    async def main():
        threads, told, plan = Threads(), [], plan_of()
        batcher = Batcher(
            plan.scorer.score, measured(), threads, n_features=1, n_outputs=2, clock_ns=lambda: threads.now
        )

        def take(after_ns, call):
            batcher.take(seat(plan, [[1]], threads.now + after_ns, Told(call)))

        def ask(name):
            take(900 * MS, lambda _error: told.append(name))

        def first(error):
            assert isinstance(error, DeadlineError)
            ask("third")
            threads.now += 2 * MS

        def second(_error):
            batcher.poll()
            ask("fourth")

        for each in (first, second):
            take(3 * MS, each)
        threads.now += 5 * MS
        await asyncio.sleep(0)
        while threads.waiting:
            threads.run()
            await asyncio.sleep(0.001)
        assert sorted(told) == ["fourth", "third"]
        assert batcher._lines.n_open == 0

    asyncio.run(main())
