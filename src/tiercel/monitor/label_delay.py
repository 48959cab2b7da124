"""How long labels take: the share of predictions that have one at a given age, and the age at which most have.

Young predictions without a label may still get one; a plain average over what has arrived would know only the fast ones. So
ages are treated as survival times, censored at each prediction's age now (Kaplan and Meier 1958, by the life-table method:
over classes of age an eighth of an octave wide).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

#: Classes per doubling of age; class 0 is everything under the first millisecond, and the last has no end.
PER_OCTAVE: Final = 8
N_CLASSES: Final = 8 * 50  # up to 35 thousand years: whatever clocks say has a class
_FIRST_US: Final = 1000
#: Of all labels that ever come, so many have come when a prediction counts as mature.
MATURE_SHARE: Final = 0.95
#: With fewer predictions left at an age, the curve beyond it is not used.
_LEAST_AT_RISK: Final = 20


@dataclass(frozen=True, eq=False)
class DelayCurve:
    """Shares of predictions with a label by age.

    Attributes:
        ages_us: int64, the upper ends of the classes that some prediction reached, ascending.
        shares: float64, of predictions that have a label at that age; ascending.
        n_labelled, n_predictions: what it was made from.
        oldest_us: age of the oldest prediction.
    """

    ages_us: NDArray[np.int64]
    shares: NDArray[np.float64]
    n_labelled: int
    n_predictions: int
    oldest_us: int

    @classmethod
    def of(cls, labelled: Mapping[int, int], waiting: Mapping[int, int], oldest_us: int) -> DelayCurve:
        """From counts by class (see `age_class`).

        Args:
            labelled: predictions whose label came, by the class of its delay.
            waiting: predictions without one, by the class of their age.
            oldest_us: age of the oldest prediction.
        """
        events, censored = np.zeros(N_CLASSES), np.zeros(N_CLASSES)
        for place, n in labelled.items():
            events[place] += n
        for place, n in waiting.items():
            censored[place] += n
        n_all = events.sum() + censored.sum()
        at_risk = n_all - np.concatenate([[0.0], np.cumsum(events + censored)[:-1]])
        exposed = np.maximum(at_risk - censored / 2, 1e-9)
        shares = 1 - np.cumprod(1 - np.minimum(events / exposed, 1))
        # Never beyond where almost nobody is left, unless nobody ever was.
        kept = (at_risk >= min(_LEAST_AT_RISK, n_all)) & (at_risk > 0)
        n_kept = int(np.argmin(kept)) if not kept.all() else N_CLASSES
        ends = np.array([class_end_us(i) for i in range(n_kept)], np.int64)
        return cls(ends, shares[:n_kept], int(events.sum()), int(n_all), oldest_us)

    @property
    def final_share(self) -> float:
        """The share of predictions that get a label, as far as can be seen."""
        return float(self.shares[-1]) if len(self.shares) else 0.0

    def share_at(self, age_us: int) -> float:
        """The share of predictions with a label at an age."""
        place = int(np.searchsorted(self.ages_us, age_us, side="right")) - 1
        return float(self.shares[place]) if place >= 0 else 0.0

    def quantile_us(self, share: float) -> int | None:
        """The age at which `share` of all labels that ever come have come; None when none did."""
        if not self.n_labelled or self.final_share <= 0:
            return None
        return int(self.ages_us[int(np.argmax(self.shares >= share * self.final_share * (1 - 1e-12)))])

    @property
    def is_level(self) -> bool:
        """Whether labels have all but stopped coming within half the age of the oldest prediction."""
        mature_us = self.quantile_us(MATURE_SHARE)
        return mature_us is not None and 2 * mature_us <= self.oldest_us

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: the share that is labelled in the end, and quantiles of the delay in seconds."""
        quantiles = {f"p{round(100 * q)}_s": _seconds(self.quantile_us(q)) for q in (0.5, 0.9, 0.95, 0.99)}
        return {
            "labelled": self.n_labelled, "predictions": self.n_predictions, "final_share": self.final_share,
            "is_level": self.is_level, **quantiles,
        }  # fmt: skip


def age_class(age_us: int) -> int:
    """The class of an age; the same as `AGE_CLASS_SQL`."""
    if age_us < _FIRST_US:
        return 0
    return min(N_CLASSES - 1, 1 + math.floor(PER_OCTAVE * math.log2(age_us / _FIRST_US)))


#: The class of an age in DuckDB; `{age}` is in microseconds.
AGE_CLASS_SQL: Final = (
    f"CASE WHEN {{age}} < {_FIRST_US} THEN 0 ELSE "
    f"least({N_CLASSES - 1}, 1 + CAST(floor({PER_OCTAVE} * log2({{age}} / {_FIRST_US}::DOUBLE)) AS INTEGER)) END"
)


def class_end_us(place: int) -> int:
    """The upper end of a class."""
    return round(_FIRST_US * 2 ** (place / PER_OCTAVE))


def _seconds(age_us: int | None) -> float | None:
    return None if age_us is None else age_us / 1e6
