"""Numbers and times as people read them. Everything here returns text; what is not known is a dash."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tiercel.monitor.intervals import Estimate

NOTHING = "\u2013"
_AGES = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def number(value: float | None) -> str:
    """Three significant digits, thousands apart."""
    if value is None or not math.isfinite(value):
        return NOTHING
    size = abs(value)
    if size >= 1e7:
        return f"{value:.3g}"
    if size >= 100 or value == int(value):
        return f"{value:,.0f}"
    if size >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if size >= 1 else f"{value:.3f}" if size >= 0.1 else f"{value:.3g}"


def signed(value: float | None) -> str:
    """As `number`, with a sign."""
    text = number(value)
    return text if text == NOTHING or text.startswith("-") else f"+{text}"


def count(value: float | None) -> str:
    """A count: 947, 12.3 k, 4.56 M."""
    if value is None or not math.isfinite(value):
        return NOTHING
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= unit:
            scaled = value / (1e3 if name == "k" else unit)
            return f"{scaled:.3g} {name}" if scaled < 999.5 else f"{scaled:,.0f} {name}"
    return f"{value:,.0f}"


def rate(value: float | None) -> str:
    """Per second: what is rare keeps its digits."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return count(value) if value >= 100 or value == 0 else f"{value:.1f}" if value >= 10 else f"{value:.2g}"


def time_of(us: float | None) -> str:
    """A duration of microseconds in the unit that fits: 84 µs, 1.24 ms, 2.1 s."""
    if us is None or not math.isfinite(us):
        return NOTHING
    if us < 1000:
        return f"{us:.0f} µs" if us >= 10 else f"{us:.1f} µs"
    ms = us / 1000
    if ms < 1000:
        return f"{ms:.2f} ms" if ms < 10 else f"{ms:.1f} ms" if ms < 100 else f"{ms:.0f} ms"
    return f"{ms / 1000:.2g} s" if ms < 10_000 else f"{ms / 1000:,.0f} s"


def share(value: float | None) -> str:
    """A share in percent."""
    if value is None or not math.isfinite(value):
        return NOTHING
    percent = 100 * value
    if percent == 0:
        return "0 %"
    if abs(percent) < 0.01:
        return "<0.01 %"
    return f"{percent:.0f} %" if percent >= 99.95 or percent == int(percent) else f"{percent:.3g} %"


def age(seconds: float | None) -> str:
    """Time since something: 12 s, 5 min, 3 h 20 min, 12 d."""
    if seconds is None or not math.isfinite(seconds):
        return NOTHING
    if seconds < 0:
        return f"{age(-seconds)} ahead"
    left = round(seconds)
    for place, (unit, name) in enumerate(_AGES):
        if left >= unit:
            head, rest = divmod(left, unit)
            if head < 10 and place < 3:
                below, below_name = _AGES[place + 1]
                if rest // below:
                    return f"{head} {name} {rest // below} {below_name}"
            return f"{head} {name}"
    return "0 s"


def moment(us: float | None) -> str:
    """A time of day in UTC, to the minute."""
    return NOTHING if us is None else _at(us).strftime("%Y-%m-%d %H:%M")


def moment_s(us: float | None) -> str:
    """A time in UTC, to the second; also what charts are given."""
    return NOTHING if us is None else _at(us).strftime("%Y-%m-%d %H:%M:%S")


def iso(us: float | None) -> str:
    """For <time datetime>."""
    return "" if us is None else _at(us).strftime("%Y-%m-%dT%H:%M:%SZ")


def interval(estimate: Estimate | None) -> str:
    """The ends of an estimate's interval; empty where it has none."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return ""
    return f"[{number(estimate.low)}, {number(estimate.high)}]"


def plural(n: int, noun: str) -> str:
    """A count with its noun."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def money(value: float | None, unit: str) -> str:
    """An amount with its unit."""
    if value is None or not math.isfinite(value):
        return NOTHING
    amount = f"{value:,.0f}" if abs(value) >= 1000 else number(value)
    return f"{amount} {unit}".rstrip()


def _at(us: float) -> datetime:
    # Clocks may say anything; a page must not fail for it.
    return datetime.fromtimestamp(min(max(us, 0), 253_402_300_799_000_000) / 1e6, tz=UTC)
