"""What moved a mean score: parts that add up exactly, errors that hold, sentences that say it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from tests.monitor.samples import HOUR_US, clustered, sample

from tiercel.monitor.category_bins import CategoryBins
from tiercel.monitor.reference import category_edges
from tiercel.monitor.row_samples import empty_sample
from tiercel.monitor.score_shift import LEAST_REQUESTS, shift_of_samples
from tiercel.types import Attributions

WEIGHTS = np.array([0.5, -2.0, 0.0])
NAMES = ("a", "b", "c")


def explain(rows, weights=WEIGHTS, expected=0.25, error=None):
    """A linear margin of centred features: attributions are known in closed form; missing values are worth nothing."""
    assert rows.dtype == np.float32
    values = np.where(np.isnan(rows), 0.0, rows).astype(np.float64) * weights
    spread = None if error is None else np.full(values.shape, error)
    method = "exact" if error is None else "sampled"
    return Attributions(values, expected, method, "linear", "margin", standard_error=spread)


def shift(window, beside, explain=explain, **kwargs):
    return shift_of_samples("late", 1, NAMES, window, beside, explain, **({"against": "previous"} | kwargs))


def normal(n, means=(0, 0, 0), seed=0):
    return np.random.default_rng(seed).normal(means, 1, (n, 3))


def test_parts_add_up_to_the_shift():
    """The features' differences of means sum to the difference of mean margins, which is that of the model itself."""
    now, before = normal(400, (1, 0.5, 3), 1), normal(300, seed=2)
    found = shift(sample(now), sample(before))
    margins = [0.25 + (rows.astype(np.float32) @ WEIGHTS).mean() for rows in (now, before)]
    assert (found.margin, found.reference_margin) == pytest.approx(tuple(margins))
    assert found.shift == pytest.approx(margins[0] - margins[1])
    assert sum(each.shift for each in found.features) == pytest.approx(found.shift, abs=1e-12)
    assert [each.name for each in found.features] == ["b", "a", "c"]
    expected = [(now[:, i].mean() - before[:, i].mean()) * WEIGHTS[i] for i in (1, 0, 2)]
    assert [each.shift for each in found.features] == pytest.approx(expected, abs=1e-6)
    assert found.features[2].shift == 0  # it moved most of all, and moved nothing
    assert (found.kind, found.scale, found.n_rows, found.n_reference) == ("linear", "margin", 400, 300)
    json.dumps(found.to_json(), allow_nan=False)


def test_errors_are_those_of_repeated_draws():
    """The stated standard error is the spread that the shift has over draws, of rows and of requests of many rows alike."""
    rng = np.random.default_rng(3)
    for draw in (lambda: (rng.normal(size=(240, 3)), np.arange(240)), lambda: clustered(60, 4, rng)):
        shifts, stated = [], []
        for _ in range(300):
            found = shift(sample(*draw()), sample(*draw()))
            part = next(each for each in found.features if each.name == "b")
            shifts.append((found.shift, part.shift))
            stated.append((found.standard_error, part.standard_error))
        np.testing.assert_allclose(np.mean(stated, axis=0), np.std(shifts, axis=0), rtol=0.15)


def test_sampled_attributions_are_less_certain():
    """The error of draws within rows comes on top: 0.5 per row over n rows of either side."""
    sides = sample(normal(100)), sample(normal(100, seed=1))
    exact, sampled = (shift(*sides, lambda rows, e=e: explain(rows, error=e)) for e in (None, 0.5))
    for one, other in zip(exact.features, sampled.features, strict=True):
        assert other.standard_error**2 - one.standard_error**2 == pytest.approx(2 * 0.25 / 100)


def test_sentences_say_what_moved():
    """A rise names its features and the scores, a fall says so; a move within chance is none, even where parts cancel out."""
    rows, scores = normal(900), np.full(900, 0.5)
    before = sample(rows)
    up = shift(sample(normal(900, (0, -1, 0), 1)), before).meaning
    assert up.startswith("The mean margin rose: +")
    assert "in the period before" in up
    assert "chiefly through b +" in up
    told = shift(
        replace(sample(normal(900, (0, 1, 0), 1)), scores=scores * 0.5),
        replace(before, scores=scores),
        against="training",
    )
    assert (told.score, told.reference_score) == (0.25, 0.5)
    assert "fell" in told.meaning
    assert "in training" in told.meaning
    assert "(mean score 0.25, was 0.5)" in told.meaning
    still = shift(sample(normal(900, seed=5)), before)
    assert not still.is_certain
    assert "not moved beyond chance" in still.meaning
    assert "cancel" not in still.meaning
    cancelled = shift(sample(normal(900, (2, 0.5, 0), 5)), before)
    assert not cancelled.is_certain
    assert "parts that cancel out: b -" in cancelled.meaning or "parts that cancel out: a +" in cancelled.meaning


def test_values_are_told_beside_parts():
    """Each feature says what became of its values: medians, gaps; one without values has no median."""
    now = normal(200, (0, 2, 0), 1)
    now[:100, 0], now[:, 2] = np.nan, np.nan
    told = {each.name: each for each in shift(sample(now), sample(normal(200))).features}
    assert "missing in 50.0 % of the rows" in told["a"].change
    assert told["b"].median - told["b"].reference_median == pytest.approx(2, abs=0.4)
    assert told["b"].change.startswith("higher: median")
    assert told["c"].median is None


@pytest.mark.parametrize(
    ("window", "beside", "kwargs", "words"),
    [
        (empty_sample(3), sample(normal(50)), {}, "no prediction with features was served in the window"),
        (sample(normal(50)), empty_sample(3), {}, "served in the period before"),
        (sample(normal(50)), empty_sample(3), {"against": "training"}, "no rows of the training set are kept"),
        (sample(normal(50), np.arange(50) % 3), sample(normal(50)), {}, "3 requests in the window and 50 requests"),
        (sample(normal(50)), sample(normal(LEAST_REQUESTS - 1)), {}, f"{LEAST_REQUESTS} of either are needed"),
        (sample(normal(50)), sample(normal(50)), {"masked": ["d", "e"]}, "d, e are masked"),
    ],
)
def test_too_little_is_said_and_nothing_explained(window, beside, kwargs, words):
    """Nothing to compare: one sentence, null figures, and the model is not asked."""
    found = shift(window, beside, lambda _: pytest.fail("asked"), **kwargs)
    assert (found.shift, found.features, found.margin, found.is_certain) == (None, (), None, False)
    assert words in found.meaning
    assert found.begin_us in {0, HOUR_US}
    json.dumps(found.to_json(), allow_nan=False)


def test_a_category_has_shares_and_no_median():
    """The values of a text feature are told by name; a mix that did not change is said to be none."""
    rng = np.random.default_rng(0)
    rows = [normal(600, seed=1), normal(600, seed=2)]
    for side, chances in zip(rows, ([0.2, 0.3, 0.5], [0.5, 0.3, 0.2]), strict=True):
        side[:, 1] = rng.choice(3, 600, p=chances)
    edges = category_edges(np.array([50, 30, 20]))
    categories = {"b": CategoryBins.of(edges, ("UA", "B6", "DL")), "c": CategoryBins(edges)}
    for side in rows:
        side[:, 2] = rng.choice(3, 600)
    told = {each.name: each for each in shift(sample(rows[0]), sample(rows[1]), categories=categories).features}
    assert (told["b"].median, told["b"].reference_median, told["c"].median) == (None, None, None)
    assert "'DL'" in told["b"].change
    assert "'UA'" in told["b"].change
    assert told["b"].change.count("in the period before") == 1
    assert told["c"].change.startswith("no category more or less often")
    assert told["a"].median is not None
