"""Performance over `outcomes`: who is judged, by which labels, and that nothing is lost or bent on the way."""

from __future__ import annotations

import json
import math

import duckdb
import numpy as np
import pytest
from sklearn import metrics
from tests.monitor.outcome_tables import DAY_US, HOUR_US, SECOND_US, START_US, make_outcomes, where

from tiercel.errors import DefinitionError, OutcomesError
from tiercel.monitor import cohorts
from tiercel.monitor.cohorts import Cohort, GroupKey, Outcomes
from tiercel.monitor.frozen_outcomes import frozen_outcomes
from tiercel.monitor.performance import choose_cohort, performance_report
from tiercel.settings import ValueSettings
from tiercel.types import Task

LATER_US = START_US + 365 * DAY_US


def report(connection, cohort=None, *, task=Task.BINARY, as_of_us=LATER_US, **options):
    return performance_report(connection, "late", task, cohort or Cohort(), as_of_us=as_of_us, **options)


def check_counts(counts):
    """The promise of `Counts`."""
    assert counts.n_predictions == counts.n_degraded + counts.n_fresh + counts.n_cohort
    assert counts.n_cohort >= counts.n_labelled + counts.n_late
    assert counts.n_labelled == counts.n_used + counts.n_bad_label + counts.n_bad_score


def test_figures_are_scikit_learns():
    """The figures of a version are scikit-learn's of its rows in the table."""
    rng = np.random.default_rng(0)
    scores = rng.random(2000)
    labels = (rng.random(2000) < scores**2).astype(float)
    found = report(make_outcomes(2000, score=scores, label=labels)).find(1)
    assert found.metrics["auc"].value == pytest.approx(metrics.roc_auc_score(labels, scores), abs=1e-12)
    assert found.metrics["log_loss"].value == pytest.approx(metrics.log_loss(labels, scores))
    assert found.metrics["f1"].value == pytest.approx(metrics.f1_score(labels, scores >= 0.5))
    assert found.counts.n_used == 2000
    assert found.coverage.value == 1
    assert len(found.calibration) == 10


def test_regression_is_measured_too():
    """A regression model's errors are scikit-learn's."""
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(0, 30, 500), rng.normal(0, 30, 500)
    found = report(make_outcomes(500, score=scores, label=labels), task=Task.REGRESSION).find(1)
    assert found.metrics["rmse"].value == pytest.approx(metrics.root_mean_squared_error(labels, scores))
    assert found.calibration == []


def slow_positives(n=40_000, seed=0):
    """Ten days of equal traffic in which positives get their label after two days, negatives after an hour."""
    rng = np.random.default_rng(seed)
    scores = rng.beta(2, 3, n)
    labels = (rng.random(n) < scores).astype(float)
    delays = np.where(labels > 0, rng.exponential(1.2 * DAY_US, n), rng.exponential(HOUR_US, n)).astype(np.int64)
    return make_outcomes(
        n, score=scores, label=labels, delay_us=delays, time=START_US + np.arange(n) * 10 * DAY_US // n
    )


def test_fresh_predictions_do_not_bend_a_figure():
    """Where positives are labelled later, every judged window has the same rate, near the true one; what has arrived has not."""
    connection, now = slow_positives(), START_US + 10 * DAY_US
    cohort, delay = choose_cohort(connection, "late", Task.BINARY, as_of_us=now, window_us=DAY_US)
    # Only labels that came by the maturity count, in all windows alike: 95 of 100, and those that miss are positive.
    assert 2 * DAY_US < cohort.maturity_us < 5 * DAY_US
    assert delay.final_share == pytest.approx(1, abs=0.02)
    mine = report(connection, cohort, as_of_us=now, delay=delay)
    judged = [w for w in mine.windows if w.counts.n_used > 1000]
    assert len(judged) >= 5
    for window in judged:
        assert window.metrics["base_rate"].value == pytest.approx(0.35 / 0.95, abs=0.025)
        assert window.coverage.value == pytest.approx(0.95, abs=0.01)
    plain = report(connection, Cohort(window_us=DAY_US), as_of_us=now)
    assert plain.windows[-1].metrics["base_rate"].value < 0.25
    assert mine.windows[-1].counts.n_cohort == 0
    assert mine.windows[-1].metrics["auc"].reason == "no prediction is old enough"


def test_every_window_is_judged_at_the_same_age():
    """A label that came later than the maturity is left out of an old window as it must be of a new one, and counted."""
    n = 1000
    late = np.arange(n) % 4 == 0
    connection = make_outcomes(n, delay_us=np.where(late, 3 * HOUR_US, HOUR_US // 2))
    found = report(connection, Cohort(maturity_us=HOUR_US)).find(1)
    assert (found.counts.n_late, found.counts.n_used) == (250, 750)
    assert found.coverage.value == 0.75
    check_counts(found.counts)
    assert any("250 labels came later" in note for note in report(connection, Cohort(maturity_us=HOUR_US)).notes)


def test_the_past_can_be_asked():
    """As of a moment, later predictions and labels do not exist: the same question gives the same answer for ever."""
    connection = make_outcomes(1000, delay_us=500 * SECOND_US)
    now = START_US + 600 * SECOND_US
    found = report(connection, as_of_us=now).find(1)
    assert (found.counts.n_predictions, found.counts.n_labelled) == (601, 101)
    before = report(connection, Cohort(begin_us=START_US + 10 * SECOND_US, end_us=START_US + 20 * SECOND_US)).find(1)
    assert before.counts.n_predictions == 10


def test_versions_arms_and_shadows_are_told_apart():
    """Each version and arm has figures of its own, a shadow's are not the champion's, and counts add up."""
    n = 1200
    place = np.arange(n) % 4
    connection = make_outcomes(
        n,
        version=np.where(place == 0, 1, np.where(place == 1, 1, 2)),
        arm=where(place == 2, "challenger", "champion"),
        is_shadow=(place == 3).tolist(),
    )
    found = report(connection)
    assert [(g.key.version, g.key.arm, g.counts.n_used) for g in found.groups] == [
        (1, "champion", 600), (2, "challenger", 300), (2, "shadow", 300),
    ]  # fmt: skip
    assert [g.key.version for g in report(connection, version=2).groups] == [2, 2]
    assert found.find(2).__class__ is type(None)


def test_degraded_answers_are_left_out_and_said():
    """What a fallback or default answered is not the model's; it is counted, and taken in when that is asked for."""
    degraded = where(np.arange(1000) % 10 == 0, "default")
    connection = make_outcomes(1000, degraded=degraded)
    found = report(connection)
    assert (found.find(1).counts.n_degraded, found.find(1).counts.n_used) == (100, 900)
    assert any("100 predictions were not the model's own" in note for note in found.notes)
    assert report(connection, with_degraded=True).find(1).counts.n_used == 1000


def test_segments_have_figures_of_their_own():
    """An SQL expression divides the rows; its values' rows add up to all, and each has its own area."""
    n = 4000
    rng = np.random.default_rng(3)
    distance = rng.uniform(0, 2000, n)
    scores = rng.random(n)
    labels = np.where(distance > 1000, rng.random(n) < scores, rng.random(n) < 0.5).astype(float)
    connection = make_outcomes(
        n, score=scores, label=labels, distance=distance, carrier=where(np.arange(n) % 40 == 0, None, "UA")
    )
    settings = ValueSettings(
        segments=(("haul", "CASE WHEN distance > 1000 THEN 'long' ELSE 'short' END"), ("by", "carrier"))
    )
    found = {(g.key.segment, g.key.value): g for g in report(connection, settings=settings).segments}
    assert set(found) == {("haul", "long"), ("haul", "short"), ("by", "UA"), ("by", "(missing)")}
    assert found["haul", "long"].counts.n_used + found["haul", "short"].counts.n_used == n
    assert found["by", "(missing)"].counts.n_used == 100
    assert found["haul", "long"].metrics["auc"].low > 0.7
    assert found["haul", "short"].metrics["auc"].covers(0.5)
    mask = distance > 1000
    assert found["haul", "long"].metrics["auc"].value == pytest.approx(
        metrics.roc_auc_score(labels[mask], scores[mask])
    )


def test_a_segment_of_many_values_is_bounded():
    """Of a thousand values the most frequent are told apart, and the others are one group."""
    n = 3000
    tail = [f"N{i % 1000 if i % 3 else 7}" for i in range(n)]
    found = report(make_outcomes(n, tail=tail), settings=ValueSettings(segments=(("tail", "tail"),))).segments
    assert len(found) == cohorts.MAX_SEGMENT_VALUES + 1
    assert found[-1].key.value == "(other)"
    assert max(found, key=lambda g: g.counts.n_used if g.key.value != "(other)" else 0).key.value == "N7"
    assert sum(g.counts.n_used for g in found) == n


def test_windows_are_aligned_and_bounded():
    """Windows begin at whole multiples of their length, and more than a thousand are refused with what to do."""
    connection = make_outcomes(1000, time=START_US + 7 * SECOND_US + np.arange(1000) * 6 * SECOND_US)
    found = report(connection, Cohort(window_us=HOUR_US)).windows
    assert [w.key.begin_us for w in found] == [START_US, START_US + HOUR_US]
    with pytest.raises(OutcomesError, match="at most 1000 windows, got 5995"):
        report(connection, Cohort(window_us=SECOND_US))


BAD_LABELS = [math.nan, math.inf, 2.0, -1.0, 0.5]
BAD_SCORES = [math.nan, math.inf, -math.inf, None]


def test_bad_labels_and_scores_are_counted_and_left_out():
    """A label that is neither 0 nor 1 and a score that is no number change no figure, and are stated."""
    n = 1000
    rng = np.random.default_rng(5)
    scores = rng.random(n).tolist()
    labels = (rng.random(n) < 0.5).astype(float).tolist()
    good = np.ones(n, bool)
    for i, bad in enumerate(BAD_LABELS):
        labels[i], good[i] = bad, False
    for i, bad in enumerate(BAD_SCORES):
        scores[100 + i], good[100 + i] = bad, False
    found = report(make_outcomes(n, score=scores, label=labels))
    group = found.find(1)
    assert (group.counts.n_bad_label, group.counts.n_bad_score) == (len(BAD_LABELS), len(BAD_SCORES))
    check_counts(group.counts)
    kept_scores = np.array([s for s, g in zip(scores, good, strict=True) if g])
    kept_labels = np.array([y for y, g in zip(labels, good, strict=True) if g])
    assert group.metrics["auc"].value == pytest.approx(metrics.roc_auc_score(kept_labels, kept_scores))
    assert any("5 labels are neither 0 nor 1" in note for note in found.notes)
    assert any("4 labelled predictions have a score" in note for note in found.notes)
    json.dumps(found.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("columns", "reason", "note"),
    [
        pytest.param({"label": None, "label_time": None}, "no labels yet", "No labels have come", id="no labels"),
        pytest.param({"score": math.nan}, "no label or score that can be used", "score that is null", id="no scores"),
        pytest.param({"label": 7.0}, "no label or score that can be used", "neither 0 nor 1", id="no sound labels"),
    ],
)
def test_nothing_to_judge_is_a_reason(columns, reason, note):
    """Without labels or scores every figure says why it is missing, and nothing fails."""
    found = report(make_outcomes(200, **columns))
    assert {each.reason for each in found.find(1).metrics.values()} == {reason}
    assert any(note in text for text in found.notes)
    json.dumps(found.to_json(), allow_nan=False)


def test_no_predictions_are_said():
    """A model that answered nothing, or nothing in this time, has an empty report that says so."""
    found = report(make_outcomes(10), Cohort(begin_us=LATER_US - 1))
    assert found.groups == []
    assert found.notes == ["No predictions in this time. The newest before it is of 2026-01-01 00:00:09 UTC."]
    other = performance_report(make_outcomes(10), "other", Task.BINARY, Cohort(), as_of_us=LATER_US)
    assert (other.groups, other.notes) == ([], ["No predictions in this time."])


def test_labels_without_a_time_and_before_their_prediction_count():
    """A label whose time is unknown, or before the prediction's, is one that was there at once."""
    connection = make_outcomes(100, delay_us=where(np.arange(100) % 2 == 0, -HOUR_US))
    found = report(connection, Cohort(maturity_us=SECOND_US)).find(1)
    assert found.counts.n_used == 100


def test_custom_metrics_are_sql():
    """An aggregate gives a figure per group with an interval, and sees only labels that came in time."""
    n = 2000
    rng = np.random.default_rng(8)
    amount = rng.exponential(10, n)
    late = np.arange(n) % 2 == 0
    connection = make_outcomes(n, amount=amount, delay_us=np.where(late, DAY_US, 0), country=where(late, "DE", "FR"))
    settings = ValueSettings(
        metrics=(("spent", "avg(amount)"), ("labelled", "count(label)")), segments=(("country", "country"),)
    )
    found = report(connection, Cohort(maturity_us=HOUR_US, window_us=HOUR_US), settings=settings)
    spent = found.find(1).metrics["spent"]
    assert spent.value == pytest.approx(amount.mean())
    assert spent.covers(10)
    assert spent.half_width == pytest.approx(1.96 * amount.std() / math.sqrt(n), rel=0.4)
    assert found.find(1).metrics["labelled"].value == n / 2
    (german,) = [g for g in found.segments if g.key.value == "DE"]
    assert german.metrics["spent"].value == pytest.approx(amount[late].mean())
    assert german.metrics["labelled"].value == 0
    assert found.windows[0].metrics["spent"].value == pytest.approx(amount.mean())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (ValueSettings(metrics=(("m", "amount"),)), r"models\.late\.value\.metrics\.m: .*GROUP BY"),
        (ValueSettings(metrics=(("m", "max(arm)"),)), r"metrics\.m: .*gives a number"),
        (ValueSettings(metrics=(("m", "avg(nothing)"),)), r"metrics\.m: .*nothing"),
        (ValueSettings(segments=(("s", "nothing"),)), r"models\.late\.value\.segments\.s: .*nothing"),
        (ValueSettings(segments=(("s", "1 +"),)), r"segments\.s: .*syntax"),
    ],
)
def test_sql_that_is_none_is_refused_by_name(settings, message):
    """A mistake in a project's SQL is told with its setting and what DuckDB says of it."""
    with pytest.raises(DefinitionError, match=message):
        report(make_outcomes(10, amount=1.0), settings=settings)


def test_labels_that_fit_no_class_are_counted():
    """A label that came and is none of the model's (null, with a problem named) is a bad label, not one that is missing."""
    bad = np.arange(100) % 4 == 0
    connection = make_outcomes(100, label=where(bad, None, 1.0), label_problem=where(bad, "unknown_class"))
    counts = report(connection).find(1).counts
    assert (counts.n_labelled, counts.n_bad_label, counts.n_used) == (100, 25, 75)


@pytest.mark.parametrize(
    ("expressions", "needed"),
    [
        ([], set()),
        (["CASE WHEN distance > 10 THEN 'far' END"], {"distance"}),
        (['sum("Odd name") FILTER (label = 1)', "avg(o.distance)"], {"Odd name", "distance"}),
        (["count(COLUMNS('d.*'))"], None),
        (["1 +"], None),
    ],
)
def test_a_frozen_table_has_what_is_needed(expressions, needed):
    """Within, `outcomes` holds the model's rows of the time with the named columns only; afterwards it is as it was."""
    connection = make_outcomes(100, **{"distance": 1.0, "Odd name": 2.0, "other": 3.0})
    before = connection.execute("SELECT count(*) FROM outcomes").fetchall()
    end = START_US + 49 * SECOND_US
    with frozen_outcomes(connection, "late", as_of_us=end, begin_us=START_US + SECOND_US, expressions=expressions):
        names = {name for name, *_ in connection.execute("DESCRIBE outcomes").fetchall()}
        assert names & {"distance", "Odd name", "other"} == (
            {"distance", "Odd name", "other"} if needed is None else needed
        )
        connection.execute("DELETE FROM memory.main.outcomes WHERE row = 0")
        assert connection.execute("SELECT count(*) FROM outcomes").fetchall()[0][0] in range(49, 52)
        assert report(connection, as_of_us=end).find(1).counts.n_predictions == 49
    assert connection.execute("SELECT count(*) FROM outcomes").fetchall() == [(0,)] != before


def test_a_relation_that_is_none_is_refused():
    """No `outcomes`, or one without a column, is said before anything is computed."""
    with pytest.raises(OutcomesError, match="table or view 'outcomes'"):
        report(duckdb.connect())
    connection = make_outcomes(10)
    connection.execute("ALTER TABLE outcomes DROP COLUMN label_time")
    with pytest.raises(OutcomesError, match="missing: label_time"):
        report(connection)


def test_times_with_a_zone_mean_the_same():
    """A view whose times carry a zone gives the same report, whatever zone the session is in."""
    connection = make_outcomes(1000, delay_us=500 * SECOND_US)
    now = START_US + 800 * SECOND_US
    cohort = Cohort(begin_us=START_US + 100 * SECOND_US, window_us=HOUR_US)
    plain = report(connection, cohort, as_of_us=now).to_json()
    connection.execute("SET TimeZone = 'Asia/Tokyo'")
    connection.execute(
        "CREATE OR REPLACE TABLE outcomes AS SELECT * REPLACE (to_timestamp(epoch_us(time) / 1e6) AS time, "
        "to_timestamp(epoch_us(label_time) / 1e6) AS label_time) FROM outcomes"
    )
    assert report(connection, cohort, as_of_us=now).to_json() == plain


def test_beyond_a_bound_requests_are_sampled():
    """More rows than are held at once are thinned by whole requests, the figures stay close, and it is said."""
    connection = make_outcomes(20_000)
    outcomes = Outcomes(connection, "late", Task.BINARY, LATER_US)
    rows = outcomes.rows(Cohort(), n_used=20_000, most=5000)
    assert rows.one_in == 4
    assert len(rows.scores) == pytest.approx(5000, rel=0.1)
    assert len(rows.members[GroupKey(1, "champion")]) == len(rows.scores)
