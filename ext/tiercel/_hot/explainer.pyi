import numpy as np
from numpy.typing import NDArray

class Explainer:
    n_features: int
    n_raw: int
    method: str
    def explain(self, rows: NDArray[np.float32], raw: int = 0) -> NDArray[np.float64]: ...
    def expected_margin(self, raw: int = 0) -> float: ...
    def time_one_row(
        self, rows: NDArray[np.float32], repeats: int, raw: int = 0
    ) -> tuple[NDArray[np.float64], float]: ...
