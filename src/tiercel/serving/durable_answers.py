"""Answers that are given only once their record is durable: models with `audit = "strict"`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tiercel.errors import AuditUnavailableError

if TYPE_CHECKING:
    from tiercel._hot.plan import Prepared
    from tiercel.monitor.group_commit import GroupCommit


async def make_durable(prepared: Prepared, commit: GroupCommit | None) -> None:
    """Return once the record of an answer is durable. Called right after it was recorded, before anything else is.

    Args:
        prepared: recorded.
        commit: of the worker's journal; None: it has none.

    Raises:
        AuditUnavailableError: it is not recorded, or cannot be made durable.
    """
    if commit is None or not prepared.is_recorded:
        raise unrecorded()
    await commit.wait()


def unrecorded() -> AuditUnavailableError:
    """Of an answer that the journal had no room for."""
    return AuditUnavailableError(
        "Expected room in the journal for the record of this answer, got none: the disk is full or slow, or the journal could "
        "not be made. Nothing was answered; free disk space, or try again later"
    )
