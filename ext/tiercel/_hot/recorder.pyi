from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from tiercel._hot.counters import PlanCounters, WorkerCounters
from tiercel._hot.journal import Journal

FAST: Final[int]
MANY: Final[int]

class PlanRecorder:
    n_features: int
    n_outputs: int
    n_keys: int
    counters: PlanCounters | None
    worker: WorkerCounters | None
    journal: Journal | None
    declaration: bytes
    keeps_requests: bool
    is_recorded: bool
    def __init__(
        self,
        counters: PlanCounters | None = None,
        worker: WorkerCounters | None = None,
        journal: Journal | None = None,
        plan: int = 0,
        declaration: bytes = b"",
        n_keys: int = 0,
        keeps_requests: bool = True,
    ) -> None: ...
    def add(
        self,
        rows: NDArray[np.float32],
        scores: NDArray[np.float64],
        *,
        number: int = 0,
        received_us: int = 0,
        now_us: int | None = None,
        oldest_age_us: int = -1,
        total_ns: int = 0,
        stage_ns: Sequence[int] = (0, 0, 0, 0, 0),
        flags: int = 0,
        keys: bytes = b"",
        repeat: int = 1,
        request: bytes = b"",
        request_kind: int = 0,
        request_header: int = -1,
    ) -> None: ...
