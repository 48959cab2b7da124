from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

class BaseFile:
    path: str
    def __init__(self, path: str, own_search: bool = True) -> None: ...
    @property
    def searches_pages(self) -> bool: ...
    @property
    def fd(self) -> int: ...
    @property
    def n_rows(self) -> int: ...
    @property
    def page_bytes(self) -> int: ...
    def get(self, stored_key: bytes) -> bytes | None: ...

class GroupReader:
    n_columns: int
    n_views: int
    n_wide: int
    n_slots: int
    def __init__(
        self,
        base: BaseFile,
        *,
        group: int,
        fingerprint: int,
        row_bytes: int,
        bitmap_offset: int,
        ttls_us: Sequence[int | None],
        steps: Sequence[tuple[int, int, int, int, int]],
        wide: Sequence[tuple[int, int]] = (),
    ) -> None: ...
    def read_one(self, key: bytes | None, now_us: int, out: Any) -> int: ...
    def read_many(
        self,
        keys: Sequence[bytes | None],
        now_us: int,
        out: NDArray[np.float32],
        status: NDArray[np.uint8] | None = None,
        event_us: NDArray[np.int64] | None = None,
    ) -> bytes: ...
