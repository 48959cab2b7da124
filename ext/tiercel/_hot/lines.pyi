from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tiercel._hot.counters import WorkerCounters
from tiercel._hot.plan import Prepared
from tiercel._hot.protocol import HotProtocol

def leave_by(due_ns: int, budget_ns: int, needed_ns: int, lag_ns: int) -> int: ...
def wanted_by(due_ns: int, left_ns: int, needed_ns: int) -> int: ...

class Seat:
    """A question of the compiled path in a queue.

    Args:
        prepared: the question.
        hot: its connection; `hot.complete(prepared, scores, error)` is called once, unless the seat is cancelled.
        due_ns: of the monotonic clock.
        can_leave: somebody else answers what has no scores by then.
    """

    prepared: Prepared
    tell_cancelled: Callable[[Any], None]
    scores: NDArray[np.float64] | None
    due_ns: int
    rest: int
    unscored: int
    n_rows: int
    is_large: bool
    is_suspect: bool
    can_leave: bool
    def __init__(self, prepared: Prepared, hot: HotProtocol, due_ns: int, can_leave: bool = False) -> None: ...
    @property
    def rows(self) -> NDArray[np.float32]: ...
    def done(self) -> bool: ...
    def set_result(self, scores: NDArray[np.float64]) -> None: ...
    def set_exception(self, error: Exception) -> None: ...
    def cancel(self) -> bool: ...

class Lines:
    """Everything that waits in one queue, each line by earliest deadline.

    Args:
        small, large, alone: the lines, which the caller changes as well.
        small_rows: that rest in `small`.
        counters: where the rows that wait are a gauge; None: nowhere.
    """

    small: list[Any]
    large: list[Any]
    alone: list[Any]
    small_rows: int
    other_rows: int
    small_at: int
    large_at: int
    alone_at: int
    n_open: int
    late: int
    n_asked: int
    ends_ns: int
    is_open: bool
    is_tight: bool
    is_woken: bool
    may_leave: bool
    look_ns: int
    watch: Callable[[], None]
    wake: Callable[[], None]
    cancelled: Callable[[Any], None]
    between: Callable[[], None] | None
    def __init__(
        self,
        small: list[Any],
        large: list[Any],
        alone: list[Any],
        small_rows: int = 0,
        counters: WorkerCounters | None = None,
    ) -> None: ...
    @property
    def n_rows(self) -> int: ...
    def set_pace(
        self, table: list[float], ratio: float, overhead_ns: int, best: int, best_ns: int, max_rows: int
    ) -> None: ...
    def free_ns(self, now_ns: int) -> int: ...
    def fits_small(self, n: int, due_ns: int, free_ns: int, by_ns: int = ...) -> bool: ...
    def tell(self) -> int: ...
    def entry(self, seat: Seat, now_ns: int) -> str: ...
    def take(self, seat: Seat, now_ns: int) -> bool: ...
    def cut(self, now_ns: int) -> list[tuple[Any, int, int]] | None: ...
    @staticmethod
    def gather(parts: Sequence[tuple[Any, int, int]], n_features: int) -> NDArray[np.float32]: ...
    def answer(
        self, parts: Sequence[tuple[Any, int, int]], scores: NDArray[np.float64], now_ns: int
    ) -> list[tuple[Any, int, int, int]]: ...
