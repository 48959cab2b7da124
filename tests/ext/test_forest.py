"""The compiled forest equals the obvious walk, for every kind of node and forest."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.reference.forest import find_leaves, score_forest
from tiercel._hot.forest import ForestScorer
from tiercel._hot.forest_blocks import MODES

from tiercel.errors import UnsupportedModelError
from tiercel.models.ir import Aggregate, CategorySets, Forest, Post, Step, StepKind

SPECIALS = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 3.4028235e38, -3.4028235e38], dtype=np.float32)


def random_forest(seed, *, n_trees=9, n_features=4, n_raw=1, vector=False, sets=False, skew=False, **rest):
    """A forest of random shape; thresholds come from few values so that rows hit them exactly."""
    rng = np.random.default_rng(seed)
    floor_negative = rest.pop("floor_negative", False)
    pool = np.concatenate([rng.normal(size=6).astype(np.float32), SPECIALS])
    columns = {name: [] for name in ("feature", "threshold", "left", "right", "missing_left", "set_of", "leaf")}
    starts, n_leaves = [0], 0
    words = rng.integers(0, 2**32, 6, dtype=np.uint32)
    set_start, equal = (
        np.array([0, 1, 3, 6, 6], dtype=np.int64),
        np.array([np.nan, np.nan, np.nan, 2.5], dtype=np.float32),
    )
    for _ in range(n_trees):
        begin, n_inner = starts[-1], int(rng.integers(0, 12))
        left, right, open_nodes = {}, {}, [0]
        size = 1
        for _ in range(n_inner):
            at = open_nodes.pop(-1 if skew else int(rng.integers(len(open_nodes))))
            left[at], right[at] = size, size + 1
            open_nodes += [size, size + 1]
            size += 2
        for node in range(size):
            inner = node in left
            chosen = int(rng.integers(-4, 4)) if sets and inner else -1
            columns["feature"].append(int(rng.integers(n_features)))
            columns["threshold"].append(rng.choice(pool))
            columns["left"].append(begin + left[node] if inner else -1)
            columns["right"].append(begin + right[node] if inner else -1)
            columns["set_of"].append(max(chosen, -1))
            # Nodes that share a set agree on missing values.
            columns["missing_left"].append(int(rng.integers(2)) if chosen < 0 else chosen % 2)
            columns["leaf"].append(-1 if inner else n_leaves)
            n_leaves += not inner
        starts.append(begin + size)
    return Forest(
        n_features=n_features,
        n_raw=n_raw,
        tree_start=np.array(starts, dtype=np.int64),
        feature=np.array(columns["feature"], dtype=np.int32),
        threshold=np.array(columns["threshold"], dtype=np.float32),
        left=np.array(columns["left"], dtype=np.int32),
        right=np.array(columns["right"], dtype=np.int32),
        missing_left=np.array(columns["missing_left"], dtype=np.uint8),
        set_of=np.array(columns["set_of"], dtype=np.int32),
        leaf=np.array(columns["leaf"], dtype=np.int64),
        values=rng.normal(size=(n_leaves, n_raw if vector else 1)),
        tree_raw=rng.integers(0, n_raw, n_trees).astype(np.int32),
        base=rng.normal(size=n_raw),
        base_first=rest.pop("base_first", True),
        single_precision=rest.pop("single_precision", False),
        sets=CategorySets(words, set_start, equal, floor_negative) if sets else CategorySets(),
        **rest,
    )


def random_rows(forest, seed, n_rows):
    rng = np.random.default_rng(seed)
    finite = forest.threshold[np.isfinite(forest.threshold)]
    with np.errstate(over="ignore", under="ignore"):
        near = [np.nextafter(finite, np.float32(np.inf)), np.nextafter(finite, np.float32(-np.inf))]
    pool = np.concatenate(
        [SPECIALS, finite, *near,
         np.array([-1, -0.5, 2.5, 33, 40, 95, 96, 97.5, 2**24, 3e9], dtype=np.float32)]
    )  # fmt: skip
    return rng.choice(pool, (n_rows, forest.n_features)).astype(np.float32)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    n_rows=st.sampled_from([1, 3, 8, 13, 16, 33, 70]),
    n_raw=st.integers(1, 3),
    vector=st.booleans(),
    sets=st.booleans(),
    skew=st.booleans(),
    single_precision=st.booleans(),
    base_first=st.booleans(),
    floor_negative=st.booleans(),
    wide=st.booleans(),
    blocks=st.sampled_from(MODES),
)
def test_forest_equals_reference(
    seed, n_rows, n_raw, vector, sets, skew, single_precision, base_first, floor_negative, wide, blocks
):
    """Compiled scores equal the obvious walk bit for bit, for one row and many, small nodes and wide ones, walked and in blocks."""
    forest = random_forest(
        seed, n_raw=n_raw, vector=vector, sets=sets, skew=skew, single_precision=single_precision,
        base_first=base_first, floor_negative=floor_negative,
    )  # fmt: skip
    rows = random_rows(forest, seed, n_rows)
    np.testing.assert_array_equal(forest.compile(wide=wide, blocks=blocks).score(rows), score_forest(forest, rows))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    n_rows=st.sampled_from([0, 1, 7, 8, 9, 64, 65, 130]),
    sets=st.booleans(),
    skew=st.booleans(),
    wide=st.booleans(),
)
def test_leaves_equal_reference(seed, n_rows, sets, skew, wide):
    """The leaf of every row in every tree is where the obvious walk ends, and stays below the tree's number of leaves."""
    forest = random_forest(seed, sets=sets, skew=skew)
    rows = random_rows(forest, seed, n_rows)
    scorer = forest.compile(wide=wide)
    found = scorer.leaves(rows)
    np.testing.assert_array_equal(found, find_leaves(forest, rows))
    assert found.dtype == np.int32
    assert found.shape == (n_rows, forest.n_trees)
    assert (found < scorer.leaf_counts).all()
    ends = zip(forest.tree_start[:-1], forest.tree_start[1:], strict=True)
    assert scorer.leaf_counts.tolist() == [int((forest.leaf[begin:end] >= 0).sum()) for begin, end in ends]


def test_leaves_look_at_prepared_rows_and_refuse_other_shapes():
    """Steps come before the walk, as they do for scores; rows of another width are refused."""
    fill = Step(StepKind.IMPUTE_NAN, np.full(4, 0.25, np.float32), np.zeros(4, np.float32))
    forest = random_forest(3, steps=(fill,))
    rows = random_rows(forest, 4, 40)
    np.testing.assert_array_equal(forest.compile().leaves(rows), find_leaves(forest, rows))
    with pytest.raises(ValueError, match="Expected rows of 4 features, got 3"):
        forest.compile().leaves(rows[:, :3].copy())


@pytest.mark.parametrize("aggregate", list(Aggregate))
@pytest.mark.parametrize("divisor", [0.0, 9.0])
def test_aggregates_equal_reference(aggregate, divisor):
    """Sums, averages, minima and maxima follow the reference, one row and many."""
    forest = random_forest(5, n_raw=2, vector=True, aggregate=aggregate, divisor=divisor, base_first=False)
    rows = random_rows(forest, 6, 40)
    expected = score_forest(forest, rows)
    scorer = forest.compile()
    np.testing.assert_array_equal(scorer.score(rows), expected)
    np.testing.assert_array_equal(np.concatenate([scorer.score(row[None]) for row in rows]), expected)


@pytest.mark.parametrize("post", list(Post))
@pytest.mark.parametrize("normalize", [False, True])
def test_transforms_equal_reference(post, normalize):
    """Every transform is its formula, up to the last places of the C library's exp and log."""
    forest = random_forest(7, n_raw=3, vector=True, post=post, post_scale=0.7, normalize=normalize)
    if post is Post.PROBIT_ORT:
        forest = replace(forest, values=np.abs(forest.values) / 40, base=np.full(3, 0.2))
    rows = random_rows(forest, 8, 30)
    # These subtract nearly equal float32 numbers; exp and division lose the last places only.
    atol = 5e-6 if post in (Post.PROBIT_ORT, Post.SIGMOID_ORT) else 1e-6
    np.testing.assert_allclose(forest.compile().score(rows), score_forest(forest, rows), rtol=3e-6, atol=atol)


def test_picked_output_is_that_column():
    """`pick` returns one column of what the whole model returns."""
    forest = random_forest(9, n_raw=3, post=Post.SOFTMAX_F64)
    rows = random_rows(forest, 9, 20)
    picked = replace(forest, pick=2).compile().score(rows)
    np.testing.assert_array_equal(picked, forest.compile().score(rows)[:, 2:3])


# Norms are compared with onnxruntime instead: their sums round in its order.
@pytest.mark.parametrize("kind", [kind for kind in StepKind if not kind.name.startswith("NORMALIZE")])
def test_steps_come_before_the_trees(kind):
    """A forest behind a preparation step scores the prepared row."""
    rng = np.random.default_rng(int(kind))
    a, b = rng.uniform(0.5, 2, 4).astype(np.float32), rng.uniform(0.5, 2, 4).astype(np.float32)
    forest = random_forest(11, steps=(Step(kind, a, b),))
    rows = rng.choice(np.array([np.nan, 0, -0.0, 1e-36, 1, 2, -3, *b], dtype=np.float32), (64, 4))
    rows = rows if kind in (StepKind.IMPUTE_NAN, StepKind.ZERO_IS_NAN) else np.nan_to_num(rows)
    np.testing.assert_array_equal(forest.compile().score(rows), score_forest(forest, rows))


def test_more_trees_than_a_chunk():
    """Trees are added in file order even where they are walked in another one."""
    forest = random_forest(12, n_trees=700, n_raw=2)
    rows = random_rows(forest, 12, 5)
    np.testing.assert_array_equal(forest.compile().score(rows), score_forest(forest, rows))


def test_many_features_and_outputs_use_the_heap():
    """Rows and outputs beyond the stack buffers give the same answers."""
    forest = random_forest(13, n_features=900, n_raw=50)
    rows = random_rows(forest, 13, 3)
    np.testing.assert_array_equal(forest.compile().score(rows), score_forest(forest, rows))


def test_large_trees_use_wide_nodes():
    """A tree whose children lie more than 32,767 nodes apart is laid out in wide nodes and scores the same."""
    depth = 16
    n = 2 ** (depth + 1) - 1
    inner = np.arange(n) < 2**depth - 1
    rng = np.random.default_rng(0)
    forest = replace(
        random_forest(14, n_trees=1),
        tree_start=np.array([0, n]),
        feature=rng.integers(0, 4, n).astype(np.int32),
        threshold=rng.normal(size=n).astype(np.float32),
        left=np.where(inner, 2 * np.arange(n) + 1, -1).astype(np.int32),
        right=np.where(inner, 2 * np.arange(n) + 2, -1).astype(np.int32),
        missing_left=rng.integers(0, 2, n).astype(np.uint8),
        set_of=np.full(n, -1, dtype=np.int32),
        leaf=np.where(inner, -1, np.arange(n) - (2**depth - 1)),
        values=rng.normal(size=(2**depth, 1)),
    )
    scorer = forest.compile()
    rows = rng.normal(size=(50, 4)).astype(np.float32)
    assert not scorer.is_compact
    assert random_forest(14).compile().is_compact
    np.testing.assert_array_equal(scorer.score(rows), score_forest(forest, rows))


def broken(**changes):
    forest = random_forest(3, n_trees=2)
    inner = np.flatnonzero(forest.leaf < 0)
    arrays = {
        name: getattr(forest, name).copy() for name in ("left", "right", "feature", "leaf", "threshold", "set_of")
    }
    for name, value in changes.items():
        arrays[name][inner[0]] = value
    return replace(forest, **arrays)


@pytest.mark.parametrize(
    "forest",
    [
        pytest.param(broken(left=0), id="a cycle"),
        pytest.param(broken(left=-1), id="a child before its tree"),
        pytest.param(broken(right=10**6), id="a child past its tree"),
        pytest.param(broken(feature=4), id="a feature too many"),
        pytest.param(broken(feature=-1), id="a negative feature"),
        pytest.param(broken(leaf=0), id="unreachable nodes"),
        pytest.param(broken(set_of=0), id="a set that does not exist"),
        pytest.param(replace(random_forest(3), values=np.zeros((1, 1))), id="leaves without values"),
        pytest.param(replace(random_forest(3), values=np.zeros((400, 2))), id="values of another width"),
        pytest.param(replace(random_forest(3), tree_raw=np.full(9, 1, np.int32)), id="an output too many"),
        pytest.param(replace(random_forest(3), tree_start=np.array([0, 5, 3])), id="tree starts that fall"),
        pytest.param(replace(random_forest(3), base=np.zeros(2)), id="base values of another length"),
        pytest.param(replace(random_forest(3), pick=1), id="a picked output too many"),
        pytest.param(replace(random_forest(3), left=np.zeros(2, np.int32)), id="arrays of different lengths"),
    ],
)
def test_arrays_that_are_no_trees_are_refused(forest):
    """Whatever a file said, the kernel only ever walks trees it has checked."""
    with pytest.raises(UnsupportedModelError):
        forest.compile()


def test_deep_chains_are_refused():
    """A path longer than any library grows is refused instead of costing every row that long a walk."""
    n = 2 * 5000 + 1
    node = np.arange(n)
    inner = (node % 2 == 0) & (node < n - 1)
    forest = replace(
        random_forest(3, n_trees=1),
        tree_start=np.array([0, n]),
        feature=np.zeros(n, np.int32),
        threshold=np.zeros(n, np.float32),
        left=np.where(inner, node + 1, -1).astype(np.int32),
        right=np.where(inner, node + 2, -1).astype(np.int32),
        missing_left=np.zeros(n, np.uint8),
        set_of=np.full(n, -1, np.int32),
        leaf=np.where(inner, -1, np.cumsum(~inner) - 1),
        values=np.zeros((5001, 1)),
    )
    with pytest.raises(UnsupportedModelError, match="levels"):
        forest.compile()


def test_wrong_width_is_refused():
    """Rows of another width raise instead of being read past their end."""
    with pytest.raises(ValueError, match="4 features, got 3"):
        random_forest(1).compile().score(np.zeros((2, 3), dtype=np.float32))


def test_no_rows_give_no_scores():
    """An empty batch is an answer."""
    assert random_forest(1, n_raw=2).compile().score(np.zeros((0, 4), dtype=np.float32)).shape == (0, 2)


def test_scorer_is_immutable_and_not_pickled():
    """A scorer shared between threads cannot be initialised again, nor sent as a pickle."""
    scorer = random_forest(1).compile()
    with pytest.raises(TypeError):
        scorer.__reduce__()
    assert isinstance(scorer, ForestScorer)


def test_threads_share_a_scorer():
    """Threads scoring at once, GIL released, each get the answers of one alone."""
    forest = random_forest(21, n_trees=60, n_raw=2, sets=True)
    scorer = forest.compile()
    batches = [random_rows(forest, seed, 300) for seed in range(4)]
    expected = [scorer.score(batch) for batch in batches]
    wrong = []

    def work(k):
        wrong.extend(k for _ in range(10) if not np.array_equal(scorer.score(batches[k]), expected[k]))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_timed_rows_are_scored():
    """The benchmark's loop gives the answers it times."""
    forest = random_forest(2)
    scorer, rows = forest.compile(), random_rows(forest, 2, 20)
    scores, seconds = scorer.time_one_row(rows, 2)
    np.testing.assert_array_equal(scores, scorer.score(rows))
    assert seconds > 0
