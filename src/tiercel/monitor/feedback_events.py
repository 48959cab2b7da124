"""What became of a prediction, as somebody tells it: one event checked by itself, so that a bad one spoils no batch.

    {"id": "0123456789abcdef2f", "row": 0, "label": 1, "value": 12.5, "time": "2026-01-05T12:00:00Z"}

`id` is the reply's. `row` is needed where several rows were asked about at once. `label` is a number, a boolean or the name of
a class; `value` is what the outcome was worth. At least one of the two is there. `time` is when it became so.
"""

from __future__ import annotations

import math
import re
import reprlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from tiercel.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterable

FIELDS = ("id", "row", "label", "value", "time")
#: Of a reply: 16 digits of a worker start and the reply's number there. Kept as `monitor.lookup` has it.
ID = re.compile(r"[0-9a-f]{16}(0|[1-9a-f][0-9a-f]{0,15})")
MAX_LABEL_CHARACTERS = 200
#: Events that a reply describes; the others are counted.
MAX_DESCRIBED = 20
#: A label's time is between these, or the time of its arrival is put in its place.
FIRST_TIME_US = 946_684_800_000_000  # 2000
AHEAD_US = 86_400_000_000
#: Counted among what was odd and accepted all the same.
TIME_REPLACED = "time_replaced"


class Event(NamedTuple):
    """One accepted event. `label` and `label_text` exclude each other; `row` is None where none was given."""

    id: str
    row: int | None
    label: float | None
    label_text: str | None
    value: float | None
    time_us: int


@dataclass
class Checked:
    """A batch, taken apart.

    Attributes:
        events: to be kept.
        refused: how many events were not, by code.
        described: the first few of those: {"event": its place, "error", "code"}.
        notes: how many accepted ones had something odd about them, by what.
    """

    events: list[Event] = field(default_factory=list)
    refused: dict[str, int] = field(default_factory=dict)
    described: list[dict[str, Any]] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)


def check_events(items: Iterable[Any], now_us: int) -> Checked:
    """Check each event by itself.

    Args:
        items: as sent.
        now_us: when they came.
    """
    checked = Checked()
    for place, item in enumerate(items):
        try:
            event = check_event(item, now_us)
        except RequestError as error:
            checked.refused[error.code] = checked.refused.get(error.code, 0) + 1
            if len(checked.described) < MAX_DESCRIBED:
                checked.described.append({"event": place, "error": str(error), "code": error.code})
            continue
        if not FIRST_TIME_US <= event.time_us <= now_us + AHEAD_US:
            event = event._replace(time_us=now_us)
            checked.notes[TIME_REPLACED] = checked.notes.get(TIME_REPLACED, 0) + 1
        checked.events.append(event)
    return checked


def check_event(item: Any, now_us: int) -> Event:
    """One event.

    Args:
        item: as sent.
        now_us: its time, unless it says one.

    Raises:
        RequestError: `invalid_id`, `invalid_label`, `wrong_type` or `unknown_field`.
    """
    if type(item) is not dict:
        raise RequestError(f"Expected an object with id and label, got {_show(item)}", code="wrong_type")
    for name in item:
        if name not in FIELDS:
            raise RequestError(f"Expected the fields {', '.join(FIELDS)}, got {_show(name)}", code="unknown_field")
    prediction, row = item.get("id"), item.get("row")
    if type(prediction) is not str or ID.fullmatch(prediction) is None:
        raise RequestError(
            f'Expected the id of a reply, 17 to 32 hexadecimal digits as in its "id", got {_show(prediction)}',
            code="invalid_id",
        )
    if row is not None and (type(row) is not int or not 0 <= row < 1 << 31):
        raise RequestError(f"Expected a row's place from 0, got {_show(row)} at row", code="wrong_type")
    label, text = _label(item.get("label"))
    value = _number(item.get("value"), "value", "wrong_type")
    if label is None and text is None and value is None:
        raise RequestError("Expected a label, a value or both, got neither", code="invalid_label")
    time = item.get("time")
    return Event(prediction, row, label, text, value, now_us if time is None else _time_us(time))


def _label(label: Any) -> tuple[float | None, str | None]:
    if type(label) is bool:
        return float(label), None
    if type(label) is str:
        if not 0 < len(label) <= MAX_LABEL_CHARACTERS or not _is_text(label):
            raise RequestError(
                f"Expected the name of a class, of 1 to {MAX_LABEL_CHARACTERS} characters, got {_show(label)} at label",
                code="invalid_label",
            )
        return None, label
    return _number(label, "label", "invalid_label"), None


def _number(value: Any, name: str, code: str) -> float | None:
    if value is None:
        return None
    if type(value) in (int, float):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
    raise RequestError(f"Expected a finite number, got {_show(value)} at {name}", code=code)


def _time_us(time: Any) -> int:
    """Microseconds since the epoch from an integer of them or an ISO 8601 text (without an offset: UTC)."""
    if type(time) is int:
        return max(-(1 << 62), min(time, 1 << 62))  # odd ones are replaced
    if type(time) is str:
        try:
            moment = datetime.fromisoformat(time)
        except ValueError:
            moment = None
        if moment is not None:
            moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            delta = moment - _EPOCH
            return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds
    raise RequestError(
        f"Expected a time, as ISO 8601 text or in microseconds since 1970, got {_show(time)} at time", code="wrong_type"
    )


def _is_text(text: str) -> bool:
    """Whether UTF-8 can carry it: JSON can bring half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _show(value: Any) -> str:
    return _SHORT.repr(value)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60
_SHORT.maxlist = _SHORT.maxdict = 4
_SHORT.maxlevel = 2
