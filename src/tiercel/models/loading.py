"""Serving side: from a version's artifacts to a scorer. Needs none of the libraries that trained the model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from tiercel.errors import ArtifactCorruptError, ParityError
from tiercel.models.formats import FILE_NAME, detect_format
from tiercel.models.golden import Golden
from tiercel.models.ir import Forest, Linear
from tiercel.models.onnx_scorer import OnnxScorer
from tiercel.models.parity import Bound, compare, rounding_slack
from tiercel.models.preparing import FACTS_FILE, FALLBACK_FILE, GOLDEN_FILE, Engine
from tiercel.models.readers import read_model
from tiercel.types import Signature

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True)
class LoadedModel:
    """A model that can serve.

    `scorer` is a compiled `Scorer` or an `OnnxScorer`; both have `score(float32 (n, n_features)) -> float64 (n, n_outputs)`.
    """

    scorer: Any
    signature: Signature
    engine: Engine
    reason: str
    facts: dict[str, Any]  # everything in model.json
    body: Forest | Linear | None = None  # what a compiled scorer was made of; let it go once nothing else is


def load(artifacts: Mapping[str, bytes], *, verify: bool = True) -> LoadedModel:
    """Load what `prepare` packaged.

    Args:
        artifacts: files by name; others are ignored.
        verify: score the golden rows and compare.

    Raises:
        ArtifactCorruptError: a file is missing or is not what `prepare` writes.
        UnsafeModelError, UnsupportedModelError: the model file.
        ParityError: the golden rows score differently here.
    """
    facts = _facts(artifacts)
    try:
        signature = Signature.from_json(facts["signature"])
        engine, served_file = cast("Engine", facts["engine"]), facts["file"]
        bound = Bound(**facts["bound"])
        reason = str(facts["reason"])
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactCorruptError(f"Expected {FACTS_FILE} as prepare() writes it, got {error!r}") from error
    if engine not in ("forest", "linear", "onnxruntime") or served_file not in {*FILE_NAME.values(), FALLBACK_FILE}:
        raise ArtifactCorruptError(f"Expected a known engine and file in {FACTS_FILE}, got {engine!r}, {served_file!r}")
    data = _file(artifacts, served_file)
    scorer: Any
    body: Forest | Linear | None = None
    if engine == "onnxruntime":
        scorer = OnnxScorer(data, n_features=len(signature.features), task=signature.task)
    else:
        body = read_model(data, detect_format(data, served_file)).body
        if isinstance(body, Forest) != (engine == "forest"):
            raise ArtifactCorruptError(f"{FACTS_FILE} says {engine}, {served_file} holds another kind of model")
        scorer = body.compile()
    if scorer.n_features != len(signature.features) or scorer.n_outputs != signature.n_outputs:
        raise ArtifactCorruptError(
            f"{FACTS_FILE} says {len(signature.features)} features and {signature.n_outputs} scores, {served_file} has "
            f"{scorer.n_features} and {scorer.n_outputs}"
        )
    if verify:
        _verify(scorer, Golden.from_bytes(_file(artifacts, GOLDEN_FILE)), bound, body, signature.features)
    return LoadedModel(scorer, signature, engine, reason, facts, body)


def _verify(scorer: Any, golden: Golden, bound: Bound, body: Forest | Linear | None, features: Sequence[str]) -> None:
    if golden.rows.shape[1] != scorer.n_features or golden.scores.shape[1] != scorer.n_outputs:
        raise ArtifactCorruptError(
            f"Expected golden rows of {scorer.n_features} features and {scorer.n_outputs} scores, got "
            f"{golden.rows.shape[1]} and {golden.scores.shape[1]}"
        )
    slack = rounding_slack(body, golden.rows, golden.scores)
    report = compare(scorer.score(golden.rows), golden.scores, golden.rows, bound, "golden rows", slack)
    if not report.passed:
        raise ParityError(
            f"The model scores its golden rows differently than when it was registered: "
            f"{report.describe_worst(features)}. Serve it on a host and with libraries like those it was registered with, or "
            f"register it again here"
        )


def _facts(artifacts: Mapping[str, bytes]) -> dict[str, Any]:
    try:
        facts = json.loads(_file(artifacts, FACTS_FILE))
    except (ValueError, RecursionError) as error:
        raise ArtifactCorruptError(f"Expected JSON in {FACTS_FILE}: {error}") from error
    if not isinstance(facts, dict) or facts.get("schema") != 1:
        raise ArtifactCorruptError(f"Expected {FACTS_FILE} of schema 1; this version of tiercel cannot read another")
    return facts


def _file(artifacts: Mapping[str, bytes], name: str) -> bytes:
    try:
        return artifacts[name]
    except KeyError:
        raise ArtifactCorruptError(f"Expected a file {name} in the version, got {sorted(artifacts)}") from None
