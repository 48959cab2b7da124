"""Calibrations: the map that the labels speak for, in a few kilobytes that nobody has to vouch for."""

from __future__ import annotations

import math

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from tiercel.errors import CalibrationError
from tiercel.monitor.calibration import MAX_BINS, Calibration, _fit_logistic, _increasing


def sample(n, meaning, seed=0):
    rng = np.random.default_rng(seed)
    scores = rng.beta(2, 4, n)
    return scores, (rng.random(n) < meaning(scores)).astype(float)


def sharper(scores):
    return 1 / (1 + ((1 - scores) / scores) ** 2)


def stepped(scores):
    return np.where(scores < 0.3, 0.05, np.where(scores < 0.5, 0.5, 0.6))


@pytest.mark.parametrize(
    ("meaning", "method"),
    [
        pytest.param(lambda scores: scores, "identity", id="calibrated"),
        pytest.param(sharper, "logistic", id="too timid"),
        pytest.param(stepped, "increasing", id="in steps"),
    ],
)
def test_the_map_that_fits_is_found(meaning, method):
    """A calibrated score is left alone, a smooth distortion undone by a curve, and steps by bins; each close to the truth."""
    calibration = Calibration.fit(*sample(20_000, meaning))
    assert calibration.method == method
    scores, _ = sample(5000, meaning, seed=1)
    assert np.abs(calibration.apply(scores) - meaning(scores)).mean() < 0.015


def test_increasing_rates_are_scikit_learns():
    """Pooling gives the rates of isotonic regression, but for 0 and 1."""
    rng = np.random.default_rng(2)
    rows = rng.integers(1000, 100_000, 60)
    hits = rng.binomial(rows, np.clip(np.linspace(0, 0.6, 60) + rng.normal(0, 0.1, 60), 0, 1)).astype(float)
    theirs = IsotonicRegression().fit(np.arange(60), hits / rows, sample_weight=rows).predict(np.arange(60))
    np.testing.assert_allclose(_increasing(hits, rows), theirs, rtol=1e-12)
    assert _increasing(np.array([0.0, 5.0]), np.array([50, 5]))[0] > 0


def test_rates_are_not_drawn_to_one_half():
    """What is between 0 and 1 is the rate that was counted; only certainty is not believed."""
    rows = np.array([50, 50, 50])
    assert _increasing(np.array([2.0, 10.0, 49.0]), rows).tolist() == [0.04, 0.2, 0.98]
    assert _increasing(np.array([0.0, 10.0, 50.0]), rows).tolist() == [0.5 / 51, 0.2, 1 - 0.5 / 51]
    assert _increasing(np.array([0.0]), rows[:1]).tolist() == [0.5 / 51]
    assert _increasing(np.array([50.0]), rows[:1]).tolist() == [1 - 0.5 / 51]
    # A small block does not move a large one.
    assert _increasing(np.array([0.0, 20.0]), np.array([50, 20_000])).tolist() == [0.001, 0.001]
    assert _increasing(np.array([19_980.0, 50.0]), np.array([20_000, 50])).tolist() == [0.999, 0.999]
    assert _increasing(np.array([0.0, 50.0]), rows[:2]).tolist() == [0.5 / 51, 1 - 0.5 / 51]


def test_rare_labels_stay_rare():
    """One in a thousand among most scores is that after calibration, however few rows the outermost bins have."""
    rng = np.random.default_rng(5)
    for _ in range(20):
        scores = rng.random(20_000)
        labels = (rng.random(20_000) < np.where(scores < 0.95, 0.001, 0.3)).astype(float)
        common = scores < 0.9
        rates = Calibration.fit(scores, labels).apply(scores)[common].mean()
        assert rates == pytest.approx(labels[common].mean(), rel=0.35)


def test_the_ends_are_as_right_as_the_middle():
    """Beyond the outermost bins' means the curve is flat: what that costs is small, as the outermost bins are."""
    scores = (np.arange(100_000) + 0.5) / 100_000
    labels = (np.random.default_rng(3).random(100_000) < scores**2).astype(float)
    rates = Calibration.fit(scores, labels).apply(scores)
    for end in (scores < 0.02, scores > 0.98):
        assert abs(rates[end].mean() - labels[end].mean()) < 0.002, rates[end].mean() - labels[end].mean()


def test_logistic_curves_are_scikit_learns():
    """Newton's curves are those of unpenalized logistic regression on the same rows, many at once."""
    rng = np.random.default_rng(3)
    places, rows = np.linspace(-3, 4, 40), rng.integers(100, 5000, 40)
    hits = rng.binomial(rows, 1 / (1 + np.exp(-(0.7 * places - 1))), size=(3, 40)).astype(float)
    slopes, offsets = _fit_logistic(places, rows, hits)
    for slope, offset, of_one in zip(slopes, offsets, hits, strict=True):
        model = LogisticRegression(C=math.inf, tol=1e-8)
        model.fit(
            np.concatenate([places, places])[:, None],
            np.repeat([1, 0], 40),
            sample_weight=np.concatenate([of_one, rows - of_one]),
        )
        assert slope == pytest.approx(model.coef_[0, 0], rel=5e-3)
        assert offset == pytest.approx(model.intercept_[0], rel=5e-3)


def test_classes_that_do_not_overlap_stay_finite():
    """A perfect ranking has a steep curve, not an infinite one, and no probability of 0 or 1."""
    scores = np.linspace(0.001, 0.999, 2000)
    calibration = Calibration.fit(scores, (scores > 0.5).astype(float))
    rates = calibration.apply(np.array([0.0, 0.5, 1.0]))
    assert np.isfinite(rates).all()
    assert 0 < rates[0] < 0.05
    assert 0.95 < rates[2] < 1


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_margins_are_calibrated_too(scale):
    """Scores that are no probabilities are mapped by a curve or bins, whatever their scale."""
    rng = np.random.default_rng(4)
    margins = rng.normal(0, 2, 20_000)
    labels = (rng.random(20_000) < 1 / (1 + np.exp(-margins))).astype(float)
    calibration = Calibration.fit(margins * scale, labels)
    assert calibration.method != "identity"
    assert np.abs(calibration.apply(margins * scale) - 1 / (1 + np.exp(-margins))).mean() < 0.02


@pytest.mark.parametrize(
    ("n", "labels"),
    [
        pytest.param(199, [0.0, 1.0], id="few rows"),
        pytest.param(5000, [0.0], id="no positive"),
        pytest.param(5000, [1.0], id="no negative"),
        pytest.param(0, [0.0, 1.0], id="none"),
    ],
)
def test_too_little_to_learn_from_is_refused(n, labels):
    """Few rows, and rows of one class, say what is missing."""
    with pytest.raises(CalibrationError, match="at least 200 labelled predictions, 10 of each class"):
        Calibration.fit(np.linspace(0, 1, n), np.resize(labels, n))


def test_constant_scores_are_their_rate():
    """A score that never changes means the base rate."""
    labels = np.resize([1.0, 0.0, 0.0, 0.0], 2000)
    calibration = Calibration.fit(np.full(2000, 0.9), labels)
    assert calibration.apply(np.array([0.9]))[0] == pytest.approx(0.25, abs=0.01)


def test_a_calibration_survives_its_bytes():
    """Bytes and back maps the same, and is small whatever it was learned from."""
    calibration = Calibration.fit(*sample(100_000, stepped))
    data = calibration.to_bytes()
    again = Calibration.from_bytes(data)
    scores = np.linspace(0, 1, 1001)
    np.testing.assert_array_equal(again.apply(scores), calibration.apply(scores))
    assert len(data) < 3000
    assert len(calibration.bin_rows) <= MAX_BINS
    assert again.n_rows == 100_000


def test_variants_spread_as_samples_do():
    """What other samples might have given varies as calibrations of other samples do."""
    place = np.array([0.2, 0.5])
    others = np.stack([Calibration.fit(*sample(3000, sharper, seed)).apply(place) for seed in range(40)])
    variants = Calibration.fit(*sample(3000, sharper, 99)).variants(place, 200, np.random.default_rng(0))
    assert variants.std(axis=0) == pytest.approx(others.std(axis=0), rel=0.45)


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.binary(max_size=60), st.recursive(
    st.none() | st.integers(0, 9) | st.floats() | st.binary(max_size=9) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
).map(msgpack.packb)))  # fmt: skip
def test_anything_else_is_refused(data):
    """Bytes that are no calibration are said to be none."""
    with pytest.raises(CalibrationError, match="as tiercel writes it"):
        Calibration.from_bytes(data)


@pytest.mark.parametrize(
    "change",
    [
        {"method": "cubic"},
        {"scores": []},
        {"scores": [0.2, 0.1]},
        {"scores": [0.1, math.nan]},
        {"rows": [0, 10]},
        {"hits": [11, 5]},
        {"hits": [-1, 5]},
        {"rows": [10]},
        {"rows": [[1], [2]]},
        {"format": "tiercel-calibration-2"},
    ],
    ids=str,
)
def test_an_altered_calibration_is_refused(change):
    """Scores that descend, hits beyond rows and sizes that differ are refused."""
    whole = Calibration("identity", np.array([0.1, 0.2]), np.array([10, 10]), np.array([1, 2]), are_probabilities=True)
    data = msgpack.unpackb(whole.to_bytes())
    with pytest.raises(CalibrationError):
        Calibration.from_bytes(msgpack.packb({**data, **change}))
