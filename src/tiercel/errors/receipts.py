"""Errors of receipts, replays and audits."""

from __future__ import annotations

from typing import ClassVar

from tiercel.errors.base import TiercelError


class ReceiptError(TiercelError):
    """Base of errors about receipts, replays and audits."""

    code = "receipt_error"


class ReceiptCorruptError(ReceiptError):
    """A receipt, or an export of receipts, was edited, cut short, or is foreign; the message says where."""

    code = "receipt_corrupt"


class NotReplayableError(ReceiptError):
    """A prediction cannot be made again: what it was made by is gone, or is no longer what it was; `code` says which.

    Args:
        message: what is missing, and what is kept all the same.
        code: stable name, one of `CODES`.
    """

    CODES: ClassVar[frozenset[str]] = frozenset(
        {
            "version_removed",  # the registry does not have the model or version any more
            "version_changed",  # ... has another one under its number
            "request_changed",  # the plan does not answer the request that it answered
            "explainer_changed",  # settings make its explanations from something else now
        }
    )

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code


class AuditUnavailableError(ReceiptError):
    """A strict model's record cannot be made durable, so it does not answer."""

    code = "audit_unavailable"
