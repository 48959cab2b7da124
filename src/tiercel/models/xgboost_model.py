"""XGBoost's JSON and UBJSON model files.

From XGBoost's own prediction code: float32 throughout, `x < condition` goes left, NaN takes the default direction; a
category set holds what goes right, and negative or unseen categories go left; the margin starts at the base score.
`base_score` is kept in the objective's output space, as a number or (3.1 and later) a list, both written as text.
"""

from __future__ import annotations

import json
import math
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
    Linear,
    NotCompiledError,
    ParsedModel,
    Post,
    Step,
    StepKind,
    class_labels,
    cover_problem,
    fold_less,
    log_float32,
)
from tiercel.models.ubjson import read_ubjson
from tiercel.types import Task

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_CATEGORY = 1 << 24
IDENTITY_OBJECTIVES = frozenset(
    {
        "reg:squarederror", "reg:linear", "reg:absoluteerror", "reg:pseudohubererror", "reg:quantileerror",
        "reg:squaredlogerror", "binary:logitraw", "rank:pairwise", "rank:ndcg", "rank:map",
    }
)  # fmt: skip
EXP_OBJECTIVES = frozenset({"count:poisson", "reg:gamma", "reg:tweedie", "survival:cox", "survival:aft"})


def read_xgboost(data: bytes, *, is_ubjson: bool) -> ParsedModel:
    """Read an XGBoost model.

    Raises:
        NotCompiledError: sound, but it uses something the compiled scorers do not do (vector leaves, several targets).
        UnsupportedModelError: not such a file, cut short or altered.
    """
    try:
        document = read_ubjson(data) if is_ubjson else json.loads(data)
        return _parse(document["learner"])
    except (KeyError, TypeError, ValueError, IndexError, OverflowError, AttributeError, RecursionError) as error:
        if isinstance(error, UnsupportedModelError):
            raise
        raise UnsupportedModelError(
            f"Expected an XGBoost {'UBJSON' if is_ubjson else 'JSON'} model; the file is cut short or altered: {error!r}"
        ) from error


def _parse(learner: dict[str, Any]) -> ParsedModel:
    param = learner["learner_model_param"]
    n_features, n_class = int(param["num_feature"]), int(param.get("num_class", "0"))
    if int(param.get("num_target", "1")) > 1:
        raise NotCompiledError("XGBoost models of several targets are not compiled")
    n_raw = max(n_class, 1)
    if not 1 <= n_features <= MAX_FEATURES or n_raw > MAX_OUTPUTS:
        raise UnsupportedModelError(f"Expected features and classes of an XGBoost model, got {n_features}, {n_class}")
    objective = str(learner["objective"]["name"])
    post, task, labels = _objective(objective, n_raw)
    base = _base_margin(str(param["base_score"]), n_raw, post)
    booster = learner["gradient_booster"]
    name = booster["name"]
    body: Forest | Linear
    if name == "gblinear":
        weights = _array(booster["model"]["weights"], np.float64)
        if len(weights) != (n_features + 1) * n_raw:
            raise UnsupportedModelError(f"Expected {(n_features + 1) * n_raw} weights, got {len(weights)}")
        table = weights.reshape(n_features + 1, n_raw)
        nothing = np.zeros(n_features, dtype=np.float32)
        # What is missing adds nothing to XGBoost's sum, and the first base score is that of every class.
        body = Linear(
            table[:-1].T.copy(), table[-1] + base[0], post=post, steps=(Step(StepKind.IMPUTE_NAN, nothing, nothing),)
        )
    elif name in ("gbtree", "dart"):
        model, scale = booster, None
        if name == "dart":
            scale = _array(booster["weight_drop"], np.float32)
            model = booster["gbtree"]
        body = _forest(model["model"], n_features, n_raw, base, post, scale)
    else:
        raise NotCompiledError(f"XGBoost booster {name!r} is not compiled")
    features = tuple(str(feature) for feature in learner.get("feature_names", []))
    return ParsedModel(
        body=body,
        task=task,
        classes=labels,
        features=features if len(features) == n_features else None,
        accepts_missing=True,
        hyperparameters={"objective": objective, "booster": name},
    )


def _objective(name: str, n_raw: int) -> tuple[Post, Task, tuple[str, ...]]:
    if name in ("multi:softprob", "multi:softmax") and n_raw > 1:
        # Two classes of softprob are a binary model whose score is the second probability; kept as two outputs.
        return Post.SOFTMAX_XGB, Task.MULTICLASS, class_labels(n_raw)
    if n_raw == 1:
        if name == "binary:logistic":
            return Post.SIGMOID_XGB, Task.BINARY, class_labels(2)
        if name == "reg:logistic":
            return Post.SIGMOID_XGB, Task.REGRESSION, ()
        if name in IDENTITY_OBJECTIVES:
            return Post.IDENTITY, Task.REGRESSION, ()
        if name in EXP_OBJECTIVES:
            return Post.EXP_XGB, Task.REGRESSION, ()
    raise NotCompiledError(f"XGBoost objective {name!r} with {n_raw} outputs is not compiled")


def _base_margin(text: str, n_raw: int, post: Post) -> NDArray[np.float64]:
    """The base score as margins, rounded to float32 where XGBoost does."""
    values = [float(part) for part in text.strip("[]").split(",")]
    if len(values) not in (1, n_raw) or not all(math.isfinite(value) for value in values):
        raise UnsupportedModelError(f"Expected a base_score or {n_raw} of them, got {text!r:.60}")
    base = np.array(values, dtype=np.float32)
    if post is Post.SIGMOID_XGB:
        if not np.all((base > 0) & (base < 1)):
            raise UnsupportedModelError(f"Expected a base_score between 0 and 1, got {text!r:.60}")
        odds = np.float32(1.0) / base - np.float32(1.0)
        base = np.array([-log_float32(value) for value in odds], dtype=np.float32)
    elif post is Post.EXP_XGB:
        if not np.all(base > 0):
            raise UnsupportedModelError(f"Expected a positive base_score, got {text!r:.60}")
        base = np.array([log_float32(value) for value in base], dtype=np.float32)
    return np.broadcast_to(base, (n_raw,)).astype(np.float64)


def _forest(
    model: dict[str, Any], n_features: int, n_raw: int, base: NDArray[np.float64], post: Post,
    scale: NDArray[np.float32] | None,
) -> Forest:  # fmt: skip
    trees, tree_raw = model["trees"], _array(model["tree_info"], np.int64)
    if (
        not 1 <= len(trees) <= MAX_TREES
        or len(tree_raw) != len(trees)
        or int(tree_raw.min()) < 0
        or tree_raw.max() >= n_raw
    ):
        raise UnsupportedModelError(f"Expected trees for {n_raw} outputs (tree_info), got {len(trees)}")
    if scale is not None and len(scale) != len(trees):
        raise UnsupportedModelError(f"Expected {len(trees)} weights (weight_drop), got {len(scale)}")
    parts = []
    words: list[NDArray[np.uint32]] = []
    set_start = [0]
    for number, tree in enumerate(trees):
        part = _tree(tree, number, n_features, words, set_start)
        if scale is not None:
            part["value"] = part["value"] * scale[number]
        parts.append(part)
    sizes = [len(part["feature"]) for part in parts]
    if sum(sizes) > MAX_NODES:
        raise UnsupportedModelError(f"Expected at most {MAX_NODES} nodes, got {sum(sizes)}")
    start = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

    def joined(name: str, dtype: Any, offset: bool = False) -> Any:
        columns = [part[name] + (begin if offset else 0) for part, begin in zip(parts, start, strict=False)]
        return np.concatenate(columns).astype(dtype)

    is_leaf = joined("is_leaf", bool)
    leaf = np.where(is_leaf, np.cumsum(is_leaf) - 1, -1)
    n_sets = len(set_start) - 1
    cover = joined("cover", np.float64) if all(len(part["cover"]) for part in parts) else None
    why_no_cover = "" if cover is None else cover_problem(cover, ~is_leaf, start, "sum_hessian")
    return Forest(
        n_features=n_features,
        n_raw=n_raw,
        tree_start=start,
        feature=joined("feature", np.int32),
        threshold=joined("threshold", np.float32),
        left=joined("left", np.int32, offset=True),
        right=joined("right", np.int32, offset=True),
        missing_left=joined("missing_left", np.uint8),
        set_of=joined("set_of", np.int32),
        leaf=leaf.astype(np.int64),
        values=joined("value", np.float64)[is_leaf].reshape(-1, 1),
        tree_raw=tree_raw.astype(np.int32),
        base=base,
        base_first=True,
        single_precision=True,
        cover=None if why_no_cover else cover,
        why_no_cover=why_no_cover,
        sets=CategorySets(
            words=np.concatenate(words) if words else np.zeros(0, np.uint32),
            start=np.array(set_start, dtype=np.int64),
            equal=np.full(n_sets, np.nan, dtype=np.float32),
        ),
        post=post,
    )


def _tree(
    tree: dict[str, Any], number: int, n_features: int, words: list[NDArray[np.uint32]], set_start: list[int]
) -> dict[str, Any]:
    """Node arrays of one tree, unreachable (pruned) nodes left out."""
    param = tree["tree_param"]
    if int(param.get("size_leaf_vector", "1")) > 1:
        raise NotCompiledError("XGBoost trees with vector leaves are not compiled")
    left, right = _array(tree["left_children"], np.int64), _array(tree["right_children"], np.int64)
    condition = _array(tree["split_conditions"], np.float32)
    column, default_left = _array(tree["split_indices"], np.int64), _array(tree["default_left"], np.int64)
    n = len(left)
    kinds = _array(tree.get("split_type", []), np.int64)
    kinds = kinds if len(kinds) else np.zeros(n, dtype=np.int64)
    if not all(len(array) == n for array in (right, condition, column, default_left, kinds)) or n < 1:
        raise UnsupportedModelError(f"Expected {n} values per array of XGBoost tree {number}")
    is_leaf = left < 0
    inner = ~is_leaf
    for child in (left[inner], right[inner]):
        if len(child) and not (child.min() >= 0 and child.max() < n):
            raise UnsupportedModelError(f"Expected children of XGBoost tree {number} below {n}")
    if np.any(column[inner] < 0) or np.any(column[inner] >= n_features):
        raise UnsupportedModelError(f"Expected split_indices of XGBoost tree {number} below {n_features}")
    threshold, set_of = fold_less(condition), np.full(n, -1, dtype=np.int64)
    missing_left = (default_left != 0) & inner
    categorical = inner & (kinds == 1)
    if np.any(categorical):
        _category_sets(tree, number, np.flatnonzero(categorical), set_of, words, set_start)
        # Members of the set go right in XGBoost and left here.
        left, right = np.where(categorical, right, left), np.where(categorical, left, right)
        missing_left = np.where(categorical, ~missing_left, missing_left)

    keep = _reachable(left, right, inner, number)
    place = np.cumsum(keep) - 1
    return {
        "feature": np.where(inner, column, 0)[keep],
        "threshold": threshold[keep],
        "left": np.where(inner, place[left], -1)[keep],
        "right": np.where(inner, place[right], -1)[keep],
        "missing_left": missing_left[keep],
        "set_of": set_of[keep],
        "is_leaf": is_leaf[keep],
        "value": condition[keep],
        "cover": _cover(tree, n, number)[keep] if "sum_hessian" in tree else np.zeros(0),
    }


def _cover(tree: dict[str, Any], n: int, number: int) -> NDArray[np.float64]:
    """How much of the training data, by the objective's second derivative, came to each node; scoring does not need it."""
    cover = _array(tree["sum_hessian"], np.float64)
    if len(cover) != n:
        raise UnsupportedModelError(f"Expected {n} values in sum_hessian of XGBoost tree {number}, got {len(cover)}")
    return cover


def _reachable(
    left: NDArray[np.int64], right: NDArray[np.int64], inner: NDArray[np.bool_], number: int
) -> NDArray[np.bool_]:
    seen = np.zeros(len(left), dtype=bool)
    level = np.zeros(1, dtype=np.int64)
    while len(level):
        if np.any(seen[level]) or len(np.unique(level)) != len(level):
            raise UnsupportedModelError(f"Expected XGBoost tree {number} to be a tree, but a node has two parents")
        seen[level] = True
        parents = level[inner[level]]
        level = np.concatenate([left[parents], right[parents]])
    return seen


def _category_sets(
    tree: dict[str, Any], number: int, nodes: NDArray[np.int64], set_of: NDArray[np.int64],
    words: list[NDArray[np.uint32]], set_start: list[int],
) -> None:  # fmt: skip
    names = ("categories", "categories_nodes", "categories_segments", "categories_sizes")
    members, owners, begins, sizes = (_array(tree[name], np.int64) for name in names)
    of_node = {int(owner): k for k, owner in enumerate(owners)}
    if not len(owners) == len(begins) == len(sizes) or (
        len(members) and not 0 <= members.min() <= members.max() < MAX_CATEGORY
    ):
        raise UnsupportedModelError(f"Expected categories of XGBoost tree {number} below {MAX_CATEGORY}")
    for node in nodes.tolist():
        at = of_node.get(node)
        if at is None:
            raise UnsupportedModelError(f"Expected categories of node {node} in XGBoost tree {number}, got none")
        begin, size = int(begins[at]), int(sizes[at])
        if not (0 <= begin <= begin + size <= len(members)):
            raise UnsupportedModelError(f"Categories of node {node} in XGBoost tree {number} lie outside their array")
        chosen = members[begin : begin + size]
        bits = np.zeros(int(chosen.max(initial=0)) // 32 + 1, dtype=np.uint32)
        np.bitwise_or.at(bits, chosen >> 5, np.uint32(1) << (chosen & 31).astype(np.uint32))
        set_of[node] = len(set_start) - 1
        words.append(bits)
        set_start.append(set_start[-1] + len(bits))


def _array(values: Any, dtype: Any) -> NDArray[Any]:
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "biuf"):
        raise UnsupportedModelError("Expected an array of numbers in an XGBoost model")
    return array.astype(dtype)
