from typing import Any

import numpy as np
from numpy.typing import NDArray

class TensorForm:
    n_outputs: int
    def __init__(self, model: str, version: int, vectors: Any, n_outputs: int, tier: str = "realtime") -> None: ...
    @property
    def takes_vectors(self) -> bool: ...

class TensorTally:
    """Sums since the worker started; times in nanoseconds."""

    n_requests: int
    n_rows: int
    last_ms: int
    total_ns: int
    def stage_ns(self) -> dict[str, int]: ...

class TensorTallies:
    """Of one worker, by model and version. Threads: the event loop's only."""

    def __init__(self) -> None: ...
    def get(self, model: str, version: int) -> TensorTally | None: ...

def json_numbers(values: NDArray[np.float64]) -> bytes:
    """A JSON list of numbers, each the shortest text that reads back as it; null for one that is not finite."""
