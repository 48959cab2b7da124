"""Metrics of the prediction table and of feedback: the ledgers' sums, and zero where there are none."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families
from tests.monitor.recorders import PREFIX, SIGNATURE, make_recorder, rows_of

from tiercel.monitor.labels import LabelStore
from tiercel.monitor.metrics import render_metrics
from tiercel.monitor.outcomes import refresh
from tiercel.settings import MonitorSettings


def samples(state_dir):
    text = render_metrics(state_dir).decode()
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_what_was_converted_and_told_is_counted(tmp_path):
    """Rows, records, segments, and events by what they were and why they were not accepted."""
    recorder = make_recorder(tmp_path)
    plan = recorder.for_plan("late", 1, SIGNATURE)
    for number in range(4):
        plan.add(*rows_of(2), number=number)
    recorder.close()
    store = LabelStore(tmp_path)
    store.append(
        [{"id": f"{PREFIX}1", "label": label} for label in (0, 0, 1)]
        + [{"id": "?"}, {"id": f"{PREFIX}1", "value": 1, "time": 0}]
    )
    store.close()
    refresh(tmp_path, MonitorSettings(retention_days=36_500))
    found = samples(tmp_path)
    assert found["tiercel_prediction_table_rows_total", "converted"] == 8
    assert found["tiercel_prediction_table_rows_total", "removed"] == 0
    assert found["tiercel_prediction_table_records_total",] == found["tiercel_journal_records_total", "written"] == 4
    assert found["tiercel_prediction_table_segments_total", "converted"] == 1
    kinds = {
        kind: found["tiercel_feedback_events_total", kind] for kind in ("first", "duplicate", "correction", "addition")
    }
    assert kinds == {"first": 1, "duplicate": 1, "correction": 1, "addition": 1}
    assert found["tiercel_feedback_refused_total", "invalid_id"] == 1
    assert found["tiercel_feedback_odd_total", "time_replaced"] == 1
    assert found["tiercel_ledgers_unreadable",] == 0


def test_without_any_it_is_zero(tmp_path):
    """A new state directory, or a damaged ledger, is no reason to fail."""
    assert samples(tmp_path)["tiercel_prediction_table_rows_total", "converted"] == 0
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions" / "_ledger.json").write_text("{")
    assert samples(tmp_path)["tiercel_ledgers_unreadable",] == 1
