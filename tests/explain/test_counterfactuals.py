"""The smallest changes that flip a decision are the smallest, are allowed, and do flip it."""

from __future__ import annotations

import math
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.reference import counterfactuals as reference

from tiercel.explain.counterfactuals import Landscape, find_counterfactuals, spreads_of
from tiercel.explain.policy import Change, Reason, ReasonPolicy, Wording

FEATURES = ("a", "b", "c")


def policy_of(*changes, **untold):
    wording = Wording("R1", (("en", "one"),))
    return ReasonPolicy(
        reasons=(Reason(wording, FEATURES),), insufficient=Wording("R0", (("en", "none"),)), locale="en", locales=("en",),
        changes=changes, **untold,
    )  # fmt: skip


def change(feature, direction="either", low=None, high=None, step=None):
    return Change(feature, (("en", feature),), direction, low, high, step)


@st.composite
def forests(draw):
    """(score, cuts by feature, which side a value at a threshold goes to) of a few random trees of depth two."""
    goes_left = draw(st.sampled_from(["at", "below"]))
    grid = draw(st.sampled_from([1.0, 0.25, 0.1]))
    trees = []
    for _ in range(draw(st.integers(1, 4))):
        splits = [(draw(st.integers(0, 2)), draw(st.integers(-6, 6)) * grid) for _ in range(3)]
        trees.append((splits, [draw(st.integers(-4, 4)) for _ in range(4)]))

    def is_left(values, cut):
        return values <= np.float32(cut) if goes_left == "at" else values < np.float32(cut)

    def score(rows):
        total = np.zeros(len(rows))
        for ((f, t), (f_left, t_left), (f_right, t_right)), leaves in trees:
            left = is_left(rows[:, f], t)
            inner = np.where(left, is_left(rows[:, f_left], t_left), is_left(rows[:, f_right], t_right))
            total += np.choose(np.where(left, 0, 2) + np.where(inner, 0, 1), leaves)
        return total

    cuts = {}
    for splits, _ in trees:
        for index, cut in splits:
            cuts.setdefault(index, set()).add(np.float32(cut))
    return score, {index: np.array(sorted(each), np.float32) for index, each in cuts.items()}, goes_left


@st.composite
def changes_of(draw):
    made = []
    for name in draw(st.sets(st.sampled_from(FEATURES), min_size=1)):
        low, high = draw(st.sampled_from([(None, None), (-4.0, 4.0), (-1.0, None), (None, 2.5), (1.0, 1.0)]))
        step = draw(st.sampled_from([None, None, 1.0, 0.5, 0.1]))
        made.append(change(name, draw(st.sampled_from(["up", "down", "either", "either"])), low, high, step))
    return sorted(made, key=lambda each: each.feature)


VALUES = st.one_of(st.integers(-7, 7).map(float), st.floats(-7, 7, width=32), st.just(math.nan))


@settings(max_examples=200, deadline=None)
@given(
    forest=forests(),
    changes=changes_of(),
    row=st.lists(VALUES, min_size=3, max_size=3),
    threshold=st.integers(-6, 6).map(lambda each: each + 0.5),
    spreads=st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=3, max_size=3),
    knows_side=st.booleans(),
)
def test_forests_equal_brute_force(forest, changes, row, threshold, spreads, knows_side):
    """Of one feature and of two, the change found is as near as the nearest of all that could be tried."""
    score, cuts, goes_left = forest
    row, spreads = np.array(row, np.float32), np.array(spreads)
    landscape = Landscape(FEATURES, score, spreads, cuts, goes_left if knows_side else None)
    found = find_counterfactuals(row, landscape, policy_of(*changes), threshold=threshold, most=10)
    indexed = [(FEATURES.index(each.feature), each) for each in changes]
    alone, both = reference.nearest(row, score, threshold, spreads, indexed, cuts)
    singles = {FEATURES.index(c.changes[0].feature): c.distance for c in found.found if len(c.changes) == 1}
    assert singles == pytest.approx({index: each for index, each in alone.items() if math.isfinite(each)}, rel=1e-9)
    pairs = [each.distance for each in found.found if len(each.changes) == 2]
    assert pairs == pytest.approx([both] if both < min(alone.values(), default=math.inf) - 1e-12 else [], rel=1e-9)
    assert found.is_exhaustive
    assert [each.distance for each in found.found] == sorted(each.distance for each in found.found)
    assert bool(found.why) == (not found.found)
    check_answers(found, row, score, changes, cuts)


def check_answers(found, row, score, changes, cuts):
    """Every answer flips the decision, within its bounds; what is said to hold on a side holds all over it."""
    by_name = {each.feature: each for each in changes}
    was_positive = found.score >= found.threshold
    for answer in found.found:
        changed = row.copy()
        for each in answer.changes:
            index, allowed = FEATURES.index(each.feature), by_name[each.feature]
            assert each.now == row[index] != np.float32(each.then)
            assert each.then in reference.values_of(allowed, each.now, [*cuts.get(index, ()), each.then])
            changed[index] = each.then
        assert (score(changed[None, :])[0] >= found.threshold) != was_positive
        assert answer.score == score(changed[None, :])[0]
        if len(answer.changes) == 1 and answer.changes[0].extent != "exactly":
            only = answer.changes[0]
            index = FEATURES.index(only.feature)
            beyond = [
                value
                for value in reference.values_of(by_name[only.feature], only.now, [*cuts.get(index, ()), only.then])
                if (value >= only.then if only.extent == "at_least" else value <= only.then)
            ]
            rows = np.repeat(changed[None, :], len(beyond), axis=0)
            rows[:, index] = beyond
            assert ((score(rows) >= found.threshold) != was_positive).all()


@settings(max_examples=200, deadline=None)
@example(
    weights=[-2.0, -0.5, -0.5],
    changes=[
        change("c", "down", high=2.5, step=1.0)
    ],  # 2.0 is allowed, and 20 spreads from there are not those from 2.5
    row=[0.0, 3.0, 3.0],
    threshold=2.12345,
)
@given(
    weights=st.lists(st.sampled_from([-2.0, -0.5, 0.0, 0.25, 1.0]), min_size=3, max_size=3),
    changes=changes_of(),
    row=st.lists(st.integers(-6, 6).map(float), min_size=3, max_size=3),
    threshold=st.integers(-12, 12).map(lambda each: each + 0.12345),  # that no grid value meets
)
def test_linear_models_change_as_little_as_they_must(weights, changes, row, threshold):
    """The border is met to the last float32, or grid step: the value before it does not flip the decision, this one does."""
    weights, row, spreads = np.array(weights), np.array(row, np.float32), np.array([1.0, 2.0, 0.5])

    def score(rows):
        return rows.astype(np.float64) @ weights

    landscape = Landscape(FEATURES, score, spreads)
    found = find_counterfactuals(row, landscape, policy_of(*changes), threshold=threshold, most=10)
    need = threshold - float(score(row[None, :])[0])
    best = math.inf
    for each in changes:
        index = FEATURES.index(each.feature)
        # The exact border, then rounded away from now to the grid, by hand.
        answer = next((one for one in found.found if [c.feature for c in one.changes] == [each.feature]), None)
        exact = nearest_single(need, float(weights[index]), float(row[index]), each, 20 * spreads[index])
        if exact is None:
            assert answer is None
            continue
        best = min(best, abs(exact - float(row[index])) / spreads[index])
        assert answer is not None
        assert answer.changes[0].then == pytest.approx(exact, rel=1e-6, abs=1e-6)
        assert answer.changes[0].extent == ("at_least" if exact > row[index] else "at_most")
    for answer in found.found:
        changed = row.copy()
        for each in answer.changes:
            changed[FEATURES.index(each.feature)] = each.then
        assert (score(changed[None, :])[0] >= threshold) == (need > 0)
        if len(answer.changes) == 2:
            assert answer.distance < best + 1e-6


def nearest_single(need, weight, now, allowed, reach):
    """The nearest allowed value with weight * (value - now) >= need > 0, or < need <= 0; None: there is none."""
    if weight == 0:
        return None
    sign = math.copysign(1, need) * math.copysign(1, weight)
    if allowed.direction == ("down" if sign > 0 else "up"):
        return None
    low = -math.inf if allowed.minimum is None else allowed.minimum
    high = math.inf if allowed.maximum is None else allowed.maximum
    value = now + need / weight
    value = max(value, low) if sign > 0 else min(value, high)
    if allowed.step is not None:
        origin = 0.0 if allowed.minimum is None else allowed.minimum
        steps = (value - origin) / allowed.step
        snapped = round(steps)
        value = origin + allowed.step * (
            snapped if abs(steps - snapped) < 1e-9 else (math.ceil(steps) if sign > 0 else math.floor(steps))
        )
    # Without a bound a feature is moved by at most `reach`.
    far = high if sign > 0 else low
    if not math.isfinite(far):  # from the nearest allowed value on, where `now` is none
        if allowed.step is not None and math.isfinite(high):
            origin = 0.0 if allowed.minimum is None else allowed.minimum
            high = origin + allowed.step * math.floor((high - origin) / allowed.step + 1e-9)
        far = min(max(now, low), high) + sign * reach
    if (value - far) * sign > 1e-9 or (value - now) * sign <= 0:
        return None
    return value


def test_two_linear_features_at_a_corner():
    """Where no feature alone is allowed to go far enough, the better one goes to its bound and the other does the rest."""
    landscape = Landscape(FEATURES, lambda rows: rows.astype(np.float64) @ np.array([1.0, 0.5, 0.0]), np.ones(3))
    policy = policy_of(change("a", "up", high=2.0, step=1.0), change("b", "up", high=8.0, step=1.0))
    found = find_counterfactuals(np.zeros(3, np.float32), landscape, policy, threshold=4.5)
    assert [(c.feature, c.then, c.extent) for c in found.found[0].changes] == [
        ("a", 2.0, "at_least"),
        ("b", 5.0, "at_least"),
    ]
    assert found.found[0].distance == 7.0
    assert not find_counterfactuals(np.zeros(3, np.float32), landscape, policy, threshold=4.5, pairs=False).found


def steps_at(*cuts):
    """A score that rises by one at each cut of feature a, and by one where b is above 0."""
    cuts = np.array(cuts, np.float32)

    def score(rows):
        return (rows[:, 0, None] > cuts).sum(axis=1) + (rows[:, 1] > 0).astype(np.float64)

    return Landscape(FEATURES, score, np.ones(3), {0: cuts, 1: np.array([0], np.float32)}, "at")


@pytest.mark.parametrize("place", ["prohibited", "immutable"])
def test_what_must_not_change_does_not(place):
    """No policy makes a prohibited or immutable feature part of an answer, not even one put together by hand."""
    policy = policy_of(change("a"), change("b"), **{place: ("a",)})
    found = find_counterfactuals(np.zeros(3, np.float32), steps_at(1, 2), policy, threshold=1)
    assert [[each.feature for each in one.changes] for one in found.found] == [["b"]]


def test_a_value_outside_its_bounds_comes_inside():
    """The nearest allowed value is a bound where the value now is beyond it."""
    policy = policy_of(change("a", low=-5.0, high=0.5))
    row = np.array([9, 0, 0], np.float32)
    found = find_counterfactuals(row, steps_at(1, 2), policy, threshold=1)
    assert [(c.then, c.extent) for c in found.found[0].changes] == [(0.5, "at_most")]
    linear = Landscape(FEATURES, lambda rows: rows[:, 0].astype(np.float64), np.ones(3))
    found = find_counterfactuals(row, linear, policy, threshold=5)
    assert [(c.then, c.extent) for c in found.found[0].changes] == [(0.5, "at_most")]


def test_a_search_that_ran_out_says_so():
    """Fewer pairs than there are: the answer is not said to be the nearest; without a limit it is."""
    rng = np.random.default_rng(0)
    cuts = {index: np.sort(rng.normal(size=50).astype(np.float32)) for index in range(2)}

    def score(rows):
        return ((rows[:, 0] > cuts[0][-1]) & (rows[:, 1] > cuts[1][-1])).astype(np.float64)

    landscape = Landscape(FEATURES, score, np.ones(3), cuts, "at")
    row, policy = np.zeros(3, np.float32), policy_of(change("a"), change("b"))
    found = find_counterfactuals(row, landscape, policy, threshold=0.5, max_pair_rows=100)
    assert (found.found, found.is_exhaustive) == ((), False)
    assert found.why
    found = find_counterfactuals(row, landscape, policy, threshold=0.5)
    assert (len(found.found), found.is_exhaustive) == (1, True)


def test_pairs_of_many_features_are_not_all_kept():
    """Memory is bounded by the rows that are scored, not by how many pairs of values all features have."""
    names = tuple("abcdefgh")
    cuts = {at: np.arange(300, dtype=np.float32) + 0.5 for at in range(len(names))}
    landscape = Landscape(names, lambda rows: np.zeros(len(rows)), np.ones(len(names)), cuts, "at")
    policy = replace(policy_of(*map(change, names)), reasons=(Reason(Wording("R1", (("en", "one"),)), names),))
    tracemalloc.start()
    try:
        found = find_counterfactuals(np.zeros(8, np.float32), landscape, policy, threshold=0.5, max_pair_rows=500)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (found.found, found.is_exhaustive) == ((), False)
    assert peak_bytes < 28 * 300 * 300 * 8  # a number for each pair there is; it had been ten


def test_why_there_is_none():
    """No allowed feature, no value, no flip and no score are told apart."""
    row = np.array([0, math.nan, 0], np.float32)
    for policy, landscape, why in (
        (policy_of(), steps_at(1), "no feature with a value"),
        (policy_of(change("b")), steps_at(1), "no feature with a value"),
        (policy_of(change("c")), steps_at(1), "within the bounds"),
        (policy_of(change("a")), Landscape(FEATURES, lambda rows: np.full(len(rows), math.nan), np.ones(3)), "finite"),
    ):
        found = find_counterfactuals(row, landscape, policy, threshold=1)
        assert found.found == ()
        assert why in found.why
    for bad_row, threshold in ((np.zeros(2, np.float32), 1.0), (row, math.nan)):
        with pytest.raises(ValueError, match="Expected a row of 3 features"):
            find_counterfactuals(bad_row, steps_at(1), policy_of(), threshold=threshold)


def test_spreads_are_what_people_differ_by():
    """The median absolute deviation; the mean one of a feature that most share; one of a constant or unknown feature."""
    rows = np.array([[1, 0, 5, np.nan], [2, 0, 5, np.nan], [3, 0, 5, np.nan], [10, 8, 5, np.nan]], np.float32)
    assert spreads_of(rows).tolist() == [1.0, 2.0, 1.0, 1.0]
