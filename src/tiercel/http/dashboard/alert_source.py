"""Alerts as pages show them, and what a reader may do about one."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tiercel.errors import RequestError
from tiercel.monitor.alerts import AlertStore
from tiercel.monitor.watch_state import WatchState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tiercel.settings import Settings

#: How long an alert may be silenced from a page.
SILENCES: Final = {"1h": 3600, "4h": 14_400, "1d": 86_400, "7d": 604_800}
ACTIONS: Final = ("acknowledge", "silence", "resolve")
_MAX_TEXT_CHARS: Final = 500
_MAX_ID_DIGITS: Final = 18


@dataclass(frozen=True)
class AlertRow:
    """One alert, in plain values.

    Attributes:
        id: its number.
        kind: pipeline, population, concept or impact.
        state: open, acknowledged, silenced or resolved.
        top: (name, effect, reason) of what shows it, strongest first.
        moves: (name, part, reason) of what moved the mean score, the largest part first.
        history: (what, time, by, note), newest first.
    """

    id: int
    kind: str
    state: str
    is_paging: bool
    model: str
    version: int | None
    subject: str
    message: str
    command: str
    begin_us: int
    end_us: int
    n: int
    effect: float
    effect_name: str
    threshold: float
    top: Sequence[tuple[str, float, str]]
    moves: Sequence[tuple[str, float, str]]
    opened_us: int
    updated_us: int
    resolved_us: int | None
    silenced_until_us: int | None
    history: Sequence[tuple[str, int, str, str]]

    @property
    def is_open(self) -> bool:
        """Whether somebody is to look at it: neither over nor put off."""
        return self.state in {"open", "acknowledged"}

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to be done about it."""
        return self.state == "resolved"

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> AlertRow:
        """From an alert's JSON."""
        return cls(
            id=int(data["id"]),
            kind=str(data["class"]),
            state=str(data["state"]),
            is_paging=bool(data["pages"]),
            model=str(data["model"]),
            version=data["version"],
            subject=str(data["subject"]),
            message=str(data["message"]),
            command=str(data["command"]),
            begin_us=int(data["begin_us"]),
            end_us=int(data["end_us"]),
            n=int(data["n"]),
            effect=float(data["effect"]),
            effect_name=str(data["effect_name"]),
            threshold=float(data["threshold"]),
            top=[(str(e["name"]), float(e["effect"]), str(e["reason"])) for e in data["features"]],
            moves=[(str(e["name"]), float(e["effect"]), str(e["reason"])) for e in data["moves"]],
            opened_us=int(data["opened_us"]),
            updated_us=int(data["updated_us"]),
            resolved_us=data["resolved_us"],
            silenced_until_us=data["silenced_until_us"],
            history=[(str(e["what"]), int(e["time_us"]), str(e["by"]), str(e["note"])) for e in data["history"]][::-1],
        )


class AlertSource:
    """The alerts of a project.

    Args:
        settings: the project.

    Threads: safe. Waits for files: never on the event loop.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._store = AlertStore(settings.state_dir)

    def read(self, *, with_resolved: bool = False) -> list[AlertRow]:
        """Alerts, those that last first and then the newest.

        Raises:
            AlertFileError, MonitorStorageError: as the store.
        """
        return [AlertRow.of(alert.to_json()) for alert in self._store.find_all(with_resolved=with_resolved)]

    def watch(self) -> WatchState:
        """How who looks for alerts is doing."""
        return WatchState.load(self._settings.state_dir)

    def act(self, alert_id: str, action: str, form: Mapping[str, str]) -> None:
        """Acknowledge, silence or resolve an alert.

        Args:
            alert_id: as it stands in the path.
            action: one of `ACTIONS`.
            form: `by`, `note`, and of a silence `until`, one of `SILENCES`.

        Raises:
            RequestError: none of these.
            AlertNotFoundError, AlertStateError, AlertFileError, MonitorStorageError: as the store.
        """
        if not (alert_id.isascii() and alert_id.isdigit() and len(alert_id) <= _MAX_ID_DIGITS):
            raise RequestError(f"Expected the number of an alert, got {alert_id[:30]!r}")
        by = form.get("by", "").strip()[:_MAX_TEXT_CHARS] or "dashboard"
        said: dict[str, Any] = {"by": by, "note": form.get("note", "").strip()[:_MAX_TEXT_CHARS]}
        said["now_us"] = now_us = time.time_ns() // 1000
        if action == "acknowledge":
            self._store.acknowledge(int(alert_id), **said)
        elif action == "resolve":
            self._store.resolve(int(alert_id), **said)
        elif action == "silence":
            length = form.get("until", "")
            if length not in SILENCES:
                raise RequestError(f"Expected a time of {', '.join(SILENCES)} to be silent for, got {length[:30]!r}")
            self._store.silence(int(alert_id), now_us + SILENCES[length] * 1_000_000, **said)
        else:
            raise RequestError(f"Expected one of {', '.join(ACTIONS)}, got {action[:30]!r}")
