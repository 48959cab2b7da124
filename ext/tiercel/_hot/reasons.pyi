from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

MOST_REASONS: int
SHARE_UNIT: float
WHYS: tuple[str, ...]
FACTS: tuple[str, ...]

class ReasonForm:
    n_features: int
    n_outputs: int
    n_reasons: int
    k: int
    def __init__(
        self,
        features: Iterable[str],
        reasons: Iterable[tuple[str, str, Sequence[tuple[int, int]]]],
        excluded: Iterable[tuple[int, int]],
        insufficient: tuple[str, str],
        signs: Iterable[int],
        outputs: Iterable[str | None],
        k: int,
        minimum_share: float,
        facts: Mapping[str, str | None],
    ) -> None: ...
    def write(
        self,
        kind: int,
        rows: npt.NDArray[np.float32],
        phi: npt.NDArray[np.float64],
        expected: float,
        *,
        single: bool = False,
        output: int = 0,
        full: bool = False,
        standard_error: npt.NDArray[np.float64] | None = None,
    ) -> tuple[bytes, int]: ...
    def absent(self, kind: int, *, why: str | None = None, id: str | None = None) -> bytes: ...  # noqa: A002
    def find_absence(self, kind: int, absence: int) -> bytes: ...
    def find_later(self, kind: int, id: bytes) -> bytes: ...  # noqa: A002
    def most(self, n_rows: int, full: bool) -> int: ...
