"""Errors of model artifacts: loading, scoring and explaining them."""

from __future__ import annotations

from tiercel.errors.base import TiercelError


class ModelError(TiercelError):
    """Base of model-artifact errors."""

    code = "model_error"


class UnsupportedModelError(ModelError):
    """The file's format, or something in it, is not supported; the message names the part."""

    code = "unsupported_model"


class UnsafeModelError(ModelError):
    """Loading the file could execute code or read other files; it is refused."""

    code = "unsafe_model"


class ArtifactCorruptError(ModelError):
    """Bytes do not match the digest recorded when they were registered."""

    code = "artifact_corrupt"


class ParityError(ModelError):
    """The model as loaded does not reproduce the source library on its golden rows."""

    code = "parity_failed"


class ScoreError(ModelError):
    """A model was asked, and gave NaN or an infinity for a row. `row`: the first one, where many were asked about."""

    code = "score_not_finite"

    def __init__(self, message: str, *, row: int | None = None) -> None:
        super().__init__(message)
        self.row = row


class ScoringFailedError(ModelError):
    """What runs a model raised where it should have scored; the message names the model and has the reason in one line.

    `row` is the first row of the request that it raised for, where that is known.
    """

    code = "scoring_failed"

    def __init__(self, message: str, *, row: int | None = None) -> None:
        super().__init__(message)
        self.row = row


class UnexplainableModelError(ModelError):
    """What a model's features contribute cannot be computed the way that was asked for; the message names what is not."""

    code = "unexplainable_model"


class ReferenceSetError(ModelError):
    """The reference rows of explanations are missing, too many, or not of the model's features."""

    code = "invalid_reference_set"


class ModelUnavailableError(ModelError):
    """An alias points at a version that this server could not load; the message says why."""

    code = "model_unavailable"
