"""What a thread waits for its turns of the processor, as the kernel counts it, and how much longer work takes for it.

On a core that others use as well, scoring takes several times what it computes. Taken for slow rows, that makes small
batches look best: most of what they take is fixed, so the fewer rows there are, the more slowly each is scored. Told
apart, the cost curve goes on following what scoring computes, and all of it is so many times as long.
"""

from __future__ import annotations

import contextlib
import os
import threading

#: Of the thread that opens it: nanoseconds on the processor, nanoseconds ready and waiting for it, turns.
_FILE = "/proc/thread-self/schedstat"

#: Weight of one batch; that of the first ones is larger.
WEIGHT = 1 / 16
#: About one turn of another thread: the kernel's usual slice.
TURN_NS = 3_000_000
#: The most that one batch's wait counts as: so many times what was foreseen, and a turn.
STALL = 3.0
#: How much is supposed of the way waits grow with work, before batches of different work show it: it weighs as much as batches
#: whose work has a variance of this part of its mean's square, and of the square of this part of a turn, for one wait for a
#: turn says nothing of work that differs by less.
SUPPOSED, SUPPOSED_TURN = 0.1, 1 / 8


class _Count:
    """The open file of one thread; closed when the thread ends, with its locals."""

    def __init__(self) -> None:
        self._descriptor = -1
        with contextlib.suppress(OSError):  # not Linux, or a kernel that does not count
            self._descriptor = os.open(_FILE, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def waited_ns(self) -> int:
        if self._descriptor < 0:
            return 0
        try:
            return int(os.pread(self._descriptor, 64, 0).split()[1])
        except (OSError, ValueError, IndexError):
            return 0


class _Local(threading.local):
    def __init__(self) -> None:
        self.count = _Count()


_of_thread = _Local()


def waited_ns() -> int:
    """Nanoseconds that the calling thread has been ready to run and has not run, since it began; always 0 if nobody counts.

    What a hypervisor takes from the processor is not in it, nor what the thread waits for a lock. Threads: any.

    PERF: 3 us; a batch on a thread takes two, and 100 us to be handed over and back.
    """
    return _of_thread.count.waited_ns()


class Turns:
    """How much longer work takes because its thread waits for its turns.

    A thread that shares a core gets a part of it, so what it waits grows with what it works; and it waits for somebody else's
    turn to end, however little it works. The part that grows is told by regression of one on the other, with exponentially
    decaying weights; for want of batches that differ, waits of who works for less than a turn are supposed to be of the second
    kind, and of who works for many of the first.

    Attributes:
        stretch: work and the waits that grow with it, by the work; at least 1.

    Threads: one at a time.
    """

    def __init__(self) -> None:
        self.stretch = 1.0
        self._n = 0
        self._work_ns = self._wait_ns = 0.0  # means
        self._variance = self._covariance = 0.0  # of work; of work and waits

    def learn(self, work_ns: int, wait_ns: int) -> None:
        """A batch worked so long, and its thread waited so long meanwhile."""
        self._n += 1
        weight = max(WEIGHT, 1 / self._n)
        worked = work_ns - self._work_ns
        foreseen_ns = max(0.0, self._wait_ns + (self.stretch - 1) * worked)
        waited = min(wait_ns, STALL * foreseen_ns + TURN_NS) - self._wait_ns
        self._work_ns += weight * worked
        self._wait_ns += weight * waited
        self._variance += weight * ((1 - weight) * worked * worked - self._variance)
        self._covariance += weight * ((1 - weight) * worked * waited - self._covariance)
        weighs = SUPPOSED * self._work_ns * self._work_ns + (SUPPOSED_TURN * TURN_NS) ** 2
        supposed = self._wait_ns / (self._work_ns + TURN_NS)
        slope = (self._covariance + weighs * supposed) / (self._variance + weighs)
        self.stretch = 1 + max(0.0, min(self._wait_ns / max(1.0, self._work_ns), slope))
