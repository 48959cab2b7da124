"""What each tier may hold and use of a worker, so that none takes another's place. Derived, never configured.

A worker is one event loop, so a tier's "slots" are not threads. What can run out, and who bounds it:

- **realtime** is answered inline, in the turn that read it. It has no queue of ours, hence nothing to partition: its queue
  is the kernel's. Where requests have deadlines that queue is kept short against these: of near-realtime requests first,
  and then of its own, as many are refused as that takes, and whoever was refused is read later (`_hot/aside.pxd`).
- **near-realtime** waits in a queue with an admission of its own (by deadline, of which `http/socket_wait.py` takes what a
  request waited unread). What it takes from the others is the loop's time - some 15 us a request on the compiled path -
  and memory, of which a `Partition` bounds what the general path holds.
- **batch** runs in other processes. What it takes here is the submission of jobs: they are written down one after the other
  in a thread beside the loop, which gets the interpreter back within a switch interval, and another `Partition` bounds how
  many wait for that. (How many jobs wait to be run is the job store's.)

A realtime request never asks for a place in a `Partition`, so the others cannot take one from it. They can still delay it.
"""

from __future__ import annotations

import math
import time
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from tiercel.errors import CapacityError
from tiercel.types import Tier

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

#: Bodies are decoded at about this rate (JSON to Python values; the slowest format).
DECODED_BYTES_PER_US: Final = 50
#: About what writing a job down takes, synced; measured from the first on.
SUBMISSION_US: Final = 10_000
#: Whoever is told to come back later than this will not.
MAX_RETRY_S: Final = 600


class Partition:
    """Room for so many requests of one tier, and for so many bytes of their bodies. No queue: who finds it full is refused.

    Args:
        name: for messages.
        max_running: requests at once.
        max_bytes: of their bodies together. One body larger than this still has room where nobody else is.
        held_us: how long one stays, as far as known at the start; measured from then on.
        clock_ns: monotonic.

    Threads: the event loop's only.
    """

    def __init__(
        self,
        name: str,
        max_running: int,
        max_bytes: int,
        held_us: int,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.name, self.max_running, self.max_bytes = name, max_running, max_bytes
        self._clock_ns = clock_ns
        self._held_us = float(held_us)
        self.n_running = 0
        self.n_bytes = 0

    def enter(self, n_bytes: int = 0) -> Stay:
        """Take a place until the stay is left (it is a context manager).

        Raises:
            CapacityError: there is none.
        """
        is_full = self.n_running >= self.max_running
        if is_full or (self.n_running > 0 and self.n_bytes + n_bytes > self.max_bytes):
            holds = (
                f"at most {self.max_running} requests"
                if is_full
                else f"at most {self.max_bytes} bytes of bodies, of which {self.n_bytes} are taken, got {n_bytes} more"
            )
            raise CapacityError(
                f"Expected {self.name} to have room, it holds {holds}. Try again in "
                f"{self.predicted_wait_us() / 1000:.3g} ms, or send fewer at once.",
                predicted_wait_us=self.predicted_wait_us(),
            )
        self.n_running += 1
        self.n_bytes += n_bytes
        return Stay(self, n_bytes, self._clock_ns())

    def predicted_wait_us(self) -> int:
        """Until somebody leaves: those who are inside leave evenly over the time that one stays. At least 1."""
        return max(1, math.ceil(self._held_us / max(self.n_running, 1)))

    def leave(self, stay: Stay) -> None:
        """Give a place back; once."""
        self.n_running -= 1
        self.n_bytes -= stay.n_bytes
        # An average over about the last 16 stays: a prediction for the next seconds, not a statistic.
        self._held_us += ((self._clock_ns() - stay.begin_ns) / 1000 - self._held_us) / 16


class Stay:
    """A place in a partition. Leaving twice is leaving once."""

    __slots__ = ("_partition", "begin_ns", "n_bytes")

    def __init__(self, partition: Partition, n_bytes: int, begin_ns: int) -> None:
        self._partition: Partition | None = partition
        self.n_bytes, self.begin_ns = n_bytes, begin_ns

    def is_in(self, partition: Partition) -> bool:
        """Whether it is a place there, and not left."""
        return self._partition is partition

    def leave(self) -> None:
        """Give the place back."""
        partition, self._partition = self._partition, None
        if partition is not None:
            partition.leave(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.leave()


@dataclass(frozen=True, slots=True)
class TierProfile:
    """What limits need of a model's measured cost."""

    tier: Tier
    deadline_us: int  # the model's own, or its tier's
    p99_us: int  # of answering one row
    rows_per_s: float  # of one core at its best batch size


@dataclass(frozen=True, slots=True)
class PartitionLimits:
    """Bounds of a `Partition`."""

    max_running: int
    max_bytes: int
    held_us: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What one worker holds to.

    `has_realtime`: whether a model is served in that tier.
    """

    has_realtime: bool
    near_realtime: PartitionLimits
    batch: PartitionLimits


def derive_limits(profiles: Mapping[str, TierProfile], n_cores: int, max_body_bytes: int) -> Limits:
    """The limits of a worker that serves these models.

    Args:
        profiles: by model name; models without one (not measured yet) bound nothing.
        n_cores: that this worker's threads may use.
        max_body_bytes: of one request.
    """
    near = [each for each in profiles.values() if each.tier is Tier.NEAR_REALTIME]
    near_us = max((each.deadline_us for each in near), default=Tier.NEAR_REALTIME.budget_us or 0)
    # Little's law: more than a deadline's worth of answers cannot be waiting and in time. This is a bound of memory behind
    # the queue's own admission, which knows each request's cost; so the fastest model counts, and twice.
    # Of models whose cost nobody knows, the queue learns it; until then nothing can be derived.
    answers = max((each.deadline_us / 1e6 * each.rows_per_s * n_cores for each in near), default=math.inf)
    max_near = math.ceil(max(min(2 * answers, 10_000), 16))
    # What the loop could not decode within a deadline would be late; a few of the largest must fit in any case.
    near_bytes = max(near_us * DECODED_BYTES_PER_US, 4 * max_body_bytes)
    return Limits(
        any(each.tier is Tier.REALTIME for each in profiles.values()),
        PartitionLimits(max_near, near_bytes, max((each.p99_us for each in near), default=near_us)),
        # They are written down one after the other, so these are as many as are done within what a near-realtime answer may
        # take; longer nobody should wait to be told that his job is accepted.
        PartitionLimits((Tier.NEAR_REALTIME.budget_us or 0) // SUBMISSION_US, 4 * max_body_bytes, SUBMISSION_US),
    )


def describe(limits: Limits) -> list[str]:
    """The limits that a worker enforces, in words, one line for each tier; printed when a server starts."""
    near = limits.near_realtime
    realtime = (
        "realtime: no model is served in it" if not limits.has_realtime else "realtime: answered inline, never queued"
    )
    others = (
        f"near-realtime: at most {near.max_running} requests with {near.max_bytes / 2**20:.3g} MiB of bodies at once, "
        f"each taken only where its measured cost fits its deadline"
    )
    batch = limits.batch
    jobs = (
        f"batch: at most {batch.max_running} submissions with {batch.max_bytes / 2**20:.3g} MiB of bodies at once, written down "
        f"one after the other; jobs run in a process of their own"
    )
    return [realtime, others, jobs]


def retry_after_ms(predicted_wait_us: int, request_id: str = "") -> int:
    """When to come back, in milliseconds: not before there is room, and not all at once.

    Whoever was refused in one instant would return in one instant. So each is told a time between one and two waits,
    by a hash of its request's id: the same request always gets the same, without a random number.
    """
    base_ms = min(max(1, math.ceil(predicted_wait_us / 1000)), 1000 * MAX_RETRY_S)
    return base_ms + int(_spread(request_id) * (base_ms + 1))


def retry_after_s(predicted_wait_us: int, request_id: str = "") -> int:
    """The same as the `Retry-After` header has it: whole seconds, at least 1.

    It cannot be as exact as the milliseconds, so it spreads over at least two values.
    """
    base_s = min(max(1, math.ceil(predicted_wait_us / 1e6)), MAX_RETRY_S)
    return base_s + int(_spread(request_id) * (base_s + 1))


def _spread(request_id: str) -> float:
    return zlib.crc32(request_id.encode("utf-8", "backslashreplace")) / 2**32
