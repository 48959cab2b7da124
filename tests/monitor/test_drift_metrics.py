"""The newest reports on disk and in Prometheus' text."""

from __future__ import annotations

import errno
import os

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.monitor.test_drift import REFERENCE, population, window_of

from tiercel.errors import WindowError
from tiercel.monitor import drift_metrics
from tiercel.monitor.drift import drift_report
from tiercel.monitor.drift_metrics import REPORTS_FILE, load_reports, save_reports
from tiercel.monitor.metrics import render_metrics


def moved_report():
    X, scores = population(1_000, seed=1)
    X[:, 0] += 5
    return drift_report(REFERENCE, window_of(X, scores))


def drift_samples(state_dir):
    return {
        (sample.name, sample.labels.get("feature")): (sample.value, sample.labels)
        for family in text_string_to_metric_families(render_metrics(state_dir).decode())
        for sample in family.samples
        if sample.name.startswith("tiercel_drift_")
    }


def test_reports_are_gauges(tmp_path):
    """Effect, threshold, alarm, missing share, rows and end of the newest window are in /metrics; unknown values are not."""
    report = moved_report()
    save_reports(tmp_path, [report])
    samples = drift_samples(tmp_path)
    value, labels = samples["tiercel_drift_effect", "amount"]
    assert value == pytest.approx(report.features[0].effect)
    assert labels == {"model": "late", "version": "3", "against": "training", "kind": "feature", "feature": "amount"}
    assert samples["tiercel_drift_alarm", "amount"][0] == 1
    assert samples["tiercel_drift_alarm", "country"][0] == 0
    assert samples["tiercel_drift_threshold", "country"][0] == pytest.approx(report.features[1].threshold)
    assert samples["tiercel_drift_missing_share", "never"][0] == 1
    assert ("tiercel_drift_effect", "never") not in samples
    assert samples["tiercel_drift_alarm", "score"][1]["kind"] == "score"
    assert samples["tiercel_drift_window_rows", None][0] == 1_000
    assert samples["tiercel_drift_window_end_timestamp_seconds", None][0] == report.end_us / 1e6


def test_new_reports_replace_the_old_ones(tmp_path):
    """A version that is judged no more leaves no gauge behind; without reports there are none."""
    assert load_reports(tmp_path) == []
    assert drift_samples(tmp_path) == {}
    save_reports(tmp_path, [moved_report(), moved_report()])
    assert len(load_reports(tmp_path)) == 2
    save_reports(tmp_path, [])
    assert drift_samples(tmp_path) == {}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": "other", "reports": []}'])
def test_a_damaged_file_is_no_report(tmp_path, content):
    """A file that is cut off or foreign leaves the rest of /metrics as it is."""
    (tmp_path / REPORTS_FILE).write_bytes(content)
    assert load_reports(tmp_path) == []
    assert b"tiercel_workers" in render_metrics(tmp_path)


def test_a_full_disk_keeps_the_reports_before(tmp_path, monkeypatch):
    """Reports that cannot be written are an error with a stable code; those before stay."""
    save_reports(tmp_path, [moved_report()])

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(drift_metrics, "write_durably", full)
    with pytest.raises(WindowError, match="No space left"):
        save_reports(tmp_path, [])
    assert len(load_reports(tmp_path)) == 1
