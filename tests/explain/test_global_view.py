"""What moves a model over many rows: importances, dependence, pairs; each equal to what it is defined as."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import spearmanr

from tiercel.explain.global_view import (
    EXACT_ROWS,
    MAX_BINS,
    MAX_POINTS,
    N_PAIRS,
    ReasonGroup,
    estimated_interactions,
    rank_correlation,
    view_rows,
)
from tiercel.types import Attributions

NAMES = ("a", "b", "c", "d")


def normal(n=3_000, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 4)).astype(np.float32)


def attributions_of(rows, values=None):
    """Shapley values of x_a x_b + 0.5 x_c against zeros: the product is shared by half; d does nothing."""
    if values is None:
        joint = rows[:, 0] * rows[:, 1] / 2
        values = np.column_stack([joint, joint, 0.5 * rows[:, 2], np.zeros(len(rows))]).astype(np.float64)
    return Attributions(values, -1.0, "exact", "interventional", "margin", "yes", "r" * 64)


def view(rows, attributions=None, **kwargs):
    attributions = attributions_of(rows) if attributions is None else attributions
    return view_rows("late", 3, NAMES, rows, attributions, **({"source": "predictions"} | kwargs))


def test_importances_are_mean_sizes():
    """Mean |attribution|, its error, share and direction of each feature; the largest first, those that do nothing last."""
    rows = normal()
    values = attributions_of(rows).values
    found = view(rows)
    assert [each.name for each in found.features] == ["c", "a", "b", "d"]
    for each in found.features:
        i = NAMES.index(each.name)
        assert each.mean_abs == pytest.approx(np.abs(values[:, i]).mean())
        assert each.mean == pytest.approx(values[:, i].mean())
        assert each.standard_error == pytest.approx(np.abs(values[:, i]).std(ddof=1) / np.sqrt(len(rows)))
        assert each.share == pytest.approx(each.mean_abs / np.abs(values).mean(axis=0).sum())
    assert found.features[0].direction == pytest.approx(1)
    assert abs(found.features[1].direction) < 0.1
    assert found.features[3].direction is None
    assert (found.expected, found.output, found.reference) == (-1.0, "yes", "r" * 64)
    assert found.mean_margin == pytest.approx(-1 + values.sum(axis=1).mean())
    json.dumps(found.to_json(), allow_nan=False)


def test_features_of_one_reason_count_together():
    """A reason's attribution is the sum of its features': what cancels out within it moves nothing."""
    rows = normal(200)
    values = attributions_of(rows).values
    values[:, 3] = -values[:, 2]
    groups = [ReasonGroup("R1", "both", (0, 1)), ReasonGroup("R2", "none", (2, 3))]
    first, second = view(rows, attributions_of(rows, values), groups=groups).reasons
    assert (first.name, first.text, second.name, second.mean_abs) == ("R1", "both", "R2", 0)
    assert first.mean_abs == pytest.approx(np.abs(values[:, :2].sum(axis=1)).mean())


def test_dependence_follows_the_value():
    """By value: counts add up to the rows, means are those of the rows in each interval, missing values come last."""
    rows = normal(1_000)
    rows[:100, 2] = np.nan
    values = attributions_of(np.nan_to_num(rows)).values
    values[:100, 2] = -7
    found = {each.feature: each for each in view(rows, attributions_of(rows, values)).dependence}
    assert "d" not in found
    of_c = found["c"]
    assert sum(each.n for each in of_c.bins) == 1_000
    assert len(of_c.bins) == MAX_BINS + 1
    assert (of_c.bins[-1].low, of_c.bins[-1].n, of_c.bins[-1].mean) == (None, 100, -7)
    for each in of_c.bins[:-1]:
        inside = (rows[:, 2] >= each.low) & (rows[:, 2] <= each.high)
        assert inside.sum() == each.n
        assert each.mean == pytest.approx(values[inside, 2].mean())
        assert each.tenth <= each.mean <= each.ninetieth
    assert all(one.high < other.low for one, other in zip(of_c.bins[:-2], of_c.bins[1:-1], strict=True))
    assert len(of_c.points) == MAX_POINTS
    assert of_c.points[0] == (None, -7, None)
    assert of_c.partner is None


def test_few_values_have_an_interval_each():
    """A category or a count is not cut into quantiles."""
    rows = normal(300)
    rows[:, 2] = np.random.default_rng(1).integers(0, 3, 300)
    of_c = next(each for each in view(rows).dependence if each.feature == "c")
    assert [(each.low, each.high) for each in of_c.bins] == [(0, 0), (1, 1), (2, 2)]


def test_partners_are_those_that_act_together():
    """The product's factors find each other, as partner and as the strongest pair; nothing acts with a feature that adds up."""
    rows = normal()
    found = view(rows)
    assert {each.feature: each.partner for each in found.dependence} == {"a": "b", "b": "a", "c": None}
    assert not found.is_exact
    first, *others = found.interactions
    assert {first.first, first.second} == {"a", "b"}
    assert first.strength == pytest.approx(0.5, abs=0.1)  # the standard deviation of x_a x_b / 2
    assert all(each.strength < 0.1 * first.strength for each in others)
    strengths = estimated_interactions(rows, attributions_of(rows).values, [0])
    assert strengths[1:].max() == 0


def test_values_that_are_hidden_stand_nowhere():
    """A hidden feature is ranked and paired by name; no bin, point or colour has a value of it, and a note says so."""
    rows = normal()
    rows[:, 1] += 1_000  # so that no other value is near one of these
    found = view(rows, attributions_of(rows - [0, 1_000, 0, 0]), hidden={"b", "no such"}, notes=["Before."])
    assert "b" in {each.name for each in found.features}
    assert {found.interactions[0].first, found.interactions[0].second} == {"a", "b"}
    assert {each.feature for each in found.dependence} == {"a", "c"}
    assert "b" not in {each.partner for each in found.dependence}
    numbers = [x for each in found.dependence for point in each.points for x in point if x is not None]
    numbers += [x for each in found.dependence for one in each.bins for x in (one.low, one.high)]
    assert max(numbers) < 500
    assert found.notes[0] == "Before."
    assert "values of b is not shown" in found.notes[1]


def test_exact_interactions_are_taken_where_there_are_any():
    """Given interaction values, strengths are their mean size, both halves; only so many rows are asked for."""
    rows = normal(700)
    asked = []

    def interact(rows):
        asked.append(len(rows))
        joint = np.zeros((len(rows), 4, 4))
        joint[:, 0, 3] = joint[:, 3, 0] = -0.25
        joint[:, 1, 2] = joint[:, 2, 1] = 0.125
        joint[:, 0, 0] = 9
        return joint

    found = view(rows, interact=interact)
    assert (found.is_exact, asked) == (True, [EXACT_ROWS])
    told = [(each.first, each.second, each.strength) for each in found.interactions]
    assert told == [("a", "d", 0.5), ("b", "c", 0.25)]


def test_pairs_are_bounded():
    """Of thirty features ten pairs are told, those that act together first."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(400, 30)).astype(np.float32)
    values = rows[:, ::-1] * rows.astype(np.float64)
    found = view_rows("m", 1, [f"f{i}" for i in range(30)], rows, attributions_of(rows, values), source="training")
    assert len(found.interactions) == N_PAIRS
    assert all(int(each.first[1:]) + int(each.second[1:]) == 29 for each in found.interactions[:5])


@pytest.mark.parametrize("seed", range(5))
def test_rank_correlation_is_spearmans(seed):
    """With ties and missing values, as SciPy has it."""
    rng = np.random.default_rng(seed)
    values, others = rng.integers(0, 5, 60).astype(np.float64), rng.normal(size=60).round(1)
    values[:7] = np.nan
    assert rank_correlation(values, others) == pytest.approx(spearmanr(values[7:], others[7:]).statistic)
    assert rank_correlation(np.full(9, 3.0), others[:9]) is None
    assert rank_correlation(np.full(9, np.nan), others[:9]) is None


def test_one_row_and_odd_values_have_a_view():
    """One row, infinities, a feature that is never there: no error and plain JSON."""
    rows = np.array([[np.inf, -np.inf, np.nan, 0]], np.float32)
    found = view(rows, attributions_of(rows, np.ones((1, 4))))
    json.dumps(found.to_json(), allow_nan=False)
    many = np.repeat(rows, 50, axis=0)
    json.dumps(view(many, attributions_of(many, np.ones((50, 4)))).to_json(), allow_nan=False)


def test_shapes_that_do_not_fit_are_refused():
    """No rows, or attributions of others."""
    with pytest.raises(ValueError, match="Expected rows and attributions"):
        view(normal(0), attributions_of(normal(0)))
    with pytest.raises(ValueError, match="Expected rows and attributions"):
        view(normal(3), attributions_of(normal(4)))
