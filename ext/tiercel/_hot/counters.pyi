from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

EDGE_SLOTS: Final[int]
HISTOGRAM_CELLS: Final[int]
ABOVE_ALL: Final[int]
MISSING: Final[int]
BELOW_ALL: Final[int]
STAGES: Final[tuple[str, ...]]
DURATION_CELLS: Final[int]
DURATION_OVERFLOW: Final[int]
DURATION_SUM: Final[int]
DURATION_NONE: Final[int]
PLAN_CELLS: Final[tuple[str, ...]]
WORKER_CELLS: Final[tuple[str, ...]]
WORKER_GAUGES: Final[tuple[str, ...]]
ERROR_SLOTS: Final[int]
ERROR_NAME_SIZE: Final[int]

Sections: TypeAlias = dict[str, tuple[int, tuple[int, ...]]]

def plan_sections(n_features: int, n_outputs: int) -> Sections: ...
def worker_sections(n_cells: int = ...) -> Sections: ...
def feature_cell(edges: NDArray[np.float32], value: float) -> int: ...
def score_cell(edges: NDArray[np.float64], value: float) -> int: ...
def magnitude_cell(value: int) -> int: ...
def magnitude_bounds() -> NDArray[np.int64]: ...

class WorkerCounters:
    def __init__(self, buffer: Any = None) -> None: ...
    def count_reply(self, status: int, code: str | None = None) -> None: ...
    def add(self, cell: str, n: int = 1) -> None: ...
    def set(self, cell: str, value: int) -> None: ...
    def get(self, cell: str) -> int: ...
    def touch(self) -> None: ...

class PlanCounters:
    n_features: int
    n_outputs: int
    def __init__(
        self,
        n_features: int,
        n_outputs: int,
        feature_edges: NDArray[np.float32],
        score_edges: NDArray[np.float64],
        buffer: Any = None,
    ) -> None: ...
    def touch(self) -> None: ...
    def snapshot(self) -> dict[str, NDArray[np.uint64]]: ...
