from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_CUTS: int

class ForestRanks:
    features: NDArray[np.int32]
    cut_start: NDArray[np.int64]
    cut: NDArray[np.float32]
    nodes: NDArray[np.int64]
    places: NDArray[np.int64]
    most_cuts: int
    def __init__(
        self, *, feature: NDArray[np.int32], threshold: NDArray[np.float32], plain: NDArray[np.int64]
    ) -> None: ...
    def tables(self) -> tuple[NDArray[Any], NDArray[np.float32], NDArray[np.uint16]]: ...
    def __reduce__(self) -> Any: ...
