"""Distances are SciPy's on the same bins, and what binning does to them is what the module says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats
from scipy.spatial import distance

from tiercel.monitor import distances
from tiercel.monitor.reference import count_cells, quantile_edges
from tiercel.monitor.thresholds import value_bins

COUNTS = hnp.arrays(np.int64, 25, elements=st.one_of(st.just(0), st.integers(0, 5000)))
PAIRS = st.tuples(COUNTS, COUNTS).filter(lambda pair: pair[0].any() and pair[1].any())
SAMPLES = st.integers(0, 2**32 - 1).map(np.random.default_rng)


def binned(edges, values):
    return value_bins(count_cells(edges, values))


@settings(max_examples=300, deadline=None)
@given(PAIRS)
def test_every_distance_is_scipys_on_the_same_bins(pair):
    """Jensen-Shannon, PSI, KS, Wasserstein, chi-square and Cramér's V equal SciPy's values for the same counts."""
    p, q = pair
    at = np.sort(np.random.default_rng(0).normal(size=25)) * 10
    assert distances.jensen_shannon(p, q) == pytest.approx(distance.jensenshannon(p, q, base=2), abs=2e-8)
    both = (p > 0) | (q > 0)
    smooth_p, smooth_q = (p + 0.5)[both], (q + 0.5)[both]
    expected = stats.entropy(smooth_p, smooth_q) + stats.entropy(smooth_q, smooth_p)
    assert distances.psi(p, q) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    bins = np.arange(25)
    with np.errstate(divide="ignore"):  # in SciPy's p-value of one row against one
        cdf = stats.ks_2samp(np.repeat(bins, p), np.repeat(bins, q), method="asymp").statistic
    assert distances.kolmogorov_smirnov(p, q) == pytest.approx(cdf, abs=1e-12)
    assert distances.wasserstein(p, q, at) == pytest.approx(
        stats.wasserstein_distance(at, at, p, q), rel=1e-9, abs=1e-9
    )
    statistic, freedom = distances.chi_square(p, q)
    if both.sum() > 1:
        found = stats.chi2_contingency(np.stack([p, q])[:, both], correction=False)
        assert statistic == pytest.approx(found.statistic, rel=1e-9, abs=1e-9)
        assert freedom == found.dof
        v = stats.contingency.association(np.stack([p, q])[:, both], method="cramer")
        assert distances.cramers_v(p, q) == pytest.approx(v, rel=1e-9, abs=1e-9)
    else:
        assert (statistic, freedom) == (0, 0)
    weighted = np.average(at, weights=p)
    assert distances.spread(p, at) == pytest.approx(np.sqrt(np.average((at - weighted) ** 2, weights=p)), abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(PAIRS)
def test_psi_without_smoothing_is_scipys(pair):
    """Without a pseudo-count PSI is both relative entropies, infinite where one histogram has nothing."""
    p, q = pair
    expected = stats.entropy(p, q) + stats.entropy(q, p)
    assert distances.psi(p, q, pseudo_count=0) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_many_features_are_compared_at_once():
    """A stack of histograms gives what each gives by itself; an empty one gives NaN and disturbs no other."""
    rng = np.random.default_rng(1)
    p, q = rng.integers(0, 50, (4, 25)), rng.integers(0, 50, (4, 25))
    q[2] = 0
    at = np.arange(25.0)
    for function in (distances.jensen_shannon, distances.psi, distances.kolmogorov_smirnov, distances.cramers_v):
        together = function(p, q)
        assert np.isnan(together).tolist() == [False, False, True, False]
        np.testing.assert_array_equal(together, [function(a, b) for a, b in zip(p, q, strict=True)])
    assert np.isnan(distances.wasserstein(p, q, at)).tolist() == [False, False, True, False]
    assert np.isnan(distances.chi_square(p, q)[0]).tolist() == [False, False, True, False]


@settings(max_examples=100, deadline=None)
@given(SAMPLES)
def test_ks_on_bins_is_below_the_raw_value_by_at_most_a_bins_share(rng):
    """The binned statistic is at most SciPy's on the raw values, and short of it by at most the largest share of a bin."""
    reference = rng.gamma(2, 3, 400).astype(np.float32)
    current = (rng.gamma(2, 3, 150) * rng.uniform(0.5, 2) + rng.uniform(-2, 2)).astype(np.float32)
    edges = quantile_edges(reference)
    p, q = binned(edges, reference), binned(edges, current)
    exact = stats.ks_2samp(reference, current).statistic
    found = distances.kolmogorov_smirnov(p, q)
    largest = max(distances.shares(p).max(), distances.shares(q).max())
    assert found <= exact + 1e-12
    assert exact <= found + largest + 1e-12


@settings(max_examples=100, deadline=None)
@given(SAMPLES)
def test_wasserstein_on_bins_is_off_by_at_most_what_values_moved(rng):
    """Inside of the training range the binned distance differs from SciPy's raw one by at most the mean way values moved."""
    reference = rng.gamma(2, 3, 400).astype(np.float32)
    current = rng.choice(reference, 150) * np.float32(rng.uniform(0.7, 1)) + np.float32(0.3) * reference.min()
    current = current.clip(reference.min(), reference.max()).astype(np.float32)
    edges = quantile_edges(reference)
    at = distances.places(edges[None])[0]
    moved = [
        np.abs(at[np.searchsorted(edges, values, side="right")] - values).mean() for values in (reference, current)
    ]
    exact = stats.wasserstein_distance(reference, current)
    found = distances.wasserstein(binned(edges, reference), binned(edges, current), at)
    assert abs(found - exact) <= sum(moved) + 1e-6


@settings(max_examples=100, deadline=None)
@given(SAMPLES, st.integers(1, 20))
def test_a_bin_per_value_loses_nothing(rng, n_values):
    """Where every value has a bin, KS, Wasserstein, Jensen-Shannon and chi-square are SciPy's on the raw values."""
    values = np.sort(rng.choice(np.arange(-40, 40), n_values, replace=False)).astype(np.float32)
    reference, current = rng.choice(values, 300), rng.choice(values, 80)
    edges = quantile_edges(reference)
    assert distances.is_discrete(edges[None])[0]
    current = current[np.isin(current, reference)]
    if not len(current):
        return
    at = distances.places(edges[None])[0]
    p, q = binned(edges, reference), binned(edges, current)
    assert distances.kolmogorov_smirnov(p, q) == pytest.approx(stats.ks_2samp(reference, current).statistic, abs=1e-12)
    assert distances.wasserstein(p, q, at) == pytest.approx(
        stats.wasserstein_distance(reference, current), rel=1e-5, abs=1e-5
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param(np.float32([7, 7, 7]), True, id="constant"),
        pytest.param(np.float32([0, 1, 1, 5]), True, id="a few values"),
        pytest.param(np.linspace(0, 1, 100, dtype=np.float32), False, id="continuous"),
        pytest.param(np.float32([np.nan, np.nan]), False, id="never present"),
    ],
)
def test_features_of_few_values_are_told(values, expected):
    """An edge right behind the last one marks a feature that has a bin for every value."""
    assert distances.is_discrete(quantile_edges(values)[None]).tolist() == [expected]


def test_places_are_values_or_middles():
    """A value stands where it is, a quantile's bin in its middle, what is outside at the end of the range."""
    few = distances.places(quantile_edges(np.float32([1, 2, 4]))[None])[0]
    assert few[:5].tolist() == pytest.approx([1, 1, 2, 4, 4], abs=1e-6)
    assert (np.diff(few) >= 0).all()
    many_edges = quantile_edges(np.arange(0, 101, dtype=np.float32))
    many = distances.places(many_edges[None])[0]
    assert many[:3].tolist() == [0, 2.5, (many_edges[1] + many_edges[2]) / 2]
    assert (many[21:] == many_edges[20]).all()
    assert not distances.places(np.full((1, 24), np.inf, np.float32)).any()
