"""Selection and error rates by segment: counts add up, rates and gaps are their definitions, chance is not called a difference."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tests.monitor.outcome_tables import DAY_US, HOUR_US, SECOND_US, START_US, make_outcomes, where

from tiercel.errors import DefinitionError
from tiercel.monitor.cohorts import MISSING_VALUE, OTHER, Cohort
from tiercel.monitor.fairness import MIN_DECISIONS, RATES, difference, fairness_report
from tiercel.monitor.intervals import proportion
from tiercel.settings import ValueSettings
from tiercel.types import Task

SETTINGS = ValueSettings(threshold=0.4, segments=(("country", "country"),))
NOW_US = START_US + DAY_US


def report(connection, settings=SETTINGS, cohort=None, task=Task.BINARY, **kwargs):
    return fairness_report(connection, "late", task, cohort or Cohort(), settings, as_of_us=NOW_US, **kwargs)


def test_rates_are_what_they_are_called():
    """Each group's rates equal those counted by hand from its rows; labelled or not for selections, labelled for errors."""
    rng = np.random.default_rng(0)
    n = 900
    score, label = rng.random(n), rng.integers(0, 2, n).astype(float)
    country = np.array(["AT", "DE", "IT"])[rng.integers(0, 3, n)]
    has_label = rng.random(n) < 0.6
    connection = make_outcomes(n, score=score, label=where(has_label, label), country=country.tolist())
    found = report(connection)
    assert [each.key.value for each in found.groups] == ["AT", "DE", "IT"]
    assert sum(each.tally.n_scored for each in found.groups) == n
    for each in found.groups:
        own, picked = country == each.key.value, score >= 0.4
        known = own & has_label
        expected = {
            "selection_rate": (own & picked).sum() / own.sum(),
            "true_positive_rate": (known & picked & (label == 1)).sum() / (known & (label == 1)).sum(),
            "false_positive_rate": (known & picked & (label == 0)).sum() / (known & (label == 0)).sum(),
            "precision": (known & picked & (label == 1)).sum() / (known & picked).sum(),
        }
        assert {name: rate.value for name, rate in each.rates.items()} == pytest.approx(expected)
        rest = ~own
        gap = each.gaps["selection_rate"]
        assert gap.value == pytest.approx(expected["selection_rate"] - (rest & picked).sum() / rest.sum())
        assert gap.low < gap.value < gap.high
    highest = max(each.rates["selection_rate"].value for each in found.groups)
    assert [each.ratio for each in found.groups] == pytest.approx(
        [each.rates["selection_rate"].value / highest for each in found.groups]
    )
    assert tuple(found.groups[0].rates) == tuple(RATES)
    json.dumps(found.to_json(), allow_nan=False)


def test_a_group_that_is_selected_less_is_told():
    """Half the scores in one country: its selection rate differs, by how much is said, and the others differ from it."""
    rng = np.random.default_rng(1)
    n = 2_000
    country = np.where(np.arange(n) % 2 == 0, "AT", "DE")
    score = rng.random(n) * np.where(country == "AT", 0.5, 1.0)
    found = {each.key.value: each for each in report(make_outcomes(n, score=score, country=country.tolist())).groups}
    assert "selection_rate" in found["AT"].differs
    assert found["AT"].gaps["selection_rate"].value == pytest.approx(-0.4, abs=0.05)
    assert found["AT"].gaps["selection_rate"].value == pytest.approx(-found["DE"].gaps["selection_rate"].value)
    assert found["AT"].ratio < 0.5
    assert found["DE"].ratio == 1.0


def test_a_group_of_a_few_rows_is_no_finding():
    """Three rows, none selected or all: compared with nothing, nobody's highest, and named as too small."""
    for few_score in (0.0, 1.0):
        country = ["AT"] * 100 + ["DE"] * 100 + ["LI"] * 3
        score = [0.9] * 50 + [0.1] * 50 + [0.9] * 40 + [0.1] * 60 + [few_score] * 3
        found = report(make_outcomes(203, score=score, label=[1] * 203, country=country))
        groups = {each.key.value: each for each in found.groups}
        assert (groups["LI"].ratio, groups["LI"].differs, groups["LI"].is_small) == (None, (), True)
        assert "3 predictions: fewer than 30" in groups["LI"].gaps["selection_rate"].reason
        assert groups["LI"].rates["selection_rate"].n == 3
        assert [groups[name].ratio for name in ("AT", "DE")] == pytest.approx([1.0, 0.8])
        (note,) = [note for note in found.notes if "fewer than" in note]
        assert "country = LI (3 of version 1)" in note
        assert "AT" not in note
        assert found.to_json()["min_decisions"] == MIN_DECISIONS


@pytest.mark.parametrize(("n_few", "is_compared"), [(MIN_DECISIONS - 1, False), (MIN_DECISIONS, True)])
def test_the_smallest_group_that_is_compared(n_few, is_compared):
    """A group is compared from MIN_DECISIONS on; neither it nor the others may be smaller than that."""
    country = ["AT"] * 200 + ["DE"] * n_few
    score = [0.9] * 150 + [0.1] * 50 + [0.1] * n_few
    groups = {each.key.value: each for each in report(make_outcomes(len(score), score=score, country=country)).groups}
    assert ("selection_rate" in groups["DE"].differs) is is_compared
    assert ("selection_rate" in groups["AT"].differs) is is_compared  # its others are DE
    reason = "" if is_compared else "29 predictions of others: fewer than 30 are not compared"
    assert groups["AT"].gaps["selection_rate"].reason == reason
    assert groups["DE"].ratio == (0.0 if is_compared else None)


def test_an_error_rate_of_a_few_labels_is_not_compared():
    """A group with decisions enough and three positive labels has a gap of selection rates, none of true positives."""
    country = ["AT"] * 100 + ["DE"] * 100
    label = [1.0] * 50 + [0.0] * 50 + [1.0] * 3 + [0.0] * 97
    score = [0.9] * 50 + [0.1] * 50 + [0.1] * 100
    (_, group) = report(make_outcomes(200, score=score, label=label, country=country)).groups
    assert group.differs == ("selection_rate",)
    assert "3 positive labels: fewer than 30" in group.gaps["true_positive_rate"].reason


def test_chance_is_seldom_called_a_difference():
    """Five equal groups, 200 times: at most about one report in twenty has any group whose selection rate differs."""
    rng = np.random.default_rng(2)
    alarms = 0
    for _ in range(200):
        n = 600
        groups = rng.integers(0, 5, n)
        sides = [(np.bincount(groups, rng.random(n) < 0.3, 5), np.bincount(groups, minlength=5))]
        ((hits, sizes),) = sides
        alarms += any(
            not difference(
                proportion(int(hits[k]), int(sizes[k]), confidence=0.99),
                proportion(int(hits.sum() - hits[k]), int(n - sizes[k]), confidence=0.99),
            ).covers(0)
            for k in range(5)
        )
    assert alarms <= 20


def test_newcombes_interval_is_his():
    """Newcombe 1998, table II, method 10: 56/70 - 48/80 and the extreme 10/10 - 0/20."""
    found = difference(proportion(56, 70), proportion(48, 80))
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)
    found = difference(proportion(10, 10), proportion(0, 20))
    assert (found.value, found.low, found.high) == pytest.approx((1.0, 0.6791, 1.0), abs=1e-4)


def test_what_is_left_out_is_left_out():
    """Degraded answers and bad scores are no decisions; labels count as performance has them: in time, of old enough rows."""
    country = ["AT"] * 8
    connection = make_outcomes(
        8,
        score=[0.9, 0.9, 0.9, None, 0.9, 0.1, 0.9, 0.9],
        label=[1, 1, 0, 1, 7, 1, None, 1],
        degraded=["default", None, None, None, None, None, None, None],
        time=[START_US] * 7 + [NOW_US - HOUR_US],
        delay_us=[SECOND_US, 10 * HOUR_US, SECOND_US, SECOND_US, SECOND_US, SECOND_US, None, SECOND_US],
        country=country,
    )
    (group,) = report(connection, cohort=Cohort(maturity_us=2 * HOUR_US)).groups
    assert vars(group.tally) == {
        "n_scored": 6, "n_selected": 5, "n_positive": 1, "n_negative": 1, "n_true": 0, "n_false": 1,
    }  # fmt: skip
    assert group.gaps["selection_rate"].value is None
    assert "6 predictions: fewer than 30" in group.gaps["selection_rate"].reason
    assert group.differs == ()


def test_arms_and_rare_values_are_groups():
    """Versions and arms apart; missing values are a group of their own, rare ones one together."""
    n = 400
    rng = np.random.default_rng(3)
    values = [None, *(f"v{i}" for i in range(30))]
    country = [values[min(i % 40, 30)] for i in range(n)]
    connection = make_outcomes(n, country=country, arm=where(rng.random(n) < 0.3, "challenger", "champion"), version=2)
    found = report(connection)
    assert {each.key.arm for each in found.groups} == {"champion", "challenger"}
    names = [each.key.value for each in found.of(2)]
    assert MISSING_VALUE in names
    assert names[-1] == OTHER
    assert "Rare values of a segment are one group." in found.notes
    assert found.of(1) == ()


def test_nothing_to_compare_is_said():
    """Another task, no segments, no labels, no predictions: a sentence each. A segment that is no SQL is refused."""
    connection = make_outcomes(10, label=None, country="AT")
    assert "makes no yes-or-no decisions" in report(connection, task=Task.REGRESSION).notes[0]
    assert "[models.late.value.segments]" in report(connection, ValueSettings()).notes[0]
    assert "no error rates yet" in report(connection).notes[0]
    assert report(connection).groups[0].rates["true_positive_rate"].reason == "no positive labels"
    assert report(make_outcomes(10, model="other", country="AT")).groups == ()
    with pytest.raises(DefinitionError, match=r"segments\.land"):
        report(connection, ValueSettings(segments=(("land", "no_such_column"),)))
