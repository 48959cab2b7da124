"""The two searches for counterfactuals: over the cells of a forest, and along a monotone score.

Values and bounds are float32 throughout, as the model sees them.

A forest's score is constant between a feature's thresholds. So the values to try are, per threshold, the nearest one on its
far side as seen from the value now: among all of them, scored in one batch, is an exact smallest change of that feature.
For two features all combinations are candidates; they are scored nearest first until one flips the decision.

A linear model's score is monotone in each feature. The first value that flips the decision is then found by bisection, to
neighbouring float32 or grid values. Of two features one is at its bound in a smallest change (distances and the border are
linear: the smallest is at a corner), so for each such corner the other is bisected.
"""

from __future__ import annotations

import itertools
import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from tiercel.explain.policy import Change

    Actionable = Sequence[tuple[int, Change]]

Extent = Literal["at_most", "at_least", "exactly"]
#: Values of one feature that are tried in pairs: the nearest.
MAX_PAIR_VALUES: Final = 1024
_BLOCK_ROWS: Final = 4096
#: Spreads that a feature without a bound is moved by at most.
_REACH: Final = 20.0
_FLOAT32_MAX: Final = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Question:
    """One decision: the row, float32 (n_features,), and what is to be reached."""

    row: NDArray[np.float32]
    score: Callable[[NDArray[np.float32]], NDArray[np.float64]]
    threshold: float
    wants_positive: bool
    spreads: NDArray[np.float64]

    def scores(self, rows: NDArray[np.float32]) -> NDArray[np.float64]:
        """float64 (n,) of float32 (n, n_features), in blocks."""
        blocks = [self.score(rows[at : at + _BLOCK_ROWS]) for at in range(0, len(rows), _BLOCK_ROWS)]
        return np.concatenate(blocks) if blocks else np.zeros(0)

    def flips(self, scores: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which scores are on the other side; NaN is on none."""
        return scores >= self.threshold if self.wants_positive else scores < self.threshold

    def distance(self, index: int, value: float) -> float:
        """Of a feature's value from the one now."""
        return abs(value - float(self.row[index])) / float(self.spreads[index])


@dataclass(frozen=True)
class Step:
    """One feature's new value."""

    index: int
    change: Change
    value: float
    extent: Extent


@dataclass(frozen=True)
class Way:
    """One or two steps to the other side."""

    steps: tuple[Step, ...]
    distance: float


class SteppedSearch:
    """Where the score is constant between thresholds.

    Args:
        question: the decision.
        actionable: (index, change) in the order of features; each has a value.
        cuts: thresholds by feature index.
        goes_left: as `Landscape`.
        max_pair_rows: rows scored for pairs at most.
    """

    def __init__(
        self,
        question: Question,
        actionable: Actionable,
        cuts: Mapping[int, NDArray[np.floating[Any]]],
        goes_left: Literal["at", "below"] | None,
        max_pair_rows: int,
    ) -> None:
        self._question, self._max_pair_rows = question, max_pair_rows
        self.is_exhaustive = True
        #: (index, change, values, distances), nearest first.
        self._tries = []
        for index, change in actionable:
            now = float(question.row[index])
            values = _within(_candidates(cuts.get(index), now, goes_left, change), now, change)
            distances = np.abs(values.astype(np.float64) - now) / question.spreads[index]
            order = np.lexsort((values, distances))
            self._tries.append((index, change, values[order], distances[order]))

    def singles(self) -> list[Way]:
        """The nearest change of each feature alone, in the order of features."""
        ways = []
        for index, change, values, distances in self._tries:
            rows = np.repeat(self._question.row[None, :], len(values), axis=0)
            rows[:, index] = values
            flips = self._question.flips(self._question.scores(rows))
            if not flips.any():
                continue
            first = int(flips.argmax())
            value, rises = float(values[first]), values[first] > self._question.row[index]
            # Between the values that were tried nothing changes: when all farther ones flip, everything farther does.
            beyond = values >= values[first] if rises else values <= values[first]
            side: Extent = "at_least" if rises else "at_most"
            extent: Extent = side if flips[beyond].all() else "exactly"
            ways.append(Way((Step(index, change, value, extent),), float(distances[first])))
        return ways

    def pair(self, nearer_than: float) -> Way | None:
        """The nearest change of two features, if it is nearer than that."""
        best: list[NDArray[Any]] = []
        n_all = 0
        for first, second in itertools.combinations(range(len(self._tries)), 2):
            a, b = self._tries[first][3], self._tries[second][3]
            if max(len(a), len(b)) > MAX_PAIR_VALUES:
                self.is_exhaustive = False
                a, b = a[:MAX_PAIR_VALUES], b[:MAX_PAIR_VALUES]
            total = a[:, None] + b[None, :]
            is_near = total < nearer_than
            n_all += int(np.count_nonzero(is_near))
            if best and len(best[-1]) == self._max_pair_rows:
                is_near &= total < best[-1][-1]
            i, j = np.nonzero(is_near)
            found = [np.full(len(i), first), np.full(len(i), second), i, j, total[i, j]]
            # The nearest so far, after each two features: what all of them have would not fit in memory.
            best = self._nearest([np.concatenate(each) for each in zip(best, found, strict=True)] if best else found)
        if not best:
            return None
        firsts, seconds, i, j, total = best
        for begin in range(0, len(total), _BLOCK_ROWS):
            block = np.arange(begin, min(begin + _BLOCK_ROWS, len(total)))
            rows = np.repeat(self._question.row[None, :], len(block), axis=0)
            for chosen, places in ((firsts, i), (seconds, j)):
                for at, (index, _, values, _) in enumerate(self._tries):
                    mine = chosen[block] == at
                    rows[mine, index] = values[places[block][mine]]
            flips = self._question.flips(self._question.scores(rows))
            if flips.any():  # what comes after is not nearer
                way = block[int(flips.argmax())]
                steps = []
                for at, place in ((firsts[way], i[way]), (seconds[way], j[way])):
                    index, change, values, _ = self._tries[at]
                    steps.append(Step(index, change, float(values[place]), "exactly"))
                return Way(tuple(steps), float(total[way]))
        self.is_exhaustive &= len(total) == n_all
        return None

    def _nearest(self, pairs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """Of (first, second, value of the first, of the second, distance) the nearest, in that order; others are left out."""
        firsts, seconds, i, j, total = pairs
        order = np.lexsort((j, i, seconds, firsts, total))[: self._max_pair_rows]
        return [each[order] for each in pairs]


class MonotoneSearch:
    """Where the score is monotone in each feature.

    Args:
        question: the decision.
        actionable: (index, change) in the order of features; each has a value.
    """

    is_exhaustive = True

    def __init__(self, question: Question, actionable: Actionable) -> None:
        self._question = question
        #: (index, change, first value within bounds, or now; farthest value) of each side of each feature.
        self._sides: list[tuple[int, Change, float, float]] = []
        for index, change in actionable:
            now = float(question.row[index])
            self._sides += [
                (index, change, *side) for side in _sides(change, now, _REACH * float(question.spreads[index]))
            ]

    def singles(self) -> list[Way]:
        """The nearest change of each feature alone, in the order of features."""
        ways: dict[int, Way] = {}
        for index, change, start, end in self._sides:
            value = self._border(self._question.row, index, change, start, end)
            if value is None:
                continue
            extent = self._side(index, value)
            way = Way((Step(index, change, value, extent),), self._question.distance(index, value))
            if index not in ways or way.distance < ways[index].distance:
                ways[index] = way
        return list(ways.values())

    def pair(self, nearer_than: float) -> Way | None:
        """The nearest change of two features, if it is nearer than that."""
        best: Way | None = None
        for (i, change_i, _, end_i), (j, change_j, start_j, end_j) in itertools.permutations(self._sides, 2):
            if i == j:
                continue
            spent = self._question.distance(i, end_i)
            if spent >= nearer_than:
                continue
            row = self._question.row.copy()
            row[i] = end_i
            value = self._border(row, j, change_j, start_j, end_j)
            if value is None:
                continue
            distance = spent + self._question.distance(j, value)
            if distance < nearer_than:
                nearer_than = distance
                steps = Step(i, change_i, end_i, self._side(i, end_i)), Step(j, change_j, value, self._side(j, value))
                best = Way(steps if i < j else steps[::-1], distance)
        return best

    def _side(self, index: int, value: float) -> Extent:
        return "at_least" if value > self._question.row[index] else "at_most"

    def _border(self, row: NDArray[np.float32], index: int, change: Change, start: float, end: float) -> float | None:
        """The value nearest to now that flips the row's decision, or None where the farthest does not."""

        def flips(value: float) -> bool:
            changed = row.copy()
            changed[index] = value
            return bool(self._question.flips(self._question.scores(changed[None, :]))[0])

        if not flips(end):
            return None
        if start != self._question.row[index] and flips(start):
            return start
        number, value_of = _numbering(change)
        near, far = number(start, end), number(end, end)
        while abs(far - near) > 1:
            middle = (near + far) // 2
            if flips(value_of(middle)):
                far = middle
            else:
                near = middle
        return value_of(far)


def _numbering(change: Change) -> tuple[Callable[[float, float], int], Callable[[int], float]]:
    """Whole numbers in the order of the values a feature can take, and back: grid points, or all float32.

    The first takes a value and the side it lies towards: a value between grid points gets the number behind it.
    """
    if change.step is not None:
        origin, step = 0.0 if change.minimum is None else change.minimum, change.step

        def place(value: float, towards: float) -> int:
            steps = (value - origin) / step
            nearest = round(steps)
            if np.float32(origin + nearest * step) == np.float32(value):
                return nearest
            return math.floor(steps) if towards >= value else math.ceil(steps)

        return place, lambda number: float(np.float32(origin + number * step))

    def rank(value: float, _towards: float) -> int:
        bits: int = struct.unpack("<i", struct.pack("<f", value))[0]
        return bits if bits >= 0 else -(bits & 0x7FFFFFFF)

    def ranked(number: int) -> float:
        bits = number if number >= 0 else -number - 0x80000000
        return float(struct.unpack("<f", struct.pack("<i", bits))[0])

    return rank, ranked


def _sides(change: Change, now: float, reach: float) -> list[tuple[float, float]]:
    """(first value within bounds, or now; farthest value) of each side that a feature may move to."""
    low = -_FLOAT32_MAX if change.minimum is None else _inside(change.minimum, change, -1.0)
    high = _FLOAT32_MAX if change.maximum is None else _inside(change.maximum, change, 1.0)
    sides = []
    for sign, bound in ((1.0, change.maximum), (-1.0, change.minimum)):
        if change.direction == ("down" if sign > 0 else "up") or low > high:
            continue
        start = min(max(now, low), high)
        end = _inside(start + sign * reach, change, sign) if bound is None else (high if sign > 0 else low)
        if sign * (start - now) >= 0 and sign * (end - now) > 0 and sign * (end - start) >= 0:
            sides.append((start, end))
    return sides


def _inside(limit: float, change: Change, sign: float) -> float:
    """A bound as the model sees it: float32, and of the grid where there is one, not past it as seen from within."""
    limit = min(max(limit, -_FLOAT32_MAX), _FLOAT32_MAX)
    if change.step is not None:
        origin = 0.0 if change.minimum is None else change.minimum
        steps = (limit - origin) / change.step
        nearest = round(steps)
        if np.float32(origin + nearest * change.step) != np.float32(limit):
            nearest = math.floor(steps) if sign > 0 else math.ceil(steps)
        limit = origin + nearest * change.step
    return float(np.float32(limit))


def _candidates(
    cuts: NDArray[np.floating[Any]] | None, now: float, goes_left: Literal["at", "below"] | None, change: Change
) -> NDArray[np.float32]:
    """Per threshold the value on its far side that is nearest to `now`; and the bounds, for a value now that is outside."""
    if cuts is None or not len(cuts):
        return np.zeros(0, dtype=np.float32)
    with np.errstate(over="ignore"):
        at = np.unique(np.asarray(cuts).astype(np.float32))
    at = at[np.isfinite(at)]
    below, above = np.nextafter(at, np.float32(-np.inf)), np.nextafter(at, np.float32(np.inf))
    exact = np.asarray(cuts).dtype == np.float32
    if exact and goes_left == "at":
        values = np.concatenate([at[at < now], above[above > now]])
    elif exact and goes_left == "below":
        values = np.concatenate([below[below < now], at[at > now]])
    else:  # a float64 threshold lies on either side of its float32
        values = np.concatenate([below, at, above])
    bounds = [
        _inside(bound, change, sign)
        for sign, bound in ((1.0, change.maximum), (-1.0, change.minimum))
        if bound is not None
    ]
    values = np.concatenate([values, np.array(bounds, dtype=np.float32)])
    return values if change.step is None else _on_grid(values, change)


def _on_grid(values: NDArray[np.float32], change: Change) -> NDArray[np.float32]:
    """The grid points around each value: which of them is past a threshold, scoring says.

    Two on each side, because a value just beside a grid point may round to it on the way.
    """
    origin, step = 0.0 if change.minimum is None else change.minimum, change.step or 1.0
    behind = np.floor((values.astype(np.float64) - origin) / step)
    around: NDArray[np.float64] = behind[:, None] + np.arange(-1.0, 3.0)
    points: NDArray[np.float32] = (origin + around.ravel() * step).astype(np.float32)
    return points


def _within(values: NDArray[np.float32], now: float, change: Change) -> NDArray[np.float32]:
    """The values that the feature may be changed to, ascending."""
    kept: NDArray[np.float32] = np.unique(values[np.isfinite(values)])
    kept = kept[kept != np.float32(now)]
    if change.direction != "either":
        kept = kept[kept > now] if change.direction == "up" else kept[kept < now]
    if change.minimum is not None:
        kept = kept[kept >= np.float32(change.minimum)]
    if change.maximum is not None:
        kept = kept[kept <= np.float32(change.maximum)]
    return kept
