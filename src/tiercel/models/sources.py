"""Where a model comes from: a file, bytes or a fitted estimator, and the library whose answers it must reproduce."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tiercel.errors import MissingExtraError, UnsupportedModelError
from tiercel.models.formats import MAX_MODEL_BYTES, ModelFormat, detect_format
from tiercel.models.onnx_scorer import OnnxScorer
from tiercel.types import Task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

Rows = NDArray[np.float32]
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Source:
    """A model as handed over, in a format that can be stored."""

    data: bytes
    format: ModelFormat
    task: Task | None = None
    classes: tuple[str, ...] | None = None
    features: tuple[str, ...] | None = None
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    #: The estimator's own answer, float64 (n, n_outputs); None when only a file was given.
    estimate: Callable[[Rows], Scores] | None = None
    estimator: str = ""  # its class and library version


@dataclass(frozen=True)
class Reference:
    """The source library's prediction of the stored file."""

    name: str  # library and version
    predict: Callable[[Rows], Scores]
    accepts_infinity: bool = True
    n_features: int | None = None
    features: tuple[str, ...] | None = None


def open_source(model: Any, feature_names: Sequence[str] | None) -> Source:
    """Bytes in a supported format, whatever was handed over.

    Raises:
        UnsafeModelError: a pickle. UnsupportedModelError: a type or estimator that cannot be stored.
        MissingExtraError: the conversion needs a library that is not installed.
    """
    if isinstance(model, (str, Path)):
        path = Path(model)
        try:
            if path.stat().st_size > MAX_MODEL_BYTES:
                raise UnsupportedModelError(f"Expected a model of at most {MAX_MODEL_BYTES} bytes, got {path}")
            data = path.read_bytes()
        except OSError as error:
            raise UnsupportedModelError(f"Expected a model file at {path}, which cannot be read: {error}") from error
        return Source(data, detect_format(data, path.name))
    if isinstance(model, (bytes, bytearray, memoryview)):
        data = bytes(model)
        return Source(data, detect_format(data))
    # The classes are compared by name so that nothing is imported for a model of another library.
    families = {cls.__module__.split(".")[0] for cls in type(model).__mro__}
    if "lightgbm" in families:
        return _from_lightgbm(model)
    if "xgboost" in families:
        return _from_xgboost(model)
    if "sklearn" in families:
        return _from_sklearn(model, feature_names)
    raise UnsupportedModelError(
        f"Expected a path, bytes, or a scikit-learn, LightGBM or XGBoost model, got {type(model).__module__}."
        f"{type(model).__qualname__}. Export it to ONNX and register the file."
    )


def reference_of(data: bytes, model_format: ModelFormat, *, n_features: int | None, task: Task | None) -> Reference:
    """The library that defines what this file answers.

    Raises:
        MissingExtraError: it is not installed. UnsupportedModelError: it cannot load the file.
    """
    if model_format == "lightgbm":
        return _lightgbm_reference(data)
    if model_format == "onnx":
        import onnxruntime

        scorer = OnnxScorer(data, n_features=n_features, task=task)
        return Reference(f"onnxruntime {onnxruntime.__version__}", scorer.score)
    return _xgboost_reference(data)


def convert_to_onnx(data: bytes, model_format: ModelFormat, n_features: int) -> bytes:
    """The same model as ONNX, for onnxruntime.

    Raises:
        MissingExtraError: onnxmltools is not installed. UnsupportedModelError: it cannot convert this model.
    """
    extra = "lightgbm" if model_format == "lightgbm" else "xgboost"
    try:
        import onnxmltools
        from onnxmltools.convert.common.data_types import FloatTensorType
    except ImportError as error:
        raise MissingExtraError(package="onnxmltools", extra=extra, purpose="Converting this model to ONNX") from error
    initial_types = [("input", FloatTensorType([None, n_features]))]
    try:
        if model_format == "lightgbm":
            import lightgbm

            booster = lightgbm.Booster(model_str=data.decode())
            converted = onnxmltools.convert_lightgbm(booster, initial_types=initial_types, zipmap=False)
        else:
            converted = onnxmltools.convert_xgboost(_xgboost_booster(data), initial_types=initial_types)
        return bytes(converted.SerializeToString())
    except Exception as error:  # converters raise whatever their internals meet
        raise UnsupportedModelError(f"onnxmltools cannot convert this {extra} model: {error!r}") from error


def _lightgbm_reference(data: bytes) -> Reference:
    lightgbm = _import("lightgbm", extra="lightgbm", purpose="Comparing a LightGBM model with its source")
    try:
        booster = lightgbm.Booster(model_str=data.decode())
    except Exception as error:
        raise UnsupportedModelError(f"LightGBM cannot load this model: {error}") from error

    def predict(rows: Rows) -> Scores:
        return np.asarray(booster.predict(rows, num_threads=1), dtype=np.float64).reshape(len(rows), -1)

    names = tuple(booster.feature_name())
    return Reference(f"lightgbm {lightgbm.__version__}", predict, n_features=len(names), features=names)


def _xgboost_booster(data: bytes) -> Any:
    xgboost = _import("xgboost", extra="xgboost", purpose="Comparing an XGBoost model with its source")
    try:
        booster = xgboost.Booster({"nthread": 1, "verbosity": 0})
        booster.load_model(bytearray(data))
    except Exception as error:
        raise UnsupportedModelError(f"XGBoost cannot load this model: {error}") from error
    return booster


def _xgboost_reference(data: bytes) -> Reference:
    import json

    xgboost = _import("xgboost", extra="xgboost", purpose="Comparing an XGBoost model with its source")
    booster = _xgboost_booster(data)
    objective = json.loads(booster.save_config())["learner"]["objective"]["name"]
    if objective == "multi:softmax":  # the same margins; scores are probabilities, not the largest one's number
        booster.set_param({"objective": "multi:softprob"})
    types = booster.feature_types
    names = booster.feature_names

    def predict(rows: Rows) -> Scores:
        matrix = xgboost.DMatrix(
            rows, missing=np.nan, nthread=1, feature_types=types, feature_names=names,
            enable_categorical=types is not None and "c" in types,
        )  # fmt: skip
        return np.asarray(booster.predict(matrix), dtype=np.float64).reshape(len(rows), -1)

    return Reference(
        f"xgboost {xgboost.__version__}",
        predict,
        accepts_infinity=False,
        n_features=int(booster.num_features()),
        features=_names(names),
    )


def _from_lightgbm(model: Any) -> Source:
    import lightgbm

    booster = model if isinstance(model, lightgbm.Booster) else getattr(model, "booster_", None)
    if booster is None:
        raise UnsupportedModelError(f"Expected a fitted LightGBM model, got {type(model).__qualname__} without fit")
    data = booster.model_to_string().encode()
    name = f"lightgbm.{type(model).__qualname__} {lightgbm.__version__}"
    if model is booster:
        return Source(data, "lightgbm", features=tuple(booster.feature_name()), estimator=name)
    return Source(
        data,
        "lightgbm",
        classes=_labels(model),
        features=tuple(booster.feature_name()),
        hyperparameters=_plain_parameters(model),
        estimate=_estimate(model),
        estimator=name,
    )


def _from_xgboost(model: Any) -> Source:
    import xgboost

    name = f"xgboost.{type(model).__qualname__} {xgboost.__version__}"
    if isinstance(model, xgboost.Booster):
        data = bytes(model.save_raw("ubj"))
        return Source(data, "xgboost-ubj", features=_names(model.feature_names), estimator=name)
    try:
        booster = model.get_booster()
    except Exception as error:
        raise UnsupportedModelError(
            f"Expected a fitted XGBoost model, got {type(model).__qualname__}: {error}"
        ) from error
    best = getattr(model, "best_iteration", None) if getattr(model, "early_stopping_rounds", None) else None
    if best is not None:
        booster = booster[: best + 1]  # what the estimator itself predicts with
    return Source(
        bytes(booster.save_raw("ubj")),
        "xgboost-ubj",
        classes=_labels(model),
        features=_names(booster.feature_names),
        hyperparameters=_plain_parameters(model),
        estimate=_estimate(model),
        estimator=name,
    )


def _from_sklearn(model: Any, feature_names: Sequence[str] | None) -> Source:
    sklearn = _import("sklearn", extra="sklearn", purpose="Registering a scikit-learn model")
    try:
        import skl2onnx
        from skl2onnx.common.data_types import FloatTensorType
    except ImportError as error:
        raise MissingExtraError(
            package="skl2onnx", extra="sklearn", purpose="Registering a scikit-learn model"
        ) from error
    width = getattr(model, "n_features_in_", None)
    if width is None:
        raise UnsupportedModelError(f"Expected a fitted scikit-learn model, got {type(model).__qualname__} without fit")
    is_classifier = hasattr(model, "classes_")
    if is_classifier and not hasattr(model, "predict_proba"):
        raise UnsupportedModelError(
            f"{type(model).__qualname__} gives labels without probabilities; wrap it in CalibratedClassifierCV"
        )
    options: Any = {id(model): {"zipmap": False}} if is_classifier else None
    try:
        with _plain_attributes():
            converted = skl2onnx.convert_sklearn(
                model, initial_types=[("input", FloatTensorType([None, int(width)]))], options=options
            )
    except Exception as error:  # converters raise whatever their internals meet
        # They also print whole models; the cause beneath is what says something.
        cause = str(error.__cause__ or error)[:300]
        raise UnsupportedModelError(f"skl2onnx cannot convert {type(model).__qualname__}: {cause}") from error
    classes = _labels(model)
    task = Task.REGRESSION
    if classes is not None:
        task = Task.BINARY if len(classes) == 2 else Task.MULTICLASS
    return Source(
        bytes(converted.SerializeToString()),
        "onnx",
        task=task,
        classes=classes,
        features=_names(getattr(model, "feature_names_in_", feature_names)),
        hyperparameters=_plain_parameters(model),
        estimate=_estimate(model),
        estimator=f"sklearn.{type(model).__qualname__} {sklearn.__version__}",
    )


def _estimate(model: Any) -> Callable[[Rows], Scores]:
    """The estimator's own scores in our shape: probability of the second class, of every class, or the prediction."""

    def estimate(rows: Rows) -> Scores:
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "X does not have valid feature names": true and intended here
            if hasattr(model, "classes_"):
                scores = np.asarray(model.predict_proba(rows), dtype=np.float64)
                return scores[:, 1:2] if scores.shape[1] == 2 else scores
            return np.asarray(model.predict(rows), dtype=np.float64).reshape(len(rows), -1)

    return estimate


def _labels(model: Any) -> tuple[str, ...] | None:
    labels = getattr(model, "classes_", None)
    return None if labels is None else tuple(str(label) for label in np.asarray(labels).tolist())


def _names(names: Any) -> tuple[str, ...] | None:
    return None if names is None else tuple(str(name) for name in names)


def _plain_parameters(model: Any) -> dict[str, Any]:
    """get_params() as JSON values; objects by their text."""
    try:
        found = model.get_params(deep=True)
    except Exception:  # noqa: BLE001 - third-party estimators; hyperparameters are documentation, not behaviour
        return {}
    return {
        str(key): value if isinstance(value, (bool, int, float, str, type(None))) else str(value)[:200]
        for key, value in found.items()
    }


def _import(package: str, *, extra: str, purpose: str) -> Any:
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingExtraError(package=package, extra=extra, purpose=purpose) from error


_patching = threading.Lock()


@contextlib.contextmanager
def _plain_attributes() -> Iterator[None]:
    """While open, node attributes may hold NumPy integers and booleans.

    skl2onnx takes them from HistGradientBoosting's trees and hands them to protobuf, whose newer versions refuse them.
    """
    import onnx

    original = onnx.helper.make_attribute

    def make_attribute(key: str, value: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(value, np.ndarray):
            value = value.tolist()
        if isinstance(value, list | tuple):
            value = [int(item) if isinstance(item, np.integer | np.bool_ | bool) else item for item in value]
        return original(key, value, *arguments, **options)

    with _patching:
        onnx.helper.make_attribute = make_attribute
        try:
            yield
        finally:
            onnx.helper.make_attribute = original
