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
        elif not self._fits_among_small(newcomer, free_ns):
            return False
        elif not (large or self._lines.alone or self._lines.is_tight):
            return True
        late = latecomers(self._lines, free_ns, terms, newcomer, is_large=is_large)
        if late and (newcomer in late or not late <= latecomers(self._lines, free_ns, terms)):
            return False
        self._lines.is_tight = True
        return True

    def _fits_among_small(self, newcomer: Waiting, free_ns: int) -> bool:
        """Whether it, and who is behind it, are in time by a forecast that nobody who comes later can spoil.

        The forecast: the next batch is cut short where the tightest request needs that, and every one after it is full.
        Only the first in line may have a batch cut short, and not below half the best size while more rows wait: a queue
        that promised each the last microsecond would keep its promises in ever smaller batches, and do less the more is
        asked of it. A newcomer does not move who is ahead of it, so only those behind need another look.
        """
        small, best, n, due_ns = self._lines.small, self._pace.terms.best, newcomer.rest, newcomer.due_ns
        before = after = self._next_cut(small[0].due_ns if small else None, free_ns)
        if not small or due_ns < small[0].due_ns:
            after = self._next_cut(due_ns, free_ns)
            if after[0] < min(before[0], self._lines.n_rows + n, (best + 1) // 2):
                return False
        rows = self._lines.small_rows + n
        for other in reversed(small):
            if other.due_ns <= due_ns:
                break
            if self._foreseen_ns(rows, *after) > other.due_ns >= self._foreseen_ns(rows - n, *before):
                return False
            rows -= other.rest
        return self._foreseen_ns(rows, *after) <= due_ns

    def _next_cut(self, first_due_ns: int | None, free_ns: int) -> tuple[int, int]:
        """The largest next batch for the first in line: rows, end. A full one if it is late in any case."""
        terms = self._pace.terms
        if first_due_ns is not None and free_ns + terms.best_ns > first_due_ns:
            cut = min(terms.best, terms.rows_within(first_due_ns - free_ns))
            if cut > 0:
                return cut, free_ns + terms.batch_ns(cut)
        return terms.best, free_ns + terms.best_ns

    def _foreseen_ns(self, rows: int, cut: int, cut_ns: int) -> int:
        """The end of the last of `rows`."""
        return cut_ns + max(0, -(-(rows - cut) // self._pace.terms.best)) * self._pace.terms.best_ns
