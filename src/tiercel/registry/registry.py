"""The model registry: versions with their facts and files, and the aliases that say which of them serves."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self, TypeAlias

from sqlalchemy import URL, Connection, delete, func, insert, select, update

from tiercel.errors import (
    ArtifactCorruptError,
    InvalidFactsError,
    RegistryConflictError,
    VersionNotFoundError,
)
from tiercel.registry.artifacts import ArtifactStore
from tiercel.registry.audit import check_against_tables
from tiercel.registry.database import Database
from tiercel.registry.facts import VersionFacts, canonical_json, check_tags, check_text, digest_of
from tiercel.registry.ledger import LedgerHead, LedgerWriter, check_chain, read_events, replay_aliases
from tiercel.registry.names import (
    CHAMPION,
    PREVIOUS,
    check_alias,
    check_artifact_name,
    check_model_name,
    check_tag_key,
    check_version_number,
    parse_selector,
)
from tiercel.registry.queries import (
    latest_number,
    model_exists,
    read_aliases,
    read_head,
    read_models,
    read_version,
    read_versions,
    require_model,
    resolve,
)
from tiercel.registry.records import (
    Event,
    ModelVersion,
    RegisteredModel,
    manifest_digest,
    manifest_json,
)
from tiercel.registry.tables import AliasRow, ModelRow, TagRow, VersionRow

if TYPE_CHECKING:
    from types import TracebackType


class Unset(enum.Enum):
    """Tells "do not compare" from `None`, which means "the alias must not exist yet"."""

    UNSET = "unset"


UNSET: Final = Unset.UNSET
Expected: TypeAlias = int | Unset | None


class Registry:
    """Registered models, their versions and aliases, in one database and one directory of artifacts.

    Every change and its ledger event are one transaction: both happened or neither did. Artifacts are durable before
    the transaction that names them begins, so no version is ever without its files.

    Args:
        url: any SQLAlchemy URL. SQLite needs a file.
        artifacts: directory of the files, made when first needed.
        clock_us: microseconds since the epoch; stamps versions and events.

    Raises:
        RegistrySchemaError: the database was made by a newer tiercel, or is something else.
        RegistryUnavailableError: it cannot be opened. Every method may raise this.

    Threads: safe. Processes: any number may use one SQLite file of a local disk, or one database server.
    """

    def __init__(self, url: str | URL, artifacts: Path, *, clock_us: Callable[[], int] | None = None) -> None:
        self._artifacts = ArtifactStore(Path(artifacts))
        self._database = Database(url)
        self._clock_us = clock_us or _wall_clock_us
        self._generation_at: tuple[tuple[tuple[int, int, int], ...], int] | None = None

    @classmethod
    def for_state(cls, state_dir: Path, *, url: str | None = None) -> Registry:
        """The registry of a project's state directory: `registry.db` (or the database at `url`) and `artifacts/`."""
        state_dir = Path(state_dir)
        state_dir.mkdir(parents=True, exist_ok=True)
        database = URL.create("sqlite", database=str(state_dir / "registry.db")) if url is None else url
        return cls(database, state_dir / "artifacts")

    def close(self) -> None:
        """Close all connections."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # -- Registering ---------------------------------------------------------------------------------------------------

    def register(
        self, name: str, artifacts: Mapping[str, bytes], facts: VersionFacts, *, reason: str = "", reuse: bool = True
    ) -> ModelVersion:
        """Make the next version of a model, and the model if it is new. No alias moves.

        Args:
            name: of the model.
            artifacts: content by file name; at least one.
            facts: see `VersionFacts`.
            reason: for the ledger.
            reuse: return the newest version with the same files and facts, if there is one, with `reused` set.

        Raises:
            InvalidNameError: the model's, a file's or a tag's name.
            InvalidFactsError: a fact, or an artifact that is not bytes.
        """
        check_model_name(name)
        check_text(reason, "reason")
        facts_text = canonical_json(facts.to_json())
        facts_digest = digest_of(facts_text)
        tags = check_tags(facts.tags)
        contents = _check_artifacts(artifacts)
        self._artifacts.remove_leftovers()
        files = tuple(self._artifacts.put(file_name, contents[file_name]) for file_name in sorted(contents))
        digest = manifest_digest(files)
        now_us = self._clock_us()
        with self._database.write() as connection:
            ledger = LedgerWriter(connection, ts_us=now_us, actor=facts.author, reason=reason)
            if reuse:
                number = connection.execute(
                    select(func.max(VersionRow.number)).where(
                        VersionRow.model == name,
                        VersionRow.manifest_digest == digest,
                        VersionRow.facts_digest == facts_digest,
                    )
                ).scalar()
                if number is not None:
                    return read_version(connection, name, number, reused=True)
            if not model_exists(connection, name):
                connection.execute(insert(ModelRow).values(name=name, created_us=now_us))
                ledger.append("model.created", name)
            number = (latest_number(connection, name) or 0) + 1
            connection.execute(
                insert(VersionRow).values(
                    model=name,
                    number=number,
                    created_us=now_us,
                    manifest=manifest_json(files),
                    manifest_digest=digest,
                    facts=facts_text,
                    facts_digest=facts_digest,
                )
            )
            for key, value in tags.items():
                connection.execute(insert(TagRow).values(model=name, number=number, key=key, value=value))
            ledger.append(
                "version.created",
                name,
                version=number,
                detail={"manifest_digest": digest, "facts_digest": facts_digest, "tags": tags},
            )
            return read_version(connection, name, number)

    # -- Reading -------------------------------------------------------------------------------------------------------

    def get(self, name: str, version: int | str | None = None) -> ModelVersion:
        """One version of a model.

        Args:
            name: of the model.
            version: a number (3, "3", "v3"), an alias ("champion", "@champion"), "latest", or None for the champion.

        Raises:
            InvalidNameError, ModelNotFoundError, VersionNotFoundError, AliasNotFoundError
        """
        check_model_name(name)
        selector = parse_selector(version)
        with self._database.read() as connection:
            return read_version(connection, name, resolve(connection, name, selector))

    def list_models(self) -> tuple[RegisteredModel, ...]:
        """All models by name."""
        with self._database.read() as connection:
            return read_models(connection)

    def list_versions(self, name: str) -> tuple[ModelVersion, ...]:
        """All versions of a model, oldest first. Reads no artifact.

        Raises:
            InvalidNameError, ModelNotFoundError
        """
        check_model_name(name)
        with self._database.read() as connection:
            require_model(connection, name)
            return read_versions(connection, name)

    def aliases(self, name: str, *, at_us: int | None = None) -> dict[str, int]:
        """Version by alias, now or at an earlier time (read from the ledger: "who was champion then?").

        Raises:
            InvalidNameError, ModelNotFoundError
        """
        check_model_name(name)
        with self._database.read() as connection:
            require_model(connection, name)
            if at_us is None:
                return read_aliases(connection, name)
            pointed = replay_aliases(read_events(connection, name), at_us)
        return {alias: number for (_, alias), number in sorted(pointed.items())}

    def history(self, name: str | None = None) -> tuple[Event, ...]:
        """The ledger's events, oldest first, of one model or of all.

        Raises:
            InvalidNameError, ModelNotFoundError
        """
        with self._database.read() as connection:
            if name is not None:
                require_model(connection, check_model_name(name))
            return tuple(read_events(connection, name))

    def generation(self) -> int:
        """A number that grows with every change: the last event's. Servers poll it; it reads some rows at most.

        Raises:
            RegistryUnavailableError: as every method; also when the file of a SQLite registry was changed and is damaged
                now, whatever open connections remember of it.
        """
        stamp = self._database.stamp()
        if stamp is None:
            return self.head().seq
        if self._generation_at is None or self._generation_at[0] != stamp:
            self._database.check_file()
            # The stamp is older than the row: what is committed in between makes another stamp.
            self._generation_at = (stamp, self.head().seq)
        return self._generation_at[1]

    def head(self) -> LedgerHead:
        """The last event's number and hash. Keep it elsewhere to make `verify_ledger` notice a rewritten ledger."""
        with self._database.read() as connection:
            return read_head(connection)

    def load_artifacts(self, version: ModelVersion) -> dict[str, bytes]:
        """All files of a version, by name. The digest is checked over the very bytes that are returned.

        Raises:
            ArtifactCorruptError: a file is missing, truncated, altered or foreign, or the manifest is.
        """
        owner = f"'{version.name}' version {version.version}"
        got = manifest_digest(version.files)
        if got != version.manifest_digest:
            raise ArtifactCorruptError(
                f"Manifest of {owner}: expected digest {version.manifest_digest}, got {got}. Restore the registry"
            )
        return {file.name: self._artifacts.load(file, owner) for file in version.files}

    # -- Changing ------------------------------------------------------------------------------------------------------

    def promote(
        self,
        name: str,
        version: int | str,
        *,
        alias: str = CHAMPION,
        expected: Expected = UNSET,
        actor: str,
        reason: str = "",
    ) -> ModelVersion:
        """Point an alias at a version. Promoting to champion also points `previous` at the champion so far.

        Promoting what the alias already points at changes nothing. The `challenger` alias stays where it is when its
        version becomes champion.

        Args:
            name: of the model.
            version: as for `get`, but not None.
            alias: made if new.
            expected: the version the alias must point at now; None: it must not exist; UNSET: whatever.
            actor: who does this.
            reason: why; for the ledger.

        Returns:
            The version, with its aliases after the change.

        Raises:
            InvalidNameError, ModelNotFoundError, VersionNotFoundError, AliasNotFoundError, InvalidFactsError
            RegistryConflictError: the alias is not where `expected` says; nothing changed.
        """
        check_model_name(name)
        alias = check_alias(alias)
        if version is None:
            raise VersionNotFoundError(f"Expected the version of '{name}' to promote, got None")
        selector = parse_selector(version)
        _check_expected(expected)
        with self._database.write() as connection:
            ledger = self._writer(connection, actor, reason)
            number = resolve(connection, name, selector)
            _move(connection, ledger, name, alias, number, expected)
            return read_version(connection, name, number)

    def rollback(self, name: str, *, expected: Expected = UNSET, actor: str, reason: str = "") -> ModelVersion:
        """Make `previous` the champion again; the champion so far becomes `previous`. Twice restores the start.

        `expected` is the version that must be champion now; all arguments are as for `promote`.

        Raises:
            InvalidNameError, ModelNotFoundError, RegistryConflictError, InvalidFactsError
            AliasNotFoundError: there is no `previous`: the champion was never replaced.
        """
        check_model_name(name)
        _check_expected(expected)
        with self._database.write() as connection:
            ledger = self._writer(connection, actor, reason)
            number = resolve(connection, name, PREVIOUS)
            _move(connection, ledger, name, CHAMPION, number, expected)
            return read_version(connection, name, number)

    def remove_alias(self, name: str, alias: str, *, expected: Expected = UNSET, actor: str, reason: str = "") -> int:
        """Remove an alias. Without a champion, the model answers only to explicit versions and other aliases.

        Returns:
            The version it pointed at.

        Raises:
            InvalidNameError, ModelNotFoundError, AliasNotFoundError, RegistryConflictError, InvalidFactsError
        """
        check_model_name(name)
        alias = check_alias(alias)
        _check_expected(expected)
        with self._database.write() as connection:
            ledger = self._writer(connection, actor, reason)
            number = resolve(connection, name, alias)
            _check_current(name, alias, number, expected)
            connection.execute(delete(AliasRow).where(AliasRow.model == name, AliasRow.alias == alias))
            ledger.append("alias.removed", name, version=number, alias=alias, from_version=number)
        return number

    def set_tag(self, name: str, version: int | str, key: str, value: str, *, actor: str, reason: str = "") -> None:
        """Give a version a tag, or a tag another value.

        Raises:
            InvalidNameError, ModelNotFoundError, VersionNotFoundError, AliasNotFoundError, InvalidFactsError
        """
        check_model_name(name)
        selector = parse_selector(version)
        check_tag_key(key)
        check_text(value, f"tags[{key!r}]")
        with self._database.write() as connection:
            ledger = self._writer(connection, actor, reason)
            number = resolve(connection, name, selector)
            where = (TagRow.model == name, TagRow.number == number, TagRow.key == key)
            before = connection.execute(select(TagRow.value).where(*where)).scalar_one_or_none()
            if before == value:
                return
            if before is None:
                connection.execute(insert(TagRow).values(model=name, number=number, key=key, value=value))
            else:
                connection.execute(update(TagRow).where(*where).values(value=value))
            ledger.append("tag.set", name, version=number, detail={"key": key, "value": value})

    def remove_tag(self, name: str, version: int | str, key: str, *, actor: str, reason: str = "") -> None:
        """Remove a tag from a version; nothing happens if it has none of that name.

        Raises:
            InvalidNameError, ModelNotFoundError, VersionNotFoundError, AliasNotFoundError, InvalidFactsError
        """
        check_model_name(name)
        selector = parse_selector(version)
        check_tag_key(key)
        with self._database.write() as connection:
            ledger = self._writer(connection, actor, reason)
            number = resolve(connection, name, selector)
            removed = connection.execute(
                delete(TagRow).where(TagRow.model == name, TagRow.number == number, TagRow.key == key)
            ).rowcount
            if removed:
                ledger.append("tag.removed", name, version=number, detail={"key": key})

    def verify_ledger(self, anchor: LedgerHead | None = None) -> LedgerHead:
        """Walk the whole ledger and compare aliases, tags and versions with what follows from it.

        Args:
            anchor: a `head()` noted earlier elsewhere. Without it, a ledger whose end was cut off together with its
                head, or that was rewritten from some event on with all that follows, cannot be told from a true one.

        Returns:
            The head that was verified; a later `anchor`.

        Raises:
            LedgerCorruptError: the first difference.
        """
        with self._database.read() as connection:
            head = read_head(connection)
            # The head was read first: outside SQLite, later events may already be visible.
            events = [event for event in read_events(connection) if event.seq <= head.seq]
            checked = list(check_chain(events, head, anchor))
            check_against_tables(connection, checked)
        return head

    def _writer(self, connection: Connection, actor: str, reason: str) -> LedgerWriter:
        check_text(actor, "actor", required=True)
        check_text(reason, "reason")
        return LedgerWriter(connection, ts_us=self._clock_us(), actor=actor, reason=reason)


def _wall_clock_us() -> int:
    return time.time_ns() // 1000


def _check_artifacts(artifacts: object) -> dict[str, bytes]:
    if not isinstance(artifacts, Mapping) or not artifacts:
        raise InvalidFactsError(f"artifacts: expected file contents by name, at least one, got {artifacts!r:.80}")
    contents: dict[str, bytes] = {}
    for name, content in artifacts.items():
        check_artifact_name(name)
        if not isinstance(content, (bytes, bytearray, memoryview)):
            raise InvalidFactsError(f"artifacts[{name!r}]: expected bytes, got {type(content).__name__}")
        contents[name] = bytes(content)
    return contents


def _check_expected(expected: object) -> None:
    if expected is not None and expected is not UNSET:
        check_version_number(expected)


def _check_current(name: str, alias: str, current: int | None, expected: Expected) -> None:
    if expected is UNSET or expected == current:
        return
    wanted = "not to exist" if expected is None else f"at version {expected}"
    found = "it does not exist" if current is None else f"it is at version {current}"
    raise RegistryConflictError(
        f"Expected alias '{alias}' of '{name}' {wanted}, but {found}: somebody changed it first. "
        "Look at the history and decide again"
    )


def _move(
    connection: Connection, ledger: LedgerWriter, name: str, alias: str, number: int, expected: Expected = UNSET
) -> None:
    where = (AliasRow.model == name, AliasRow.alias == alias)
    current = connection.execute(select(AliasRow.number).where(*where)).scalar_one_or_none()
    _check_current(name, alias, current, expected)
    if current == number:
        return
    if current is None:
        connection.execute(insert(AliasRow).values(model=name, alias=alias, number=number))
    else:
        connection.execute(update(AliasRow).where(*where).values(number=number))
    ledger.append("alias.set", name, version=number, alias=alias, from_version=current, to_version=number)
    if alias == CHAMPION and current is not None:
        _move(connection, ledger, name, PREVIOUS, current)
