"""Counts of rows by leaf: the distance, its probability by chance, and the features that carry it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom
from tests.monitor.samples import clustered, correlated, leaves_of, units

from tiercel.monitor.exchanges import Units
from tiercel.monitor.leaf_occupancy import BEYOND, MAX_TREES, measure_occupancy, rank_by_leaves


def by_hand(leaves, is_window):
    """The mean distance and PSI, one tree and one leaf at a time."""
    distances, indices = [], []
    for tree in leaves.T:
        distance = index = 0.0
        for leaf in set(tree.tolist()):
            q, p = np.mean(tree[is_window] == leaf), np.mean(tree[~is_window] == leaf)
            distance += (q - p) ** 2 / (p + q) / 2
            q, p = max(q, 1e-4), max(p, 1e-4)
            index += (q - p) * np.log(q / p)
        distances.append(distance)
        indices.append(index)
    return np.array(distances), np.mean(indices)


@pytest.mark.parametrize(("n_before", "n_now"), [(30, 70), (70, 30), (50, 50), (1, 60)])
def test_distance_and_psi_are_their_formulas(n_before, n_now):
    """Each tree's distance and the mean PSI equal the sums written out, whichever side is the smaller one."""
    rng = np.random.default_rng(0)
    leaves = rng.integers(0, [2, 5, 9, 40], (n_before + n_now, 4)).astype(np.int32)
    found = measure_occupancy(leaves, units(n_before, n_now), n_exchanges=5)
    expected, psi = by_hand(leaves, np.arange(n_before + n_now) >= n_before)
    np.testing.assert_allclose(found.by_tree, expected, rtol=1e-12)
    assert found.distance == pytest.approx(expected.mean(), rel=1e-12)
    assert found.psi == pytest.approx(psi, rel=1e-12)


def test_the_distance_goes_from_0_to_1():
    """Equal shares are 0 apart, leaves without a row of both 1; p is as small as the exchanges allow."""
    same = np.tile(np.arange(10, dtype=np.int32), 4)[:, None]
    assert measure_occupancy(same, units(20, 20)).distance == 0
    apart = measure_occupancy(np.repeat([[0, 3], [5, 1]], 60, axis=0).astype(np.int32), units(60, 60), n_exchanges=99)
    assert (apart.distance, apart.p_value, apart.n_exchanges) == (1.0, 0.01, 99)


def test_a_correlation_is_seen_though_every_feature_stays():
    """Features that begin to move apart fill other leaves; the two carry the difference, the others none."""
    rng = np.random.default_rng(1)
    rows = np.concatenate([correlated(500, 0.7, rng), correlated(500, -0.7, rng)]).astype(np.float32)
    found = measure_occupancy(leaves_of(rows), units(500, 500))
    assert found.p_value == 1 / 500
    assert found.distance > 1.5 * found.chance_limit
    losses = rank_by_leaves(rows, np.arange(1000) >= 500, leaves_of)
    assert set(np.argsort(-losses)[:2].tolist()) == {0, 1}
    assert losses[:2].min() > 3 * np.abs(losses[2:]).max()


def test_false_alarms_are_as_rare_as_p_says():
    """Of 200 pairs of samples of one population, about one in ten has p of 0.1 or less."""
    rng = np.random.default_rng(2)
    hits = 0
    for seed in range(200):
        rows = correlated(160, 0.4, rng)
        hits += measure_occupancy(leaves_of(rows), units(100, 60), n_exchanges=99, seed=seed).p_value <= 0.1
    assert binom.cdf(hits, 200, 0.1) > 0.001
    assert binom.sf(hits - 1, 200, 0.1) > 0.001


def test_rows_of_a_request_move_together():
    """Requests of near-equal rows are exchanged whole: row by row the same data would be drift far too often."""
    rng = np.random.default_rng(3)
    alarms = {"requests": 0, "rows": 0}
    for seed in range(40):
        (before, one), (now, two) = clustered(40, 8, rng, 4), clustered(40, 8, rng, 4)
        leaves = leaves_of(np.concatenate([before, now]))
        alarms["requests"] += measure_occupancy(leaves, Units.of(one, two), n_exchanges=99, seed=seed).p_value <= 0.05
        alarms["rows"] += measure_occupancy(leaves, units(320, 320), n_exchanges=99, seed=seed).p_value <= 0.05
    assert alarms["requests"] <= 7
    assert alarms["rows"] >= 30


def test_drawing_stops_when_the_answer_is_plain_and_repeats():
    """Without a difference some exchanges are enough, no limit is claimed then, and the same seed gives the same."""
    rng = np.random.default_rng(4)
    leaves = leaves_of(correlated(200, 0.0, rng))
    found, again = (measure_occupancy(leaves, units(100, 100), seed=7) for _ in range(2))
    assert found.n_exchanges < 499
    assert found.p_value == BEYOND / found.n_exchanges
    assert found.chance_limit is None
    assert (found.p_value, found.chance_mean) == (again.p_value, again.chance_mean)


def test_many_trees_are_thinned_evenly():
    """Of a forest of a thousand trees every fourth or so is looked at, the first and the last with it."""
    leaves = np.zeros((40, 1000), np.int32)
    leaves[20:, [0, 999]] = 1
    found = measure_occupancy(leaves, units(20, 20), n_exchanges=1)
    assert found.n_trees == len(found.by_tree) == MAX_TREES
    assert found.by_tree[[0, -1]].tolist() == [1.0, 1.0]
    assert found.by_tree[1:-1].max() == 0
