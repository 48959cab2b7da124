"""From realized figures to causes: money lost is impact, scores that lie are concept, and noise is neither."""

from __future__ import annotations

import shlex

import numpy as np
import pytest
from tests.monitor.outcome_tables import DAY_US, SECOND_US, START_US, make_outcomes

from tiercel.monitor.alert import AlertClass, TopFeature
from tiercel.monitor.intervals import Estimate
from tiercel.monitor.outcome_causes import OutcomeWindow, newest_mature, outcome_look, pooled
from tiercel.monitor.review import review
from tiercel.settings import ValueSettings
from tiercel.types import Task

N_DAYS, PER_DAY = 8, 1000
NOW_US = START_US + N_DAYS * DAY_US + 3_600_000_000
VALUE = ValueSettings(
    unit="EUR", true_positive=10, false_positive=-10, true_negative=10, false_negative=-10, label_maturity_s=60.0
)


def judged(last_day=None, *, task=Task.BINARY, value=VALUE, n_last=PER_DAY, good_until_us=None, changes=(), seed=3):
    """The look at the last of eight days; `last_day(scores, labels, rng)` gives what came of it."""
    rng = np.random.default_rng(seed)
    n = (N_DAYS - 1) * PER_DAY + n_last
    day = np.repeat(np.arange(N_DAYS), [*[PER_DAY] * (N_DAYS - 1), n_last])
    times = START_US + day * DAY_US + rng.integers(0, DAY_US, n)
    scores = rng.beta(2, 2, n)
    labels = (rng.random(n) < scores).astype(float)
    if task is Task.REGRESSION:
        labels = scores + 0.1 * rng.normal(size=n)
    if last_day is not None:
        last = day == N_DAYS - 1
        scores[last], labels[last] = last_day(scores[last], labels[last], rng)
    connection = make_outcomes(n, score=scores, label=labels, time=times, delay_us=SECOND_US)
    found = review(
        connection, "late", task, value, as_of_us=NOW_US, span_us=14 * DAY_US, window_us=DAY_US, confidence=0.997,
    )  # fmt: skip
    begin_us = newest_mature(found, 1, "champion", DAY_US, as_of_us=NOW_US)
    if begin_us is None:
        return None, None
    window = OutcomeWindow("late", 1, "champion", begin_us, DAY_US, good_until_us, NOW_US, 14 * DAY_US)
    look = outcome_look(found, window, new_changes=changes)
    return look, {finding.alert_class: finding for finding in look.findings}


def inverted(scores, labels, rng):
    """The relation has turned round."""
    return scores, 1 - labels


def test_a_day_like_the_others_is_fine():
    """No finding, and the look says that it would have found one of money and one of errors."""
    look, found = judged()
    assert found == {}
    assert set(look.limits) == {"impact:late:1:champion", "concept:late:1:champion"}
    assert 0.05 < look.limits["impact:late:1:champion"]["value_per_prediction"] < 3
    assert (look.n_confirm, look.n_clear) == (1, 1)


def test_a_relation_that_turned_is_concept_and_impact():
    """Labels that contradict the scores cost money, which pages, and mean that scores lie, which does not."""
    _, found = judged(inverted)
    assert set(found) == {AlertClass.CONCEPT, AlertClass.IMPACT}
    impact, concept = found[AlertClass.IMPACT], found[AlertClass.CONCEPT]
    assert (impact.alert_class.pages, concept.alert_class.pages) == (True, False)
    assert (impact.cause, impact.n) == ("impact:late:1:champion", PER_DAY)
    assert "EUR in the windows before" in impact.message
    assert "EUR had every decision been" in " ".join(each.reason for each in impact.features)
    assert (impact.begin_us, impact.end_us) == (START_US + 7 * DAY_US, START_US + 8 * DAY_US)
    assert concept.message.startswith("What scores of late:1 mean has changed: ")
    assert {"auc", "log_loss", "brier"} <= {each.name for each in concept.features}
    assert concept.effect > 1 == concept.threshold


def test_a_population_that_is_harder_is_no_concept():
    """Scores near one half are right as often as they say: worse figures that were foretold are not a change of meaning."""

    def harder(scores, labels, rng):
        scores = 0.5 + 0.1 * (scores - 0.5)
        return scores, (rng.random(len(scores)) < scores).astype(float)

    _, found = judged(harder)
    concept = found.get(AlertClass.CONCEPT)
    assert concept is None or not {"brier", "calibration_gap"} & {each.name for each in concept.features}


def test_scores_that_are_too_high_are_concept():
    """Half of the labels that scores promise: the estimate before labels did not come true."""

    def overconfident(scores, labels, rng):
        return scores, (rng.random(len(scores)) < scores / 2).astype(float)

    _, found = judged(overconfident, value=ValueSettings(label_maturity_s=60.0))
    assert set(found) == {AlertClass.CONCEPT}
    assert "calibration_gap" in [each.name for each in found[AlertClass.CONCEPT].features]
    assert "its estimate before labels was" in " ".join(each.reason for each in found[AlertClass.CONCEPT].features)


def test_larger_errors_of_a_regression_are_concept():
    """A model of numbers is judged by its errors beside those of the windows before."""

    def worse(scores, labels, rng):
        return scores, scores + 0.3 * rng.normal(size=len(scores))

    value = ValueSettings(label_maturity_s=60.0)
    assert judged(task=Task.REGRESSION, value=value)[1] == {}
    _, found = judged(worse, task=Task.REGRESSION, value=value)
    assert [each.name for each in found[AlertClass.CONCEPT].features][:1] in (["mae"], ["rmse"])


def test_few_labels_say_nothing():
    """A day with few outcomes is not judged: the newest day with enough is."""
    look, found = judged(inverted, n_last=30)
    assert found == {}
    assert look is not None


def test_bad_windows_are_not_compared_with():
    """What was found bad since a time is no measure for what comes after it."""
    look, found = judged(inverted, good_until_us=START_US + DAY_US)
    assert "value_per_prediction" not in look.limits["impact:late:1:champion"]
    assert AlertClass.IMPACT in found  # worse than one decision for all, which needs no past


def test_a_model_that_one_decision_for_all_beats_is_impact():
    """With decisions at the wrong threshold for its costs, a model that never changed is worth less than none at all."""
    value = ValueSettings(
        true_positive=20, false_positive=-5, true_negative=1, false_negative=-10, label_maturity_s=60.0
    )
    _, found = judged(value=value)
    (feature,) = found[AlertClass.IMPACT].features
    assert feature.name == "always_positive"
    assert "had every decision been positive" in found[AlertClass.IMPACT].message


def test_detectors_changes_are_shown_and_end():
    """A change in the stream of errors is a finding of its window, and the next window without one ends it."""
    change = TopFeature("errors adwin", 1.0, "adwin found a change of errors at 2026-01-08 10:00 UTC")
    _, found = judged(changes=(change,))
    assert found[AlertClass.CONCEPT].features == (change,)
    look, _ = judged()
    assert look.would_have_found(found[AlertClass.CONCEPT])


def test_null_days_make_few_findings():
    """Forty days like the others, judged at 99.7 % with three comparisons of money: at most one page."""
    n_pages = sum(AlertClass.IMPACT in judged(seed=1000 + i)[1] for i in range(40))
    assert n_pages <= 1


def test_the_command_names_window_and_moment():
    """What shows it again is `tiercel performance` of the version as it was known then."""
    _, found = judged(inverted)
    command = shlex.split(found[AlertClass.IMPACT].command)
    assert command[:3] == ["tiercel", "performance", "late:1"]
    assert command[3:7] == ["--since", "1209600s", "--window", "86400s"]
    assert command[7] == "--as-of"


def test_pooling():
    """Windows count by their rows; their errors add as independent ones do."""
    one = pooled([Estimate(1.0, 0.8, 1.4, 100), Estimate(2.0, 1.8, 2.4, 300), Estimate.missing("nothing")])
    assert one.value == pytest.approx(1.75)
    assert (one.value - one.low, one.high - one.value) == pytest.approx((0.1 * 2.5**0.5, 0.2 * 2.5**0.5))
    assert pooled([]).value is None
