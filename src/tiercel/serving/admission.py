"""Who may join the queue: the promise that whoever is let in is in time, and how it is kept without much arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tiercel.serving.queue_errors import no_room, too_short
from tiercel.serving.schedule import latecomers, wanted_by

if TYPE_CHECKING:
    from tiercel.serving.pace import Pace
    from tiercel.serving.schedule import Lines, Waiting
    from tiercel.serving.waiters import Waiter

#: What was learned so long ago, and asked for so often since, is doubted: who is refused for it would never teach otherwise.
DOUBT_NS, DOUBT_ASKED = 250_000_000, 16


class Admission:
    """The door of one queue.

    Args:
        lines: who waits; complete from the start (`*_at` are 0). Nobody is put in or taken out here.
        pace: how fast they move.

    Attributes:
        refused: how many, by reason.

    Threads: the queue's.
    """

    def __init__(self, lines: Lines, pace: Pace) -> None:
        self._lines, self._pace = lines, pace
        self._learned_ns = 0  # when a batch was last learned from
        self.refused = {"deadline": 0, "capacity": 0, "full": 0, "closing": 0}

    def learned(self, now_ns: int) -> None:
        """A batch has shown what it takes."""
        self._learned_ns, self._lines.n_asked = now_ns, 0

    def admit(self, waiter: Waiter, now_ns: int, *, stuck_us: int = 0) -> None:
        """Refuse, or return; a waiter that is let in knows its line (`is_large`).

        Args:
            waiter: not in the lines yet.
            now_ns: of the clock that its deadline is of.
            stuck_us: the running batch hangs, and nobody is let in for so long; 0: it does not.

        Raises:
            DeadlineError, CapacityError: as `Batcher.submit`.
        """
        lines, n, terms = self._lines, waiter.rest, self._pace.terms
        lines.n_asked += 1
        left_ns, needed_ns = waiter.due_ns - now_ns, terms.alone_ns(n)
        if self._pace.is_doubted and not self._is_idle:  # one is tried, and what it takes is not known yet
            running_ns = 0 if lines.ends_ns == 0 else self._pace.feared_ns(1)
            needed_ns = max(needed_ns, running_ns + self._pace.feared_ns(lines.n_rows + n))
        elif needed_ns > left_ns >= self._pace.hoped_ns(n) and self.is_doubtful(now_ns):
            self._pace.doubt()
            self._pace.tell(lines)
            lines.is_open = False  # until the one that is tried comes back
            terms = self._pace.terms
            needed_ns = terms.alone_ns(n)
        if needed_ns > left_ns:
            self.refused["deadline"] += 1
            raise too_short(n, needed_ns, left_ns)
        depth = lines.n_rows
        waiter.is_large = n > terms.best
        by_ns = wanted_by(waiter.due_ns, left_ns, needed_ns) if waiter.can_leave else waiter.due_ns
        if stuck_us:
            self._refuse("capacity", stuck_us, "its scorer has not returned for too long")
        elif depth and depth + n > self._pace.max_rows:
            wait_us = self.wait_us(n, now_ns) - left_ns // 1000
            self._refuse("full", wait_us, f"{depth} rows wait, as many as it holds")
        elif not self.fits(waiter, lines.free_ns(now_ns), is_large=waiter.is_large, by_ns=by_ns):
            wait_us = self.wait_us(n, now_ns)
            why = f"behind {depth} rows, {n} more are done in about {wait_us / 1000:.3f} ms: too late, or others would be late"
            self._refuse("capacity", wait_us - left_ns // 1000, why)

    def wait_us(self, n_rows: int, now_ns: int) -> int:
        """When `n_rows` that come now, behind everything that waits, would be done."""
        if self.is_doubtful(now_ns):
            return self.need_us(n_rows, now_ns)
        free_ns = self._lines.free_ns(now_ns)
        return int(free_ns - now_ns + self._pace.terms.all_ns(self._lines.n_rows + n_rows)) // 1000

    def need_us(self, n_rows: int, now_ns: int) -> int:
        """What scoring `n_rows` takes where nothing else waits."""
        self._lines.n_asked += 1
        needed_ns = self._pace.terms.alone_ns(n_rows)
        if self.is_doubtful(now_ns):
            needed_ns = min(needed_ns, self._pace.hoped_ns(n_rows))
        return needed_ns // 1000

    def is_doubtful(self, now_ns: int) -> bool:
        """Whether nothing happens here that would show how long batches take now, though many want to know."""
        return self._is_idle and self._lines.n_asked > DOUBT_ASKED and now_ns - self._learned_ns >= DOUBT_NS

    def fits(self, newcomer: Waiting, free_ns: int, *, is_large: bool, by_ns: int | None = None) -> bool:
        """Whether a newcomer will be in time, and everybody else as much as without it.

        Args:
            newcomer: not in the lines yet.
            free_ns: when the next batch can start.
            is_large: the line it would stand in.
            by_ns: when it wants to be done, at most `due_ns`; None: by then.
        """
        terms, small, large = self._pace.terms, self._lines.small, self._lines.large
        n, due_ns, depth = newcomer.rest, newcomer.due_ns, self._lines.n_rows
        by_ns = due_ns if by_ns is None else by_ns
        first_ns = min(by_ns, small[0].due_ns if small else due_ns, large[0].due_ns if large else due_ns)
        all_full_ns = free_ns + -(-(depth + n) // terms.best) * terms.best_ns
        if not self._lines.alone:
            # Everything that waits is done, in full batches, before anything is due: the order does not matter.
            if all_full_ns <= first_ns:
                self._lines.is_tight = False
                return True
            # Last of its line, and too late even if every row took as little as in the best batch.
            line, ahead = (large, self._lines.other_rows) if is_large else (small, self._lines.small_rows)
            if (not line or line[-1].due_ns <= due_ns) and free_ns + (ahead + n) * self._pace.cheapest_row_ns > by_ns:
                return False
        if is_large:
            if depth > terms.best and all_full_ns > by_ns:
                return False
        elif not self._lines.fits_small(n, due_ns, free_ns, by_ns):
            return False
        elif not (large or self._lines.alone or self._lines.is_tight):
            return True
        late = latecomers(self._lines, free_ns, terms, newcomer, is_large=is_large, by_ns=by_ns)
        if late and (newcomer in late or not late <= latecomers(self._lines, free_ns, terms)):
            return False
        self._lines.is_tight = True
        return True

    @property
    def _is_idle(self) -> bool:
        return self._lines.ends_ns == 0 and not self._lines.n_rows

    def _refuse(self, reason: str, wait_us: int, why: str) -> None:
        self.refused[reason] += 1
        raise no_room(why, max(self._pace.terms.best_ns // 1000, wait_us))
