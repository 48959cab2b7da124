"""What is explained of a model: its margins, the numbers that its trees or weights add up to before any transform."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from tiercel.errors import UnexplainableModelError
from tiercel.models.ir import Aggregate, Forest, Linear, Post, StepKind

if TYPE_CHECKING:
    from tiercel.models.ir import Step

SOFTMAX = frozenset({Post.SOFTMAX_F64, Post.SOFTMAX_XGB, Post.SOFTMAX_ORT, Post.SOFTMAX_ZERO_ORT})
_MIXING = frozenset({StepKind.NORMALIZE_MAX, StepKind.NORMALIZE_L1, StepKind.NORMALIZE_L2})


def explained_forest(forest: Forest) -> Forest:
    """The same forest with its margins alone: a plain sum of leaves and base, one output per margin that is explained.

    Where one of several outputs is kept (a binary classifier of two), only its margin stays; of two that go through a
    softmax it is their difference, the log odds.

    Raises:
        UnexplainableModelError: margins that are no sum of trees, or rows whose features are mixed before the trees.
    """
    if forest.aggregate is not Aggregate.SUM:
        raise UnexplainableModelError(
            f"Expected a forest that adds its trees, got one that takes their {forest.aggregate.name}: what a feature "
            f"adds to a minimum or maximum over trees is not computed exactly. Explain it by kind='permutation'."
        )
    _check_steps(forest.steps)
    scale = 1.0 / forest.divisor if forest.divisor else 1.0
    values = forest.values * scale
    base = forest.base * (scale if forest.base_first else 1.0)
    tree_raw = forest.tree_raw
    if forest.pick >= 0:
        signs = _kept(forest.n_raw, forest.pick, forest.post)
        if values.shape[1] > 1:
            values = values @ signs[:, None]
        else:
            leaf_tree = np.empty(len(values), dtype=np.int64)
            is_leaf = forest.leaf >= 0
            leaf_tree[forest.leaf[is_leaf]] = np.repeat(np.arange(forest.n_trees), np.diff(forest.tree_start))[is_leaf]
            values = values * signs[tree_raw[leaf_tree]][:, None]
        base, tree_raw = np.array([base @ signs]), np.zeros_like(tree_raw)
    return replace(
        forest, n_raw=len(base), values=values, base=base, tree_raw=tree_raw, divisor=0.0, pick=-1,
        post=Post.IDENTITY, normalize=False, single_precision=False,
    )  # fmt: skip


def explained_linear(linear: Linear) -> Linear:
    """The same model with its margins alone, as `explained_forest`.

    Raises:
        UnexplainableModelError: rows whose features are mixed before the weights.
    """
    _check_steps(linear.steps)
    weights, intercept = linear.weights, linear.intercept
    if linear.pick >= 0:
        signs = _kept(linear.n_raw, linear.pick, linear.post)
        weights, intercept = (signs @ weights)[None], np.array([signs @ intercept])
    return replace(linear, weights=weights, intercept=intercept, pick=-1, post=Post.IDENTITY, normalize=False)


def _kept(n_raw: int, pick: int, post: Post) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Factors of the raw outputs that make the kept margin."""
    signs = np.zeros(n_raw)
    signs[pick] = 1.0
    if post in SOFTMAX and n_raw == 2:
        signs[1 - pick] = -1.0
    return signs


def _check_steps(steps: tuple[Step, ...]) -> None:
    for step in steps:
        if step.kind in _MIXING:
            raise UnexplainableModelError(
                f"Expected preparation steps of one feature each, got {step.kind.name} (an ONNX Normalizer), which mixes "
                f"all features of a row: what one of them adds is not computed exactly. Explain it by kind='permutation'."
            )
