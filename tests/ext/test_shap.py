"""Attributions equal their definition, for every kind of node and forest, with tables and without."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ext.test_forest import random_forest, random_rows
from tests.reference.shapley import (
    interactions,
    interventional_game,
    margin,
    path_dependent_game,
    shapley,
)
from tiercel._hot.explainer import Explainer
from tiercel._hot.shap import MAX_PATH_FEATURES, ForestExplainer

from tiercel.models.ir import Forest, Step, StepKind

#: Tables for every leaf, for none, for some; joined to units as far as allowed, or not at all.
MEMORY = [{}, {"table_bytes": 0}, {"table_bytes": 3000}, {"merge_bytes": 1 << 16}, {"merge_bytes": 0}]


def explainer_of(forest: Forest, **rest) -> ForestExplainer:
    return ForestExplainer(
        n_features=forest.n_features, n_raw=forest.n_raw, tree_start=forest.tree_start, feature=forest.feature,
        threshold=forest.threshold, left=forest.left, right=forest.right, missing_left=forest.missing_left,
        set_of=forest.set_of, leaf=forest.leaf, values=forest.values, tree_raw=forest.tree_raw, base=forest.base,
        set_words=forest.sets.words, set_start=forest.sets.start, set_equal=forest.sets.equal,
        floor_negative=forest.sets.floor_negative,
        steps=[(int(step.kind), step.a, step.b) for step in forest.steps], **rest,
    )  # fmt: skip


def counted(forest: Forest, seed: int) -> Forest:
    """The same forest with random covers that add up; children follow their parents in it."""
    rng = np.random.default_rng(seed)
    cover = np.zeros(len(forest.leaf))
    for node in range(len(forest.leaf) - 1, -1, -1):
        inner = forest.leaf[node] < 0
        cover[node] = cover[forest.left[node]] + cover[forest.right[node]] if inner else rng.integers(1, 9)
    return replace(forest, cover=cover)


def path_of(depth: int, n_features: int, seed: int) -> Forest:
    """One tree that is a single long path, a leaf at each step."""
    rng = np.random.default_rng(seed)
    n = 2 * depth + 1
    inner = np.arange(n) % 2 == 0
    inner[-1] = False
    at = np.arange(n)
    return Forest(
        n_features=n_features, n_raw=1, tree_start=np.array([0, n]),
        feature=np.where(inner, (at // 2) % n_features, 0).astype(np.int32),
        threshold=rng.normal(size=n).astype(np.float32),
        left=np.where(inner, at + 1, -1).astype(np.int32), right=np.where(inner, at + 2, -1).astype(np.int32),
        missing_left=rng.integers(0, 2, n).astype(np.uint8), set_of=np.full(n, -1, np.int32),
        leaf=np.where(inner, -1, np.cumsum(~inner) - 1), values=rng.normal(size=(int((~inner).sum()), 1)),
        tree_raw=np.zeros(1, np.int32), base=np.zeros(1), base_first=True, single_precision=False,
        cover=(n - at).astype(np.float64) // 2 + 1,
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    n_raw=st.integers(1, 3),
    vector=st.booleans(),
    sets=st.booleans(),
    skew=st.booleans(),
    floor_negative=st.booleans(),
    memory=st.sampled_from(MEMORY),
    n_reference=st.sampled_from([1, 2, 9]),
)
def test_interventional_equals_definition(seed, n_raw, vector, sets, skew, floor_negative, memory, n_reference):
    """Against a reference set, every feature gets its Shapley value to 1e-9, and they add up to the margin."""
    forest = random_forest(seed, n_trees=4, n_raw=n_raw, vector=vector, sets=sets, skew=skew, floor_negative=floor_negative)  # fmt: skip
    rows, reference = random_rows(forest, seed, 3), random_rows(forest, seed + 1, n_reference)
    explainer = explainer_of(forest, reference=reference, **memory)
    for raw in range(n_raw):
        found = explainer.explain(rows, raw)
        wanted = [shapley(interventional_game(forest, row, reference, raw), forest.n_features) for row in rows]
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-9)
        total = explainer.expected_margin(raw) + found.sum(axis=1)
        np.testing.assert_allclose(total, [margin(forest, row, raw) for row in rows], rtol=0, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    n_raw=st.integers(1, 3),
    vector=st.booleans(),
    sets=st.booleans(),
    skew=st.booleans(),
    memory=st.sampled_from(MEMORY),
)
def test_path_dependent_equals_definition(seed, n_raw, vector, sets, skew, memory):
    """By the training data's flow, every feature gets its Shapley value to 1e-9, and they add up to the margin."""
    forest = random_forest(seed, n_trees=4, n_raw=n_raw, vector=vector, sets=sets, skew=skew)
    forest = counted(forest, seed)
    rows = random_rows(forest, seed, 3)
    explainer = explainer_of(forest, cover=forest.cover, **memory)
    for raw in range(n_raw):
        found = explainer.explain(rows, raw)
        wanted = [shapley(path_dependent_game(forest, row, raw), forest.n_features) for row in rows]
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-9)
        total = explainer.expected_margin(raw) + found.sum(axis=1)
        np.testing.assert_allclose(total, [margin(forest, row, raw) for row in rows], rtol=0, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), sets=st.booleans(), by_path=st.booleans())
def test_interactions_equal_definition(seed, sets, by_path):
    """Every two features get their Shapley interaction value to 1e-9."""
    forest = random_forest(seed, n_trees=3, sets=sets)
    rows, reference = random_rows(forest, seed, 2), random_rows(forest, seed + 1, 5)
    forest = counted(forest, seed)
    kept = {"cover": forest.cover} if by_path else {"reference": reference}
    explainer = explainer_of(forest, table_bytes=0, **kept)
    pairs, phi = explainer.interact(rows)
    for row, found in zip(rows, pairs, strict=True):
        game = path_dependent_game(forest, row, 0) if by_path else interventional_game(forest, row, reference, 0)
        np.testing.assert_allclose(found, interactions(game, forest.n_features), rtol=0, atol=1e-9)
    np.testing.assert_allclose(pairs.sum(axis=2), phi, rtol=0, atol=1e-12)


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize(("depth", "n_features"), [(1, 1), (16, 9), (40, 3)])
def test_long_paths_equal_definition(depth, n_features, memory):
    """Paths of many steps, with features asked again and again, lose no precision."""
    forest = path_of(depth, n_features, 3)
    rows = random_rows(forest, 4, 2)
    reference = np.random.default_rng(5).normal(size=(20, n_features)).astype(np.float32)
    found = explainer_of(forest, reference=reference, **memory).explain(rows)
    wanted = [shapley(interventional_game(forest, row, reference, 0), n_features) for row in rows]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-9)
    found = explainer_of(forest, cover=forest.cover, **memory).explain(rows)
    wanted = [shapley(path_dependent_game(forest, row, 0), n_features) for row in rows]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("n_features", [16, 17, MAX_PATH_FEATURES])
def test_paths_of_many_features_add_up(n_features):
    """With up to the most different features on a path, attributions still add up, and both ways agree in what they sum to."""
    forest = path_of(n_features, n_features, 6)
    rows = random_rows(forest, 7, 20)
    reference = random_rows(forest, 8, 70)
    for kept in ({"reference": reference}, {"cover": forest.cover}):
        explainer = explainer_of(forest, **kept)
        assert explainer.longest == n_features
        total = explainer.expected_margin() + explainer.explain(rows).sum(axis=1)
        np.testing.assert_allclose(total, [margin(forest, row, 0) for row in rows], rtol=0, atol=1e-12)


def test_more_features_on_a_path_are_refused():
    """A path of one feature more than a mask has bits is refused, naming the bound and the tree."""
    forest = path_of(MAX_PATH_FEATURES + 1, MAX_PATH_FEATURES + 1, 6)
    with pytest.raises(ValueError, match=f"at most {MAX_PATH_FEATURES} different features .* tree 0"):
        explainer_of(forest, cover=forest.cover)


def test_wide_paths_equal_the_mean_over_reference_rows():
    """More than sixteen features and more than 64 reference rows: the set's attributions are the mean of each row's."""
    forest = path_of(20, 20, 9)
    rng = np.random.default_rng(10)
    rows, reference = rng.normal(size=(4, 20)).astype(np.float32), rng.normal(size=(130, 20)).astype(np.float32)
    single = [explainer_of(forest, reference=each[None]).explain(rows) for each in reference]
    found = explainer_of(forest, reference=reference, table_bytes=0).explain(rows)
    np.testing.assert_allclose(found, np.mean(single, axis=0), rtol=0, atol=1e-12)


def test_steps_are_applied_to_rows_and_reference():
    """A model with an imputer and a scaler is explained on the values its trees see, feature by feature."""
    forest = random_forest(11)
    rng = np.random.default_rng(11)
    a, b = rng.normal(size=(2, forest.n_features)).astype(np.float32)
    forest = replace(forest, steps=(Step(StepKind.IMPUTE_NAN, a, b), Step(StepKind.SCALE, a, b)))
    rows, reference = random_rows(forest, 12, 3), random_rows(forest, 13, 6)
    found = explainer_of(forest, reference=reference).explain(rows)
    wanted = [shapley(interventional_game(forest, row, reference, 0), forest.n_features) for row in rows]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("memory", MEMORY)
def test_a_row_alone_and_among_others_is_explained_alike(memory):
    """One row at a time, a block, several blocks: bit for bit the same."""
    forest = random_forest(14, n_trees=30, sets=True)
    rows, reference = random_rows(forest, 15, 75), random_rows(forest, 16, 40)
    explainer = explainer_of(forest, reference=reference, **memory)
    together = explainer.explain(rows)
    np.testing.assert_array_equal(together, np.concatenate([explainer.explain(rows[k : k + 1]) for k in range(75)]))
    np.testing.assert_array_equal(together, explainer.time_one_row(rows, 1)[0])


@pytest.mark.parametrize("n_features", [4, 16, 20])
def test_every_instruction_set_gives_the_same_bits(n_features):
    """Without vectors, with short and with long ones: an explanation can be replayed on another machine."""
    forest = (
        random_forest(25, n_features=n_features, sets=True) if n_features == 4 else path_of(n_features, n_features, 6)
    )
    rows, reference = random_rows(forest, 26, 40), random_rows(forest, 27, 150)
    for memory in MEMORY:
        plain = explainer_of(forest, reference=reference, vector_bits=0, **memory).explain(rows)
        for bits in (256, 512):
            found = explainer_of(forest, reference=reference, vector_bits=bits, **memory).explain(rows)
            np.testing.assert_array_equal(found, plain)
    cover = counted(forest, 1).cover
    plain = explainer_of(forest, cover=cover, table_bytes=0, vector_bits=0).explain(rows)
    for bits in (256, 512):
        found = explainer_of(forest, cover=cover, table_bytes=0, vector_bits=bits).explain(rows)
        np.testing.assert_array_equal(found, plain)


def test_nodes_without_training_data_give_nothing():
    """Covers of zero, of leaves and whole subtrees, with tables and walked: the definition's answer, and nothing infinite."""
    forest = path_of(6, 3, 28)
    cover = forest.cover.copy()
    cover[5:] = 0.0
    cover[4], cover[3] = 0.0, cover[2]
    rows = random_rows(forest, 29, 30)
    tables = explainer_of(forest, cover=cover).explain(rows)
    walked = explainer_of(forest, cover=cover, table_bytes=0).explain(rows)
    assert np.all(np.isfinite(walked))
    np.testing.assert_allclose(walked, tables, rtol=0, atol=1e-12)


def test_tables_stay_within_their_bound():
    """Whatever bound is given, the tables keep to it, and the attributions do not depend on it."""
    forest = random_forest(17, n_trees=40)
    rows, reference = random_rows(forest, 18, 10), random_rows(forest, 19, 30)
    free = explainer_of(forest, reference=reference)
    assert free.n_alone == 0
    for bound in (0, 100, 2000, free.table_bytes // 2, free.table_bytes):
        explainer = explainer_of(forest, reference=reference, table_bytes=bound)
        assert explainer.table_bytes <= bound
        np.testing.assert_allclose(explainer.explain(rows), free.explain(rows), rtol=0, atol=1e-12)


def test_threads_share_an_explainer():
    """Many threads explaining at once get what one gets."""
    forest = random_forest(20, n_trees=50, sets=True)
    rows, reference = random_rows(forest, 21, 64), random_rows(forest, 22, 20)
    explainer = explainer_of(forest, reference=reference, table_bytes=5000)
    wanted, equal = explainer.explain(rows), []

    def work():
        equal.extend(np.array_equal(explainer.explain(rows), wanted) for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert equal == [True] * 80


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"left": 0}, "two parents"),
        ({"feature": 99}, "features below"),
        ({"right": 10**6}, "children below"),
    ],
)
def test_arrays_that_are_no_trees_are_refused(change, message):
    """A cycle, a feature or a child out of range is an error, not a crash."""
    forest = random_forest(23)
    inner = int(np.flatnonzero(forest.leaf < 0)[0])
    ((name, value),) = change.items()
    array = getattr(forest, name).copy()
    array[inner] = value
    with pytest.raises(ValueError, match=message):
        explainer_of(replace(forest, **{name: array}), reference=random_rows(forest, 0, 2))


def test_wrong_calls_are_refused():
    """Rows of another width, an output that is not there, interactions with tables, and a bare base class say so."""
    forest = random_forest(24)
    reference = random_rows(forest, 0, 3)
    explainer = explainer_of(forest, reference=reference)
    with pytest.raises(ValueError, match="rows of 4 features, got 3"):
        explainer.explain(np.zeros((1, 3), np.float32))
    with pytest.raises(ValueError, match="output below 1, got 1"):
        explainer.explain(reference, 1)
    with pytest.raises(ValueError, match="without tables"):
        explainer.interact(reference)
    with pytest.raises(ValueError, match="1 to 255 reference rows"):
        explainer_of(forest, reference=np.zeros((256, 4), np.float32))
    with pytest.raises(ValueError, match="not both"):
        explainer_of(forest)
    with pytest.raises(ValueError, match="covers"):
        explainer_of(forest, cover=np.ones(3))
    with pytest.raises(TypeError, match="base class"):
        Explainer().explain(reference)
    assert explainer.explain(np.zeros((0, 4), np.float32)).shape == (0, 4)
