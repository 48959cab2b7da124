"""Tails without SciPy are SciPy's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from tiercel.monitor.tails import (
    SkewedTail,
    chi_square_tail,
    gamma_tail,
    kolmogorov_quantile,
    kolmogorov_tail,
    predicted_limit,
    predicted_tail,
)


@settings(max_examples=300, deadline=None)
@given(st.floats(0.01, 5000), st.floats(0, 20_000))
def test_the_gamma_tail_is_scipys(shape, x):
    """The upper incomplete gamma function, far into the tail."""
    assert gamma_tail(shape, x) == pytest.approx(special.gammaincc(shape, x), rel=1e-8, abs=1e-13)


@given(st.floats(0, 500), st.integers(1, 60))
def test_the_chi_square_tail_is_scipys(statistic, freedom):
    """The p-value of a chi-square."""
    assert chi_square_tail(statistic, freedom) == pytest.approx(stats.chi2.sf(statistic, freedom), rel=1e-8, abs=1e-13)


@settings(deadline=None)
@given(st.floats(0.5, 50), st.floats(0.1, 9), st.floats(0.1, 3), st.floats(1e-12, 0.5))
def test_quantiles_undo_tails(mean, deviation, skewness, probability):
    """A quantile is exceeded with its probability, and both are those of SciPy's Pearson III."""
    tail = SkewedTail(mean, deviation, skewness)
    value = tail.quantile(probability)
    assert tail.tail(value) == pytest.approx(probability, rel=1e-6)
    assert value == pytest.approx(stats.pearson3.isf(probability, skewness, mean, deviation), rel=1e-6, abs=1e-6)


@given(st.floats(0, 6), st.floats(1e-12, 0.9))
def test_the_kolmogorov_tail_is_scipys(x, probability):
    """The limit of the Kolmogorov-Smirnov statistic, and its quantiles."""
    assert kolmogorov_tail(x) == pytest.approx(special.kolmogorov(x), rel=1e-9, abs=1e-11)
    assert kolmogorov_quantile(probability) == pytest.approx(special.kolmogi(probability), rel=1e-6)


def test_nothing_to_vary_has_a_tail_of_its_own():
    """A distribution of one value, a chi-square without freedom, and infinity."""
    assert (SkewedTail(2, 0, 0).quantile(1e-9), SkewedTail(2, 0, 0).tail(2), SkewedTail(2, 0, 0).tail(2.1)) == (2, 1, 0)
    assert chi_square_tail(3, 0) == 1
    assert gamma_tail(1, math.inf) == 0
    assert SkewedTail.chi_square(7).tail(20) == pytest.approx(stats.chi2.sf(20, 7), rel=1e-9)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_predicted_counts_are_the_beta_binomials(data):
    """Tail and limit of a predicted count are SciPy's beta-binomial with one row more of each."""
    n, of = data.draw(st.integers(1, 3000)), data.draw(st.integers(1, 100_000))
    seen = data.draw(st.one_of(st.integers(0, min(5, of)), st.integers(0, of)))
    k = data.draw(st.integers(0, n))
    probability = data.draw(st.sampled_from([0.3, 0.01, 1e-4, 1e-7]))
    # Sums of its probabilities: SciPy's own tail is a difference to 1.
    chances = stats.betabinom(n, seen + 1, of - seen + 1).pmf(np.arange(n + 1))
    assert predicted_tail(n, k, seen, of) == pytest.approx(chances[k:].sum(), rel=1e-6, abs=1e-13)
    limit = predicted_limit(n, probability, seen, of)
    assert chances[limit:].sum() <= probability * (1 + 1e-6)
    assert limit == 0 or chances[limit - 1 :].sum() > probability * (1 - 1e-6)


@pytest.mark.parametrize(("n", "seen", "of"), [(10**8, 100_000, 200_000), (10**8, 0, 200_000), (10**9, 3, 50)])
def test_a_hundred_million_rows_are_no_more_work(n, seen, of):
    """The limit of a huge window is right within two thousandths (beta distribution, which it tends to)."""
    limit = predicted_limit(n, 1e-4, seen, of)
    assert limit / n == pytest.approx(stats.beta.isf(1e-4, seen + 1, of - seen + 1), rel=2e-3)
