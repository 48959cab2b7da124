"""How far behind an event loop is, for requests that nobody has read yet.

A deadline begins when a request is read. Under overload requests wait before that, in the kernel, where a worker cannot
see them: a loop that is busy for 30 ms finds everything that came meanwhile at its next look, all of it fresh by its own
clock and late by the client's. So one timer is kept while there is traffic, and how late it runs says how long the loop's
turns are.

One estimate of what a request read at this moment may have waited: the lateness at the last turn's begin (it arrived, at
the earliest, when that turn began) plus how overdue the timer is now (it was read somewhere in this turn). It is an upper
bound, up to the timer's period: what passes is in time, and a long turn is cut short by its own refusals.

The server does not use it yet: see limits.py.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

#: Of the timer. libuv's timers count whole milliseconds; two of them cost a busy loop about a thousandth of its time.
PERIOD_US = 2_000


class LoopLag:
    """The lateness of one timer, which runs only while requests come. Pure but for `watch`.

    Args:
        clock_ns: monotonic.
        period_us: of the timer.

    Threads: the event loop's only.
    """

    def __init__(self, clock_ns: Callable[[], int] = time.monotonic_ns, period_us: int = PERIOD_US) -> None:
        self._clock_ns, self._period_ns = clock_ns, 1000 * period_us
        self._due_ns: int | None = None
        self._last_ns = 0
        self._is_active: Callable[[], bool] = bool
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def is_armed(self) -> bool:
        """Whether the timer runs."""
        return self._due_ns is not None

    def lag_us(self) -> int:
        """What a request read now may have waited before, in microseconds; 0 while the timer rests."""
        if self._due_ns is None:
            return 0
        return (self._last_ns + max(self._clock_ns() - self._due_ns, 0)) // 1000

    def arm(self) -> None:
        """The timer was started: it is due one period from now."""
        self._due_ns = self._clock_ns() + self._period_ns

    def run(self, *, again: bool) -> None:
        """The timer ran. `again`: it is started once more; otherwise there is no traffic and nothing behind."""
        self._last_ns = 0 if self._due_ns is None else max(self._clock_ns() - self._due_ns, 0)
        self._due_ns = None
        if again:
            self.arm()
        else:
            self._last_ns = 0

    def watch(self, loop: asyncio.AbstractEventLoop, is_active: Callable[[], bool]) -> None:
        """Let a loop's timer drive this.

        Args:
            loop: the worker's.
            is_active: whether a request came since it was asked last; the timer rests when none did.
        """
        self._loop, self._is_active = loop, is_active

    def wake(self) -> None:
        """Requests come: start the timer if it rests. Cheap enough for every connection and request."""
        if self._due_ns is None and self._loop is not None:
            self.arm()
            self._loop.call_later(self._period_ns / 1e9, self._tick)

    def _tick(self) -> None:
        again = self._is_active()
        self.run(again=again)
        if again and self._loop is not None:
            self._loop.call_later(self._period_ns / 1e9, self._tick)
