"""Registering side: from whatever was handed over to checked artifacts."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tiercel.errors import ParityError, UnsupportedModelError
from tiercel.models.formats import FILE_NAME
from tiercel.models.golden import MAX_GOLDEN_ROWS, Golden
from tiercel.models.ir import FLOAT32_MAX, Forest, NotCompiledError, ParsedModel, class_labels
from tiercel.models.naming import check_names
from tiercel.models.onnx_scorer import OnnxScorer
from tiercel.models.parity import (
    CONVERTED_ATOL,
    CONVERTED_RTOL,
    N_RANDOM_ROWS,
    Bound,
    ParityReport,
    Predictor,
    bound_of,
    compare,
    compare_in_time,
    probe_rows,
)
from tiercel.models.readers import read_model
from tiercel.models.sources import Reference, Source, convert_to_onnx, open_source, reference_of
from tiercel.types import Signature, Task

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

Engine = Literal["forest", "linear", "onnxruntime"]

FACTS_FILE, GOLDEN_FILE, FALLBACK_FILE = "model.json", "golden.msgpack", "fallback.onnx"
#: Very wide models are compared on fewer random rows: more than this would be gigabytes.
MAX_PROBE_CELLS = 1 << 26
#: So are large networks, which use each of their weights for each row: at most so many bytes of them are gone through, a few
#: seconds' worth. Counted, not timed, so that it is the same on every host.
MAX_PROBE_BYTES = 1 << 39
#: What stands for infinity where a linear model's library takes none.
_LARGE = np.float32(1e30)
#: Cells of the rows with one missing value each that are scored at a time.
_MISSING_CELLS = 1 << 22
#: Training rows that are scored however large the model is: fewer say little about a distribution.
LEAST_TRAINING_ROWS = 2048
#: Training rows that are scored at a time.
_BLOCK_ROWS = 4096
#: Rows of the golden file when the caller brings none.
N_GENERATED_ROWS = 64
#: What an estimator may differ from its converted file: converters write float32 coefficients and thresholds. A row on
#: such a rounded threshold takes another path, so one row in a hundred is allowed to differ by more.
ESTIMATOR_RTOL, ESTIMATOR_ATOL, ESTIMATOR_ROWS = 1e-3, 1e-4, 0.01


CONVERTED = Bound(None, single_precision=True, rtol=CONVERTED_RTOL, atol=CONVERTED_ATOL)


@dataclass(frozen=True)
class PreparedModel:
    """A model ready to be registered. `artifacts` are all the files that `load` needs."""

    artifacts: dict[str, bytes]
    signature: Signature
    engine: Engine
    reason: str  # why this engine serves it
    parity: ParityReport  # the engine against the source library
    estimator_parity: ParityReport | None = None  # the engine against the estimator that was handed over
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    scores: NDArray[np.float64] | None = field(default=None, compare=False)  # of training_rows[::scored_every]
    scored_every: int = 1


def prepare(
    model: Any,
    *,
    feature_names: Sequence[str] | None = None,
    golden_rows: NDArray[np.float32] | None = None,
    task: Task | None = None,
    classes: Sequence[str] | None = None,
    training_rows: NDArray[np.float32] | None = None,
    seed: int = 0,
) -> PreparedModel:
    """Read, check and package a model.

    Args:
        model: a path or bytes of an ONNX, LightGBM text, XGBoost JSON or UBJ file; or a fitted scikit-learn, LightGBM
            or XGBoost model.
        feature_names: names in input order; None takes the model's own.
        golden_rows: float32, shape (n, n_features): real inputs to compare on and to keep (the first 256) with the
            version. None draws rows around the model's own thresholds.
        task: what the model predicts, where the file does not say or says it wrongly.
        classes: labels in score order, likewise.
        training_rows: float32, shape (n, n_features): what else to score with what will serve, for `scores`; of a large
            network every nth row. Neither kept nor compared.
        seed: of the random rows.

    Raises:
        UnsafeModelError: a pickle, or a file that reads others.
        UnsupportedModelError: nothing here can serve it, or names and labels do not fit it.
        MissingExtraError: the library that trained it is needed for the comparison and is not installed.
        ParityError: neither the compiled scorer nor onnxruntime reproduces the source library, or the converted file
            does not reproduce the estimator.
    """
    source = open_source(model, feature_names)
    parsed: ParsedModel | None
    try:
        parsed, reason = read_model(source.data, source.format), ""
        if task is not None and parsed.task is not task:
            parsed = _retask(parsed, task)
    except NotCompiledError as error:
        parsed, reason = None, str(error)
    rng = np.random.default_rng(seed)
    n_features = _n_features(parsed, source, feature_names, golden_rows)
    artifacts = {FILE_NAME[source.format]: source.data}
    reference = reference_of(source.data, source.format, n_features=n_features, task=task or source.task)

    n_features = n_features if n_features is not None else reference.n_features
    fallback: OnnxScorer | None = None
    compiled: Any = None
    report: ParityReport | None = None
    if parsed is not None:
        compiled = parsed.body.compile()
        rows = _rows(parsed, compiled.n_features, golden_rows, reference, rng)
        report = compare_in_time(
            compiled.score, reference.predict, rows, bound_of(parsed), reference.name, body=parsed.body
        )
        if not report.passed:
            names = feature_names or source.features or parsed.features
            reason = f"the compiled scorer does not reproduce {reference.name}: {report.describe_worst(names)}"
            compiled = None
    engine: Engine
    if compiled is not None and parsed is not None and report is not None:
        engine = "forest" if isinstance(parsed.body, Forest) else "linear"
        reason = (
            f"compiled {engine}: equal to {reference.name} on {report.compared} within {report.bound} "
            f"(largest difference {report.max_ulp} ulp)"
        )
        scorer: Any = compiled
        bound = bound_of(parsed)
        served_file, own_task = FILE_NAME[source.format], parsed.task
        own_classes: tuple[str, ...] = parsed.classes
        own_features = parsed.features
        accepts_missing = parsed.accepts_missing
    else:
        served_file = FILE_NAME["onnx"]
        served = source.data
        known_task = task or source.task or (parsed.task if parsed is not None else None)
        if source.format != "onnx":
            served_file = FALLBACK_FILE
            served = artifacts[FALLBACK_FILE] = _convert(source, n_features, reason)
        fallback = OnnxScorer(served, n_features=n_features, task=known_task)
        engine, scorer, bound = "onnxruntime", fallback, CONVERTED
        own_task = fallback.task
        own_classes = (
            parsed.classes if parsed is not None else (fallback.class_labels or class_labels(fallback.n_classes))
        )
        own_features = parsed.features if parsed is not None else reference.features
        most = None if parsed is not None else MAX_PROBE_BYTES // max(len(served), 1)
        rows = _rows(parsed, fallback.n_features, golden_rows, reference, rng, most)
        accepts_missing = _survives_missing(fallback.score, rows)
        if source.format != "onnx" and not accepts_missing:  # pragma: no cover - converters keep missing directions
            rows = _finite(rows)
        report = compare_in_time(fallback.score, reference.predict, rows, bound, reference.name)
        if not report.passed:
            names = feature_names or source.features or own_features
            raise ParityError(
                f"Neither the compiled scorer nor onnxruntime reproduces {reference.name} within {report.bound}. {reason}; "
                f"onnxruntime: {report.describe_worst(names)}. Nothing is registered, as this host would serve other scores "
                f"than were evaluated: train with another version of the library, or save the model as ONNX and register that file"
            )

    signature = Signature(
        features=_features(feature_names, source, own_features, scorer.n_features),
        task=own_task,
        classes=_classes(classes, source, own_classes, own_task),
        accepts_missing=accepts_missing,
    )
    if signature.n_outputs != scorer.n_outputs:
        raise UnsupportedModelError(
            f"Expected {signature.n_outputs} scores of a {signature.task} model with classes {signature.classes}, "
            f"the model gives {scorer.n_outputs}"
        )
    kept = rows[:MAX_GOLDEN_ROWS] if golden_rows is not None else rows[:N_GENERATED_ROWS]
    kept = kept[: len(golden_rows)] if golden_rows is not None else kept
    estimator_report = None
    if source.estimate is not None:
        estimator_report, refuses_missing = _compare_estimator(source, scorer.score, kept, signature.features)
        if refuses_missing:
            signature = replace(signature, accepts_missing=False)
    artifacts[GOLDEN_FILE] = Golden(kept, np.asarray(reference.predict(kept), dtype=np.float64)).to_bytes()
    facts = {
        "schema": 1,
        "format": source.format,
        "file": served_file,
        "engine": engine,
        "reason": reason,
        "signature": signature.to_json(),
        "bound": bound.to_json(),
        "parity": report.to_json(),
        "estimator_parity": None if estimator_report is None else estimator_report.to_json(),
        "source": source.estimator or reference.name,
    }
    artifacts[FACTS_FILE] = json.dumps(facts, indent=1, allow_nan=False).encode()
    hyperparameters = source.hyperparameters or (parsed.hyperparameters if parsed is not None else {})
    prepared = PreparedModel(artifacts, signature, engine, reason, report, estimator_report, hyperparameters)
    if training_rows is None:
        return prepared
    every = 1
    if engine == "onnxruntime":
        most = max(LEAST_TRAINING_ROWS, MAX_PROBE_BYTES // max(len(artifacts[served_file]), 1))
        every = max(1, -(-len(training_rows) // most))
    return replace(prepared, scores=_score_all(scorer, training_rows[::every]), scored_every=every)


def _score_all(scorer: Any, rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """Scores of many rows, in blocks."""
    if rows.ndim != 2 or rows.shape[1] != scorer.n_features:
        raise UnsupportedModelError(f"Expected training rows of shape (n, {scorer.n_features}), got {rows.shape}")
    scores = np.empty((len(rows), scorer.n_outputs), dtype=np.float64)
    for at in range(0, len(rows), _BLOCK_ROWS):
        scores[at : at + _BLOCK_ROWS] = scorer.score(np.ascontiguousarray(rows[at : at + _BLOCK_ROWS], np.float32))
    return scores


def _rows(
    parsed: ParsedModel | None,
    n_features: int,
    golden_rows: NDArray[np.float32] | None,
    reference: Reference,
    rng: np.random.Generator,
    most: int | None = None,
) -> NDArray[np.float32]:
    """Golden rows first, then random ones; of these at most `most`."""
    n_random = min(N_RANDOM_ROWS, MAX_PROBE_CELLS // n_features, N_RANDOM_ROWS if most is None else most)
    random = probe_rows(parsed, n_features, max(64, n_random), rng)
    if golden_rows is not None:
        try:
            golden = np.ascontiguousarray(golden_rows, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise UnsupportedModelError(
                f"Expected golden rows of {n_features} numbers each, as float32, got {type(golden_rows).__name__}: {error}"
            ) from error
        if golden.ndim != 2 or golden.shape[1] != n_features or not len(golden):
            raise UnsupportedModelError(
                f"Expected rows of the {n_features} features that the model takes, got golden rows of shape {golden.shape}. With "
                f"a training set, name those it was trained on, in its order: feature_names=[...]"
            )
        random = np.concatenate([golden, random])
    if not reference.accepts_infinity:
        # A library's float32 sum of weighted values has to stay finite, as ours in float64 does.
        large = FLOAT32_MAX if parsed is None or isinstance(parsed.body, Forest) else _LARGE
        random = np.where(np.isinf(random), np.copysign(large, random), random).astype(np.float32)
    return random


def _finite(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.ascontiguousarray(rows[np.isfinite(rows).all(axis=1)])


def _n_features(
    parsed: ParsedModel | None, source: Source, feature_names: Sequence[str] | None, golden: NDArray[np.float32] | None
) -> int | None:
    if parsed is not None:
        return parsed.body.n_features
    for known in (source.features, feature_names):
        if known is not None:
            return len(known)
    return None if golden is None or golden.ndim != 2 else int(golden.shape[1])


def _convert(source: Source, n_features: int | None, reason: str) -> bytes:
    if n_features is None:
        raise UnsupportedModelError(f"{reason}. To convert it for onnxruntime, pass feature_names.")
    try:
        return convert_to_onnx(source.data, source.format, n_features)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(
            f"Nothing here serves this model as its library does. {reason}; and for onnxruntime, {error}. Save it as ONNX, if "
            f"its library can, and register that file"
        ) from error


def _retask(parsed: ParsedModel, task: Task) -> ParsedModel:
    """The same outputs under another meaning, where their number allows it."""
    n_outputs = 1 if parsed.task is not Task.MULTICLASS else len(parsed.classes)
    if (task is Task.MULTICLASS) != (n_outputs > 1):
        raise UnsupportedModelError(f"The model gives {n_outputs} scores, which cannot be {task}")
    return replace(parsed, task=task, classes=() if task is Task.REGRESSION else class_labels(max(n_outputs, 2)))


def _features(
    given: Sequence[str] | None, source: Source, own: tuple[str, ...] | None, n_features: int
) -> tuple[str, ...]:
    names = tuple(given) if given is not None else (source.features or own)
    if given is not None:
        check_names(given, source.features or own)
    if names is None:
        names = tuple(f"f{k}" for k in range(n_features))
    if len(names) != n_features:
        raise UnsupportedModelError(
            f"The model takes {n_features} features, got {len(names)} feature names: {', '.join(names[:8])}"
        )
    if len(set(names)) != len(names):
        raise UnsupportedModelError(f"Expected different feature names, got {', '.join(names[:8])}")
    return names


def _classes(given: Sequence[str] | None, source: Source, own: tuple[str, ...], task: Task) -> tuple[str, ...]:
    if task is Task.REGRESSION:
        if given:
            raise UnsupportedModelError("A regression model has no classes")
        return ()
    names = tuple(str(label) for label in given) if given is not None else (source.classes or own)
    expected = 2 if task is Task.BINARY else len(own)
    if len(names) != expected:
        raise UnsupportedModelError(f"The model has {expected} classes, got labels {', '.join(names[:8])}")
    return names


def _survives_missing(score: Predictor, rows: NDArray[np.float32]) -> bool:
    """Whether a missing value in every column still gives a score."""
    finite = _finite(rows)[:1]
    n_features = rows.shape[1]
    step = max(1, _MISSING_CELLS // n_features)
    for begin in range(0, n_features, step):
        columns = np.arange(begin, min(begin + step, n_features))
        probe = np.repeat(finite, len(columns), axis=0)
        probe[np.arange(len(probe)), columns] = np.nan
        if not np.isfinite(score(probe)).all():
            return False
    return True


def _compare_estimator(
    source: Source, score: Predictor, rows: NDArray[np.float32], features: Sequence[str]
) -> tuple[ParityReport | None, bool]:
    """(the served model against the estimator handed over, whether the estimator refuses NaN)."""
    if source.estimate is None:
        return None, False
    missing = rows[:1].copy()
    missing[:] = np.nan
    refuses = False
    try:
        refuses = not np.isfinite(source.estimate(missing)).all()
    except (ValueError, TypeError):
        refuses = True
    asked = _finite(rows)
    if not len(asked):
        return None, refuses
    expected = source.estimate(asked)
    bound = Bound(None, single_precision=True, rtol=ESTIMATOR_RTOL, atol=ESTIMATOR_ATOL)
    got = score(asked)
    report = compare(got, expected, asked, bound, source.estimator)
    if not report.passed:
        far = (
            np.abs(got - expected) > bound.atol + bound.rtol * np.abs(expected) if got.shape == expected.shape else None
        )
        share = 1.0 if far is None else float(far.any(axis=1).mean())
        if share > ESTIMATOR_ROWS:
            raise ParityError(
                f"The converted model does not reproduce {source.estimator} on {share:.1%} of {len(asked)} rows: "
                f"{report.describe_worst(features)}. What the estimator's own class adds to the library's scores is not in "
                f"its model: register a plain estimator of the library, or save what should be served as ONNX"
            )
    return report, refuses
