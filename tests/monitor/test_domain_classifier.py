"""The domain classifier: scikit-learn's area, exact p-values, the right features, and a clear error without LightGBM."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from scipy.stats import binom, ks_2samp
from sklearn.metrics import roc_auc_score
from tests.monitor.samples import clustered, correlated, units

from tiercel.errors import MissingExtraError
from tiercel.monitor.domain_classifier import ClassifierSettings, measure_separation
from tiercel.monitor.exchanges import Units

QUICK = ClassifierSettings(n_folds=2, n_rounds=3, n_exchanges=9)


def test_the_area_is_scikit_learns():
    """It is the mean over the folds of roc_auc_score of rows that the model did not see."""
    rows = correlated(300, 0.5, np.random.default_rng(0))
    rows[180:, 2] += 0.5
    sides = units(180, 120)
    found = measure_separation(rows, sides, settings=ClassifierSettings(n_exchanges=1))
    areas = [roc_auc_score(sides.rows()[found.folds == i], found.scores[found.folds == i]) for i in range(5)]
    assert found.auc == pytest.approx(np.mean(areas), rel=1e-12)
    assert found.auc > 0.55


def test_p_is_calibrated_when_nothing_changed():
    """Of 200 pairs of samples of one population, one in ten is beyond the tenth, within the binomial interval."""
    rng = np.random.default_rng(1)
    n, level = 200, 0.1
    n_beyond = 0
    for i in range(n):
        rows = correlated(120, 0.6, rng, 2)
        n_beyond += measure_separation(rows, units(70, 50), seed=i, settings=QUICK, rank_at=0).p_value <= level
    low, high = binom.interval(0.999, n, level)
    assert low <= n_beyond <= high


def test_rows_of_one_request_are_learned_or_judged_not_both():
    """A request's rows are in one fold, so what a model remembers of some rows of it helps it to nothing."""
    rng = np.random.default_rng(2)
    rows, requests = clustered(60, 10, rng)
    sides = Units(requests, np.arange(60) >= 30)
    found = measure_separation(rows, sides, settings=ClassifierSettings(n_exchanges=39, n_beyond=10))
    assert all(len(set(found.folds[requests == request].tolist())) == 1 for request in range(60))
    assert found.p_value > 0.05
    single = measure_separation(rows, units(300, 300), settings=ClassifierSettings(n_exchanges=39, n_beyond=10))
    assert (single.auc > 0.9, single.p_value) == (True, 1 / 40)  # what it would find otherwise


def test_it_sees_a_change_of_correlation_alone():
    """Two features that part ways are found and named, though no feature by itself has changed."""
    rng = np.random.default_rng(3)
    rows = np.concatenate([correlated(400, 0.8, rng), correlated(400, -0.8, rng)])
    assert all(ks_2samp(column[:400], column[400:]).pvalue > 0.01 for column in rows.T)
    found = measure_separation(rows, units(400, 400), settings=ClassifierSettings(n_exchanges=99, n_beyond=10))
    assert found.p_value == 1 / 100
    assert found.auc > 0.75 > found.chance_limit
    assert set(np.argsort(-found.losses)[:2].tolist()) == {0, 1}
    assert found.losses[:2].min() > 0.1 > found.losses[2:].max()


def test_missing_values_and_infinities_are_learned_from():
    """A share of missing values that changed tells the sides apart; an infinity is a large value."""
    rng = np.random.default_rng(4)
    rows = rng.normal(size=(400, 2))
    rows[rng.random(400) < 0.1, 1] = np.inf
    rows[200:, 0] = np.where(rng.random(200) < 0.6, np.nan, rows[200:, 0])
    found = measure_separation(rows, units(200, 200), settings=ClassifierSettings(n_exchanges=19))
    assert found.p_value == 1 / 20
    assert np.argmax(found.losses) == 0


def test_drawing_stops_when_the_answer_is_plain():
    """Where chance does as much again and again, few exchanges are drawn, and no feature is ranked."""
    rows = correlated(200, 0.5, np.random.default_rng(5))
    ticks = []
    found = measure_separation(
        rows, units(100, 100), settings=ClassifierSettings(n_exchanges=999, n_beyond=5), rank_at=0.001,
        progress=lambda done, total: ticks.append((done, total)),
    )  # fmt: skip
    assert found.n_exchanges == len(ticks) < 999
    assert ticks[-1] == (found.n_exchanges, 999)
    assert found.p_value == 5 / found.n_exchanges
    assert (found.chance_limit, len(found.losses)) == (None, 0)


def test_the_same_seed_gives_the_same_answer():
    """Folds, exchanges and models are the same."""
    rows = correlated(200, 0.5, np.random.default_rng(6))
    one, same = (measure_separation(rows, units(100, 100), seed=7, settings=QUICK) for _ in range(2))
    assert (one.auc, one.p_value) == (same.auc, same.p_value)
    np.testing.assert_array_equal(one.scores, same.scores)
    np.testing.assert_array_equal(one.losses, same.losses)


def test_without_lightgbm_the_install_command_is_said(monkeypatch):
    """The extra is named, and the test that needs none."""
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(MissingExtraError, match=r"tiercel\[lightgbm\]") as caught:
        measure_separation(np.zeros((100, 1)), units(50, 50))
    assert "--test mmd" in str(caught.value)
