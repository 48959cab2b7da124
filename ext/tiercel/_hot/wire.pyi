import numpy as np
from numpy.typing import NDArray

def scan(
    data: bytes, start: int, end: int, max_fields: int
) -> tuple[NDArray[np.uint32], NDArray[np.uint8], NDArray[np.uint64], NDArray[np.int64]]: ...
def unpack_varints(data: bytes, start: int, end: int) -> NDArray[np.int64]: ...
