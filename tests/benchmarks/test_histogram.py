"""Latency histograms: their percentiles against NumPy's, their buckets against their contract."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks.loadgen.histogram import RELATIVE_ERROR, SOURCE, Histogram
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import compiled

SAMPLES = st.lists(
    st.one_of(st.integers(0, 2000), st.integers(0, 10**7), st.integers(0, 2**62)), min_size=1, max_size=200
)


@given(samples=SAMPLES, q=st.sampled_from([0, 1, 50, 90, 99, 99.9, 99.99, 100]))
@settings(max_examples=200, deadline=None)
def test_percentiles_equal_numpy_within_the_stated_error(samples, q):
    """A percentile is at least the sample's own (inverted CDF) and at most 1/256 above it."""
    exact = int(np.percentile(np.array(samples, dtype=np.uint64), q, method="inverted_cdf"))
    found = Histogram.of(samples).percentile_ns(q)
    assert exact <= found <= exact + exact * RELATIVE_ERROR


def test_bucket_bounds_rise_and_hold_their_own_value():
    """Every bucket's highest value falls into that bucket, and the next number into the next one."""
    core = compiled.load(SOURCE)
    highest = core.highest_values()
    assert (np.diff(highest.astype(object)) > 0).all()
    assert np.array_equal(core.count(highest), np.ones(core.SIZE, np.uint64))
    assert np.array_equal(core.count(highest[:-1] + np.uint64(1))[1:], np.ones(core.SIZE - 1, np.uint64))
    assert highest[-1] == 2**64 - 1


@given(left=SAMPLES, right=SAMPLES)
@settings(max_examples=50, deadline=None)
def test_sum_of_histograms_is_the_histogram_of_all(left, right):
    """Adding two histograms loses nothing."""
    added, whole = Histogram.of(left) + Histogram.of(right), Histogram.of(left + right)
    assert np.array_equal(added.counts, whole.counts)
    assert added.max_ns == whole.max_ns == max(left + right)


def test_no_samples_have_no_percentile():
    """An empty histogram reports 0, and a percentile outside 0..100 is refused."""
    assert Histogram.of([]).summary_us()["p99.9"] == 0
    with pytest.raises(ValueError, match=r"Expected a percentile in 0\.\.100"):
        Histogram.of([1]).percentile_ns(101)
