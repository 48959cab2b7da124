"""What moves a model, over many rows: importance of features and reasons, dependence on values, and who acts with whom.

All of it follows from attributions of a sample of rows; this module draws nothing and knows no model. Importance is the mean
size of attributions, on the scale that they are of (a binary model's margin: log-odds). Dependence is what a feature's value
does to its own attribution; where that still varies among rows of the same value, another feature decides how much it does:
an interaction.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from numpy.typing import NDArray

    from tiercel.types import Attributions

    #: Rows, float32 (n, p) -> exact interaction values of all or of the first, float64 (at most n, p, p).
    Interact = Callable[[NDArray[np.float32]], NDArray[np.float64]]

#: Features whose dependence is worked out and drawn, pairs that are named.
N_DEPENDENCE: Final = 12
N_PAIRS: Final = 10
#: Intervals of a feature's values; one of fewer distinct values has one for each.
MAX_BINS: Final = 20
#: Points of a scatter plot: more hide each other, and every page carries them.
MAX_POINTS: Final = 400
#: Rows whose interactions are computed exactly; each costs about as much as so many attributions as there are features.
EXACT_ROWS: Final = 200
#: Cells that pairs are looked for in: of the feature itself, and of the other within each.
_OWN_BINS, _OTHER_BINS = 16, 4
_LEAST_CELL: Final = 5


@dataclass(frozen=True)
class Importance:
    """How much a feature, or a reason, moves scores.

    Attributes:
        name: of the feature; the code of a reason.
        text: what a reason says; "" of features.
        mean_abs: mean of the attributions' sizes.
        standard_error: of it, with rows as independent.
        share: of the sum over all.
        mean: of the attributions, with their signs.
        direction: rank correlation of values and attributions, from -1 (more of it lowers the score) to 1; None of reasons,
            and where it is not defined.
    """

    name: str
    text: str
    mean_abs: float
    standard_error: float
    share: float
    mean: float
    direction: float | None = None


@dataclass(frozen=True)
class DependenceBin:
    """Rows whose values of a feature lie close together.

    Attributes:
        low, high: the values, both included; None of missing ones.
        n: rows.
        mean: of their attributions.
        tenth, ninetieth: percentiles of them.
    """

    low: float | None
    high: float | None
    n: int
    mean: float
    tenth: float
    ninetieth: float


@dataclass(frozen=True)
class Dependence:
    """What a feature's value does to its attribution.

    Attributes:
        feature: its name.
        bins: by value, ascending; missing ones last.
        points: (value, attribution, value of `partner`) of some rows; None where missing.
        partner: the feature that decides most how much this one does; None where none does.
    """

    feature: str
    bins: tuple[DependenceBin, ...]
    points: tuple[tuple[float | None, float, float | None], ...]
    partner: str | None


@dataclass(frozen=True)
class Interaction:
    """Two features that act together.

    Attributes:
        first, second: their names.
        strength: mean size of what they do together beyond what each does (exact); or the standard deviation of
            attributions that the other one explains (estimated).
    """

    first: str
    second: str
    strength: float


@dataclass(frozen=True)
class GlobalView:
    """What moves one version.

    Attributes:
        model, version: registered name and number.
        source: what the rows are: "predictions" or "training".
        begin_us, end_us: when they were asked; 0 and 0 of training rows.
        n_rows, n_available: rows explained, of so many.
        method, kind, scale, output, reference: of the attributions.
        expected: what they are added to; `mean_margin`: mean of the sums.
        features, reasons: the most important first; reasons are empty for versions whose reasons are their features.
        dependence: of the most important features whose values may be shown.
        interactions: the strongest first.
        is_exact: whether interactions were computed, not estimated from how attributions spread.
        notes: what a reader must know, in sentences.
    """

    model: str
    version: int
    source: str
    begin_us: int
    end_us: int
    n_rows: int
    n_available: int
    method: str
    kind: str
    scale: str
    output: str | None
    reference: str | None
    expected: float
    mean_margin: float
    features: tuple[Importance, ...]
    reasons: tuple[Importance, ...]
    dependence: tuple[Dependence, ...]
    interactions: tuple[Interaction, ...]
    is_exact: bool
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; what is not known is null."""
        return asdict(self)


@dataclass(frozen=True)
class ReasonGroup:
    """Features that are told as one reason: columns of the rows."""

    code: str
    text: str
    columns: tuple[int, ...]


def view_rows(
    model: str,
    version: int,
    features: Sequence[str],
    rows: NDArray[np.float32],
    attributions: Attributions,
    *,
    source: str,
    begin_us: int = 0,
    end_us: int = 0,
    n_available: int | None = None,
    groups: Sequence[ReasonGroup] = (),
    interact: Interact | None = None,
    notes: Sequence[str] = (),
    hidden: Collection[str] = (),
) -> GlobalView:
    """Work out the view.

    Args:
        model: registered name.
        version: registered number.
        features: names of the columns.
        rows: float32 (n, n_features), in random order, at least one.
        attributions: of these rows.
        source: what they are.
        begin_us: when they were asked.
        end_us: likewise.
        n_available: rows that they were drawn from; None: they are all.
        groups: reasons.
        interact: exact interaction values of rows; None: estimate.
        notes: of whoever drew the rows.
        hidden: features whose values must not be shown. They are named and ranked, which says nothing of anybody's values;
            they have no dependence, and their values stand beside no other feature's.

    Raises:
        ValueError: no rows, or attributions of another shape.
    """
    values = attributions.values
    if not len(rows) or values.shape != rows.shape or len(features) != rows.shape[1]:
        raise ValueError(
            f"Expected rows and attributions of {len(features)} features, got {rows.shape}, {values.shape}"
        )
    importances = _rank(
        [
            _importance(name, "", values[:, i], direction=rank_correlation(rows[:, i], values[:, i]))
            for i, name in enumerate(features)
        ]
    )
    places = {name: i for i, name in enumerate(features)}
    top = [places[each.name] for each in importances[:N_DEPENDENCE] if each.mean_abs > 0]
    strengths = estimated_interactions(rows, values, top)
    unseen = [places[name] for name in features if name in hidden]
    told = [i for i in top if i not in unseen]
    notes = [*notes, *_withheld([features[i] for i in unseen])]
    beside = strengths.copy()
    beside[:, unseen] = 0.0
    if interact is None:
        pairs = _pairs(features, np.maximum(strengths, strengths.T))
    else:
        joint = interact(np.ascontiguousarray(rows[:EXACT_ROWS], np.float32))
        pairs = _pairs(features, 2 * np.abs(joint).mean(axis=0))  # half of it stands on either side of the diagonal
    return GlobalView(
        model=model,
        version=version,
        source=source,
        begin_us=begin_us,
        end_us=end_us,
        n_rows=len(rows),
        n_available=len(rows) if n_available is None else n_available,
        method=attributions.method,
        kind=attributions.kind,
        scale=attributions.scale,
        output=attributions.output,
        reference=attributions.reference,
        expected=float(attributions.expected),
        mean_margin=float(attributions.expected + values.sum(axis=1).mean()),
        features=importances,
        reasons=_rank(
            [_importance(each.code, each.text, values[:, list(each.columns)].sum(axis=1)) for each in groups]
        ),
        dependence=tuple(_dependence(features, rows, values, i, beside[i]) for i in told),
        interactions=pairs,
        is_exact=interact is not None,
        notes=tuple(notes),
    )


def estimated_interactions(
    rows: NDArray[np.float32], values: NDArray[np.float64], chosen: Sequence[int]
) -> NDArray[np.float64]:
    """How much of the attributions of one feature another decides: float64 (n_features, n_features), row by column.

    Among rows of about the same value of the first, the attributions are grouped by the second; what the groups' means vary
    beyond chance (omega squared) is its doing. It is an estimate: two features that rise together look as if they acted
    together, the more the coarser the intervals are.

    Args:
        rows: float32 (n, n_features).
        values: attributions of them.
        chosen: first features; rows of the result of others are 0.
    """
    n, n_features = rows.shape
    others = [_places(rows[:, j], _OTHER_BINS) for j in range(n_features)]
    found = np.zeros((n_features, n_features))
    for i in chosen:
        own = _places(rows[:, i], _OWN_BINS)
        for j in range(n_features):
            if j == i or others[j].max() == 0:
                continue
            found[i, j] = math.sqrt(max(0.0, _explained(values[:, i], own, others[j])) / n)
    return found


def rank_correlation(values: NDArray[Any], attributions: NDArray[np.float64]) -> float | None:
    """Spearman's, of rows with a value; None where either is constant."""
    known = ~np.isnan(values)
    if known.sum() < 3:
        return None
    first, second = (_ranks(np.asarray(each[known], np.float64)) for each in (values, attributions))
    spread = math.sqrt(float((first @ first) * (second @ second)))
    return float(first @ second / spread) if spread > 1e-9 else None


def _withheld(names: Sequence[str]) -> list[str]:
    """The note that says what is not shown, if anything is."""
    if not names:
        return []
    return [
        (
            f"How contributions depend on values of {', '.join(names)} is not shown: [monitor] hash_columns or drop_columns "
            f"{'masks it' if len(names) == 1 else 'mask them'}."
        )
    ]


def _importance(name: str, text: str, values: NDArray[np.float64], direction: float | None = None) -> Importance:
    sizes = np.abs(values)
    error = float(sizes.std(ddof=1) / math.sqrt(len(sizes))) if len(sizes) > 1 else math.inf
    return Importance(
        name, text, float(sizes.mean()), error if math.isfinite(error) else 0.0, 0.0, float(values.mean()), direction
    )


def _rank(found: list[Importance]) -> tuple[Importance, ...]:
    """With their shares, the most important first, equal ones by name."""
    total = sum(each.mean_abs for each in found)
    shared = [Importance(**{**vars(each), "share": each.mean_abs / total if total > 0 else 0.0}) for each in found]
    return tuple(sorted(shared, key=lambda each: (-each.mean_abs, each.name)))


def _dependence(
    features: Sequence[str],
    rows: NDArray[np.float32],
    values: NDArray[np.float64],
    i: int,
    strengths: NDArray[np.float64],
) -> Dependence:
    column, attributions = rows[:, i].astype(np.float64), values[:, i]
    known = ~np.isnan(column)
    bins = []
    places = _places(column[known], MAX_BINS)
    for place in np.unique(places):
        members = places == place
        inside, of_values = attributions[known][members], column[known][members]
        bins.append(_bin(float(of_values.min()), float(of_values.max()), inside))
    if not known.all():
        bins.append(_bin(None, None, attributions[~known]))
    # A partner that explains a twentieth of what the feature does is told; less is not worth a colour.
    best = int(np.argmax(strengths))
    partner = best if strengths[best] > 0.05 * np.abs(attributions).mean() and strengths[best] > 0 else None
    points = tuple(
        (_number(column[k]), float(attributions[k]), None if partner is None else _number(float(rows[k, partner])))
        for k in range(min(MAX_POINTS, len(rows)))
    )
    return Dependence(features[i], tuple(bins), points, None if partner is None else features[partner])


def _bin(low: float | None, high: float | None, inside: NDArray[np.float64]) -> DependenceBin:
    tenth, ninetieth = np.quantile(inside, [0.1, 0.9])
    low, high = (None if each is None or not math.isfinite(each) else each for each in (low, high))
    return DependenceBin(low, high, len(inside), float(inside.mean()), float(tenth), float(ninetieth))


def _pairs(features: Sequence[str], strengths: NDArray[np.float64]) -> tuple[Interaction, ...]:
    found = [
        Interaction(features[i], features[j], float(strengths[i, j]))
        for i in range(len(features))
        for j in range(i + 1, len(features))
        if strengths[i, j] > 0
    ]
    return tuple(sorted(found, key=lambda each: (-each.strength, each.first, each.second))[:N_PAIRS])


def _explained(values: NDArray[np.float64], own: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    """Sum of squares between cells of `other` within those of `own`, less what chance has."""
    width = int(other.max()) + 1
    cells = own * width + other
    n = np.bincount(cells, minlength=(int(own.max()) + 1) * width).reshape(-1, width).astype(np.float64)
    sums = np.bincount(cells, values, minlength=n.size).reshape(n.shape)
    squares = np.bincount(cells, values * values, minlength=n.size).reshape(n.shape)
    used = n >= _LEAST_CELL
    n, sums, squares = (np.where(used, each, 0.0) for each in (n, sums, squares))
    n_own, sum_own = n.sum(axis=1), sums.sum(axis=1)
    of_cells = np.divide(sums**2, n, out=np.zeros_like(n), where=n > 0).sum(axis=1)
    of_own = np.divide(sum_own**2, n_own, out=np.zeros_like(n_own), where=n_own > 0)
    n_groups = used.sum(axis=1)
    free = np.maximum(n_own - n_groups, 1)
    within = np.maximum(squares.sum(axis=1) - of_cells, 0.0) / free
    return float((of_cells - of_own - np.maximum(n_groups - 1, 0) * within)[n_groups > 1].sum())


def _places(column: NDArray[Any], most: int) -> NDArray[np.int64]:
    """An interval for each value, of about equal counts: int64 (n,), missing values in one of their own behind them."""
    known = ~np.isnan(column)
    places = np.zeros(len(column), np.int64)
    distinct = np.unique(column[known])
    if len(distinct) > most:
        # Values that occur, so that equal ones are never divided.
        edges = np.unique(np.quantile(column[known], np.arange(1, most) / most, method="inverted_cdf"))
    else:
        edges = distinct[:-1]
    places[known] = np.searchsorted(edges, column[known], side="left")
    if not known.all():
        places[~known] = places[known].max(initial=-1) + 1
    return places


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean ranks, centred."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - counts / 2)[places]
    return np.asarray(ranks - ranks.mean(), np.float64)


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
