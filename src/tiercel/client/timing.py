"""Reading `Server-Timing`. Every proxy on the way may add to the header, so what cannot be read is skipped."""

from __future__ import annotations

import math
import re

#: One parameter or metric name with what follows it: an unquoted value, a quoted one, or nothing.
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 - a token of HTTP's grammar
_VALUE = re.compile(rf'\s*({_TOKEN})\s*(?:=\s*(?:({_TOKEN})|"((?:[^"\\]|\\.)*)"))?\s*')


def parse_server_timing(text: str | None) -> dict[str, float]:
    """Durations in milliseconds by metric name, in the header's order.

    Of metrics with one name the first counts, and of one metric's parameters with one name too, as in browsers. Metrics
    without a duration are left out.

    Args:
        text: the header's value, several joined by commas; None: there was none.
    """
    found: dict[str, float] = {}
    for metric in _split(text or "", ","):
        name, *parameters = _split(metric, ";")
        match = _VALUE.fullmatch(name)
        if match is None or match[2] is not None or match[3] is not None or match[1] in found:
            continue
        for parameter in parameters:
            given = _VALUE.fullmatch(parameter)
            if given is not None and given[1].lower() == "dur":
                duration = _number(given[2] if given[2] is not None else given[3])
                if duration is not None:
                    found[match[1]] = duration
                break
    return found


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _split(text: str, separator: str) -> list[str]:
    """The parts between separators that stand outside of quotes."""
    parts, start, quoted, at = [], 0, False, 0
    while at < len(text):
        if text[at] == "\\" and quoted:
            at += 1
        elif text[at] == '"':
            quoted = not quoted
        elif text[at] == separator and not quoted:
            parts.append(text[start:at])
            start = at + 1
        at += 1
    return [*parts, text[start:]]
