"""Models as data: read, checked against the library that trained them, and compiled.

    prepared = prepare(model, feature_names=..., golden_rows=...)   # registering: needs the source library
    prepared = prepare_file(path, ...)                              # the same, in a process that may crash in its place
    profile = measure(prepared.artifacts)                           # what it costs here; `decide_tier` says what follows
    loaded = load(prepared.artifacts)                               # serving: needs neither it nor onnx
    loaded.scorer.score(rows)                                       # float32 (n, features) -> float64 (n, outputs)

The only correct answer is the source library's. A compiled scorer is used after it reproduced that library on the golden
rows and on 20,000 random rows (NaN, infinities, the model's own thresholds and their float neighbours, unseen
categories), or as many as there is time for; everything else is served by onnxruntime, and the version says why.
"""

from tiercel.models.formats import ModelFormat, detect_format
from tiercel.models.loading import LoadedModel, load
from tiercel.models.measuring import StoredFeatures, measure
from tiercel.models.naming import own_names
from tiercel.models.onnx_scorer import OnnxScorer
from tiercel.models.opening import is_file, prepare_file
from tiercel.models.parity import ParityReport
from tiercel.models.preparing import Engine, PreparedModel, prepare
from tiercel.models.profile import (
    CostProfile,
    HostFingerprint,
    ProfileStore,
    Quantiles,
    TierDecision,
    decide_tier,
    served_tier,
    this_host,
)

__all__ = [
    "CostProfile",
    "Engine",
    "HostFingerprint",
    "LoadedModel",
    "ModelFormat",
    "OnnxScorer",
    "ParityReport",
    "PreparedModel",
    "ProfileStore",
    "Quantiles",
    "StoredFeatures",
    "TierDecision",
    "decide_tier",
    "detect_format",
    "is_file",
    "load",
    "measure",
    "own_names",
    "prepare",
    "prepare_file",
    "served_tier",
    "this_host",
]
