"""Change detectors for streams of errors: ADWIN, Page-Hinkley, DDM, EDDM and KSWIN, one value at a time.

They decide as river's detectors of the same names and parameters decide (the tests compare them, value by value). They are
our own because a monitor's state must outlive its process: river keeps ADWIN's window inside a compiled object that only
pickling can save, and nothing here reads pickles. This state is a few plain values, so that what was seen a month ago counts.

A detector that found a change starts anew with the next value. Values must be finite. None of it is safe to use from several
threads.
"""

from __future__ import annotations

import math
import random
from collections import deque
from itertools import islice
from typing import Any, ClassVar, Final, Protocol

import numpy as np


class Detector(Protocol):
    """What all of them can do.

    Attributes:
        name: stable, of the kind.
        has_drifted: the last value completed a change.
        has_warned: it is on the way to one; only DDM and EDDM warn.
        means: of the stream before and after the change just found; None where a detector does not tell.
    """

    name: ClassVar[str]
    has_drifted: bool
    has_warned: bool
    means: tuple[float, float] | None

    def update(self, value: float) -> None:
        """Take the next value."""

    def to_state(self) -> dict[str, Any]:
        """Everything it knows, as plain JSON values of bounded size."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on where `to_state` was called.

        Raises:
            KeyError, TypeError, ValueError: it is not the state of such a detector.
        """


class Adwin:
    """Adaptive window over values from 0 to 1 (Bifet and Gavalda 2007, ADWIN2).

    The window is kept as exponentially growing buckets; a change is found where some older and newer part differ in their
    means by more than a bound of confidence `delta` allows. State: at most 6 buckets per doubling of the window.

    Args:
        delta: of false alarms.
        clock: values between two looks.
        max_buckets: of one size.
        min_part: fewest values of a part.
        grace: no look before so many values.
    """

    name: ClassVar[str] = "adwin"

    def __init__(
        self, delta: float = 0.002, *, clock: int = 32, max_buckets: int = 5, min_part: int = 5, grace: int = 10
    ) -> None:
        self._delta, self._clock, self._max_buckets = delta, clock, max_buckets
        self._min_part, self._grace = min_part, grace
        self._start()

    def _start(self) -> None:
        self.has_drifted, self.has_warned = False, False
        self.means: tuple[float, float] | None = None
        self._sums: list[deque[float]] = [deque()]  # place i: sums of buckets of 2**i values, oldest first
        self._n, self._mean, self._squares = 0, 0.0, 0.0

    @property
    def width(self) -> int:
        """Values in the window."""
        return self._n

    def update(self, value: float) -> None:
        """Take the next value."""
        if self.has_drifted:
            self._start()
        self._n += 1
        apart = value - self._mean
        self._mean += apart / self._n
        self._squares += apart * (value - self._mean)
        self._insert(value)
        if self._n % self._clock == 0 and self._n > self._grace:
            self._look()

    def _insert(self, value: float) -> None:
        self._sums[0].append(value)
        place = 0
        while len(self._sums[place]) > self._max_buckets:
            if place + 1 == len(self._sums):
                self._sums.append(deque())
            row = self._sums[place]
            self._sums[place + 1].append(row.popleft() + row.popleft())
            place += 1

    def _look(self) -> None:
        """Compare the means on both sides of every boundary between buckets."""
        sums = np.array([each for row in reversed(self._sums) for each in row])
        sizes = np.repeat(
            [1 << place for place in reversed(range(len(self._sums)))], [len(row) for row in reversed(self._sums)]
        )
        n_old = np.cumsum(sizes)[:-1]
        n_new = self._n - n_old
        total_old = np.cumsum(sums)
        total, total_old = total_old[-1], total_old[:-1]
        kept = (n_old >= self._min_part) & (n_new >= self._min_part)
        if not kept.any():
            return
        n_old, n_new, total_old = n_old[kept], n_new[kept], total_old[kept]
        old, new = total_old / n_old, (total - total_old) / n_new
        share = 1 / (n_old - self._min_part + 1) + 1 / (n_new - self._min_part + 1)
        confidence = math.log(2 * math.log(self._n) / self._delta)
        bound = np.sqrt(2 * share * (self._squares / self._n) * confidence) + 2 / 3 * share * confidence
        beyond = np.abs(old - new) - bound
        widest = int(np.argmax(beyond))
        if beyond[widest] > 0:
            self.has_drifted, self.means = True, (float(old[widest]), float(new[widest]))

    def to_state(self) -> dict[str, Any]:
        """See `Detector`."""
        return {
            "drifted": self.has_drifted, "n": self._n, "mean": self._mean, "squares": self._squares,
            "sums": [list(row) for row in self._sums],
        }  # fmt: skip

    def load_state(self, state: dict[str, Any]) -> None:
        """See `Detector`."""
        sums = [deque(map(float, row)) for row in state["sums"]]
        n = int(state["n"])
        if not sums or len(sums) > 63 or n != sum(len(row) << place for place, row in enumerate(sums)):
            raise ValueError("buckets that are not the window's")
        self._start()
        self._sums, self._n, self._mean = sums, n, _finite(state["mean"])
        self._squares, self.has_drifted = _finite(state["squares"]), bool(state["drifted"])


class PageHinkley:
    """Sum of deviations from the running mean, forgotten slowly (Page 1954, Hinkley 1971), both ways.

    `threshold` and `delta` are in the units of the values: give it standardized ones. With a deviation of 1 the mean number
    of values between false alarms grows like exp(2 * delta * threshold).
    """

    name: ClassVar[str] = "page_hinkley"

    def __init__(
        self, *, delta: float = 0.005, threshold: float = 50.0, forgetting: float = 0.9999, least: int = 30
    ) -> None:
        self._delta, self._threshold, self._forgetting, self._least = delta, threshold, forgetting, least
        self._start()

    def _start(self) -> None:
        self.has_drifted, self.has_warned = False, False
        self.means: tuple[float, float] | None = None
        self._n, self._mean = 0, 0.0
        self._up, self._down = 0.0, 0.0
        self._least_up, self._most_down = math.inf, -1.0

    def update(self, value: float) -> None:
        """Take the next value."""
        if self.has_drifted:
            self._start()
        self._n += 1
        self._mean += (value - self._mean) / self._n
        apart = value - self._mean
        self._up = self._forgetting * self._up + apart - self._delta
        self._down = self._forgetting * self._down + apart + self._delta
        self._least_up = min(self._least_up, self._up)
        self._most_down = max(self._most_down, self._down)
        if self._n >= self._least:
            self.has_drifted = (
                self._up - self._least_up > self._threshold or self._most_down - self._down > self._threshold
            )

    def to_state(self) -> dict[str, Any]:
        """See `Detector`. The lowest sum is infinite before the first value, and then left out."""
        least_up = self._least_up if math.isfinite(self._least_up) else None
        return {
            "drifted": self.has_drifted, "n": self._n, "mean": self._mean, "up": self._up, "down": self._down,
            "least_up": least_up, "most_down": self._most_down,
        }  # fmt: skip

    def load_state(self, state: dict[str, Any]) -> None:
        """See `Detector`."""
        self._start()
        self._n, self._mean, self._up, self._down = (
            int(state["n"]), _finite(state["mean"]), _finite(state["up"]), _finite(state["down"]),
        )  # fmt: skip
        self._least_up = math.inf if state["least_up"] is None else _finite(state["least_up"])
        self._most_down, self.has_drifted = _finite(state["most_down"]), bool(state["drifted"])


class Ddm:
    """Error rate against its own best (Gama et al. 2004): values are 1 for an error and 0 for none."""

    name: ClassVar[str] = "ddm"

    def __init__(self, *, warning: float = 2.0, drift: float = 3.0, least: int = 30) -> None:
        self._warning, self._drift, self._least = warning, drift, least
        self._start()

    def _start(self) -> None:
        self.has_drifted, self.has_warned = False, False
        self.means: tuple[float, float] | None = None
        self._n, self._rate = 0, 0.0
        self._best_rate, self._best_deviation, self._best = 0.0, 0.0, math.inf

    def update(self, value: float) -> None:
        """Take the next value."""
        if self.has_drifted:
            self._start()
        self._n += 1
        self._rate += (value - self._rate) / self._n
        if self._n <= self._least:
            return
        deviation = math.sqrt(max(0.0, self._rate * (1 - self._rate)) / self._n)
        level = self._rate + deviation
        if level <= self._best:
            self._best_rate, self._best_deviation, self._best = self._rate, deviation, level
        self.has_drifted = level > self._best_rate + self._drift * self._best_deviation
        self.has_warned = not self.has_drifted and level > self._best_rate + self._warning * self._best_deviation
        if self.has_drifted:
            self.means = (self._best_rate, self._rate)

    def to_state(self) -> dict[str, Any]:
        """See `Detector`."""
        best = [self._best_rate, self._best_deviation] if math.isfinite(self._best) else None
        return {"drifted": self.has_drifted, "warned": self.has_warned, "n": self._n, "rate": self._rate, "best": best}

    def load_state(self, state: dict[str, Any]) -> None:
        """See `Detector`."""
        self._start()
        self._n, self._rate = int(state["n"]), _finite(state["rate"])
        if state["best"] is not None:
            self._best_rate, self._best_deviation = map(_finite, state["best"])
            self._best = self._best_rate + self._best_deviation
        self.has_drifted, self.has_warned = bool(state["drifted"]), bool(state["warned"])


class Eddm:
    """Distance between errors against its own best (Baena-Garcia et al. 2006): values are 1 for an error and 0 for none."""

    name: ClassVar[str] = "eddm"

    def __init__(self, *, warning: float = 0.95, drift: float = 0.9, least: int = 30) -> None:
        self._warning, self._drift, self._least = warning, drift, least
        self._start()

    def _start(self) -> None:
        self.has_drifted, self.has_warned = False, False
        self.means: tuple[float, float] | None = None
        self._n, self._n_errors, self._last_error = 0, 0, 0
        self._mean, self._squares, self._best = 0.0, 0.0, -1.0

    def update(self, value: float) -> None:
        """Take the next value."""
        if self.has_drifted:
            self._start()
        self._n += 1
        if value != 1:
            return
        self._n_errors += 1
        distance = self._n - self._last_error
        self._last_error = self._n
        apart = distance - self._mean
        self._mean += apart / self._n_errors
        self._squares += apart * (distance - self._mean)
        if self._n <= self._least:
            return
        deviation = math.sqrt(self._squares / (self._n_errors - 1)) if self._n_errors > 1 else 0.0
        level = self._mean + 2 * deviation
        if level > self._best:
            self._best = level
        elif self._n_errors > self._least:
            self.has_drifted = level / self._best < self._drift
            if not self.has_drifted:
                self.has_warned = level / self._best < self._warning

    def to_state(self) -> dict[str, Any]:
        """See `Detector`."""
        return {
            "drifted": self.has_drifted, "warned": self.has_warned, "n": self._n, "n_errors": self._n_errors,
            "last_error": self._last_error, "mean": self._mean, "squares": self._squares, "best": self._best,
        }  # fmt: skip

    def load_state(self, state: dict[str, Any]) -> None:
        """See `Detector`."""
        self._start()
        self._n, self._n_errors, self._last_error = (int(state[name]) for name in ("n", "n_errors", "last_error"))
        self._mean, self._squares, self._best = (_finite(state[name]) for name in ("mean", "squares", "best"))
        self.has_drifted, self.has_warned = bool(state["drifted"]), bool(state["warned"])


class Kswin:
    """The newest values against a random sample of those before them, by the Kolmogorov-Smirnov test (Raab et al. 2020).

    Args:
        alpha: of one test. There is a test at every value, so that false alarms are common.
        window: values kept.
        newest: of them, how many are compared with as many drawn from the others; 2 * newest <= window.
        seed: of the drawing.
    """

    name: ClassVar[str] = "kswin"

    def __init__(self, alpha: float = 0.005, *, window: int = 100, newest: int = 30, seed: int = 1) -> None:
        if not 0 < 2 * newest <= window:
            raise ValueError(f"Expected a window of at least twice the newest values, got {window} and {newest}")
        self._window_size, self._newest, self._seed = window, newest, seed
        self._critical = _critical_distance(newest, alpha)
        self._start()

    def _start(self) -> None:
        self.has_drifted, self.has_warned = False, False
        self.means: tuple[float, float] | None = None
        self._window: deque[float] = deque(maxlen=self._window_size)
        self._rng = random.Random(self._seed)  # noqa: S311 - a sample, not a secret

    def update(self, value: float) -> None:
        """Take the next value."""
        if self.has_drifted:
            self._start()
        self._window.append(value)
        if len(self._window) < self._window_size:
            return
        n_old = self._window_size - self._newest
        old = [self._window[place] for place in self._rng.sample(range(n_old), self._newest)]
        new = list(islice(self._window, n_old, self._window_size))
        if _distance(old, new) >= self._critical:
            self.has_drifted, self.means = True, (sum(old) / self._newest, sum(new) / self._newest)

    def to_state(self) -> dict[str, Any]:
        """See `Detector`."""
        version, numbers, gauss = self._rng.getstate()
        return {"drifted": self.has_drifted, "window": list(self._window), "rng": [version, list(numbers), gauss]}

    def load_state(self, state: dict[str, Any]) -> None:
        """See `Detector`."""
        self._start()
        version, numbers, gauss = state["rng"]
        self._rng.setstate((version, tuple(numbers), gauss))
        self._window.extend(map(_finite, state["window"]))
        self.has_drifted = bool(state["drifted"])


def _distance(one: list[float], other: list[float]) -> int:
    """The largest difference of two samples' counts of values up to some place; both have n, and this is n times KS."""
    places = sorted([(value, 1) for value in one] + [(value, -1) for value in other])
    widest = level = 0
    last = len(places) - 1
    for i, (value, step) in enumerate(places):
        level += step
        if i == last or places[i + 1][0] != value:
            widest = max(widest, abs(level))
    return widest


def _critical_distance(n: int, alpha: float) -> int:
    """The least n * KS of two samples of n whose exact probability is at most alpha, and above a tenth of n."""
    everything = math.comb(2 * n, n)
    for distance in range(n // 10 + 1, n + 1):
        # Paths of 2n steps that reach the distance on either side, by reflection (Gnedenko and Korolyuk 1951).
        paths = sum((-1) ** (k - 1) * math.comb(2 * n, n + k * distance) for k in range(1, n // distance + 1))
        if 2 * paths <= alpha * everything:
            return distance
    return n + 1  # no distance is enough


def _finite(value: Any) -> float:
    if type(value) not in {int, float} or not math.isfinite(value):
        raise ValueError(f"expected a number, got {value!r:.40}")
    return float(value)


KINDS: Final[tuple[type[Adwin | PageHinkley | Ddm | Eddm | Kswin], ...]] = (Adwin, PageHinkley, Ddm, Eddm, Kswin)
