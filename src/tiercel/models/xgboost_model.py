"""XGBoost models."""
from __future__ import annotations
from tiercel.errors import UnsupportedModelError
from tiercel.models.ir import ParsedModel

def read_xgboost(data: bytes, *, is_ubjson: bool) -> ParsedModel:
    """Not yet."""
    raise UnsupportedModelError("XGBoost")
