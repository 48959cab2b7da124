"""A directory per worker start, and whether its worker still lives.

The worker holds a lock on a file inside for its whole life; the kernel lets go of it when the process ends, however it ends.
Process ids are not asked: they come again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from typing import TYPE_CHECKING

from tiercel.monitor.durable import is_named

if TYPE_CHECKING:
    from pathlib import Path

_LOCK = "lock"
_UNFINISHED = ".new-"
_STALE_AFTER_S = 3600.0


class WorkerDirectory:
    """A new directory under `parent`, locked until `close`. Never one that existed.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, parent: Path, name: str) -> None:
        parent.mkdir(parents=True, exist_ok=True)
        remove_unfinished(parent)
        unfinished = parent / f"{_UNFINISHED}{name}"
        unfinished.mkdir(mode=0o700)
        self.path = parent / name
        self._lock = os.open(unfinished / _LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            unfinished.rename(self.path)  # with its lock held: nobody sees it look dead
        except BaseException:
            os.close(self._lock)
            raise

    @property
    def is_intact(self) -> bool:
        """Whether it is still there under its name, its lock with it. Without, it looks dead to everybody else."""
        return is_named(self.path / _LOCK, self._lock)

    def close(self) -> None:
        """Let go: from now on the worker counts as dead. Twice is once."""
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)


def worker_name(worker: int) -> str:
    """A name that sorts by start and that no other start of any worker has."""
    return f"{time.time_ns() // 1000:016d}-{worker}-{os.getpid()}"


def is_live(directory: Path) -> bool:
    """Whether the directory's worker still runs. A directory without a lock has none; one that cannot be asked counts as live."""
    try:
        descriptor = os.open(directory / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:  # out of descriptors, not ours: what looks dead is cut and removed, so never guess that
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two who ask do not mistake each other
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def worker_directories(parent: Path) -> list[Path]:
    """Directories of worker starts under `parent`, oldest first."""
    try:
        entries = sorted(parent.iterdir())
    except OSError:
        return []
    return [entry for entry in entries if not entry.name.startswith(".") and entry.is_dir()]


def remove_unfinished(parent: Path) -> None:
    """Delete what starts that died long ago left half made."""
    with contextlib.suppress(OSError):
        for entry in parent.iterdir():
            if entry.name.startswith(_UNFINISHED) and time.time() - entry.stat().st_mtime > _STALE_AFTER_S:
                shutil.rmtree(entry, ignore_errors=True)
