"""Sampled attributions are near the exact ones, add up, and repeat."""

from __future__ import annotations

import numpy as np
import pytest
from tests.reference.shapley import shapley

from tiercel.models.sampling import CHUNK_ROWS, PermutationSampler


def score(rows):
    """Something with interactions of two and three features."""
    x = np.asarray(rows, dtype=np.float64)
    return x[:, 0] * x[:, 1] + np.sin(x[:, 2] * x[:, 0]) + np.where(x[:, 3] > 0, x[:, 1] * x[:, 2], 0.5)


def rows_of(n, seed, n_features=5):
    return np.random.default_rng(seed).normal(size=(n, n_features)).astype(np.float32)


def test_exact_values_lie_within_the_stated_error():
    """Of many sampled values about as many are within two standard errors of the exact ones as should be."""
    reference, rows = rows_of(10, 0), rows_of(40, 1)
    values, errors = PermutationSampler(score, reference, pairs=200, seed=3).explain(rows)
    wanted = []
    for row in rows:

        def value(chosen, row=row):
            mixed = reference.copy()
            mixed[:, sorted(chosen)] = row[sorted(chosen)]
            return float(score(mixed).mean())

        wanted.append(shapley(value, 5))
    wanted = np.array(wanted)
    np.testing.assert_array_equal(values[:, 4], 0)  # no effect, no share of anything
    away = np.abs(values - wanted)[:, :4] / errors[:, :4]
    assert 0.85 < np.mean(away < 2) <= 1
    assert away.max() < 6


@pytest.mark.parametrize("n_reference", [1, 7, 100])
def test_values_add_up(n_reference):
    """Expected value and attributions add up to the score, however few reference rows had a turn."""
    sampler = PermutationSampler(score, rows_of(n_reference, 4), pairs=3)
    rows = rows_of(20, 5)
    values, _ = sampler.explain(rows)
    np.testing.assert_allclose(sampler.expected + values.sum(axis=1), score(rows), rtol=0, atol=1e-12)


def test_a_row_is_explained_alike_in_any_company():
    """The same seed gives the same bits, alone or among others; another seed gives others."""
    reference, rows = rows_of(9, 6), rows_of(8, 7)
    first, second = (PermutationSampler(score, reference, pairs=5, seed=1) for _ in range(2))
    together, errors = first.explain(rows)
    for k in range(len(rows)):
        alone, error = second.explain(rows[k : k + 1])
        np.testing.assert_array_equal(alone[0], together[k])
        np.testing.assert_array_equal(error[0], errors[k])
    assert not np.array_equal(PermutationSampler(score, reference, pairs=5, seed=2).explain(rows)[0], together)


def test_calls_are_few_and_bounded():
    """The scorer is called once per chunk, never with more rows than a chunk, and as often as it says."""
    sizes = []

    def counted(rows):
        sizes.append(len(rows))
        return score(rows)

    sampler = PermutationSampler(counted, rows_of(5, 8), pairs=20)
    sizes.clear()
    sampler.explain(rows_of(1, 9))
    assert sizes == [1, 20 * 8]
    assert sum(sizes) == sampler.rows_per_row
    wide = PermutationSampler(lambda rows: (sizes.append(len(rows)), rows[:, 0].astype(float))[1], rows_of(2, 8, 900), pairs=10)  # fmt: skip
    sizes.clear()
    wide.explain(rows_of(2, 9, 900))
    assert max(sizes) <= CHUNK_ROWS


def test_one_feature_gets_everything():
    """With a single feature there is nothing to sample: it gets the whole difference."""
    sampler = PermutationSampler(lambda rows: rows[:, 0].astype(np.float64) ** 2, rows_of(4, 10, 1), pairs=2)
    rows = rows_of(3, 11, 1)
    values, _ = sampler.explain(rows)
    np.testing.assert_allclose(values[:, 0], rows[:, 0].astype(np.float64) ** 2 - sampler.expected, rtol=1e-12)
    assert sampler.explain(rows[:0])[0].shape == (0, 1)


def test_one_pair_is_refused():
    """A single pair has no standard error."""
    with pytest.raises(ValueError, match="at least 2 pairs"):
        PermutationSampler(score, rows_of(2, 0), pairs=1)
