"""What a queue learns of its batches, and what it forgets."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tiercel.serving.cost import CostCurve
from tiercel.serving.pace import TELLING_ROWS, Pace

US, MS = 1_000, 1_000_000
CURVE = [(1, 100, 100), (64, 730, 730), (512, 5210, 5210)]  # 90 us and 10 us a row


def pace_of(budget_us=100_000):
    """A queue that has learned nothing."""
    return Pace(CostCurve(CURVE), budget_us)


def test_telling_the_scores_is_part_of_a_batch():
    """Who waits behind a batch waits until its replies are written: less is let in, by as much as those take."""
    pace, n = pace_of(), 256
    before = {rows: pace.terms.batch_ns(rows) for rows in (1, n, 512)}
    fits = pace.max_rows
    for _ in range(200):
        pace.learn(n, before[n], 0)
        pace.learn_telling(n, n * 10 * US)
    assert pace.row_ns == pytest.approx(10 * US, rel=0.01)
    for rows, ns in before.items():
        assert pace.terms.batch_ns(rows) - ns == pytest.approx(rows * 10 * US, rel=0.05)
    assert pace.max_rows == pytest.approx(fits / 2, rel=0.1)  # a row takes twice as long
    assert pace.overhead_ns < US


def test_a_small_batch_does_not_show_what_a_row_more_takes():
    """What one reply takes besides, a batch of hundreds takes once: after quiet times a burst finds room."""
    pace = pace_of()
    fits = pace.max_rows
    for n in range(1, TELLING_ROWS):
        for _ in range(100):
            pace.learn_telling(n, 100 * US)
    assert (pace.row_ns, pace.max_rows) == (0, fits)


def test_one_stall_while_telling_counts_little():
    """A second in which the process stood still is not the next batch's."""
    pace = pace_of()
    pace.learn_telling(100, 1000 * MS)
    assert pace.row_ns < 2 * US


@pytest.mark.parametrize("seed", range(20))
def test_as_many_rows_fit_as_are_done_in_time(seed):
    """`rows_within` is the inverse of `batch_ns`, whatever was learned."""
    rng = np.random.default_rng(seed)
    pace = pace_of()
    for _ in range(int(rng.integers(0, 100))):
        n = int(rng.integers(1, 513))
        pace.learn(n, int(rng.integers(1, 10 * MS)), int(rng.integers(0, 5 * MS)))
        pace.learn_telling(n, int(rng.integers(0, 20 * n * US)))
    terms = pace.terms
    for ns in (0, terms.batch_ns(1) - 1, terms.batch_ns(1), *map(int, rng.integers(0, 2 * terms.batch_ns(512), 50))):
        n = terms.rows_within(ns)
        assert 0 <= n <= 512
        assert n == 0 or terms.batch_ns(n) <= ns
        assert n == 512 or terms.batch_ns(n + 1) > ns


def test_batches_that_are_now_quick_and_now_slow_take_their_mean():
    """On a core that others use, too, a row of batches is not promised the middle of what they take."""
    pace, n, took_ns = pace_of(), 100, itertools.cycle([1 * MS, 9 * MS])
    for _ in range(500):
        pace.learn(n, next(took_ns), 0)
    assert pace.terms.all_ns(10 * n) >= 10 * 5 * MS
    steady = pace_of()
    for _ in range(500):
        steady.learn(n, 5 * MS, 0)
    assert steady.terms.batch_ns(n) == pytest.approx(5 * MS, rel=0.1)


def test_doubts_forget_what_telling_takes_too():
    """Until a batch shows whether it still holds; then it is known again."""
    pace, n = pace_of(), 256
    for _ in range(200):
        pace.learn(n, pace.terms.batch_ns(n), 3 * MS)
        pace.learn_telling(n, n * 50 * US)
    slow_ns = pace.terms.batch_ns(n)
    pace.doubt()
    assert (pace.row_ns, pace.overhead_ns) == (0, 0)
    pace.learn(n, slow_ns, 3 * MS)
    assert pace.row_ns == pytest.approx(50 * US, rel=0.1)
    pace.doubt()
    pace.learn(n, 10 * US, 0)  # it does not hold
    assert pace.row_ns == 0
