"""Who waits in a near-realtime queue: the rows of an accepted request, how far they are, and how its answer is given.

There are two kinds. A coroutine awaits a future; the compiled protocol, whose connection waits, is called.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = logging.getLogger("tiercel.serving")

#: `answer(scores, None)` or `answer(None, error)`.
AnswerCall = Callable[["NDArray[np.float64] | None", "Exception | None"], None]


class FutureWaiter(asyncio.Future["NDArray[np.float64]"]):
    """One accepted request: the future its client awaits, and the rows that are still to be scored."""

    def __init__(
        self, cancelled: Callable[[Waiter], None], rows: NDArray[np.float32], due_ns: int, *, loop: Any
    ) -> None:
        super().__init__(loop=loop)
        self._tell_cancelled = cancelled
        self.rows = rows
        self.due_ns = due_ns
        self.rest = self.unscored = len(rows)  # not in a batch yet; not scored yet
        self.is_large = False
        self.is_suspect = False
        self.can_leave = False  # somebody else answers in time what has no scores when it is due
        self.scores: NDArray[np.float64] | None = None  # of a request in several parts

    def cancel(self, msg: Any | None = None) -> bool:
        """The client is gone: leave the queue at once. What runs already is scored, and dropped."""
        if not super().cancel(msg=msg):
            return False
        self._tell_cancelled(self)
        return True


class CallWaiter:
    """The same for one who is called. Its interface is the part of a future's that a queue uses."""

    __slots__ = (
        "_answer", "_is_done", "_tell_cancelled", "can_leave", "due_ns", "is_large", "is_suspect", "rest", "rows", "scores", "unscored",
    )  # fmt: skip

    def __init__(
        self, cancelled: Callable[[Waiter], None], rows: NDArray[np.float32], due_ns: int, answer: AnswerCall
    ) -> None:
        self._tell_cancelled, self._answer = cancelled, answer
        self.rows = rows
        self.due_ns = due_ns
        self.rest = self.unscored = len(rows)
        self.is_large = self.is_suspect = self.can_leave = self._is_done = False
        self.scores: NDArray[np.float64] | None = None

    def done(self) -> bool:
        """Whether it has its answer, or wants none any more."""
        return self._is_done

    def set_result(self, scores: NDArray[np.float64]) -> None:
        """Answer with scores."""
        self._end(scores, None)

    def set_exception(self, error: Exception) -> None:
        """Answer with an error."""
        self._end(None, error)

    def cancel(self) -> bool:
        """As of the other kind."""
        if self._is_done:
            return False
        self._is_done = True
        self._tell_cancelled(self)
        return True

    def _end(self, scores: NDArray[np.float64] | None, error: Exception | None) -> None:
        self._is_done = True
        try:
            self._answer(scores, error)
        except Exception:  # the queue has others to answer
            log.exception("A queued request could not be answered")


Waiter = FutureWaiter | CallWaiter
