"""Going back to an older base: read and hashed like any base before MANIFEST points to it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tiercel.errors import BaseCorruptError, BaseNotKeptError, NotMaterializedError, StoreError
from tiercel.features.manifest import MANIFEST_NAME, publish_manifest, read_manifest, writer_lock
from tiercel.features.online import OnlineBase

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tiercel.features.manifest import Manifest


def rollback(directory: Path, *, to: str | None = None, lock_timeout_s: float = 60.0) -> Manifest:
    """Make an older base that is kept current again and return its manifest. What was left behind goes with the next publish.

    An older base that is damaged is not passed over silently, as values would be older than who asks believes: `to` says it.

    Args:
        directory: of the service.
        to: file name of the base; default the one before the current one.
        lock_timeout_s: how long to wait for another writer of this service.

    Raises:
        NotMaterializedError: nothing was published, or no older base is kept.
        BaseNotKeptError: `to` is none of those that are kept.
        BaseCorruptError: the manifest or the older base is damaged; the current one stays.
        StoreError: another process holds the service's lock for longer than `lock_timeout_s`.
    """
    with writer_lock(directory, timeout_s=lock_timeout_s):
        current = read_manifest(directory)
        if not current.previous:
            raise NotMaterializedError(
                f"Expected an older base of service '{current.service}' to roll back to, got none"
            )
        at = _place(current, to)
        target = current.previous[at]
        damage = _damage(directory, target)
        if damage is not None:
            raise BaseCorruptError(
                f"Expected {target.base_name} of service '{current.service}' to roll back to, got a damaged one: {damage}. "
                f"{current.base_name} stays current; {_next_intact(directory, current.previous[at + 1 :])}"
            )
        target = replace(
            target,
            previous=current.previous[at + 1 :],
            last_sequence=max(current.last_sequence, current.sequence),
        )
        try:
            publish_manifest(directory, target)
        except OSError as error:
            raise StoreError(
                f"{directory / MANIFEST_NAME} cannot be written: {error.strerror or error}. {current.base_name} stays current; "
                f"free disk space or check the disk"
            ) from error
        return target


def _place(current: Manifest, to: str | None) -> int:
    """Which of the older bases is meant."""
    names = [kept.base_name for kept in current.previous]
    if to is None:
        return 0
    if to not in names:
        raise BaseNotKeptError(
            f"Expected an older base of service '{current.service}' that is kept ({', '.join(names)}), got {to!r}"
        )
    return names.index(to)


def _damage(directory: Path, kept: Manifest) -> str | None:
    """What is wrong with an older base, and in which file; None: nothing."""
    try:
        OnlineBase.open_as(directory, kept)
    except BaseCorruptError as error:
        return str(error).partition(". Materialize")[0]
    except OSError as error:
        return f"{error.filename}: {error.strerror or error}"
    return None


def _next_intact(directory: Path, older: Sequence[Manifest]) -> str:
    """What to do instead."""
    for kept in older:
        if _damage(directory, kept) is None:
            as_of = datetime.fromtimestamp(kept.as_of_us / 1e6, tz=UTC)
            return (
                f"the next intact one is {kept.base_name}, as of {as_of:%Y-%m-%d %H:%M:%S} UTC. "
                f"Run: tiercel rollback-base {kept.service} --to {kept.base_name}"
            )
    return "no other one that is kept is intact. Restore that file from a backup, or run: tiercel materialize"
