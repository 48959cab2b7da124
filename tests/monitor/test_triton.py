"""The counters that dashboards made for Triton ask for."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families
from tests.monitor.recorders import SIGNATURE, make_recorder, rows_of

from tiercel.monitor.metrics import render_metrics
from tiercel.settings import JournalSettings
from tiercel.types import Tier


def test_tritons_names_for_what_was_counted(tmp_path):
    """Requests, rows, executions and time stand under Triton's names per version, failures by reason; shadows do not count."""
    recorder = make_recorder(tmp_path, JournalSettings(enabled=False))
    rows, scores = rows_of(4)
    recorder.for_plan("late", 1, SIGNATURE).add(rows, scores, flags=1, total_ns=70_000, repeat=3)
    recorder.for_plan("late", 1, SIGNATURE).add(rows, scores, flags=16, total_ns=10_000)
    recorder.for_plan("slow", 2, SIGNATURE, tier=Tier.NEAR_REALTIME).add(rows, scores, total_ns=5_000_000)
    for status, n in ((503, 4), (504, 2), (500, 1), (404, 5)):
        for _ in range(n):
            recorder.counters.count_reply(status)
    recorder.counters.add("refused_capacity", 4)
    recorder.counters.add("refused_deadline", 2)
    assert b"nv_inference" not in render_metrics(tmp_path)
    text = render_metrics(tmp_path, triton=True).decode()
    # Line by line: the parser gives every counter a name that ends in _total, which these do not have.
    assert [line for line in text.splitlines() if line.startswith("nv_inference")] == [
        'nv_inference_request_success{model="late",version="1"} 3',
        'nv_inference_request_success{model="slow",version="2"} 1',
        'nv_inference_request_failure{model="",version="",reason="REJECTED"} 6',
        'nv_inference_request_failure{model="",version="",reason="BACKEND"} 1',
        'nv_inference_request_failure{model="",version="",reason="OTHER"} 5',
        'nv_inference_count{model="late",version="1"} 16',
        'nv_inference_count{model="slow",version="2"} 4',
        'nv_inference_exec_count{model="late",version="1"} 3',
        'nv_inference_request_duration_us{model="late",version="1"} 210',
        'nv_inference_request_duration_us{model="slow",version="2"} 5000',
    ]
    types = {family.name: family.type for family in text_string_to_metric_families(text)}
    assert {kind for name, kind in types.items() if name.startswith("nv_")} == {"counter"}
    recorder.close()
