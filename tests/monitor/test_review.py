"""The whole review: one call, plain JSON, and no input that makes it fail or lose a prediction."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.monitor.outcome_tables import DAY_US, HOUR_US, START_US, make_outcomes, where

from tiercel.monitor.concept_state import ConceptStore
from tiercel.monitor.review import review
from tiercel.settings import ValueSettings
from tiercel.types import Task

MATRIX = {"true_positive": 20.0, "false_positive": -5.0, "true_negative": 1.0, "false_negative": -100.0}
SEGMENTS = (("kind", "kind"), ("large", "amount > 1"))
METRICS = (("mean_amount", "avg(amount)"), ("ratio", "sum(label) / sum(amount)"))


def look(connection, task=Task.BINARY, *, days=30, **options):
    given = {"span_us": 40 * DAY_US, "window_us": 5 * DAY_US, **options}
    value = given.pop("settings", ValueSettings(**MATRIX, segments=SEGMENTS, metrics=METRICS))
    return review(connection, "late", task, value, as_of_us=START_US + days * DAY_US, **given)


def check(found):
    """What holds of every review."""
    json.dumps(found.to_json(), allow_nan=False)
    whole = {(g.key.version, g.key.arm): g.counts for g in found.performance.groups}
    for groups in (found.performance.windows, found.performance.segments):
        totals = {}
        for group in groups:
            key = (group.key.version, group.key.arm, group.key.segment)
            totals[key] = totals.get(key, 0) + group.counts.n_predictions
        for (version, arm, _), n in totals.items():
            assert n == whole[version, arm].n_predictions
    for group in [*found.performance.groups, *found.performance.windows, *found.performance.segments]:
        counts = group.counts
        assert counts.n_predictions == counts.n_degraded + counts.n_fresh + counts.n_cohort
        assert counts.n_labelled == counts.n_used + counts.n_bad_label + counts.n_bad_score
        for name, each in group.metrics.items():
            assert each.value is not None or each.reason, name


NUMBERS = st.one_of(
    st.none(), st.sampled_from([0.0, 1.0, 0.5, math.nan, math.inf, -math.inf, -1.0, 1e308, 5e-324]), st.floats(0, 1)
)
ROW = st.fixed_dictionaries(
    {
        "score": NUMBERS, "label": NUMBERS, "value": NUMBERS,
        "version": st.sampled_from([1, 2, None]),
        "arm": st.sampled_from(["champion", "challenger", "", None]),
        "is_shadow": st.sampled_from([True, False, None]),
        "degraded": st.sampled_from([None, "default", ""]),
        "time": st.sampled_from([0, HOUR_US, 3 * DAY_US, 29 * DAY_US, 31 * DAY_US, None]),
        "delay_us": st.sampled_from([0, -DAY_US, HOUR_US, 400 * DAY_US, None]),
        "kind": st.sampled_from(["a", "it's", "", None]),
        "amount": st.sampled_from([0.0, 2.0, math.nan, None]),
    }
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(
    st.lists(ROW, max_size=30),
    st.sampled_from(list(Task)),
    st.sampled_from(["matrix", "column", "none"]),
    st.sampled_from([None, 0, HOUR_US]),
    st.booleans(),
)
def test_no_rows_make_it_fail(rows, task, money, maturity_us, all_labels):
    """Nulls, NaN, infinities, labels years late or early, unknown arms: stated, counted, never an exception."""
    columns = {name: [row[name] for row in rows] for name in ROW_NAMES}
    columns["time"] = [None if t is None else START_US + t for t in columns["time"]]
    delays = columns.pop("delay_us")
    columns["label_time"] = [
        None if t is None or d is None else t + d for t, d in zip(columns["time"], delays, strict=True)
    ]
    value = ValueSettings(
        **(MATRIX if money == "matrix" and task is Task.BINARY else {}),
        column="value" if money == "column" else None,
        segments=SEGMENTS,
        metrics=METRICS,
    )
    connection = make_outcomes(len(rows), **columns)
    connection.execute(
        "CREATE OR REPLACE TABLE outcomes AS SELECT * REPLACE (kind::VARCHAR AS kind, amount::DOUBLE AS amount) FROM outcomes"
    )
    found = look(connection, task, settings=value, maturity_us=maturity_us, all_labels=all_labels, store=None)
    check(found)
    n = sum(row["version"] is not None and row["time"] is not None and row["time"] <= 30 * DAY_US for row in rows)
    assert sum(g.counts.n_predictions for g in found.performance.groups) == n


ROW_NAMES = ("score", "label", "value", "version", "arm", "is_shadow", "degraded", "time", "delay_us", "kind", "amount")


def busy(n=6000):
    """Thirty days of three arms, some of it degraded, labels within an hour."""
    rng = np.random.default_rng(0)
    place = np.arange(n)
    scores = rng.beta(2, 3, n)
    return make_outcomes(
        n, score=scores, label=(rng.random(n) < scores).astype(float), time=START_US + place * (30 * DAY_US // n),
        delay_us=rng.integers(0, HOUR_US, n), version=np.where(place % 3 == 0, 2, 1),
        arm=where(place % 3 == 0, "challenger", "champion"), is_shadow=(place % 6 == 0).tolist(),
        degraded=where(place % 50 == 1, "fallback"), kind=where(place % 2 == 0, "a", "b"), amount=rng.exponential(2, n),
    )  # fmt: skip


def test_one_call_tells_everything(tmp_path):
    """Performance, money, estimates and streams of the same cohort come together, with all notes."""
    store = ConceptStore(tmp_path)
    found = look(busy(), store=store)
    check(found)
    assert [(g.key.version, g.key.arm) for g in found.performance.groups] == [
        (1, "champion"), (2, "challenger"), (2, "shadow"),
    ]  # fmt: skip
    assert [g.key.arm for g in found.value.groups] == ["champion", "challenger"]
    assert {audit.metric for audit in found.estimates.audits} >= {"auc", "value_per_prediction"}
    assert [status.state.arm for status in found.concept] == ["champion", "challenger", "shadow"]
    assert any("degraded" in note for note in found.notes)
    assert list(tmp_path.iterdir()) == []  # only who is told to keeps anything


def test_the_keeper_keeps(tmp_path):
    """With `keep` the streams are stored, and the next review has nothing new to add."""
    store, connection = ConceptStore(tmp_path), busy()
    first = look(connection, store=store, keep=True)
    again = look(connection, store=store, keep=True)
    assert sum(status.n_new for status in first.concept) > 5000
    assert [status.n_new for status in again.concept] == [0, 0, 0]


def test_parts_can_be_left_out():
    """Without windows there are no estimates, without settings no money, without a store no streams."""
    found = look(busy(), settings=ValueSettings(), window_us=None)
    assert (found.value, found.estimates, found.concept) == (None, None, [])
    assert found.to_json()["estimates"] is None


def test_what_is_behind_and_missed_is_noted(tmp_path):
    """A stream that has more to look at says so."""
    found = look(busy(), store=ConceptStore(tmp_path), most_rows=100)
    assert any("not all predictions have been looked at" in note for note in found.notes)


@pytest.mark.parametrize("maturity_s", [60.0, 7200.0])
def test_the_setting_decides_the_maturity(maturity_s):
    """label_maturity_s of the settings is the age at which predictions are judged, unless the caller says another."""
    value = ValueSettings(label_maturity_s=maturity_s)
    assert look(busy(600), settings=value).performance.cohort.maturity_us == maturity_s * 1e6
    assert look(busy(600), settings=value, maturity_us=HOUR_US).performance.cohort.maturity_us == HOUR_US
    assert look(busy(600), settings=value, all_labels=True).performance.cohort.maturity_us is None
