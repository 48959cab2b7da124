"""MMD: equal to its definition, exact under no change, and it sees what no single feature shows."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom, ks_2samp, norm, rankdata
from tests.monitor.samples import clustered, correlated, units
from tests.reference import mmd as reference

from tiercel.monitor import mean_discrepancy
from tiercel.monitor.exchanges import Units
from tiercel.monitor.mean_discrepancy import ComparableRows, measure_discrepancy, median_distance, mmd2, rank_features


@pytest.mark.parametrize(("n_beside", "n_window", "block"), [(2, 2, 512), (30, 17, 8), (25, 40, 65), (16, 16, 16)])
def test_blocks_give_what_the_definition_gives(monkeypatch, n_beside, n_window, block):
    """Whatever the blocks and the sizes, and for several divisions at once, MMD^2 is the sum over all pairs of rows."""
    monkeypatch.setattr(mean_discrepancy, "_BLOCK", block)
    rng = np.random.default_rng(block)
    rows = rng.normal(size=(n_beside + n_window, 3))
    sides = np.zeros((len(rows), 4), np.uint8)
    for column in range(4):
        sides[rng.permutation(len(rows))[:n_window], column] = 1
    found = mmd2(rows, sides, 1.3)
    expected = [reference.mmd2(rows[side == 1].tolist(), rows[side == 0].tolist(), 1.3) for side in sides.T]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_the_bandwidth_is_the_median_distance():
    """Half of all pairs of rows are closer; where most are equal it is not zero."""
    rows = np.random.default_rng(0).normal(size=(60, 2))
    distances = [np.linalg.norm(rows[i] - rows[j]) for i in range(60) for j in range(i)]
    middle = np.sort(np.square(distances))
    expected = np.sqrt(np.median(middle))
    assert median_distance(rows, np.random.default_rng(0)) == pytest.approx(expected, rel=1e-12)
    few = np.zeros((50, 1))
    few[0] = 3
    assert median_distance(few, np.random.default_rng(0)) > 0
    assert median_distance(np.zeros((50, 1)), np.random.default_rng(0)) == 1


def test_features_become_normal_scores_with_indicators():
    """A column per feature of mean 0 and variance 1, ordered as the ranks say; missing in the middle, an indicator beside."""
    values = np.array([5.0, 1, 1, np.inf, -3, 7, 1e300])
    rows = np.column_stack([values, [np.nan, 1, 2, 3, 4, np.nan, 6], np.full(7, 2.0), np.full(7, np.nan)])
    found = ComparableRows.of(rows)
    assert found.columns == ((0,), (1, 2), (), ())
    scores = norm.ppf((rankdata(values) - 0.5) / 7)
    np.testing.assert_allclose(found.values[:, 0], (scores - scores.mean()) / scores.std(), atol=1e-12)
    np.testing.assert_array_equal(found.values[[0, 5], 1], [0, 0])
    assert len(set(found.values[:, 2].tolist())) == 2
    np.testing.assert_allclose(found.values[:, [0, 2]].mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(found.values[:, [0, 2]].std(axis=0), 1)


def test_units_of_measure_do_not_matter():
    """Any increasing change of a feature leaves the statistic as it is."""
    rows = correlated(200, 0.5, np.random.default_rng(0))
    stretched = rows.copy()
    stretched[:, 0] = np.exp(3 * rows[:, 0])
    one, other = (
        measure_discrepancy(ComparableRows.of(each), units(100, 100), n_exchanges=19) for each in (rows, stretched)
    )
    assert (one.mmd2, one.p_value) == (other.mmd2, other.p_value)


def test_p_is_calibrated_when_nothing_changed():
    """Of 400 pairs of samples of one population, one in ten is beyond the tenth, within the binomial interval."""
    rng = np.random.default_rng(5)
    n, level = 400, 0.1
    n_beyond = 0
    for i in range(n):
        rows = correlated(60, 0.6, rng)
        rows[rng.random(rows.shape) < 0.1] = np.nan
        n_beyond += measure_discrepancy(ComparableRows.of(rows), units(35, 25), seed=i, n_exchanges=99).p_value <= level
    low, high = binom.interval(0.999, n, level)
    assert low <= n_beyond <= high


def test_rows_of_one_request_are_no_evidence():
    """Requests of ten like rows: exchanged whole, no false alarms; row by row there would be plenty."""
    rng = np.random.default_rng(6)
    n, level = 150, 0.1
    whole = single = 0
    for i in range(n):
        rows, requests = clustered(24, 10, rng)
        comparable = ComparableRows.of(rows)
        by_request = Units(requests, np.arange(24) >= 12)
        whole += measure_discrepancy(comparable, by_request, seed=i, n_exchanges=49).p_value <= level
        single += measure_discrepancy(comparable, units(120, 120), seed=i, n_exchanges=49).p_value <= level
    low, high = binom.interval(0.999, n, level)
    assert low <= whole <= high
    assert single > 0.5 * n


def test_it_sees_a_change_of_correlation_alone():
    """Two features that part ways are found and named, though no feature by itself has changed."""
    rng = np.random.default_rng(7)
    rows = np.concatenate([correlated(500, 0.8, rng, 6), correlated(500, -0.8, rng, 6)])
    assert all(ks_2samp(column[:500], column[500:]).pvalue > 0.01 for column in rows.T)
    comparable, sides = ComparableRows.of(rows), units(500, 500)
    found = measure_discrepancy(comparable, sides, n_exchanges=199)
    assert found.p_value == 1 / 200
    assert found.mmd2 > found.chance_limit > 0
    falls = rank_features(comparable, sides.rows(), found.bandwidth)
    assert set(np.argsort(-falls)[:2].tolist()) == {0, 1}
    assert falls[:2].min() > 3 * np.abs(falls[2:]).max()


def test_the_same_seed_gives_the_same_answer():
    """Everything that is drawn is drawn by the seed."""
    rows = ComparableRows.of(correlated(1_200, 0.5, np.random.default_rng(0)))
    one, same, other = (measure_discrepancy(rows, units(600, 600), seed=seed, n_exchanges=29) for seed in (3, 3, 4))
    assert vars(one) == vars(same)
    assert one.chance_limit != other.chance_limit
