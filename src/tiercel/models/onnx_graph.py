"""ONNX graphs of tabular models: preparation steps, one model, and what converters put after it.

The graph is interpreted node by node over four kinds of value: rows (so far only prepared), scores, one minus a score,
and labels. Anything else, and any operator not listed here, leaves the graph to onnxruntime.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tiercel.errors import UnsupportedModelError
from tiercel.models.ir import (
    MAX_FEATURES,
    Forest,
    Linear,
    NotCompiledError,
    ParsedModel,
    Post,
    Step,
    StepKind,
    class_labels,
)
from tiercel.models.onnx_proto import FLOAT, Node, OnnxModel, read_onnx_proto
from tiercel.models.onnx_trees import post_of, read_trees
from tiercel.types import Task

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class _Rows:
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True)
class _Column:
    number: int


@dataclass(frozen=True)
class _Scores:
    body: Forest | Linear
    labels: tuple[str, ...] | None  # None: a regression
    is_final: bool = False  # nothing may be added to it any more


@dataclass(frozen=True)
class _Complement:
    scores: _Scores


@dataclass(frozen=True)
class _Label:
    pass


_Value = _Rows | _Column | _Scores | _Complement | _Label
_NORMS = {"MAX": StepKind.NORMALIZE_MAX, "L1": StepKind.NORMALIZE_L1, "L2": StepKind.NORMALIZE_L2}


def read_onnx(data: bytes) -> ParsedModel:
    """Read an ONNX model.

    Raises:
        NotCompiledError: the graph is sound as far as it was read, but holds something only onnxruntime does.
        UnsafeModelError: it refers to other files, or defines or needs foreign operators.
        UnsupportedModelError: not an ONNX file, cut short or altered.
    """
    return _Interpreter(read_onnx_proto(data)).run()


class _Interpreter:
    def __init__(self, model: OnnxModel) -> None:
        self.model = model
        self.values: dict[str, _Value] = {}
        self.n_features: int | None = None

    def run(self) -> ParsedModel:
        self._take_inputs()
        for node in self.model.nodes:
            if len(node.outputs) < 1:
                raise UnsupportedModelError(f"Expected outputs of {node.op}, got none")
            handler = _HANDLERS.get(node.op)
            if handler is None:
                raise NotCompiledError(f"ONNX operator {node.op} is not compiled")
            if any(isinstance(self.values.get(name), _Label) for name in node.inputs):
                results: tuple[_Value, ...] = (_Label(),) * len(node.outputs)
            else:
                results = handler(self, node)
            self.values.update(zip(node.outputs, results, strict=False))
        outputs = [self.values.get(port.name) for port in self.model.outputs]
        scores = [value for value in outputs if isinstance(value, _Scores)]
        if len(scores) != 1 or any(
            value is None or isinstance(value, (_Rows, _Column, _Complement)) for value in outputs
        ):
            raise NotCompiledError("Expected one output of scores and perhaps one of labels")
        return _parsed(scores[0])

    def _take_inputs(self) -> None:
        ports = self.model.inputs
        if any(port.dtype != FLOAT for port in ports) or not ports:
            raise NotCompiledError("Only float32 inputs are compiled")
        if len(ports) == 1:
            shape = ports[0].shape
            width = shape[1] if len(shape) == 2 else None
            if width is not None and not 0 <= width <= MAX_FEATURES:
                raise UnsupportedModelError(f"Expected at most {MAX_FEATURES} features, got {width}")
            self.n_features = width or None
            self.values[ports[0].name] = _Rows()
        else:
            self.n_features = len(ports)
            self.values |= {port.name: _Column(k) for k, port in enumerate(ports)}

    def rows(self, node: Node) -> _Rows:
        value = self.values.get(node.inputs[0]) if node.inputs else None
        if not isinstance(value, _Rows):
            raise NotCompiledError(f"{node.op} on something other than the input rows is not compiled")
        return value

    def constant(self, name: str) -> NDArray[np.float32] | None:
        tensor = self.model.constants.get(name)
        if tensor is None or tensor.dtype != FLOAT:
            return None
        return np.asarray(tensor.values, dtype=np.float32)

    def per_feature(self, values: NDArray[Any], what: str) -> NDArray[np.float32]:
        """A value per feature from one or n of them."""
        flat = np.asarray(values, dtype=np.float32).reshape(-1)
        if self.n_features is None and len(flat) > 1:
            self.n_features = len(flat)
        if self.n_features is None:
            raise NotCompiledError("The graph does not say how many features it takes")
        if len(flat) == 1:
            flat = np.repeat(flat, self.n_features)
        if len(flat) != self.n_features:
            raise UnsupportedModelError(f"Expected {self.n_features} values in {what}, got {len(flat)}")
        return flat

    def step(self, node: Node, kind: StepKind, a: NDArray[Any], b: NDArray[Any] | None = None) -> tuple[_Value, ...]:
        first = self.per_feature(a, node.op)
        second = self.per_feature(b, node.op) if b is not None else np.zeros_like(first)
        return (_Rows((*self.rows(node).steps, Step(kind, first, second))),)

    # ---- operators -------------------------------------------------------------------------------------------------

    def identity(self, node: Node) -> tuple[_Value, ...]:
        value = self.values.get(node.inputs[0]) if node.inputs else None
        if value is None:
            raise NotCompiledError(f"{node.op} of a constant is not compiled")
        if node.op == "Cast" and node.attributes.get("to") != FLOAT:
            raise NotCompiledError("Cast to another type than float32 is not compiled")
        if node.op in ("Reshape", "Flatten", "ZipMap") and not isinstance(value, _Scores):
            raise NotCompiledError(f"{node.op} of something other than scores is not compiled")
        if node.op in ("Reshape", "Flatten") and isinstance(value, _Scores) and value.body.n_raw != 1:
            raise NotCompiledError(f"{node.op} of several scores is not compiled")
        return (value,)

    def concat(self, node: Node) -> tuple[_Value, ...]:
        parts = [self.values.get(name) for name in node.inputs]
        if node.attributes.get("axis") not in (1, -1):
            raise NotCompiledError("Concat along another axis than features is not compiled")
        if parts == [_Column(k) for k in range(self.n_features or 0)] and parts:
            return (_Rows(),)
        if len(parts) == 2 and isinstance(parts[0], _Complement) and parts[0].scores == parts[1]:  # noqa: SIM102
            if isinstance(parts[1], _Scores):
                return (replace(parts[1], labels=class_labels(2), is_final=True),)
        raise NotCompiledError("This Concat is not compiled")

    def scaler(self, node: Node) -> tuple[_Value, ...]:
        offset, scale = (node.attributes.get(name) for name in ("offset", "scale"))
        if not isinstance(offset, np.ndarray) or not isinstance(scale, np.ndarray):
            raise NotCompiledError("Scaler without offset or scale is not compiled")
        return self.step(node, StepKind.SCALE, offset, scale)

    def imputer(self, node: Node) -> tuple[_Value, ...]:
        filled = node.attributes.get("imputed_value_floats")
        if not isinstance(filled, np.ndarray):
            raise NotCompiledError("Imputer without imputed_value_floats is not compiled")
        replaced = float(node.attributes.get("replaced_value_float", 0.0))
        if np.isnan(replaced):
            return self.step(node, StepKind.IMPUTE_NAN, filled)
        return self.step(node, StepKind.IMPUTE_VALUE, filled, np.array([replaced]))

    def normalizer(self, node: Node) -> tuple[_Value, ...]:
        norm = node.attributes.get("norm", "MAX")
        if norm not in _NORMS:
            raise NotCompiledError(f"Normalizer with norm {norm!r} is not compiled")
        value = self.values.get(node.inputs[0]) if node.inputs else None
        if isinstance(value, _Scores) and norm == "L1" and not value.body.normalize:
            return (replace(value, body=replace(value.body, normalize=True), is_final=True),)
        return self.step(node, _NORMS[norm], np.zeros(1))

    def arithmetic(self, node: Node) -> tuple[_Value, ...]:
        if len(node.inputs) != 2:
            raise UnsupportedModelError(f"Expected two inputs of {node.op}, got {len(node.inputs)}")
        first, second = (self.values.get(name) for name in node.inputs)
        left, right = (self.constant(name) for name in node.inputs)
        if node.op in ("Add", "Mul") and first is None:
            first, right = second, left
        if isinstance(first, _Scores) and right is not None and node.op == "Add":
            return (self._add_to_scores(first, right),)
        is_complement = node.op == "Sub" and left is not None and left.size == 1 and left.reshape(-1)[0] == 1
        if is_complement and isinstance(second, _Scores) and second.body.n_raw == 1:
            return (_Complement(second),)
        if not isinstance(first, _Rows) or right is None or right.ndim > 2 or (right.ndim == 2 and right.shape[0] != 1):
            raise NotCompiledError(f"This {node.op} is not compiled")
        kinds = {"Add": StepKind.ADD, "Sub": StepKind.ADD, "Mul": StepKind.MULTIPLY, "Div": StepKind.DIVIDE}
        values = self.per_feature(-right if node.op == "Sub" else right, node.op)
        return (_Rows((*first.steps, Step(kinds[node.op], values, np.zeros_like(values)))),)

    def _add_to_scores(self, scores: _Scores, constant: NDArray[np.float32]) -> _Scores:
        body = scores.body
        if not isinstance(body, Linear) or scores.is_final or constant.size not in (1, body.n_raw):
            raise NotCompiledError("Add to these scores is not compiled")
        added = np.broadcast_to(constant.reshape(-1).astype(np.float64), (body.n_raw,))
        return replace(scores, body=replace(body, intercept=body.intercept + added))

    def matmul(self, node: Node) -> tuple[_Value, ...]:
        rows = self.rows(node)
        weights = self.constant(node.inputs[1]) if len(node.inputs) > 1 else None
        if weights is not None and weights.ndim == 1:
            weights = weights.reshape(-1, 1)
        if weights is None or weights.ndim != 2:
            raise NotCompiledError(f"{node.op} with something other than a constant matrix is not compiled")
        attributes, alpha, beta = node.attributes, 1.0, 1.0
        if node.op == "Gemm":
            alpha, beta = float(attributes.get("alpha", 1.0)), float(attributes.get("beta", 1.0))
            if attributes.get("transA", 0):
                raise NotCompiledError("Gemm with transA is not compiled")
            weights = weights.T if attributes.get("transB", 0) else weights
        intercept = np.zeros(weights.shape[1])
        if len(node.inputs) > 2:
            third = self.constant(node.inputs[2])
            if third is None or third.size not in (1, weights.shape[1]):
                raise NotCompiledError("Gemm with this bias is not compiled")
            intercept = intercept + beta * third.reshape(-1).astype(np.float64)
        return (self._linear(rows, alpha * weights.T.astype(np.float64), intercept, None),)

    def _linear(
        self, rows: _Rows, weights: NDArray[np.float64], intercept: NDArray[np.float64], labels: tuple[str, ...] | None
    ) -> _Scores:
        if self.n_features is None:
            self.n_features = weights.shape[1]
        if weights.shape[1] != self.n_features or not weights.shape[0]:
            # Not for onnxruntime either: the conversion left a step out, and the scores are of other columns.
            raise UnsupportedModelError(
                f"Expected {self.n_features} coefficients per output, one for each feature, got {weights.shape[1]}. The conversion "
                f"to ONNX leaves out what adds columns, such as SimpleImputer(add_indicator=True): train without it, or give "
                f"the columns as features of their own"
            )
        if not (np.isfinite(weights).all() and np.isfinite(intercept).all()):
            raise NotCompiledError("Infinite or NaN coefficients are not compiled")
        return _Scores(Linear(weights, intercept, steps=rows.steps), labels)

    def linear(self, node: Node) -> tuple[_Value, ...]:
        rows = self.rows(node)
        coefficients, intercepts = (node.attributes.get(name) for name in ("coefficients", "intercepts"))
        is_classifier = node.op == "LinearClassifier"
        n_raw = int(node.attributes.get("targets", 1))
        if is_classifier:
            n_raw = len(intercepts) if intercepts is not None else 0
        if not isinstance(coefficients, np.ndarray) or n_raw < 1 or len(coefficients) % n_raw or not len(coefficients):
            raise UnsupportedModelError(f"Expected coefficients of {node.op} for {n_raw} outputs")
        intercept = np.zeros(n_raw) if intercepts is None else np.asarray(intercepts, dtype=np.float64)
        if intercept.shape != (n_raw,):
            raise UnsupportedModelError(f"Expected {n_raw} intercepts of {node.op}, got {intercept.shape}")
        labels = _labels(node) if is_classifier else None
        scores = self._linear(rows, coefficients.reshape(n_raw, -1).astype(np.float64), intercept, labels)
        post = post_of(node)
        if is_classifier and n_raw == 1:
            post = Post.IDENTITY  # the second class is added instead of a transform
        body = replace(scores.body, post=post, pick=1 if is_classifier and n_raw == 2 else -1)
        scores = replace(scores, body=body, is_final=post is not Post.IDENTITY or is_classifier)
        return (_Label(), scores) if is_classifier else (scores,)

    def trees(self, node: Node) -> tuple[_Value, ...]:
        is_classifier = node.op == "TreeEnsembleClassifier"
        labels = _labels(node) if is_classifier else None
        body = read_trees(node, self.rows(node).steps, self.n_features, len(labels or ()))
        self.n_features = body.n_features
        scores = _Scores(body, labels, is_final=True)
        return (_Label(), scores) if is_classifier else (scores,)

    def transform(self, node: Node) -> tuple[_Value, ...]:
        value = self.values.get(node.inputs[0]) if node.inputs else None
        if not isinstance(value, _Scores) or value.is_final or not isinstance(value.body, Linear):
            raise NotCompiledError(f"{node.op} of something other than a linear model is not compiled")
        if node.op == "Softmax" and (node.attributes.get("axis", -1) not in (1, -1) or value.body.n_raw < 2):
            raise NotCompiledError("Softmax along another axis than classes is not compiled")
        post = {"Sigmoid": Post.SIGMOID_MLAS, "Softmax": Post.SOFTMAX_ORT, "Exp": Post.EXP_XGB}[node.op]
        labels = class_labels(value.body.n_raw) if node.op == "Softmax" else value.labels
        return (replace(value, body=replace(value.body, post=post), labels=labels, is_final=True),)

    def label(self, node: Node) -> tuple[_Value, ...]:
        return (_Label(),) * len(node.outputs)


_HANDLERS: dict[str, Any] = {
    "Identity": _Interpreter.identity, "Cast": _Interpreter.identity, "ZipMap": _Interpreter.identity,
    "Reshape": _Interpreter.identity, "Flatten": _Interpreter.identity,
    "Concat": _Interpreter.concat, "FeatureVectorizer": _Interpreter.concat,
    "Scaler": _Interpreter.scaler, "Imputer": _Interpreter.imputer, "Normalizer": _Interpreter.normalizer,
    "Add": _Interpreter.arithmetic, "Sub": _Interpreter.arithmetic, "Mul": _Interpreter.arithmetic,
    "Div": _Interpreter.arithmetic, "MatMul": _Interpreter.matmul, "Gemm": _Interpreter.matmul,
    "LinearRegressor": _Interpreter.linear, "LinearClassifier": _Interpreter.linear,
    "TreeEnsembleRegressor": _Interpreter.trees, "TreeEnsembleClassifier": _Interpreter.trees,
    "Sigmoid": _Interpreter.transform, "Softmax": _Interpreter.transform, "Exp": _Interpreter.transform,
    "ArgMax": _Interpreter.label, "ArrayFeatureExtractor": _Interpreter.label,
}  # fmt: skip


def _labels(node: Node) -> tuple[str, ...]:
    for name in ("classlabels_strings", "classlabels_int64s", "classlabels_ints"):
        labels = node.attributes.get(name)
        if labels is not None and len(labels):
            if len(set(np.asarray(labels).tolist())) != len(labels):
                raise UnsupportedModelError(f"Expected different class labels in {node.op}")
            return tuple(str(label) for label in labels)
    raise UnsupportedModelError(f"Expected class labels in {node.op}, got none")


def _parsed(scores: _Scores) -> ParsedModel:
    body, labels = scores.body, scores.labels
    n_outputs = 1 if body.pick >= 0 else body.n_raw
    if labels is None:
        if n_outputs != 1:
            raise NotCompiledError(f"{n_outputs} outputs without class labels are not compiled")
        return ParsedModel(body, Task.REGRESSION, (), None, accepts_missing=_accepts_missing(body))
    if len(labels) != (2 if n_outputs == 1 else n_outputs):
        raise NotCompiledError(f"{len(labels)} class labels for {n_outputs} scores are not compiled")
    if body.normalize and isinstance(body, Forest) and body.n_raw == 1:
        raise NotCompiledError("Normalizer of a single score is not compiled")
    task = Task.BINARY if len(labels) == 2 else Task.MULTICLASS
    return ParsedModel(body, task, labels, None, accepts_missing=_accepts_missing(body))


def _accepts_missing(body: Forest | Linear) -> bool:
    """Trees route NaN; linear models need an imputer before anything that mixes columns."""
    if isinstance(body, Forest) and not body.steps:
        return True
    for step in body.steps:
        if step.kind is StepKind.IMPUTE_NAN:
            return not bool(np.isnan(step.a).any())
        if step.kind in (StepKind.NORMALIZE_MAX, StepKind.NORMALIZE_L1, StepKind.NORMALIZE_L2):
            return False
    return isinstance(body, Forest)
