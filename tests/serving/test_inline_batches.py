"""Batches that take less than handing them to a thread are scored on the event loop, once a scorer has earned it."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tests.support.simulation import Load, Simulation, affine, play, scores_of

from tiercel.errors import ModelError
from tiercel.serving import inline_scoring
from tiercel.serving.inline_scoring import EARNED_BATCHES, INLINE_NS, SLOW
from tiercel.serving.near_realtime import Batcher

FAR_NS = 60_000_000_000


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


def batcher_of(scorer, threads, cost=None):
    return Batcher(scorer, cost or affine(10, 1), threads, n_features=2, n_outputs=2)


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
        batcher = batcher_of(scorer, threads, affine(2 * INLINE_NS / 1000, 1))
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
        scorer.slow_s = 2 * SLOW * INLINE_NS / 1e9
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
    per_second = (500, 5_000, 50_000, 200_000)[seed % 4]
    load = Load(seed, per_second, seconds=0.1, sizes=(1, 1, 1, 20), within_us=(2_000, 100_000))
    simulation = Simulation(affine(50, 2), inline_ns=INLINE_NS)
    play(simulation, load.arrivals)
    asked = list(simulation.asked.values())
    assert len(asked) == len(load.arrivals)
    assert sum(one.refused is None for one in asked) >= 20
    for one in asked:
        assert one.refused is not None or (one.future.done() and one.future.exception() is None)
    # As the batcher measures it: the simulation looks at its clock when the loop gets to it, after the next batch maybe.
    assert simulation.batcher.expired == simulation.batcher.late == 0
