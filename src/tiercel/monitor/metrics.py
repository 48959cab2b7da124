"""What all workers counted, as Prometheus metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from tiercel.monitor.counting import MAGNITUDE_BOUNDS, PLAN_CELLS, STAGES
from tiercel.monitor.reference import ABOVE_ALL, BELOW_ALL, MISSING
from tiercel.monitor.totals import Totals, read_totals

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.typing import NDArray
    from prometheus_client.core import Metric

__all__ = ["BUCKETS_S", "CONTENT_TYPE_LATEST", "quantile_us", "render_metrics"]

#: Upper bounds of the duration histogram. The counts behind have cells of 3 %: one that straddles a bound counts below it
#: if its middle is.
BUCKETS_S = (
    50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 2e-3, 5e-3, 10e-3, 20e-3, 50e-3, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0
)  # fmt: skip
_SUM = len(MAGNITUDE_BOUNDS)
_MIDDLES = (MAGNITUDE_BOUNDS[:-1] + MAGNITUDE_BOUNDS[1:] - 1) / 2


def render_metrics(state_dir: Path) -> bytes:
    """Everything counted under a state directory in Prometheus' text format. Reads files; call it outside the event loop.

    Files that are foreign, cut short or of another format are left out and counted in `tiercel_counter_files_unreadable`.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(TotalsCollector(read_totals(state_dir / "counters")))
    return generate_latest(registry)


def quantile_us(cells: NDArray[np.uint64], q: float) -> float:
    """A quantile of a duration histogram in microseconds, within 1.6 %; NaN when it is empty.

    Args:
        cells: one row of the section `durations_ns`.
        q: from 0 to 1.
    """
    counts = cells[: len(MAGNITUDE_BOUNDS)].astype(np.float64)
    total = counts.sum()
    if not total:
        return float("nan")
    cell = int(np.searchsorted(np.cumsum(counts), max(q * total, 1)))
    return float(_MIDDLES[cell] if cell < len(_MIDDLES) else MAGNITUDE_BOUNDS[-1]) / 1e3


class TotalsCollector(Collector):
    """One reading of the totals as metric families."""

    def __init__(self, totals: Totals) -> None:
        self._totals = totals

    def collect(self) -> Iterable[Metric]:
        """All families; those of versions first."""
        yield from self._collect_versions()
        yield from self._collect_workers()

    def _collect_versions(self) -> Iterable[Metric]:
        labels = ["model", "version"]
        requests = CounterMetricFamily("tiercel_requests", "Answered predictions.", labels=[*labels, "path"])
        rows = CounterMetricFamily("tiercel_rows", "Scored rows.", labels=[*labels, "path"])
        missing = CounterMetricFamily(
            "tiercel_feature_missing", "Scored rows in which a feature had no value.", labels=[*labels, "feature"]
        )
        odd = CounterMetricFamily(
            "tiercel_scores_not_finite", "Scores that were NaN or infinite.", labels=[*labels, "output"]
        )
        durations = HistogramMetricFamily(
            "tiercel_request_duration_seconds",
            "Time of a prediction in the server, by stage and in total.",
            labels=[*labels, "tier", "stage"],
        )
        for counts in self._merged():
            what = counts.what
            name = [str(what["model"]), str(what["version"])]
            plan = dict(zip(PLAN_CELLS, map(int, counts.section("plan")), strict=False))
            for path in ("fast", "general"):
                requests.add_metric([*name, path], plan[f"requests_{path}"])
                rows.add_metric([*name, path], plan[f"rows_{path}"])
            for feature, cells in zip(what["features"], counts.section("features"), strict=True):
                missing.add_metric([*name, feature], int(cells[MISSING]))
            for output, cells in enumerate(counts.section("scores")):
                n = int(cells[ABOVE_ALL]) + int(cells[MISSING]) + int(cells[BELOW_ALL])
                odd.add_metric([*name, str(output)], n)
            for stage, cells in zip(STAGES, counts.section("durations_ns"), strict=True):
                durations.add_metric([*name, "realtime", stage], _buckets(cells), int(cells[_SUM]) / 1e9)
        yield from (requests, rows, missing, odd, durations)

    def _merged(self) -> Iterable[_Version]:
        """Per (model, version): a version whose reference changed has two sets of counts, and one of metrics."""
        versions: dict[tuple[str, int], _Version] = {}
        for counts in self._totals.plans.values():
            key = str(counts.what["model"]), int(counts.what["version"])
            sections = {name: counts.section(name) for name in ("plan", "features", "scores", "durations_ns")}
            known = versions.get(key)
            if known is None:
                versions[key] = _Version(counts.what, sections)
            elif all(known.section(name).shape == cells.shape for name, cells in sections.items()):
                versions[key] = _Version(counts.what, {n: known.section(n) + cells for n, cells in sections.items()})
        return versions.values()

    def _collect_workers(self) -> Iterable[Metric]:
        cells = self._totals.worker
        answered = CounterMetricFamily(
            "tiercel_fast_path", "Requests that the compiled protocol answered, or handed on.", labels=["outcome"]
        )
        answered.add_metric(["answered"], cells["answered"])
        answered.add_metric(["handed_on"], cells["handed_on"])
        yield answered
        replies = CounterMetricFamily("tiercel_replies", "Replies of the general path.", labels=["status"])
        for status in ("2xx", "3xx", "4xx", "5xx"):
            replies.add_metric([status], cells[f"replies_{status}"])
        yield replies
        errors = CounterMetricFamily("tiercel_errors", "Errors by stable code.", labels=["code"])
        for code, n in sorted(self._totals.errors.items()):
            errors.add_metric([code], n)
        yield errors
        yield CounterMetricFamily("tiercel_connections", "Accepted connections.", value=cells["connections"])
        records = CounterMetricFamily("tiercel_journal_records", "Predictions journaled, or not.", labels=["outcome"])
        records.add_metric(["written"], cells["journal_records"])
        records.add_metric(["dropped"], cells["journal_dropped"])
        records.add_metric(["too_large"], cells["journal_too_large"])
        yield records
        yield CounterMetricFamily("tiercel_journal_bytes", "Bytes of journaled records.", value=cells["journal_bytes"])
        segments = CounterMetricFamily("tiercel_journal_segments", "What happened to segments.", labels=["event"])
        for event in ("prepared", "failed", "sealed", "removed"):
            segments.add_metric([event], cells[f"segments_{event}"])
        yield segments
        yield GaugeMetricFamily("tiercel_workers", "Workers that run now.", value=self._totals.n_live)
        yield GaugeMetricFamily(
            "tiercel_counter_files_unreadable", "Counter files left out.", value=len(self._totals.problems)
        )


class _Version:
    """Sections of one version."""

    def __init__(self, what: dict[str, Any], sections: dict[str, NDArray[np.uint64]]) -> None:
        self.what = what
        self._sections = sections

    def section(self, name: str) -> NDArray[np.uint64]:
        return self._sections[name]


def _buckets(cells: NDArray[np.uint64]) -> list[tuple[str, float]]:
    """Cumulative counts by upper bound."""
    cumulative = np.concatenate([[0], np.cumsum(cells[: len(_MIDDLES)])])
    n_below = np.searchsorted(_MIDDLES, np.asarray(BUCKETS_S) * 1e9, side="right")
    total = int(cumulative[-1]) + int(cells[len(_MIDDLES)])
    bounds = [(repr(bound), float(cumulative[n])) for bound, n in zip(BUCKETS_S, n_below, strict=True)]
    return [*bounds, ("+Inf", float(total))]
