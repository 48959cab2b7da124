"""What scoring n rows takes: measured when a version was registered, followed while it serves.

Everything the near-realtime tier decides - how large a batch is, how long a queue may get, who is refused - follows from
this curve, so there is nothing to configure.
"""

from __future__ import annotations

import copy
import math
from bisect import bisect_right
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

#: No batch is larger; profiles measure up to here.
MAX_ROWS = 512
#: Weight of one observation: a change of the host is followed, and forgotten again, within some tens of batches.
WEIGHT = 1 / 16
#: Two in a row that are off by this factor, to the same side, are no stall: the host, or the model, is another one, and whoever
#: was let in by what it was is late until that is learned. From the second on an observation weighs so much, and counts as
#: no more than so many times what was expected: two stalls in a row happen as well.
SURPRISE, SURPRISE_WEIGHT, SURPRISE_STEP = 2.5, 3 / 4, 4.0
#: Weight of one observation of how the time depends on the rows, and how different in size batches are that show it well.
SHAPE_WEIGHT, SHAPE_SPREAD = 1 / 64, 0.1
#: The most of a batch's time that no row is said to need.
MOST_FIXED = 0.95
#: How far observations may move a measured curve. Beyond it the profile is wrong, and the version should be measured again.
RATIO_LIMITS = (1 / 16, 256.0)
#: ... and the most that one observation counts as, times what was expected.
STEP = 16.0
#: A batch is large enough when a row costs at most this much more than in the best one.
NEAR_BEST = 1.1


class CostCurve:
    """Microseconds to score n rows in one call.

    Between measured sizes it is linear, below the smallest constant, beyond the largest it goes on with the last slope.
    Larger batches never take less time: where the measurement says so it is noise, and the curve runs half-way (of the
    logarithms) between what the smaller sizes took at most and what the larger took at least.

    Args:
        points: (rows, p50 in us, p99 in us), at least one, of different numbers of rows from 1.

    Raises:
        ValueError: the points are none of that.
    Threads: one at a time; a batcher's event loop.
    """

    def __init__(self, points: Sequence[tuple[int, float, float]]) -> None:
        ordered = sorted(points)
        if not ordered:
            raise ValueError("Expected at least one (rows, p50 us, p99 us), got none. Measure the version first.")
        if any(n < 1 for n, _, _ in ordered) or any(a[0] == b[0] for a, b in pairwise(ordered)):
            raise ValueError(f"Expected different numbers of rows from 1, got {[n for n, _, _ in ordered]}")
        if not all(math.isfinite(us) and us > 0 for point in ordered for us in point[1:]):
            raise ValueError(f"Expected positive microseconds, got {ordered}")
        self.ratio = 1.0  # observed / measured, of what depends on the rows as it was measured
        self.fixed_us = 0.0  # and so much more of every batch
        self._middle: float | None = None  # of the sizes observed: mean logarithm of what they took when measured,
        self._variance = 0.0  # ... and mean square difference from that
        self._surprised = 0  # by the last observation: 1 it took far longer, -1 far less; 0 it did neither
        self._draw(ordered)

    @classmethod
    def unmeasured(cls) -> CostCurve:
        """A curve that knows nothing yet and is drawn from the first batches."""
        return _LearnedCurve()

    def us(self, n_rows: int) -> float:
        """99 of 100 batches of `n_rows` take at most this long."""
        return self.fixed_us + self.rows_us(n_rows)

    def rows_us(self, n_rows: int) -> float:
        """The same without `fixed_us`."""
        if n_rows < len(self._p99):
            return self._p99[n_rows] * self.ratio
        return (self._p99[-1] + (n_rows - len(self._p99) + 1) * self._slopes[1]) * self.ratio

    @property
    def table_us(self) -> list[float]:
        """By number of rows, what `rows_us` says before `ratio`; not to be changed, and another list once the curve is."""
        return self._p99

    def typical_us(self, n_rows: int) -> float:
        """Half of the batches of `n_rows` take at most this long."""
        return self.fixed_us + self._measured_us(n_rows) * self.ratio

    def _measured_us(self, n_rows: int) -> float:
        if n_rows < len(self._p50):
            return self._p50[n_rows]
        return self._p50[-1] + (n_rows - len(self._p50) + 1) * self._slopes[0]

    def hoped_us(self, n_rows: int) -> float:
        """What `us` said before anything was observed."""
        return self.rows_us(n_rows) / self.ratio

    def unlearned(self) -> CostCurve:
        """The same curve before anything was observed."""
        fresh = copy.copy(self)
        fresh.forget()
        return fresh

    def stretched(self, by: float) -> CostCurve:
        """A view of what this curve says now, times `by`; not to be told of batches."""
        view = copy.copy(self)
        view.ratio, view.fixed_us = self.ratio * by, self.fixed_us * by
        return view

    def forget(self) -> None:
        """What was observed."""
        self.ratio, self.fixed_us, self._surprised = 1.0, 0.0, 0

    def rows_within(self, us: float) -> int:
        """The most rows with `self.rows_us(rows) <= us`, at most the largest size measured; 0: none."""
        n = min(bisect_right(self._p99, us / self.ratio), len(self._p99)) - 1
        while n > 0 and self.rows_us(n) > us:  # the division rounded up
            n -= 1
        return max(0, n)

    def best_rows(self, limit_us: float, overhead_us: float = 0.0) -> int:
        """The batch beyond which a row no longer gets much cheaper, of those that take `limit_us` at most; at least 1.

        Args:
            limit_us: p99 of the batch, overhead included; or half as long again as one row where that is more, for then
                it is the model that is slow, and not the batch.
            overhead_us: what every batch takes besides scoring.
        """
        limit_us = max(limit_us, 1.5 * (overhead_us + self.us(1)))
        overhead_us += self.fixed_us
        most = max(1, min(MAX_ROWS, self.rows_within(limit_us - overhead_us)))
        n = np.arange(1, most + 1)
        per_row = (overhead_us + self.ratio * np.asarray(self._p50[1 : most + 1])) / n
        return int(n[per_row <= NEAR_BEST * per_row.min()][0])

    def cheapest_row_us(self, most_rows: int, overhead_us: float = 0.0) -> float:
        """The least that a row can take of p99, in a batch of at most `most_rows`."""
        n = np.arange(1, most_rows + 1)
        return float(((overhead_us + self.fixed_us + self.ratio * np.asarray(self._p99[1 : most_rows + 1])) / n).min())

    def observe(self, n_rows: int, us: float) -> None:
        """Follow the host: a batch of `n_rows` took `us`.

        Ratios are averaged as logarithms, so twice as slow and twice as fast cancel out and one stall counts little; what is
        far off twice in a row is believed.
        """
        expected_us, measured_us = self.typical_us(n_rows), self._measured_us(n_rows)
        off = min(STEP, max(1 / STEP, us / expected_us))
        surprised = (off > SURPRISE) - (SURPRISE * off < 1)
        weight = WEIGHT
        if surprised and surprised == self._surprised:
            weight, off = SURPRISE_WEIGHT, min(SURPRISE_STEP, max(1 / SURPRISE_STEP, off))
        self._surprised = surprised
        lowest, highest = (limit * measured_us / expected_us for limit in RATIO_LIMITS)
        factor = min(highest, max(lowest, off**weight))
        self.ratio, self.fixed_us = self.ratio * factor, self.fixed_us * factor
        self._bend(math.log(measured_us), math.log(off))

    def _bend(self, log_us: float, off: float) -> None:
        """Follow how much of a batch's time does not depend on its rows.

        Beside other work caches are cold, which every batch pays for once: a curve measured with warm ones is too steep.
        This is a step of stochastic gradient descent on the share of the fixed part in a batch of middling size: where larger
        batches take less than foreseen, and smaller ones more, it grows. What the middle one takes stays as it is.

        Args:
            log_us: logarithm of what a batch of this size took when it was measured.
            off: logarithm of what this one took, of what was expected.
        """
        if self._middle is None:
            self._middle = log_us
        beside = log_us - self._middle
        self._middle += WEIGHT * beside
        self._variance += WEIGHT * (beside * beside - self._variance)
        rows_us = self.ratio * math.exp(self._middle)
        all_us = self.fixed_us + rows_us
        share = self.fixed_us / all_us
        share -= SHAPE_WEIGHT * max(-1.0, min(1.0, off)) * beside / (self._variance + SHAPE_SPREAD)
        share = max(0.0, min(MOST_FIXED, share))
        self.ratio *= (1 - share) * all_us / rows_us
        self.fixed_us = share * all_us

    def _draw(self, points: Sequence[tuple[int, float, float]]) -> None:
        """Tabulate the curve by number of rows."""
        sizes = np.array([n for n, _, _ in points])
        p50 = _rising([us for _, us, _ in points])
        p99 = np.maximum(p50, _rising([us for _, _, us in points]))
        slope = _last_slope(sizes, p50)
        self._slopes = (slope, max(slope, _last_slope(sizes, p99)))
        last = int(min(sizes[-1], MAX_ROWS))
        if last < MAX_ROWS:
            sizes = np.append(sizes, MAX_ROWS)
            p50 = np.append(p50, p50[-1] + (MAX_ROWS - last) * self._slopes[0])
            p99 = np.append(p99, p99[-1] + (MAX_ROWS - last) * self._slopes[1])
        n_rows = np.arange(int(sizes[-1]) + 1)
        self._p50: list[float] = [0.0, *np.interp(n_rows, sizes, p50)[1:].tolist()]
        self._p99: list[float] = [0.0, *np.interp(n_rows, sizes, p99)[1:].tolist()]


class _LearnedCurve(CostCurve):
    """Drawn from what batches took, at powers of two.

    Where nothing was seen yet it supposes that half of the nearest seen batch's time does not depend on its rows. That is
    hopeful enough for larger batches to be tried, and cautious enough that they are at most some times the largest seen.
    """

    _SIZES = tuple(1 << k for k in range(MAX_ROWS.bit_length()))
    _GUESS_US = 200.0  # of one row, until the first batch

    def __init__(self) -> None:
        self._seen: dict[int, float] = {}  # index in _SIZES -> logarithm of the microseconds
        self._spread = math.log(2) / 3  # mean absolute difference of logarithms
        self._n_seen = 0
        super().__init__(self._points())

    def hoped_us(self, n_rows: int) -> float:
        """As little as before the first batch."""
        return min(self.us(n_rows), self._GUESS_US * n_rows)

    def unlearned(self) -> CostCurve:
        """One that knows nothing."""
        return _LearnedCurve()

    def observe(self, n_rows: int, us: float) -> None:
        """Follow what a batch of `n_rows` took; `ratio` stays 1, the curve itself moves."""
        at = min(len(self._SIZES) - 1, round(math.log2(n_rows)))
        size = self._SIZES[at]
        if self._seen:
            us *= self.typical_us(size) / self.typical_us(n_rows)
        else:
            us *= 0.5 + 0.5 * size / n_rows
        known = self._seen.get(at)
        if known is not None:
            difference = math.log(us / self.typical_us(size))
            self._spread += WEIGHT * (min(abs(difference), math.log(4)) - self._spread)
            # Sizes that no longer occur follow too: a slow first call of one row must not hold up the rest for good.
            for other in self._seen.keys() - {at}:
                self._seen[other] += WEIGHT * difference
        self._n_seen += 1
        weight = max(WEIGHT, 1 / self._n_seen)
        self._seen[at] = math.log(us) if known is None else known + weight * (math.log(us) - known)
        self._draw(self._points())

    def _points(self) -> list[tuple[int, float, float]]:
        wide = min(4.0, max(1.25, math.exp(3 * self._spread)))
        if not self._seen:
            known = {1: self._GUESS_US}
        else:
            known = {self._SIZES[at]: math.exp(log_us) for at, log_us in sorted(self._seen.items())}
        sizes, values = list(known), list(known.values())
        points = []
        for n in self._SIZES:
            nearest, us = (sizes[0], values[0]) if n < sizes[0] else (sizes[-1], values[-1])
            inside = sizes[0] <= n <= sizes[-1]
            typical = float(np.interp(n, sizes, values)) if inside else us * (0.5 + 0.5 * n / nearest)
            points.append((n, typical, typical * wide))
        return points


def _rising(us: list[float]) -> np.ndarray:
    """The values where they rise; between the two envelopes where they do not."""
    most = np.maximum.accumulate(us)
    least = np.minimum.accumulate(us[::-1])[::-1]
    rising: np.ndarray = np.sqrt(most * least)
    return rising


def _last_slope(sizes: np.ndarray, us: np.ndarray) -> float:
    """Microseconds of one more row after the last point; never 0, or rows without end would be free."""
    if len(sizes) > 1 and us[-1] > us[-2]:
        return float((us[-1] - us[-2]) / (sizes[-1] - sizes[-2]))
    return float(us[-1] / sizes[-1])
