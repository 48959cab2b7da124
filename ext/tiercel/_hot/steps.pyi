from typing import Any

import numpy as np
from numpy.typing import NDArray

class Steps:
    def __init__(self, steps: list[tuple[int, NDArray[np.float32], NDArray[np.float32]]], n_features: int) -> None: ...
    def __reduce__(self) -> Any: ...
