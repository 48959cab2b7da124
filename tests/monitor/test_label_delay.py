"""Delays of labels, estimated without taking the absence of an early end for the end."""

from __future__ import annotations

import duckdb
import numpy as np
import pytest

from tiercel.monitor.label_delay import AGE_CLASS_SQL, N_CLASSES, DelayCurve, age_class, class_end_us


def curve_of(delays_us, ages_us):
    """From each prediction's delay (inf: never) and age."""
    labelled, waiting = {}, {}
    for delay, age in zip(delays_us, ages_us, strict=True):
        counts, place = (labelled, age_class(delay)) if delay <= age else (waiting, age_class(age))
        counts[place] = counts.get(place, 0) + 1
    return DelayCurve.of(labelled, waiting, int(max(ages_us, default=0)))


def test_classes_are_the_databases():
    """DuckDB puts every age into the class that Python does, and no class begins before the one below ends."""
    ages = [-5, 0, 999, 1000, 1001, 10**6, 123_456_789, 10**12, 2**62]
    found = duckdb.execute(
        f"SELECT {AGE_CLASS_SQL.format(age='a')} FROM (SELECT unnest(?::BIGINT[]) AS a)", [ages]
    ).fetchall()
    assert [row[0] for row in found] == [age_class(age) for age in ages]
    for age in ages[:-1]:
        assert age <= class_end_us(age_class(age))
    assert age_class(2**62) == N_CLASSES - 1


def test_fresh_predictions_do_not_shorten_the_delay():
    """With half of all predictions too young to be labelled, quantiles and the final share are those of old ones."""
    rng = np.random.default_rng(0)
    n = 20_000
    delays = rng.exponential(3600e6, n)
    delays[rng.random(n) < 0.3] = np.inf
    ages = rng.uniform(0, 12 * 3600e6, n)
    curve = curve_of(delays, ages)
    arrived = delays[delays <= ages]
    assert curve.final_share == pytest.approx(0.7, abs=0.02)
    assert curve.quantile_us(0.95) == pytest.approx(-np.log(0.05) * 3600e6, rel=0.12)
    assert curve.share_at(int(3600e6)) == pytest.approx(0.7 * (1 - np.exp(-1)), abs=0.03)
    assert np.quantile(arrived, 0.95) < 0.95 * -np.log(0.05) * 3600e6  # what a plain quantile would have said
    assert curve.is_level


def test_a_delay_longer_than_any_age_is_said_to_be_unknown():
    """While labels still come at the age of the oldest prediction the curve is not level."""
    rng = np.random.default_rng(1)
    curve = curve_of(rng.uniform(0, 100e6, 5000), rng.uniform(0, 50e6, 5000))
    assert not curve.is_level


def test_without_labels_there_is_no_delay():
    """Nothing labelled, or nothing at all, has no quantile."""
    for curve in (curve_of([np.inf] * 5, [10**9] * 5), curve_of([], [])):
        assert curve.quantile_us(0.95) is None
        assert curve.final_share == 0
        assert curve.share_at(10**12) == 0
        assert not curve.is_level
    assert curve.to_json()["p95_s"] is None


def test_labels_at_once_are_mature_at_once():
    """Delays of 0 are in the first class."""
    curve = curve_of([0] * 50, [10**9] * 50)
    assert curve.quantile_us(0.95) == class_end_us(0) == 1000
    assert curve.final_share == 1
