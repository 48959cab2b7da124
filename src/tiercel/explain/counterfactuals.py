"""What would change a decision: the smallest change of one feature, or of two, that a person could make.

Only features under [changes] of the reason policy are changed, within their bounds, and never one that is prohibited or
immutable. A feature that is missing is not: nobody can be told to change what nobody knows.

Distances are |change| / spread, summed over the changed features. The spread is the feature's median absolute deviation
from the median in the reference set; where that is 0 (most rows are alike), the mean absolute deviation; where that is 0
too, 1. So a change of 2 is twice what people typically differ by.

Every answer is scored again, alone, before it is given.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from tiercel.explain.counterfactual_search import MonotoneSearch, Question, SteppedSearch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from tiercel.explain.counterfactual_search import Way
    from tiercel.explain.policy import Change, ReasonPolicy

#: Rows scored for pairs of features at most; `is_exhaustive` says whether that was enough.
MAX_PAIR_ROWS: Final = 100_000


@dataclass(frozen=True)
class Landscape:
    """What a search needs to know of a model, whatever the row. Immutable.

    Attributes:
        features: names in vector order.
        score: float32 (n, n_features) -> float64 (n,): what the threshold is compared with.
        spreads: float64 (n_features,), positive; see `spreads_of`.
        cuts: by feature index, the split thresholds (m,), float32 or float64: between them the score is constant in the
            feature. A feature without an entry changes nothing. None: no thresholds; the score is monotone in each feature,
            as a linear model's is.
        goes_left: a value at its float32 threshold goes where lower ones go ("at": x <= t), or where higher ones do
            ("below": x < t). None: either may be.
    """

    features: tuple[str, ...]
    score: Callable[[NDArray[np.float32]], NDArray[np.float64]]
    spreads: NDArray[np.float64]
    cuts: Mapping[int, NDArray[np.floating[Any]]] | None = None
    goes_left: Literal["at", "below"] | None = None


@dataclass(frozen=True)
class FeatureChange:
    """One feature of a counterfactual.

    Attributes:
        feature: its name.
        now: its value.
        then: a value with which the decision flips.
        extent: "at_most" or "at_least" where everything on that side of `then` flips it too, within bounds; else "exactly".
    """

    feature: str
    now: float
    then: float
    extent: Literal["at_most", "at_least", "exactly"]


@dataclass(frozen=True)
class Counterfactual:
    """One or two changes that together flip a decision, how far that is, and the score after them."""

    changes: tuple[FeatureChange, ...]
    distance: float
    score: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        changes = [{"feature": c.feature, "now": c.now, "then": c.then, "extent": c.extent} for c in self.changes]
        return {"changes": changes, "distance": self.distance, "score": self.score}


@dataclass(frozen=True)
class Counterfactuals:
    """What would flip one decision.

    Attributes:
        score: now.
        threshold: a score at or above it is a positive decision.
        found: nearest first: for each feature the nearest change of it alone; and the nearest change of two, where that is
            nearer than all of those.
        is_exhaustive: False: there were more pairs than were looked at, so one of those may be nearer.
        why: why there is none; else empty.
    """

    score: float
    threshold: float
    found: tuple[Counterfactual, ...]
    is_exhaustive: bool = True
    why: str = ""


def spreads_of(reference_rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """What people differ by in each feature: float64 (n_features,) of float32 (n, n_features); all positive."""
    spreads = np.ones(reference_rows.shape[1])
    for at, column in enumerate(reference_rows.T):
        known = column[np.isfinite(column)].astype(np.float64)
        if len(known):
            off = np.abs(known - np.median(known))
            spreads[at] = float(np.median(off)) or float(off.mean()) or 1.0
    return spreads


def find_counterfactuals(
    row: NDArray[np.float32],
    landscape: Landscape,
    policy: ReasonPolicy,
    *,
    threshold: float,
    most: int = 3,
    pairs: bool = True,
    max_pair_rows: int = MAX_PAIR_ROWS,
) -> Counterfactuals:
    """The smallest changes of one and of two features that flip a decision.

    Args:
        row: float32 (n_features,), the vector that was scored.
        landscape: of the model.
        policy: which features can be changed, and how.
        threshold: a score at or above it is a positive decision; what is looked for is on the other side.
        most: counterfactuals that are returned at most.
        pairs: look for changes of two features too.
        max_pair_rows: rows scored for that at most.

    Raises:
        ValueError: a row of another width, or a threshold that is not finite.
    """
    row = np.ascontiguousarray(row, dtype=np.float32)
    if row.shape != (len(landscape.features),) or not math.isfinite(threshold):
        raise ValueError(
            f"Expected a row of {len(landscape.features)} features and a finite threshold, got {row.shape}, {threshold}"
        )
    score = float(landscape.score(row[None, :])[0])
    if not math.isfinite(score):
        return Counterfactuals(score, threshold, (), why="the score is not a finite number")
    actionable = [(at, change) for at, change in _actionable(policy, landscape) if math.isfinite(row[at])]
    if not actionable:
        return Counterfactuals(score, threshold, (), why="the reason policy has no feature with a value to change")
    question = Question(row, landscape.score, threshold, score < threshold, landscape.spreads)
    search: SteppedSearch | MonotoneSearch
    if landscape.cuts is None:
        search = MonotoneSearch(question, actionable)
    else:
        search = SteppedSearch(question, actionable, landscape.cuts, landscape.goes_left, max_pair_rows)
    singles = sorted(search.singles(), key=lambda way: way.distance)  # stable: ties in the order of features
    pair = search.pair(singles[0].distance if singles else math.inf) if pairs else None
    ways = singles if pair is None else [pair, *singles]
    found = [made for way in ways[:most] if (made := _verified(question, way)) is not None]
    why = "" if found else "no change within the bounds of the reason policy flips the decision"
    return Counterfactuals(score, threshold, tuple(found), is_exhaustive=search.is_exhaustive, why=why)


def _actionable(policy: ReasonPolicy, landscape: Landscape) -> list[tuple[int, Change]]:
    """(index, change) in the order of features."""
    fixed = {*policy.prohibited, *policy.immutable}
    by_name = {change.feature: change for change in policy.changes if change.feature not in fixed}
    return [(at, by_name[name]) for at, name in enumerate(landscape.features) if name in by_name]


def _verified(question: Question, way: Way) -> Counterfactual | None:
    """The answer that a way is, if the model says so."""
    row = question.row.copy()
    for step in way.steps:
        row[step.index] = step.value
    scores = question.scores(row[None, :])
    if not question.flips(scores)[0]:
        return None
    changes = tuple(
        FeatureChange(step.change.feature, float(question.row[step.index]), step.value, step.extent)
        for step in way.steps
    )
    return Counterfactual(changes, way.distance, float(scores[0]))
