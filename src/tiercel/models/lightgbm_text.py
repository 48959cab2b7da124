"""LightGBM's text format, as written by `Booster.save_model` and `model_to_string`.

What decides routing, from LightGBM's own prediction code: features are float64 (here: widened float32), values with
|x| <= 1e-35 count as zero, NaN counts as zero where the feature's missing type is None, a zero counts as missing where
it is Zero. Categories are truncated to integers; NaN, negatives and unseen ones are no member and go right.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from tiercel.errors import UnsupportedModelError
from tiercel.models.ir import (
    MAX_FEATURES,
    MAX_NODES,
    MAX_OUTPUTS,
    MAX_TREES,
    CategorySets,
    Forest,
    NotCompiledError,
    ParsedModel,
    Post,
    Step,
    StepKind,
    class_labels,
    cover_problem,
    fold_less_equal,
)
from tiercel.types import Task

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

ZERO_RANGE = np.float32(1e-35)
MISSING_NONE, MISSING_ZERO, MISSING_NAN = 0, 1, 2

IDENTITY_OBJECTIVES = frozenset(
    {"regression", "regression_l1", "huber", "fair", "quantile", "mape", "lambdarank", "rank_xendcg", "custom", ""}
)
EXP_OBJECTIVES = frozenset({"poisson", "gamma", "tweedie"})
ARRAYS: dict[str, Any] = {
    "split_feature": np.int64, "threshold": np.float64, "decision_type": np.int64,
    "left_child": np.int64, "right_child": np.int64, "leaf_value": np.float64,
}  # fmt: skip


def read_lightgbm(data: bytes) -> ParsedModel:
    """Read a LightGBM text model.

    Raises:
        NotCompiledError: it uses something the compiled scorer does not do (linear trees, an unknown objective).
        UnsupportedModelError: not such a file, or cut short.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UnsupportedModelError(f"Expected a LightGBM text model, got bytes that are not UTF-8: {error}") from None
    lines = text.split("\n")
    head, first_tree = _header(lines)
    features = tuple(head.get("feature_names", "").split())
    n_features = _integer(head, "max_feature_idx", "the header", low=0, high=MAX_FEATURES - 1) + 1
    n_raw = _integer(head, "num_tree_per_iteration", "the header", low=1, high=MAX_OUTPUTS)
    if len(features) != n_features:
        raise UnsupportedModelError(
            f"Expected {n_features} feature names in a LightGBM text model (max_feature_idx), got {len(features)}"
        )
    trees = list(_trees(lines, first_tree))
    declared = len(head.get("tree_sizes", "").split())
    if len(trees) != declared or not trees or len(trees) % n_raw:
        raise UnsupportedModelError(
            f"Expected {declared} trees (tree_sizes) in a LightGBM text model, a multiple of {n_raw}, got {len(trees)}. "
            f"The file is cut short or edited; save it again."
        )
    _check_sizes(data, head["tree_sizes"])
    average = "average_output" in head
    post, scale, task, n_classes = _objective(head.get("objective", ""), n_raw)
    body = _forest(
        trees,
        n_features=n_features,
        n_raw=n_raw,
        post=post,
        post_scale=scale,
        divisor=len(trees) // n_raw if average else 0.0,
    )
    return ParsedModel(
        body=body,
        task=task,
        classes=class_labels(n_classes),
        features=features,
        accepts_missing=True,
        hyperparameters=_parameters(lines),
    )


def _header(lines: list[str]) -> tuple[dict[str, str], int]:
    """Key-value pairs before the first tree, and the line of the first tree."""
    if not lines or lines[0].strip() != "tree":
        raise UnsupportedModelError("Expected a LightGBM text model, which starts with a line `tree`")
    head: dict[str, str] = {}
    for number, line in enumerate(lines):
        if line.startswith("Tree="):
            return head, number
        key, _, value = line.partition("=")
        head[key.strip()] = value.strip()
    raise UnsupportedModelError("Expected trees in a LightGBM text model, got none; the file is cut short")


def _trees(lines: list[str], first: int) -> Iterator[dict[str, str]]:
    """Each tree's key-value pairs."""
    tree: dict[str, str] = {}
    n_trees = 0
    for number in range(first, len(lines)):
        line = lines[number]
        if line.startswith(("Tree=", "end of trees")):
            if tree:
                yield tree
            if line.startswith("end of trees"):
                return
            n_trees += 1
            if n_trees > MAX_TREES:
                raise UnsupportedModelError(f"Expected at most {MAX_TREES} trees in a LightGBM text model")
            tree = {"Tree": line[5:].strip()}
        else:
            key, separator, value = line.partition("=")
            if separator:
                tree[key] = value
    raise UnsupportedModelError("Expected `end of trees` in a LightGBM text model; the file is cut short")


def _check_sizes(data: bytes, declared: str) -> None:
    """LightGBM jumps from tree to tree by these sizes, and ends the process where they are wrong."""
    begins, at = [], data.find(b"\nTree=")
    while at >= 0:
        begins.append(at)
        at = data.find(b"\nTree=", at + 1)
    begins.append(data.find(b"\nend of trees"))
    sizes = [end - begin for begin, end in itertools.pairwise(begins)]
    if declared.split() != [str(size) for size in sizes[: len(declared.split())]]:
        raise UnsupportedModelError(
            "The trees of this LightGBM text model do not have the sizes the file declares (tree_sizes). It was edited or "
            "its line ends were converted; save it again."
        )


def _forest(trees: list[dict[str, str]], *, n_features: int, n_raw: int, **rest: Any) -> Forest:
    n_nodes: list[int] = []
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in ARRAYS}
    boundaries: list[int] = []
    words: list[int] = []
    set_offset: list[int] = []  # first category set of the tree
    counts: list[NDArray[Any]] = []
    for number, tree in enumerate(trees):
        where = f"tree {number}"
        n_leaves = _integer(tree, "num_leaves", where, low=1, high=MAX_NODES // 2)
        if tree.get("is_linear", "0").strip() != "0":
            raise NotCompiledError("LightGBM linear trees (linear_tree=true) are not supported")
        for name, dtype in ARRAYS.items():
            is_empty = n_leaves == 1 and name != "leaf_value"
            values = np.zeros(0, dtype) if is_empty else _numbers(tree, name, where)
            wanted = n_leaves if name == "leaf_value" else n_leaves - 1
            if len(values) != wanted:
                raise UnsupportedModelError(f"Expected {wanted} values in {name} of {where}, got {len(values)}")
            parts[name].append(values)
        n_nodes.append(2 * n_leaves - 1)
        counts.append(_counts(tree, n_leaves, where))
        set_offset.append(len(boundaries))
        if _integer(tree, "num_cat", where, low=0, high=MAX_NODES, default=0):
            bounds = _numbers(tree, "cat_boundaries", where).tolist()
            members = _numbers(tree, "cat_threshold", where).tolist()
            if len(bounds) < 2 or bounds[0] != 0 or bounds[-1] != len(members) or sorted(bounds) != bounds:
                raise UnsupportedModelError(f"Expected cat_boundaries of {where} to rise from 0 to {len(members)}")
            if members and not (min(members) >= 0 and max(members) < 2**32):
                raise UnsupportedModelError(f"Expected 32-bit words in cat_threshold of {where}")
            boundaries += [len(words) + bound for bound in bounds[:-1]]
            words += members
    if sum(n_nodes) > MAX_NODES:
        raise UnsupportedModelError(f"Expected at most {MAX_NODES} nodes, got {sum(n_nodes)}")
    sets = CategorySets(
        words=np.array(words, dtype=np.uint32),
        start=np.array([*boundaries, len(words)], dtype=np.int64),
        equal=np.full(len(boundaries), np.nan, dtype=np.float32),
        floor_negative=True,
    )
    columns = {name: np.concatenate(part) for name, part in parts.items()}
    arrays, steps = _nodes(n_nodes, columns, set_offset, sets, n_features)
    cover = np.concatenate(counts) if all(len(each) for each in counts) else None
    why_no_cover = ""
    if cover is not None:
        why_no_cover = cover_problem(cover, arrays["leaf"] < 0, arrays["tree_start"], "internal_count, leaf_count")
    return Forest(
        n_features=n_features,
        n_raw=n_raw,
        tree_raw=np.arange(len(trees), dtype=np.int32) % n_raw,
        base=np.zeros(n_raw),
        base_first=True,  # sums start at zero; the boosted average is part of the first tree
        single_precision=False,
        cover=None if why_no_cover else cover,
        why_no_cover=why_no_cover,
        sets=sets,
        steps=steps,
        **arrays,
        **rest,
    )


def _counts(tree: dict[str, str], n_leaves: int, where: str) -> NDArray[Any]:
    """Training rows that came to each node, inner nodes first; none where the file does not say.

    A tree of one leaf counts nothing in its file, and needs nothing: everything comes there.
    """
    if n_leaves == 1:
        return np.ones(1)
    if "internal_count" not in tree or "leaf_count" not in tree:
        return np.zeros(0)
    found = np.concatenate([_numbers(tree, "internal_count", where), _numbers(tree, "leaf_count", where)])
    if len(found) != 2 * n_leaves - 1:
        raise UnsupportedModelError(f"Expected {2 * n_leaves - 1} counts (internal_count, leaf_count) in {where}")
    return found.astype(np.float64)


def _nodes(
    n_nodes: list[int], columns: dict[str, NDArray[Any]], set_offset: list[int], sets: CategorySets, n_features: int
) -> tuple[dict[str, Any], tuple[Step, ...]]:
    """Node arrays over all trees: a tree's inner nodes in file order, then its leaves."""
    size = np.array(n_nodes, dtype=np.int64)
    n_inner = size // 2
    start = np.concatenate([[0], np.cumsum(size)])
    total = int(start[-1])
    tree_of = np.repeat(np.arange(len(size)), n_inner)
    inner = np.arange(len(tree_of)) + (start[:-1] - np.concatenate([[0], np.cumsum(n_inner)])[:-1])[tree_of]
    is_inner = np.zeros(total, dtype=bool)
    is_inner[inner] = True
    leaf = np.full(total, -1, dtype=np.int64)
    leaf[~is_inner] = np.arange(total - len(inner))

    decision = columns["decision_type"]
    column = columns["split_feature"]
    cut = columns["threshold"]
    if len(column) and not (column.min() >= 0 and column.max() < n_features):
        raise UnsupportedModelError(f"Expected split_feature below {n_features}, got {column.min()}..{column.max()}")
    categorical, missing = (decision & 1) == 1, (decision >> 2) & 3
    if np.any(missing > MISSING_NAN) or np.any(decision < 0) or np.any(decision > 15):
        raise UnsupportedModelError("Unknown decision_type in a LightGBM text model")
    zero_columns = np.unique(column[~categorical & (missing == MISSING_ZERO)])
    mixed = np.isin(column, zero_columns) & (categorical | (missing != MISSING_ZERO))
    if np.any(mixed):
        raise NotCompiledError(
            f"Feature {column[mixed][0]} treats zero as missing in some splits and not in others; that is not supported"
        )

    threshold = fold_less_equal(cut)
    # Values within ZERO_RANGE of zero are zero to LightGBM: no threshold may fall between them.
    threshold[(threshold >= 0) & (threshold < ZERO_RANGE)] = ZERO_RANGE
    threshold[(threshold < 0) & (threshold >= -ZERO_RANGE)] = np.nextafter(-ZERO_RANGE, np.float32(-np.inf))
    default_left = (decision & 2) != 0
    missing_left = np.where(missing == MISSING_NONE, threshold >= 0, default_left) & ~categorical

    set_of = np.full(len(column), -1, dtype=np.int64)
    n_sets = np.diff([*set_offset, len(sets.equal)])
    with np.errstate(invalid="ignore"):
        local = np.where(categorical, cut, 0)
    if (
        np.any(local < 0)
        or np.any(local >= np.maximum(n_sets[tree_of], 1))
        or np.any(categorical & (n_sets[tree_of] == 0))
    ):
        raise UnsupportedModelError(
            "A categorical split of a LightGBM text model names a set that the tree does not have"
        )
    set_of[categorical] = (
        local[categorical].astype(np.int64) + np.array(set_offset, dtype=np.int64)[tree_of[categorical]]
    )

    def children(name: str) -> np.ndarray[Any, np.dtype[np.int64]]:
        child = columns[name]
        bound = n_inner[tree_of]
        if np.any(child >= bound) or np.any(~child > bound):
            raise UnsupportedModelError(f"{name} of a LightGBM text model points outside its tree")
        return start[:-1][tree_of] + np.where(child >= 0, child, bound + ~child)

    def spread(values: Any, fill: float, dtype: Any) -> Any:
        out = np.full(total, fill, dtype=dtype)
        out[inner] = values
        return out

    steps: tuple[Step, ...] = ()
    if len(zero_columns):
        flags = np.zeros(n_features, dtype=np.float32)
        flags[zero_columns] = 1.0
        steps = (Step(StepKind.ZERO_IS_NAN, flags, np.zeros(n_features, dtype=np.float32)),)
    arrays = {
        "tree_start": start,
        "feature": spread(column, 0, np.int32),
        "threshold": spread(threshold, 0.0, np.float32),
        "left": spread(children("left_child"), -1, np.int32),
        "right": spread(children("right_child"), -1, np.int32),
        "missing_left": spread(missing_left, 0, np.uint8),
        "set_of": spread(set_of, -1, np.int32),
        "leaf": leaf,
        "values": columns["leaf_value"].reshape(-1, 1),
    }
    return arrays, steps


def _objective(objective: str, n_raw: int) -> tuple[Post, float, Task, int]:
    """(transform, its factor, task, number of classes) of an `objective=` line."""
    name, *options = objective.split() or [""]
    values = dict(option.partition(":")[::2] for option in options)
    try:
        sigmoid = float(values.get("sigmoid", "1"))
    except ValueError:
        raise UnsupportedModelError(f"Expected a number for sigmoid in LightGBM objective {objective!r}") from None
    if name == "binary" and n_raw == 1:
        return Post.SIGMOID_F64, sigmoid, Task.BINARY, 2
    if name in {"multiclass", "multiclassova"} and n_raw > 1:
        return (Post.SOFTMAX_F64 if name == "multiclass" else Post.SIGMOID_F64), sigmoid, Task.MULTICLASS, n_raw
    if n_raw == 1:
        if name in IDENTITY_OBJECTIVES:
            return (Post.SIGNED_SQUARE_F64 if "sqrt" in options else Post.IDENTITY), 1.0, Task.REGRESSION, 0
        if name in EXP_OBJECTIVES:
            return Post.EXP_F64, 1.0, Task.REGRESSION, 0
        if name == "cross_entropy":
            return Post.SIGMOID_F64, 1.0, Task.REGRESSION, 0
        if name == "cross_entropy_lambda":
            return Post.LOG1P_EXP_F64, 1.0, Task.REGRESSION, 0
    raise NotCompiledError(f"LightGBM objective {objective!r} with {n_raw} trees per iteration is not supported")


def _parameters(lines: list[str]) -> dict[str, Any]:
    """The `parameters:` section, as text values."""
    found: dict[str, Any] = {}
    try:
        at = lines.index("parameters:")
    except ValueError:
        return found
    for line in lines[at + 1 :]:
        if not line.startswith("["):
            break
        key, _, value = line.strip("[]").partition(": ")
        found[key] = value
    return found


def _numbers(tree: dict[str, str], name: str, where: str) -> NDArray[Any]:
    if name not in tree:
        raise UnsupportedModelError(f"Expected {name} in {where} of a LightGBM text model, got none")
    try:
        # PERF: a third of the time of float() per word; half a million numbers in a model of 500 trees. Text that is no
        #   number ends the array early (with a DeprecationWarning, an error in later NumPy), which the counts reveal.
        return np.fromstring(tree[name], dtype=ARRAYS.get(name, np.int64), sep=" ")
    except (ValueError, DeprecationWarning) as error:
        raise UnsupportedModelError(f"Expected numbers in {name} of {where}: {error}") from None


def _integer(pairs: dict[str, str], name: str, where: str, *, low: int, high: int, default: int | None = None) -> int:
    text = pairs.get(name, "" if default is None else str(default))
    try:
        value = int(text)
    except ValueError:
        value = low - 1
    if not low <= value <= high:
        raise UnsupportedModelError(
            f"Expected {name} between {low} and {high} in {where} of a LightGBM text model, got {text!r:.40}"
        )
    return value
