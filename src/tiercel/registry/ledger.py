"""The append-only, hash-chained ledger of everything that happened to the registry.

Every event's hash covers the event and the hash before it. That shows any edit, deletion, insertion or reordering to
whoever holds a later hash. A chain alone cannot show that its end was cut off together with `ledger_head`, or that all
of it was rewritten: keep a `LedgerHead` somewhere else and give it to `Registry.verify_ledger` for that.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Connection, insert, select, update

from tiercel.errors import LedgerCorruptError
from tiercel.registry.facts import canonical_json
from tiercel.registry.records import Event
from tiercel.registry.tables import EventRow, HeadRow

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

GENESIS: Final = "0" * 64

_DOMAIN: Final = b"tiercel-registry-event-1\n"  # this hash means nothing anywhere else
_COLUMNS: Final = tuple(getattr(EventRow, column.name) for column in fields(Event))


@dataclass(frozen=True)
class LedgerHead:
    """The last event's number and hash: kept elsewhere, it pins everything before it."""

    seq: int
    hash: str


def event_hash(event: dict[str, Any]) -> str:
    """sha256 hex over every field of an event but `hash` itself."""
    body = canonical_json({name: value for name, value in event.items() if name != "hash"})
    return hashlib.sha256(_DOMAIN + body.encode("ascii")).hexdigest()


def lock_head(connection: Connection) -> LedgerHead:
    """Wait until no other writer is active, then return the last event. Held until the transaction ends."""
    row = connection.execute(select(HeadRow.seq, HeadRow.hash).where(HeadRow.id == 1).with_for_update()).one_or_none()
    if row is None:
        raise LedgerCorruptError("Expected one row in ledger_head, found none")
    return LedgerHead(row.seq, row.hash)


class LedgerWriter:
    """Appends events within one transaction that holds the head's lock.

    Args:
        connection: of that transaction.
        ts_us, actor, reason: shared by all events of the transaction.
    """

    def __init__(self, connection: Connection, *, ts_us: int, actor: str, reason: str) -> None:
        self._connection = connection
        self._head = lock_head(connection)
        self._ts_us, self._actor, self._reason = ts_us, actor, reason

    def append(
        self,
        action: str,
        model: str,
        *,
        version: int | None = None,
        alias: str | None = None,
        from_version: int | None = None,
        to_version: int | None = None,
        detail: Any = None,
    ) -> None:
        """Add one event and move the head."""
        event: dict[str, Any] = {
            "seq": self._head.seq + 1,
            "prev_hash": self._head.hash,
            "ts_us": self._ts_us,
            "actor": self._actor,
            "action": action,
            "model": model,
            "version": version,
            "alias": alias,
            "from_version": from_version,
            "to_version": to_version,
            "reason": self._reason,
            "detail": "" if detail is None else canonical_json(detail),
        }
        event["hash"] = event_hash(event)
        self._connection.execute(insert(EventRow).values(**event))
        self._head = LedgerHead(event["seq"], event["hash"])
        self._connection.execute(
            update(HeadRow).where(HeadRow.id == 1).values(seq=self._head.seq, hash=self._head.hash)
        )


def read_events(connection: Connection, model: str | None = None) -> Iterator[Event]:
    """Events in order, of one model or of all."""
    query = select(*_COLUMNS).order_by(EventRow.seq)
    if model is not None:
        query = query.where(EventRow.model == model)
    for row in connection.execute(query):
        yield Event(*row)


def check_chain(events: Iterable[Event], head: LedgerHead, anchor: LedgerHead | None = None) -> Iterator[Event]:
    """Pass events through, checking each link on the way, and the end at the end.

    Args:
        events: in order.
        head: what `ledger_head` says.
        anchor: a head noted earlier in another place; the chain must contain it.

    Raises:
        LedgerCorruptError: the first thing that does not fit.
    """
    last = LedgerHead(0, GENESIS)
    for event in events:
        if event.seq != last.seq + 1:
            raise LedgerCorruptError(f"Expected event {last.seq + 1} next, found {event.seq}", seq=last.seq + 1)
        if event.prev_hash != last.hash:
            raise LedgerCorruptError(
                f"Event {event.seq}: expected the hash {last.hash[:12]} of event {last.seq} as its predecessor, "
                f"found {event.prev_hash[:12]}",
                seq=event.seq,
            )
        if event.hash != event_hash(event.to_json()):
            raise LedgerCorruptError(
                f"Event {event.seq} was altered: its content does not have its hash", seq=event.seq
            )
        if anchor is not None and event.seq == anchor.seq and event.hash != anchor.hash:
            raise LedgerCorruptError(
                f"Event {event.seq}: expected the hash {anchor.hash[:12]} noted earlier, found {event.hash[:12]}: "
                "the ledger was rewritten",
                seq=event.seq,
            )
        last = LedgerHead(event.seq, event.hash)
        yield event
    if last != head:
        raise LedgerCorruptError(
            f"Expected the ledger to end with event {head.seq}, hash {head.hash[:12]}, as ledger_head says; "
            f"it ends with event {last.seq}, hash {last.hash[:12]}",
            seq=min(last.seq, head.seq) + 1,
        )
    if anchor is not None and anchor.seq > last.seq:
        raise LedgerCorruptError(
            f"Expected at least the {anchor.seq} events noted earlier, found {last.seq}: the ledger was cut off",
            seq=last.seq + 1,
        )


def replay_aliases(events: Iterable[Event], until_us: int | None = None) -> dict[tuple[str, str], int]:
    """Where every alias points after these events: {(model, alias): version}.

    Args:
        events: in order.
        until_us: stop before the first event later than this.

    Raises:
        LedgerCorruptError: an event does not start from where the alias was.
    """
    aliases: dict[tuple[str, str], int] = {}
    for event in events:
        if until_us is not None and event.ts_us > until_us:
            break
        if event.alias is None:
            continue
        key = (event.model, event.alias)
        if aliases.get(key) != event.from_version:
            raise LedgerCorruptError(
                f"Event {event.seq}: expected '{event.alias}' of '{event.model}' to move from "
                f"{aliases.get(key)}, the event says from {event.from_version}",
                seq=event.seq,
            )
        if event.to_version is None:
            aliases.pop(key, None)
        else:
            aliases[key] = event.to_version
    return aliases
