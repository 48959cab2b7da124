"""What a queue learns of its batches, and what it forgets."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from tests.support.seats import plan_of, seat

from tiercel.serving.cost import CostCurve
from tiercel.serving.pace import BATCH_SHARE, FOLLOWING_ROWS, Pace
from tiercel.serving.schedule import Lines

US, MS = 1_000, 1_000_000
CURVE = [(1, 100, 100), (64, 730, 730), (512, 5210, 5210)]  # 90 us and 10 us a row
BUDGET_US = 100_000


def pace_of(curve=CURVE):
    """A queue that has learned nothing, and its lines."""
    pace, lines = Pace(CostCurve(curve), BUDGET_US), Lines([], [], [])
    pace.tell(lines)
    return pace, lines


def test_telling_the_scores_keeps_the_next_batch_waiting():
    """Who waits behind a batch waits until its replies are written: less is let in, by as much as those take."""
    pace, lines = pace_of()
    n, before, fits = pace.terms.best, pace.terms, pace.max_rows
    for _ in range(200):
        pace.learn(n, before.batch_ns(n), 0)
        pace.learn_telling(n, n * 10 * US, lines)
    assert pace.row_ns == pytest.approx(10 * US, rel=0.01)
    assert pace.terms.best_ns - before.best_ns == pytest.approx(n * 10 * US, rel=0.05)
    assert pace.max_rows == pytest.approx(fits * before.best_ns / pace.terms.best_ns, rel=0.1)
    assert pace.overhead_ns < US


def test_a_request_of_many_rows_is_told_once():
    """What telling hundreds of replies takes is not what one request of as many rows needs where nobody else waits."""
    pace, lines = pace_of()
    needs = {n: pace.terms.alone_ns(n) for n in (1, 10, 512, 2000)}
    for _ in range(200):
        pace.learn_telling(200, 200 * 20 * US, lines)
    assert {n: pace.terms.alone_ns(n) for n in needs} == needs
    assert pace.terms.all_ns(2000) > needs[2000] + 1000 * 20 * US


def test_a_small_batch_does_not_show_what_a_row_more_takes():
    """What one reply takes besides, a batch of hundreds takes once: after quiet times a burst finds room."""
    pace, lines = pace_of()
    before = pace.terms.best_ns
    for n in range(1, FOLLOWING_ROWS):
        for _ in range(100):
            pace.learn_telling(n, 100 * US, lines)
            pace.learn(n, (1 + n % 2) * (90 + 10 * n) * US, 0)  # now quick, now slow
    assert pace.row_ns == 0
    assert pace.terms.best_ns < 2.5 * before  # the curve follows, and nothing else


def test_what_lies_between_batches_makes_them_larger():
    """The event loop's work for each batch is shared by its rows: with it, a row costs at most a tenth more than it need."""
    pace, lines = pace_of([(1, 60, 60), (512, 60 + 511 * 50, 60 + 511 * 50)])  # 10 us and 50 us a row
    assert pace.terms.best < 10
    for _ in range(300):
        n = pace.terms.best
        pace.learn(n, (10 + 50 * n) * US, 0)
        pace.learn_telling(n, 10 * n * US, lines)
        pace.learn_between(n, (250 + 10 * n) * US)
    assert (260 + 50 * n) / n <= 1.1 * 50 * 1.1
    assert pace.overhead_ns == 0  # nobody who waits alone needs more time for it
    assert pace.terms.alone_ns(1) == pytest.approx(60 * US, rel=0.02)
    for _ in range(300):
        pace.learn(pace.terms.best, (10 + 50 * pace.terms.best) * US, 0)
        pace.learn_between(pace.terms.best, 10 * pace.terms.best * US)
    assert pace.terms.best < 12


def test_full_batches_take_what_each_takes():
    """What every batch takes besides its rows counts once for each that is needed, and not for one that is not."""
    pace, _ = pace_of([(1, 50, 60), (512, 20_000, 24_000)])
    rng = np.random.default_rng(0)
    for _ in range(500):
        n = int(rng.integers(1, 9))
        pace.learn(n, int((300 + 40 * n) * US), 0)
    best = pace.terms.best
    assert pace.scoring_ns(1) > 200 * US
    assert pace.typical_ns(0) == 0
    assert pace.typical_ns(3 * best) == pytest.approx(3 * pace.scoring_ns(best), abs=3)
    assert pace.typical_ns(3 * best + 1) == pytest.approx(3 * pace.scoring_ns(best) + pace.scoring_ns(1), abs=4)


def test_one_stall_between_batches_counts_little():
    """A second in which nothing happened between two batches changes their size by little."""
    pace, _ = pace_of()
    n = pace.terms.best
    pace.learn_between(n, 1000 * MS)
    pace.learn(n, pace.terms.batch_ns(n), 0)
    assert n <= pace.terms.best <= 2 * n


@pytest.mark.parametrize("n", [FOLLOWING_ROWS, 512])
def test_one_stall_while_telling_counts_little(n):
    """A second in which the process stood still is not the next batch's."""
    pace, lines = pace_of()
    fits = pace.max_rows
    pace.learn_telling(n, 1000 * MS, lines)
    assert pace.row_ns < 2 * US
    assert pace.max_rows > 0.8 * fits


def test_no_batch_takes_more_than_its_share():
    """However long telling takes, who just missed a batch has most of its time left; a model that is slow itself does not."""
    for row_us, between_us in itertools.product((0, 20, 40, 80, 120, 500), (0, 300, 5000)):
        pace, lines = pace_of([(1, 2000, 2000), (512, 4500, 4500)])
        for _ in range(500):
            pace.learn(pace.terms.best, pace.terms.batch_ns(pace.terms.best), 0)
            pace.learn_telling(pace.terms.best, pace.terms.best * row_us * US, lines)
            pace.learn_between(pace.terms.best, (between_us + pace.terms.best * row_us) * US)
        assert pace.terms.best_ns <= 1.1 * BATCH_SHARE * BUDGET_US * US
        assert pace.max_rows >= 3 * pace.terms.best
    slow, _ = pace_of([(1, 60_000, 60_000)])
    assert slow.terms.best == 1


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
def test_noise_makes_no_batch_larger(share):
    """Batches that take now more and now less are promised somewhat more than their mean, and stay as large as they were."""
    rng = np.random.default_rng(3)
    pace, _ = pace_of([(n, 90 + 50 * n, 90 + 50 * n) for n in (1, 16, 64, 512)])
    best, alone_ns = pace.terms.best, pace.terms.alone_ns(1)
    for _ in range(2000):
        usual_ns = (90 + 50 * pace.terms.best) * US
        pace.learn(pace.terms.best, int(usual_ns * rng.lognormal(0, share)), 0)
    mean_ns = usual_ns * np.exp(share**2 / 2)
    assert pace.terms.best == best
    assert mean_ns * 0.95 < pace.terms.best_ns < mean_ns * (1.2 + 1.5 * share)
    assert pace.terms.alone_ns(1) == pytest.approx(alone_ns, rel=0.35)


def test_batches_that_are_now_quick_and_now_slow_take_their_mean():
    """On a core that others use, too, batches in a row are not promised the middle of what they take."""
    pace, _ = pace_of()
    best, took = pace.terms.best, itertools.cycle([0.2, 1.8])
    usual_ns = pace.terms.batch_ns(best)
    for _ in range(500):
        pace.learn(best, int(usual_ns * next(took)), 0)
    assert usual_ns <= pace.terms.best_ns < 3 * usual_ns
    assert pace.terms.batch_ns(best) < usual_ns  # one of them usually takes less
    assert pace.terms.best == best


def test_doubts_are_over_with_a_batch_as_slow_as_ever():
    """On a host that is slower than the curve, and not evenly, one row that takes as long as ever brings back all."""
    rng = np.random.default_rng(4)
    pace, lines = pace_of()
    for _ in range(400):
        n = pace.terms.best
        pace.learn(n, int(2 * (90 + 10 * n) * US * rng.lognormal(0, 0.2)), 0)
        pace.learn_telling(n, n * 20 * US, lines)
    known = pace.terms.alone_ns(1), pace.max_rows
    pace.doubt()
    pace.learn(1, 200 * US, 0)
    assert (pace.terms.alone_ns(1), pace.max_rows) == pytest.approx(known, rel=0.1)


def learn_on_a_shared_core(pace, seed=5):
    """Batches of many sizes that compute what the curve says, wait three times that, and once for somebody's turn."""
    rng = np.random.default_rng(seed)
    for _ in range(400):
        n = int(rng.integers(1, 500))
        work_ns = (90 + 10 * n) * US
        waited_ns = int(3 * work_ns * rng.lognormal(0, 0.1)) + MS
        pace.learn(n, work_ns, waited_ns, waited_ns)


def test_a_shared_core_makes_batches_take_longer_and_rows_no_slower():
    """All that is promised counts with the waits; batches are as large as before, but for what fits their share."""
    pace, lines = pace_of()
    alone_ns, best, scoring_ns = pace.terms.alone_ns(1), pace.terms.best, pace.scoring_ns(64)
    learn_on_a_shared_core(pace)
    assert pace.scoring_ns(64) == pytest.approx(scoring_ns, rel=0.02)
    assert pace.typical_ns(64) == pytest.approx(4 * scoring_ns, rel=0.1)
    assert 4 * alone_ns < pace.terms.alone_ns(1) < 4 * alone_ns + 3 * MS
    assert pace.terms.best >= best
    assert pace.terms.best_ns <= BATCH_SHARE * BUDGET_US * US
    for ns in (5 * MS, 10 * MS, 20 * MS):
        n = pace.terms.rows_within(ns)
        assert pace.terms.batch_ns(n) <= ns + 1 < pace.terms.batch_ns(n + 1) + 2
    # The lines count with them as well, and leave it to `Admission` to refuse who cannot be in time.
    now_ns = 10**12
    lines.is_open, lines.is_woken, lines.cancelled = True, True, None
    pace.tell(lines)
    assert lines.entry(seat(plan_of(), [[1]], now_ns + 2 * alone_ns), now_ns) == "undecided"
    assert lines.entry(seat(plan_of(), [[1]], now_ns + 2 * pace.terms.alone_ns(1)), now_ns) == "taken"


def test_doubts_are_of_a_shared_core_too():
    """Forgotten while in doubt, feared meanwhile, and known again with a batch that still waits."""
    pace, _ = pace_of()
    fresh_ns = pace.terms.alone_ns(1)
    learn_on_a_shared_core(pace)
    known_ns = pace.terms.alone_ns(1)
    pace.doubt()
    assert pace.terms.alone_ns(1) == fresh_ns
    assert pace.feared_ns(1) == pytest.approx(known_ns, rel=0.01)
    pace.learn(1, 100 * US, 1300 * US, 1300 * US)
    assert pace.terms.alone_ns(1) == pytest.approx(known_ns, rel=0.1)
    pace.doubt()
    pace.learn(1, 100 * US, 0, 0)
    assert pace.terms.alone_ns(1) < 2 * fresh_ns


def test_full_batches_on_a_shared_core():
    """From batches of one size it is not known which of their waits grow; most of what they take is not said to be fixed."""
    pace, _ = pace_of([(n, 10 + 60 * n, 10 + 60 * n) for n in (1, 512)])
    for _ in range(600):
        work_ns = (10 + 60 * pace.terms.best) * US
        pace.learn(pace.terms.best, work_ns, 3 * work_ns, 3 * work_ns)
    assert pace.terms.best > 20
    assert pace.terms.batch_ns(pace.terms.best) >= 3.9 * work_ns
    assert pace.terms.alone_ns(1) < pace.terms.best_ns / 2
    for _ in range(100):
        pace.learn(1, 70 * US, 210 * US, 210 * US)
    assert pace.terms.alone_ns(1) < MS


@pytest.mark.parametrize(("besides_ms", "share"), [(5, 0.25), (15, 0.3), (20, 0.35), (50, None)])
def test_what_goes_before_a_row_is_scored_leaves_room_for_some(besides_ms, share):
    """Where much of a batch's time is gone whatever its rows, it gets larger and not smaller, but for what nobody has."""
    pace, _ = pace_of([(n, 100 * n, 100 * n) for n in (1, 512)])
    for _ in range(400):
        pace.learn(pace.terms.best, 100 * pace.terms.best * US, besides_ms * MS)
    assert pace.overhead_ns == pytest.approx(besides_ms * MS, rel=0.01)
    if share is None:
        assert pace.terms.best_ns < 1.6 * besides_ms * MS  # half as long again as one row in any case
    else:
        assert pace.terms.best_ns <= share * BUDGET_US * US
        assert pace.terms.best >= min(0.9 * (share * BUDGET_US * US - besides_ms * MS) / (100 * US), 45)


def test_lines_know_what_telling_takes():
    """Behind a full batch somebody is let in by what it takes until its scores are told, at once when that is learned."""
    pace, lines = pace_of()
    plan, best, now_ns = plan_of(), pace.terms.best, 10**12
    lines.is_open, lines.is_woken, lines.cancelled = True, True, None
    due_ns = now_ns + 2 * pace.terms.best_ns + MS
    for _ in range(best):
        assert lines.entry(seat(plan, [[1]], due_ns), now_ns) == "taken"
    assert lines.entry(seat(plan, [[1]], due_ns), now_ns) == "taken"
    for _ in range(100):
        pace.learn_telling(best, best * 20 * US, lines)
    assert lines.entry(seat(plan, [[1]], due_ns), now_ns) == "refused"
