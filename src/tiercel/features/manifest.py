"""MANIFEST: the tiny file that says which sealed base of a service is current.

It is only ever replaced by rename, so a reader sees the old one or the new one. It carries the full schema, the digests
of the files it names, and the descriptions of the bases kept for rollback. A checksum over its own content tells a
damaged MANIFEST from a valid one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tiercel.errors import BaseCorruptError, NotMaterializedError, StoreError
from tiercel.types import ServiceSchema

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FORMAT = 1
MANIFEST_NAME = "MANIFEST"
LOCK_NAME = ".lock"
#: Older bases kept on disk, to roll back to and for replays, where nobody says otherwise; [state] keep_bases.
N_KEPT = 2

_BASE_NAME = re.compile(r"base-(\d{6,12})\.(?:mdb|categories\.json)")
_LOCK_POLL_S = 0.02


@dataclass(frozen=True)
class Manifest:
    """One published base. Digests are sha256 hex; times int64 microseconds since the epoch."""

    schema: ServiceSchema
    sequence: int  # number in the file names
    last_sequence: int  # highest number ever published here; a rollback does not lower it
    size_bytes: int
    page_bytes: int
    sha256: str  # of the whole base file
    group_rows: tuple[int, ...]
    content_digest: str  # of keys and rows in key order, whatever the page layout
    categories_sha256: str
    catalog: str
    as_of_us: int
    published_us: int
    previous: tuple[Manifest, ...] = ()  # kept for rollback, newest first; their own `previous` is empty

    @property
    def service(self) -> str:
        """Name of the feature service."""
        return self.schema.name

    @property
    def fingerprint(self) -> str:
        """The service schema's fingerprint."""
        return self.schema.fingerprint

    @property
    def n_rows(self) -> int:
        """Rows of all groups."""
        return sum(self.group_rows)

    @property
    def base_name(self) -> str:
        """File name of the base."""
        return base_name(self.sequence)

    @property
    def categories_name(self) -> str:
        """File name of the string dictionaries."""
        return categories_name(self.sequence)

    @property
    def file_names(self) -> frozenset[str]:
        """Every file this manifest needs, those kept for rollback included."""
        kept = (self, *self.previous)
        return frozenset(name for one in kept for name in (one.base_name, one.categories_name))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, without the checksum; `from_json` restores an equal manifest."""
        return {
            "format": FORMAT,
            "service": self.service,
            "fingerprint": self.fingerprint,
            "base": self.base_name,
            "categories": self.categories_name,
            "sequence": self.sequence,
            "last_sequence": self.last_sequence,
            "size_bytes": self.size_bytes,
            "page_bytes": self.page_bytes,
            "sha256": self.sha256,
            "n_rows": self.n_rows,
            "group_rows": list(self.group_rows),
            "content_digest": self.content_digest,
            "categories_sha256": self.categories_sha256,
            "catalog": self.catalog,
            "as_of_us": self.as_of_us,
            "published_us": self.published_us,
            "schema": self.schema.to_json(),
            "previous": [one.to_json() for one in self.previous],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Manifest:
        """Inverse of `to_json`.

        Raises:
            KeyError, TypeError, ValueError: the data was not written by `to_json`.
        """
        if data["format"] != FORMAT:
            raise ValueError(f"expected format {FORMAT}, got {data['format']!r}; upgrade tiercel or materialize again")
        manifest = cls(
            schema=ServiceSchema.from_json(data["schema"]),
            sequence=int(data["sequence"]),
            last_sequence=int(data["last_sequence"]),
            size_bytes=int(data["size_bytes"]),
            page_bytes=int(data["page_bytes"]),
            sha256=str(data["sha256"]),
            group_rows=tuple(int(n) for n in data["group_rows"]),
            content_digest=str(data["content_digest"]),
            categories_sha256=str(data["categories_sha256"]),
            catalog=str(data["catalog"]),
            as_of_us=int(data["as_of_us"]),
            published_us=int(data["published_us"]),
            previous=tuple(cls.from_json(one) for one in data["previous"]),
        )
        # The names are derived from the number, so no path is ever taken from the file.
        if data["base"] != manifest.base_name or data["fingerprint"] != manifest.fingerprint:
            raise ValueError("its base name or fingerprint does not follow from its content")
        if len(manifest.group_rows) != len(manifest.schema.groups):
            raise ValueError(f"{len(manifest.group_rows)} row counts for {len(manifest.schema.groups)} groups")
        return manifest


def base_name(sequence: int) -> str:
    """File name of base number `sequence`."""
    return f"base-{sequence:06d}.mdb"


def categories_name(sequence: int) -> str:
    """File name of the dictionaries of base number `sequence`."""
    return f"base-{sequence:06d}.categories.json"


def sequences_on_disk(directory: Path) -> list[int]:
    """Numbers of the bases in `directory`, published or not, also of those of which one file of two is left; ascending."""
    return sorted({int(match[1]) for path in directory.iterdir() if (match := _BASE_NAME.fullmatch(path.name))})


def read_manifest(directory: Path) -> Manifest:
    """The current manifest of the service directory `directory`.

    Raises:
        NotMaterializedError: nothing was published there.
        BaseCorruptError: the file is not a manifest, or was altered.
    """
    path = directory / MANIFEST_NAME
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise NotMaterializedError(
            f"Expected a published base of service '{directory.name}' in {directory}, got none. Run: tiercel materialize"
        ) from None
    try:
        data = json.loads(content)
        checksum = data.pop("checksum")
        if checksum != _checksum(data):
            raise ValueError("its checksum does not match its content")  # noqa: TRY301 - one message for all ways to be wrong
        return Manifest.from_json(data)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise BaseCorruptError(f"{path} is not a valid manifest: {error!r}. Materialize the service again") from error


def publish_manifest(directory: Path, manifest: Manifest) -> None:
    """Make `manifest` current, durably and atomically. The files it names must be in place and synced already."""
    data = manifest.to_json()
    content = json.dumps({**data, "checksum": _checksum(data)}, indent=1).encode()
    write_durably(directory / MANIFEST_NAME, content)


def write_durably(path: Path, content: bytes) -> None:
    """Write `content` beside `path`, sync it, and rename it into place; afterwards the name is durable too."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make renames in `directory` durable."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def writer_lock(directory: Path, *, timeout_s: float) -> Iterator[None]:
    """Hold the service's writer lock. The operating system drops it when the process dies.

    Raises:
        NotMaterializedError: the directory does not exist.
        StoreError: another process holds it for longer than `timeout_s`.
    """
    path = directory / LOCK_NAME
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except FileNotFoundError:
        raise NotMaterializedError(
            f"Expected a service directory at {directory}, got none. Run: tiercel materialize"
        ) from None
    except OSError as error:
        raise StoreError(f"{path} cannot be made: {error.strerror or error}") from error
    try:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
                    raise StoreError(
                        f"Expected to be the only writer of {directory}, but process {holder} has held {path} "
                        f"for {timeout_s:g} s. Wait for it, or stop it"
                    ) from None
                time.sleep(_LOCK_POLL_S)
        with contextlib.suppress(OSError):  # a full disk: the lock is held all the same, by who knows whom
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


def _checksum(data: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
