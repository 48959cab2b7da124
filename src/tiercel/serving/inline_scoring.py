"""Whether a batch is scored where it stands, on the event loop, or handed to a thread.

Handing over and back takes two switches of threads, twice the GIL and a turn of the event loop: some 100 us of a core, while
a small network scores 64 rows in 25 us. The loop must not be kept from reading by a scorer that takes long, so it is not
enough that the cost curve, measured in another process, calls it quick: its first batches here run on threads and show it.
"""

from __future__ import annotations

#: A batch that is scored within this in half of all cases is scored inline. Twice what handing it over costs: a thread also
#: waits for the GIL, and what is learned of a scorer there would keep it there.
INLINE_NS = 200_000
#: So many batches come first. From one on that fails inline or takes `SLOW` times as long, so many are scored on threads,
#: itself counted.
EARNED_BATCHES, SLOW = 64, 10
#: All queues of a worker: this part of the time is for scoring inline, and as much at once.
SHARE, BURST_NS = 0.5, 1_000_000


class Allowance:
    """What all queues of a worker may take of the event loop. Threads: the event loop's only."""

    def __init__(self) -> None:
        self._left_ns, self._at_ns = float(BURST_NS), 0

    def has(self, ns: int, now_ns: int) -> bool:
        """Whether so much is left now."""
        self._left_ns = min(BURST_NS, self._left_ns + SHARE * (now_ns - self._at_ns))
        self._at_ns = now_ns
        return self._left_ns >= ns

    def spend(self, ns: int) -> None:
        """So much was taken."""
        self._left_ns -= ns


class InlineScoring:
    """Of one queue.

    Args:
        most_ns: what a batch may take; 0: none is scored inline.
        allowance: that it shares with others.

    Threads: the event loop's only.
    """

    def __init__(self, most_ns: int = INLINE_NS, allowance: Allowance | None = None) -> None:
        self._most_ns, self._allowance = most_ns, allowance or Allowance()
        self._first = EARNED_BATCHES

    def suits(self, number: int, typical_ns: int, now_ns: int) -> bool:
        """Whether the queue's batch of this number, which usually takes `typical_ns`, is scored inline."""
        return number >= self._first and typical_ns <= self._most_ns and self._allowance.has(typical_ns, now_ns)

    def note(self, number: int, took_ns: int, *, has_failed: bool) -> None:
        """Batch `number` was scored inline."""
        self._allowance.spend(took_ns)
        if has_failed or took_ns > SLOW * self._most_ns:
            self._first = number + EARNED_BATCHES
