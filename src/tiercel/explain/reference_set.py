"""The reference set of a version: the rows its contributions are measured against, in one self-contained file.

A contribution says how much of a score is owed to a value being this row's rather than a reference row's. So the rows are
part of what an explanation means: they are drawn once, when the version is registered, and their digest is in every
explanation. msgpack with a raw little-endian array: nothing in it can name a type to construct or a size that is not there.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal

import msgpack
import numpy as np

from tiercel.errors import ArtifactCorruptError, SchemaMismatchError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tiercel.types import Signature

#: The file's name among a version's artifacts.
REFERENCE_SET_FILE: Final = "explain_reference.msgpack"
#: More rows cost time on every explanation; the mean over a hundred is within a tenth of a standard deviation.
MAX_REFERENCE_ROWS: Final = 100
_FORMAT: Final = "tiercel-explain-reference-1"
_MAX_NAME_BYTES: Final = 1 << 20

Origin = Literal["training", "given", "golden"]


@dataclass(frozen=True, eq=False)
class ReferenceSet:
    """Rows of a version's features. Immutable.

    Attributes:
        features: names in vector order.
        rows: float32 (n, n_features), 1 to `MAX_REFERENCE_ROWS` rows; NaN is missing, nothing is infinite.
        drawn_from: rows there were to draw from.
        origin: what those were: the training set's, the caller's, or the golden rows of a version without a reference set.
    """

    features: tuple[str, ...]
    rows: NDArray[np.float32]
    drawn_from: int
    origin: Origin

    @cached_property
    def digest(self) -> str:
        """sha256 hex of names and rows: what contributions follow from."""
        digest = hashlib.sha256(json.dumps(list(self.features), separators=(",", ":")).encode())
        digest.update(np.ascontiguousarray(self.rows, dtype="<f4").tobytes())
        return digest.hexdigest()

    def to_bytes(self) -> bytes:
        """The file."""
        packed: bytes = msgpack.packb(
            {
                "format": _FORMAT,
                "features": list(self.features),
                "rows": np.ascontiguousarray(self.rows, dtype="<f4").tobytes(),
                "drawn_from": self.drawn_from,
                "origin": self.origin,
                "digest": self.digest,
            }
        )
        return packed

    @classmethod
    def from_bytes(cls, data: bytes) -> ReferenceSet:
        """Inverse of `to_bytes`.

        Raises:
            ArtifactCorruptError: anything else.
        """
        try:
            found: dict[str, Any] = msgpack.unpackb(data, max_map_len=8, max_str_len=_MAX_NAME_BYTES)
            if found["format"] != _FORMAT or found["origin"] not in ("training", "given", "golden"):
                raise ValueError(f"{found['format']!r} of {found['origin']!r}")  # noqa: TRY301 - one handler for everything
            names = found["features"]
            if not names or not all(type(name) is str for name in names) or type(found["drawn_from"]) is not int:
                raise ValueError("names that are none")  # noqa: TRY301
            rows = np.frombuffer(found["rows"], dtype="<f4").reshape(-1, len(names)).astype(np.float32)
            if not 1 <= len(rows) <= MAX_REFERENCE_ROWS or np.isinf(rows).any():
                raise ValueError(f"{len(rows)} rows, or infinite values")  # noqa: TRY301
            made = cls(tuple(names), rows, found["drawn_from"], found["origin"])
            if made.digest != found["digest"]:
                raise ValueError("a digest that is not its own")  # noqa: TRY301
        except (ValueError, KeyError, TypeError, AttributeError, msgpack.UnpackException) as error:
            raise ArtifactCorruptError(
                f"Expected {REFERENCE_SET_FILE} as tiercel writes it, got: {error!r}. Register the version again."
            ) from error
        return made

    def check(self, signature: Signature) -> None:
        """Whether these rows can be given to a model.

        Raises:
            SchemaMismatchError: they have other features, or miss values that the model cannot do without.
        """
        if self.features != signature.features:
            raise SchemaMismatchError(
                f"Expected a reference set of the model's features ({_listed(signature.features)}), got one of "
                f"{_listed(self.features)}. Register the model again with rows of its own features."
            )
        if not signature.accepts_missing and np.isnan(self.rows).any():
            raise SchemaMismatchError(
                "Expected a reference set without missing values, because the model refuses them; got some. "
                "Register the model again."
            )


def draw_reference_set(
    rows: NDArray[np.float32], signature: Signature, origin: Origin, *, most: int = MAX_REFERENCE_ROWS
) -> ReferenceSet | None:
    """Draw a reference set, the same one from the same rows wherever that is done.

    Every row has the same chance: row i is ranked by the splitmix64 hash of the content's digest and i, and the first of
    them are kept, in their order.

    Args:
        rows: float32 (n, n_features).
        signature: the model's.
        origin: what the rows are.
        most: rows that are kept.

    Returns:
        None where no row is one that the model can be asked about: infinite values, or missing ones that it refuses.

    Raises:
        SchemaMismatchError: rows of another width.
    """
    if rows.ndim != 2 or rows.shape[1] != len(signature.features):
        raise SchemaMismatchError(
            f"Expected reference rows of the model's {len(signature.features)} features, got an array of shape {rows.shape}."
        )
    usable = ~np.isinf(rows).any(axis=1)
    if not signature.accepts_missing:
        usable &= ~np.isnan(rows).any(axis=1)
    kept = np.ascontiguousarray(rows[usable], dtype="<f4")
    if not len(kept):
        return None
    seed = np.uint64(int.from_bytes(hashlib.sha256(kept.tobytes()).digest()[:8], "little"))
    order = np.argsort(_hashes(seed, len(kept)), kind="stable")[:most]
    return ReferenceSet(signature.features, kept[np.sort(order)].astype(np.float32), len(kept), origin)


def _hashes(seed: np.uint64, n: int) -> NDArray[np.uint64]:
    """splitmix64 (Steele, Lea and Flood 2014) of seed + i: written out, for NumPy's generators may change their streams."""
    with np.errstate(over="ignore"):
        z = seed + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _listed(names: Sequence[str], most: int = 12) -> str:
    text = ", ".join(names[:most])
    return text if len(names) <= most else f"{text} and {len(names) - most} more"
