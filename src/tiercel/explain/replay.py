"""What a replay found: whether a prediction came out again as it is recorded, part by part, bit for bit."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

#: Differences that a report names; the rest are counted.
MOST_DIFFERENCES = 20


class Verdict(enum.StrEnum):
    """Of one part, or of all. Stable names."""

    EQUAL = "equal"
    DIFFERS = "differs"
    NOT_REPLAYED = "not_replayed"  # it was not made again, and `why` says why


@dataclass(frozen=True)
class Difference:
    """One number that came out otherwise; None is missing."""

    row: int
    name: str
    recorded: float | None
    replayed: float | None

    @property
    def by(self) -> float | None:
        """Replayed minus recorded; None where one of them is missing."""
        return None if self.recorded is None or self.replayed is None else self.replayed - self.recorded


@dataclass(frozen=True)
class Part:
    """The vector, the scores or the explanation of a prediction.

    Attributes:
        why: it was not replayed, or replayed from something else than the request; None: nothing to say.
        differences: at most MOST_DIFFERENCES of `n_differences`.
    """

    verdict: Verdict
    why: str | None = None
    differences: tuple[Difference, ...] = ()
    n_differences: int = 0

    @classmethod
    def not_replayed(cls, why: str) -> Part:
        """A part that cannot be made again."""
        return cls(Verdict.NOT_REPLAYED, why)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        told: dict[str, Any] = {"verdict": self.verdict.value}
        if self.why is not None:
            told["why"] = self.why
        if self.n_differences:
            told["n_differences"] = self.n_differences
            told["differences"] = [
                {
                    "row": each.row,
                    "name": each.name,
                    "recorded": _finite(each.recorded),
                    "replayed": _finite(each.replayed),
                    "by": _finite(each.by),
                }
                for each in self.differences
            ]
        return told


@dataclass(frozen=True)
class Replay:
    """What came of one prediction's replay.

    Attributes:
        source: what was asked again: "request", or "vector" where the request or the base is not kept.
    """

    id: str
    model: str
    version: int
    base: str | None
    source: str
    vector: Part
    score: Part
    reasons: Part

    @property
    def verdict(self) -> Verdict:
        """DIFFERS where any part does; EQUAL where the score and all else that was replayed is; else NOT_REPLAYED."""
        parts = (self.vector, self.score, self.reasons)
        if any(part.verdict is Verdict.DIFFERS for part in parts):
            return Verdict.DIFFERS
        return Verdict.EQUAL if self.score.verdict is Verdict.EQUAL else Verdict.NOT_REPLAYED

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "id": self.id,
            "model": self.model,
            "version": self.version,
            "base": self.base,
            "verdict": self.verdict.value,
            "source": self.source,
            "vector": self.vector.to_json(),
            "score": self.score.to_json(),
            "reasons": self.reasons.to_json(),
        }


def compare(
    names: Sequence[str], recorded: NDArray[Any], replayed: NDArray[Any], *, first_row: int = 0, why: str | None = None
) -> Part:
    """Compare numbers bit for bit; one NaN is like another: it is a missing value, whatever its bits.

    Args:
        names: of the columns.
        recorded: float32 or float64 (n, len(names)).
        replayed: the same shape and type.
        first_row: the number of their first row in the request.
        why: for the part.
    """
    if recorded.shape != replayed.shape or recorded.dtype != replayed.dtype:
        text = (
            f"expected {recorded.dtype} of shape {recorded.shape}, as recorded; got {replayed.dtype} {replayed.shape}"
        )
        return Part(Verdict.DIFFERS, text if why is None else f"{why}; {text}", n_differences=1)
    bits = f"u{recorded.dtype.itemsize}"
    same = np.ascontiguousarray(recorded).view(bits) == np.ascontiguousarray(replayed).view(bits)
    same |= np.isnan(recorded) & np.isnan(replayed)
    if same.all():
        return Part(Verdict.EQUAL, why)
    places = np.argwhere(~same)
    differences = tuple(
        Difference(first_row + row, names[column], _number(recorded[row, column]), _number(replayed[row, column]))
        for row, column in places[:MOST_DIFFERENCES].tolist()
    )
    return Part(Verdict.DIFFERS, why, differences, len(places))


def _number(value: Any) -> float | None:
    number = float(value)
    return None if math.isnan(number) else number


def _finite(value: float | None) -> float | str | None:
    """JSON has no infinities."""
    return value if value is None or math.isfinite(value) else str(value)
