"""The cost curve is the measurement, goes on where it ends, and follows the host."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiercel.serving.cost import MAX_ROWS, RATIO_LIMITS, CostCurve

MEASURED = [(1, 50, 90), (2, 52, 95), (4, 60, 100), (64, 300, 400), (512, 2092, 2640)]

points = st.dictionaries(
    st.integers(1, 2000), st.tuples(st.floats(0.5, 1e5), st.floats(0.5, 1e5)), min_size=1, max_size=12
).map(lambda found: [(n, p50, p99) for n, (p50, p99) in found.items()])


@pytest.mark.parametrize(
    ("n_rows", "typical_us", "us"),
    [
        pytest.param(1, 50, 90, id="the smallest"),
        pytest.param(3, 56, 97.5, id="between two"),
        pytest.param(4, 60, 100, id="measured"),
        pytest.param(34, 180, 250, id="half-way"),
        pytest.param(512, 2092, 2640, id="the largest"),
        pytest.param(1512, 6092, 7640, id="beyond, with the last slope"),
    ],
)
def test_between_points_it_is_linear(n_rows, typical_us, us):
    """Measured sizes are kept, others interpolated, larger ones extrapolated."""
    curve = CostCurve(MEASURED[::-1])
    assert curve.typical_us(n_rows) == pytest.approx(typical_us, rel=1e-12)
    assert curve.us(n_rows) == pytest.approx(us, rel=1e-12)


@given(measured=points, factor=st.floats(0.1, 10))
@settings(max_examples=60, deadline=None)
def test_more_rows_never_take_less(measured, factor):
    """Whatever noise was measured, the curve rises, p99 is at least p50, and its inverse is its inverse."""
    curve = CostCurve(measured)
    for _ in range(5):
        curve.observe(8, factor * curve.typical_us(8))
    sizes = [*range(1, 80), 500, 511, 512, 513, 1999, 2000, 2001, 5000]
    p99 = [curve.us(n) for n in sizes]
    assert p99 == sorted(p99)
    assert all(curve.typical_us(n) <= us for n, us in zip(sizes, p99, strict=True))
    assert curve.us(5000) > curve.us(4000)  # never free, even where the last points are equal
    for us in p99[:70]:
        n = curve.rows_within(us)
        assert curve.us(n) <= us
        assert n >= max(MAX_ROWS, *(n for n, _, _ in measured)) or curve.us(n + 1) > us * (1 - 1e-12)
    assert curve.rows_within(0) == 0


@pytest.mark.parametrize(
    "measured",
    [
        pytest.param([], id="nothing"),
        pytest.param([(0, 1, 1)], id="no rows"),
        pytest.param([(1, 1, 1), (1, 2, 2)], id="one size twice"),
        pytest.param([(1, 0, 1)], id="no time"),
        pytest.param([(1, 1, float("nan"))], id="not a number"),
    ],
)
def test_what_is_no_measurement_is_refused(measured):
    """A profile that cannot be one is an error where it is read, not a wrong prediction later."""
    with pytest.raises(ValueError, match="Expected"):
        CostCurve(measured)


def test_the_best_batch_is_where_rows_stop_getting_cheaper():
    """It is the smallest within a tenth of the cheapest row: 1 where rows cost the same alone, all of it where they do not."""
    assert CostCurve([(1, 10, 10), (512, 5120, 5120)]).best_rows(25_000) == 1
    assert CostCurve([(1, 1000, 1000), (512, 1000.5, 1000.5)]).best_rows(25_000) > 400
    n = np.arange(1, 513)
    per_row = (100 + 2.0 * n) / n
    best = CostCurve([(1, 102, 102), (512, 1124, 1124)]).best_rows(25_000)
    assert best == n[per_row <= 1.1 * per_row.min()][0]
    assert CostCurve([(1, 2, 2), (512, 1024, 1024)]).best_rows(25_000, overhead_us=100) == best


def test_the_best_batch_leaves_time_for_others():
    """A batch keeps its bound on time, in p99, even if larger ones were cheaper; a row takes what it takes."""
    curve = CostCurve([(1, 2000, 4000), (512, 20_000, 40_000)])
    best = curve.best_rows(25_000)
    assert curve.us(best) <= 25_000
    slow = CostCurve([(1, 30_000, 40_000), (512, 90_000, 120_000)])  # one row is over the bound already
    assert 55_000 < slow.us(slow.best_rows(25_000)) <= 60_000


@pytest.mark.parametrize("factor", [0.5, 1.5, 4.0])
def test_a_slower_host_is_followed_and_forgotten(factor):
    """After some tens of batches at another speed predictions are within a tenth; as many later the old ones are back."""
    curve = CostCurve(MEASURED)
    before = curve.us(64)
    for actual in (factor, 1.0):
        for n in [1, 3, 64, 500] * 18:
            curve.observe(n, actual * CostCurve(MEASURED).typical_us(n))
        assert curve.us(64) == pytest.approx(actual * before, rel=0.1)


def test_one_stall_changes_little_and_no_series_of_them_everything():
    """A batch that took a thousand times as long counts little, and the correction is bounded."""
    curve = CostCurve(MEASURED)
    curve.observe(4, 60_000)
    assert curve.ratio < 1.2
    for us, bound in ((1e9, RATIO_LIMITS[1]), (1e-3, RATIO_LIMITS[0])):
        for _ in range(500):
            curve.observe(4, us)
        assert curve.ratio == pytest.approx(bound, rel=1e-6)


@pytest.mark.parametrize("factor", [10.0, 100.0, 0.1])
def test_another_speed_is_learned_from_two_batches(factor):
    """What is far off twice, to the same side, is no stall: some batches later it is mostly believed, there and back."""
    curve, actual = CostCurve(MEASURED), CostCurve(MEASURED)
    for speed in (factor, 1.0):
        for _ in range(4 if 0.1 <= factor <= 10 else 6):
            curve.observe(8, speed * actual.typical_us(8))
        off = curve.typical_us(8) / (speed * actual.typical_us(8))
        assert 1 / 2.5 < off < 2.5


@pytest.mark.parametrize(("fixed_us", "speed"), [(300, 1.0), (1000, 2.0), (40, 1.0)])
def test_what_every_batch_takes_besides_its_rows_is_learned(fixed_us, speed):
    """From batches of different sizes it is told apart from a slower host, so larger ones are foreseen. And it is forgotten."""
    rng = np.random.default_rng(5)
    curve, warm = CostCurve([(1, 50, 60), (512, 20_000, 24_000)]), CostCurve([(1, 50, 60), (512, 20_000, 24_000)])
    for _ in range(1500):
        n = int(rng.integers(1, 9))
        curve.observe(n, (fixed_us + speed * warm.typical_us(n)) * rng.lognormal(0, 0.2))
    for n in (1, 8, 64):
        assert curve.typical_us(n) == pytest.approx(fixed_us + speed * warm.typical_us(n), rel=0.3)
    assert curve.best_rows(25_000) == pytest.approx(CostCurve(
        [(1, 50 * speed + fixed_us, 1e5), (512, 20_000 * speed + fixed_us, 1e5)]
    ).best_rows(1e6), rel=0.5)  # fmt: skip
    for _ in range(1500):
        n = int(rng.integers(1, 9))
        curve.observe(n, warm.typical_us(n) * rng.lognormal(0, 0.2))
    assert curve.fixed_us < 30
    assert curve.typical_us(64) == pytest.approx(warm.typical_us(64), rel=0.3)


def test_one_size_does_not_show_the_shape():
    """Batches that are all alike say how fast the host is, and nothing of others; nor does noise."""
    rng = np.random.default_rng(6)
    curve = CostCurve(MEASURED)
    for _ in range(500):
        curve.observe(8, 3 * CostCurve(MEASURED).typical_us(8))
    assert curve.fixed_us == 0
    assert curve.ratio == pytest.approx(3, rel=0.01)
    for _ in range(2000):
        n = int(rng.integers(1, 65))
        curve.observe(n, 3 * CostCurve(MEASURED).typical_us(n) * rng.lognormal(0, 0.2))
        assert curve.typical_us(64) == pytest.approx(3 * CostCurve(MEASURED).typical_us(64), rel=0.25)


def test_two_stalls_in_a_row_are_soon_forgotten():
    """However long they were, the host is not taken for a dozen times as slow, and three batches later it is as it was."""
    curve, actual = CostCurve(MEASURED), CostCurve(MEASURED)
    for _ in range(2):
        curve.observe(8, 1000 * actual.typical_us(8))
    assert curve.ratio < 4
    for _ in range(3):
        curve.observe(8, actual.typical_us(8))
    assert curve.ratio < 2.5


def test_stalls_between_others_are_no_other_speed():
    """One batch in three takes ten times as long: the middle is what is followed, and none is believed at once."""
    curve, actual = CostCurve(MEASURED), CostCurve(MEASURED)
    for at in range(60):
        curve.observe(8, (10 if at % 3 == 0 else 1) * actual.typical_us(8))
        assert curve.ratio < 3.5


def test_what_was_unlearned_is_learned_again():
    """A fresh curve knows nothing of how far the other one was off."""
    curve = CostCurve(MEASURED)
    for _ in range(6):
        curve.observe(8, 10 * CostCurve(MEASURED).typical_us(8))
    fresh = curve.unlearned()
    assert (fresh.ratio, fresh.us(8)) == (1.0, CostCurve(MEASURED).us(8))
    fresh.observe(8, 10 * CostCurve(MEASURED).typical_us(8))
    assert fresh.ratio < 1.2
    assert curve.ratio > 5


@pytest.mark.parametrize(("fixed_us", "row_us"), [(5, 0.5), (100, 1), (1000, 1), (8_000, 50), (10, 300)])
def test_an_unmeasured_model_is_learned_from_its_first_batches(fixed_us, row_us):
    """Scoring batches of the size it calls best, a curve that knew nothing finds nearly the best size and its cost."""
    rng = np.random.default_rng(3)
    curve = CostCurve.unmeasured()
    actual = CostCurve([(n, fixed_us + row_us * n, fixed_us + row_us * n) for n in (1, 512)])
    curve.observe(1, 50 * actual.us(1))  # the first call of a cold model
    for _ in range(200):
        n = curve.best_rows(25_000)
        curve.observe(n, actual.us(n) * rng.lognormal(0, 0.1))
    n = curve.best_rows(25_000)
    best = actual.best_rows(25_000)
    assert actual.us(n) / n <= 1.35 * actual.us(best) / best
    assert curve.typical_us(n) == pytest.approx(actual.us(n), rel=0.25)
    assert 1.1 * curve.typical_us(n) < curve.us(n) < 4.1 * curve.typical_us(n)


def test_an_unmeasured_model_promises_something_before_its_first_batch():
    """The first request is not refused for want of a measurement, and its batch is small."""
    curve = CostCurve.unmeasured()
    assert 0 < curve.typical_us(1) < curve.us(1) < 2000
    assert 1 <= curve.best_rows(25_000) <= 64


def test_a_stretched_view_is_the_curve_times_so_much():
    """As it is now: it does not change with the curve, nor the curve with it."""
    curve = CostCurve(MEASURED)
    for n in (1, 4, 8) * 50:
        curve.observe(n, 300 + 3 * CostCurve(MEASURED).typical_us(n))
    view, known = curve.stretched(2.5), [curve.us(n) for n in (1, 7, 600)]
    assert [view.us(n) for n in (1, 7, 600)] == pytest.approx([2.5 * us for us in known])
    assert view.typical_us(9) == pytest.approx(2.5 * curve.typical_us(9))
    assert view.hoped_us(3) == pytest.approx(curve.hoped_us(3))
    for _ in range(50):
        curve.observe(4, 50)
    assert view.us(7) == pytest.approx(2.5 * known[1])
