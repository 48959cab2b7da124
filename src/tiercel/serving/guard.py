"""A challenger that fails is taken out of the rollout; the champion's clients notice nothing.

Whenever a challenger raises, or scores something that is no number, the champion answers that request. Doing so costs the
challenger's time on top of the champion's, and a challenger that fails once in a while fails always soon; so after a few
failures nobody is sent to it any more, until its version changes or, after a while, one request finds it mended.
"""

from __future__ import annotations

import enum
import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

#: This many failures ...
MAX_FAILURES = 5
#: ... within this time take a version out ...
WINDOW_NS = 60_000_000_000
#: ... for this long; twice as long after each attempt that fails ...
PAUSE_NS = 30_000_000_000
#: ... but no longer than this.
MAX_PAUSE_NS = 600_000_000_000


class State(enum.StrEnum):
    """Of a version under guard."""

    CLOSED = "closed"  # asked as if there were no guard
    OPEN = "open"  # not asked
    PROBING = "probing"  # one request asks it, the others do not


class Guard:
    """The circuit breaker of one model's challenger in one worker. A pure state machine over an injected clock.

    Each request that is let through gets a ticket, and its outcome counts only in the state that let it through: what was
    begun before the circuit opened neither closes it again nor counts against a probe.

    Args:
        model: its name, for the messages.
        max_failures: so many within `window_ns` (of the first to the last, inclusive) open the circuit.
        window_ns: see there.
        pause_ns: how long it stays open before one request may try; doubles with each attempt that fails.
        max_pause_ns: bound of that.
        clock_ns: monotonic.

    Threads: the event loop's only.
    """

    def __init__(
        self,
        model: str,
        *,
        max_failures: int = MAX_FAILURES,
        window_ns: int = WINDOW_NS,
        pause_ns: int = PAUSE_NS,
        max_pause_ns: int = MAX_PAUSE_NS,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._model = model
        self._window_ns, self._first_pause_ns, self._max_pause_ns = window_ns, pause_ns, max_pause_ns
        self._clock_ns = clock_ns
        self._failures: deque[int] = deque(maxlen=max_failures)
        self._version: int | None = None
        self._epoch = 0  # tickets of another one are void
        self._pause_ns = pause_ns
        self._until_ns = 0
        self._why = ""
        self.state = State.CLOSED

    def admit(self, version: int) -> int | None:
        """A ticket for `settle` if the version may be asked now; None: let the champion answer."""
        if version != self._version:
            self._version = version
            self._failures.clear()
            self._pause_ns = self._first_pause_ns
            self._enter(State.CLOSED)
        if self.state is State.CLOSED:
            return self._epoch
        now_ns = self._clock_ns()
        if now_ns < self._until_ns:
            return None
        # A probe that was never settled (its client left) must not keep the circuit open for ever: the next may try.
        self._enter(State.PROBING)
        self._until_ns = now_ns + self._pause_ns
        return self._epoch

    def settle(self, ticket: int, failure: str | None = None) -> None:
        """Say how the request of a ticket ended.

        Args:
            ticket: of `admit`; needs no settling where the request ended without the version's doing (a client left).
            failure: what was wrong, in words; None: it answered.
        """
        if ticket != self._epoch:
            return
        if failure is None:
            if self.state is State.PROBING:
                self._failures.clear()
                self._pause_ns = self._first_pause_ns
                self._enter(State.CLOSED)
            return
        now_ns = self._clock_ns()
        self._why = failure
        if self.state is State.PROBING:
            self._pause_ns = min(2 * self._pause_ns, self._max_pause_ns)
            self._open(now_ns)
            return
        self._failures.append(now_ns)
        if len(self._failures) == self._failures.maxlen and now_ns - self._failures[0] <= self._window_ns:
            self._open(now_ns)

    @property
    def problem(self) -> str | None:
        """Why the challenger answers nobody, in words for `/readyz`; None while it may."""
        if self.state is State.CLOSED:
            return None
        wait_s = max(self._until_ns - self._clock_ns(), 0) / 1e9
        again = "It is being tried again" if self.state is State.PROBING else f"It is tried again in {wait_s:.0f} s"
        return (
            f"model {self._model}: challenger version {self._version} is out after {self._failures.maxlen} failures, the "
            f"champion answers for it. The last failure: {self._why}. {again}, or when another version is the challenger."
        )

    def _open(self, now_ns: int) -> None:
        self._enter(State.OPEN)
        self._until_ns = now_ns + self._pause_ns

    def _enter(self, state: State) -> None:
        self.state = state
        self._epoch += 1
