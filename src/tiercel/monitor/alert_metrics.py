"""Alerts and the watch itself, as Prometheus metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from tiercel.errors import MonitorError
from tiercel.monitor.alert import AlertClass, AlertState
from tiercel.monitor.alerts import AlertStore
from tiercel.monitor.watch_state import WatchState

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from prometheus_client.core import Metric

    from tiercel.monitor.alert import Alert

_LASTING = tuple(state for state in AlertState if state is not AlertState.RESOLVED)


class AlertCollector(Collector):
    """One reading of the alerts and of the watch's state.

    Args:
        alerts: with those that are over; None: they cannot be read.
        watch: how the watch is doing.
    """

    def __init__(self, alerts: Sequence[Alert] | None, watch: WatchState) -> None:
        self._alerts, self._watch = alerts, watch

    @classmethod
    def read(cls, state_dir: Path) -> AlertCollector:
        """Of a state directory; what is damaged shows as `tiercel_alerts_readable 0`."""
        try:
            alerts = AlertStore(state_dir).find_all(with_resolved=True)
        except MonitorError:
            alerts = None
        return cls(alerts, WatchState.load(state_dir))

    def collect(self) -> Iterator[Metric]:
        """Alerts by class and model, and the watch's steps."""
        yield from self._collect_alerts()
        watch = self._watch
        failures = CounterMetricFamily(
            "tiercel_watch_step_failures", "Turns of the watch in which a step failed.", labels=["step"]
        )
        failing = GaugeMetricFamily("tiercel_watch_step_failing", "1 while a step's last run failed.", labels=["step"])
        duration = GaugeMetricFamily(
            "tiercel_watch_step_duration_seconds", "How long a step's last run took.", labels=["step"]
        )
        for name, step in watch.steps.items():
            failures.add_metric([name], step.failures)
            failing.add_metric([name], float(bool(step.last_error)))
            duration.add_metric([name], step.last_ms / 1e3)
        yield from (failures, failing, duration)
        yield CounterMetricFamily("tiercel_watch_turns", "Turns of the watch.", value=watch.turns)
        yield CounterMetricFamily("tiercel_watch_clock_jumps", "Clock changes it noticed.", value=watch.clock_jumps)
        yield GaugeMetricFamily(
            "tiercel_watch_last_turn_timestamp_seconds",
            "When the last turn was; 0: never.",
            value=watch.last_turn_us / 1e6,
        )
        webhook = GaugeMetricFamily(
            "tiercel_webhook_deliveries",
            "Alerts on their way to the webhook since the watching process began.",
            labels=["outcome"],
        )
        for outcome in ("sent", "failed_tries", "given_up", "waiting"):
            webhook.add_metric([outcome], watch.webhook.get(outcome, 0))
        yield webhook

    def _collect_alerts(self) -> Iterator[Metric]:
        lasting = GaugeMetricFamily(
            "tiercel_alerts",
            "Alerts that last, by class, model (empty: none in particular) and state.",
            labels=["class", "model", "state"],
        )
        paging = GaugeMetricFamily("tiercel_alerts_paging", "Open alerts that somebody is woken for.", labels=["model"])
        alerts = self._alerts or ()
        # Models that ever had one keep their zero: a rule on the gauge sees it fall.
        for model in sorted({alert.finding.model for alert in alerts}):
            own = [alert for alert in alerts if alert.finding.model == model]
            for alert_class in AlertClass:
                for state in _LASTING:
                    n = sum(each.finding.alert_class is alert_class and each.state is state for each in own)
                    lasting.add_metric([alert_class.value, model, state.value], n)
            paging.add_metric([model], sum(each.pages and each.state is AlertState.OPEN for each in own))
        yield from (lasting, paging)
        yield GaugeMetricFamily(
            "tiercel_alerts_readable", "1 where the file of alerts can be read.", value=float(self._alerts is not None)
        )
