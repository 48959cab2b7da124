"""Batches that take less than handing them to a thread are scored on the event loop, once a scorer has earned it."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tests.support.seats import plan_of
from tests.support.simulation import Ample, Load, Simulation, affine, play, scores_of

from tiercel.errors import ModelError
from tiercel.serving import inline_scoring, near_realtime
from tiercel.serving.cost import CostCurve
from tiercel.serving.inline_scoring import BURST_NS, EARNED_BATCHES, INLINE_NS, SHARE, SLOW, Allowance, InlineScoring
from tiercel.serving.near_realtime import Batcher
from tiercel.serving.queues import Queues

FAR_NS = 60_000_000_000
MOST_NS = 5_000_000  # of a batch: more than the default, so that a busy machine's stalls are not the scorer's


class Scorer:
    """Scores at once, or slowly; knows on which threads."""

    def __init__(self):
        self.threads, self.slow_s, self.poison = [], 0.0, None

    def __call__(self, rows):
        self.threads.append(threading.get_ident())
        if self.slow_s:
            time.sleep(self.slow_s)
        if self.poison is not None and self.poison in rows[:, 0]:
            raise RuntimeError("poisoned")
        return scores_of(rows)

    def here(self):
        """By batch: whether it was scored on this thread."""
        return [each == threading.get_ident() for each in self.threads]


@pytest.fixture
def threads():
    with ThreadPoolExecutor(1) as pool:
        yield pool


async def ask(batcher, numbers):
    """One request of a row for each number, at once; their outcomes."""
    due_ns = time.monotonic_ns() + FAR_NS
    futures = [batcher.submit(np.array([[number, 1]], np.float32), due_ns) for number in numbers]
    outcomes = await asyncio.gather(*futures, return_exceptions=True)
    for number, outcome in zip(numbers, outcomes, strict=True):
        if not isinstance(outcome, Exception):
            np.testing.assert_array_equal(outcome, scores_of(np.array([[number, 1]], np.float32)))
    return outcomes


def batcher_of(scorer, threads, cost=None, most_ns=MOST_NS):
    inline = InlineScoring(most_ns, Ample())
    return Batcher(scorer, cost or affine(10, 1), threads, n_features=2, n_outputs=2, inline=inline)


def test_a_quick_scorer_earns_it(threads):
    """The first batches run on a thread, the others here; the answers are the same."""
    scorer = Scorer()

    async def main():
        batcher = batcher_of(scorer, threads)
        for number in range(EARNED_BATCHES + 10):
            await ask(batcher, [number, number + 0.5])
        assert batcher.batches == EARNED_BATCHES + 10
        assert batcher.rows == 2 * batcher.batches
        await batcher.close()

    asyncio.run(main())
    assert scorer.here() == [False] * EARNED_BATCHES + [True] * 10


def test_what_takes_long_stays_on_threads(threads):
    """By the cost curve, which says what a batch of that size takes."""
    scorer = Scorer()

    async def main():
        batcher = batcher_of(scorer, threads, affine(2 * MOST_NS / 1000, 1))
        for number in range(EARNED_BATCHES + 10):
            await ask(batcher, [number])

    asyncio.run(main())
    assert not any(scorer.here())


def test_who_gets_slow_goes_back_to_threads(threads):
    """One batch that keeps the event loop for long is enough; it can be earned again."""
    scorer = Scorer()

    async def main():
        batcher = batcher_of(scorer, threads)
        for number in range(EARNED_BATCHES + 1):
            await ask(batcher, [number])
        scorer.slow_s = 2 * SLOW * MOST_NS / 1e9
        await ask(batcher, [1])
        scorer.slow_s = 0.0
        for number in range(EARNED_BATCHES + 1):
            await ask(batcher, [number])

    asyncio.run(main())
    # The slow batch itself is counted among those that are to be quick again.
    assert scorer.here() == [False] * EARNED_BATCHES + [True] * 2 + [False] * (EARNED_BATCHES - 1) + [True] * 2


def test_a_batch_that_fails_here_is_tried_on_threads(threads):
    """Only who is poisoned fails; the event loop has the next batches again when they are earned."""
    scorer = Scorer()

    async def main():
        batcher = batcher_of(scorer, threads)
        for number in range(EARNED_BATCHES):
            await ask(batcher, [number])
        scorer.poison = 7
        outcomes = await ask(batcher, [5, 6, 7, 8])
        assert [isinstance(each, ModelError) for each in outcomes] == [False, False, True, False]
        assert batcher.failed == 1

    asyncio.run(main())
    assert scorer.here()[EARNED_BATCHES:] == [True] + [False] * 4


def test_others_have_their_turn_between_two_batches(threads):
    """More rows than one batch holds: what else the event loop has to do comes between."""
    scorer, seen = Scorer(), []

    async def main():
        batcher = batcher_of(scorer, threads, affine(10, 0.1))
        for number in range(EARNED_BATCHES):
            await ask(batcher, [number])
        loop, n = asyncio.get_running_loop(), 3 * batcher.best_rows
        waiting = asyncio.ensure_future(ask(batcher, range(n)))

        def look():
            seen.append(batcher.depth_rows)
            if not waiting.done():
                loop.call_soon(look)

        await asyncio.sleep(0)
        look()
        await waiting
        assert batcher.depth_rows == 0
        return batcher.best_rows

    best = asyncio.run(main())
    assert all(scorer.here()[EARNED_BATCHES:])
    assert {3 * best, 2 * best, best, 0} <= set(seen)


def test_whoever_cancels_is_not_answered(threads):
    """A request that is withdrawn before its batch is not in it."""
    scorer = Scorer()

    async def main():
        batcher = batcher_of(scorer, threads)
        for number in range(EARNED_BATCHES):
            await ask(batcher, [number])
        due_ns = time.monotonic_ns() + FAR_NS
        futures = [batcher.submit(np.array([[k, 1]], np.float32), due_ns) for k in range(3)]
        futures[1].cancel()
        done = await asyncio.gather(*futures, return_exceptions=True)
        assert [type(each) for each in done] == [np.ndarray, asyncio.CancelledError, np.ndarray]
        assert (batcher.cancelled, batcher.rows) == (1, EARNED_BATCHES + 2)
        await batcher.close()

    asyncio.run(main())


@pytest.mark.parametrize("seed", range(8))
def test_nobody_who_was_let_in_is_late(seed, monkeypatch):
    """In simulated time, with batches on the loop from the first on: every request is answered, in time, or refused."""
    monkeypatch.setattr(inline_scoring, "EARNED_BATCHES", 0)
    per_second, seconds = ((500, 0.1), (5_000, 0.1), (50_000, 0.1), (200_000, 0.03))[seed % 4]
    load = Load(seed, per_second, seconds, sizes=(1, 1, 1, 20), within_us=(2_000, 100_000))
    simulation = Simulation(affine(50, 2), inline_ns=INLINE_NS)
    play(simulation, load.arrivals)
    asked = list(simulation.asked.values())
    assert len(asked) == len(load.arrivals)
    assert simulation.n_submitted < len(simulation.batches)  # the largest are for threads
    assert sum(one.refused is None for one in asked) >= 20
    for one in asked:
        assert one.refused is not None or (one.future.done() and one.future.exception() is None)
    # As the batcher measures it: the simulation looks at its clock when the loop gets to it, after the next batch maybe.
    assert simulation.batcher.expired == simulation.batcher.late == 0


def test_polling_leaves_one_batch_to_a_turn(threads):
    """Whoever polls within a long turn has a batch scored; from then on it is one in each turn as before."""
    scorer, turns = Scorer(), []

    async def main():
        batcher = batcher_of(scorer, threads, affine(10, 0.1))
        for number in range(EARNED_BATCHES):
            await ask(batcher, [number])
        loop = asyncio.get_running_loop()
        waiting = asyncio.ensure_future(ask(batcher, range(30 * batcher.best_rows)))
        await asyncio.sleep(0)
        for _ in range(4):
            time.sleep(2 * near_realtime.PATIENCE_NS / 1e9)  # noqa: ASYNC251 - the loop is to be busy
            batcher.poll()

        def look():
            turns.append(batcher.batches)
            if not waiting.done():
                loop.call_soon(look)

        look()
        await waiting

    asyncio.run(main())
    assert turns[0] >= EARNED_BATCHES + 4
    assert max(b - a for a, b in itertools.pairwise(turns)) == 1


def test_doubts_do_not_make_a_slow_scorer_quick(threads):
    """Where refusals let a queue forget that its scorer is slow, the batch that finds out is scored on a thread."""
    scorer = Scorer()
    scorer.slow_s = 0.004

    async def main():
        batcher = batcher_of(scorer, threads, CostCurve.unmeasured(), INLINE_NS)
        for number in range(EARNED_BATCHES + 6):
            await ask(batcher, [number])
        batcher._pace.doubt()
        await ask(batcher, [1])

    asyncio.run(main())
    assert not any(scorer.here())


@pytest.mark.parametrize("kind", [asyncio.CancelledError, GeneratorExit, type("Panic", (BaseException,), {})])
def test_whatever_a_scorer_raises_its_queue_goes_on(threads, kind):
    """Also what is no Exception fails the batch as it does on a thread, and nothing else."""
    scorer = Scorer()

    def score(rows):
        if rows[0, 0] < 0:
            scorer.threads.append(threading.get_ident())
            raise kind("not an Exception")
        return scorer(rows)

    async def main():
        batcher = batcher_of(score, threads)
        for number in range(EARNED_BATCHES):
            await ask(batcher, [number])
        (outcome,) = await ask(batcher, [-1])
        assert isinstance(outcome, ModelError)
        assert isinstance((await ask(batcher, [5]))[0], np.ndarray)
        await asyncio.wait_for(batcher.close(), 5)

    asyncio.run(main())
    assert scorer.here()[EARNED_BATCHES]


def test_what_the_loop_keeps_batches_waiting_is_learned(monkeypatch):
    """Each turn of a busy loop scores one batch: admission counts the turns, so nobody is let in who would be late."""
    monkeypatch.setattr(inline_scoring, "EARNED_BATCHES", 0)
    simulation, turn_ns = Simulation(affine(10, 0.1), inline_ns=INLINE_NS), 3_000_000

    async def main():
        loop = asyncio.get_running_loop()
        is_over = False

        def other_work():
            simulation.now_ns += turn_ns
            if not is_over:
                loop.call_soon(other_work)

        loop.call_soon(other_work)
        for _ in range(400):
            simulation.ask(within_us=1e6)
            await asyncio.sleep(0)
        assert 0.5 * turn_ns < simulation.batcher._pace.overhead_ns < 4 * turn_ns
        for _ in range(600):
            simulation.ask(10, within_us=22_000)
        await simulation.batcher.close()
        is_over = True

    asyncio.run(main())
    burst = list(simulation.asked.values())[400:]
    assert {type(one.refused).__name__ for one in burst} == {"CapacityError", "NoneType"}
    assert simulation.n_submitted == simulation.batcher.late == simulation.batcher.expired == 0


def test_a_batch_after_one_on_a_thread_has_not_waited_for_it(monkeypatch):
    """What follows at once has waited for no turn of the loop, however long the batch before took."""
    monkeypatch.setattr(inline_scoring, "EARNED_BATCHES", 1)
    took_us = iter([5_000, 10])
    simulation, others_ns = Simulation(affine(10, 0.1), actual_us=lambda _: next(took_us), inline_ns=INLINE_NS), []
    learn = simulation.batcher._pace.learn
    simulation.batcher._pace.learn = lambda *took: others_ns.append(took[2]) or learn(*took)

    async def main():
        simulation.ask()
        await simulation.settle()
        simulation.ask()  # waits for the first
        await simulation.run()

    asyncio.run(main())
    assert (simulation.n_submitted, len(simulation.batches)) == (1, 2)
    assert len(others_ns) == 2
    assert max(others_ns) < 1_000


def test_queues_share_what_they_take_of_the_loop():
    """Together they have a burst, then their share of the time; what is left over is not saved for long."""
    shared = Allowance()
    one, other = (InlineScoring(INLINE_NS, shared) for _ in range(2))
    now_ns, number = 10**12, EARNED_BATCHES
    n_burst = BURST_NS // INLINE_NS
    for k in range(n_burst):
        queue = (one, other)[k % 2]
        assert queue.suits(number, INLINE_NS, now_ns)
        queue.note(number, INLINE_NS, has_failed=False)
    assert not one.suits(number, INLINE_NS, now_ns)
    assert not other.suits(number, INLINE_NS, now_ns + int(INLINE_NS / SHARE) - 10)
    assert other.suits(number, INLINE_NS, now_ns + int(INLINE_NS / SHARE) + 10)
    other.note(number, INLINE_NS, has_failed=False)
    later_ns = now_ns + 60 * 10**9
    for _ in range(n_burst):
        assert one.suits(number, INLINE_NS, later_ns)
        one.note(number, INLINE_NS, has_failed=False)
    assert not one.suits(number, INLINE_NS, later_ns)


def test_the_queues_of_a_worker_share_an_allowance():
    """As many queues as there are versions: one allowance."""
    queues = Queues(lambda _plan: None)
    plans = [plan_of(n) for n in (1, 2)]
    first, second = (queues.of(plan)._inline._allowance for plan in plans)
    assert first is second
