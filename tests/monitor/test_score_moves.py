"""A population that moved, beside what it did to the score: in the finding, its JSON, and the watch's alert."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from tests.monitor.recorders import FEATURES, SIGNATURE, make_recorder
from tests.monitor.test_watch import REFERENCE, World

from tiercel.errors import ModelError
from tiercel.monitor.alert import AlertClass, Finding, TopFeature
from tiercel.monitor.predictions import PredictionTable
from tiercel.monitor.score_moves import Explained, with_moves
from tiercel.monitor.training_rows import TrainingRows
from tiercel.monitor.watch import Watched
from tiercel.settings import MonitorSettings
from tiercel.types import Attributions, Task

NOW_US = time.time_ns() // 1000
SETTINGS = MonitorSettings()


def explain(rows):
    values = np.nan_to_num(rows).astype(np.float64) * [2.0, -1.0, 0.0]
    return Attributions(values, 0.0, "exact", "linear", "margin")


def training(n=400):
    return TrainingRows.draw(np.random.default_rng(0).normal(size=(n, 3)).astype(np.float32), FEATURES)


def explained(**changes):
    return replace(Explained(SIGNATURE, explain, training()), **changes)


def finding(alert_class=AlertClass.POPULATION):
    return Finding(
        "population:late:1", alert_class, "late", 1, "inputs", NOW_US - 60_000_000, NOW_US, 100, 0.3, "effect", 0.1,
        (TopFeature("c", 0.3, "moved"),), "c is distributed otherwise.", "tiercel drift late:1",
    )  # fmt: skip


@pytest.fixture
def state_dir(tmp_path):
    """100 requests of the last minute: `a` is one higher than in training, `c` ten."""
    recorder = make_recorder(tmp_path)
    plan = recorder.for_plan("late", 1, SIGNATURE)
    rows = np.random.default_rng(1).normal([1, 0, 10], 1, (100, 3)).astype(np.float32)
    for i, row in enumerate(rows):
        plan.add(row[None], np.full((1, 1), 0.5), number=i, received_us=NOW_US - 30_000_000 + i)
    recorder.close()
    PredictionTable(tmp_path, SETTINGS).convert(NOW_US)
    return tmp_path


def test_a_finding_says_what_moved_the_score(state_dir):
    """What drifted most moved nothing and is no move; what did is told with its part, and the message has a sentence more."""
    found = with_moves(finding(), explained, "training", state_dir, SETTINGS)
    assert [each.name for each in found.moves] == ["a"]
    assert found.moves[0].effect == pytest.approx(2, abs=0.7)
    assert "of the margin on average" in found.moves[0].reason
    assert found.message.startswith("c is distributed otherwise. The mean margin rose: +")
    assert found.features == finding().features  # what clears the alert is unchanged
    assert Finding.from_json(found.to_json()) == found


def test_alerts_from_before_there_were_moves_are_read():
    """A stored finding without the key has none."""
    data = finding().to_json()
    del data["moves"]
    assert Finding.from_json(data) == finding()


def test_only_populations_are_explained(state_dir):
    """Another class, nobody to explain it, or nothing to compare with: the finding as it was, and nothing is opened for it."""
    other = finding(AlertClass.PIPELINE)
    assert with_moves(other, lambda: pytest.fail("opened"), "training", state_dir, SETTINGS) == other
    assert with_moves(finding(), lambda: None, "training", state_dir, SETTINGS) == finding()
    assert with_moves(finding(), lambda: explained(training=None), "training", state_dir, SETTINGS) == finding()
    assert with_moves(finding(), explained, "previous", state_dir, SETTINGS) == finding()


def test_few_rows_are_explained_where_it_takes_long(state_dir):
    """The bound of an explainer is kept to, on both sides."""
    asked = []

    def slow(rows):
        asked.append(len(rows))
        return explain(rows)

    with_moves(
        finding(), lambda: explained(explain=slow, most_rows=30, training=training(25)), "training", state_dir, SETTINGS
    )
    assert asked == [30, 25]


def test_an_alert_survives_a_model_that_cannot_be_explained(tmp_path):
    """The watch tells of the population, with the failure in its status; when it works again, with the moves."""
    world = World(tmp_path, window_s=600.0)
    how = {"explained": lambda: (_ for _ in ()).throw(ModelError("no explainer"))}
    world.versions.find = lambda model, version: Watched(model, version, Task.BINARY, REFERENCE, **how)

    def shift(rows):
        rows[:, 0] += 5

    for minute in range(120):
        world.turn(60, change=shift if minute > 90 else None)
    (alert,) = [each for each in world.alerts if each.finding.alert_class is AlertClass.POPULATION]
    assert alert.finding.moves == ()
    assert "no explainer" in world.watch.state.steps["attribution"].last_error
