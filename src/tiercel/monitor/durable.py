"""Files of monitoring that survive a kill and a power cut: written beside their place, synced, then renamed into it.

Readers see the old file or the new one, whole. What a killed process left half made begins with UNFINISHED and is removed
by the next that holds the lock of its directory.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: What predictions and labels say may be personal: nobody else on the host reads it.
FILE_MODE, DIRECTORY_MODE = 0o600, 0o700
#: Readers of a directory of Parquet files leave out what begins with a dot.
UNFINISHED = ".part-"
#: A lock that another has is asked for this often by who does not wait for good.
_ASKED_EVERY_S = 0.02


def make_directory(directory: Path) -> None:
    """Make a directory that survives a power cut, and those above it, unless it is there."""
    if directory.is_dir():
        return
    make_directory(directory.parent)
    with contextlib.suppress(FileExistsError):  # somebody was quicker
        directory.mkdir(mode=DIRECTORY_MODE)
    sync_directory(directory.parent)


def sync_directory(directory: Path) -> None:
    """Make names that were made or changed in a directory survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_named(path: Path, descriptor: int) -> None:
    """See that a name still leads to an open file. The kernel syncs a file that has no name any more without a word.

    Raises:
        OSError: nothing has that name, or another file has it.
    """
    named, own = os.stat(path), os.fstat(descriptor)  # noqa: PTH116 - all steps of this module go through `os`
    if (named.st_dev, named.st_ino) != (own.st_dev, own.st_ino):
        raise FileNotFoundError(errno.ENOENT, "Another file took the place", str(path))


def is_named(path: Path, descriptor: int) -> bool:
    """As `check_named`; where that cannot be asked, the file counts as there."""
    try:
        check_named(path, descriptor)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def write_file(path: Path, content: bytes) -> None:
    """Put `content` in the place of what is there.

    Raises:
        OSError: there is no room; what was there stays.
    """
    with finished(path) as unfinished:
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, FILE_MODE)
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(descriptor, view) :]
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def finished(path: Path) -> Iterator[Path]:
    """A name to write a file under; at the end of the block it is synced and takes the place of `path`.

    Raises:
        OSError: there is no room; what was there stays, and the unfinished file is removed. Whatever the block raises: likewise.
    """
    unfinished = path.with_name(f"{UNFINISHED}{path.name}~")  # no pattern of finished ones fits it
    try:
        yield unfinished
        descriptor = os.open(unfinished, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.fchmod(descriptor, FILE_MODE)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(unfinished, path)  # noqa: PTH105 - all steps of this module go through `os`
        sync_directory(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(unfinished)  # noqa: PTH108
        raise


def remove_file(path: Path) -> None:
    """Remove a file unless that has been done."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # noqa: PTH108


def remove_unfinished(directory: Path) -> None:
    """Remove what killed processes left half made, below a directory whose lock the caller holds."""
    for path in directory.rglob(f"{UNFINISHED}*"):
        remove_file(path)


@contextlib.contextmanager
def locked(path: Path, *, waits: bool | float) -> Iterator[bool]:
    """Hold the lock of a file made for the purpose. Yields whether it is held, for another may have it.

    The kernel lets go of it when the process ends, however it ends.

    Args:
        path: of the file.
        waits: for another who has it: for good, not at all, or so many seconds.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
    try:
        yield _take(descriptor, waits)
    finally:
        os.close(descriptor)


def _take(descriptor: int, waits: bool | float) -> bool:
    if waits is True:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return True
    deadline = time.monotonic() + waits
    while True:  # flock has no deadline of its own, and an alarm would be the whole process's
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_ASKED_EVERY_S)
        else:
            return True
