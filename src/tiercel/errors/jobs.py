"""Errors of batch jobs."""

from __future__ import annotations

from typing import ClassVar

from tiercel.errors.base import TiercelError


class JobStateError(TiercelError):
    """A batch job is not in the state that what was asked for needs.

    Args:
        message: which state it is in, what to do.
        code: stable name, one of `CODES`.
        wait_us: when it is expected to be finished, where that is what to wait for.
    """

    CODES: ClassVar[frozenset[str]] = frozenset(
        {
            "job_not_finished",  # its results were asked for
            "job_failed",  # likewise, and there will be none
            "job_cancelled",  # likewise
            "job_finished",  # it was to be cancelled
        }
    )

    def __init__(self, message: str, *, code: str, wait_us: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.wait_us = wait_us


class JobsDisabledError(TiercelError):
    """A batch job was asked for where nothing would ever run it."""

    code = "jobs_disabled"


class JobStorageError(TiercelError):
    """A file of a batch job cannot be written or read; nothing was accepted that is not on disk."""

    code = "job_storage"
