"""What every reader produces and the compiled scorers take: forests and linear models as plain arrays.

Inputs are float32 vectors. Source libraries that compare in float64 (LightGBM) or with other operators are folded to
`x <= threshold` on the exact float32 boundary, so that routing is the same for every float32 input.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiercel._hot.forest import ForestScorer
from tiercel._hot.forest import log_float32 as log_float32  # noqa: PLC0414 - the one door to the kernel
from tiercel._hot.linear import LinearScorer
from tiercel.errors import UnsupportedModelError
from tiercel.types import Signature, Task

FloatVector = NDArray[np.float32]
DoubleVector = NDArray[np.float64]

# Far above any model that could answer in time; they bound what a hostile file can make us allocate.
MAX_NODES = 1 << 27
MAX_TREES = 1 << 20
MAX_FEATURES = 100_000
MAX_OUTPUTS = 10_000
MAX_LEAF_VALUES = 1 << 27

FLOAT32_MAX = np.finfo(np.float32).max


class NotCompiledError(UnsupportedModelError):
    """The file is sound but holds something the compiled scorers do not do; onnxruntime may still serve it."""


class Post(enum.IntEnum):
    """How raw outputs become scores; numbers and formulas are those of `transforms.h`."""

    IDENTITY = 0
    SIGMOID_F64 = 1
    SOFTMAX_F64 = 2
    EXP_F64 = 3
    SIGNED_SQUARE_F64 = 4
    LOG1P_EXP_F64 = 5
    SIGMOID_XGB = 6
    SOFTMAX_XGB = 7
    EXP_XGB = 8
    SIGMOID_ORT = 9
    SOFTMAX_ORT = 10
    SOFTMAX_ZERO_ORT = 11
    PROBIT_ORT = 12
    SIGMOID_MLAS = 13


class Aggregate(enum.IntEnum):
    """How the trees' values become one. An average is a SUM with a divisor."""

    SUM = 0
    MIN = 1
    MAX = 2


class StepKind(enum.IntEnum):
    """Elementwise preparation of a row; numbers and formulas are those of `transforms.h`."""

    IMPUTE_NAN = 0
    IMPUTE_VALUE = 1
    SCALE = 2
    NORMALIZE_MAX = 3
    NORMALIZE_L1 = 4
    NORMALIZE_L2 = 5
    ZERO_IS_NAN = 6
    ADD = 7
    MULTIPLY = 8
    DIVIDE = 9


@dataclass(frozen=True)
class Step:
    """One preparation step: `a` and `b` hold a value per feature (or are ignored)."""

    kind: StepKind
    a: FloatVector
    b: FloatVector


@dataclass(frozen=True)
class CategorySets:
    """Category sets of splits: set s is the bits of `words[start[s]:start[s + 1]]`, or the one value `equal[s]`."""

    words: NDArray[np.uint32] = field(default_factory=lambda: np.zeros(0, np.uint32))
    start: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, np.int64))
    equal: FloatVector = field(default_factory=lambda: np.zeros(0, np.float32))
    floor_negative: bool = False  # -0.5 is category 0 (LightGBM) rather than no category (XGBoost)


@dataclass(frozen=True)
class Forest:
    """A tree ensemble. Node arrays run over all trees; a tree is a contiguous range and its root comes first.

    `x[feature] <= threshold`, NaN aside, goes left; NaN goes left where `missing_left`. In leaves `leaf` is the row of
    `values`, elsewhere -1. `set_of` >= 0: the category set decides instead, members go left.
    """

    n_features: int
    n_raw: int
    tree_start: NDArray[np.int64]
    feature: NDArray[np.int32]
    threshold: FloatVector
    left: NDArray[np.int32]
    right: NDArray[np.int32]
    missing_left: NDArray[np.uint8]
    set_of: NDArray[np.int32]
    leaf: NDArray[np.int64]
    values: DoubleVector  # (n_leaves, 1): each tree adds to output tree_raw[tree]; or (n_leaves, n_raw)
    tree_raw: NDArray[np.int32]
    base: DoubleVector
    base_first: bool
    single_precision: bool
    sets: CategorySets = field(default_factory=CategorySets)
    aggregate: Aggregate = Aggregate.SUM
    divisor: float = 0.0
    post: Post = Post.IDENTITY
    post_scale: float = 1.0
    normalize: bool = False
    pick: int = -1
    steps: tuple[Step, ...] = ()
    cover: DoubleVector | None = None  # per node: how much of the training data came there, where the file says
    why_no_cover: str = ""  # the file says something that cannot be

    @property
    def n_trees(self) -> int:
        """Number of trees."""
        return len(self.tree_start) - 1

    def compile(self, *, wide: bool = False, blocks: str = "auto", masks: str = "auto") -> ForestScorer:
        """The compiled scorer.

        Args:
            wide: use the larger node format even where the small one would do (for tests).
            blocks: how batches are scored, "auto" or one of the kernel's other MODES (for tests).
            masks: how one row is scored, likewise.

        Raises:
            UnsupportedModelError: the arrays do not describe trees.
        """
        try:
            return ForestScorer(
                n_features=self.n_features,
                tree_start=self.tree_start,
                feature=self.feature,
                threshold=self.threshold,
                left=self.left,
                right=self.right,
                missing_left=self.missing_left,
                set_of=self.set_of,
                leaf=self.leaf,
                values=self.values,
                tree_raw=self.tree_raw,
                n_raw=self.n_raw,
                base=self.base,
                base_first=self.base_first,
                single_precision=self.single_precision,
                divisor=self.divisor,
                aggregate=int(self.aggregate),
                post=int(self.post),
                post_scale=self.post_scale,
                normalize=self.normalize,
                pick=self.pick,
                set_words=self.sets.words,
                set_start=self.sets.start,
                set_equal=self.sets.equal,
                floor_negative=self.sets.floor_negative,
                steps=[(int(step.kind), step.a, step.b) for step in self.steps],
                wide=wide,
                blocks=blocks,
                masks=masks,
            )
        except ValueError as error:
            raise UnsupportedModelError(f"The file's trees cannot be used. {error}") from error


@dataclass(frozen=True)
class Linear:
    """Outputs `weights @ x + intercept`, computed in float64 and, if `single_precision`, rounded to float32."""

    weights: DoubleVector  # (n_raw, n_features)
    intercept: DoubleVector  # (n_raw,)
    single_precision: bool = True
    post: Post = Post.IDENTITY
    post_scale: float = 1.0
    normalize: bool = False
    pick: int = -1
    steps: tuple[Step, ...] = ()

    @property
    def n_features(self) -> int:
        """Length of an input vector."""
        return int(self.weights.shape[1])

    @property
    def n_raw(self) -> int:
        """Number of outputs before `pick`."""
        return int(self.weights.shape[0])

    def compile(self) -> LinearScorer:
        """The compiled scorer.

        Raises:
            UnsupportedModelError: shapes that do not fit together.
        """
        try:
            return LinearScorer(
                weights=self.weights,
                intercept=self.intercept,
                single_precision=self.single_precision,
                post=int(self.post),
                post_scale=self.post_scale,
                normalize=self.normalize,
                pick=self.pick,
                steps=[(int(step.kind), step.a, step.b) for step in self.steps],
            )
        except ValueError as error:
            raise UnsupportedModelError(f"The file's coefficients cannot be used. {error}") from error


@dataclass(frozen=True)
class ParsedModel:
    """A model file as read: its body and what the file says about inputs and outputs."""

    body: Forest | Linear
    task: Task
    classes: tuple[str, ...]
    features: tuple[str, ...] | None  # None: the file does not name them
    accepts_missing: bool
    hyperparameters: dict[str, Any] = field(default_factory=dict)

    def signature(self, features: tuple[str, ...]) -> Signature:
        """The model's signature under these feature names."""
        return Signature(features, self.task, self.classes, self.accepts_missing)


def fold_less_equal(threshold: DoubleVector) -> FloatVector:
    """The float32 t for which `x <= t` equals `x <= threshold` for every float32 x: the largest not above it."""
    with np.errstate(over="ignore"):
        folded = threshold.astype(np.float32)
    above = folded.astype(np.float64) > threshold
    with np.errstate(over="ignore", under="ignore"):
        folded[above] = np.nextafter(folded[above], np.float32(-np.inf))
    return folded


def fold_less(threshold: FloatVector) -> FloatVector:
    """The float32 t for which `x <= t` equals `x < threshold` for every float32 x; NaN (never) below -inf."""
    with np.errstate(over="ignore", under="ignore"):
        folded = np.nextafter(threshold, np.float32(-np.inf))
    folded[threshold == -np.inf] = np.nan
    # -0.0 and 0.0 are equal, and one step below either is the smallest negative number.
    return folded.astype(np.float32)


def apply_steps(steps: tuple[Step, ...], rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Prepared rows, as the compiled scorers compute them up to the order of a norm's sum."""
    x = np.array(rows, dtype=np.float32)
    with np.errstate(all="ignore"):
        for step in steps:
            a, b = step.a, step.b
            if step.kind is StepKind.IMPUTE_NAN:
                x = np.where(np.isnan(x), a, x)
            elif step.kind is StepKind.IMPUTE_VALUE:
                x = np.where(x == b, a, x)
            elif step.kind is StepKind.SCALE:
                x = (x - a) * b
            elif step.kind is StepKind.ADD:
                x = x + a
            elif step.kind is StepKind.MULTIPLY:
                x = x * a
            elif step.kind is StepKind.DIVIDE:
                x = x / a
            elif step.kind is StepKind.ZERO_IS_NAN:
                x = np.where((a != 0) & (np.abs(x) <= np.float32(1e-35)), np.float32(np.nan), x)
            else:
                norms = {
                    StepKind.NORMALIZE_MAX: lambda x: x.max(axis=1, keepdims=True),
                    StepKind.NORMALIZE_L1: lambda x: np.abs(x).sum(axis=1, keepdims=True),
                    StepKind.NORMALIZE_L2: lambda x: np.sqrt((x * x).sum(axis=1, keepdims=True)),
                }
                norm = norms[step.kind](x)
                x = np.where(norm != 0, x / norm, x)
    return x.astype(np.float32)


def class_labels(n: int) -> tuple[str, ...]:
    """Labels of classes that a file does not name."""
    return tuple(str(k) for k in range(n))


def cover_problem(cover: DoubleVector, is_inner: NDArray[np.bool_], tree_start: NDArray[np.int64], name: str) -> str:
    """Why no explanation can follow training data through trees by these covers; empty: it can.

    A leaf where none came is never followed. A node that is split and where none came, or less than none (sums of second
    derivatives of an objective that is not convex), has no shares to follow.

    Args:
        cover: float64 (n_nodes,).
        is_inner: (n_nodes,).
        tree_start: each tree's first node, and n_nodes.
        name: of the file's own field.
    """
    bad = ~np.isfinite(cover) | (cover < 0) | (is_inner & (cover == 0))
    if not bad.any():
        return ""
    node = int(np.argmax(bad))
    tree = int(np.searchsorted(tree_start, node, side="right")) - 1
    where = "a node that is split" if is_inner[node] else "a leaf"
    least = "more than zero" if is_inner[node] else "no less than zero"
    return f"expected {name} {least} at {where} of tree {tree}, got {cover[node]:g}; {int(bad.sum())} of {len(cover)} are so"
