"""Which format are these bytes? Decided by content; a file name only helps the message."""

from __future__ import annotations

import re
from typing import Literal

from tiercel.errors import UnsafeModelError, UnsupportedModelError

ModelFormat = Literal["onnx", "lightgbm", "xgboost-json", "xgboost-ubj"]

#: File name of the model in a version's artifacts.
FILE_NAME: dict[ModelFormat, str] = {
    "onnx": "model.onnx",
    "lightgbm": "model.txt",
    "xgboost-json": "model.xgboost.json",
    "xgboost-ubj": "model.ubj",
}
MAX_MODEL_BYTES = 1 << 30

_PICKLE_NAMES = (".pkl", ".pickle", ".joblib", ".sav", ".cloudpickle", ".dill")
_ARCHIVES = ((b"PK\x03\x04", "a zip archive"), (b"\x1f\x8b", "gzip"), (b"BZh", "bzip2"), (b"\xfd7zXZ\x00", "xz"))
# zlib streams as joblib writes them: 0x78 and a level byte.
_ZLIB = (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")
# Protocol 0 and 1 pickles have no magic; every estimator among them names a global first.
_OLD_PICKLE = re.compile(rb"^(?:c|\(i|\(c|\(lp|\(dp|ccopy_reg|}q|\]q)[A-Za-z_0-9]*")

_INSTEAD = (
    "Loading a pickle runs the code inside it, so tiercel never does. Pass the fitted estimator itself to "
    "project.register(model, ...), or save it as ONNX (skl2onnx), LightGBM text (booster.save_model) or XGBoost UBJ."
)


def detect_format(data: bytes, filename: str | None = None) -> ModelFormat:
    """The format of a model file.

    Raises:
        UnsafeModelError: a pickle, or an archive that may hold one.
        UnsupportedModelError: none of the supported formats, empty, or larger than 1 GiB.
    """
    named = f" in {filename!r}" if filename else ""
    if not data:
        raise UnsupportedModelError(f"Expected a model file{named}, got no bytes")
    if len(data) > MAX_MODEL_BYTES:
        raise UnsupportedModelError(f"Expected a model of at most {MAX_MODEL_BYTES} bytes{named}, got {len(data)}")
    if data[:1] == b"\x80" or (filename or "").lower().endswith(_PICKLE_NAMES):
        raise UnsafeModelError(f"Expected a model file, got a pickle{named}. {_INSTEAD}")
    for magic, kind in _ARCHIVES:
        if data.startswith(magic):
            raise UnsafeModelError(f"Expected a model file, got {kind}{named}, which may hold a pickle. {_INSTEAD}")
    if data.startswith(_ZLIB):
        raise UnsafeModelError(f"Expected a model file, got a zlib stream{named}, as joblib writes them. {_INSTEAD}")
    start = data[:4096].lstrip()
    if data.startswith((b"tree\n", b"tree\r\n")):
        return "lightgbm"
    if data[:1] == b"{" and _is_ubjson(data):
        return "xgboost-ubj"
    if start.startswith(b"{"):
        return "xgboost-json"
    # ModelProto starts with ir_version (field 1, a varint of a small number) in every file onnx writes; a file that
    # starts with another field is still told by its graph (field 7).
    if data[:1] == b"\x08" or (filename or "").lower().endswith(".onnx"):
        return "onnx"
    if _OLD_PICKLE.match(data):
        raise UnsafeModelError(f"Expected a model file, got what looks like an old pickle{named}. {_INSTEAD}")
    raise UnsupportedModelError(
        f"Expected an ONNX, LightGBM text, XGBoost JSON or XGBoost UBJ model{named}, got bytes starting {data[:16]!r}"
    )


def _is_ubjson(data: bytes) -> bool:
    """XGBoost's UBJSON opens an object and gives a key's length as an integer of a marked type."""
    return data[1:2] in (b"L", b"l", b"i", b"U", b"I", b"#", b"$")
