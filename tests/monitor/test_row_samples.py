"""Rows drawn from the prediction table: every row as likely as any other, bounded, the same for the same seed."""

from __future__ import annotations

import duckdb
import numpy as np
import pytest
from scipy.stats import chisquare
from tests.monitor.recorders import FEATURES, SIGNATURE, make_recorder

from tiercel.errors import OutcomesError
from tiercel.monitor.journal import PlanDeclaration
from tiercel.monitor.outcomes import open_outcomes, refresh
from tiercel.monitor.row_samples import draw_rows, feature_columns
from tiercel.settings import MonitorSettings
from tiercel.types import Signature, Task

DAY_US = 86_400_000_000
NOW_US = 20_000 * DAY_US
HOUR_US = 3_600_000_000
SETTINGS = MonitorSettings(retention_days=36_500)
DEGRADED, SHADOW, LAST_SCORE = 4, 16, 2 << 8


def plan_of(features=FEATURES):
    return PlanDeclaration("late", 1, None, None, None, tuple(features), (), 1, "binary", ("no", "yes"))


@pytest.fixture
def table(tmp_path):
    """600 requests of one row in the hour up to NOW_US, feature `a` counting them; one of three rows just before; a few of no use."""
    recorder = make_recorder(tmp_path)
    plan = recorder.for_plan("late", 1, SIGNATURE)

    def add(number, values, at_us, flags=0):
        rows = np.asarray(values, np.float32)
        plan.add(rows, np.full((len(rows), 1), 0.5), number=number, received_us=at_us, flags=flags)

    for number in range(600):
        add(number, [[number, np.nan if number % 3 == 0 else 1, 7]], NOW_US - HOUR_US + number * 1_000_000)
    add(700, [[-1, -1, -1]] * 3, NOW_US - HOUR_US - 1)
    add(701, [[np.nan] * 3], NOW_US - 1, DEGRADED | LAST_SCORE)
    add(702, [[-5, 0, 0]], NOW_US)
    recorder.for_plan("late", 2, SIGNATURE).add(
        np.zeros((1, 3), np.float32), np.zeros((1, 1)), number=703, received_us=NOW_US - 1
    )
    plan.add(np.full((1, 3), 600, np.float32), np.zeros((1, 1)), number=704, received_us=NOW_US - 2, flags=SHADOW)
    recorder.close()
    return tmp_path


def draw(directory, *, most=10_000, seed=0, settings=SETTINGS, begin_us=NOW_US - HOUR_US, end_us=NOW_US):
    refresh(directory, settings)
    with open_outcomes(directory, settings, model="late") as connection:
        columns, _ = feature_columns(connection, plan_of())
        return draw_rows(connection, columns, "late", 1, begin_us=begin_us, end_us=end_us, most=most, seed=seed)


def test_all_rows_of_a_stretch(table):
    """From its begin and before its end, of the version, with features; the rest is counted."""
    found = draw(table)
    assert (found.n, found.n_requests, found.n_available, found.n_without, found.n_shadow) == (601, 601, 601, 1, 1)
    np.testing.assert_array_equal(np.sort(found.values[:, 0]), np.arange(601))
    np.testing.assert_array_equal(
        np.isnan(found.values[:, 1]), (found.values[:, 0] % 3 == 0) & (found.values[:, 0] < 600)
    )
    before = draw(table, begin_us=NOW_US - 2 * HOUR_US, end_us=NOW_US - HOUR_US)
    assert (before.n, before.n_requests, before.n_available) == (3, 1, 3)


def test_an_empty_stretch_is_no_error(table):
    """Nothing served: no rows, no requests."""
    found = draw(table, begin_us=NOW_US + DAY_US, end_us=NOW_US + 2 * DAY_US)
    assert (found.n, found.n_requests, found.values.shape) == (0, 0, (0, 3))


def test_a_draw_is_bounded_and_repeats(table):
    """The same seed draws the same rows in the same order; another draws others."""
    one, same, other = draw(table, most=100), draw(table, most=100), draw(table, most=100, seed=1)
    assert (one.n, one.n_available) == (100, 601)
    np.testing.assert_array_equal(one.values, same.values)
    assert len(set(one.values[:, 0]) & set(other.values[:, 0])) < 50
    assert set(one.values[:50, 0]) == set(draw(table, most=50).values[:, 0])  # a larger draw goes on


def test_every_row_is_as_likely(table):
    """Over 60 seeds, rows of early and late times are drawn as often as their number says."""
    refresh(table, SETTINGS)
    drawn = []
    with open_outcomes(table, SETTINGS, model="late") as connection:
        for seed in range(60):
            found = draw_rows(
                connection, {"a": "a"}, "late", 1, begin_us=NOW_US - HOUR_US, end_us=NOW_US, most=100, seed=seed
            )
            drawn += found.values[:, 0].tolist()
    counts = np.bincount(np.minimum(np.array(drawn) // 100, 5).astype(int), minlength=6)
    assert chisquare(counts, 6_000 * np.array([100, 100, 100, 100, 100, 101]) / 601).pvalue > 1e-4


def test_masked_features_are_told(table):
    """A dropped feature has no column and a hashed one no numbers: both are named, the others drawn."""
    masked = MonitorSettings(retention_days=36_500, drop_columns=("a",), hash_columns=("c",))
    refresh(table, masked)
    with open_outcomes(table, masked, model="late") as connection:
        columns, left_out = feature_columns(connection, plan_of())
        found = draw_rows(connection, columns, "late", 1, begin_us=NOW_US - HOUR_US, end_us=NOW_US, most=10)
    assert (columns, left_out, found.values.shape) == ({"b": "b"}, ["a", "c"], (10, 1))


def test_a_feature_called_like_a_column_is_found(tmp_path):
    """The table prefixes a name that is taken; the draw finds it, quotes and all."""
    names = ("time", 'odd "name"')
    recorder = make_recorder(tmp_path)
    recorder.for_plan("late", 1, Signature(names, Task.BINARY, ("no", "yes"))).add(
        np.array([[3, 4]], np.float32), np.zeros((1, 1)), number=1, received_us=NOW_US
    )
    recorder.close()
    refresh(tmp_path, SETTINGS)
    with open_outcomes(tmp_path, SETTINGS, model="late") as connection:
        columns, left_out = feature_columns(connection, plan_of(names))
        found = draw_rows(connection, columns, "late", 1, begin_us=NOW_US, end_us=NOW_US + 1, most=10)
    assert (list(columns), left_out) == (list(names), [])
    np.testing.assert_array_equal(found.values, [[3, 4]])


def test_what_cannot_be_read_is_one_error():
    """No such view, or a broken one, is an OutcomesError with what DuckDB says."""
    with duckdb.connect() as connection:
        with pytest.raises(OutcomesError, match="predictions"):
            feature_columns(connection, plan_of())
        with pytest.raises(OutcomesError, match="late version 1"):
            draw_rows(connection, {"a": "a"}, "late", 1, begin_us=0, end_us=1, most=1)
