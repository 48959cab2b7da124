"""Figures of several classes are scikit-learn's, by the classes of each version, and say what they are without."""

from __future__ import annotations

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from sklearn import metrics
from tests.monitor.outcome_tables import DAY_US, START_US, make_outcomes, where

from tiercel.monitor.cohorts import Cohort, Outcomes
from tiercel.monitor.multiclass import MAX_CONFUSED, classes_of, confusion, multiclass_metrics
from tiercel.monitor.performance import performance_report
from tiercel.types import Task

LATER_US = START_US + 30 * DAY_US
NAMES = ("low", "middle", "high")


def sample(n, seed=0, n_classes=3):
    rng = np.random.default_rng(seed)
    scores = rng.dirichlet(np.ones(n_classes), n)
    labels = (scores.cumsum(axis=1) < rng.random(n)[:, None]).sum(axis=1).clip(0, n_classes - 1)
    return scores, labels.astype(float)


def with_versions(connection, classes):
    table = pa.table({"model": ["late"] * len(classes), "version": list(classes), "classes": list(classes.values())})
    connection.register("given_versions", table)
    connection.execute("CREATE TABLE versions AS SELECT * FROM given_versions")
    return connection


def report(connection, **options):
    return performance_report(connection, "late", Task.MULTICLASS, Cohort(), as_of_us=LATER_US, **options)


def test_figures_are_scikit_learns():
    """Macro AUC, log loss, accuracy and macro F1 of thousands of rows, with intervals around them."""
    scores, labels = sample(3000)
    found = multiclass_metrics(scores, labels)
    decided = scores.argmax(axis=1)
    assert found["macro_auc"].value == pytest.approx(
        metrics.roc_auc_score(labels, scores, multi_class="ovr"), rel=1e-12
    )
    assert found["log_loss"].value == pytest.approx(metrics.log_loss(labels, scores), rel=1e-12)
    assert found["accuracy"].value == pytest.approx(metrics.accuracy_score(labels, decided), rel=1e-12)
    assert found["macro_f1"].value == pytest.approx(metrics.f1_score(labels, decided, average="macro"), rel=1e-12)
    for name in ("macro_auc", "log_loss", "accuracy"):
        assert found[name].low < found[name].value < found[name].high
    assert confusion(scores, labels, NAMES).counts == tuple(
        map(tuple, metrics.confusion_matrix(labels, decided).tolist())
    )


def test_the_macro_aucs_interval_holds_what_it_says():
    """Of 200 samples at 95 %, the interval holds the large sample's figure in no fewer than 185."""
    truth = multiclass_metrics(*sample(200_000, 1))["macro_auc"].value
    inside = sum(multiclass_metrics(*sample(300, 10 + i))["macro_auc"].covers(truth) for i in range(200))
    assert inside >= 185


def test_what_is_not_defined_says_why():
    """No rows, one class, a class without labels, and scores that are no probabilities."""
    scores, labels = sample(200)
    assert multiclass_metrics(scores[:0], labels[:0])["macro_auc"].reason == "no labelled rows"
    assert multiclass_metrics(scores, np.zeros(200))["macro_auc"].reason == "labels of one class only"
    two = labels < 2
    partly = multiclass_metrics(scores[two], labels[two])["macro_auc"]
    assert (partly.value is not None, partly.reason) == (True, "without 1 classes that have no label")
    assert multiclass_metrics(3 * scores, labels)["log_loss"].reason == "scores outside of 0 to 1"
    assert confusion(np.ones((1, MAX_CONFUSED + 1)), np.zeros(1), ["x"] * (MAX_CONFUSED + 1)) is None


def test_each_version_is_judged_by_its_own_classes():
    """Versions with other classes, in another order than the columns, of one table; counts add up."""
    scores, labels = sample(400)
    old = np.arange(400) < 150
    connection = make_outcomes(
        400, score=None, label=labels, version=np.where(old, 1, 2),
        **{"score.high": where(~old, scores[:, 2]), "score.low": scores[:, 0], "score.middle": scores[:, 1],
           "score.LAST": where(old, scores[:, 2])},
    )  # fmt: skip
    with_versions(connection, {1: ["low", "middle", "LAST"], 2: list(NAMES)})
    found = report(connection)
    for version, rows in ((1, old), (2, ~old)):
        group = found.find(version)
        assert group.counts.n_used == rows.sum()
        assert group.metrics["log_loss"].value == pytest.approx(metrics.log_loss(labels[rows], scores[rows]), rel=1e-12)
        assert sum(map(sum, group.confusion.counts)) == rows.sum()
    assert found.find(1).confusion.classes == ("low", "middle", "LAST")
    assert found.to_json()["groups"][1]["confusion"]["classes"] == list(NAMES)


def test_rows_without_sound_scores_are_counted_apart():
    """A score that is not finite, or none at all, is a bad score of its row."""
    scores, labels = sample(100)
    scores[:10, 1] = np.nan
    columns = {f"score.{name}": scores[:, i] for i, name in enumerate(NAMES)}
    columns["score.low"] = where(np.arange(100) < 95, scores[:, 0])
    for name in ("score.middle", "score.high"):
        columns[name] = where(np.arange(100) < 95, columns[name])
    group = report(make_outcomes(100, score=None, label=labels, **columns)).find(1)
    assert (group.counts.n_bad_score, group.counts.n_used) == (15, 85)


def test_without_columns_of_classes_nothing_is_made_up():
    """A model said to be of several classes whose table has one score has counts, and figures say there is nothing."""
    found = report(make_outcomes(100, score=None, label=2.0))
    assert found.find(1).coverage.value == 1
    assert found.find(1).metrics["macro_auc"].reason == "no label or score that can be used"


def test_classes_that_are_told_apart_by_case_only_are_columns_by_number():
    """Columns named by number belong to classes by their place."""
    connection = make_outcomes(3, score=None, **{"score.0": 0.5, "score.1": 0.5})
    with_versions(connection, {1: ["a", "A"]})
    assert classes_of(Outcomes(connection, "late", Task.MULTICLASS, LATER_US), 1).names == ("a", "A")
    assert isinstance(connection, duckdb.DuckDBPyConnection)
