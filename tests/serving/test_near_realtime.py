"""The near-realtime queue in simulated time: order, promises, failures; and with real threads and onnxruntime."""

from __future__ import annotations

import asyncio
import gc
import math
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from tests.support.seats import Told, plan_of, seat
from tests.support.simulation import N_FEATURES, ExactCurve, Load, Simulation, affine, play, scores_of

from tiercel.errors import CapacityError, DeadlineError, ModelError, UnsupportedModelError
from tiercel.models.onnx_scorer import OnnxScorer
from tiercel.monitor.counting import WorkerCounters
from tiercel.serving import near_realtime
from tiercel.serving.cost import CostCurve
from tiercel.serving.near_realtime import Batcher

MS = 1_000_000


def check_promises(simulation):
    """What holds after every run in which batches took what the curve says."""
    batcher, asked = simulation.batcher, list(simulation.asked.values())
    scored: dict[int, int] = {}
    for batch in simulation.batches:
        for number, count in batch.parts:
            scored[number] = scored.get(number, 0) + count
    for each in asked:
        if each.refused is not None:
            assert each.number not in scored, "refused, and scored"
        elif each.future.cancelled():
            assert scored.get(each.number, 0) <= each.n_rows
        else:
            assert each.future.done(), "lost"
            np.testing.assert_array_equal(each.future.result(), scores_of(each.rows))
            assert each.done_ns <= each.due_ns, f"late by {each.done_ns - each.due_ns} ns"
            assert scored[each.number] == each.n_rows
    assert batcher.late == batcher.expired == batcher.failed == 0
    assert (batcher.n_waiting, batcher.depth_rows, batcher._lines.n_open) == (0, 0, 0)
    assert batcher.rows == sum(scored.values())
    assert batcher.batches == len(simulation.batches) == sum(batcher.batch_sizes)
    assert sum(batcher.refused.values()) == sum(each.refused is not None for each in asked)


def check_order(simulation):
    """Of requests that fit one batch, none is left behind by a batch that takes one due later."""
    for batch in simulation.batches:
        taken = [simulation.asked[number] for number, _ in batch.parts if number not in batch.large]
        small = [each for each in taken if each.n_rows <= simulation.batcher.best_rows]
        left = [due for due, _ in batch.left]
        if small and left:
            assert max(each.due_ns for each in small) <= min(left)


def check_state(simulation):
    """Whenever the event loop has nothing to do: bounded, counted right, and never waiting beside an idle thread."""
    batcher = simulation.batcher
    waiting = [*batcher._small, *batcher._large, *batcher._alone]
    rows = sum(each.rest for each in waiting)
    assert (len(waiting), rows) == (batcher.n_waiting, batcher.depth_rows)
    assert rows <= batcher.max_rows_waiting or batcher.n_waiting == 1
    assert simulation.running is not None or batcher.n_waiting == 0, "an idle thread, and somebody waits"


def random_curve(rng):
    """Rising, with slopes that change by two orders of magnitude, as noise and caches make them."""
    us, points = float(rng.integers(5, 400)), []
    for k in range(10):
        points.append((1 << k, us, us * rng.uniform(1, 1.5)))
        us += (1 << k) * rng.choice([0.1, 1, 5, 20])
    return ExactCurve(points)


SIZES = [(1,), (1, 2, 5), (1, 1, 1, 30), (1, 1, 1, 1, 1, 1, 1000), (3, 700)]
DEADLINES_US = [(100_000,), (2_000, 100_000), (300, 1_000, 5_000, 50_000), (100_000, 400_000)]


@pytest.mark.parametrize("seed", range(16))
def test_nobody_let_in_is_late_lost_or_mixed_up(seed):
    """Under any load, curve, mix of sizes and deadlines, with and without clients that go away."""
    rng = np.random.default_rng(seed)
    simulation = Simulation(random_curve(rng))
    best = simulation.batcher.best_rows
    sizes, within = SIZES[seed % len(SIZES)], DEADLINES_US[seed % len(DEADLINES_US)]
    capacity = 1e6 * best / simulation.cost.us(best)
    rate = capacity * (0.5, 0.9, 1.5, 3)[rng.integers(4)] / np.mean(sizes)
    load = Load(seed, rate, min(0.2, 400 / rate), sizes, within, cancelled=0.2 * (seed % 3 == 0))
    play(simulation, load.arrivals, check_state)
    check_promises(simulation)
    check_order(simulation)
    assert simulation.batcher.batches


arrivals = st.lists(
    st.tuples(
        st.integers(0, 4_000),
        st.integers(1, 40),
        st.sampled_from([100, 300, 1_000, 1_500, 3_000, 20_000]),
        st.none() | st.integers(0, 2_000),
    ),
    max_size=40,
)


@given(arrivals=arrivals, fixed_us=st.integers(1, 300), row_us=st.sampled_from([0.25, 1, 10, 40]))
@settings(max_examples=80, deadline=None)
def test_promises_hold_for_any_arrivals(arrivals, fixed_us, row_us):
    """Whatever arrives and leaves whenever, with tight deadlines and large requests among them."""
    simulation = Simulation(affine(fixed_us, row_us))
    play(simulation, sorted(arrivals, key=lambda one: one[0]), check_state)
    check_promises(simulation)
    check_order(simulation)


@given(arrivals=arrivals, quicker=st.floats(0.3, 1.0))
@settings(max_examples=30, deadline=None)
def test_a_host_faster_than_its_curve_breaks_no_promise(arrivals, quicker):
    """Batches that end earlier than foreseen make nobody late."""
    curve = affine(100, 10)
    simulation = Simulation(curve, actual_us=lambda n: quicker * curve.us(n))
    play(simulation, sorted(arrivals, key=lambda one: one[0]), check_state)
    check_promises(simulation)


def test_an_idle_server_starts_at_once_and_what_comes_meanwhile_is_one_batch():
    """The first request does not wait for company; those of the time it takes share the next batch."""
    simulation = Simulation(affine(1000, 10))
    play(simulation, [(0, 1, 100_000, None), *((50 * k, 1, 100_000, None) for k in range(1, 11))])
    assert [(batch.at_ns - 10**9, len(batch.parts)) for batch in simulation.batches] == [(0, 1), (1_010_000, 10)]


def test_requests_of_one_pass_of_the_event_loop_share_a_batch():
    """Forty requests that were read together are not one and thirty-nine."""
    simulation = Simulation(affine(1000, 10))
    play(simulation, [(0, 1, 100_000, None)] * 40)
    assert [len(batch.parts) for batch in simulation.batches] == [40]


def test_the_earliest_deadline_goes_first():
    """While a batch runs, a tight request overtakes those that came before it."""
    simulation = Simulation(affine(1000, 200))
    best = simulation.batcher.best_rows
    play(simulation, [(0, 1, 90_000, None), (10, best, 90_000, None), (20, 1, 4_000 + 200 * best, None)])
    assert simulation.batches[1].parts[-1][0] == 2
    assert simulation.asked[2].done_ns < simulation.asked[1].done_ns


def test_a_batch_is_closed_before_its_tightest_request_would_be_late():
    """A request with little slack shares its batch with as many as that allows, and the others follow in time."""
    curve = affine(100, 10)
    simulation = Simulation(curve)
    tight_us = 110 - 10 + 100 + 10 * 8 + 5  # behind the first batch, with seven others, and half a row more
    play(simulation, [(0, 1, 100_000, None), (10, 1, tight_us, None), *[(20, 1, 100_000, None)] * 20], check_state)
    check_promises(simulation)
    assert [sum(count for _, count in batch.parts) for batch in simulation.batches] == [1, 8, 13]


def test_nobody_may_have_others_scored_in_tiny_batches():
    """A tight request may cut the next batch short when little else waits, and not while a backlog needs full ones."""

    async def main():
        simulation = Simulation(affine(1000, 100))
        best = simulation.batcher.best_rows
        simulation.ask(best)
        await simulation.settle()
        left_us = simulation.cost.us(best)
        tight_us = left_us + simulation.cost.us(best // 4)
        others = [simulation.ask() for _ in range(best // 4 - 1)]
        assert simulation.ask(1, tight_us).refused is None
        backlog = [simulation.ask() for _ in range(2 * best)]
        assert isinstance(simulation.ask(1, tight_us - 1).refused, CapacityError)
        assert all(each.refused is None for each in (*others, *backlog))
        await simulation.run()
        check_promises(simulation)

    asyncio.run(main())


def test_what_would_come_too_late_is_not_scored():
    """After a stall, requests whose time is over are told so, and the capacity goes to the others."""
    stalls = iter([60_000])
    curve = affine(1000, 10)
    simulation = Simulation(curve, actual_us=lambda n: next(stalls, curve.us(n)))
    play(simulation, [(0, 1, 100_000, None), *[(10, 1, 50_000, None)] * 5, *[(20, 1, 90_000, None)] * 5])
    asked = list(simulation.asked.values())
    assert [type(each.future.exception()) for each in asked[1:6]] == [DeadlineError] * 5
    assert simulation.batcher.expired == 5
    assert {number for batch in simulation.batches for number, _ in batch.parts} == {0, 6, 7, 8, 9, 10}
    assert all(each.is_in_time for each in asked[6:])


def test_hopeless_deadlines_are_refused_at_once():
    """What an idle server could not do in time is a matter of the deadline, and the numbers are in the error."""

    async def main():
        simulation = Simulation(affine(1000, 10))
        late = simulation.ask(1, 1_009)
        assert isinstance(late.refused, DeadlineError)
        assert (late.refused.budget_us, late.refused.needed_us) == (1_009, 1_010)
        assert simulation.ask(1, 1_010).future is not None
        await simulation.run()
        check_promises(simulation)
        assert simulation.batcher.refused == {"deadline": 1, "capacity": 0, "full": 0, "closing": 0}

    asyncio.run(main())


@pytest.mark.parametrize("wait_for", ["own", "others"])
def test_a_busy_server_refuses_with_the_time_after_which_it_would_not(wait_for):
    """Nobody is let in who would be late or make others late; after the predicted wait the same request is welcome."""

    async def main():
        simulation = Simulation(affine(1000, 100))
        best = simulation.batcher.best_rows
        full_us = 1000 + 100 * best
        simulation.ask(best, 100_000)
        await simulation.settle()
        simulation.ask(best, 2 * full_us + 500)
        within_us = 1.5 * full_us if wait_for == "own" else 1.8 * full_us
        size = best if wait_for == "own" else 10  # ten rows are early enough, and a batch more for the other
        refused = simulation.ask(size, within_us).refused
        assert isinstance(refused, CapacityError)
        assert 0 < refused.predicted_wait_us <= 4 * full_us
        begin_ns = simulation.now_ns
        while simulation.running and simulation.running[0] <= begin_ns + 1000 * refused.predicted_wait_us:
            simulation.finish()
            await simulation.settle()
        simulation.now_ns = begin_ns + 1000 * refused.predicted_wait_us
        assert simulation.ask(size, within_us).refused is None
        await simulation.run()
        check_promises(simulation)

    asyncio.run(main())


def test_the_queue_is_bounded_by_the_budget():
    """With deadlines of an hour, what waits still fits the tier's tenth of a second."""
    simulation = Simulation(affine(1000, 100))
    batcher = simulation.batcher
    assert simulation.cost.us(batcher.best_rows) * batcher.max_rows_waiting / batcher.best_rows <= 100_000
    play(simulation, [(k, 1, 3.6e9, None) for k in range(2_000)], check_state)
    check_promises(simulation)
    assert batcher.refused["full"] == 2_000 - len(simulation.accepted()) > 500


@pytest.mark.parametrize("n_rows", [1, 30, 300, 900])
def test_waiting_time_is_predicted_exactly(n_rows):
    """Where batches take what the curve says, the forecast for the last one to come is when it is done."""

    async def main():
        simulation = Simulation(affine(1000, 10))
        for size in (1, 30, 700):
            simulation.ask(size, 99_000)
            await simulation.settle()
        foreseen_ns = simulation.now_ns + 1000 * simulation.batcher.predicted_wait_us(n_rows)
        last = simulation.ask(n_rows, 99_000)
        await simulation.run()
        assert last.done_ns <= foreseen_ns == max(each.done_ns for each in simulation.asked.values())

    asyncio.run(main())


def test_who_leaves_while_waiting_is_never_scored_and_who_leaves_later_harms_nobody():
    """A cancelled request leaves the queue at once; in a running batch its neighbours get their answers."""

    async def main():
        simulation = Simulation(affine(1000, 10))
        running = [simulation.ask() for _ in range(3)]
        await simulation.settle()
        waiting = [simulation.ask(2) for _ in range(3)]
        large = simulation.ask(2 * simulation.batcher.best_rows)
        running[1].future.cancel()
        waiting[1].future.cancel()
        large.future.cancel()
        assert (simulation.batcher.n_waiting, simulation.batcher.depth_rows) == (2, 4)
        assert not waiting[1].future.cancel()
        await simulation.run()
        assert simulation.batcher.cancelled == 3
        assert [each for batch in simulation.batches for each, _ in batch.parts] == [0, 1, 2, 3, 5]
        check_promises(simulation)

    asyncio.run(main())


def test_a_task_that_is_cancelled_takes_its_request_with_it():
    """Cancelling who awaits the answer, as a server does on disconnect, is cancelling the request."""

    async def main():
        simulation = Simulation(affine(1000, 10))
        simulation.ask()
        await simulation.settle()

        async def wait():
            return await simulation.batcher.submit(np.zeros((1, N_FEATURES), np.float32), simulation.now_ns + 50 * MS)

        task = asyncio.create_task(wait())
        await simulation.settle()
        assert simulation.batcher.n_waiting == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert simulation.batcher.n_waiting == 0
        await simulation.run()
        assert len(simulation.batches) == 1

    asyncio.run(main())


def test_a_large_request_holds_up_a_small_one_for_one_part_at_most():
    """Ten thousand rows are scored part by part; one row that comes later, with a later deadline, is in the next batch."""
    simulation = Simulation(affine(100, 1))
    chunk_us = simulation.cost.us(simulation.batcher.best_rows)
    small = [(500 + 477 * k, 1, 100_000, None) for k in range(20)]
    play(simulation, [(0, 10_000, 100_000, None), *small], check_state)
    check_promises(simulation)
    large, *others = simulation.asked.values()
    assert all(each.done_ns - each.at_ns <= 2000 * chunk_us for each in others)
    assert large.done_ns > max(each.done_ns for each in others)


@pytest.mark.parametrize("n_large", [1, 3])
def test_small_requests_do_not_starve_a_large_one(n_large):
    """Under twice the capacity in single rows, accepted large requests are in time as well."""
    simulation = Simulation(affine(1000, 100))
    rate = 2e6 * simulation.batcher.best_rows / simulation.cost.us(simulation.batcher.best_rows)
    single = Load(1, rate, 0.06).arrivals
    large = [(1_000.0 + k, 200, 90_000.0, None) for k in range(n_large)]
    play(simulation, sorted(single + large))
    check_promises(simulation)
    assert [each.n_rows for each in simulation.accepted()].count(200) == n_large


@pytest.mark.parametrize("times", [2, 5])
@pytest.mark.parametrize("within_us", [(100_000,), (20_000, 100_000), (20_000,)], ids=["one", "two", "tight"])
def test_overload_costs_no_goodput(times, within_us):
    """At twice and five times what it can do, answers in time per second are at least 0.9 of the peak."""
    goodput = {}
    for load in (1, times):
        simulation = Simulation(affine(2000, 200))
        best = simulation.batcher.best_rows
        peak = 1e6 * best / simulation.cost.us(best)
        play(simulation, Load(7, load * peak, 0.25, within_us=within_us).arrivals)
        check_promises(simulation)
        in_time = [each.done_ns for each in simulation.accepted() if each.is_in_time]
        goodput[load] = 1e9 * len(in_time) / (max(in_time) - 10**9) / peak
    assert goodput[times] >= 0.9 * max(1.0, goodput[1])


@pytest.mark.parametrize(
    ("fixed_us", "row_us", "stretch", "turn_us", "per_second", "share"),
    [
        (1000, 40, 3, 6_000, 3000, 0.95),
        (1000, 40, 3, 6_000, 5000, 0.5),
        (1000, 40, 1, 6_000, 6000, 0.95),
        (200, 40, 3, 3_000, 4000, 0.95),
        (5, 60, 0, 18_000, 3000, 0.95),
        (1000, 40, 6, 9_000, 2000, 0.5),
    ],
)
def test_a_busy_neighbour_on_the_core_makes_no_batches_of_one(fixed_us, row_us, stretch, turn_us, per_second, share):
    """Where scoring waits several times as long as it computes, rows are not taken for slow ones.

    They were: batches of one row then cost least, and 3 to 10 of 100 requests were answered in time.
    """
    rng = np.random.default_rng(3)
    simulation = Simulation(
        CostCurve([(n, 5 + 60 * n, 1.15 * (5 + 60 * n)) for n in (1, 8, 64, 512)]),
        actual_us=lambda n: (fixed_us + row_us * n) * rng.lognormal(0, 0.15),
        waits_us=lambda _n, us: stretch * us * rng.lognormal(0, 0.3) + rng.uniform(0, turn_us),
    )
    play(simulation, Load(4, per_second, 2.0).arrivals)
    settled = [each for each in simulation.asked.values() if each.at_ns > 2 * 10**9]
    assert sum(each.is_in_time for each in settled) > share * len(settled)
    assert np.mean([each.is_in_time for each in settled if each.future is not None]) > 0.9


def test_overload_of_a_host_slower_than_its_curve_is_followed():
    """At half the measured speed the queue shrinks to what the host can do, and answers are in time again."""
    curve = CostCurve([(n, 500 + 500 * n, 600 + 600 * n) for n in (1, 512)])
    simulation = Simulation(curve, actual_us=lambda n: 2 * (500 + 500 * n))
    play(simulation, Load(9, 4 * 1e6 / 1050, 2.0).arrivals)
    batcher = simulation.batcher
    settled = [each for each in simulation.accepted() if each.at_ns > 1.6e9]
    assert len(settled) > 500
    assert np.mean([each.is_in_time for each in settled]) > 0.99
    late_or_dropped = [each for each in simulation.accepted() if not each.is_in_time]
    assert batcher.late + batcher.expired == len(late_or_dropped) > 0  # before that was known
    assert all(each.future.done() for each in simulation.accepted())
    assert all(isinstance(each.future.exception(), DeadlineError | None) for each in late_or_dropped)


# Failures


class PoisonedError(RuntimeError):
    pass


def poisoned(*numbers):
    def fails(rows):
        if set(rows[:, 0].astype(int)) & set(numbers):
            raise PoisonedError("poisoned")

    return fails


def test_one_poisoned_request_fails_alone():
    """The members of its batch are tried one by one; the others get their answers in time."""
    simulation = Simulation(affine(1000, 10), fails=poisoned(7))
    play(simulation, [(0, 2, 100_000, None)] * 20)
    outcomes = [each.future.exception() for each in simulation.asked.values()]
    assert [k for k, outcome in enumerate(outcomes) if outcome is not None] == [7]
    assert isinstance(outcomes[7], ModelError)
    assert isinstance(outcomes[7].__cause__, PoisonedError)
    assert "poisoned" in str(outcomes[7])
    assert [each.number for each in simulation.asked.values() if not each.is_in_time] == [7]
    assert (simulation.batcher.failed, simulation.batcher.retried) == (1, 20)
    for each in simulation.asked.values():
        if each.number != 7:
            np.testing.assert_array_equal(each.future.result(), scores_of(each.rows))


def test_a_broken_scorer_is_not_tried_for_everybody():
    """If the first members fail by themselves as well, the others fail without further calls, each with its own error."""
    simulation = Simulation(affine(1000, 10), fails=poisoned(*range(100)))
    play(simulation, [(0, 1, 100_000, None)] * 50)
    assert len(simulation.batches) == 1 + near_realtime.MAX_STRIKES
    errors = [each.future.exception() for each in simulation.asked.values()]
    assert all(isinstance(error, ModelError) for error in errors)
    assert len({id(error) for error in errors}) == 50


def test_members_without_time_are_not_tried_again():
    """A second try that would be late is no help; it fails with the scorer's error at once."""
    simulation = Simulation(affine(1000, 10), fails=poisoned(0))
    play(simulation, [(0, 1, 100_000, None), (0, 1, 1_500, None)])
    assert [type(each.future.exception()) for each in simulation.asked.values()] == [ModelError, ModelError]
    assert len(simulation.batches) == 2


def test_a_failed_part_fails_its_request_once():
    """A large request whose second part fails fails at once; its other parts are not scored, others are served."""

    def fails(rows):
        if (rows[:, 0] == 0).any() and rows[:, 1].max() > 100:
            raise PoisonedError("poisoned")

    simulation = Simulation(affine(100, 10), fails=fails)
    best = simulation.batcher.best_rows
    play(simulation, [(0, 10 * best, 100_000, None), (50, 1, 100_000, None)], check_state)
    assert isinstance(simulation.asked[0].future.exception(), ModelError)
    np.testing.assert_array_equal(simulation.asked[1].future.result(), scores_of(simulation.asked[1].rows))
    assert len(simulation.batches) <= 4


def test_a_suspect_may_leave():
    """Who is cancelled while it waits for its second try is not scored again."""

    async def main():
        simulation = Simulation(affine(1000, 10), fails=poisoned(0))
        asked = [simulation.ask() for _ in range(3)]
        await simulation.settle()
        simulation.finish()
        await simulation.settle()  # the first is alone now
        asked[2].future.cancel()
        assert simulation.batcher.n_waiting == 1
        await simulation.run()
        assert [batch.parts for batch in simulation.batches] == [[(0, 1), (1, 1), (2, 1)], [(0, 1)], [(1, 1)]]
        assert asked[1].future.exception() is None

    asyncio.run(main())


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda rows: scores_of(rows)[:-1], id="too few rows"),
        pytest.param(lambda rows: scores_of(rows)[:, :1], id="too few outputs"),
        pytest.param(lambda rows: scores_of(rows).ravel(), id="flat"),
        pytest.param(lambda rows: scores_of(rows).astype(np.float32), id="float32"),
        pytest.param(lambda rows: scores_of(rows).tolist(), id="a list"),
        pytest.param(lambda rows: None, id="nothing"),
    ],
)
def test_scores_of_another_shape_are_an_error(wrong):
    """A scorer that breaks its contract never answers with somebody else's scores."""
    simulation = Simulation(affine(1000, 10), score=wrong)
    play(simulation, [(0, 2, 100_000, None)] * 3)
    for each in simulation.asked.values():
        assert isinstance(each.future.exception(), ModelError)
        assert "Expected" in str(each.future.exception())


@pytest.mark.parametrize(
    ("raised", "seen"),
    [
        (StopIteration("x"), ModelError),
        (asyncio.CancelledError(), ModelError),
        (KeyboardInterrupt(), ModelError),
        (UnsupportedModelError("no such operator"), UnsupportedModelError),
    ],
)
def test_whatever_the_scorer_raises_arrives(raised, seen):
    """Exceptions that futures cannot carry, or that mean something else to asyncio, arrive as errors of the model."""

    def fails(rows):
        raise raised

    simulation = Simulation(affine(1000, 10), fails=fails)
    play(simulation, [(0, 1, 100_000, None)] * 2)
    for each in simulation.asked.values():
        assert type(each.future.exception()) is seen
        assert each.future.exception().__cause__ is raised


def test_an_error_that_cannot_be_told_leaves_nobody_waiting():
    """An exception whose own text fails still reaches everybody, and the queue goes on and ends."""

    class UntellableError(Exception):
        def __str__(self):
            raise ValueError("no text")

    def fails(rows):
        if rows[0, 0] < 2:
            raise UntellableError

    simulation = Simulation(affine(1000, 10), fails=fails)
    play(simulation, [(0, 1, 100_000, None)] * 2 + [(9_000, 1, 100_000, None)])
    *failed, last = simulation.asked.values()
    for each in failed:
        assert isinstance(each.future.exception(), ModelError)
        assert "UntellableError" in str(each.future.exception())
    assert last.is_in_time


def test_nan_is_a_score():
    """A model that answers NaN has answered."""
    simulation = Simulation(affine(10, 1), score=lambda rows: np.full((len(rows), 2), math.nan))
    play(simulation, [(0, 3, 100_000, None)])
    assert np.isnan(simulation.asked[0].future.result()).all()


def test_a_mistake_of_our_own_leaves_nobody_waiting(monkeypatch):
    """Whatever goes wrong between the scorer and the answers, waiters are told and the queue goes on."""
    simulation = Simulation(affine(1000, 10))
    learn, calls = simulation.batcher._pace.learn, iter([MemoryError("no room")])

    def fail_once(*arguments):
        for error in calls:
            raise error
        learn(*arguments)

    monkeypatch.setattr(simulation.batcher._pace, "learn", fail_once)
    play(simulation, [(0, 1, 100_000, None), (0, 1, 100_000, None), (10, 1, 100_000, None)])
    outcomes = [each.future.exception() for each in simulation.asked.values()]
    assert [type(each) for each in outcomes] == [ModelError, ModelError, type(None)]


def test_threads_that_are_shut_down_leave_nobody_waiting():
    """Waiting and new requests fail with an error that says so."""

    async def main():
        simulation = Simulation(affine(1000, 10))
        running = simulation.ask()
        await simulation.settle()
        waiting = [simulation.ask(), simulation.ask(1000)]
        simulation.is_shut = True
        await simulation.run()
        assert running.future.exception() is None
        assert [type(each.future.exception()) for each in waiting] == [CapacityError] * 2
        afterwards = simulation.ask()
        await simulation.settle()
        assert "shutdown" in str(afterwards.future.exception())
        await simulation.batcher.close()

    asyncio.run(main())


@pytest.mark.parametrize("drain", [True, False])
def test_close_answers_everybody(drain):
    """It refuses new requests and returns when accepted ones are scored, or told that they will not be."""

    async def main():
        simulation = Simulation(affine(1000, 10))
        running = simulation.ask()
        await simulation.settle()
        waiting = [simulation.ask(), simulation.ask(2000)]
        closing = [asyncio.create_task(simulation.batcher.close(drain=drain)) for _ in range(2)]
        await simulation.settle()
        assert isinstance(simulation.ask().refused, CapacityError)
        assert simulation.batcher.refused["closing"] == 1
        assert not any(task.done() for task in closing)
        await simulation.run()
        await asyncio.gather(*closing)
        assert running.future.exception() is None
        assert [each.future.exception() is None for each in waiting] == [drain, drain]
        await simulation.batcher.close()

    asyncio.run(main())


def test_the_worker_counts_batches_and_rows_and_what_waits():
    """The gauge is what waits in all queues at every moment: while it fills, after a client left, a failure, an end."""

    async def main():
        counters = WorkerCounters()
        waiting = partial(counters.get, "near_realtime_waiting_rows")
        simulation = Simulation(affine(1000, 10), fails=poisoned(2), counters=counters)
        other = Simulation(affine(1000, 10), counters=counters)
        asked = [simulation.ask(n) for n in (3, 1, 1, 4)]
        other.ask(5)
        assert waiting() == 14
        asked[3].future.cancel()
        assert waiting() == 10
        await simulation.settle()
        assert waiting() == 0
        simulation.finish()
        await simulation.settle()
        assert waiting() == simulation.batcher.depth_rows == 2  # suspects, of which one is tried
        other.finish()
        await other.settle()
        while simulation.running is not None:
            simulation.finish()
            await simulation.settle()
        await simulation.batcher.close()
        assert waiting() == 0
        batches = simulation.batcher.batches + other.batcher.batches
        assert counters.get("near_realtime_batches") == batches == 3
        assert counters.get("near_realtime_rows") == 3 + 1 + 5

    asyncio.run(main())


def test_rows_that_do_not_fit_are_a_callers_error():
    """Another width, type or number of dimensions never reaches a batch; no rows are answered with no scores."""

    async def main():
        simulation = Simulation(affine(1000, 10))
        due_ns = simulation.now_ns + 50 * MS
        for rows in (np.zeros((1, 3), np.float32), np.zeros(2, np.float32), np.zeros((1, 2))):
            with pytest.raises(ValueError, match="Expected float32 rows of 2 features"):
                simulation.batcher.submit(rows, due_ns)
        assert (await simulation.batcher.submit(np.zeros((0, 2), np.float32), due_ns)).shape == (0, 2)
        every_other = np.arange(12, dtype=np.float32).reshape(3, 4)[:, ::2]
        future = simulation.batcher.submit(every_other, due_ns)
        await simulation.run()
        np.testing.assert_array_equal(future.result(), scores_of(every_other))

    asyncio.run(main())


# Real threads


@pytest.fixture
def threads():
    with ThreadPoolExecutor(2) as executor:
        yield executor


def mlp(widths=(23, 128, 64, 1), seed=0):
    """An ONNX model of dense layers with ReLU, and a sigmoid at the end."""
    rng = np.random.default_rng(seed)
    nodes, weights, name = [], [], "x"
    for k, (n_in, n_out) in enumerate(pairwise(widths)):
        weights.append(
            numpy_helper.from_array((rng.normal(size=(n_in, n_out)) / n_in**0.5).astype(np.float32), f"w{k}")
        )
        weights.append(numpy_helper.from_array(rng.normal(size=n_out).astype(np.float32), f"b{k}"))
        nodes.append(helper.make_node("Gemm", [name, f"w{k}", f"b{k}"], [f"h{k}"]))
        name = "y" if k == len(widths) - 2 else f"a{k}"
        nodes.append(helper.make_node("Sigmoid" if name == "y" else "Relu", [f"h{k}"], [name]))
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, widths[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, widths[-1]])],
        initializer=weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8).SerializeToString()


def test_a_thousand_concurrent_requests_get_their_own_onnxruntime_scores(threads):
    """Through real threads and batches, every request's scores are those of its rows scored directly."""
    scorer = OnnxScorer(mlp())
    rng = np.random.default_rng(1)
    requests = [rng.normal(size=(int(n), 23)).astype(np.float32) for n in rng.choice([1, 1, 1, 7, 800], 1000)]

    async def main():
        batcher = Batcher(scorer.score, CostCurve.unmeasured(), threads, n_features=23, n_outputs=1, budget_us=10**8)
        due_ns = time.monotonic_ns() + 100_000 * MS
        futures = []
        for k, rows in enumerate(requests):
            futures.append(batcher.submit(rows, due_ns + k))
            if k % 50 == 0:
                await asyncio.sleep(0.0005)
        answers = await asyncio.gather(*futures)
        await batcher.close()
        assert batcher.rows == sum(map(len, requests))
        assert batcher.batches < batcher.rows / 10
        return answers

    for rows, answer in zip(requests, asyncio.run(main()), strict=True):
        # Matrix kernels of other sizes add in another order: float32 rounding, and no more.
        np.testing.assert_allclose(answer, scorer.score(rows), rtol=2e-6, atol=1e-7)


def test_cancelled_threads_and_closed_loops_leave_nobody_hanging(threads):
    """A pool that drops its work fails who waited for it; a loop that ends before its batch is not an error."""
    gate = threading.Event()
    busy = [threads.submit(gate.wait, 10) for _ in range(2)]

    async def main():
        batcher = Batcher(scores_of, affine(1000, 10), threads, n_features=2, n_outputs=2)
        running = batcher.submit(np.zeros((1, 2), np.float32), time.monotonic_ns() + 90 * MS)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        waiting = batcher.submit(np.zeros((1, 2), np.float32), time.monotonic_ns() + 90 * MS)
        threads.shutdown(wait=False, cancel_futures=True)
        outcomes = await asyncio.gather(running, waiting, return_exceptions=True)
        assert [type(each) for each in outcomes] == [CapacityError] * 2

    asyncio.run(main())
    gate.set()
    assert [each.result() for each in busy] == [True, True]


def test_an_event_loop_may_end_before_its_batch(threads):
    """The scoring thread finds nobody to tell, and says nothing."""
    gate = threading.Event()

    def score(rows):
        gate.wait(10)
        return scores_of(rows)

    async def main():
        batcher = Batcher(score, affine(1000, 10), threads, n_features=2, n_outputs=2)
        batcher.submit(np.zeros((1, 2), np.float32), time.monotonic_ns() + 90 * MS)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    asyncio.run(main())
    gate.set()
    threads.shutdown(wait=True)
    gc.collect()


def test_a_scorer_that_hangs_fails_its_waiters(threads, monkeypatch):
    """Waiters of a batch that does not return are told; new requests are refused until it has, and served afterwards."""
    monkeypatch.setattr(near_realtime, "STUCK_NS", 20 * MS)
    gate, returned = threading.Event(), threading.Event()

    def score(rows):
        if rows[0, 0] < 0:
            gate.wait(10)
            returned.set()
        return scores_of(rows)

    async def main():
        batcher = Batcher(score, affine(1000, 10), threads, n_features=2, n_outputs=2, budget_us=20_000)
        stuck = batcher.submit(np.full((1, 2), -1, np.float32), time.monotonic_ns() + 50 * MS)
        await asyncio.sleep(0.001)
        waiting = batcher.submit(np.zeros((1, 2), np.float32), time.monotonic_ns() + 30 * MS)
        outcomes = await asyncio.wait_for(asyncio.gather(stuck, waiting, return_exceptions=True), 5)
        assert [type(each) for each in outcomes] == [DeadlineError] * 2
        with pytest.raises(CapacityError, match="has not returned"):
            batcher.submit(np.zeros((1, 2), np.float32), time.monotonic_ns() + 50 * MS)
        await asyncio.wait_for(batcher.close(), 5)
        batcher._is_closing = False
        gate.set()
        await asyncio.wait_for(asyncio.to_thread(returned.wait), 5)
        await asyncio.sleep(0.005)
        rows = np.ones((1, 2), np.float32)
        answer = await asyncio.wait_for(batcher.submit(rows, time.monotonic_ns() + 10_000 * MS), 5)
        np.testing.assert_array_equal(answer, scores_of(rows))
        await batcher.close()

    asyncio.run(main())


def test_who_can_leave_and_comes_while_a_batch_overruns_is_told_when_it_is_due(threads):
    """A batch of patient requests that takes far longer than foreseen does not keep who came behind it from leaving."""
    gate = threading.Event()

    def score(rows):
        if rows[0, 0] < 0:
            gate.wait(10)
        return scores_of(rows)

    async def main():
        batcher = Batcher(score, affine(1000, 10), threads, n_features=2, n_outputs=2)
        slow = batcher.submit(np.full((1, 2), -1, np.float32), time.monotonic_ns() + 60_000 * MS, can_leave=True)
        await asyncio.sleep(0.001)
        hasty = batcher.submit(np.zeros((1, 2), np.float32), time.monotonic_ns() + 50 * MS, can_leave=True)
        try:
            with pytest.raises(DeadlineError):
                await asyncio.wait_for(asyncio.shield(hasty), 0.5)  # who hangs is told of after a second
            assert not slow.done()
        finally:
            gate.set()
        assert (await asyncio.wait_for(slow, 5)).shape == (1, 2)
        await batcher.close()

    asyncio.run(main())


@pytest.mark.parametrize(("slow", "least", "most"), [(3, 0.2, 0.01), (10, 0.2, 0.02), (40, 0.1, 0.06)])
def test_hardly_anybody_waits_in_vain_for_a_slowed_scorer(slow, least, most):
    """Who can leave is refused at once by a scorer that became slow, but for the first moment, or has its scores in time.

    It is asked four times what it can do, and takes now half and now twice as long.
    """
    rng = np.random.default_rng(slow)
    actual = affine(200, 50)

    def took_us(n_rows):
        return slow * actual.us(n_rows) * float(np.exp(rng.uniform(-np.log(2), np.log(2))))

    simulation = Simulation(affine(200, 50, CostCurve), actual_us=took_us)
    load = Load(slow, per_second=4 * 15_000 / slow, seconds=3.0, within_us=(45_000,))
    play(simulation, load.arrivals, can_leave=True)
    accepted = simulation.accepted()
    in_time = sum(each.is_in_time for each in accepted)
    vain = [each for each in accepted if not each.is_in_time]
    # A quarter can be scored; 40 times as slow hardly, in 45 ms.
    assert in_time >= least * len(simulation.asked)
    assert len(vain) <= most * len(simulation.asked)
    assert simulation.batcher.n_waiting == 0


def test_batches_leave_nothing_for_the_collector():
    """What was answered is freed at once: with the collector off, no rows of earlier batches are left."""

    async def main():
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(scores_of, CostCurve(((1, 100, 200),)), executor, n_features=N_FEATURES, n_outputs=2)
            plan, kept = plan_of(N_FEATURES), []
            for _ in range(20):
                answered = asyncio.Event()
                told = Told(lambda _error, answered=answered: answered.set())
                kept.append(weakref.ref(told))
                batcher.take(seat(plan, [[0] * N_FEATURES], time.monotonic_ns() + 10_000 * MS, told))
                del told
                await answered.wait()
            await batcher.close()
            return [each for each in kept[:-1] if each() is not None]

    gc.disable()
    try:
        assert asyncio.run(main()) == []
    finally:
        gc.enable()
