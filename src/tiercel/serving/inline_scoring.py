"""Whether a batch is scored where it stands, on the event loop, or handed to a thread.

Handing over and back takes two switches of threads, twice the GIL and a turn of the event loop: some 100 us of a core, while
a small network scores 64 rows in 25 us. The loop must not be kept from reading by a scorer that takes long, so it is not
enough that the cost curve, measured in another process, calls it quick: its first batches here run on threads and show it.
"""

from __future__ import annotations

#: A batch that is scored within this in half of all cases is scored inline. Twice what handing it over costs: a thread also
#: waits for the GIL, and what is learned of a scorer there would keep it there.
INLINE_NS = 200_000
#: So many batches on threads come first, and after one that fails inline or takes `SLOW` times as long.
EARNED_BATCHES, SLOW = 64, 10


class InlineScoring:
    """Of one queue.

    Args:
        most_ns: what a batch may take; 0: none is scored inline.

    Threads: the event loop's only.
    """

    def __init__(self, most_ns: int = INLINE_NS) -> None:
        self._most_ns = most_ns
        self._first = EARNED_BATCHES

    def suits(self, number: int, typical_ns: int) -> bool:
        """Whether the queue's batch of this number, which usually takes `typical_ns`, is scored inline."""
        return number >= self._first and typical_ns <= self._most_ns

    def note(self, number: int, took_ns: int | None) -> None:
        """Batch `number` was scored inline; None: it failed."""
        if took_ns is None or took_ns > SLOW * self._most_ns:
            self._first = number + EARNED_BATCHES
