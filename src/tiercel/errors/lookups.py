"""Errors of names and keys that do not exist."""

from __future__ import annotations

from tiercel.errors.base import TiercelError


class NotFoundError(TiercelError):
    """Base of lookups that found nothing."""

    code = "not_found"


class EntityNotFoundError(NotFoundError):
    """The store holds no row for this entity and the service does not allow that (`on_missing_entity="error"`)."""

    code = "entity_not_found"

    def __init__(self, message: str, *, row: int | None = None) -> None:
        super().__init__(message)
        self.row = row


class ServiceNotFoundError(NotFoundError):
    """No feature service of this name is applied."""

    code = "service_not_found"


class ModelNotFoundError(NotFoundError):
    """No registered model of this name."""

    code = "model_not_found"


class VersionNotFoundError(NotFoundError):
    """The model has no such version."""

    code = "version_not_found"


class AliasNotFoundError(NotFoundError):
    """The model has no such alias."""

    code = "alias_not_found"


class JobNotFoundError(NotFoundError):
    """No batch job has this id."""

    code = "job_not_found"


class AlertNotFoundError(NotFoundError):
    """No alert has this id."""

    code = "alert_not_found"


class ReceiptNotFoundError(NotFoundError):
    """No record is kept of the prediction with this id: it is past retention, was never recorded, or was of another server."""

    code = "receipt_not_found"
