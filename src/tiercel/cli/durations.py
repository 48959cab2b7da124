"""Lengths of time on the command line: `90s`, `15min` or `15m`, `36h`, `7d`, and moments as ISO texts."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import click

_UNITS_US = {
    "ms": 1000,
    "s": 1_000_000,
    "min": 60_000_000,
    "m": 60_000_000,
    "h": 3_600_000_000,
    "d": 86_400_000_000,
    "w": 604_800_000_000,
}
_FORM = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|min|m|h|d|w)\s*")
_LONGEST_US = 36_525 * _UNITS_US["d"]  # a hundred years


class Duration(click.ParamType[int]):
    """A positive length of time, as microseconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """From text; a number was converted already."""
        if isinstance(value, int):
            return value
        found = _FORM.fullmatch(str(value).lower())
        length_us = 0 if found is None else round(float(found[1]) * _UNITS_US[found[2]])
        if not 0 < length_us <= _LONGEST_US:
            self.fail(f"expected a length of time such as 90s, 15min, 36h or 7d, got {value!r}", param, ctx)
        return length_us


class Moment(click.ParamType[int]):
    """A moment, as microseconds since the epoch; without an offset it is UTC."""

    name = "moment"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """From ISO 8601 text; a number was converted already."""
        if isinstance(value, int):
            return value
        try:
            moment = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f"expected a moment such as 2026-03-01 or 2026-03-01T14:30:00+01:00, got {value!r}", param, ctx)
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
        return round(moment.timestamp() * 1_000_000)


DURATION, MOMENT = Duration(), Moment()


def shown_duration(us: float) -> str:
    """A length of time in the unit that says enough: `450 ms`, `90 s`, `15 min`, `36 h`, `7 d`."""
    for unit, least in (("d", 2), ("h", 2), ("min", 2), ("s", 1)):
        if us >= least * _UNITS_US[unit]:
            return f"{us / _UNITS_US[unit]:.3g} {unit}"
    return f"{us / 1000:.3g} ms"


def shown_moment(us: int, *, seconds: bool = False) -> str:
    """A moment to the minute, or the second, UTC."""
    try:
        return datetime.fromtimestamp(us / 1e6, tz=UTC).strftime("%Y-%m-%d %H:%M:%S" if seconds else "%Y-%m-%d %H:%M")
    except (OverflowError, ValueError, OSError):
        return f"{us} us"
