"""What became of every request of a run, by itself: for shares by kind of request, by deadline and by moment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.loadgen.histogram import Histogram

#: "Come again later" and "not in the time you give me": what a server may answer instead of being late.
REFUSALS = (503, 504)
BROKEN, UNFINISHED, ABANDONED = 0, -1, -2
NOT_TIMED = 2**32 - 1


@dataclass(frozen=True)
class Replies:
    """Requests that were due after the warm-up, as generator.h logs them; in the order in which they ended."""

    log: np.ndarray  # structured, see `LOGGED` in generator.pyx

    def __len__(self) -> int:
        return len(self.log)

    def where(self, mask: np.ndarray) -> Replies:
        """Those for which `mask` (n,) holds."""
        return Replies(self.log[mask])

    def of(self, kinds: np.ndarray, kind: int) -> Replies:
        """Those of a kind; `kinds` (n_requests,) says it of each of the run's `Requests`."""
        return self.where(kinds[self.log["request"]] == kind)

    def due_within(self, begin_s: float, end_s: float) -> Replies:
        """Those that were due in [begin_s, end_s) of the measurement."""
        return self.where((self.log["due_ns"] >= 1e9 * begin_s) & (self.log["due_ns"] < 1e9 * end_s))

    @property
    def answered(self) -> Replies:
        """With a prediction."""
        return self.where(self.log["status"] == 200)

    @property
    def refused(self) -> Replies:
        """With a 503 or 504."""
        return self.where(np.isin(self.log["status"], REFUSALS))

    def count(self, *statuses: int) -> int:
        """How many ended with one of these."""
        return int(np.isin(self.log["status"], statuses).sum())

    @property
    def n_failed(self) -> int:
        """Neither answered nor refused, nor left alone: another status, or a broken connection."""
        return len(self) - self.count(200, *REFUSALS, UNFINISHED, ABANDONED)

    @property
    def latency_ns(self) -> np.ndarray:
        """int64 (n,): from when each was due to its reply. Only of those that have one."""
        return self.log["done_ns"] - self.log["due_ns"]

    @property
    def service_ns(self) -> np.ndarray:
        """int64 (n,): from when each was sent to its reply. Only of those that have one."""
        return self.log["done_ns"] - self.log["sent_ns"]

    @property
    def server_ns(self) -> np.ndarray:
        """int64: what the server says it took, of those of which it says it."""
        timed = self.log["server_us"][self.log["server_us"] != NOT_TIMED]
        return timed.astype(np.int64) * 1000

    def n_within(self, bound_ns: int) -> int:
        """How many were answered at most `bound_ns` after they were due."""
        return int((self.answered.latency_ns <= bound_ns).sum())

    def recovered_s(
        self, from_s: float, bounds_ns: np.ndarray, share: float = 0.99, window_s: float = 0.1
    ) -> float | None:
        """Seconds after `from_s` until a window begins in which `share` of what is due is answered in time; None: never.

        `bounds_ns` (n_requests,) says what in time is, of each of the run's requests. A window with nothing due is bad.
        """
        late = self.log[self.log["due_ns"] >= 1e9 * from_s]
        window = ((late["due_ns"] - 1e9 * from_s) / (1e9 * window_s)).astype(np.int64)
        good = (late["status"] == 200) & (late["done_ns"] - late["due_ns"] <= bounds_ns[late["request"]])
        n = np.bincount(window)
        shares = np.bincount(window, weights=good) / np.maximum(1, n)
        found = np.flatnonzero(shares >= share)
        return None if len(found) == 0 else float(found[0] * window_s)


def share(part: int, whole: int) -> str:
    """In per cent, or that there was nothing."""
    return "      none" if whole == 0 else f"{100 * part / whole:8.3f} %"


def percentiles(times_ns: np.ndarray) -> str:
    """p50, p99, p99.9 and max in microseconds."""
    if len(times_ns) == 0:
        return "none"
    us = Histogram.of(np.maximum(0, times_ns).astype(np.uint64)).summary_us()
    return f"p50 {us['p50']:9,.0f}  p99 {us['p99']:9,.0f}  p99.9 {us['p99.9']:9,.0f}  max {us['max']:9,.0f} us"
