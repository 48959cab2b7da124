"""Who waits in a near-realtime queue: the rows of an accepted request, how far they are, and how its answer is given.

There are two kinds. A coroutine awaits a future; a connection of the compiled protocol has a seat, and is called.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from tiercel._hot.lines import Seat, leave_by

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["FutureWaiter", "Seat", "Waiter", "leave_by"]


class FutureWaiter(asyncio.Future["NDArray[np.float64]"]):
    """One accepted request: the future its client awaits, and the rows that are still to be scored."""

    def __init__(
        self, cancelled: Callable[[Waiter], None], rows: NDArray[np.float32], due_ns: int, *, loop: Any
    ) -> None:
        super().__init__(loop=loop)
        self._tell_cancelled = cancelled
        self.rows = rows
        self.due_ns = due_ns
        self.n_rows = self.rest = self.unscored = len(rows)  # not in a batch yet; not scored yet
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


#: Who waits.
Waiter = FutureWaiter | Seat
