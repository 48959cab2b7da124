"""How much of an event loop's time goes to what is not realtime, so that realtime keeps its own.

The server does not use it yet: see limits.py.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from typing import TYPE_CHECKING, Final, TypeAlias

from tiercel.errors import CapacityError

if TYPE_CHECKING:
    from collections.abc import Callable

    Wake: TypeAlias = Callable[[CapacityError | None], bool]

#: Of the loop's time, what is kept free: a queue in front of a server without any to spare grows without end.
RESERVE: Final = 0.1
#: What the others get of a loop that realtime alone keeps busy: enough for their waits to be finite.
MIN_SHARE: Final = 0.01
#: How often the share is worked out anew. Long enough to average some requests, and a tenth of what recovery may take.
WINDOW_NS: Final = 100_000_000
#: A worker that uses less than this of its loop has capacity to spare for a shadow.
IDLE_USE: Final = 0.5
#: libuv's timers count whole milliseconds.
TIMER_NS: Final = 1_000_000
MAX_TIMER_NS: Final = 10_000_000


class LoopShare:
    """A token bucket over measured time: near-realtime and everything else that is not realtime draws on it.

    The bucket fills with what realtime leaves over. The thread's CPU time, less what was charged here, is what realtime and
    the reading of requests use; `1 - RESERVE - that` is the share of everything else, worked out anew every `WINDOW_NS`.
    So an idle realtime tier gives its time away and a busy one gets it back within a window, without any setting.

    Whoever comes while the bucket is not empty begins at once; others wait in line and are let in one at a time as it fills,
    so that a burst becomes many short turns of the loop instead of a long one. Who could not begin in time, by what is
    charged and what those ahead cost on average, is refused at once. What work really took is charged when it is done:

        await share.enter(patience_us)
        begin_ns = time.monotonic_ns()
        try:
            ...                                      # without an await
        finally:
            share.leave(time.monotonic_ns() - begin_ns)

    The bucket's depth is such that a burst after a pause keeps the loop to itself for at most `turn_us`: while d is spent,
    `share` of it flows in again, so it lasts for `depth / (1 - share)`.

    Args:
        turn_us: see above.
        cost_us: of one piece of work, as far as known at the start; measured from then on.
        clock_ns: monotonic.
        cpu_ns: CPU time of the loop's thread, which is the one that makes this.
        call_later: the loop's, in seconds; None: the running one's.

    Attributes:
        share: of the loop's time, that is granted.
        use: of the loop's time, by everything, in the last window.

    Threads: the event loop's only.
    """

    def __init__(
        self,
        turn_us: int,
        cost_us: int = 200,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        cpu_ns: Callable[[], int] = time.thread_time_ns,
        call_later: Callable[[float, Callable[[], None]], object] | None = None,
    ) -> None:
        self._turn_ns, self._cost_ns = 1000 * turn_us, 1000.0 * cost_us
        self._clock_ns, self._cpu_ns = clock_ns, cpu_ns
        self.share = 1.0 - RESERVE
        self.use = 0.0
        self._tokens_ns = self._depth_ns
        self._filled_ns = self._window_ns = clock_ns()
        self._window_cpu_ns = cpu_ns()
        self._charged_ns = 0  # in this window
        self._call_later = call_later
        self._waiting: deque[tuple[int, Wake]] = deque()  # latest begin, and who
        self._n_inside = 0
        self._is_armed = self._is_pumping = False

    async def enter(self, patience_us: int) -> None:
        """Wait for time, before a request's body is parsed: refusing must cost less than answering. Then `leave`.

        Args:
            patience_us: how long it can wait and still be in time.

        Raises:
            CapacityError: its turn would come too late, or came too late after all.
        """
        entered: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def wake(error: CapacityError | None) -> bool:
            if entered.done():  # cancelled in line
                return False
            if error is None:
                entered.set_result(None)
            else:
                entered.set_exception(error)
            return True

        self.ask(patience_us, wake)
        try:
            await entered
        except asyncio.CancelledError:
            if entered.done() and not entered.cancelled() and entered.exception() is None:
                self.leave(0)  # it was let in and cancelled in the same turn
            raise

    def ask(self, patience_us: int, wake: Wake) -> None:
        """The same with a callback, which may be called before this returns.

        Args:
            patience_us: see `enter`.
            wake: called once: with None to begin and then `leave`, or with why not. Returns whether anybody is there still.

        Raises:
            CapacityError: its turn would come too late; `wake` is not called.
        """
        self._fill()
        wait_us = self.predicted_wait_us()
        if wait_us > patience_us:
            raise self._refusal(patience_us, wait_us)
        if self._tokens_ns >= 0 and not self._waiting:
            self._n_inside += 1
            if not wake(None):
                self._n_inside -= 1
            return
        self._waiting.append((self._clock_ns() + 1000 * patience_us, wake))
        self._pump()

    def leave(self, elapsed_ns: int) -> None:
        """End what was entered, once: charge what the work took; 0: it was not done."""
        self._n_inside -= 1
        if elapsed_ns > 0:
            self.spend(elapsed_ns)
            self._cost_ns += (elapsed_ns - self._cost_ns) / 16
        self._pump()

    def spend(self, elapsed_ns: int) -> None:
        """Charge work that nobody entered for: a reply that is written, a request that was refused."""
        self._fill()
        self._charged_ns += elapsed_ns
        self._tokens_ns -= elapsed_ns

    def predicted_wait_us(self) -> int:
        """Until work that is asked for now could begin, behind all who wait; 0: at once."""
        n_ahead = len(self._waiting)
        return max(math.ceil((n_ahead * self._cost_ns - self._tokens_ns) / self.share / 1000), 0)

    def is_idle(self) -> bool:
        """Whether there is time to spare for what nobody waits for."""
        self._fill()
        return not self._waiting and self._tokens_ns >= self._depth_ns / 2 and self.use < IDLE_USE

    @property
    def _depth_ns(self) -> float:
        return self._turn_ns * (1.0 - self.share)

    def _pump(self) -> None:
        """Let in whoever is next, one at a time: the next when that one has left."""
        if self._is_pumping:
            return
        self._is_pumping = True
        try:
            while self._waiting and not self._n_inside:
                self._fill()
                latest_ns, wake = self._waiting[0]
                late_us = (self._clock_ns() - latest_ns) // 1000
                if late_us > 0:  # dropped before it is begun, or under overload all would be done in full and in vain
                    self._waiting.popleft()
                    wake(self._refusal(-late_us, 0))
                    continue
                if self._tokens_ns < 0:
                    self._arm()
                    return
                self._waiting.popleft()
                self._n_inside += 1
                if not wake(None):
                    self._n_inside -= 1
        finally:
            self._is_pumping = False

    def _arm(self) -> None:
        if not self._is_armed:
            self._is_armed = True
            # Looked at again before long: the share may grow, and who becomes late in line must hear of it.
            wait_s = min(max(-self._tokens_ns / self.share, TIMER_NS), MAX_TIMER_NS) / 1e9
            (self._call_later or asyncio.get_running_loop().call_later)(wait_s, self._on_time)

    def _on_time(self) -> None:
        self._is_armed = False
        self._pump()

    def _refusal(self, patience_us: int, wait_us: int) -> CapacityError:
        return CapacityError(
            f"Expected the worker to have time within {max(patience_us, 0) / 1000:.3g} ms, it has some in "
            f"{max(wait_us, -patience_us) / 1000:.3g} ms: {self.share:.0%} of its time is left for this, the rest is for "
            f"realtime. Send less, or add workers.",
            predicted_wait_us=max(self.predicted_wait_us(), 1),
        )

    def _fill(self) -> None:
        now_ns = self._clock_ns()
        # What flows in while somebody waits for the timer is theirs, or a coarse timer would lose a part of the share.
        depth_ns = self._depth_ns + (2 * TIMER_NS * self.share if self._waiting else 0)
        self._tokens_ns = min(self._tokens_ns + (now_ns - self._filled_ns) * self.share, depth_ns)
        self._filled_ns = now_ns
        elapsed_ns = now_ns - self._window_ns
        if elapsed_ns >= WINDOW_NS:
            cpu_ns = self._cpu_ns()
            used_ns = cpu_ns - self._window_cpu_ns
            self.use = min(used_ns / elapsed_ns, 1.0)
            others = max(used_ns - self._charged_ns, 0) / elapsed_ns
            self.share = min(max(1.0 - RESERVE - others, MIN_SHARE), 1.0 - RESERVE)
            self._window_ns, self._window_cpu_ns, self._charged_ns = now_ns, cpu_ns, 0
