"""What an alert is: one cause, how large it is, what shows it again, and what has been done about it."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from tiercel.settings import PAGING_CLASSES

if TYPE_CHECKING:
    from collections.abc import Mapping


class AlertClass(enum.StrEnum):
    """Which of four questions an alert answers."""

    PIPELINE = "pipeline"  # what feeds the model is broken
    POPULATION = "population"  # others are asking than those it was trained on
    CONCEPT = "concept"  # what its scores mean has changed
    IMPACT = "impact"  # it does not achieve what it is for

    @property
    def pages(self) -> bool:
        """Whether somebody is woken for it."""
        return self.value in PAGING_CLASSES


class AlertState(enum.StrEnum):
    """What has been done about an alert."""

    OPEN = "open"
    ACKNOWLEDGED = "acknowledged"  # somebody knows; it is not sent again while it lasts
    SILENCED = "silenced"  # not sent until a time; open again then, if it still lasts
    RESOLVED = "resolved"  # over


@dataclass(frozen=True)
class TopFeature:
    """A feature, score or figure that shows a finding: how far it is off, and one sentence of why."""

    name: str
    effect: float
    reason: str


@dataclass(frozen=True)
class Finding:
    """What a look at a window found wrong; the same cause found again is the same alert.

    Attributes:
        cause: its identity: what is broken, not how it shows.
        alert_class: see `AlertClass`.
        model, version: whom it concerns (most); "" and None where no one model is concerned.
        subject: what is broken, in a few words.
        begin_us, end_us: the window, microseconds since the epoch.
        n: rows, or whatever `effect` is of, in the window.
        effect: its size; `effect_name` says of what.
        threshold: `effect` from which it is one, for this many rows.
        features: what shows it, the strongest first.
        message: one or two sentences.
        command: what shows it again.
        moves: features by how much each moved the mean score, the largest part first; empty where that was not found out.
    """

    cause: str
    alert_class: AlertClass
    model: str
    version: int | None
    subject: str
    begin_us: int
    end_us: int
    n: int
    effect: float
    effect_name: str
    threshold: float
    features: tuple[TopFeature, ...]
    message: str
    command: str
    moves: tuple[TopFeature, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            **{name: value for name, value in vars(self).items() if name not in _NESTED},
            "class": self.alert_class.value,
            "features": [vars(each) for each in self.features],
            "moves": [vars(each) for each in self.moves],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Finding:
        """Inverse of `to_json`; other keys are left alone.

        Raises:
            KeyError, TypeError, ValueError: it was not written by `to_json`.
        """
        names = [name for name in cls.__dataclass_fields__ if name not in _NESTED]
        features, moves = (
            tuple(TopFeature(str(e["name"]), float(e["effect"]), str(e["reason"])) for e in data.get(key, ()))
            for key in ("features", "moves")  # alerts from before there were moves have none
        )
        return cls(
            **{name: data[name] for name in names},
            alert_class=AlertClass(data["class"]),
            features=features,
            moves=moves,
        )


@dataclass(frozen=True)
class Look:
    """One look at what happened: what it found, and what it could have found.

    Attributes:
        name: of the kind of look, such as "interval"; looks of one name follow each other.
        findings: at most one per cause.
        limits: cause -> what shows it -> the effect that would have been found. A cause that is in neither was not looked
            at: an empty window tells nothing. "" stands for whatever shows it.
        n_confirm: an alert opens when so many looks in a row found its cause ...
        n_clear: ... and is over when so many in a row would have found it and did not.
    """

    name: str
    findings: tuple[Finding, ...] = ()
    limits: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    n_confirm: int = 2
    n_clear: int = 3

    def would_have_found(self, finding: Finding) -> bool:
        """Whether an effect of this size would have been one here."""
        limits = self.limits.get(finding.cause)
        if not limits:
            return False
        known = [limits[each.name] for each in finding.features if each.name in limits]
        return min(known or [limits.get("", float("inf"))]) <= finding.effect


@dataclass(frozen=True)
class AlertEvent:
    """What happened to an alert: opened, reopened, acknowledged, silenced, unsilenced, resolved, sent, not_sent."""

    what: str
    time_us: int
    by: str = ""
    note: str = ""


@dataclass(frozen=True)
class Alert:
    """One cause, from the look that confirmed it to the one that found it over.

    Attributes:
        id: a number, in order of opening.
        finding: as of the newest look that found it.
        state: what has been done about it.
        look: name of the looks that found it.
        opened_us, updated_us: first opened; last found.
        resolved_us, silenced_until_us: None where that is not so.
        n_found: looks that found it.
        n_cleared: looks in a row that did not, since.
        n_reopened: how often it came back soon after it was over: the more often, the longer it must be gone.
        history: the newest events.
        unsent: events that the webhook has not taken yet.
    """

    id: int
    finding: Finding
    state: AlertState
    look: str
    opened_us: int
    updated_us: int
    resolved_us: int | None = None
    silenced_until_us: int | None = None
    n_found: int = 0
    n_cleared: int = 0
    n_reopened: int = 0
    history: tuple[AlertEvent, ...] = ()
    unsent: tuple[str, ...] = ()

    @property
    def is_over(self) -> bool:
        """Whether it is resolved."""
        return self.state is AlertState.RESOLVED

    @property
    def pages(self) -> bool:
        """Whether somebody is woken for it."""
        return self.finding.alert_class.pages

    def with_event(self, event: AlertEvent, *, is_sent: bool = False, **changes: Any) -> Alert:
        """A changed alert and the line in its history that says so; is_sent: the webhook is to hear of it."""
        changes["history"] = (*self.history, event)[-_MAX_HISTORY:]
        if is_sent:
            changes["unsent"] = (*self.unsent, event.what)[-_MAX_UNSENT:]
        return replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, flat: the finding's and its own."""
        own = {name: value for name, value in vars(self).items() if name not in {"finding", "history", "unsent"}}
        return {
            **self.finding.to_json(),
            **own,
            "state": self.state.value,
            "pages": self.pages,
            "history": [vars(event) for event in self.history],
            "unsent": list(self.unsent),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Alert:
        """Inverse of `to_json`.

        Raises:
            KeyError, TypeError, ValueError: it was not written by `to_json`.
        """
        names = [n for n in cls.__dataclass_fields__ if n not in {"finding", "state", "history", "unsent"}]
        return cls(
            finding=Finding.from_json(data),
            state=AlertState(data["state"]),
            history=tuple(AlertEvent(**event) for event in data["history"]),
            unsent=tuple(map(str, data["unsent"])),
            **{name: data[name] for name in names},
        )


#: Of a finding, what is not a plain value.
_NESTED = frozenset({"alert_class", "features", "moves"})
_MAX_HISTORY = 50
_MAX_UNSENT = 8
