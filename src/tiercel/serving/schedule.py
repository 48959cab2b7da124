"""Which waiting rows are scored next, and whether that leaves everybody in time. Pure functions; no clock, no threads.

The queue and the test that guards its door run the same code, `next_batch`: what `latecomers` foresees is what happens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from tiercel._hot.lines import Lines, wanted_by

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Lines", "Terms", "Waiting", "advance", "latecomers", "next_batch", "wanted_by"]


class Waiting(Protocol):
    """Rows of one request. `rest` of them are in no batch yet."""

    due_ns: int
    rest: int


@dataclass(frozen=True, slots=True)
class Terms:
    """What batches take, now.

    Args:
        best: rows of the largest batch.
        best_ns: what it takes until the next one can start, its scores told.
        batch_ns: what a batch of n rows takes.
        rows_within: the most rows that take at most so many nanoseconds.
    """

    best: int
    best_ns: int
    batch_ns: Callable[[int], int]
    rows_within: Callable[[int], int]

    def all_ns(self, n_rows: int) -> int:
        """One batch after the other, of many requests, until `n_rows` are done."""
        full, rest = divmod(n_rows, self.best)
        return full * self.best_ns + (self.batch_ns(rest) if rest else 0)

    def alone_ns(self, n_rows: int) -> int:
        """The same for one request, where nobody else waits."""
        full, rest = divmod(n_rows, self.best)
        return full * self.batch_ns(self.best) + (self.batch_ns(rest) if rest else 0)


def next_batch(lines: Lines, now_ns: int, terms: Terms) -> list[tuple[Waiting, int]]:
    """The batch that starts at `now_ns`: requests and how many of their rows, by earliest deadline. Changes nothing.

    - It ends when it is full, or where one more row would make the tightest request of it late; where that one is late
      anyway nothing is gained by a small batch, and a queue that is behind must not get slower.
    - Rows fill it exactly: a request may be cut in two, so that every batch but the last is full and what stands before a
      request is a number of rows and nothing else.
    - A large request leaves half of each batch to the small ones behind it, if they want it and it can afford it. So no
      request waits longer than for one part of a large one, except where the deadlines leave no choice.

    Returns:
        Empty only when nothing waits.
    """
    small, large, at, large_at = lines.small, lines.large, lines.small_at, lines.large_at
    n_small, n_large = len(small), len(large)
    if lines.alone_at < len(lines.alone):
        suspect = lines.alone[lines.alone_at]
        if (at == n_small or suspect.due_ns <= small[at].due_ns) and (
            large_at == n_large or suspect.due_ns <= large[large_at].due_ns
        ):
            return [(suspect, suspect.rest)]
    batch: list[tuple[Waiting, int]] = []
    n, room, is_bound, small_rows = 0, terms.best, False, lines.small_rows
    while n < room:
        first = small[at] if at < n_small else None
        big = large[large_at] if large_at < n_large else None
        if big is not None and (first is None or big.due_ns < first.due_ns):
            item = big
            kept = 0 if first is None else _kept_for_small(big, first, min(small_rows, terms.best // 2), now_ns, terms)
            take = min(big.rest, room - n - kept)
            large_at = large_at + 1 if take == big.rest else n_large  # once in a batch, and nobody of its line after it
            if take <= 0:
                continue
        elif first is not None:
            item, take = first, min(first.rest, room - n)
            at += 1
            small_rows -= take
        else:
            break
        if not is_bound and take == item.rest and now_ns + terms.batch_ns(n + take) <= item.due_ns:
            is_bound = True
            if now_ns + terms.best_ns > item.due_ns:
                room = min(room, max(n + take, terms.rows_within(item.due_ns - now_ns)))
        batch.append((item, take))
        n += take
    return batch


def _kept_for_small(big: Waiting, first: Waiting, wanted: int, now_ns: int, terms: Terms) -> int:
    """Rows of the next batch that `big` leaves to the small requests behind it, of which `first` is the tightest."""
    share = terms.best - terms.best // 2
    if now_ns + math.ceil(big.rest / share) * terms.best_ns > big.due_ns:
        return 0
    if now_ns + terms.best_ns > first.due_ns:  # a full batch would be too long for it
        fit = terms.rows_within(first.due_ns - now_ns)
        if fit >= first.rest:
            return max(wanted, terms.best - (fit - min(first.rest, wanted)))
    return wanted


@dataclass(slots=True)
class _Job:
    due_ns: int
    rest: int
    of: object


def latecomers(
    lines: Lines,
    begin_ns: int,
    terms: Terms,
    newcomer: Waiting | None = None,
    *,
    is_large: bool = False,
    by_ns: int | None = None,
) -> set[object]:
    """Who would be late if nobody else came and every batch took what the curve says.

    Args:
        lines: who waits; not changed.
        begin_ns: when the next batch can start.
        terms: what batches take.
        newcomer: somebody who does not wait yet; if late, it is the only one returned.
        is_large: the line of the newcomer.
        by_ns: when it is late, where that is before it is due.

    Takes time linear in the number of requests and batches.
    """
    small, large, alone = (
        [_Job(item.due_ns, item.rest, item) for item in line[at:]]
        for line, at in (
            (lines.small, lines.small_at),
            (lines.large, lines.large_at),
            (lines.alone, lines.alone_at),
        )
    )
    small_rows = lines.small_rows
    if newcomer is not None:
        line = large if is_large else small
        place = len(line)
        while place and line[place - 1].due_ns > newcomer.due_ns:
            place -= 1
        line.insert(place, _Job(newcomer.due_ns, newcomer.rest, newcomer))
        small_rows += 0 if is_large else newcomer.rest
    ahead = Lines(small, large, alone, small_rows)  # the other rows are of no interest here
    late: set[object] = set()
    while batch := next_batch(ahead, begin_ns, terms):
        begin_ns += terms.batch_ns(sum(take for _, take in batch))
        advance(ahead, batch)
        for item, _ in batch:
            job: _Job = item  # type: ignore[assignment]
            if job.rest:
                continue
            if job.of is newcomer:
                if begin_ns > (job.due_ns if by_ns is None else by_ns):
                    return {newcomer}
            elif begin_ns > job.due_ns:
                late.add(job.of)
    return late


def advance(lines: Lines, batch: list[tuple[Waiting, int]]) -> None:
    """Take a batch out of its lines."""
    for item, take in batch:
        item.rest -= take
        if lines.alone_at < len(lines.alone) and lines.alone[lines.alone_at] is item:
            lines.alone_at += 1
            lines.other_rows -= take
            continue
        if lines.large_at < len(lines.large) and lines.large[lines.large_at] is item:
            lines.large_at += item.rest == 0
            lines.other_rows -= take
            continue
        lines.small_rows -= take
        lines.small_at += item.rest == 0
