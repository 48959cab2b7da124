"""Intervals: as SciPy has them where it has them, and covering what they promise, by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from tiercel.monitor.intervals import (
    Estimate,
    Moments,
    difference,
    jackknife,
    mean,
    normal_quantile,
    proportion,
    student_quantile,
)

REPEATS = 1000


def is_nominal(n_covered, n=REPEATS, confidence=0.95, slack=0.012):
    """Within what chance allows of a rate, and a little: an interval is an approximation."""
    spread = 3.3 * math.sqrt(confidence * (1 - confidence) / n)
    return abs(n_covered / n - confidence) <= spread + slack


@pytest.mark.parametrize("freedom", [0.5, 1, 1.5, 2, 3, 7.3, 19, 200, 1e5, 1e8])
@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.95, 0.999])
def test_quantiles_equal_scipy(freedom, confidence):
    """Student's and the normal quantile are SciPy's."""
    assert student_quantile(confidence, freedom) == pytest.approx(stats.t.ppf((1 + confidence) / 2, freedom), rel=1e-7)
    assert normal_quantile(confidence) == pytest.approx(stats.norm.ppf((1 + confidence) / 2), rel=1e-9)


@pytest.mark.parametrize("confidence", [0.0, 1.0, -1.0, 95.0, math.nan])
def test_a_confidence_that_is_none_is_refused(confidence):
    """95 is not a confidence, 0.95 is."""
    with pytest.raises(ValueError, match="between 0 and 1"):
        normal_quantile(confidence)


@pytest.mark.parametrize(("hits", "n"), [(0, 1), (1, 1), (0, 50), (3, 50), (25, 50), (50, 50), (10**9, 3 * 10**9)])
def test_proportions_have_wilsons_interval(hits, n):
    """The interval is SciPy's Wilson interval, ends at 0 and 1 included."""
    theirs = stats.binomtest(hits, n).proportion_ci(method="wilson") if n < 10**6 else None
    mine = proportion(hits, n)
    assert mine.value == hits / n
    if theirs is not None:
        assert (mine.low, mine.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert 0 <= mine.low <= mine.value <= mine.high <= 1


def test_a_share_of_nothing_has_a_reason():
    """Zero of zero is not a number, and it is said why."""
    assert proportion(0, 0, nothing="no positive label") == Estimate(None, n=0, reason="no positive label")


@pytest.mark.parametrize(
    ("draw", "expected"),
    [
        pytest.param(lambda rng, n: rng.normal(3, 2, n), 3.0, id="normal"),
        pytest.param(lambda rng, n: rng.exponential(1, n), 1.0, id="exponential"),
        pytest.param(lambda rng, n: rng.beta(0.3, 3, n), 0.3 / 3.3, id="losses of rare errors"),
    ],
)
@pytest.mark.parametrize("n", [40, 300])
def test_means_are_covered(draw, expected, n):
    """Means of symmetric and of skewed values lie in their 95 % interval 95 times in 100."""
    rng = np.random.default_rng(n)
    assert is_nominal(sum(mean(draw(rng, n)).covers(expected) for _ in range(REPEATS)))


def test_skewness_is_allowed_for():
    """Of skewed values the interval misses about as often above as below, where Student's misses on one side."""
    rng = np.random.default_rng(1)
    mine, students = [0, 0], [0, 0]
    for _ in range(2000):
        values = rng.exponential(1, 60)
        found, half = mean(values), student_quantile(0.95, 59) * values.std(ddof=1) / math.sqrt(60)
        mine = [mine[0] + (found.low > 1), mine[1] + (found.high < 1)]
        students = [students[0] + (values.mean() - half > 1), students[1] + (values.mean() + half < 1)]
    assert abs(mine[0] - mine[1]) < abs(students[0] - students[1]) / 2


def test_moments_add_up():
    """Moments of parts, added, are those of the whole: windows and workers can be merged."""
    values = np.random.default_rng(2).gamma(2, 3, 1000)
    parts = [Moments.of(part) for part in np.split(values, [0, 1, 10, 700])]
    total = parts[0]
    for part in parts[1:]:
        total += part
    assert total.n == 1000
    assert total.mean == pytest.approx(values.mean(), rel=1e-12)
    assert total.variance == pytest.approx(values.var(ddof=1), rel=1e-12)
    assert total.skewness == pytest.approx(stats.skew(values), rel=1e-9)


def test_degenerate_means_say_so():
    """No row, one row, rows without spread and rows beyond float64 give a figure or a reason, never an exception."""
    assert mean(np.array([])).reason == "no rows"
    assert (mean(np.array([4.0])).value, mean(np.array([4.0])).low) == (4.0, None)
    assert mean(np.full(5, 2.5)) == Estimate(2.5, 2.5, 2.5, 5)
    huge = mean(np.array([1e308, -1e308, 1e308]))
    assert huge.low is None
    assert huge.reason
    assert huge.to_json()["low"] is None


def test_differences_have_welchs_interval():
    """The interval of a difference is SciPy's of Welch's test."""
    rng = np.random.default_rng(3)
    a, b = rng.normal(0, 1, 30), rng.normal(1, 4, 50)
    theirs = stats.ttest_ind(a, b, equal_var=False).confidence_interval()
    mine = difference(Moments.of(a), Moments.of(b))
    assert (mine.low, mine.high) == pytest.approx((theirs.low, theirs.high))
    assert mine.value == pytest.approx(a.mean() - b.mean())
    assert difference(Moments.of(a), Moments.of(b[:0])).value is None
    assert difference(Moments.of(a), Moments.of(b[:1])).low is None


def test_jackknifed_statistics_are_covered():
    """A ratio's interval, from leaving out one of 20 folds at a time, covers it 95 times in 100."""
    rng = np.random.default_rng(4)

    def is_covered():
        x, y = rng.exponential(2, 400), rng.exponential(1, 400)
        folds = np.arange(400) % 20
        without = np.array([x[folds != k].sum() / y[folds != k].sum() for k in range(20)])
        return jackknife(x.sum() / y.sum(), without).covers(2.0)

    assert is_nominal(sum(is_covered() for _ in range(REPEATS)))
    assert jackknife(1.0, np.array([1.0, math.nan])).low is None
    assert jackknife(math.inf, np.array([1.0, 2.0])).value is None


def test_figures_pass_through_increasing_functions():
    """The interval of a root is the root of the interval; ends stay within what the figure can be."""
    assert Estimate(4.0, 1.0, 9.0, 7).through(math.sqrt) == Estimate(2.0, 1.0, 3.0, 7)
    assert Estimate(0.5, -0.1, 1.2, 7).within(0, 1) == Estimate(0.5, 0.0, 1.0, 7)
    assert Estimate.missing("x").through(math.sqrt).value is None
    assert Estimate(1.0, 0.0, 4.0).half_width == 2.0
