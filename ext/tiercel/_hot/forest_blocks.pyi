from typing import Any

import numpy as np
from numpy.typing import NDArray
from tiercel._hot.forest_ranks import ForestRanks

MODES: tuple[str, ...]

class ForestBlocks:
    def __init__(
        self,
        *,
        ranks: ForestRanks,
        n_sets: int,
        tree_start: NDArray[np.int32],
        feature: NDArray[np.int32],
        left: NDArray[np.int32],
        right: NDArray[np.int32],
        missing_left: NDArray[np.uint8],
        set_of: NDArray[np.int32],
        leaf: NDArray[np.int64],
        tree_leaf: NDArray[np.int64],
        row_ns: float,
        mode: str = "auto",
    ) -> None: ...
    def __reduce__(self) -> Any: ...
