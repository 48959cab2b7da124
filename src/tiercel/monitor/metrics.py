"""What all workers counted, as Prometheus metrics.

Durations are counted in cells of 3 % (see `counting`), finer than anybody wants to scrape. A histogram's bucket holds the
cells that lie below its bound as a whole: a request is never shown as faster than it was, and one that took up to 3 % less
than a bound may be found in the next bucket. Quantiles come from the cells themselves and are right within 1.6 %; they are
over everything counted, so for a window of time use the histogram.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from tiercel.monitor.alert_metrics import AlertCollector
from tiercel.monitor.bases import read_bases
from tiercel.monitor.counting import MAGNITUDE_BOUNDS, PLAN_CELLS, STAGES
from tiercel.monitor.drift_metrics import DriftCollector, load_reports
from tiercel.monitor.reference import ABOVE_ALL, BELOW_ALL, MISSING
from tiercel.monitor.table_metrics import TablesCollector
from tiercel.monitor.totals import Totals, read_totals
from tiercel.monitor.triton import triton_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray
    from prometheus_client.core import Metric

    from tiercel.monitor.bases import LiveBase

__all__ = ["BUCKETS_S", "CONTENT_TYPE_LATEST", "QUANTILES", "quantile_us", "render_metrics"]

#: Upper bounds of the duration histogram.
BUCKETS_S = (50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 2e-3, 5e-3, 10e-3, 20e-3, 50e-3, 0.1, 0.2, 0.5, 1.0)
QUANTILES = (0.5, 0.9, 0.99, 0.999)
_BUCKETS_NS = np.array([round(bound * 1e9) for bound in BUCKETS_S])
_SUM = len(MAGNITUDE_BOUNDS)
_HIGHEST = MAGNITUDE_BOUNDS[1:] - 1  # the largest value of each cell: what is counted are whole nanoseconds
_MIDDLES = (MAGNITUDE_BOUNDS[:-1] + _HIGHEST) / 2
#: Cells that lie below each bucket's bound as a whole.
_CELLS_BELOW = np.searchsorted(_HIGHEST, _BUCKETS_NS, side="right")


def render_metrics(state_dir: Path, *, triton: bool = False) -> bytes:
    """Everything counted under a state directory in Prometheus' text format. Reads files; call it outside the event loop.

    Files that are foreign, cut short or of another format are left out and counted in `tiercel_counter_files_unreadable`.

    Args:
        state_dir: of the project.
        triton: add the `nv_inference_*` group; see `tiercel.monitor.triton`.
    """
    totals = read_totals(state_dir / "counters")
    registry = CollectorRegistry(auto_describe=False)
    registry.register(TotalsCollector(totals))
    registry.register(TablesCollector(state_dir))
    registry.register(BasesCollector(*read_bases(state_dir / "features"), now_us=time.time_ns() // 1000))
    registry.register(DriftCollector(load_reports(state_dir)))
    registry.register(AlertCollector.read(state_dir))
    text = generate_latest(registry)
    return text + triton_text(totals).encode() if triton else text


def quantile_us(cells: NDArray[np.uint64], q: float) -> float:
    """A quantile of a duration histogram in microseconds, within 1.6 %; NaN when it is empty.

    Args:
        cells: one row of the section `durations_ns`.
        q: from 0 to 1.
    """
    return quantiles_us(cells, (q,))[0]


def quantiles_us(cells: NDArray[np.uint64], qs: Iterable[float]) -> list[float]:
    """As `quantile_us`, for several quantiles of one histogram."""
    cumulative = np.cumsum(cells[: len(MAGNITUDE_BOUNDS)].astype(np.float64))
    total = cumulative[-1]
    found = []
    for q in qs:
        cell = int(np.searchsorted(cumulative, max(q * total, 1)))
        value = float(_MIDDLES[cell] if cell < len(_MIDDLES) else MAGNITUDE_BOUNDS[-1]) / 1e3
        found.append(value if total else float("nan"))
    return found


class TotalsCollector(Collector):
    """One reading of the totals as metric families."""

    def __init__(self, totals: Totals) -> None:
        self._totals = totals

    def collect(self) -> Iterator[Metric]:
        """All families; those of versions first."""
        yield from self._collect_versions()
        yield from self._collect_requests()
        yield from self._collect_tiers()
        yield from self._collect_workers()

    def _collect_versions(self) -> Iterator[Metric]:
        labels = ["model", "version"]
        requests = CounterMetricFamily(
            "tiercel_requests",
            "Predictions: answered by the compiled path or the general one, or scored beside an answer and not sent.",
            labels=[*labels, "tier", "path"],
        )
        rows = CounterMetricFamily("tiercel_rows", "Scored rows.", labels=[*labels, "tier", "path"])
        missing = CounterMetricFamily(
            "tiercel_feature_missing",
            "Scored rows in which a feature had no value.",
            labels=[*labels, "tier", "feature"],
        )
        odd = CounterMetricFamily(
            "tiercel_scores_not_finite", "Scores that were NaN or infinite.", labels=[*labels, "tier", "output"]
        )
        durations = HistogramMetricFamily(
            "tiercel_request_duration_seconds",
            "Time of a prediction in the server, by stage and in total.",
            labels=[*labels, "tier", "stage"],
        )
        quantiles = GaugeMetricFamily(
            "tiercel_request_duration_quantile_seconds",
            "Quantiles of the same over everything counted.",
            labels=[*labels, "tier", "stage", "quantile"],
        )
        for (model, version, tier), counts in self._totals.by_version().items():
            name = [model, str(version), tier]
            plan = dict(zip(PLAN_CELLS, map(int, counts.sections["plan"]), strict=False))
            shadow = plan["requests_shadow"]
            requests.add_metric([*name, "fast"], plan["requests_fast"])
            # A request may be counted while it is read: then it may be among the shadows and not yet among all.
            requests.add_metric([*name, "general"], max(0, plan["requests_general"] - shadow))
            requests.add_metric([*name, "shadow"], shadow)
            for path in ("fast", "general"):
                rows.add_metric([*name, path], plan[f"rows_{path}"])
            for feature, n in zip(
                counts.what["features"], counts.sections["features"][:, MISSING].tolist(), strict=True
            ):
                missing.add_metric([*name, feature], n)
            for output, cells in enumerate(counts.sections["scores"]):
                n = int(cells[ABOVE_ALL]) + int(cells[MISSING]) + int(cells[BELOW_ALL])
                odd.add_metric([*name, str(output)], n)
            for stage, cells in zip(STAGES, counts.sections["durations_ns"], strict=True):
                durations.add_metric([*name, stage], _buckets(cells), int(cells[_SUM]) / 1e9)
                if cells[: len(MAGNITUDE_BOUNDS)].any():
                    for q, value_us in zip(QUANTILES, quantiles_us(cells, QUANTILES), strict=True):
                        quantiles.add_metric([*name, stage, str(q)], value_us / 1e6)
        yield from (requests, rows, missing, odd, durations, quantiles)

    def _collect_requests(self) -> Iterator[Metric]:
        yield self._labelled(
            "tiercel_fast_path",
            "Requests that the compiled protocol answered, or handed on.",
            "outcome",
            {"answered": "answered", "handed_on": "handed_on"},
        )
        yield self._labelled(
            "tiercel_replies",
            "Replies of the general path, and errors of the compiled one.",
            "status",
            {status: f"replies_{status}" for status in ("2xx", "3xx", "4xx", "5xx")},
        )
        errors = CounterMetricFamily("tiercel_errors", "Errors by stable code.", labels=["code"])
        for code, n in sorted(self._totals.errors.items()):
            errors.add_metric([code], n)
        yield errors
        yield self._labelled(
            "tiercel_degraded",
            "Answers that were not the asked model's own, by who answered instead.",
            "by",
            {by: f"degraded_{by}" for by in ("fallback", "last_score", "default")},
        )
        yield self._labelled(
            "tiercel_refused",
            "Requests refused before they were begun.",
            "reason",
            {reason: f"refused_{reason}" for reason in ("deadline", "capacity")},
        )

    def _collect_tiers(self) -> Iterator[Metric]:
        cells = self._totals.worker
        for what, text in (
            ("requests", "Requests scored from the near-realtime queue."),
            ("batches", "Batches they were scored in."),
            ("rows", "Rows they had."),
        ):
            yield CounterMetricFamily(f"tiercel_near_realtime_{what}", text, value=cells[f"near_realtime_{what}"])
        yield GaugeMetricFamily(
            "tiercel_near_realtime_waiting_rows",
            "Rows in the near-realtime queues now.",
            value=cells["near_realtime_waiting_rows"],
        )
        yield self._labelled(
            "tiercel_shadow",
            "Requests that a shadow version was to score.",
            "outcome",
            {outcome: f"shadow_{outcome}" for outcome in ("scored", "failed", "dropped")},
        )
        yield CounterMetricFamily(
            "tiercel_challenger_failed",
            "Requests of a challenger's share that it could not answer.",
            value=cells["challenger_failed"],
        )
        yield CounterMetricFamily("tiercel_jobs_submitted", "Batch jobs taken.", value=cells["jobs_submitted"])

    def _collect_workers(self) -> Iterator[Metric]:
        cells = self._totals.worker
        yield CounterMetricFamily("tiercel_connections", "Accepted connections.", value=cells["connections"])
        yield self._labelled(
            "tiercel_busy_polls",
            "Waits of workers, awake, for the next request: it came in time, or it did not.",
            "outcome",
            {"came": "busy_polls_came", "in_vain": "busy_polls_in_vain"},
        )
        yield CounterMetricFamily(
            "tiercel_busy_poll_seconds",
            "Processor time of workers that went into such waits.",
            value=cells["busy_poll_ns"] / 1e9,
        )
        yield self._labelled(
            "tiercel_journal_records",
            "Predictions journaled, or not.",
            "outcome",
            {"written": "journal_records", "dropped": "journal_dropped", "too_large": "journal_too_large"},
        )
        yield CounterMetricFamily("tiercel_journal_bytes", "Bytes of journaled records.", value=cells["journal_bytes"])
        yield self._labelled(
            "tiercel_journal_segments",
            "What happened to segments.",
            "event",
            {event: f"segments_{event}" for event in ("prepared", "failed", "sealed", "removed", "removed_unread")},
        )
        yield CounterMetricFamily(
            "tiercel_spans_dropped",
            "Spans of traces that did not reach the collector.",
            value=cells["spans_dropped"],
        )
        yield GaugeMetricFamily("tiercel_workers", "Workers that run now.", value=self._totals.n_live)
        yield GaugeMetricFamily(
            "tiercel_counter_files_unreadable", "Counter files left out.", value=len(self._totals.problems)
        )

    def _labelled(self, name: str, text: str, label: str, cells: dict[str, str]) -> Metric:
        """One family over several cells: label value -> cell."""
        family = CounterMetricFamily(name, text, labels=[label])
        for value, cell in cells.items():
            family.add_metric([value], self._totals.worker[cell])
        return family


class BasesCollector(Collector):
    """How old what is served from is. Ages are as of `now_us`."""

    def __init__(self, bases: Iterable[LiveBase], n_unreadable: int, *, now_us: int) -> None:
        self._bases, self._n_unreadable, self._now_us = tuple(bases), n_unreadable, now_us

    def collect(self) -> Iterator[Metric]:
        """Ages by service, and the manifests that could not be read."""
        published = GaugeMetricFamily(
            "tiercel_base_age_seconds", "Since the live base of a service was published.", labels=["service"]
        )
        as_of = GaugeMetricFamily(
            "tiercel_base_as_of_age_seconds",
            "Since the time as of which it was computed: no value in it is of a later event.",
            labels=["service"],
        )
        for base in self._bases:
            published.add_metric([base.service], (self._now_us - base.published_us) / 1e6)
            as_of.add_metric([base.service], (self._now_us - base.as_of_us) / 1e6)
        yield published
        yield as_of
        yield GaugeMetricFamily(
            "tiercel_base_manifests_unreadable", "Services whose MANIFEST is damaged.", value=self._n_unreadable
        )


def _buckets(cells: NDArray[np.uint64]) -> list[tuple[str, float]]:
    """Cumulative counts by upper bound."""
    cumulative = np.concatenate([[0], np.cumsum(cells[: len(MAGNITUDE_BOUNDS)])])
    bounds = [(repr(bound), n) for bound, n in zip(BUCKETS_S, cumulative[_CELLS_BELOW].tolist(), strict=True)]
    return [*bounds, ("+Inf", float(cumulative[-1]))]
