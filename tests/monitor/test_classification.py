"""Figures of binary models: scikit-learn's values, intervals that cover, and reasons where rows define nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics
from sklearn.calibration import calibration_curve
from tests.monitor.test_intervals import REPEATS, is_nominal

from tiercel.monitor.classification import BINARY_METRICS, auc, binary_metrics, calibration_bins, calibration_error

#: Few distinct values make ties, and the ends make log losses that are clipped.
SCORES = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.floats(0, 1))
ROWS = st.lists(st.tuples(SCORES, st.booleans()), min_size=2, max_size=80).filter(
    lambda rows: len({label for _, label in rows}) == 2
)


@settings(max_examples=150, deadline=None)
@given(ROWS, st.sampled_from([0.0, 0.25, 0.5, 0.9]))
def test_figures_equal_scikit_learn(rows, threshold):
    """Each figure is scikit-learn's of the same rows, ties and scores of exactly 0 and 1 included."""
    scores, labels = np.array([s for s, _ in rows]), np.array([float(y) for _, y in rows])
    found = {name: each.value for name, each in binary_metrics(scores, labels, threshold=threshold).items()}
    decided = scores >= threshold
    assert found["auc"] == pytest.approx(metrics.roc_auc_score(labels, scores), abs=1e-12)
    assert found["log_loss"] == pytest.approx(metrics.log_loss(labels, scores), rel=1e-12)
    assert found["brier"] == pytest.approx(metrics.brier_score_loss(labels, scores), abs=1e-15)
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(labels, decided))
    assert found["recall"] == pytest.approx(metrics.recall_score(labels, decided))
    assert found["f1"] == pytest.approx(metrics.f1_score(labels, decided))
    if decided.any():
        assert found["precision"] == pytest.approx(metrics.precision_score(labels, decided))
    else:
        assert found["precision"] is None
    rates, means = calibration_curve(labels, scores, n_bins=10, strategy="quantile")
    bins = calibration_bins(scores, labels)
    assert [each.rate.value for each in bins] == pytest.approx(rates)
    assert [each.mean_score for each in bins] == pytest.approx(means)
    assert sum(each.rate.n for each in bins) == len(rows)
    weights = np.array([each.rate.n for each in bins]) / len(rows)
    assert found["ece"] == pytest.approx(float((weights * abs(rates - means)).sum()))


@settings(max_examples=150, deadline=None)
@given(ROWS)
def test_intervals_hold_their_figure(rows):
    """Every interval contains its own figure and stays within what the figure can be."""
    scores, labels = np.array([s for s, _ in rows]), np.array([float(y) for _, y in rows])
    for name, each in binary_metrics(scores, labels).items():
        if each.low is not None:
            tiny = 1e-9 * max(1.0, abs(each.value))
            assert each.low - tiny <= each.value <= each.high + tiny, name
            if name not in {"log_loss", "calibration_gap"}:
                assert 0 <= each.low <= each.high <= 1


@pytest.mark.parametrize(
    ("n", "base_rate", "gap"),
    [
        pytest.param(40, 0.5, 1.0, id="few rows"),
        pytest.param(60, 0.15, 1.5, id="few positives"),
        pytest.param(600, 0.05, 1.5, id="rare positives"),
        pytest.param(400, 0.5, 0.2, id="weak model"),
        pytest.param(400, 0.5, 3.0, id="strong model"),
    ],
)
def test_the_area_is_covered(n, base_rate, gap):
    """The area under the curve of two normal classes lies in its 95 % interval 95 times in 100."""
    rng = np.random.default_rng(n)
    expected = stats.norm.cdf(gap / math.sqrt(2))

    def is_covered():
        positive = rng.random(n) < base_rate
        return auc(rng.normal(0, 1, n) + gap * positive, positive).covers(expected)

    assert is_nominal(sum(is_covered() for _ in range(REPEATS)))


def test_delong_equals_the_slow_variance():
    """The interval is that of DeLong's variance written out pair by pair, on the logit scale."""
    rng = np.random.default_rng(0)
    positive = rng.random(120) < 0.4
    scores = np.round(rng.normal(0, 1, 120) + positive, 1)
    above, below = scores[positive], scores[~positive]
    wins = (above[:, None] > below[None]) + 0.5 * (above[:, None] == below[None])
    area = wins.mean()
    variance = wins.mean(axis=1).var(ddof=1) / len(above) + wins.mean(axis=0).var(ddof=1) / len(below)
    half = stats.t.ppf(0.975, min(len(above), len(below)) - 1) * math.sqrt(variance) / (area * (1 - area))
    ends = [1 / (1 + math.exp(-(math.log(area / (1 - area)) + side * half))) for side in (-1, 1)]
    found = auc(scores, positive)
    assert (found.value, found.low, found.high) == pytest.approx((area, *ends))


def test_a_perfect_ranking_is_not_certain():
    """Ten of ten pairs in order is an area of 1 with room below; so is none with room above."""
    positive = np.array([False] * 10 + [True] * 10)
    scores = np.arange(20.0)
    best, worst = auc(scores, positive), auc(-scores, positive)
    assert (best.value, best.high) == (1, 1)
    assert 0.6 < best.low < 0.99
    assert (worst.value, worst.low) == (0, 0)
    assert worst.high == pytest.approx(1 - best.low)


@pytest.mark.parametrize("shift", [0.0, 0.03, 0.15])
def test_the_calibration_error_is_covered(shift):
    """The interval holds the error at least as often as promised, and 0 when the scores are right."""
    rng = np.random.default_rng(5)

    def draw(n):
        scores = rng.beta(2, 5, n)
        return scores, np.clip(scores + shift * np.sin(6 * scores), 0, 1)

    scores, rates = draw(200_000)
    expected = sum(
        len(part) / 200_000 * abs((rates[part] - scores[part]).mean())
        for part in np.array_split(np.argsort(scores), 10)
    )
    n_covered, lows = 0, []
    for _ in range(300):
        scores, rates = draw(2000)
        found = calibration_error(calibration_bins(scores, (rng.random(2000) < rates) * 1.0))
        n_covered += found.covers(expected)
        lows.append(found.low)
    assert n_covered >= 300 * 0.94
    if shift == 0:
        assert sum(low == 0 for low in lows) >= 300 * 0.97
    if shift == 0.15:
        assert min(lows) > 0.03  # and it is not so wide that it says nothing


def test_one_class_leaves_what_it_defines():
    """Without a positive label there is no area and no recall, each with its reason; losses stand."""
    found = binary_metrics(np.array([0.1, 0.2, 0.9]), np.zeros(3))
    assert found["auc"].reason == "only negative labels"
    assert found["recall"].reason == "no positive label"
    assert found["precision"].value == 0
    assert found["brier"].value == pytest.approx((0.01 + 0.04 + 0.81) / 3)


def test_constant_scores_rank_nothing():
    """Equal scores are an area of one half with a sensible interval, and one calibration bin."""
    labels = np.array([0.0, 1.0] * 30)
    found = binary_metrics(np.full(60, 0.3), labels)
    assert found["auc"].value == 0.5
    assert found["auc"].low < 0.5 < found["auc"].high
    assert found["precision"].reason == "no score of 0.5 or more"
    (only,) = calibration_bins(np.full(60, 0.3), labels)
    assert (only.rate.value, only.rate.n) == (0.5, 60)


def test_margins_are_ranked_but_not_taken_for_probabilities():
    """Scores beyond 0 to 1 keep their area; losses and calibration say why they are missing."""
    found = binary_metrics(np.array([-3.0, 2.0, 5.0]), np.array([0.0, 0.0, 1.0]), threshold=3)
    assert found["auc"].value == 1
    assert found["precision"].value == 1
    assert {found[name].reason for name in ("log_loss", "brier", "ece", "calibration_gap")} == {
        "scores outside of 0 to 1"
    }


def test_no_rows_are_a_reason():
    """Nothing labelled gives every name, none with a value."""
    found = binary_metrics(np.array([]), np.array([]))
    assert tuple(found) == BINARY_METRICS
    assert all(each.value is None and each.reason for each in found.values())
    assert calibration_bins(np.array([]), np.array([])) == []
    assert calibration_error([]).value is None
