"""Who may join the queue: the promise that whoever is let in is in time, and how it is kept without much arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tiercel.serving.schedule import latecomers

if TYPE_CHECKING:
    from tiercel.serving.pace import Pace
    from tiercel.serving.schedule import Lines, Waiting


class Admission:
    """The door of one queue.

    Args:
        lines: who waits; read only, and complete from the start (`*_at` are 0).
        pace: how fast they move.

    Threads: the queue's.
    """

    def __init__(self, lines: Lines, pace: Pace) -> None:
        self._lines, self._pace = lines, pace

    def fits(self, newcomer: Waiting, free_ns: int, *, is_large: bool) -> bool:
        """Whether a newcomer will be in time, and everybody else as much as without it.

        Args:
            newcomer: not in the lines yet.
            free_ns: when the next batch can start.
            is_large: the line it would stand in.
        """
        terms, small, large = self._pace.terms, self._lines.small, self._lines.large
        n, due_ns, depth = newcomer.rest, newcomer.due_ns, self._lines.n_rows
        first_ns = min(due_ns, small[0].due_ns if small else due_ns, large[0].due_ns if large else due_ns)
        all_full_ns = free_ns + -(-(depth + n) // terms.best) * terms.best_ns
        if not self._lines.alone:
            # Everything that waits is done, in full batches, before anything is due: the order does not matter.
            if all_full_ns <= first_ns:
                self._lines.is_tight = False
                return True
            # Last of its line, and too late even if every row took as little as in the best batch.
            line, ahead = (large, self._lines.other_rows) if is_large else (small, self._lines.small_rows)
            if (not line or line[-1].due_ns <= due_ns) and free_ns + (ahead + n) * self._pace.cheapest_row_ns > due_ns:
                return False
        if is_large:
            if depth > terms.best and all_full_ns > due_ns:
                return False
        elif not self._lines.fits_small(n, due_ns, free_ns):
            return False
        elif not (large or self._lines.alone or self._lines.is_tight):
            return True
        late = latecomers(self._lines, free_ns, terms, newcomer, is_large=is_large)
        if late and (newcomer in late or not late <= latecomers(self._lines, free_ns, terms)):
            return False
        self._lines.is_tight = True
        return True
