"""Do two versions give different reasons for the same rows? Scores may agree while what people are told changes.

A decision's reasons are the set that a reply would name: the top k adverse ones by the version's own policy, chosen by the
compiled form that serves them. Churn is the share of rows whose set differs. It is a guardrail of promotions: a champion
whose successor explains every third decision otherwise has changed its mind, whatever its AUC says.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import msgpack
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tiercel.explain.reasons import ReasonForm
    from tiercel.types import Attributions

#: Reasons of a decision that count.
K: Final = 4
#: Rows without which churn is not judged: a share of fewer is known to no better than a tenth.
LEAST_ROWS: Final = 50
N_SHOWN: Final = 5
_MSGPACK: Final = 1


@dataclass(frozen=True)
class ReasonChange:
    """A reason that one version gives where the other does not: rows that gained it, and rows that lost it."""

    code: str
    n_gained: int
    n_lost: int


@dataclass(frozen=True)
class ReasonChurn:
    """How many decisions are explained otherwise.

    Attributes:
        model: registered name.
        champion, challenger: version numbers.
        n_rows: compared.
        n_changed: of them, with another set of reasons.
        n_first: of them, with another first reason.
        n_decisions: of them, decided otherwise; None where there is no decision to make.
        source: what the rows are: "predictions" or "training".
        changes: reasons that come and go most.
    """

    model: str
    champion: int
    challenger: int
    n_rows: int
    n_changed: int
    n_first: int
    n_decisions: int | None
    source: str
    changes: tuple[ReasonChange, ...]

    @property
    def share(self) -> float:
        """Of rows whose set of reasons differs; 0 without rows."""
        return self.n_changed / self.n_rows if self.n_rows else 0.0

    @property
    def is_enough(self) -> bool:
        """Whether there were rows enough to judge by."""
        return self.n_rows >= LEAST_ROWS

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "share": self.share}

    def describe(self) -> str:
        """One sentence."""
        if not self.n_rows:
            return "No rows to compare reasons on."
        of = "rows that were asked" if self.source == "predictions" else "rows of the training set"
        text = f"{self.share:.1%} of {self.n_rows:,} {of} get other reasons"
        text += f", {self.n_first / self.n_rows:.1%} another first one"
        if self.n_decisions is not None:
            text += f"; {self.n_decisions / self.n_rows:.1%} are decided otherwise"
        return f"{text}."


def chosen_codes(
    form: ReasonForm, rows: NDArray[np.float32], attributions: Attributions, output: int = 0
) -> list[tuple[str, ...]]:
    """Codes of the reasons that each row's reply names, the first first; none of a row whose contributions are not finite.

    Args:
        form: of the version.
        rows: float32 (n, n_features).
        attributions: of them.
        output: which of the model's margins they are of.
    """
    packed, n_members = form.write(
        _MSGPACK,
        np.ascontiguousarray(rows, np.float32),
        np.ascontiguousarray(attributions.values, np.float64),
        float(attributions.expected),
        output=output,
        standard_error=attributions.standard_error,
    )
    found = msgpack.unpackb(bytes([0x80 | n_members]) + packed)  # the members of a reply, as a map of their own
    told = found.get("reasons", [None] * len(rows))  # where no row has any, the reply has none either
    return [tuple(str(each["code"]) for each in reasons or ()) for reasons in told]


def compare_reasons(
    model: str,
    champion: tuple[int, Sequence[tuple[str, ...]]],
    challenger: tuple[int, Sequence[tuple[str, ...]]],
    *,
    source: str,
    decisions: tuple[NDArray[np.bool_], NDArray[np.bool_]] | None = None,
) -> ReasonChurn:
    """Compare the reasons of two versions, row by row. Rows that neither version has reasons for are not compared.

    Args:
        model: registered name.
        champion: number of the version, and the codes that `chosen_codes` gives for each row.
        challenger: likewise, of the same rows.
        source: what the rows are.
        decisions: positive or not by the champion and by the challenger, bool (n,) each; None: there are none.

    Raises:
        ValueError: different numbers of rows.
    """
    before, now = champion[1], challenger[1]
    if len(before) != len(now):
        raise ValueError(f"Expected reasons of the same rows, got {len(before)} and {len(now)}")
    # Two that say nothing agree on nothing: such rows must not make a limit hold.
    is_told = np.array([bool(old or new) for old, new in zip(before, now, strict=True)], np.bool_)
    gained: Counter[str] = Counter()
    lost: Counter[str] = Counter()
    n_changed = n_first = 0
    for old, new in zip(before, now, strict=True):
        n_changed += set(old) != set(new)
        n_first += old[:1] != new[:1]
        gained.update(set(new) - set(old))
        lost.update(set(old) - set(new))
    changes = [ReasonChange(code, gained[code], lost[code]) for code in {*gained, *lost}]
    return ReasonChurn(
        model=model,
        champion=champion[0],
        challenger=challenger[0],
        n_rows=int(is_told.sum()),
        n_changed=n_changed,
        n_first=n_first,
        n_decisions=None if decisions is None else int((decisions[0] != decisions[1])[is_told].sum()),
        source=source,
        changes=tuple(sorted(changes, key=lambda each: (-each.n_gained - each.n_lost, each.code))[:N_SHOWN]),
    )
