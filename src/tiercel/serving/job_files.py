"""The files of batch jobs: written whole and synced or not at all, locked between processes, read within bounds.

Everything goes through `os.open`, `os.write` and `os.fsync`, whose errors say when a disk is full, and leaves nothing half
made behind when one of them fails.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

#: Of one job's directory.
JOB_FILE, QUESTION_FILE, ATTEMPT_FILE = "job.json", "question.jsonl", "attempt.json"
OUTCOME_FILE, RESULTS_FILE, CLAIM_FILE = "outcome.json", "results.jsonl", "claim"
#: Of the store.
LOCK_FILE = "lock"
#: What people ask about a job may be personal: nobody else on the host reads it.
FILE_MODE, DIRECTORY_MODE = 0o600, 0o700
MAX_RECORD_BYTES = 1 << 22


def write_new(path: Path, parts: Iterable[bytes], *, durable: bool = True) -> tuple[int, str]:
    """Write a file that did not exist; returns its bytes and their sha256.

    Raises:
        OSError: it exists, or there is no room; then nothing is left behind.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    digest, n_bytes = hashlib.sha256(), 0
    try:
        try:
            for part in parts:
                write_all(descriptor, part)
                digest.update(part)
                n_bytes += len(part)
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return n_bytes, digest.hexdigest()


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of it, in as many turns as the system takes."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def replace(path: Path, content: bytes, *, durable: bool) -> None:
    """Put `content` in the place of what is there; readers see the one or the other, whole.

    Raises:
        OSError: there is no room; what was there stays.
    """
    with _beside(path) as unfinished:
        write_new(unfinished, [content], durable=durable)
        unfinished.replace(path)
        if durable:
            sync_directory(path.parent)


def write_once(path: Path, content: bytes) -> bool:
    """Write a file durably unless it exists; of several who try, one succeeds. Returns whether this one did.

    Raises:
        OSError: there is no room.
    """
    with _beside(path) as unfinished:
        write_new(unfinished, [content])
        try:
            os.link(unfinished, path)
        except FileExistsError:
            return False
        sync_directory(path.parent)
    return True


def read_record(path: Path) -> bytes:
    """The content of a small file.

    Raises:
        OSError: it is not there, or is a link.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb", buffering=0) as stream:
        return stream.read(min(os.fstat(descriptor).st_size, MAX_RECORD_BYTES)) or b""


def sync_directory(directory: Path) -> None:
    """Make names that were made, or changed, in a directory survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(directory: Path) -> None:
    """Make a directory that survives a power cut, and those above it, unless it is there."""
    if directory.is_dir():
        return
    make_directory(directory.parent)
    with contextlib.suppress(FileExistsError):  # somebody was quicker
        directory.mkdir(mode=DIRECTORY_MODE)
    sync_directory(directory.parent)


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the lock of a file made for the purpose; others wait. For what takes no longer than a few renames."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def try_lock(path: Path) -> int | None:
    """Lock a file, made if it is not there, until the returned descriptor is closed, or its process ends, however it ends.

    None: somebody else has it, or the file's directory is gone.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def is_locked(path: Path) -> bool:
    """Whether a live process holds the lock of a file."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two who ask do not mistake each other
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A name for work in progress in the same directory; gone in the end."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        yield unfinished
    finally:
        unfinished.unlink(missing_ok=True)
