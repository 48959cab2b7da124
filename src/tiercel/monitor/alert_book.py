"""Alerts and what becomes of them: plain rules over plain values, without a disk or a clock.

A cause opens an alert when looks in a row found it, and only one. It is over when looks in a row that would have found an
effect of its size did not; looks at too little traffic count for neither, and when there was nothing else for long, it is
over too, and said to be so for want of traffic: should it last, it is found again as soon as there is some. What comes back soon after it was over is the same
alert, and must then be gone for longer: a feed that comes and goes does not wake somebody every few minutes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from tiercel.errors import AlertNotFoundError, AlertStateError
from tiercel.monitor.alert import Alert, AlertEvent, AlertState, Finding

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from tiercel.monitor.alert import Look

#: Resolved alerts that are kept.
MAX_RESOLVED = 1000
#: An alert that was over for less than this many lengths of its window is the same one when it comes back.
REOPEN_LENGTHS = 24
#: Looks that found a cause do not count as looks in a row when this many of their lengths lie between them.
STALE_LENGTHS = 10
#: An alert is over when so many looks in a row could not tell, over at least so long.
REST_LOOKS, REST_US = 24, 3_600_000_000
#: Beyond this many returns, being gone does not have to last longer.
_MAX_DOUBLINGS = 5
_WATCH = "watch"


@dataclass(frozen=True)
class Suspicion:
    """A cause that was found, but not yet by enough looks in a row."""

    n_found: int
    updated_us: int
    finding: Finding


@dataclass(frozen=True)
class Silence:
    """Nothing is sent about a cause until a time. `length_us` bounds it should the clock be put back."""

    until_us: int
    length_us: int


@dataclass
class AlertBook:
    """All alerts of a project.

    Args:
        routed: classes that the webhook hears of.

    Attributes:
        alerts: by id, in order of opening.
        next_id: of the next one.
        suspicions: by (look, cause).
        silences: by cause; they outlive the alert.
    """

    routed: Collection[str] = ()
    alerts: dict[int, Alert] = field(default_factory=dict)
    next_id: int = 1
    suspicions: dict[tuple[str, str], Suspicion] = field(default_factory=dict)
    silences: dict[str, Silence] = field(default_factory=dict)

    def find(self, alert_id: int) -> Alert:
        """An alert by its id.

        Raises:
            AlertNotFoundError: there is none.
        """
        try:
            return self.alerts[alert_id]
        except KeyError:
            raise AlertNotFoundError(
                f"No alert {alert_id}: expected one that `tiercel alerts --all` lists (the newest {MAX_RESOLVED:,} resolved "
                f"ones are kept)"
            ) from None

    # -- what looks say

    def take(self, look: Look, now_us: int) -> None:
        """Take what one look found, and what it did not."""
        found = {finding.cause: finding for finding in look.findings}
        for finding in found.values():
            self._see(look, finding, now_us)
        for key, suspicion in list(self.suspicions.items()):
            name, cause = key
            if name == look.name and cause not in found and look.would_have_found(suspicion.finding):
                del self.suspicions[key]
        for alert in self._lasting():
            if alert.look != look.name or alert.finding.cause in found:
                continue
            if look.would_have_found(alert.finding):
                self._clear(alert, look, now_us)
            else:
                self._keep(replace(alert, n_untold=alert.n_untold + 1))

    def retire(self, live: Collection[tuple[str, int]], now_us: int) -> None:
        """End alerts of versions that nobody serves any more: nothing will ever be found out about them."""
        for alert in self._lasting():
            finding = alert.finding
            if finding.version is not None and (finding.model, finding.version) not in live:
                self._resolve(alert, now_us, _WATCH, "the version is no longer served")

    def rest(self, silent: Collection[tuple[str, int]], now_us: int) -> None:
        """End alerts that no look can tell of any more.

        Args:
            silent: versions that nobody has asked for so long that there is nothing left to judge.
            now_us: the time.
        """
        for alert in self._lasting():
            finding = alert.finding
            n_looks = max(REST_LOOKS, -(-REST_US // _length_us(finding)))
            if finding.version is not None and (
                alert.n_untold >= n_looks or (finding.model, finding.version) in silent
            ):
                self._resolve(alert, now_us, _WATCH, "too little traffic for long to tell whether it lasts")

    def end_silences(self, now_us: int) -> None:
        """Let silences end whose time is over."""
        for cause, silence in list(self.silences.items()):
            until_us = min(silence.until_us, now_us + silence.length_us)
            if until_us <= now_us:
                del self.silences[cause]
            elif until_us != silence.until_us:  # the clock was put back
                self.silences[cause] = replace(silence, until_us=until_us)
        for alert in self._lasting():
            if alert.state is AlertState.SILENCED and alert.finding.cause not in self.silences:
                event = AlertEvent("unsilenced", now_us, _WATCH)
                self._keep(
                    alert.with_event(
                        event, is_sent=self._is_routed(alert), state=AlertState.OPEN, silenced_until_us=None
                    )
                )

    def prune(self) -> None:
        """Drop the oldest resolved alerts beyond `MAX_RESOLVED`."""
        over = [alert.id for alert in self.alerts.values() if alert.is_over and not alert.unsent]
        for alert_id in over[: max(0, len(over) - MAX_RESOLVED)]:
            del self.alerts[alert_id]

    # -- what people say

    def acknowledge(self, alert_id: int, by: str, note: str, now_us: int) -> Alert:
        """Somebody knows of it. Raises as `find`, and AlertStateError where it is over."""
        alert = self._find_lasting(alert_id)
        self.silences.pop(alert.finding.cause, None)
        event = AlertEvent("acknowledged", now_us, by, note)
        return self._keep(
            alert.with_event(
                event, state=AlertState.ACKNOWLEDGED, silenced_until_us=None, unsent=_without_openings(alert)
            )
        )

    def silence(self, alert_id: int, until_us: int, by: str, note: str, now_us: int) -> Alert:
        """Send nothing about its cause until a time. Raises as `acknowledge`."""
        alert = self._find_lasting(alert_id)
        self.silences[alert.finding.cause] = Silence(until_us, max(1, until_us - now_us))
        event = AlertEvent("silenced", now_us, by, note)
        return self._keep(
            alert.with_event(
                event, state=AlertState.SILENCED, silenced_until_us=until_us, unsent=_without_openings(alert)
            )
        )

    def resolve(self, alert_id: int, by: str, note: str, now_us: int) -> Alert:
        """Call it over. Looks that find its cause again open it again. Raises as `acknowledge`."""
        alert = self._find_lasting(alert_id)
        for key in [key for key in self.suspicions if key[1] == alert.finding.cause]:
            del self.suspicions[key]
        return self._resolve(alert, now_us, by, note)

    def mark_sent(self, alert_id: int, what: str, now_us: int, *, failure: str = "") -> None:
        """The webhook took an event, or was given up on it."""
        alert = self.alerts.get(alert_id)
        if alert is None or what not in alert.unsent:
            return
        at = alert.unsent.index(what)
        event = AlertEvent("not_sent" if failure else "sent", now_us, _WATCH, failure or what)
        self._keep(alert.with_event(event, unsent=(*alert.unsent[:at], *alert.unsent[at + 1 :])))

    # -- the rules

    def _see(self, look: Look, finding: Finding, now_us: int) -> None:
        alert = next((each for each in self._lasting() if each.finding.cause == finding.cause), None)
        if alert is not None:
            if alert.look == look.name or _length_us(finding) < _length_us(alert.finding):
                changed = replace(alert, finding=finding, look=look.name)
                self._keep(replace(changed, updated_us=now_us, n_found=alert.n_found + 1, n_cleared=0, n_untold=0))
            return
        before = self._newest(finding.cause)
        if before is not None and before.look != look.name and finding.begin_us < (before.resolved_us or 0):
            return  # a longer window that reaches back into what is over
        key = look.name, finding.cause
        suspicion = self.suspicions.get(key)
        if suspicion is not None and abs(now_us - suspicion.updated_us) > STALE_LENGTHS * _length_us(finding):
            suspicion = None
        n_found = 1 if suspicion is None else suspicion.n_found + 1
        if n_found < look.n_confirm:
            self.suspicions[key] = Suspicion(n_found, now_us, finding)
            return
        self.suspicions.pop(key, None)
        self._open(look, finding, n_found, before, now_us)

    def _open(self, look: Look, finding: Finding, n_found: int, before: Alert | None, now_us: int) -> None:
        silence = self.silences.get(finding.cause)
        state = AlertState.OPEN if silence is None else AlertState.SILENCED
        until_us = None if silence is None else silence.until_us
        is_back = before is not None and now_us - (before.resolved_us or 0) < REOPEN_LENGTHS * _length_us(finding)
        if before is not None and is_back:
            alert, what = replace(before, finding=finding, n_reopened=before.n_reopened + 1), "reopened"
        else:
            alert, what = Alert(self.next_id, finding, state, look.name, now_us, now_us), "opened"
            self.next_id += 1
        is_sent = silence is None and self._is_routed(alert)
        self._keep(
            alert.with_event(
                AlertEvent(what, now_us, _WATCH),
                is_sent=is_sent,
                state=state,
                look=look.name,
                updated_us=now_us,
                resolved_us=None,
                silenced_until_us=until_us,
                n_found=alert.n_found + n_found,
                n_cleared=0,
                n_untold=0,
            )
        )

    def _clear(self, alert: Alert, look: Look, now_us: int) -> None:
        alert = self._keep(replace(alert, n_cleared=alert.n_cleared + 1, n_untold=0))
        if alert.n_cleared >= look.n_clear << min(alert.n_reopened, _MAX_DOUBLINGS):
            self._resolve(alert, now_us, _WATCH, "")

    def _resolve(self, alert: Alert, now_us: int, by: str, note: str) -> Alert:
        # Who heard that it began, or is about to, hears that it is over; silenced or not.
        is_sent = self._is_routed(alert) and (bool(alert.unsent) or any(e.what == "sent" for e in alert.history))
        event = AlertEvent("resolved", now_us, by, note)
        return self._keep(
            alert.with_event(
                event, is_sent=is_sent, state=AlertState.RESOLVED, resolved_us=now_us, silenced_until_us=None
            )
        )

    def _is_routed(self, alert: Alert) -> bool:
        return alert.finding.alert_class.value in self.routed

    def _lasting(self) -> list[Alert]:
        return [alert for alert in self.alerts.values() if not alert.is_over]

    def _find_lasting(self, alert_id: int) -> Alert:
        alert = self.find(alert_id)
        if alert.is_over:
            raise AlertStateError(f"Alert {alert_id} is resolved: there is nothing left to be done about it")
        return alert

    def _newest(self, cause: str) -> Alert | None:
        """The last alert of a cause, which is over."""
        return next((alert for alert in reversed(self.alerts.values()) if alert.finding.cause == cause), None)

    def _keep(self, alert: Alert) -> Alert:
        self.alerts[alert.id] = alert
        return alert

    # -- as a file has it

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "next_id": self.next_id,
            "alerts": [alert.to_json() for alert in self.alerts.values()],
            "suspicions": [
                [look, each.n_found, each.updated_us, each.finding.to_json()]
                for (look, _), each in self.suspicions.items()
            ],
            "silences": [[cause, each.until_us, each.length_us] for cause, each in self.silences.items()],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], routed: Collection[str] = ()) -> AlertBook:
        """Inverse of `to_json`.

        Raises:
            KeyError, TypeError, ValueError: it was not written by `to_json`.
        """
        alerts = [Alert.from_json(each) for each in data["alerts"]]
        return cls(
            routed=routed,
            alerts={alert.id: alert for alert in alerts},
            next_id=max([int(data["next_id"]), *(alert.id + 1 for alert in alerts)]),
            suspicions={
                (str(look), str(finding["cause"])): Suspicion(int(n), int(updated_us), Finding.from_json(finding))
                for look, n, updated_us, finding in data["suspicions"]
            },
            silences={str(cause): Silence(int(until), int(length)) for cause, until, length in data["silences"]},
        )


def _without_openings(alert: Alert) -> tuple[str, ...]:
    """What is still to be sent once somebody knows: not that it began."""
    return tuple(what for what in alert.unsent if what == "resolved")


def _length_us(finding: Finding) -> int:
    return max(1, finding.end_us - finding.begin_us)
