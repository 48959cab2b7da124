"""The alerts of a project, in one small file that is replaced whole: what was opened, acknowledged or silenced stays so.

    <state>/alerts/alerts.json    .lock

The control process puts in what it finds; people's words come from a command or the admin port. Each change reads, changes
and replaces the file under a lock, so it survives a kill between any two steps and never meets another half way.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from typing import TYPE_CHECKING, Any

from tiercel.errors import AlertFileError, MonitorStorageError
from tiercel.monitor.alert import Alert, AlertClass, AlertEvent, AlertState, Finding, Look, TopFeature
from tiercel.monitor.alert_book import AlertBook
from tiercel.monitor.durable import locked, make_directory, write_file

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator
    from pathlib import Path

__all__ = [
    "ALERTS",
    "Alert",
    "AlertClass",
    "AlertEvent",
    "AlertState",
    "AlertStore",
    "Finding",
    "Look",
    "TopFeature",
]

log = logging.getLogger("tiercel.monitor")

#: Where below the state directory.
ALERTS = "alerts"
_FILE, _LOCK = "alerts.json", ".lock"
_FORMAT = "tiercel-alerts-1"
_MAX_BYTES = 1 << 28
_MAX_TEXT = 500


class AlertStore:
    """The alerts of a state directory.

    Args:
        state_dir: of the project.
        routed: classes that the webhook hears of; none: nothing is kept to be sent.

    Threads and processes: any number may read and change; changes take turns.
    """

    def __init__(self, state_dir: Path, *, routed: Collection[str] = ()) -> None:
        self._directory = state_dir / ALERTS
        self._routed = frozenset(routed)
        self.path = self._directory / _FILE

    # -- reading

    def find_all(self, *, with_resolved: bool = False) -> list[Alert]:
        """Alerts, the newest first; those that last before those that are over.

        Raises:
            AlertFileError: the file is damaged.
            MonitorStorageError: it cannot be read.
        """
        alerts = [each for each in self._read().alerts.values() if with_resolved or not each.is_over]
        return sorted(alerts, key=lambda each: (each.is_over, -each.id))

    def get(self, alert_id: int) -> Alert:
        """One alert. Raises as `find_all`, and AlertNotFoundError."""
        return self._read().find(alert_id)

    # -- what the watch says

    def update(
        self,
        looks: Iterable[Look],
        now_us: int,
        *,
        live: Collection[tuple[str, int]] | None = None,
        silent: Collection[tuple[str, int]] = (),
    ) -> list[Alert]:
        """Take what looks found, end silences, and end alerts of versions that are gone or that nobody asks.

        Args:
            looks: in order.
            now_us: the time.
            live: (model, version) of all that are served; None: not known.
            silent: (model, version) of those that nobody has asked for so long that there is nothing left to judge.

        Returns:
            Alerts that something happened to: an event more than before.

        Raises:
            MonitorStorageError: the disk refuses; nothing was taken.
        """
        with self._changed(mends=True) as book:
            known = {alert.id: alert.history[-1:] for alert in book.alerts.values()}
            book.end_silences(now_us)
            for look in looks:
                book.take(look, now_us)
            if live is not None:
                book.retire(live, now_us)
            book.rest(silent, now_us)
            book.prune()
            return [alert for alert in book.alerts.values() if known.get(alert.id) != alert.history[-1:]]

    def mark_sent(self, alert_id: int, what: str, now_us: int, *, failure: str = "") -> None:
        """The webhook took an event, or was given up on it (`failure` says why). Raises as `update`."""
        with self._changed(mends=True) as book:
            book.mark_sent(alert_id, what, now_us, failure=failure)

    # -- what people say

    def acknowledge(self, alert_id: int, *, by: str, note: str = "", now_us: int) -> Alert:
        """Somebody knows of it: it is not sent again while it lasts.

        Raises:
            AlertNotFoundError, AlertStateError: there is none, or it is over.
            AlertFileError, MonitorStorageError: the file is damaged, or the disk refuses.
        """
        with self._changed() as book:
            return book.acknowledge(alert_id, _text(by), _text(note), now_us)

    def silence(self, alert_id: int, until_us: int, *, by: str, note: str = "", now_us: int) -> Alert:
        """Send nothing about its cause until a time. Raises as `acknowledge`."""
        with self._changed() as book:
            return book.silence(alert_id, until_us, _text(by), _text(note), now_us)

    def resolve(self, alert_id: int, *, by: str, note: str = "", now_us: int) -> Alert:
        """Call it over; it opens again if looks go on finding its cause. Raises as `acknowledge`."""
        with self._changed() as book:
            return book.resolve(alert_id, _text(by), _text(note), now_us)

    # -- the file

    @contextlib.contextmanager
    def _changed(self, *, mends: bool = False) -> Iterator[AlertBook]:
        """The book, under the lock; written at the end of the block if it changed.

        mends: put a damaged file aside and begin anew, so that watching goes on.
        """
        try:
            make_directory(self._directory)
            with locked(self._directory / _LOCK, waits=True):
                try:
                    book = self._read()
                except AlertFileError as error:
                    if not mends:
                        raise
                    log.error("%s. It is put aside as %s.damaged, and alerts begin anew", error, _FILE)  # noqa: TRY400
                    os.replace(self.path, self.path.with_name(f"{_FILE}.damaged"))  # noqa: PTH105
                    book = AlertBook(self._routed)
                before = _packed(book)
                yield book
                after = _packed(book)
                if after != before:
                    write_file(self.path, after)
        except OSError as error:
            raise MonitorStorageError(
                f"{self._directory}: expected room for alerts, got: {error}. What was written before stays"
            ) from error

    def _read(self) -> AlertBook:
        try:
            with self.path.open("rb") as stream:
                data = stream.read(_MAX_BYTES)
        except FileNotFoundError:
            return AlertBook(self._routed)
        except OSError as error:
            raise MonitorStorageError(f"{self.path}: cannot be read: {error.strerror or error}") from error
        return self._parse(data)

    def _parse(self, data: bytes) -> AlertBook:
        head, _, body = data.partition(b"\n")
        try:
            found: dict[str, Any] = json.loads(head)
            if found["format"] != _FORMAT or found["sha256"] != hashlib.sha256(body).hexdigest():
                raise ValueError(found["format"])  # noqa: TRY301 - one handler for everything
            return AlertBook.from_json(json.loads(body), self._routed)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise AlertFileError(f"{self.path}: expected alerts as tiercel writes them, got: {error!r}") from error


def _packed(book: AlertBook) -> bytes:
    body = json.dumps(book.to_json(), separators=(",", ":")).encode()
    head = json.dumps({"format": _FORMAT, "sha256": hashlib.sha256(body).hexdigest()}).encode()
    return head + b"\n" + body


def _text(text: str) -> str:
    """What somebody said, of a length and of characters that every reader can bear."""
    return "".join(each if each.isprintable() else " " for each in text)[:_MAX_TEXT]
