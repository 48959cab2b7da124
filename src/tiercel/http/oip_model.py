"""How a tiercel model looks to an Open Inference Protocol client: metadata, configuration, and questions from tensors."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tiercel.errors import RequestError
from tiercel.http.request import show
from tiercel.http.tensors import DTYPES, Tensor, text_of
from tiercel.serving.router import Question
from tiercel.types import DType

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from tiercel.http.inputs import ModelInput, Plan

#: The one tensor that brings a whole vector, unless the model has an input of that name.
FEATURES: Final = "features"
SCORE: Final = "score"
#: The output of requests that ask for an explanation.
EXPLANATION: Final = "explanation"
PLATFORMS: Final = {"forest": "tiercel_forest", "linear": "tiercel_linear", "onnxruntime": "onnxruntime_onnx"}
_DATATYPE: Final = {
    DType.FLOAT32: "FP32",
    DType.FLOAT64: "FP64",
    DType.INT64: "INT64",
    DType.BOOL: "BOOL",
    DType.STRING: "BYTES",
    None: "FP32",
}
_INTEGERS = frozenset(name for name, dtype in DTYPES.items() if dtype.kind in "iu")
_NUMBERS = _INTEGERS | {"FP16", "FP32", "FP64"}
#: What an input of each dtype may come as: what a client's arrays are, as long as no value changes its meaning.
_ACCEPTED: Final[Mapping[DType | None, frozenset[str]]] = {
    DType.FLOAT32: _NUMBERS,
    DType.FLOAT64: _NUMBERS,
    DType.INT64: _INTEGERS,
    DType.BOOL: frozenset({"BOOL"}),
    DType.STRING: frozenset({"BYTES"}),
    None: _NUMBERS | {"BOOL"},
}
_FLOATS = frozenset({"FP16", "FP32", "FP64"})


def computed_features(plan: Plan, inputs: Mapping[str, ModelInput]) -> list[str]:
    """What on-demand feature views make of the other inputs: a request cannot bring it."""
    return [name for name in plan.signature.features if name not in inputs]


def takes_vectors(plan: Plan, inputs: Mapping[str, ModelInput]) -> bool:
    """Whether "features" is the whole vector: no input has that name, and all of the vector can be sent."""
    return FEATURES not in inputs and not computed_features(plan, inputs)


def describe_inputs(plan: Plan, inputs: Mapping[str, ModelInput]) -> list[dict[str, Any]]:
    """The tensors of the usual request: keys and request features, or the vector of a model without a service."""
    if plan.schema is None and takes_vectors(plan, inputs):
        return [{"name": FEATURES, "datatype": "FP32", "shape": [-1, plan.n_features]}]
    return [
        {"name": each.name, "datatype": _DATATYPE[each.dtype], "shape": [-1, 1]}
        for each in inputs.values()
        if each.is_required
    ]


def describe_outputs(plan: Plan) -> list[dict[str, Any]]:
    """The one output of every model."""
    return [{"name": SCORE, "datatype": "FP64", "shape": [-1] if plan.n_outputs == 1 else [-1, plan.n_outputs]}]


def metadata(plan: Plan, inputs: Mapping[str, ModelInput], kernel: str, versions: Sequence[int]) -> dict[str, Any]:
    """The reply to `GET /v2/models/{model}`."""
    return {
        "name": plan.model,
        "versions": [str(version) for version in versions],
        "platform": PLATFORMS.get(kernel, ""),
        "inputs": describe_inputs(plan, inputs),
        "outputs": describe_outputs(plan),
    }


def configuration(plan: Plan, inputs: Mapping[str, ModelInput], kernel: str, max_rows: int) -> dict[str, Any]:
    """The reply to `GET /v2/models/{model}/config`: what clients of Triton read of its model configuration.

    `parameters` has what the protocol's metadata has no place for: the order of the vector, what of it the server computes
    (such a vector cannot be sent), the classes, the service.
    """
    config: dict[str, Any] = {
        "name": plan.model,
        "platform": PLATFORMS.get(kernel, ""),
        "backend": "onnxruntime" if kernel == "onnxruntime" else "tiercel",
        "version_policy": {"specific": {"versions": [plan.version]}},
        "max_batch_size": max_rows,  # with one, dims are those of one row
        "input": [_configured(tensor) for tensor in describe_inputs(plan, inputs)],
        "output": [_configured(tensor) for tensor in describe_outputs(plan)],
        "parameters": {
            "features": {"string_value": ",".join(plan.signature.features)},
            "task": {"string_value": plan.signature.task.value},
        },
    }
    computed = computed_features(plan, inputs)
    if computed:
        config["parameters"]["computed_features"] = {"string_value": ",".join(computed)}
    if plan.signature.classes:
        config["parameters"]["classes"] = {"string_value": ",".join(plan.signature.classes)}
    if plan.schema is not None:
        config["parameters"]["feature_service"] = {"string_value": plan.schema.name}
    return config


def question_of(tensors: Sequence[Tensor], plan: Plan, inputs: Mapping[str, ModelInput], max_rows: int) -> Question:
    """What a request's tensors ask.

    Raises:
        RequestError: a tensor of another shape or datatype than its input, of another number of rows than the first, an
            input that the model does not have (`unknown_feature`), too many rows, the vector of a model of which the server
            computes a part (`computed_feature`).
    """
    now_us = time.time_ns() // 1000
    vectors = takes_vectors(plan, inputs)
    for tensor in tensors:
        if tensor.name == FEATURES and vectors:
            if len(tensors) > 1:
                other = next(each.name for each in tensors if each.name != FEATURES)
                raise _invalid(f"Expected tensor '{FEATURES}' alone, as it holds every value, got {show(other)} too")
            return Question({}, _vector_columns(tensor, plan, inputs, max_rows), now_us)
    entities: dict[str, Any] = {}
    features: dict[str, Any] = {}
    first: Tensor | None = None
    for tensor in tensors:
        known = inputs.get(tensor.name)
        if known is None:
            raise _unknown_input(tensor.name, plan, inputs)
        _check_rows(tensor, max_rows)
        if first is None:
            first = tensor
        elif tensor.shape[0] != first.shape[0]:
            raise _invalid(
                f"Tensor {show(tensor.name)}: expected {first.shape[0]} rows like {show(first.name)}, got shape "
                f"{list(tensor.shape)}"
            )
        (entities if known.is_key else features)[tensor.name] = _column(tensor, known)
    return Question(entities, features, now_us)


def raw_tensor(body: memoryview, plan: Plan, inputs: Mapping[str, ModelInput]) -> Tensor:
    """The tensor that a body without JSON is: one vector in FP32, as the extension has batch size one.

    Raises:
        RequestError: another number of bytes, or a model that does not take vectors (`computed_feature` where the server
            computes some of it).
    """
    if FEATURES in inputs:
        raise _invalid(
            f"Model '{plan.model}' has an input called '{FEATURES}': expected JSON before the tensors, got none"
        )
    if not takes_vectors(plan, inputs):
        raise _no_vector(plan, inputs)
    if len(body) != 4 * plan.n_features:
        raise _invalid(
            f"Tensor '{FEATURES}': expected {4 * plan.n_features} bytes (one row of {plan.n_features} FP32) as a raw "
            f"body, got {len(body)}"
        )
    return Tensor(FEATURES, "FP32", (1, plan.n_features), np.frombuffer(body, DTYPES["FP32"]))


def _configured(tensor: Mapping[str, Any]) -> dict[str, Any]:
    datatype = tensor["datatype"]
    return {
        "name": tensor["name"],
        "data_type": "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}",
        "dims": tensor["shape"][1:],
    }


def _check_rows(tensor: Tensor, max_rows: int) -> None:
    if len(tensor.shape) > 2 or (len(tensor.shape) == 2 and tensor.shape[1] != 1):
        raise _invalid(f"Tensor {show(tensor.name)}: expected shape [n] or [n, 1], got {list(tensor.shape)}")
    _check_count(tensor, max_rows)


def _check_count(tensor: Tensor, max_rows: int) -> None:
    if tensor.shape[0] == 0:
        raise _invalid(f"Tensor {show(tensor.name)}: expected at least one row, got shape {list(tensor.shape)}")
    if tensor.shape[0] > max_rows:
        raise RequestError(
            f"Expected at most {max_rows} rows, got {tensor.shape[0]} in tensor {show(tensor.name)}. "
            f"Send several requests.",
            code="too_many_rows",
        )


def _column(tensor: Tensor, known: ModelInput) -> list[Any]:
    """One value per row; null is a missing one, and so is a float that is NaN."""
    if tensor.datatype not in _ACCEPTED[known.dtype]:
        raise _invalid(
            f"Tensor {show(tensor.name)}: expected {_DATATYPE[known.dtype]} for a "
            f"{'number' if known.dtype is None else known.dtype.value}, got {tensor.datatype}"
        )
    column: list[Any]
    if tensor.datatype == "BYTES":
        column = [
            None if value is None else text_of(tensor.name, index, value) for index, value in enumerate(tensor.values)
        ]
    else:
        values = np.asarray(tensor.values)
        column = _nullable(values) if tensor.datatype in _FLOATS else values.tolist()
    if known.is_key and None in column:
        row = column.index(None)
        raise RequestError(
            f"Tensor {show(tensor.name)}: expected a value of the join key in each row, got null at row {row}. Only "
            f"features may be missing",
            code="invalid_tensor",
            row=row,
        )
    return column


def _vector_columns(tensor: Tensor, plan: Plan, inputs: Mapping[str, ModelInput], max_rows: int) -> dict[str, Any]:
    """Every feature's values, from one matrix in the order of the signature."""
    if tensor.datatype not in {"FP32", "FP64"}:
        raise _invalid(f"Tensor '{FEATURES}': expected FP32 or FP64, got {tensor.datatype}")
    if len(tensor.shape) != 2 or tensor.shape[1] != plan.n_features:
        raise _invalid(f"Tensor '{FEATURES}': expected shape [n, {plan.n_features}], got {list(tensor.shape)}")
    _check_count(tensor, max_rows)
    # One copy makes every column contiguous; what a column becomes is one list, made by numpy.
    matrix = np.ascontiguousarray(np.asarray(tensor.values).reshape(tensor.shape).T)
    return {
        name: _typed(name, matrix[index], plan, inputs.get(name)) for index, name in enumerate(plan.signature.features)
    }


def _typed(name: str, column: NDArray[Any], plan: Plan, known: ModelInput | None) -> list[Any]:
    """Numbers as the plan wants a feature of this type: a text by its code, a truth as 0 or 1."""
    if known is None or known.dtype not in {DType.STRING, DType.BOOL}:
        return _nullable(column)
    values: list[Any]
    if known.dtype is DType.BOOL:
        wrong = ~np.isnan(column) & (column != 0) & (column != 1)
        expected, values = "0, 1 or NaN", [False, True]
    else:
        categories = _categories(known, plan)
        wrong = ~np.isnan(column) & ~((column >= 0) & (column < len(categories)) & (column == np.floor(column)))
        expected, values = f"the code of a category (0 to {len(categories) - 1}) or NaN", list(categories)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise RequestError(
            f"Tensor '{FEATURES}': expected {expected} for feature '{name}' at row {row}, got {column[row]}",
            code="invalid_tensor",
            row=row,
        )
    return [None if code != code else values[int(code)] for code in column.tolist()]  # noqa: PLR0124 - NaN


def _categories(known: ModelInput, plan: Plan) -> Sequence[str]:
    if known.categories is not None:
        return known.categories
    found: Sequence[str] = () if plan.base is None else plan.base.categories.get(known.name, ())
    return found


def _nullable(column: NDArray[Any]) -> list[Any]:
    values: list[Any] = column.tolist()
    missing = np.isnan(column)
    if missing.any():
        for index in np.flatnonzero(missing).tolist():
            values[index] = None
    return values


def _unknown_input(name: str, plan: Plan, inputs: Mapping[str, ModelInput]) -> RequestError:
    if name == FEATURES:
        return _no_vector(plan, inputs)
    known = ", ".join((*inputs, *((FEATURES,) if takes_vectors(plan, inputs) else ())))
    return RequestError(
        f"Expected inputs of model '{plan.model}' version {plan.version} ({known}), got tensor {show(name)}",
        code="unknown_feature",
    )


def _no_vector(plan: Plan, inputs: Mapping[str, ModelInput]) -> RequestError:
    needed = ", ".join(each.name for each in inputs.values() if each.is_required)
    return RequestError(
        f"Expected the inputs of model '{plan.model}' version {plan.version} by name, got its whole vector as '{FEATURES}': "
        f"{', '.join(computed_features(plan, inputs))} of it cannot be sent, since the server computes it. Send one tensor "
        f"each of {needed}",
        code="computed_feature",
    )


def _invalid(message: str) -> RequestError:
    return RequestError(message, code="invalid_tensor")
