"""Whole requests change sides, within folds where there are any, and p-values count exactly."""

from __future__ import annotations

import itertools

import numpy as np

from tiercel.monitor.exchanges import Units, p_value


def test_rows_of_a_request_stay_together():
    """An exchange moves requests, keeps their number on each side, and all rows of one go where it goes."""
    units = Units.of(np.array([0, 0, 1, 2, 2, 2]), np.array([0, 1, 1]))
    np.testing.assert_array_equal(units.rows(), [False] * 6 + [True] * 3)
    seen = set()
    for sides in itertools.islice(units.exchanges(np.random.default_rng(0)), 200):
        assert sides.sum() == 2
        rows = units.rows(sides)
        assert all(len(set(rows[units.of_row == request].tolist())) == 1 for request in range(5))
        seen.add(tuple(sides.tolist()))
    assert len(seen) == 10  # all ways to choose two of five


def test_folds_are_even_and_exchanges_stay_within():
    """Each fold has as many requests of either side as can be, and keeps them in every exchange."""
    units = Units.of(np.arange(23), np.arange(11))
    rng = np.random.default_rng(0)
    folds = units.folds(5, rng)
    of_window = np.bincount(folds[units.is_window], minlength=5)
    assert np.ptp(of_window) <= 1
    assert np.ptp(np.bincount(folds[~units.is_window], minlength=5)) <= 1
    for sides in itertools.islice(units.exchanges(rng, folds), 20):
        np.testing.assert_array_equal(np.bincount(folds[sides], minlength=5), of_window)


def test_p_is_never_zero_and_never_above_one():
    """The true sides count as an exchange; a stopped draw gives the share."""
    assert p_value(0, 199) == 1 / 200
    assert p_value(199, 199) == 1
    assert p_value(20, 20, stopped=True) == 1
    assert p_value(20, 80, stopped=True) == 0.25
