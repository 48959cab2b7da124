"""Money: what was realized is a sum, what is not known yet is projected by decision, and intervals cover."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from tests.monitor.outcome_tables import DAY_US, HOUR_US, SECOND_US, START_US, make_outcomes, where
from tests.monitor.test_intervals import is_nominal

from tiercel.errors import DefinitionError
from tiercel.monitor.business import Decided, _moments_of_counts, _projected, value_report
from tiercel.monitor.cohorts import Cohort
from tiercel.settings import ValueSettings
from tiercel.types import Task

MATRIX = ValueSettings(
    threshold=0.5, unit="EUR", true_positive=20.0, false_positive=-5.0, true_negative=1.0, false_negative=-100.0
)
COLUMN = ValueSettings(column="value")


def value(connection, settings=MATRIX, cohort=None, *, task=Task.BINARY, **options):
    return value_report(
        connection, "late", task, cohort or Cohort(), settings, as_of_us=START_US + 365 * DAY_US, **options
    )


def worth(scores, labels):
    """The matrix, row by row."""
    positive = scores >= 0.5
    return np.where(positive, np.where(labels > 0, 20.0, -5.0), np.where(labels > 0, -100.0, 1.0))


def test_money_is_the_sum_over_outcomes():
    """With every outcome known the projected mean is the plain mean, and the total what was realized."""
    rng = np.random.default_rng(0)
    scores = rng.random(3000)
    labels = (rng.random(3000) < scores).astype(float)
    (group,) = value(make_outcomes(3000, score=scores, label=labels)).groups
    expected = worth(scores, labels)
    assert group.realized == pytest.approx(expected.sum())
    assert group.per_prediction.value == pytest.approx(expected.mean())
    assert group.total.value == pytest.approx(expected.sum())
    assert group.per_prediction.low < expected.mean() < group.per_prediction.high
    assert group.always_positive.value == pytest.approx(worth(np.ones(3000), labels).mean())
    assert group.always_negative.value == pytest.approx(worth(np.zeros(3000), labels).mean())
    assert (group.n_cohort, group.n_known, group.coverage.value) == (3000, 3000, 1)


def test_labels_that_depend_on_the_decision_do_not_bend_the_projection():
    """Where only a tenth of negative decisions are labelled, the mean is projected decision by decision, and it is said."""
    rng = np.random.default_rng(1)
    n = 20_000
    scores = rng.random(n)
    labels = (rng.random(n) < scores).astype(float)
    is_known = (scores >= 0.5) | (rng.random(n) < 0.1)
    connection = make_outcomes(n, score=scores, label=where(is_known, labels), delay_us=where(is_known, 0))
    found = value(connection)
    (group,) = found.groups
    expected = worth(scores, labels).mean()
    assert group.per_prediction.covers(expected)
    assert abs(worth(scores, labels)[is_known].mean() - expected) > 3 * group.per_prediction.half_width
    assert group.realized == pytest.approx(worth(scores, labels)[is_known].sum())
    assert "100% of positive and 10% of negative decisions" in found.notes[0]


def test_a_decision_without_outcomes_is_not_guessed():
    """When no negative decision is ever labelled nothing is said of all, and the reason is."""
    scores = np.linspace(0, 1, 1000)
    connection = make_outcomes(1000, score=scores, label=where(scores >= 0.5, 1.0), delay_us=0)
    (group,) = value(connection).groups
    assert group.per_prediction.value is None
    assert "no outcome of a negative decision" in group.per_prediction.reason
    assert group.total.value is None
    assert group.realized == 500 * 20


@pytest.mark.parametrize(
    ("n", "rate"), [pytest.param(60, 0.04, id="rare and few"), (60, 0.4), (400, 0.02), (400, 0.3), (3000, 0.01)]
)
def test_the_mean_is_covered(n, rate):
    """Money per answer lies in its 95 % interval 95 times in 100, also where the costly outcome is rare."""
    rng = np.random.default_rng(n)
    # A third is decided positive, and of those four times as many are.
    expected = sum(
        share * (p * yes + (1 - p) * no)
        for share, p, yes, no in ((1 / 3, min(1, 4 * rate), 20, -5), (2 / 3, rate, -100, 1))
    )
    n_covered = 0
    for _ in range(600):
        n_yes = rng.binomial(n, 1 / 3)
        parts = []
        for is_positive, size, p, (yes, no) in (
            (True, n_yes, min(1, 4 * rate), (20.0, -5.0)),
            (False, n - n_yes, rate, (-100.0, 1.0)),
        ):
            hits = int(rng.binomial(size, p))
            counts = ((yes, hits), (no, int(size - hits)))
            parts.append(Decided(is_positive, int(size), counts, _moments_of_counts(counts)))
        n_covered += _projected(parts, 0.95).covers(expected)
    assert is_nominal(n_covered, 600, slack=0.025)


def test_sent_values_are_summed():
    """With a column the money is its values, of a regression model too; rows without one are projected by the mean."""
    rng = np.random.default_rng(2)
    n = 2000
    money = rng.exponential(10, n)
    is_known = np.arange(n) % 4 != 0
    money[5] = math.nan
    connection = make_outcomes(n, value=where(is_known, money), label=where(is_known, 1.0), delay_us=where(is_known, 0))
    (group,) = value(connection, COLUMN, task=Task.REGRESSION).groups
    known = money[is_known & ~np.isnan(money)]
    assert group.realized == pytest.approx(known.sum())
    assert group.per_prediction.value == pytest.approx(known.mean())
    assert group.total.value == pytest.approx(known.mean() * n)
    assert group.per_prediction.covers(10)
    assert group.n_known == len(known)
    assert group.always_positive is None


def test_arms_are_compared():
    """A challenger's gain per answer over the champion's comes with an interval; shadows, not sent, have no money."""
    rng = np.random.default_rng(3)
    n = 6000
    labels = (rng.random(n) < 0.5).astype(float)
    arm = np.arange(n) % 3
    good = np.where(labels > 0, 0.9, 0.1)
    scores = np.where(
        arm == 1, np.where(rng.random(n) < 0.9, good, 1 - good), np.where(rng.random(n) < 0.7, good, 1 - good)
    )
    connection = make_outcomes(
        n,
        score=scores,
        label=labels,
        arm=where(arm == 1, "challenger", "champion"),
        is_shadow=(arm == 2).tolist(),
        money=worth(scores, labels),
    )
    for settings in (MATRIX, ValueSettings(column="money")):
        found = value(connection, settings)
        assert [g.key.arm for g in found.groups] == ["champion", "challenger"]
        (comparison,) = found.comparisons
        gap = worth(scores, labels)[arm == 1].mean() - worth(scores, labels)[arm == 0].mean()
        assert comparison.per_prediction.value == pytest.approx(gap)
        assert comparison.per_prediction.low > 0
        assert comparison.per_prediction.covers(0.5 * (0.2 * 120 + 0.2 * 6))


def test_money_has_windows_segments_and_an_age():
    """Money per window and segment adds up to the whole; answers too young to be judged, and degraded ones, are as promised."""
    n = 4000
    connection = make_outcomes(
        n, time=START_US + np.arange(n) * SECOND_US, country=where(np.arange(n) % 2 == 0, "DE", "FR"),
        degraded=where(np.arange(n) < 100, "fallback"),
    )  # fmt: skip
    settings = ValueSettings(**{**vars(MATRIX), "segments": (("country", "country"),)})
    found = value(connection, settings, Cohort(window_us=HOUR_US))
    (group,) = found.groups
    assert group.n_cohort == n  # degraded answers were acted on
    assert sum(g.realized for g in found.windows) == pytest.approx(group.realized)
    assert sum(g.realized for g in found.segments) == pytest.approx(group.realized)
    assert [g.key.value for g in found.segments] == ["DE", "FR"]
    json.dumps(found.to_json(), allow_nan=False)
    report = value_report(
        connection, "late", Task.BINARY, Cohort(maturity_us=1000 * SECOND_US), MATRIX, as_of_us=START_US + n * SECOND_US
    )
    assert report.groups[0].n_cohort == n - 1000 + 1


def test_nothing_known_is_a_reason():
    """Before the first outcome there is no money and no exception; without settings of value there is no report."""
    (group,) = value(make_outcomes(50, label=None, label_time=None)).groups
    assert (group.realized, group.per_prediction.reason) == (0, "no outcome is known yet")
    assert value(make_outcomes(50), ValueSettings()) is None
    assert value(make_outcomes(50, model="other")).groups == []


@pytest.mark.parametrize(
    ("settings", "task", "message"),
    [
        (MATRIX, Task.REGRESSION, "a cost matrix is for a binary model's decisions, 'late' is a regression model"),
        (ValueSettings(column="nothing"), Task.BINARY, "expected a column of 'outcomes', got 'nothing'"),
    ],
)
def test_a_value_that_cannot_be_counted_is_refused(settings, task, message):
    """Decisions of a model that makes none, and a column that is not there, are told with the setting."""
    with pytest.raises(DefinitionError, match=message):
        value(make_outcomes(10), settings, task=task)
