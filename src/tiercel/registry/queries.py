"""The questions the registry asks its tables; each works inside a transaction that the caller opened."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import Connection, func, select

from tiercel.errors import AliasNotFoundError, LedgerCorruptError, ModelNotFoundError, VersionNotFoundError
from tiercel.registry.facts import VersionFacts, facts_from_json
from tiercel.registry.ledger import LedgerHead
from tiercel.registry.names import CHAMPION, LATEST, PREVIOUS, Selector
from tiercel.registry.records import ArtifactFile, ModelVersion, RegisteredModel
from tiercel.registry.tables import AliasRow, HeadRow, ModelRow, TagRow, VersionRow

if TYPE_CHECKING:
    from collections.abc import Mapping


def model_exists(connection: Connection, name: str) -> bool:
    """Whether a model of this name is registered."""
    return connection.execute(select(ModelRow.name).where(ModelRow.name == name)).first() is not None


def require_model(connection: Connection, name: str) -> None:
    """Raise ModelNotFoundError unless a model of this name is registered."""
    if not model_exists(connection, name):
        raise ModelNotFoundError(f"Expected a registered model, got '{name}'. `tiercel models` lists what there is")


def latest_number(connection: Connection, name: str) -> int | None:
    """The highest version, None if there is none."""
    return connection.execute(select(func.max(VersionRow.number)).where(VersionRow.model == name)).scalar()


def resolve(connection: Connection, name: str, selector: Selector) -> int:
    """The number of the version that a parsed selector picks.

    Raises:
        ModelNotFoundError, VersionNotFoundError, AliasNotFoundError
    """
    if isinstance(selector, int):
        found: int | None = connection.execute(
            select(VersionRow.number).where(VersionRow.model == name, VersionRow.number == selector)
        ).scalar_one_or_none()
    elif selector == LATEST:
        found = latest_number(connection, name)
    else:
        found = connection.execute(
            select(AliasRow.number).where(AliasRow.model == name, AliasRow.alias == (selector or CHAMPION))
        ).scalar_one_or_none()
    if found is not None:
        return found
    require_model(connection, name)
    latest = latest_number(connection, name)
    if isinstance(selector, int):
        raise VersionNotFoundError(f"Expected a version of '{name}' from 1 to {latest}, got {selector}")
    existing = ", ".join(read_aliases(connection, name)) or "none"
    if selector in (None, CHAMPION):
        raise AliasNotFoundError(
            f"'{name}' has no champion, and no other version was asked for. Promote one with "
            f"`tiercel promote {name} {latest}`, or name a version ('{name}:{latest}'). Aliases it has: {existing}"
        )
    if selector == PREVIOUS:
        raise AliasNotFoundError(
            f"'{name}' has no previous champion to go back to: its champion was never replaced. "
            f"Aliases it has: {existing}"
        )
    raise AliasNotFoundError(f"Expected an alias of '{name}', got '{selector}'. Aliases it has: {existing}")


def read_head(connection: Connection) -> LedgerHead:
    """The last event's number and hash."""
    row = connection.execute(select(HeadRow.seq, HeadRow.hash).where(HeadRow.id == 1)).one_or_none()
    if row is None:
        raise LedgerCorruptError("Expected one row in ledger_head, found none")
    return LedgerHead(row.seq, row.hash)


def read_models(connection: Connection) -> tuple[RegisteredModel, ...]:
    """All models by name."""
    aliases: dict[str, dict[str, int]] = {}
    for model, alias, number in connection.execute(select(AliasRow.model, AliasRow.alias, AliasRow.number)):
        aliases.setdefault(model, {})[alias] = number
    rows = connection.execute(
        select(ModelRow.name, ModelRow.created_us, func.count(VersionRow.number).label("n_versions"))
        .join(VersionRow, VersionRow.model == ModelRow.name, isouter=True)
        .group_by(ModelRow.name, ModelRow.created_us)
    )
    models = [
        RegisteredModel(row.name, row.created_us, row.n_versions, dict(sorted(aliases.get(row.name, {}).items())))
        for row in rows
    ]
    # Sorted here: databases disagree about the order of '-', '_' and digits.
    return tuple(sorted(models, key=lambda model: model.name))


def read_aliases(connection: Connection, name: str) -> dict[str, int]:
    """Version by alias of one model, sorted."""
    rows = connection.execute(select(AliasRow.alias, AliasRow.number).where(AliasRow.model == name))
    return dict(sorted((row.alias, row.number) for row in rows))


def read_version(connection: Connection, name: str, number: int, *, reused: bool = False) -> ModelVersion:
    """One version, which must exist."""
    return read_versions(connection, name, number, reused=reused)[0]


def read_versions(
    connection: Connection, name: str, number: int | None = None, *, reused: bool = False
) -> tuple[ModelVersion, ...]:
    """All versions of a model, or one, in three queries however many there are."""
    aliases: dict[int, list[str]] = {}
    for alias, target in read_aliases(connection, name).items():
        aliases.setdefault(target, []).append(alias)
    tag_conditions, conditions = [TagRow.model == name], [VersionRow.model == name]
    if number is not None:
        tag_conditions.append(TagRow.number == number)
        conditions.append(VersionRow.number == number)
    tags: dict[int, dict[str, str]] = {}
    for tagged, key, value in connection.execute(
        select(TagRow.number, TagRow.key, TagRow.value).where(*tag_conditions)
    ):
        tags.setdefault(tagged, {})[key] = value
    query = (
        select(
            VersionRow.number, VersionRow.created_us, VersionRow.manifest, VersionRow.manifest_digest, VersionRow.facts
        )
        .where(*conditions)
        .order_by(VersionRow.number)
    )
    return tuple(
        ModelVersion(
            name=name,
            version=row.number,
            files=_files_from_json(name, row.number, row.manifest),
            manifest_digest=row.manifest_digest,
            facts=_facts_from_json(name, row.number, row.facts, dict(sorted(tags.get(row.number, {}).items()))),
            created_us=row.created_us,
            aliases=tuple(aliases.get(row.number, ())),
            reused=reused,
        )
        for row in connection.execute(query)
    )


def _files_from_json(name: str, number: int, text: str) -> tuple[ArtifactFile, ...]:
    try:
        return tuple(ArtifactFile(**entry) for entry in json.loads(text))
    except (ValueError, TypeError) as error:
        raise LedgerCorruptError(f"'{name}' version {number}: its manifest is unreadable: {error}") from error


def _facts_from_json(name: str, number: int, text: str, tags: Mapping[str, str]) -> VersionFacts:
    try:
        return facts_from_json(cast("dict[str, Any]", json.loads(text)), tags)
    except (ValueError, TypeError, KeyError) as error:
        raise LedgerCorruptError(f"'{name}' version {number}: its facts are unreadable: {error!r}") from error
