"""Rows to look at versions by: what was served, else what was trained on; and versions of other features."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from tests.support.explained import explained_project, files_of, population

from tiercel import models
from tiercel.errors import OutcomesError
from tiercel.explain.row_explainer import open_row_explainer
from tiercel.insight.churns import find_churn
from tiercel.insight.rows import Rows, find_rows, matching
from tiercel.insight.versions import open_version
from tiercel.models.explaining import make_explainer
from tiercel.models.golden import Golden
from tiercel.models.preparing import GOLDEN_FILE
from tiercel.monitor.predictions import PredictionTable
from tiercel.project import Project
from tiercel.serving.version_explainer import make_explanations
from tiercel.settings import ExplainSettings, MonitorSettings

HOUR_US = 3_600_000_000


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(settings, champion, challenger) of a project whose champion was asked 300 times."""
    directory = explained_project(tmp_path_factory.mktemp("rows") / "project")
    with Project(directory) as project:
        PredictionTable(project.settings.state_dir, project.settings.monitor).convert()
        opened = [open_version(project.settings, project.registry, project.registry.get("late", n)) for n in (1, 2)]
        return project.settings, *opened


def span():
    now_us = time.time_ns() // 1000
    return {"begin_us": now_us - HOUR_US, "end_us": now_us + HOUR_US}


def test_served_rows_come_first_and_are_as_they_were(world):
    """Float32 rows as the model was given them, missing values too; a bound is kept, the same seed draws the same."""
    settings, champion, _ = world
    found = find_rows(settings, champion, most=1_000, **span())
    assert (found.source, found.values.shape, found.values.dtype, found.notes) == (
        "predictions",
        (300, 3),
        np.float32,
        (),
    )
    assert np.isnan(found.values[:, 2]).any()
    few = find_rows(settings, champion, most=150, **span())
    assert (len(few.values), few.n_available) == (150, 300)
    np.testing.assert_array_equal(few.values, find_rows(settings, champion, most=150, **span()).values)


def test_few_or_masked_rows_give_way_to_those_of_the_training_set(world):
    """A stretch without traffic, and a table that hides a feature: training rows, with the reason."""
    settings, champion, _ = world
    quiet = find_rows(settings, champion, most=100, begin_us=1, end_us=2)
    assert (quiet.source, len(quiet.values), quiet.n_available) == ("training", 100, 3_000)
    assert "0 rows were served" in quiet.notes[0]
    with pytest.raises(OutcomesError, match="registered without a training set"):
        find_rows(settings, replace(champion, training=None), most=100, begin_us=1, end_us=2)


def test_columns_are_put_in_the_others_order():
    """By name; a feature that is not there leaves nothing to compare."""
    rows = Rows(np.array([[1, 2, 3]], np.float32), "training", 0, 0, 1)
    assert matching(rows, ("a", "b", "c"), ("c", "a")).tolist() == [[3, 1]]
    assert matching(rows, ("a", "b", "c"), ("a", "d")) is None


def test_reasons_of_other_features_cannot_be_compared(world):
    """A challenger that takes a feature which the champion's rows lack: the feature is named."""
    settings, champion, challenger = world
    rows = challenger.rows
    other = replace(challenger, rows=replace(rows, signature=replace(rows.signature, features=("a", "b", "d"))))
    with pytest.raises(OutcomesError, match="has no d: their reasons cannot be compared"):
        find_churn(settings, champion, other, now_us=time.time_ns() // 1000)


def test_slow_explainers_are_given_fewer_rows(world):
    """By what a row takes as measured, between a least number and the bound."""
    _, champion, _ = world

    class Slow:
        def measure(self):
            pass

        def predicted_us(self, n_rows):
            return 1_000.0 * n_rows

    rows = replace(champion.rows, explainer=Slow())
    assert rows.most_rows(500_000, 2_000) == 500
    assert rows.most_rows(1, 2_000) == 100
    assert rows.most_rows(1, 30) == 30
    assert rows.most_rows(1e9, 2_000) == 2_000


def test_masks_hide_what_rows_would_tell(tmp_path):
    """With a feature dropped from the table nothing of it is read: rows are those of training."""
    directory = explained_project(tmp_path / "project", challenger=False)
    with Project(directory) as project:
        masked = replace(project.settings, monitor=MonitorSettings(drop_columns=("b",)))
        PredictionTable(masked.state_dir, masked.monitor).convert()
        version = open_version(masked, project.registry, project.registry.get("late", 1))
        found = find_rows(masked, version, most=100, **span())
        quiet = find_rows(masked, version, most=100, begin_us=1, end_us=2)
    assert "0 rows were served" in quiet.notes[0]  # of what nobody asked nothing is masked
    assert found.source == "training"
    assert "b masked in the prediction table" in found.notes[0]


def test_a_version_without_anybody_to_compare_with_is_explained_as_a_server_does():
    """No reference set: a forest that knows what came to its nodes is explained by path, in reports as in replies."""
    files, _, model = files_of(with_training=False, n_trees=3)
    rows = population(64, 1)[0]  # as many as registering makes up, which are nobody's
    files[GOLDEN_FILE] = Golden(rows, model.predict_proba(rows)[:, 1:]).to_bytes()
    loaded = models.load(files, verify=False)
    served = make_explanations(loaded, files, label="late:1")
    found = open_row_explainer(loaded, files, ExplainSettings(), make_explainer, golden_rows=rows, owner="late:1")
    assert (found.reference, found.explainer.kind, served.explainer.kind) == (None, "path_dependent", "path_dependent")
    assert np.isfinite(found.explain(rows).values).all()
