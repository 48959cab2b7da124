"""From bytes of a known format to the intermediate representation."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
        UnsupportedModelError: not a file of that format, cut short or altered.
    """
    if model_format == "lightgbm":
        return read_lightgbm(data)
    if model_format == "onnx":
        return read_onnx(data)
    return read_xgboost(data, is_ubjson=model_format == "xgboost-ubj")
