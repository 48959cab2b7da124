"""How long finished jobs are kept: by age and by bytes, the oldest removed first, and counted."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tiercel.errors import JobStorageError
from tiercel.serving.job_files import LOCK_FILE, held, read_record, replace
from tiercel.serving.job_records import seal, unseal

if TYPE_CHECKING:
    from pathlib import Path

    from tiercel.serving.job_records import JobLimits
    from tiercel.serving.job_shelf import JobShelf

#: Beginnings of directories that nobody looks into: a job not accepted yet, and one that is being removed.
NEW, _GONE = ".new-", ".gone-"
_REMOVED_FILE = "removed.json"
_STALE_AFTER_S = 3600.0


@dataclass(frozen=True, slots=True)
class Removed:
    """Finished jobs that are no more, since the store was made."""

    n_old: int = 0
    n_for_room: int = 0
    n_bytes: int = 0


class Retention:
    """Removes what has had its time.

    Args:
        shelf: where the jobs are.
        limits: what is kept.

    Threads: safe.
    """

    def __init__(self, shelf: JobShelf, limits: JobLimits) -> None:
        self._shelf = shelf
        self._limits = limits
        self._sizes: dict[str, tuple[int, int]] = {}  # finished job -> (finished_us, bytes)

    def apply(self) -> Removed:
        """Remove finished jobs that are too old or too large together, oldest first, and what killed processes left.

        Returns:
            What was removed now.

        Raises:
            OSError: the directories cannot be read or written.
        """
        if not self._shelf.path.is_dir():
            return Removed()
        self._remove_leftovers()
        now_us = time.time_ns() // 1000
        sizes = {
            name: self._sizes.get(name) or self._size(self._shelf.finished / name)
            for name in self._shelf.names(self._shelf.finished)
        }
        self._sizes = sizes
        oldest_first = sorted(sizes, key=lambda name: (sizes[name][0], name))
        n_bytes = sum(size for _, size in sizes.values())
        n_old = n_for_room = n_removed = 0
        for name in oldest_first:
            finished_us, size = sizes[name]
            is_old = now_us - finished_us > self._limits.keep_s * 1e6
            is_in_the_way = n_bytes > self._limits.keep_bytes and name != oldest_first[-1]
            if not (is_old or is_in_the_way) or not self.remove(self._shelf.finished / name):
                continue
            n_old, n_for_room = n_old + is_old, n_for_room + (not is_old)
            n_bytes, n_removed = n_bytes - size, n_removed + size
        removed = Removed(n_old, n_for_room, n_removed)
        if removed != Removed():
            self._count(removed)
        return removed

    def removed(self) -> Removed:
        """How many finished jobs were removed."""
        try:
            return Removed(**unseal(read_record(self._shelf.path / _REMOVED_FILE), _REMOVED_FILE))
        except (JobStorageError, OSError, TypeError):
            return Removed()

    def _size(self, directory: Path) -> tuple[int, int]:
        """When a finished job ended and how much it takes; of one that cannot be read, when its directory changed."""
        try:
            outcome = self._shelf.read_outcome(directory)
        except (JobStorageError, OSError) as error:
            self._shelf.report(directory.name, str(error))
            outcome = None
        try:
            with os.scandir(directory) as entries:
                n_bytes = sum(entry.stat(follow_symlinks=False).st_size for entry in entries)
            changed_us = directory.stat().st_mtime_ns // 1000
        except FileNotFoundError:
            return 0, 0
        return changed_us if outcome is None else outcome.finished_us, n_bytes

    def remove(self, directory: Path) -> bool:
        """Remove a job; whether this one did. Whoever reads its results reads on."""
        gone = self._shelf.path / f"{_GONE}{directory.name}"
        try:
            directory.rename(gone)  # at once for those who look, whatever happens to its files
        except OSError:
            return False
        shutil.rmtree(gone, ignore_errors=True)
        return True

    def _remove_leftovers(self) -> None:
        for entry in list(os.scandir(self._shelf.path)):
            is_gone = entry.name.startswith(_GONE)
            with contextlib.suppress(OSError):
                if is_gone or (
                    entry.name.startswith(NEW)
                    and time.time() - entry.stat(follow_symlinks=False).st_mtime > _STALE_AFTER_S
                ):
                    shutil.rmtree(entry.path, ignore_errors=True)

    def _count(self, removed: Removed) -> None:
        with held(self._shelf.path / LOCK_FILE):
            before = self.removed()
            total = {
                "n_old": before.n_old + removed.n_old,
                "n_for_room": before.n_for_room + removed.n_for_room,
                "n_bytes": before.n_bytes + removed.n_bytes,
            }
            replace(self._shelf.path / _REMOVED_FILE, seal(total), durable=True)
