from typing import Any

import numpy as np
from numpy.typing import NDArray
from tiercel._hot.scorer import Scorer

def log_float32(x: float) -> float: ...

class ForestScorer(Scorer):
    n_trees: int
    n_nodes: int
    n_leaves: int
    depth: int
    is_compact: bool
    block_lanes: int
    block_rows: int
    mask_bytes: int
    def __init__(
        self,
        *,
        n_features: int,
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
        n_raw: int,
        base: NDArray[np.float64],
        base_first: bool,
        single_precision: bool,
        divisor: float,
        aggregate: int,
        post: int,
        post_scale: float,
        normalize: bool,
        pick: int,
        set_words: NDArray[np.uint32],
        set_start: NDArray[np.int64],
        set_equal: NDArray[np.float32],
        floor_negative: bool,
        steps: list[tuple[int, NDArray[np.float32], NDArray[np.float32]]],
        wide: bool = False,
        blocks: str = "auto",
        masks: str = "auto",
    ) -> None: ...
    @property
    def leaf_counts(self) -> NDArray[np.int64]: ...
    def leaves(self, rows: NDArray[np.float32]) -> NDArray[np.int32]: ...
    def time_one_row(self, rows: NDArray[np.float32], repeats: int) -> tuple[NDArray[np.float64], float]: ...
    def __reduce__(self) -> Any: ...
