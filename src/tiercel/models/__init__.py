"""Models as data: read, checked against the library that trained them, and compiled.

    prepared = prepare(model, feature_names=..., golden_rows=...)   # registering: needs the source library
    loaded = load(prepared.artifacts)                               # serving: needs neither it nor onnx
    loaded.scorer.score(rows)                                       # float32 (n, features) -> float64 (n, outputs)

The only correct answer is the source library's. A compiled scorer is used after it reproduced that library on the golden
rows and on 20,000 random rows (NaN, infinities, the model's own thresholds and their float neighbours, unseen
categories); everything else is served by onnxruntime, and the version says why.
"""

from tiercel.models.formats import ModelFormat, detect_format
from tiercel.models.loading import LoadedModel, load
from tiercel.models.naming import own_names
from tiercel.models.onnx_scorer import OnnxScorer
from tiercel.models.parity import ParityReport
from tiercel.models.preparing import Engine, PreparedModel, prepare

__all__ = [
    "Engine",
    "LoadedModel",
    "ModelFormat",
    "OnnxScorer",
    "ParityReport",
    "PreparedModel",
    "detect_format",
    "load",
    "own_names",
    "prepare",
]
