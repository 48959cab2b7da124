"""Small files that are replaced, never edited: readers see the old content or the new, whole."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import time
from typing import TYPE_CHECKING

from tiercel.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_STALE_SECONDS = 3600


def replace_file(path: Path, content: bytes) -> None:
    """Write `content` beside `path`, fsync it, and rename it over `path`. Makes the directory if needed.

    Raises:
        StoreError: the disk is full, or not ours to write.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary(path) as unfinished:
            unfinished.write_bytes(content)
            sync(unfinished)
            unfinished.replace(path)
        sync(path.parent)
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror or error}.") from error


def sync(path: Path) -> None:
    """Make what was written to a file, or renamed in a directory, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """A name beside `path` for work in progress; removed at the end unless renamed."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        yield unfinished
    finally:
        unfinished.unlink(missing_ok=True)


def remove_stale(directory: Path) -> None:
    """Delete work that a killed process left in `directory` over an hour ago."""
    for path in directory.glob("*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                path.unlink()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock between processes, on a file made for the purpose; wait for it as long as it takes.

    Raises:
        StoreError: the file cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StoreError(f"{path} cannot be made: {error.strerror or error}.") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
