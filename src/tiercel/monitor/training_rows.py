"""A sample of the rows a version was trained on: what needs rows of the training set, and not only its histograms.

Whole-row tests, the leaves of a forest and attributions compare a window with it, so that "against training" is more than
one feature at a time. The draw is seeded by the rows themselves: the same training set gives the same file.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgpack
import numpy as np

from tiercel.errors import ArtifactCorruptError
from tiercel.monitor.row_samples import RowSample

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

TRAINING_ROWS_FILE: Final = "training_rows.msgpack"
#: A mean of so many rows is known to 2 % of its standard deviation; a row of 23 features takes 92 bytes.
MAX_TRAINING_ROWS: Final = 2_000
_FORMAT: Final = "tiercel-training-rows-1"
_MAX_FEATURES: Final = 100_000


@dataclass(frozen=True, eq=False)
class TrainingRows:
    """Rows drawn without replacement.

    Attributes:
        features: names of the columns.
        rows: float32 (n, n_features), NaN where missing.
        n_all: rows that they were drawn from.
    """

    features: tuple[str, ...]
    rows: NDArray[np.float32]
    n_all: int

    @classmethod
    def draw(cls, rows: NDArray[np.float32], features: Sequence[str], most: int = MAX_TRAINING_ROWS) -> TrainingRows:
        """Draw from a training set.

        Args:
            rows: float32 (n, n_features), at least one.
            features: a name per column.
            most: rows to keep.

        Raises:
            ValueError: no rows, or another number of names.
        """
        if rows.ndim != 2 or not len(rows) or rows.shape[1] != len(features):
            raise ValueError(f"Expected rows of {len(features)} features, got {rows.shape}")
        rows = np.ascontiguousarray(rows, dtype="<f4")
        if len(rows) > most:
            seed = np.frombuffer(hashlib.sha256(rows.tobytes()).digest(), np.uint32)
            chosen = np.random.default_rng(seed).choice(len(rows), most, replace=False)
            kept = rows[np.sort(chosen)]
        else:
            kept = rows.copy()
        return cls(tuple(features), kept.astype(np.float32), len(rows))

    def to_bytes(self) -> bytes:
        """The file. The same rows give the same bytes."""
        packed: bytes = msgpack.packb(
            {
                "format": _FORMAT,
                "features": list(self.features),
                "n_all": self.n_all,
                "rows": np.ascontiguousarray(self.rows, "<f4").tobytes(),
            }
        )
        return packed

    @classmethod
    def from_bytes(cls, data: bytes) -> TrainingRows:
        """Inverse of `to_bytes`, for bytes nobody vouches for.

        Raises:
            ArtifactCorruptError: anything else.
        """
        try:
            found: dict[str, Any] = msgpack.unpackb(data, max_map_len=8, max_array_len=_MAX_FEATURES)
            names, n_all = found["features"], found["n_all"]
            if found["format"] != _FORMAT or type(names) is not list or not all(type(name) is str for name in names):
                raise ValueError("format or features")  # noqa: TRY301 - one handler for everything
            rows = np.frombuffer(found["rows"], "<f4").reshape(-1, len(names)).astype(np.float32)
            if type(n_all) is not int or not 0 < len(rows) <= n_all:
                raise ValueError(f"{len(rows)} rows of {n_all!r}")  # noqa: TRY301
        except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError, msgpack.UnpackException) as error:
            raise ArtifactCorruptError(f"Expected {TRAINING_ROWS_FILE} as tiercel writes it, got: {error!r}") from error
        return cls(tuple(names), rows, n_all)

    def sample(self, features: Sequence[str] | None = None) -> RowSample:
        """The rows as `draw_rows` gives those of the prediction table: each its own request, at no time.

        Args:
            features: columns to take, in this order; None: all.

        Raises:
            ValueError: a feature that it does not have.
        """
        places = [self.features.index(name) for name in (self.features if features is None else features)]
        values = self.rows[:, places].astype(np.float64)
        return RowSample(values, np.arange(len(values)), 0, 0, self.n_all)


def find_training_rows(artifacts: Mapping[str, bytes]) -> TrainingRows | None:
    """The sample among a version's files; None for versions registered without training data, or before there was one.

    Raises:
        ArtifactCorruptError: the file is there and is not one.
    """
    data = artifacts.get(TRAINING_ROWS_FILE)
    return None if data is None else TrainingRows.from_bytes(data)
