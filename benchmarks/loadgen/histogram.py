"""Latency histograms with log-linear buckets: counts from the generator, percentiles for the report."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import compiled

SOURCE = Path(__file__).with_name("generator.pyx")
#: A reported percentile is at least the sample's, and at most this much above it.
RELATIVE_ERROR = 1 / 256


@cache
def _highest_ns() -> np.ndarray:
    return compiled.load(SOURCE).highest_values()


@dataclass(frozen=True)
class Histogram:
    """Nanoseconds. `counts` is uint64, one for each bucket of generator.h; `max_ns` is exact."""

    counts: np.ndarray
    max_ns: int

    @classmethod
    def of(cls, samples_ns: Any) -> Histogram:
        """From samples (uint64)."""
        values = np.ascontiguousarray(samples_ns, dtype=np.uint64)
        return cls(compiled.load(SOURCE).count(values), int(values.max(initial=0)))

    @property
    def n(self) -> int:
        """Samples."""
        return int(self.counts.sum())

    def __add__(self, other: Histogram) -> Histogram:
        return Histogram(self.counts + other.counts, max(self.max_ns, other.max_ns))

    def percentile_ns(self, q: float) -> int:
        """The smallest bucket bound that at least q percent of the samples do not exceed; 0 of no samples."""
        if not 0 <= q <= 100:
            raise ValueError(f"Expected a percentile in 0..100, got {q}")
        cumulated = np.cumsum(self.counts, dtype=np.uint64)
        if self.n == 0:
            return 0
        rank = max(1, int(np.ceil(self.n * (q / 100) * (1 - 1e-15))))
        bucket = int(np.searchsorted(cumulated, np.uint64(rank)))
        return min(int(_highest_ns()[bucket]), self.max_ns)

    def share_below_ns(self, bound_ns: int) -> float:
        """Which part of the samples certainly took no longer; 1 of no samples."""
        return float(self.counts[_highest_ns() <= bound_ns].sum()) / self.n if self.n else 1.0

    def summary_us(self) -> dict[str, float]:
        """p50, p90, p99, p99.9, p99.99 and max, in microseconds."""
        named = {f"p{q:g}": self.percentile_ns(q) / 1e3 for q in (50, 90, 99, 99.9, 99.99)}
        return {**named, "max": self.max_ns / 1e3}
