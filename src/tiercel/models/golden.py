"""The golden rows of a version: inputs and the source library's answers, in one self-contained file.

msgpack with raw little-endian arrays: nothing in it can name a type to construct or a size that is not there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgpack
import numpy as np

from tiercel.errors import ArtifactCorruptError

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: More add load time, not certainty: the full comparison ran when the version was registered.
MAX_GOLDEN_ROWS = 256
_FORMAT = "tiercel-golden-1"


@dataclass(frozen=True)
class Golden:
    """rows: float32 (n, n_features); scores: float64 (n, n_outputs)."""

    rows: NDArray[np.float32]
    scores: NDArray[np.float64]

    def to_bytes(self) -> bytes:
        """The file."""
        packed: bytes = msgpack.packb(
            {
                "format": _FORMAT,
                "n_features": self.rows.shape[1],
                "n_outputs": self.scores.shape[1],
                "rows": np.ascontiguousarray(self.rows, dtype="<f4").tobytes(),
                "scores": np.ascontiguousarray(self.scores, dtype="<f8").tobytes(),
            }
        )
        return packed

    @classmethod
    def from_bytes(cls, data: bytes) -> Golden:
        """Inverse of `to_bytes`.

        Raises:
            ArtifactCorruptError: anything else.
        """
        try:
            found: dict[str, Any] = msgpack.unpackb(data, max_map_len=8, max_array_len=0)
            if found["format"] != _FORMAT:
                raise ValueError(found["format"])  # noqa: TRY301 - one handler for everything
            n_features, n_outputs = int(found["n_features"]), int(found["n_outputs"])
            rows = np.frombuffer(found["rows"], dtype="<f4").reshape(-1, n_features)
            scores = np.frombuffer(found["scores"], dtype="<f8").reshape(-1, n_outputs)
            if len(rows) != len(scores) or not len(rows):
                raise ValueError(f"{len(rows)} rows, {len(scores)} scores")  # noqa: TRY301
        except (ValueError, KeyError, TypeError, AttributeError, msgpack.UnpackException) as error:
            raise ArtifactCorruptError(f"Expected a file of golden rows, got something else: {error!r}") from error
        return cls(rows.astype(np.float32), scores.astype(np.float64))
