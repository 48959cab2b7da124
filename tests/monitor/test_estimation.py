"""Estimates before labels: right while scores mean what they meant, and found out by the audit when they do not."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from tests.monitor.outcome_tables import DAY_US, HOUR_US, START_US, make_outcomes, where

from tiercel.errors import OutcomesError
from tiercel.monitor.calibration import Calibration
from tiercel.monitor.classification import binary_metrics
from tiercel.monitor.cohorts import Cohort
from tiercel.monitor.estimation import ESTIMATED_METRICS, VALUE, _at_most, estimate_metrics, estimation_report
from tiercel.monitor.score_bins import ScoreBins
from tiercel.settings import ValueSettings
from tiercel.types import Task

MATRIX = ValueSettings(true_positive=20.0, false_positive=-5.0, true_negative=1.0, false_negative=-100.0)


def calibrated(n=20_000, seed=0):
    rng = np.random.default_rng(seed)
    scores = rng.beta(2, 4, n)
    return Calibration.fit(scores, (rng.random(n) < scores).astype(float))


def test_expectations_equal_the_slow_sums():
    """The expected area counts every pair of different rows by its probability; decisions add up row by row."""
    rng = np.random.default_rng(0)
    scores = np.round(rng.beta(2, 3, 60), 1)
    rates = np.clip(scores, 1e-6, 1 - 1e-6)
    ahead = (scores[:, None] > scores[None]) + 0.5 * (scores[:, None] == scores[None])
    chance = rates[:, None] * (1 - rates[None])
    np.fill_diagonal(chance, 0)
    bins = ScoreBins.of(scores)
    found = {name: values[0] for name, values in bins.figures(np.unique(rates)[None], 0.5, MATRIX).items()}
    assert found["auc"] == pytest.approx((chance * ahead).sum() / chance.sum())
    decided = scores >= 0.5
    assert found["precision"] == pytest.approx(rates[decided].mean())
    assert found["recall"] == pytest.approx(rates[decided].sum() / rates.sum())
    assert found["accuracy"] == pytest.approx((rates[decided].sum() + (1 - rates[~decided]).sum()) / 60)
    assert found["brier"] == pytest.approx((rates * (1 - scores) ** 2 + (1 - rates) * scores**2).mean())
    money = np.where(decided, rates * 20 - (1 - rates) * 5, rates * -100 + (1 - rates) * 1)
    assert found[VALUE] == pytest.approx(money.mean())


def test_labels_that_came_give_the_realized_figures():
    """With labels for rates every figure is the realized one: estimates and outcomes are measured with one ruler."""
    rng = np.random.default_rng(1)
    scores = np.round(rng.random(500), 2)
    labels = (rng.random(500) < scores).astype(float)
    bins = ScoreBins.of(scores)
    rates = np.bincount(np.searchsorted(bins.scores, scores), weights=labels) / bins.rows
    found = bins.figures(np.stack([rates, rates]), 0.3)
    for name, realized in binary_metrics(scores, labels, threshold=0.3).items():
        if name in ESTIMATED_METRICS:
            assert found[name][1] == pytest.approx(realized.value), name


def test_bins_keep_the_threshold_and_the_counts():
    """Merged bins lose no row, straddle no threshold, and change the figures by little."""
    rng = np.random.default_rng(2)
    scores = np.append(rng.random(5000), np.full(3000, 0.3))
    fine = ScoreBins.of(scores)
    coarse = fine.merged(50, 0.3)
    assert coarse.rows.sum() == 8000
    assert len(coarse.rows) <= 52
    exact, rough = fine.figures(fine.scores[None], 0.3), coarse.figures(coarse.scores[None], 0.3)
    assert rough["precision"][0] == pytest.approx(exact["precision"][0])
    assert rough["auc"][0] == pytest.approx(exact["auc"][0], abs=0.003)
    assert rough["brier"][0] == pytest.approx(exact["brier"][0], abs=0.003)


@pytest.mark.parametrize(
    ("a", "b"), [pytest.param(2, 4, id="as before"), pytest.param(1, 6, id="easier"), pytest.param(4, 4, id="harder")]
)
def test_realized_figures_lie_in_the_interval(a, b):
    """While scores mean the same, of inputs that moved too, figures lie in their 90 % interval 9 times in 10."""
    rng = np.random.default_rng(3)
    inside = dict.fromkeys((*ESTIMATED_METRICS, VALUE), 0)
    gaps = dict.fromkeys(inside, 0.0)
    repeats = 80
    for i in range(repeats):
        scores = rng.beta(a, b, 1500)
        labels = (rng.random(1500) < scores).astype(float)
        estimated = estimate_metrics(calibrated(4000, i), scores, threshold=0.4, settings=MATRIX, confidence=0.9)
        realized = binary_metrics(scores, labels, threshold=0.4)
        for name in ESTIMATED_METRICS:
            inside[name] += estimated[name].covers(realized[name].value)
            gaps[name] += (realized[name].value - estimated[name].value) / repeats
    for name in ESTIMATED_METRICS:
        # 0.90 - 3.3 standard deviations of 80 tries, and more than nominal does not hurt.
        assert inside[name] >= 0.79 * repeats, name
        assert abs(gaps[name]) < 0.012, name


def test_fewer_labels_to_come_are_less_certain():
    """Where only a tenth of rows will be labelled, what they will show is less certain by about the root of ten."""
    scores = np.random.default_rng(4).beta(2, 4, 5000)
    calibration = calibrated(100_000)
    one = estimate_metrics(calibration, scores)["auc"]
    tenth = estimate_metrics(calibration, scores, coverage=0.1)["auc"]
    assert tenth.half_width / one.half_width == pytest.approx(math.sqrt(10), rel=0.25)
    assert one == estimate_metrics(calibration, scores)["auc"]  # nothing is left to chance


def test_what_no_label_could_define_has_a_reason():
    """No score at the threshold has no precision, margins have no loss, no rows have nothing."""
    found = estimate_metrics(calibrated(), np.full(50, 0.1), threshold=0.5)
    assert found["precision"].reason == "no score at or above the threshold"
    assert found["auc"].value == pytest.approx(0.5)
    assert estimate_metrics(calibrated(), np.array([-3.0, 4.0]))["brier"].reason == "scores outside of 0 to 1"
    assert {each.reason for each in estimate_metrics(calibrated(), np.array([])).values()} == {"no rows"}


def stream(meaning, n=40_000):
    """Twenty days of traffic; `meaning` gives the rate of positives from scores and days; labels take up to six hours."""
    rng = np.random.default_rng(5)
    days = np.arange(n) * 20 / n
    scores = rng.beta(2 + days / 10, 4, n)  # the inputs move all the time
    labels = (rng.random(n) < meaning(scores, days)).astype(float)
    return make_outcomes(
        n, score=scores, label=labels, time=START_US + (days * DAY_US).astype(np.int64),
        delay_us=rng.uniform(0, 6 * HOUR_US, n).astype(np.int64), arm=where(np.arange(n) % 5 == 0, "challenger", "champion"),
    )  # fmt: skip


def report(connection, *, days=20, **options):
    cohort = Cohort(6 * HOUR_US, None, None, DAY_US)
    return estimation_report(
        connection, "late", Task.BINARY, cohort, as_of_us=START_US + days * DAY_US, settings=MATRIX, **options
    )


def test_estimates_hold_while_scores_keep_their_meaning():
    """Over moving inputs each day's estimate, learned from earlier labels alone, is confirmed when labels come."""
    found = report(stream(lambda scores, _: scores))
    assert {audit.metric for audit in found.audits} == {*ESTIMATED_METRICS, VALUE}
    assert all(audit.holds for audit in found.audits)
    (auc,) = [a for a in found.audits if (a.arm, a.metric) == ("champion", "auc")]
    assert auc.n_windows == 18  # not the first day, which has nothing to learn from, nor the last
    assert auc.mean_abs_gap < 0.015
    last = found.windows[-2]
    assert (last.key.arm, last.realized) == ("champion", None)
    assert last.estimated["auc"].value is not None
    assert last.estimated[VALUE].low < last.estimated[VALUE].value
    json.dumps(found.to_json(), allow_nan=False)


def test_the_first_window_has_nothing_to_learn_from():
    """Before there are labels there is a reason instead of an estimate."""
    first = report(stream(lambda scores, _: scores)).windows[0]
    assert (first.key.begin_us, first.n_reference, first.estimated) == (START_US, 0, {})
    assert "at least 200 labelled predictions" in first.reason


def test_nothing_later_is_known():
    """An estimate of the past is what would have been said then: the same with all that came later taken away."""
    connection = stream(lambda scores, _: scores)
    then = [w for w in report(connection, days=10).windows if w.realized is None]
    for window in then:
        (now,) = [w for w in report(connection).windows if w.key == window.key]
        assert now.n_reference == window.n_reference > 0
        assert now.method == window.method


def test_without_a_maturity_labels_must_have_come():
    """Where every label counts, a window's calibration still knows only those that were there when it began."""
    connection = stream(lambda scores, _: scores)
    found = estimation_report(
        connection, "late", Task.BINARY, Cohort(None, None, None, DAY_US), as_of_us=START_US + 20 * DAY_US
    )
    second = next(window for window in found.windows if window.key.begin_us == START_US + DAY_US)
    ((n_known,),) = connection.execute(
        "SELECT count(*) FROM outcomes WHERE label_time <= make_timestamp(?)", [START_US + DAY_US]
    ).fetchall()
    assert second.n_reference == n_known < 2000


def test_a_change_of_meaning_is_found_out():
    """When the relation of scores to labels turns, estimates cannot see it, but the audit does and says so."""
    found = report(stream(lambda scores, days: np.where(days < 12, scores, 0.35)))
    (auc,) = [a for a in found.audits if (a.arm, a.metric) == ("champion", "auc")]
    assert not auc.holds
    assert auc.mean_gap < -0.02
    assert any("What a score means has changed" in note for note in found.notes)


def test_without_binary_scores_nothing_is_estimated():
    """A regression model's report says that it is none of these."""
    found = estimation_report(
        make_outcomes(10), "late", Task.REGRESSION, Cohort(0, None, None, DAY_US), as_of_us=START_US + DAY_US
    )
    assert (found.windows, found.audits) == ([], [])
    assert "for binary models" in found.notes[0]


def test_windows_are_needed_and_bounded():
    """A cohort without windows is a mistake of the caller, one of too many is refused."""
    with pytest.raises(ValueError, match="windows"):
        estimation_report(make_outcomes(10), "late", Task.BINARY, Cohort(), as_of_us=START_US + DAY_US)
    with pytest.raises(OutcomesError, match="at most 1000 windows"):
        estimation_report(
            make_outcomes(2000), "late", Task.BINARY, Cohort(0, None, None, 1_000_000), as_of_us=START_US + DAY_US
        )


def test_bad_scores_and_one_class_are_survived():
    """NaN scores are left out; labels of one class give no calibration and a reason."""
    n = 3000
    scores = np.where(np.arange(n) % 3 == 0, np.nan, 0.4)
    found = estimation_report(
        make_outcomes(n, score=scores, label=0.0, time=START_US + np.arange(n) * 60_000_000),
        "late", Task.BINARY, Cohort(HOUR_US, None, None, DAY_US), as_of_us=START_US + 3 * DAY_US,
    )  # fmt: skip
    assert sum(window.n for window in found.windows) == 2000
    assert all(window.reason and not window.estimated for window in found.windows)


def test_tails_of_binomials():
    """The audit's verdict rests on the exact probability of so few hits."""
    assert _at_most(3, 3, 0.5) == pytest.approx(1)
    assert _at_most(0, 2, 0.5) == pytest.approx(0.25)
    assert _at_most(1, 3, 0.9) == pytest.approx(0.028)
