"""What the registry answers with: immutable records that never touch the database again."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from tiercel.registry.facts import VersionFacts, canonical_json, digest_of
from tiercel.registry.names import CHALLENGER, CHAMPION

Status = Literal["champion", "challenger", "none"]


@dataclass(frozen=True, order=True)
class ArtifactFile:
    """One file of a version. Where its bytes are follows from `sha256`, never from `name`."""

    name: str
    sha256: str
    size: int  # bytes


@dataclass(frozen=True)
class ModelVersion:
    """One registered version, as it was when it was read. Aliases and tags may have moved since.

    Args:
        name: of the model.
        version: 1, 2, ... per model.
        files: sorted by name; the manifest.
        manifest_digest: sha256 hex of the manifest: the identity of what is served.
        created_us: when it was registered.
        aliases: that point here, sorted.
        reused: `Registry.register` found this version instead of making it.
    """

    name: str
    version: int
    files: tuple[ArtifactFile, ...]
    manifest_digest: str
    facts: VersionFacts
    created_us: int
    aliases: tuple[str, ...] = ()
    reused: bool = field(default=False, compare=False)

    @property
    def status(self) -> Status:
        """Champion, challenger or none, from the aliases and nothing else. A champion is never also a challenger."""
        if CHAMPION in self.aliases:
            return "champion"
        return "challenger" if CHALLENGER in self.aliases else "none"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, flat: name, version, status, aliases, manifest and every fact."""
        return {
            "name": self.name,
            "version": self.version,
            "status": self.status,
            "aliases": list(self.aliases),
            "manifest_digest": self.manifest_digest,
            "files": [asdict(file) for file in self.files],
            "created_us": self.created_us,
            **self.facts.to_json(),
            "tags": dict(self.facts.tags),
        }


@dataclass(frozen=True)
class RegisteredModel:
    """A model and where its aliases point."""

    name: str
    created_us: int
    n_versions: int
    aliases: dict[str, int] = field(hash=False)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Event:
    """One line of the ledger: who did what, when, and why.

    Args:
        seq: 1, 2, ... without gaps over the whole registry.
        prev_hash: `hash` of the event before, 64 zeros for the first.
        action: `model.created`, `version.created`, `alias.set`, `alias.removed`, `tag.set` or `tag.removed`.
        version: the version concerned; None for `model.created`.
        from_version, to_version: where an alias pointed before and points after; None means it did not exist.
        detail: canonical JSON: digests of a new version and its tags; key and value of a tag.
        hash: sha256 hex over everything above.
    """

    seq: int
    prev_hash: str
    ts_us: int
    actor: str
    action: str
    model: str
    version: int | None
    alias: str | None
    from_version: int | None
    to_version: int | None
    reason: str
    detail: str
    hash: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def manifest_json(files: tuple[ArtifactFile, ...]) -> str:
    """The canonical text of a manifest; `files` are sorted by name."""
    return canonical_json([asdict(file) for file in files])


def manifest_digest(files: tuple[ArtifactFile, ...]) -> str:
    """sha256 hex of `manifest_json`."""
    return digest_of(manifest_json(files))
