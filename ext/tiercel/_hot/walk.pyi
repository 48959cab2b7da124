from collections.abc import Sequence
from typing import Any, Protocol

from tiercel._hot.reader import BaseFile

class _Hash(Protocol):
    def update(self, data: Any, /) -> None: ...

class BaseWalk:
    group_rows: list[int]
    n_rows: int
    def __init__(
        self, base: BaseFile, fingerprints: Sequence[int], row_bytes: Sequence[int], key_kinds: Sequence[Sequence[bool]]
    ) -> None: ...
    def touch(self) -> int: ...
    def fill(self, key_hash: _Hash, row_hash: _Hash, n_rows: int = 4096) -> int: ...
