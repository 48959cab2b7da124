"""Compares the registry's tables with what its ledger says they must hold."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, select

from tiercel.errors import LedgerCorruptError
from tiercel.registry.facts import digest_of
from tiercel.registry.ledger import replay_aliases
from tiercel.registry.tables import AliasRow, ModelRow, TagRow, VersionRow

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tiercel.registry.records import Event


def check_against_tables(connection: Connection, events: Sequence[Event]) -> None:
    """Check models, versions, aliases and tags; `events` are the whole ledger, its chain already verified.

    Raises:
        LedgerCorruptError: the first difference.
    """
    models = {event.model: event for event in events if event.action == "model.created"}
    found_models = set(connection.execute(select(ModelRow.name)).scalars())
    _compare("registered model", dict.fromkeys(models, True), dict.fromkeys(found_models, True))
    _check_versions(connection, events)
    found_aliases = {
        (model, alias): number
        for model, alias, number in connection.execute(select(AliasRow.model, AliasRow.alias, AliasRow.number))
    }
    _compare("alias", replay_aliases(events), found_aliases)
    found_tags = {
        (model, number, key): value
        for model, number, key, value in connection.execute(
            select(TagRow.model, TagRow.number, TagRow.key, TagRow.value)
        )
    }
    _compare("tag", _replay_tags(events), found_tags)


def _check_versions(connection: Connection, events: Sequence[Event]) -> None:
    expected = {
        (event.model, event.version): (
            event.ts_us,
            _detail(event).get("manifest_digest"),
            _detail(event).get("facts_digest"),
        )
        for event in events
        if event.action == "version.created"
    }
    # Digests are taken from the stored texts, not from the columns beside them, which prove nothing.
    found: dict[tuple[str, int | None], tuple[int, str, str]] = {}
    for model, number, created_us, manifest, manifest_digest, facts, facts_digest in connection.execute(
        select(
            VersionRow.model,
            VersionRow.number,
            VersionRow.created_us,
            VersionRow.manifest,
            VersionRow.manifest_digest,
            VersionRow.facts,
            VersionRow.facts_digest,
        )
    ):
        actual = (_digest(manifest), _digest(facts))
        if actual != (manifest_digest, facts_digest):
            raise LedgerCorruptError(f"'{model}' version {number}: its manifest or facts were altered")
        found[model, number] = (created_us, *actual)
    _compare("version", expected, found)


def _replay_tags(events: Sequence[Event]) -> dict[tuple[str, int, str], str]:
    tags: dict[tuple[str, int, str], str] = {}
    for event in events:
        if event.version is None:
            continue
        detail = _detail(event)
        if event.action == "version.created":
            tags |= {(event.model, event.version, key): value for key, value in detail.get("tags", {}).items()}
        elif event.action == "tag.set":
            tags[event.model, event.version, detail["key"]] = detail["value"]
        elif event.action == "tag.removed":
            tags.pop((event.model, event.version, detail["key"]), None)
    return tags


def _detail(event: Event) -> dict[str, Any]:
    try:
        detail = json.loads(event.detail) if event.detail else {}
    except ValueError as error:
        raise LedgerCorruptError(f"Event {event.seq}: its detail is not JSON", seq=event.seq) from error
    if not isinstance(detail, dict):
        raise LedgerCorruptError(f"Event {event.seq}: expected a mapping as its detail", seq=event.seq)
    return detail


def _digest(text: str) -> str:
    """As `digest_of`; an altered text need not be ASCII."""
    return digest_of(text) if text.isascii() else "not ascii"


def _compare(kind: str, expected: dict[Any, Any], found: dict[Any, Any]) -> None:
    for key in sorted(expected.keys() | found.keys(), key=repr):
        if expected.get(key) != found.get(key):
            raise LedgerCorruptError(
                f"Expected {kind} {key!r} to be {expected.get(key)!r}, as the ledger says; found {found.get(key)!r}"
            )
