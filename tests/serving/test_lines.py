"""The compiled part of a queue, beside the plain functions that it must equal."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import numpy as np
import pytest
from tests.support.seats import Told, plan_of, seat

from tiercel.errors import CapacityError, DeadlineError
from tiercel.monitor.counting import WorkerCounters
from tiercel.serving.admission import Admission
from tiercel.serving.cost import CostCurve
from tiercel.serving.near_realtime import Batcher
from tiercel.serving.pace import Pace
from tiercel.serving.schedule import Lines, advance, next_batch, wanted_by
from tiercel.serving.waiters import leave_by

MS = 1_000_000
NOW = 10**12


@dataclass
class Item:
    """Somebody who waits and is no seat."""

    due_ns: int
    n_rows: int
    rest: int
    is_large: bool = False


class Forecast:
    """`Lines.fits_small` as the rule reads, without its shortcut."""

    def __init__(self, pace, small, other_rows):
        self.terms, self.small, self.other_rows = pace.terms, small, other_rows

    def fits(self, n, due_ns, free_ns, by_ns):
        """Whether `n` more rows are done by `by_ns`, and nobody is late for them."""
        small, best = self.small, self.terms.best
        all_rows = self.other_rows + sum(each.rest for each in small)
        before = after = self._next_cut(small[0].due_ns if small else None, free_ns)
        if not small or due_ns < small[0].due_ns:
            after = self._next_cut(by_ns, free_ns)
            if after[0] < min(before[0], all_rows + n, (best + 1) // 2):
                return False
        ahead = 0
        for each in small:
            ahead += each.rest
            is_late = self._ends_ns(ahead + n, after) > each.due_ns
            if each.due_ns > due_ns and is_late and self._ends_ns(ahead, before) <= each.due_ns:
                return False
        return self._ends_ns(n + sum(each.rest for each in small if each.due_ns <= due_ns), after) <= by_ns

    def _next_cut(self, first_due_ns, free_ns):
        """The largest next batch for the first in line: rows, end. A full one if it is late in any case."""
        if first_due_ns is not None and free_ns + self.terms.best_ns > first_due_ns:
            cut = min(self.terms.best, self.terms.rows_within(first_due_ns - free_ns))
            if cut > 0:
                return cut, free_ns + self.terms.batch_ns(cut)
        return self.terms.best, free_ns + self.terms.best_ns

    def _ends_ns(self, rows, cut):
        """The end of the last of `rows`."""
        return cut[1] + max(0, -(-(rows - cut[0]) // self.terms.best)) * self.terms.best_ns


def pace_of(rng):
    """A queue's pace after some batches."""
    us, points = float(rng.integers(20, 2000)), []
    for k in range(int(rng.integers(1, 10))):
        points.append((1 << k, us, us * rng.uniform(1, 1.5)))
        us *= rng.uniform(1.0, 2.2)
    pace = Pace(CostCurve(points), 100_000)
    for _ in range(int(rng.integers(0, 40))):
        n = int(rng.integers(1, pace.terms.best + 1))
        besides_ns = int(rng.integers(0, 5 * MS))
        pace.learn(n, int(rng.integers(1, 5 * MS)), besides_ns, int(rng.integers(0, besides_ns + 1)))
        pace.learn_telling(n, int(rng.integers(0, 20_000 * n)), Lines([], [], []))
    return pace


@pytest.mark.parametrize("seed", range(60))
def test_a_batch_is_cut_as_the_schedule_says(seed):
    """Of a line of small requests the next batch is the one of `next_batch`, and what is left is the same, batch after batch."""
    rng = np.random.default_rng(seed)
    pace, plan = pace_of(rng), plan_of()
    best = pace.terms.best
    one, other = [], []
    for due_ns in sorted(NOW + int(ns) for ns in rng.integers(-MS, 120 * MS, int(rng.integers(1, 40)))):
        n = int(rng.integers(1, min(best, 20) + 1))
        one.append(Item(due_ns, n, n))
        other.append(seat(plan, [[1]] * n, due_ns) if rng.random() < 0.5 else Item(due_ns, n, n))
    rows = sum(each.rest for each in one)
    plain, compiled = Lines(one, [], [], rows), Lines(other, [], [], rows)
    pace.tell(compiled)
    now_ns = NOW
    while one:
        chosen = next_batch(plain, now_ns, pace.terms)
        expected = [(each.due_ns, each.n_rows - each.rest, each.n_rows - each.rest + take) for each, take in chosen]
        advance(plain, chosen)
        del one[: plain.small_at]
        plain.small_at = 0
        found = compiled.cut(now_ns)
        assert [(each.due_ns, start, stop) for each, start, stop in found] == expected
        assert [each.rest for each in one] == [each.rest for each in other]
        assert (compiled.small_rows, compiled.n_rows) == (plain.small_rows, plain.n_rows)
        now_ns += pace.terms.batch_ns(sum(take for _, take in chosen))
    assert other == []
    assert compiled.cut(now_ns) == []


def test_only_small_requests_are_cut():
    """Where a large request waits, or one that is tried alone, the batch is somebody else's to choose."""
    item = Item(NOW, 1, 1)
    assert Lines([item], [item], [], 1).cut(NOW) is None
    assert Lines([item], [], [item], 1).cut(NOW) is None


@pytest.mark.parametrize("seed", range(60))
def test_who_is_let_in_at_once_is_in_time_by_every_rule(seed):
    """Nobody is let in by the compiled door whom the queue's own would refuse, and each stands in the line by its deadline."""
    rng = np.random.default_rng(1000 + seed)
    pace, plan, waiting = pace_of(rng), plan_of(), []
    batcher = Batcher(plan.scorer.score, CostCurve([(1, 1, 1)]), None, n_features=1, n_outputs=2, clock_ns=lambda: NOW)
    lines = Lines(waiting, [], [], 0)
    lines.is_open, lines.cancelled, lines.is_woken = True, batcher._cancelled, True
    lines.ends_ns = NOW + int(rng.integers(-10 * MS, 10 * MS)) if rng.random() < 0.5 else 0
    lines.watch = lambda: None
    pace.tell(lines)
    twin = Lines([], [], [], 0)
    pace.tell(twin)
    door, n_in = Admission(twin, pace), 0
    for _ in range(200):
        n, due_ns = int(rng.integers(1, 6)), NOW + int(rng.integers(0, 150 * MS))
        newcomer = seat(plan, [[1]] * n, due_ns, can_leave=bool(rng.random() < 0.3))
        twin.small[:], twin.small_rows = list(waiting), lines.small_rows
        twin.is_tight = False
        if lines.take(newcomer, NOW):
            n_in += 1
            assert n <= pace.terms.best
            assert pace.terms.alone_ns(n) <= due_ns - NOW
            by_ns = wanted_by(due_ns, due_ns - NOW, pace.terms.alone_ns(n)) if newcomer.can_leave else due_ns
            assert door.fits(Item(due_ns, n, n), lines.free_ns(NOW), is_large=False, by_ns=by_ns)
            assert lines.n_rows <= pace.max_rows or len(waiting) == 1
        else:
            assert newcomer not in waiting
    assert [each.due_ns for each in waiting] == sorted(each.due_ns for each in waiting)
    assert (lines.n_open, len(waiting), lines.n_rows) == (n_in, n_in, sum(each.rest for each in waiting))


@pytest.mark.parametrize("seed", range(100))
def test_who_fits_among_the_small_is_who_the_forecast_lets_in(seed):
    """Whatever waits, seats and others: a newcomer fits if the plain forecast has it and everybody behind it in time."""
    rng = np.random.default_rng(2000 + seed)
    pace, plan, waiting = pace_of(rng), plan_of(), []
    lines, answers = Lines(waiting, [], []), set()
    lines.other_rows = int(rng.integers(0, 2 * pace.terms.best)) if seed % 2 else 0
    forecast = Forecast(pace, waiting, lines.other_rows)
    pace.tell(lines)
    until_ns = int(rng.integers(2, 40)) * pace.terms.best_ns
    for _ in range(150):
        n, due_ns = int(rng.integers(1, 6)), NOW + int(rng.integers(-until_ns // 8, until_ns))
        if waiting and rng.random() < 0.2:
            due_ns = waiting[int(rng.integers(len(waiting)))].due_ns
        free_ns = NOW + int(rng.integers(0, pace.terms.best_ns))
        by_ns = due_ns - int(rng.integers(0, until_ns // 4)) if rng.random() < 0.5 else due_ns
        fits = lines.fits_small(n, due_ns, free_ns, by_ns)
        assert fits is forecast.fits(n, due_ns, free_ns, by_ns)
        assert by_ns != due_ns or fits is lines.fits_small(n, due_ns, free_ns)
        answers.add(fits)
        if fits or rng.random() < 0.1:  # some who are late already
            waiting.append(Item(due_ns, n, n) if rng.random() < 0.5 else seat(plan, [[1]] * n, due_ns))
            waiting.sort(key=lambda each: each.due_ns)
            lines.small_rows += n
    assert answers == {True, False}


def test_who_comes_in_front_of_many_is_let_in_at_once():
    """Somebody whose deadline is nearer than that of all who wait needs no look of the queue's own, if they can wait."""
    pace, plan, waiting = Pace(CostCurve([(1, 1000, 1000)]), 100_000), plan_of(), []
    lines = Lines(waiting, [], [])
    lines.is_open, lines.is_woken, lines.cancelled = True, True, None
    pace.tell(lines)
    ahead_ns = 20 * pace.terms.best_ns
    for _ in range(10 * pace.terms.best):
        assert lines.take(seat(plan, [[1]], NOW + ahead_ns), NOW)
    assert lines.take(seat(plan, [[1]], NOW + 2 * pace.terms.best_ns), NOW)
    assert waiting[0].due_ns == NOW + 2 * pace.terms.best_ns
    for _ in range(10 * pace.terms.best - 1):
        assert lines.take(seat(plan, [[1]], NOW + ahead_ns), NOW)
    assert not lines.take(seat(plan, [[1]], NOW + 2 * pace.terms.best_ns), NOW)  # one more, and the last are late


@pytest.mark.parametrize("seed", range(40))
def test_whom_the_compiled_door_refuses_the_queues_own_refuses_too(seed):
    """Whatever waits and however little time is left: "refused" is never said of somebody whom the queue would let in."""
    rng = np.random.default_rng(3000 + seed)
    plan, said, now_ns = plan_of(), set(), NOW
    batcher = Batcher(
        plan.scorer.score, CostCurve([(1, 500, 600), (64, 4000, 5000)]), None, n_features=1, n_outputs=2,
        clock_ns=lambda: now_ns,
    )  # fmt: skip
    batcher._loop = Never()
    lines = batcher._lines
    for at in range(400):
        lines.is_tight = lines.is_tight or (seed % 3 == 0 and 100 < at < 150)
        if at == 380 and seed % 4 == 0:
            batcher._is_stuck, lines.is_open = True, False
        if seed % 3 == 0 and at == 150:
            lines.is_tight = False  # as when a run of the schedule has ended
        due_ns = NOW + int(rng.integers(0, MS if rng.random() < 0.1 else 120 * MS))
        newcomer = seat(plan, [[1]] * int(rng.integers(1, 6)), due_ns, can_leave=bool(rng.random() < 0.3))
        entry = lines.entry(newcomer, now_ns)
        said.add(entry)
        if entry == "refused":
            before = lines.n_rows
            with pytest.raises(CapacityError):
                batcher.take(newcomer)
            assert lines.n_rows == before
        elif entry == "undecided":
            with contextlib.suppress(CapacityError, DeadlineError):
                batcher.take(newcomer)
    assert said == {"taken", "refused", "undecided"}


def test_a_batch_that_overruns_is_expected_to_go_on():
    """The next batch starts when the running one ends; one that is late already ends no sooner than it is late."""
    lines = Lines([], [], [])
    assert lines.free_ns(NOW) == NOW
    lines.ends_ns = NOW
    assert [lines.free_ns(NOW + ms * MS) - NOW for ms in (-5, 0, 1, 7)] == [0, 0, 2 * MS, 14 * MS]


def test_nobody_is_let_in_for_the_end_that_was_foreseen():
    """Behind a batch of ten times its time, who would be in time had it ended is refused, and who has more time is not."""
    pace, plan = Pace(CostCurve([(1, 1000, 1000)]), 100_000), plan_of()
    lines = Lines([], [], [])
    lines.is_open, lines.is_woken = True, True
    pace.tell(lines)
    lines.ends_ns = NOW
    later = NOW + 20 * MS
    assert lines.entry(seat(plan, [[1]], later + 10 * MS), later) == "refused"
    assert lines.entry(seat(plan, [[1]], later + 30 * MS), later) == "taken"


@pytest.mark.parametrize("seed", range(20))
def test_who_can_leave_leaves_time_for_others(seed):
    """Something is kept of every deadline for who stands in, never more than half; less for a model that needs the time."""
    rng = np.random.default_rng(4000 + seed)
    for _ in range(200):
        budget_ns, lag_ns = int(rng.integers(4, 10_000 * MS)), int(rng.integers(0, 100 * MS))
        quick, slow = sorted(int(ns) for ns in rng.integers(0, budget_ns, 2))
        kept = [NOW - leave_by(NOW, budget_ns, needed, lag) for needed in (quick, slow) for lag in (0, lag_ns)]
        assert 0 < min(budget_ns // 4, 5 * MS) <= kept[2] <= kept[0] <= budget_ns // 4
        assert [kept[1] - kept[0], kept[3] - kept[2]] == [min(lag_ns, budget_ns // 4)] * 2
        left_ns = int(rng.integers(-MS, budget_ns))
        assert NOW - max(0, left_ns - quick) <= wanted_by(NOW, left_ns, quick) <= NOW
        assert wanted_by(NOW, left_ns, quick) <= wanted_by(NOW, left_ns, slow)


def test_a_running_batch_is_looked_after_for_who_has_to_leave_sooner():
    """Somebody let in who has to be told before the next look is said so at once; nobody else is."""
    pace, plan, looks = Pace(CostCurve([(1, 1000, 1000)]), 100_000), plan_of(), []
    lines = Lines([], [], [])
    lines.is_open, lines.is_woken, lines.watch = True, True, lambda: looks.append(len(lines.small))
    pace.tell(lines)
    lines.ends_ns, lines.look_ns = NOW + MS, NOW + 50 * MS
    for at, (due_ms, can_leave) in enumerate([(60, True), (40, False), (40, True)]):
        assert lines.take(seat(plan, [[1]], NOW + due_ms * MS, can_leave=can_leave), NOW)
        assert looks == ([] if at < 2 else [3])
        assert lines.may_leave is can_leave
        lines.may_leave = False


class Never:
    """An event loop in which nothing comes to its turn."""

    def call_soon(self, *_):
        return None


def test_nobody_comes_into_a_queue_that_is_closed():
    """While the queue says that it is not open, everybody is left to the queue."""
    pace, plan = Pace(CostCurve([(1, 100, 100)]), 100_000), plan_of()
    lines = Lines([], [], [])
    pace.tell(lines)
    assert not lines.take(seat(plan, [[1]], NOW + 50 * MS), NOW)


def test_rows_and_scores_find_their_way():
    """Rows are gathered in the order of the parts; whoever is whole gets its own scores, and the rest are told apart."""
    plan, hots = plan_of(2), [Told() for _ in range(3)]
    seats = [seat(plan, [[k, 10 * k], [k + 0.5, 1]], NOW + k, hot) for k, hot in enumerate(hots)]
    cut = Item(NOW, 3, 0)
    cut.rows = np.array([[7, 7], [8, 8], [9, 9]], np.float32)
    parts = [(seats[0], 0, 2), (cut, 1, 3), (seats[1], 1, 2), (seats[2], 0, 2)]
    rows = Lines.gather(parts, 2)
    np.testing.assert_array_equal(rows, np.float32([[0, 0], [0.5, 1], [8, 8], [9, 9], [1.5, 1], [2, 20], [2.5, 1]]))
    seats[2].tell_cancelled = lambda _seat: None
    assert seats[2].cancel()
    assert not seats[2].cancel()
    lines = Lines([], [], [])
    lines.n_open = 3
    others = lines.answer(parts, plan.scorer.score(rows), NOW + 1)
    assert [(each, start, stop, at) for each, start, stop, at in others] == [(cut, 1, 3, 2), (seats[1], 1, 2, 4)]
    assert [hot.found for hot in hots] == [[[[0.0, 0.0], [1.5, 0.5]]], [], []]
    assert (lines.late, lines.n_open, seats[0].done(), seats[1].done()) == (1, 2, True, False)


def test_a_connection_that_cannot_be_told_holds_up_nobody(caplog):
    """What telling one raises is logged, and the next has its scores."""

    def broken(_error):
        raise ZeroDivisionError("a mistake of our own")

    plan, other = plan_of(), Told()
    parts = [(seat(plan, [[1]], NOW, Told(broken)), 0, 1), (seat(plan, [[2]], NOW, other), 0, 1)]
    Lines([], [], []).answer(parts, plan.scorer.score(Lines.gather(parts, 1)), NOW)
    assert other.found == [[[2.0, 2.0]]]
    assert "could not be answered" in caplog.text


def test_waiting_rows_are_a_gauge():
    """The worker's gauge is of all queues, follows what each tells, and is never below zero."""
    counters = WorkerCounters()
    one, other = (Lines([], [], [], counters=counters) for _ in range(2))
    one.small_rows, other.other_rows = 5, 3
    one.tell()
    other.tell()
    assert counters.get("near_realtime_waiting_rows") == 8
    one.small_rows = 1
    one.tell()
    assert counters.get("near_realtime_waiting_rows") == 4


def test_a_pace_that_is_none_is_refused():
    """A largest batch beyond the table of costs is a mistake, and said so."""
    with pytest.raises(ValueError, match="Expected batches of 1 to 2 rows, got 3"):
        Lines([], [], []).set_pace([0.0, 1.0, 2.0], 1.0, 0, 3, 1000, 3)
    with pytest.raises(ValueError, match="Expected set_pace before"):
        Lines([], [], []).fits_small(1, NOW, NOW)


def test_who_can_leave_is_let_into_an_idle_queue_that_is_quick_enough():
    """However long a full batch takes: where nobody waits, who needs less than there is left is scored."""
    pace, plan = Pace(CostCurve([(1, 5000, 8000), (64, 20_000, 30_000)]), 100_000), plan_of()
    lines = Lines([], [], [])
    lines.is_open, lines.is_woken = True, True
    pace.tell(lines)
    for left_ms in range(9, 60):
        newcomer = seat(plan, [[1]], NOW + left_ms * MS, can_leave=True)
        assert lines.entry(newcomer, NOW) == "taken", left_ms
        lines.small.clear()
        lines.small_rows = 0
