"""onnxruntime as a scorer: for every model the compiled kernels do not take, and the source that ONNX models must equal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tiercel.errors import UnsupportedModelError
from tiercel.models.ir import MAX_FEATURES, MAX_OUTPUTS
from tiercel.models.onnx_proto import OnnxModel, read_onnx_proto
from tiercel.types import Task

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LABEL_TYPES = frozenset({"tensor(int64)", "tensor(int32)", "tensor(string)", "tensor(bool)"})
_FLOAT_TYPES = frozenset({"tensor(float)", "tensor(double)"})


class OnnxScorer:
    """An onnxruntime session behind the scorer's contract: float32 (n, n_features) in, float64 (n, n_outputs) out.

    Args:
        data: the model; it was or will be checked by `read_onnx_proto`, which refuses everything that reads other files.
        n_features: length of a row; None takes it from the model's input.
        task: what the outputs mean; None decides by their number and type.

    Raises:
        UnsafeModelError, UnsupportedModelError: from reading the file, or onnxruntime cannot load it, or its inputs and
            outputs are not those of a tabular model.
    Threads: safe; onnxruntime sessions allow concurrent runs.
    """

    def __init__(
        self, data: bytes, *, n_features: int | None = None, task: Task | None = None, proto: OnnxModel | None = None
    ) -> None:
        import onnxruntime

        proto = proto or read_onnx_proto(data)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4
        try:
            self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises its own classes straight from Exception
            raise UnsupportedModelError(f"onnxruntime cannot load this model: {error}") from error
        self._inputs = self._session.get_inputs()
        if any(item.type not in _FLOAT_TYPES for item in self._inputs):
            found = {item.name: item.type for item in self._inputs}
            raise UnsupportedModelError(f"Expected float inputs only, got {found}. Convert with float32 inputs.")
        self._dtypes = [np.float32 if item.type == "tensor(float)" else np.float64 for item in self._inputs]
        self.n_features = self._width(n_features)
        self._score_output, has_label = self._find_score_output()
        self.class_labels: tuple[str, ...] = proto.class_labels()
        probe = self._raw(np.zeros((2, self.n_features), dtype=np.float32))
        if probe.shape[1] > MAX_OUTPUTS:
            raise UnsupportedModelError(f"Expected at most {MAX_OUTPUTS} scores per row, got {probe.shape[1]}")
        self.task = task or _task_of(probe.shape[1], has_label=has_label, n_labels=len(self.class_labels))
        if self.task is Task.REGRESSION and probe.shape[1] != 1:
            raise UnsupportedModelError(f"Expected one output of a regression model, got {probe.shape[1]}")
        if self.task is Task.BINARY and probe.shape[1] not in (1, 2):
            raise UnsupportedModelError(f"Expected one or two scores of a binary model, got {probe.shape[1]}")
        self.n_outputs = probe.shape[1] if self.task is Task.MULTICLASS else 1

    @property
    def n_classes(self) -> int:
        """Number of classes; 0 for regression."""
        return {Task.REGRESSION: 0, Task.BINARY: 2, Task.MULTICLASS: self.n_outputs}[self.task]

    def score(self, rows: NDArray[np.float32]) -> NDArray[np.float64]:
        """Scores of `rows` (float32, shape (n, n_features)) as float64, shape (n, n_outputs)."""
        if rows.ndim != 2 or rows.shape[1] != self.n_features:
            raise ValueError(f"Expected rows of {self.n_features} features, got shape {rows.shape}")
        if len(rows) == 0:
            return np.empty((0, self.n_outputs), dtype=np.float64)
        raw = self._raw(np.ascontiguousarray(rows, dtype=np.float32))
        if self.task is not Task.MULTICLASS:
            raw = raw[:, -1:]
        return np.ascontiguousarray(raw, dtype=np.float64)

    def _raw(self, rows: NDArray[np.float32]) -> NDArray[Any]:
        """Everything the score output holds: (n, classes)."""
        if len(self._inputs) == 1:
            feed = {self._inputs[0].name: rows.astype(self._dtypes[0], copy=False)}
        else:
            feed = {
                item.name: np.ascontiguousarray(rows[:, k : k + 1], dtype=dtype)
                for k, (item, dtype) in enumerate(zip(self._inputs, self._dtypes, strict=True))
            }
        (found,) = self._session.run([self._score_output], feed)
        if isinstance(found, list):  # ZipMap: one dict per row, in the order of its labels
            keys = list(found[0])
            found = [[row[key] for key in keys] for row in found]
        value: NDArray[Any] = np.asarray(found)
        if value.ndim == 1:
            value = value.reshape(-1, 1)
        if value.ndim != 2 or value.shape[0] != len(rows) or value.shape[1] < 1:
            raise UnsupportedModelError(f"Expected scores of shape ({len(rows)}, n), got {value.shape}")
        return value

    def _width(self, n_features: int | None) -> int:
        if len(self._inputs) > 1:
            width: Any = len(self._inputs)
        else:
            shape = self._inputs[0].shape
            if len(shape) != 2:
                raise UnsupportedModelError(f"Expected an input of shape (rows, features), got {shape}")
            width = shape[1]
        known = width if isinstance(width, int) and width > 0 else n_features
        if known is not None and known > MAX_FEATURES:
            raise UnsupportedModelError(f"Expected at most {MAX_FEATURES} features, got {known}")
        if isinstance(width, int) and width > 0:
            if n_features is not None and n_features != width:
                raise UnsupportedModelError(f"Expected a model of {n_features} features, got one of {width}")
            return int(width)
        if n_features is None:
            raise UnsupportedModelError("The model does not say how many features it takes; pass feature_names")
        return n_features

    def _find_score_output(self) -> tuple[str, bool]:
        """(name of the output that holds scores, whether a label output stands beside it)."""
        outputs = self._session.get_outputs()
        labels = [item for item in outputs if item.type in _LABEL_TYPES]
        scores = [item for item in outputs if item.type in _FLOAT_TYPES or item.type.startswith("seq(map(")]
        if len(scores) > 1:
            named = [item for item in scores if "prob" in item.name.lower()]
            scores = named or scores
        if len(scores) != 1:
            found = {item.name: item.type for item in outputs}
            raise UnsupportedModelError(f"Expected one output of scores, got {found}")
        return scores[0].name, bool(labels)


def _task_of(width: int, *, has_label: bool, n_labels: int) -> Task:
    if has_label or n_labels:
        return Task.BINARY if width <= 2 else Task.MULTICLASS
    if width == 1:
        return Task.REGRESSION
    raise UnsupportedModelError(
        f"The model gives {width} numbers and no labels; say what they are with task= and classes="
    )
