from typing import Any

import numpy as np
from numpy.typing import NDArray

MODES: tuple[str, ...]

class ForestBlocks:
    def __init__(
        self,
        *,
        n_sets: int,
        tree_start: NDArray[np.int32],
        feature: NDArray[np.int32],
        threshold: NDArray[np.float32],
        left: NDArray[np.int32],
        right: NDArray[np.int32],
        missing_left: NDArray[np.uint8],
        set_of: NDArray[np.int32],
        leaf: NDArray[np.int64],
        tree_leaf: NDArray[np.int64],
        mode: str = "auto",
    ) -> None: ...
    def __reduce__(self) -> Any: ...
