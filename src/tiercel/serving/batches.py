"""What a near-realtime queue has out for scoring: a batch, and the members of a failed one that are tried alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tiercel.serving.schedule import advance, next_batch

if TYPE_CHECKING:
    from concurrent.futures import Future

    from tiercel.serving.schedule import Lines, Terms
    from tiercel.serving.waiters import Waiter


class Trial:
    """A failed batch whose members are tried one by one."""

    def __init__(self) -> None:
        self.strikes = 0
        self.has_passed = False


class Suspect:
    """One member of a failed batch: rows `start` to `stop` of a request."""

    def __init__(self, waiter: Waiter, start: int, stop: int, trial: Trial) -> None:
        self.waiter, self.start, self.stop, self.trial = waiter, start, stop, trial
        self.due_ns, self.rest = waiter.due_ns, stop - start


class Batch:
    """What is being scored: (request, first row, end) of each part; how many rows that is."""

    def __init__(
        self, parts: list[tuple[Waiter, int, int]], n_rows: int, began_ns: int, ends_ns: int, trial: Trial | None
    ) -> None:
        self.parts, self.n_rows = parts, n_rows
        self.began_ns, self.ends_ns = began_ns, ends_ns
        self.trial = trial
        self.done: Future[Any] | None = None  # once it is scored
        self.done_ns = 0

    def leaves_ns(self) -> int | None:
        """When the first of those has to be told who can go elsewhere then; None: nobody can."""
        return min((each.due_ns for each, _, _ in self.parts if each.can_leave and not each.done()), default=None)


def cut(lines: Lines, now_ns: int, terms: Terms) -> tuple[list[tuple[Waiter, int, int]], Trial | None]:
    """Take the next batch out of its lines, whoever waits: its parts, and the trial that it is of.

    Where only small requests wait `lines.cut` does the same, quicker.
    """
    chosen = next_batch(lines, now_ns, terms)
    parts: list[tuple[Waiter, int, int]] = []
    trial = None
    for item, take in chosen:
        if isinstance(item, Suspect):
            parts.append((item.waiter, item.start, item.stop))
            trial = item.trial
        else:
            waiter: Waiter = item  # type: ignore[assignment]
            start = waiter.n_rows - waiter.rest
            parts.append((waiter, start, start + take))
    advance(lines, chosen)
    del lines.small[: lines.small_at], lines.large[: lines.large_at], lines.alone[: lines.alone_at]
    lines.small_at = lines.large_at = lines.alone_at = 0
    lines.tell()
    return parts, trial
