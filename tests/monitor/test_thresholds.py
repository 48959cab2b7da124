"""Thresholds keep the budget of false alarms, whatever the window's size and the features' shapes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from tiercel.monitor.distances import jensen_shannon, kolmogorov_smirnov
from tiercel.monitor.drift import drift_report
from tiercel.monitor.reference import Reference, count_cells
from tiercel.monitor.thresholds import (
    QUARTER_US,
    FalseAlarmBudget,
    dispersion_of,
    distribution_noise,
    ordered_noise,
    share_noise,
    value_bins,
)
from tiercel.monitor.window import empty_window

#: Five of a hundred windows: so many that a thousand replays can tell the rate.
FIVE_PERCENT = FalseAlarmBudget(per_quarter=0.05 * QUARTER_US / 60_000_000, every_us=60_000_000)


def window_of(reference, X, scores):
    """A window as counters make it."""
    return replace(
        empty_window("late", 1, reference, 0, 3_600_000_000),
        n_requests=len(X),
        n_rows=len(X),
        feature_counts=np.stack([count_cells(e, c) for e, c in zip(reference.feature_edges, X.T, strict=True)]),
        score_counts=np.stack([count_cells(e, c) for e, c in zip(reference.score_edges, scores.T, strict=True)]),
    )


def population(rng, n):
    """Twelve independent features: continuous, skewed, discrete, with missing values, and an output."""
    X = rng.gamma(2, 3, (n, 12)).astype(np.float32)
    X[:, 4:6] = rng.integers(0, 12, (n, 2))
    X[:, 6] = rng.normal(size=n)
    X[:, 7] = rng.lognormal(0, 2, n)
    X[:, 8] = rng.random(n) < 0.3
    X[:, 9] = np.where(rng.random(n) < 0.8, 0, X[:, 9])
    X[rng.random(n) < 0.2, 10] = np.nan
    return X, rng.random((n, 1))


@pytest.mark.parametrize(
    ("n_replays", "n_each", "n_reference", "n"),
    [(1_000, 13, 20_000, 150), pytest.param(400, 1, 2_000, 3_000, marks=pytest.mark.slow)],
)
def test_null_replays_stay_inside_the_binomial_interval(n_replays, n_each, n_reference, n):
    """1,000 windows of the reference's own population, over all features: as many false alarms as the budget says.

    The reference is a sample too: windows beside one share its luck, the more so the fewer rows it has.
    """
    rng = np.random.default_rng(n)
    n_alarms = 0
    reference = None
    for i in range(n_replays):
        if i % n_each == 0:
            reference = Reference.build(*population(rng, n_reference), [f"f{j}" for j in range(12)])
        window = window_of(reference, *population(rng, n))
        n_alarms += bool(drift_report(reference, window, budget=FIVE_PERCENT, least_effect=0).alarms)
    # What is spent on shares of missing values cannot be used up by features that never miss; the rest must be.
    low, high = stats.binom.interval(0.99, n_replays, 0.05)
    assert stats.binom.interval(0.99, n_replays, 0.045)[0] <= n_alarms <= high, (n_alarms, low, high)


@pytest.mark.parametrize("chances", [np.full(20, 0.05), np.full(12, 1 / 12), np.r_[0.9, np.full(10, 0.01)]])
@pytest.mark.parametrize(("m", "n"), [(100_000, 500), (100_000, 5_000), (5_000, 20_000)])
def test_limits_hold_far_in_the_tail(chances, m, n):
    """A limit for one in two thousand is reached by no more than twice and no less than half as many replays."""
    rng = np.random.default_rng(n + len(chances))
    reference = np.zeros(25)
    reference[1 : 1 + len(chances)] = np.round(chances * m)
    window = np.zeros(25)
    window[1 : 1 + len(chances)] = chances * n
    limit = distribution_noise(reference, window, 5e-4, has_values=True).limit
    n_replays = 40_000
    found = jensen_shannon(rng.multinomial(m, chances, n_replays), rng.multinomial(n, chances, n_replays))
    assert 0.5 * 5e-4 * n_replays <= (found >= limit).sum() <= 2 * 5e-4 * n_replays


def test_thresholds_follow_the_windows_size():
    """A small window needs a larger distance; a feature that hardly varies a smaller one; the p-value crosses with it."""
    reference = np.zeros(25)
    reference[1:21] = 5_000
    limits = []
    for n in (100, 1_000, 10_000, 1_000_000):
        window = np.zeros(25)
        window[1:21] = n / 20
        noise = distribution_noise(reference, window, 1e-5)
        assert noise.p_value > 0.99
        limits.append(noise.limit)
    assert limits == sorted(limits, reverse=True)
    assert limits[0] > 0.25
    assert limits[-1] < 0.02
    window = np.zeros(25)
    window[1:21] = 50
    for moved in range(50):
        window[1], window[2] = 50 + moved, 50 - moved
        noise = distribution_noise(reference, window, 1e-3)
        assert (jensen_shannon(reference, window) >= noise.limit) == (noise.p_value <= 1e-3)


def test_a_shift_of_everything_is_seen_by_the_ordered_distance():
    """A shift by a twentieth of the rows per bin is beyond chance in order and not without it; the report tells which."""
    rng = np.random.default_rng(6)
    reference = Reference.build(*population(rng, 20_000), [f"f{j}" for j in range(12)])
    X, scores = population(rng, 1_500)
    X[:, 0] *= 1.13
    found = drift_report(reference, window_of(reference, X, scores), budget=FIVE_PERCENT, least_effect=0).features[0]
    assert (found.verdict, found.measure) == ("drift", "ks")
    known, bins = value_bins(reference.feature_counts[0]), value_bins(window_of(reference, X, scores).feature_counts[0])
    assert ordered_noise(known, bins, 1e-3).p_value < 1e-3 < distribution_noise(known, bins, 1e-3).p_value


@pytest.mark.parametrize(("m", "n"), [(20_000, 60), (20_000, 3_000), (500, 4_000)])
def test_the_ordered_limit_is_reached_as_often_as_it_says(m, n):
    """Chance reaches the limit about as often as it says, with even bins and with few rows."""
    rng = np.random.default_rng(m + n)
    reference, window = (
        np.r_[0, rng.multinomial(k, np.full(20, 0.05), 1)[0], np.zeros(4)].astype(float) for k in (m, n)
    )
    limit = ordered_noise(reference, window, 0.01, has_values=True).limit
    references, windows = rng.multinomial(m, np.full(20, 0.05), 20_000), rng.multinomial(n, np.full(20, 0.05), 20_000)
    n_reached = int((kolmogorov_smirnov(references, windows) >= limit).sum())
    assert 0.6 * 200 <= n_reached <= 1.5 * 200


def test_a_wider_dispersion_widens_every_limit():
    """Windows that vary four times as much as independent rows have limits twice as far."""
    reference = np.zeros(25)
    reference[1:21] = 5_000
    window = reference / 100
    one, four = (distribution_noise(reference, window, 1e-4, factor).limit for factor in (1, 4))
    assert four == pytest.approx(2 * one, rel=1e-9)
    low, high, _ = share_noise(10_000, 1_000, 10_000, 100_000, 1e-4)
    low4, high4, _ = share_noise(10_000, 1_000, 10_000, 100_000, 1e-4, 4)
    assert low4 < low < 0.1 < high < high4


def test_rare_rows_are_counted():
    """Of a constant feature one odd row in a thousand is not chance's doing for long: the limit is a count."""
    reference = np.zeros(25)
    reference[1] = 200_000
    window = np.zeros(25)
    window[1] = 1_000
    assert distribution_noise(reference, window, 1e-4, has_values=True).p_value == 1
    seen = []
    for odd in range(1, 6):
        window[1], window[2] = 1_000 - odd, odd
        noise = distribution_noise(reference, window, 1e-6, has_values=True)
        seen.append(jensen_shannon(reference, window) >= noise.limit)
        assert seen[-1] == (noise.p_value <= 1e-6)
    assert seen == sorted(seen)
    assert seen[0] is np.False_ or not seen[0]
    assert seen[-1]


@pytest.mark.parametrize("share", [0, 0.001, 0.1, 0.5, 1])
def test_shares_of_missing_values_keep_their_limits(share):
    """A share from the same population lies outside of its limits no more often than was asked for."""
    rng = np.random.default_rng(3)
    outside = 0
    for _ in range(400):
        seen, k = rng.binomial(5_000, share), rng.binomial(500, share)
        low, high, p_value = share_noise(500, k, seen, 5_000, 0.02)
        outside += not low < k / 500 < high
        assert (p_value <= 0.02) == (not low < k / 500 < high) or abs(p_value - 0.02) < 0.02
    assert outside <= stats.binom.isf(0.001, 400, 0.02)


def test_few_rows_can_never_be_told_from_chance():
    """Where no share of so few rows would be surprising the limits lie outside of what a share can be."""
    assert share_noise(2, 1, 50, 100, 1e-6)[:2] == (-1, 2)


def test_dispersion_is_learnt_from_neighbours():
    """Independent windows have none; rows that come in tens have ten; a level that moved once changes nothing."""
    rng = np.random.default_rng(4)
    reference = Reference.build(*population(rng, 20_000), [f"f{j}" for j in range(12)])

    def windows(repeats, shift=0.0):
        made = []
        for i in range(12):
            X, scores = population(rng, 600 // repeats)
            X[:, 0] += shift * (i >= 6)
            made.append(window_of(reference, X.repeat(repeats, axis=0), scores.repeat(repeats, axis=0)))
        return made

    assert dispersion_of(windows(1)[:5]) is None
    features, scores = dispersion_of(windows(1))
    assert features.max() < 1.5
    assert scores.max() < 1.5
    features, _ = dispersion_of(windows(10))
    assert np.median(features) == pytest.approx(10, rel=0.3)
    features, _ = dispersion_of(windows(1, shift=20))
    assert features[0] < 1.6


def test_values_outside_of_everything_have_their_bins():
    """Minus infinity counts below the range and infinity above it; missing values are in neither."""
    cells = count_cells(np.full(24, np.inf, np.float32), np.float32([-np.inf, np.inf, np.inf, np.nan, 1]))
    bins = value_bins(cells)
    assert (bins[0], bins[24], bins.sum()) == (2, 2, 4)


@pytest.mark.parametrize("options", [{"per_quarter": 0}, {"per_quarter": float("nan")}, {"every_us": 0}])
def test_a_budget_is_positive(options):
    """No budget at all, and none that is a number, is refused."""
    with pytest.raises(ValueError, match="positive budget"):
        FalseAlarmBudget(**options)


def test_a_budget_is_a_probability_per_window():
    """One false alarm a quarter with a window an hour is one in 2,191; whatever is asked for, it is at most 0.2."""
    assert FalseAlarmBudget().alpha == pytest.approx(1 / 2191.5)
    assert FalseAlarmBudget(per_quarter=1e6).alpha == 0.2
