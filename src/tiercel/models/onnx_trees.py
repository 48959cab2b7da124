"""TreeEnsembleClassifier and TreeEnsembleRegressor of ai.onnx.ml as a forest.

Follows onnxruntime rather than the specification where they differ (parity.py checks which it is): sums in float32, base
values added last, a two-class model whose leaves weigh only the first class scores the second with it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiercel.errors import UnsupportedModelError
from tiercel.models.ir import (
    MAX_LEAF_VALUES,
    MAX_NODES,
    MAX_OUTPUTS,
    Aggregate,
    CategorySets,
    Forest,
    NotCompiledError,
    Post,
    Step,
    fold_less,
)
from tiercel.models.onnx_proto import FLOAT, Node, Tensor

POSTS = {
    "NONE": Post.IDENTITY,
    "LOGISTIC": Post.SIGMOID_ORT,
    "SOFTMAX": Post.SOFTMAX_ORT,
    "SOFTMAX_ZERO": Post.SOFTMAX_ZERO_ORT,
    "PROBIT": Post.PROBIT_ORT,
}
MODES = ("LEAF", "BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ")
LEAF, LEQ, LT, GTE, GT, EQ, NEQ = range(7)
Ints = NDArray[np.int64]


def post_of(node: Node) -> Post:
    """The node's `post_transform`."""
    name = node.attributes.get("post_transform", "NONE")
    if name not in POSTS:
        raise NotCompiledError(f"post_transform {name!r} of {node.op} is not supported")
    return POSTS[name]


def read_trees(node: Node, steps: tuple[Step, ...], n_features: int | None, n_labels: int) -> Forest:
    """The forest of one tree ensemble node.

    Args:
        node: the operator.
        steps: preparation of rows in front of it.
        n_features: width of its input; None takes the highest feature used.
        n_labels: number of class labels; 0 for a regressor.
    """
    arrays, leaf_node, sets, tree_ids = _nodes(node)
    highest = int(arrays["feature"][arrays["leaf"] < 0].max(initial=0)) + 1
    n_features = highest if n_features is None else n_features
    is_classifier = node.op == "TreeEnsembleClassifier"
    prefix, weight_prefix = ("class", "class") if is_classifier else ("target", "target")
    ids, weights = _ints(node, f"{prefix}_ids"), _floats(node, f"{weight_prefix}_weights")
    where = _locate(leaf_node, _ints(node, f"{prefix}_treeids"), _ints(node, f"{prefix}_nodeids"), f"{prefix}_nodeids")
    if not len(ids) == len(weights) == len(where) or not len(ids):
        raise UnsupportedModelError(f"Expected as many ids as weights in {node.op}, got {len(ids)} and {len(weights)}")
    n_raw = n_labels if is_classifier else int(node.attributes.get("n_targets", 1))
    if not 1 <= n_raw <= MAX_OUTPUTS or ids.min() < 0 or ids.max() >= n_raw:
        raise UnsupportedModelError(f"Expected ids below {n_raw} in {node.op}, got {ids.min()}..{ids.max()}")
    leaf = arrays["leaf"][where]
    if np.any(leaf < 0):
        raise UnsupportedModelError(f"A weight of {node.op} belongs to an inner node")
    base = _floats(node, "base_values").astype(np.float64)
    post, pick = post_of(node), -1
    if is_classifier and n_raw == 2:
        if ids.max() == 0:
            # Weights on the first class only are the score of the second; of the transforms only these two apply.
            n_raw, base = 1, base[-1:]
            post = post if post in (Post.SIGMOID_ORT, Post.PROBIT_ORT) else Post.IDENTITY
        else:
            pick = 1
    elif not is_classifier and n_raw == 1 and post is not Post.PROBIT_ORT:
        post = Post.IDENTITY  # onnxruntime transforms single targets by PROBIT only
    if len(base) not in (0, n_raw):
        raise NotCompiledError(f"{len(base)} base_values for {n_raw} outputs of {node.op} are not supported")
    n_leaves = int(arrays["leaf"].max()) + 1
    values, tree_raw = _leaf_values(node, leaf, ids, weights, tree_ids, arrays, n_leaves, n_raw)
    function = "SUM" if is_classifier else node.attributes.get("aggregate_function", "SUM")
    if function not in ("SUM", "AVERAGE", "MIN", "MAX"):
        raise NotCompiledError(f"aggregate_function {function!r} of {node.op} is not supported")
    n_trees = len(arrays["tree_start"]) - 1
    return Forest(
        n_features=n_features,
        n_raw=n_raw,
        values=values,
        tree_raw=tree_raw,
        base=base if len(base) else np.zeros(n_raw),
        base_first=False,
        single_precision=True,
        sets=sets,
        aggregate={"MIN": Aggregate.MIN, "MAX": Aggregate.MAX}.get(function, Aggregate.SUM),
        divisor=float(n_trees) if function == "AVERAGE" else 0.0,
        post=post,
        pick=pick,
        steps=steps,
        **arrays,
    )


def _nodes(node: Node) -> tuple[dict[str, Any], tuple[Ints, Ints, Ints], CategorySets, Ints]:
    """(node arrays with roots first, (tree id, node id, position) of every node, sets, tree number of every node)."""
    tree, number = _ints(node, "nodes_treeids"), _ints(node, "nodes_nodeids")
    n = len(tree)
    if not 1 <= n <= MAX_NODES:
        raise UnsupportedModelError(f"Expected at most {MAX_NODES} nodes in {node.op}, got {n}")
    names = node.attributes.get("nodes_modes", [])
    known = {name: k for k, name in enumerate(MODES)}
    try:
        mode = np.array([known[name] for name in names], dtype=np.int8)
    except KeyError as error:
        raise NotCompiledError(f"Node mode {error} of {node.op} is not supported") from None
    column, cut = _ints(node, "nodes_featureids"), _floats(node, "nodes_values")
    yes, no = _ints(node, "nodes_truenodeids"), _ints(node, "nodes_falsenodeids")
    tracks = _ints(node, "nodes_missing_value_tracks_true") != 0
    tracks = tracks if len(tracks) else np.zeros(n, dtype=bool)
    for name, array in (("nodeids", number), ("modes", mode), ("featureids", column), ("values", cut),
                        ("truenodeids", yes), ("falsenodeids", no), ("missing_value_tracks_true", tracks)):  # fmt: skip
        if len(array) != n:
            raise UnsupportedModelError(f"Expected {n} values in nodes_{name} of {node.op}, got {len(array)}")
    inner = mode != LEAF
    if np.any(column[inner] < 0) or np.any(column[inner] >= 2**30):
        raise UnsupportedModelError(f"Expected features of {node.op} to be non-negative")
    if np.any(np.isnan(cut[inner])):
        raise NotCompiledError(f"A NaN threshold of {node.op} is not supported")

    # Trees in order of appearance; within a tree the root (nobody's child) first, the rest in file order.
    ids, first_seen, rank = np.unique(tree, return_index=True, return_inverse=True)
    appearance = np.empty(len(ids), dtype=np.int64)
    appearance[np.argsort(first_seen, kind="stable")] = np.arange(len(ids))
    rank = appearance[rank.reshape(-1)]
    table = _index(tree, number)
    yes_at = _locate(table, tree[inner], yes[inner], "nodes_truenodeids")
    no_at = _locate(table, tree[inner], no[inner], "nodes_falsenodeids")
    is_child = np.zeros(n, dtype=bool)
    is_child[yes_at] = is_child[no_at] = True
    order = np.lexsort((np.arange(n), is_child, rank))
    place = np.empty(n, dtype=np.int64)
    place[order] = np.arange(n)
    sizes = np.bincount(rank)

    left, right = np.full(n, -1, dtype=np.int64), np.full(n, -1, dtype=np.int64)
    swapped = np.isin(mode[inner], (GTE, GT, NEQ))
    left[inner] = place[np.where(swapped, no_at, yes_at)]
    right[inner] = place[np.where(swapped, yes_at, no_at)]
    threshold = cut.astype(np.float32)
    strict = np.isin(mode, (LT, GTE))
    threshold[strict] = fold_less(threshold[strict])
    # NaN takes the false branch unless tracked; != is true of NaN.
    missing_left = np.where(np.isin(mode, (GTE, GT)), ~tracks, tracks) & (mode != NEQ) & inner
    by_value = np.isin(mode, (EQ, NEQ))
    set_of = np.full(n, -1, dtype=np.int64)
    set_of[by_value] = np.arange(int(by_value.sum()))
    sets = CategorySets(start=np.zeros(int(by_value.sum()) + 1, dtype=np.int64), equal=cut[by_value].astype(np.float32))
    leaf = np.full(n, -1, dtype=np.int64)
    in_order = ~inner[order]
    leaf[in_order] = np.arange(int(in_order.sum()))
    arrays = {
        "tree_start": np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        "feature": np.where(inner, column, 0)[order].astype(np.int32),
        "threshold": threshold[order],
        "left": left[order].astype(np.int32),
        "right": right[order].astype(np.int32),
        "missing_left": missing_left[order].astype(np.uint8),
        "set_of": set_of[order].astype(np.int32),
        "leaf": leaf,
    }
    arrays["cover"] = _cover(node, arrays, order)
    keys, positions = table
    return arrays, (keys, place[positions], np.empty(0, np.int64)), sets, rank[order]


def _cover(node: Node, arrays: dict[str, Any], order: Ints) -> NDArray[np.float64] | None:
    """`nodes_hitrates`, where they are what they are called: most converters write ones everywhere."""
    rates = _floats(node, "nodes_hitrates").astype(np.float64)
    if len(rates) != len(order) or not np.all(np.isfinite(rates)) or np.any(rates < 0):
        return None
    cover = rates[order]
    inner = arrays["leaf"] < 0
    below = cover[arrays["left"][inner]] + cover[arrays["right"][inner]]
    return cover if np.allclose(below, cover[inner], rtol=1e-3) else None


def _leaf_values(
    node: Node, leaf: Ints, ids: Ints, weights: NDArray[np.float32], tree_ids: Ints, arrays: dict[str, Any],
    n_leaves: int, n_raw: int,
) -> tuple[NDArray[np.float64], NDArray[np.int32]]:  # fmt: skip
    """(values, output per tree): one column where every leaf has one weight and every tree one output."""
    n_trees = len(arrays["tree_start"]) - 1
    tree_of_leaf = np.empty(n_leaves, dtype=np.int64)
    is_leaf = arrays["leaf"] >= 0
    tree_of_leaf[arrays["leaf"][is_leaf]] = tree_ids[is_leaf]
    weighted = np.bincount(leaf, minlength=n_leaves)
    aggregate = node.attributes.get("aggregate_function", "SUM")
    low, high = np.full(n_trees, n_raw, dtype=np.int64), np.full(n_trees, -1, dtype=np.int64)
    np.minimum.at(low, tree_of_leaf[leaf], ids)
    np.maximum.at(high, tree_of_leaf[leaf], ids)
    single = bool(np.all(weighted == 1) and np.all(low == high))
    if single and (n_raw == 1 or aggregate in ("SUM", "AVERAGE")):
        values = np.zeros((n_leaves, 1))
        values[leaf, 0] = weights
        return values, low.astype(np.int32)
    if aggregate in ("MIN", "MAX") and not np.all(weighted == n_raw):
        raise NotCompiledError(f"{aggregate} over leaves that leave out targets is not supported")
    if n_leaves * n_raw > MAX_LEAF_VALUES:
        raise NotCompiledError(f"{n_leaves} leaves of {n_raw} outputs are too many to compile")
    if len(np.unique(leaf * n_raw + ids)) != len(ids):
        raise NotCompiledError(f"Leaves of {node.op} that weigh one output twice are not supported")
    values = np.zeros((n_leaves, n_raw))
    values[leaf, ids] = weights
    return values, np.zeros(n_trees, dtype=np.int32)


def _index(tree: Ints, number: Ints) -> tuple[Ints, Ints]:
    """Sorted keys of (tree id, node id) and the node each belongs to."""
    key = _key(tree, number)
    order = np.argsort(key, kind="stable")
    keys = key[order]
    if np.any(keys[1:] == keys[:-1]):
        raise UnsupportedModelError("Two nodes of a tree ensemble share a tree id and a node id")
    return keys, order


def _locate(table: tuple[Ints, ...], tree: Ints, number: Ints, what: str) -> Ints:
    """Position of each (tree id, node id)."""
    if len(tree) != len(number):
        raise UnsupportedModelError(f"Expected as many tree ids as node ids in {what}, got {len(tree)}, {len(number)}")
    keys, positions = table[0], table[1]
    key = _key(tree, number)
    at = np.minimum(np.searchsorted(keys, key), len(keys) - 1)
    if np.any(keys[at] != key):
        raise UnsupportedModelError(f"{what} of a tree ensemble names a node that its tree does not have")
    return positions[at]


def _key(tree: Ints, number: Ints) -> Ints:
    for array in (tree, number):
        if len(array) and not (array.min() >= 0 and array.max() < 2**31):
            raise UnsupportedModelError("Expected tree and node ids between 0 and 2^31 in a tree ensemble")
    return (tree << 31) | number


def _ints(node: Node, name: str) -> Ints:
    value = node.attributes.get(name)
    if value is None:
        return np.zeros(0, dtype=np.int64)
    if not isinstance(value, np.ndarray) or value.dtype != np.int64:
        raise UnsupportedModelError(f"Expected integers in {name} of {node.op}")
    return value


def _floats(node: Node, name: str) -> NDArray[np.float32]:
    """A float attribute, or its `_as_tensor` twin when that is float32 too."""
    tensor = node.attributes.get(f"{name}_as_tensor")
    if isinstance(tensor, Tensor):
        if tensor.dtype != FLOAT:
            raise NotCompiledError(f"{name}_as_tensor of {node.op} is not float32: onnxruntime computes it in float64")
        return tensor.values.reshape(-1).astype(np.float32)
    value = node.attributes.get(name)
    if value is None:
        return np.zeros(0, dtype=np.float32)
    if not isinstance(value, np.ndarray) or value.dtype != np.float32:
        raise UnsupportedModelError(f"Expected numbers in {name} of {node.op}")
    return value
