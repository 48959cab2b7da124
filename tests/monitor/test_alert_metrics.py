"""Alerts and the watch in Prometheus' format: what lasts, what fails, and that damage shows instead of zeros."""

from __future__ import annotations

import pytest
from tests.monitor.findings import START_US, finding, look

from tiercel.monitor.alerts import AlertStore
from tiercel.monitor.metrics import render_metrics
from tiercel.monitor.watch_state import WatchState


@pytest.fixture
def store(tmp_path):
    return AlertStore(tmp_path)


def samples(state_dir):
    lines = render_metrics(state_dir).decode().splitlines()
    return dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))


def test_alerts_by_class_model_and_state(store, tmp_path):
    """Each lasting alert is counted where it belongs; a model keeps its zeros once its alerts are over."""
    store.update([look(finding(), finding("population:fraud:1"), finding("impact:x", model=""), n_confirm=1)], START_US)
    store.acknowledge(1, by="ann", now_us=START_US)
    found = samples(tmp_path)
    assert found['tiercel_alerts{class="pipeline",model="fraud",state="acknowledged"}'] == "1.0"
    assert found['tiercel_alerts{class="pipeline",model="fraud",state="open"}'] == "0.0"
    assert found['tiercel_alerts{class="population",model="fraud",state="open"}'] == "1.0"
    assert found['tiercel_alerts_paging{model=""}'] == "1.0"
    assert found['tiercel_alerts_paging{model="fraud"}'] == "0.0"
    for number in (1, 2, 3):
        store.resolve(number, by="ann", now_us=START_US)
    found = samples(tmp_path)
    assert {value for name, value in found.items() if name.startswith("tiercel_alerts{")} == {"0.0"}
    assert found["tiercel_alerts_readable"] == "1.0"


def test_steps_of_the_watch(tmp_path):
    """Failures add up and show while they last."""
    state = WatchState(turns=7, last_turn_us=START_US, clock_jumps=2, webhook={"sent": 3, "given_up": 1})
    for _ in range(2):
        with state.step("labels"):
            raise OSError(28, "No space left")
    with state.step("windows"):
        pass
    state.save(tmp_path)
    found = samples(tmp_path)
    assert found['tiercel_watch_step_failures_total{step="labels"}'] == "2.0"
    assert found['tiercel_watch_step_failing{step="labels"}'] == "1.0"
    assert found['tiercel_watch_step_failing{step="windows"}'] == "0.0"
    assert float(found["tiercel_watch_last_turn_timestamp_seconds"]) == START_US / 1e6
    assert (found["tiercel_watch_turns_total"], found["tiercel_watch_clock_jumps_total"]) == ("7.0", "2.0")
    assert found['tiercel_webhook_deliveries{outcome="sent"}'] == "3.0"
    assert found['tiercel_webhook_deliveries{outcome="waiting"}'] == "0.0"


def test_damage_shows(store, tmp_path):
    """A file of alerts that cannot be read is no absence of alerts, and the other metrics are still there."""
    store.update([look(finding(), n_confirm=1)], START_US)
    store.path.write_bytes(b"{}")
    found = samples(tmp_path)
    assert found["tiercel_alerts_readable"] == "0.0"
    assert "tiercel_workers" in found
