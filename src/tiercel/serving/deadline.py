"""A request's time budget: from the moment its first byte was read, whatever says it.

Clients and proxies already send budgets under several names. All are understood, the smallest wins, and the reply says
which it was. Sources: Open Inference Protocol `parameters.timeout` as Triton defines it (microseconds), Ray Serve's
`x-request-timeout-seconds`, Envoy's `x-envoy-expected-rq-timeout-ms`, and our own `deadline_ms`.
"""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tiercel.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tiercel.types import Tier

#: Header -> microseconds of one of its units. All are decimal numbers.
HEADERS: dict[bytes, float] = {
    b"x-request-timeout-seconds": 1e6,
    b"x-envoy-expected-rq-timeout-ms": 1e3,
}
DECIMAL = re.compile(rb"[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]{1,3})?")
#: A longer one that a caller names is a mistake in the unit.
MAX_BUDGET_US = 3_600_000_000
#: The source of a deadline that nobody asked for.
TIER_DEFAULT = "tier"


@dataclass(frozen=True, slots=True)
class Deadline:
    """When a reply is due.

    `begin_ns` is of the monotonic clock, when the request was read; `source` says who set the budget: a header's name,
    "deadline_ms", "timeout", or "tier".
    """

    begin_ns: int
    budget_us: int
    source: str = TIER_DEFAULT

    @property
    def due_ns(self) -> int:
        """Of the monotonic clock."""
        return self.begin_ns + 1000 * self.budget_us

    @property
    def origin(self) -> str:
        """Who set the budget, in words."""
        return "that its model or tier allows" if self.source == TIER_DEFAULT else f"from {self.source}"

    def remaining_us(self, now_ns: int | None = None) -> int:
        """What is left; negative when it is over."""
        return (self.due_ns - (time.monotonic_ns() if now_ns is None else now_ns)) // 1000


@dataclass(frozen=True, slots=True)
class Budget:
    """The smallest budget that a request names, before its tier is known; None: none."""

    begin_ns: int
    budget_us: int | None = None
    source: str = TIER_DEFAULT

    def with_us(self, value: Any, unit_us: float, source: str, where: str) -> Budget:
        """The smaller of this and `value` units.

        Raises:
            RequestError: `invalid_deadline`.
        """
        # No unit is less than a microsecond. Compared before it is multiplied: an integer may be too large for a float.
        if (
            type(value) not in (int, float)
            or not 0 < value <= MAX_BUDGET_US
            or not 1 <= value * unit_us <= MAX_BUDGET_US
        ):
            raise RequestError(
                f"Expected a deadline of 0.001 ms to {MAX_BUDGET_US // 1_000_000} s at {where}, got {str(value)[:60]}",
                code="invalid_deadline",
            )
        budget_us = int(value * unit_us)
        if self.budget_us is not None and self.budget_us <= budget_us:
            return self
        return Budget(self.begin_ns, budget_us, source)

    def over(self, tier: Tier, default_us: int | None = None) -> Deadline | None:
        """The deadline of an answer in `tier`: its own bound (or `default_us`) where the request asked for nothing.

        None: no promise.
        """
        if self.budget_us is not None:
            return Deadline(self.begin_ns, self.budget_us, self.source)
        budget_us = tier.budget_us if default_us is None else default_us
        return None if budget_us is None else Deadline(self.begin_ns, budget_us)


def budget_of(headers: Iterable[tuple[bytes, bytes]], begin_ns: int) -> Budget:
    """What the headers ask for (names in lower case, no space around values).

    They are set by proxies, whose callers could not change what is refused: more than the longest budget is that one.

    Raises:
        RequestError: `invalid_deadline`.
    """
    budget = Budget(begin_ns)
    for name, value in headers:
        unit_us = HEADERS.get(name)
        if unit_us is None:
            continue
        text = name.decode("ascii")
        number = float(value) if DECIMAL.fullmatch(value) else value.decode("latin-1")
        if isinstance(number, float) and math.isfinite(number):
            number = min(number, MAX_BUDGET_US / unit_us)
        budget = budget.with_us(number, unit_us, text, f"header {text}")
    return budget
