"""ONNX graphs of tabular models."""
from __future__ import annotations
from tiercel.models.ir import NotCompiledError, ParsedModel
from tiercel.models.onnx_proto import read_onnx_proto

def read_onnx(data: bytes) -> ParsedModel:
    """Not yet."""
    read_onnx_proto(data)
    raise NotCompiledError("ONNX graphs are served by onnxruntime")
