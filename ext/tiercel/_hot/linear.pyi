from typing import Any

import numpy as np
from numpy.typing import NDArray
from tiercel._hot.scorer import Scorer

class LinearScorer(Scorer):
    def __init__(
        self,
        *,
        weights: NDArray[np.float64],
        intercept: NDArray[np.float64],
        single_precision: bool,
        post: int,
        post_scale: float,
        normalize: bool,
        pick: int,
        steps: list[tuple[int, NDArray[np.float32], NDArray[np.float32]]],
    ) -> None: ...
    def __reduce__(self) -> Any: ...
