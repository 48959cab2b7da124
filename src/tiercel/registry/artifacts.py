"""Artifacts on disk, named by the sha256 of their bytes: `<first two hex digits>/<sha256>`.

A file under its final name is complete: it was written and fsynced under another name first. No path is ever made from
a name that a user chose.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import stat
import time
from typing import TYPE_CHECKING, Final

from tiercel.errors import ArtifactCorruptError, RegistryUnavailableError
from tiercel.registry.records import ArtifactFile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_INCOMING: Final = "incoming"
_STALE_AFTER_S: Final = 24 * 3600  # no write takes a day; what is older was left by a process that died


class ArtifactStore:
    """A directory of immutable files. Threads and processes: safe; all write the same bytes under the same name."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def put(self, name: str, content: bytes) -> ArtifactFile:
        """Store `content` durably and return its entry for a manifest. A damaged earlier copy is replaced.

        Raises:
            RegistryUnavailableError: the directory cannot be written.
        """
        file = ArtifactFile(name, hashlib.sha256(content).hexdigest(), len(content))
        try:
            self._put(file, content)
        except OSError as error:
            raise RegistryUnavailableError(f"Expected to write artifacts to {self._directory}: {error}") from error
        return file

    def load(self, file: ArtifactFile, owner: str) -> bytes:
        """The bytes of `file`, hashed after they were read: what is checked is what is returned.

        Args:
            file: from a manifest.
            owner: the version it belongs to, for messages.

        Raises:
            ArtifactCorruptError: missing, of another size, not a regular file, or other bytes.
        """
        path = self._path(file.sha256)
        where = f"Artifact '{file.name}' of {owner} ({path})"
        remedy = "Restore the file from a backup, or register the same bytes again"
        try:
            with _open_regular(path) as descriptor:
                size = os.fstat(descriptor).st_size
                if size != file.size:  # before reading: a foreign file may be of any size
                    raise ArtifactCorruptError(f"{where}: expected {file.size} bytes, got {size}. {remedy}")
                content = _read_all(descriptor, size)
        except OSError as error:
            raise ArtifactCorruptError(
                f"{where}: expected a readable file of {file.size} bytes, got: {error.strerror}. {remedy}"
            ) from error
        got = hashlib.sha256(content).hexdigest()
        if got != file.sha256:
            raise ArtifactCorruptError(f"{where}: expected sha256 {file.sha256}, got {got}. {remedy}")
        return content

    def remove_leftovers(self) -> None:
        """Delete unfinished files of processes that died long ago."""
        with contextlib.suppress(OSError):
            for path in (self._directory / _INCOMING).iterdir():
                with contextlib.suppress(OSError):
                    if time.time() - path.stat().st_mtime > _STALE_AFTER_S:
                        path.unlink()

    def _put(self, file: ArtifactFile, content: bytes) -> None:
        target = self._path(file.sha256)
        if self._holds(target, content):
            return
        incoming = self._directory / _INCOMING
        for directory in (self._directory, incoming, target.parent):
            if not directory.is_dir():
                directory.mkdir(parents=True, exist_ok=True)
                _fsync_directory(directory.parent)
        temporary = incoming / f"{os.getpid()}-{secrets.token_hex(8)}"
        try:
            # Readable by the servers, whatever their user; writable by nobody: content-addressed files never change.
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o444)
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _fsync_directory(target.parent)

    def _holds(self, target: Path, content: bytes) -> bool:
        try:
            with _open_regular(target) as descriptor:
                size = os.fstat(descriptor).st_size
                return size == len(content) and _read_all(descriptor, size) == content
        except OSError:
            return False

    def _path(self, sha256: str) -> Path:
        return self._directory / sha256[:2] / sha256


@contextlib.contextmanager
def _open_regular(path: Path) -> Iterator[int]:
    """A descriptor of a regular file; links, pipes and devices under an artifact's name are not ours."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(0, "not a regular file")
        yield descriptor
    finally:
        os.close(descriptor)


def _read_all(descriptor: int, size: int) -> bytes:
    """Up to `size` bytes from the start; fewer if the file shrank meanwhile."""
    parts: list[bytes] = []
    while size > 0:
        part = os.read(descriptor, min(size, 1 << 24))
        if not part:
            break
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _fsync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
