"""From bytes of a known format to the intermediate representation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tiercel.errors import UnsupportedModelError
from tiercel.models.ir import MAX_FEATURES, MAX_OUTPUTS, Linear
from tiercel.models.lightgbm_text import read_lightgbm
from tiercel.models.onnx_graph import read_onnx
from tiercel.models.xgboost_model import read_xgboost

if TYPE_CHECKING:
    from tiercel.models.formats import ModelFormat
    from tiercel.models.ir import ParsedModel


def read_model(data: bytes, model_format: ModelFormat) -> ParsedModel:
    """Read a model file.

    Raises:
        NotCompiledError: sound, but only onnxruntime can serve it.
        UnsafeModelError: it could run code or read other files.
        UnsupportedModelError: not a file of that format, cut short or altered, or of a shape that no tabular
            model has.
    """
    if model_format == "lightgbm":
        parsed = read_lightgbm(data)
    elif model_format == "onnx":
        parsed = read_onnx(data)
    else:
        parsed = read_xgboost(data, is_ubjson=model_format == "xgboost-ubj")
    n_outputs = max(len(parsed.classes), len(parsed.body.weights) if isinstance(parsed.body, Linear) else 1)
    if parsed.body.n_features > MAX_FEATURES or n_outputs > MAX_OUTPUTS:
        raise UnsupportedModelError(
            f"Expected a model of at most {MAX_FEATURES} features and {MAX_OUTPUTS} scores per row, got "
            f"{parsed.body.n_features} and {n_outputs}"
        )
    return parsed
