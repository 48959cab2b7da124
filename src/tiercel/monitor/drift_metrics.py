"""The newest drift reports, kept in one file for whoever asks, and as Prometheus gauges.

    <state>/drift.json    one report per model version and comparison, as `DriftReport.to_json` gives it

The control process writes it after each window; /metrics and the dashboard read it. It is derived: lost, it comes back with
the next window.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from tiercel.errors import WindowError
from tiercel.monitor.feature_drift import Verdict
from tiercel.monitor.window_files import write_durably

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from prometheus_client.core import Metric

    from tiercel.monitor.drift import DriftReport

__all__ = ["REPORTS_FILE", "DriftCollector", "load_reports", "save_reports"]

log = logging.getLogger("tiercel.monitor")

REPORTS_FILE = "drift.json"
_FORMAT = "tiercel-drift-1"
_MAX_BYTES = 1 << 28
_ALARMS = (Verdict.DRIFT.value, Verdict.MISSING.value)


def save_reports(state_dir: Path, reports: Iterable[DriftReport]) -> None:
    """Replace the reports of a state directory by these, whole.

    Raises:
        WindowError: the disk refuses; the reports before are still there.
    """
    data = {"format": _FORMAT, "reports": [report.to_json() for report in reports]}
    path = state_dir / REPORTS_FILE
    try:
        write_durably(path, json.dumps(data, separators=(",", ":"), allow_nan=False).encode())
    except OSError as error:
        raise WindowError(f"{path}: expected to write drift reports, got: {error.strerror or error}") from error


def load_reports(state_dir: Path) -> list[dict[str, Any]]:
    """The newest reports, as `DriftReport.to_json` gave them. Empty where there are none or the file is damaged (logged)."""
    path = state_dir / REPORTS_FILE
    try:
        with path.open("rb") as stream:
            found = json.loads(stream.read(_MAX_BYTES))
        if found["format"] != _FORMAT:
            raise ValueError(found["format"])  # noqa: TRY301 - one handler for everything
        reports: list[dict[str, Any]] = found["reports"]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s: expected drift reports, got: %r. The next window replaces it", path, error)
        return []
    return reports


class DriftCollector(Collector):
    """Reports as gauges. What is not known has no sample."""

    def __init__(self, reports: Iterable[dict[str, Any]]) -> None:
        self._reports = tuple(reports)

    def collect(self) -> Iterator[Metric]:
        """Effect, threshold, alarm and missing share per feature; rows and end of each window."""
        of_feature = ["model", "version", "against", "kind", "feature"]
        of_window = of_feature[:3]
        effect = GaugeMetricFamily(
            "tiercel_drift_effect",
            "Distance of a feature or score from what it is compared with, in the newest window.",
            labels=of_feature,
        )
        threshold = GaugeMetricFamily(
            "tiercel_drift_threshold", "The effect from which it is drift, for the window's rows.", labels=of_feature
        )
        alarm = GaugeMetricFamily(
            "tiercel_drift_alarm", "1 where a feature or score drifted or its missing share changed.", labels=of_feature
        )
        missing = GaugeMetricFamily(
            "tiercel_drift_missing_share", "Share of the window's rows without a value.", labels=of_feature
        )
        rows = GaugeMetricFamily("tiercel_drift_window_rows", "Rows in the window's histograms.", labels=of_window)
        end = GaugeMetricFamily(
            "tiercel_drift_window_end_timestamp_seconds", "When the newest window ended.", labels=of_window
        )
        for report in self._reports:
            window = [report["model"], str(report["version"]), report["against"]]
            rows.add_metric(window, report["n_counted"])
            end.add_metric(window, report["end_us"] / 1e6)
            for each in (*report["features"], *report["scores"]):
                name = [*window, each["kind"], each["name"]]
                for family, value in (
                    (effect, each["effect"]),
                    (threshold, each["threshold"]),
                    (missing, each["missing_share"]),
                    (alarm, float(each["verdict"] in _ALARMS)),
                ):
                    if value is not None:
                        family.add_metric(name, value)
        yield from (effect, threshold, alarm, missing, rows, end)
