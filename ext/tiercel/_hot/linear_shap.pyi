from typing import Any

import numpy as np
from numpy.typing import NDArray
from tiercel._hot.explainer import Explainer

class LinearExplainer(Explainer):
    def __init__(
        self,
        *,
        weights: NDArray[np.float64],
        intercept: NDArray[np.float64],
        mean: NDArray[np.float64],
        steps: list[tuple[int, NDArray[np.float32], NDArray[np.float32]]],
    ) -> None: ...
    def __reduce__(self) -> Any: ...
