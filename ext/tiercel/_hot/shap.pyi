from typing import Any

import numpy as np
from numpy.typing import NDArray
from tiercel._hot.explainer import Explainer

TABLE_BYTES: int
MAX_PATH_FEATURES: int
MAX_REFERENCES: int

class ForestExplainer(Explainer):
    n_trees: int
    n_units: int
    n_alone: int
    table_bytes: int
    alone_bytes: int
    longest: int
    def __init__(
        self,
        *,
        n_features: int,
        n_raw: int,
        tree_start: NDArray[np.int64],
        feature: NDArray[np.int32],
        threshold: NDArray[np.float32],
        left: NDArray[np.int32],
        right: NDArray[np.int32],
        missing_left: NDArray[np.uint8],
        set_of: NDArray[np.int32],
        leaf: NDArray[np.int64],
        values: NDArray[np.float64],
        tree_raw: NDArray[np.int32],
        base: NDArray[np.float64],
        set_words: NDArray[np.uint32],
        set_start: NDArray[np.int64],
        set_equal: NDArray[np.float32],
        floor_negative: bool,
        steps: list[tuple[int, NDArray[np.float32], NDArray[np.float32]]],
        reference: NDArray[np.float32] | None = None,
        cover: NDArray[np.float64] | None = None,
        table_bytes: int = ...,
        merge_bytes: int = ...,
        vector_bits: int = ...,
    ) -> None: ...
    def interact(self, rows: NDArray[np.float32], raw: int = 0) -> tuple[NDArray[np.float64], NDArray[np.float64]]: ...
    def __reduce__(self) -> Any: ...
