"""The `Server-Timing` header: what the stages of one prediction took, where browsers, proxies and clients look for it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def server_timing(stage_us: Mapping[str, float]) -> str:
    """The header's value (W3C Server Timing): stages in the order given, milliseconds with three decimals.

    Args:
        stage_us: microseconds by stage. Clocks may disagree by a tick: less than nothing is told as nothing.

    Raises:
        ValueError: a name that is not an HTTP token, which would end the header or begin another.
    """
    parts = []
    for name, time_us in stage_us.items():
        if _TOKEN.fullmatch(name) is None:
            raise ValueError(f"Expected stages named by HTTP tokens, got {name!r}")
        parts.append(f"{name};dur={max(0.0, time_us) / 1e3:.3f}")
    return ", ".join(parts)
