import numpy as np
from numpy.typing import NDArray

class Scorer:
    n_features: int
    n_outputs: int
    def score(self, rows: NDArray[np.float32]) -> NDArray[np.float64]: ...
