"""The text that Prometheus scrapes, beside the values that were counted."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from tests.monitor.recorders import SIGNATURE, make_recorder, rows_of
from tests.reference import binning

from tiercel.monitor.metrics import BUCKETS_S, QUANTILES, _buckets, quantile_us, render_metrics
from tiercel.settings import JournalSettings
from tiercel.types import Tier

NO_JOURNAL = JournalSettings(enabled=False)
BOUNDS_NS = [round(bound * 1e9) for bound in BUCKETS_S]
NEAR_BOUNDS = [bound + d for bound in BOUNDS_NS for d in (-1, 0, 1, -bound // 32, -bound // 33)]


def samples_of(text):
    """{(name, (label, value), ...): value}; the text must be what Prometheus' own parser reads, without a series twice."""
    found = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            key = (sample.name, *sorted(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


def cells_of(durations_ns):
    cells = np.zeros(1032, np.uint64)
    for value in durations_ns:
        cells[binning.magnitude_cell(value)] += 1
    return cells


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(NEAR_BOUNDS), st.integers(0, 2**37)), max_size=30))
@example(NEAR_BOUNDS)
@example([2**36, 2**40])
def test_buckets_never_show_a_request_as_faster_than_it_was(durations_ns):
    """A bucket holds no request beyond its bound, and all that took at least 1/32 less; +Inf holds all."""
    buckets = _buckets(cells_of(durations_ns))
    assert [bound for bound, _ in buckets] == [*map(repr, BUCKETS_S), "+Inf"]
    counts = [n for _, n in buckets]
    assert counts == sorted(counts)
    assert counts[-1] == len(durations_ns)
    for bound, n in zip(BOUNDS_NS, counts, strict=False):
        assert sum(value <= bound - bound / 32 for value in durations_ns) <= n
        assert n <= sum(value <= bound for value in durations_ns)


def test_the_finest_bucket_is_50_microseconds():
    """A server that answers in microseconds is not told by buckets made for milliseconds."""
    assert BUCKETS_S[0] == 50e-6
    assert BUCKETS_S[-1] == 1.0


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1000, 2**35), min_size=1, max_size=200))
def test_quantiles_are_of_what_was_counted(durations_ns):
    """A quantile is within 1.6 % of the request of that rank."""
    ordered = sorted(durations_ns)
    for q in QUANTILES:
        rank = max(1, int(np.ceil(q * len(ordered))))
        assert quantile_us(cells_of(durations_ns), q) * 1e3 == pytest.approx(ordered[rank - 1], rel=0.016)


def test_every_tier_and_stage_has_its_quantiles(tmp_path):
    """p50 to p99.9 stand per model, version, tier and stage, in seconds; nothing stands for what was never counted."""
    recorder = make_recorder(tmp_path, NO_JOURNAL)
    rows, scores = rows_of(1)
    fast, slow = (
        recorder.for_plan("late", 1, SIGNATURE),
        recorder.for_plan("late", 1, SIGNATURE, tier=Tier.NEAR_REALTIME),
    )
    recorder.for_plan("idle", 1, SIGNATURE)
    fast.add(rows, scores, total_ns=20_000, stage_ns=(1000, 2000, 3000, 4000, 5000), repeat=980)
    fast.add(rows, scores, total_ns=900_000, stage_ns=(1000, 2000, 3000, 800_000, 5000), repeat=20)
    slow.add(rows, scores, total_ns=30_000_000)
    found = samples_of(render_metrics(tmp_path))

    def quantile(tier, stage, q):
        name = "tiercel_request_duration_quantile_seconds"
        return found[name, ("model", "late"), ("quantile", q), ("stage", stage), ("tier", tier), ("version", "1")]

    assert [quantile("realtime", "score", q) for q in ("0.5", "0.9", "0.99", "0.999")] == pytest.approx(
        [4e-6, 4e-6, 800e-6, 800e-6], rel=0.016
    )
    assert quantile("realtime", "total", "0.5") == pytest.approx(20e-6, rel=0.016)
    assert quantile("near-realtime", "total", "0.5") == pytest.approx(30e-3, rel=0.016)
    assert not [key for key in found if "quantile" in key[0] and ("model", "idle") in key]
    recorder.close()


def test_shed_degraded_and_waiting_are_told(tmp_path):
    """Answers by rung, refusals by reason, the queue, shadows, challengers, jobs and lost spans each have their series."""
    recorder = make_recorder(tmp_path, NO_JOURNAL)
    expected = {
        "degraded_fallback": ("tiercel_degraded_total", ("by", "fallback")),
        "degraded_last_score": ("tiercel_degraded_total", ("by", "last_score")),
        "degraded_default": ("tiercel_degraded_total", ("by", "default")),
        "refused_deadline": ("tiercel_refused_total", ("reason", "deadline")),
        "refused_capacity": ("tiercel_refused_total", ("reason", "capacity")),
        "near_realtime_requests": ("tiercel_near_realtime_requests_total",),
        "near_realtime_batches": ("tiercel_near_realtime_batches_total",),
        "near_realtime_rows": ("tiercel_near_realtime_rows_total",),
        "shadow_scored": ("tiercel_shadow_total", ("outcome", "scored")),
        "shadow_failed": ("tiercel_shadow_total", ("outcome", "failed")),
        "shadow_dropped": ("tiercel_shadow_total", ("outcome", "dropped")),
        "challenger_failed": ("tiercel_challenger_failed_total",),
        "jobs_submitted": ("tiercel_jobs_submitted_total",),
        "spans_dropped": ("tiercel_spans_dropped_total",),
        "busy_polls_came": ("tiercel_busy_polls_total", ("outcome", "came")),
        "busy_polls_in_vain": ("tiercel_busy_polls_total", ("outcome", "in_vain")),
    }
    for n, cell in enumerate(expected):
        recorder.counters.add(cell, 100 + n)
    recorder.counters.set("near_realtime_waiting_rows", 17)
    recorder.counters.add("busy_poll_ns", 2_500_000_000)
    found = samples_of(render_metrics(tmp_path))
    assert {cell: found[key] for cell, key in expected.items()} == {cell: 100 + n for n, cell in enumerate(expected)}
    assert found["tiercel_near_realtime_waiting_rows",] == 17
    assert found["tiercel_busy_poll_seconds_total",] == 2.5
    recorder.close()


def test_shadows_are_not_answers(tmp_path):
    """A score that was not sent is a request of its own path, not of the general one."""
    recorder = make_recorder(tmp_path, NO_JOURNAL)
    plan = recorder.for_plan("late", 1, SIGNATURE)
    plan.add(*rows_of(1), total_ns=10**9, flags=16, repeat=3)
    plan.add(*rows_of(1), total_ns=10**6, repeat=2)
    found = samples_of(render_metrics(tmp_path))
    labels = ("tier", "realtime"), ("version", "1")
    by_path = {
        path: found["tiercel_requests_total", ("model", "late"), ("path", path), *labels]
        for path in ("fast", "general", "shadow")
    }
    assert by_path == {"fast": 0, "general": 2, "shadow": 3}
    total = ("model", "late"), ("stage", "total"), *labels
    assert found["tiercel_request_duration_seconds_count", *total] == 2
    assert found["tiercel_request_duration_seconds_sum", *total] == pytest.approx(2e-3)
    recorder.close()


def test_base_ages_are_told_by_service(tmp_path):
    """Since its publish and since its as-of time each live base is so old; a damaged MANIFEST is counted, others go on."""
    now_us = time.time_ns() // 1000
    for name, content in {
        "checkout": json.dumps(
            {"base": "base-000001.mdb", "published_us": now_us - 5_000_000, "as_of_us": now_us - 3_600_000_000}
        ),
        "damaged": "{",
        "odd": json.dumps({"base": "b", "published_us": "yesterday", "as_of_us": 1}),
    }.items():
        (tmp_path / "features" / name).mkdir(parents=True)
        (tmp_path / "features" / name / "MANIFEST").write_text(content)
    (tmp_path / "features" / "nothing-yet").mkdir()
    (tmp_path / "features" / "stray").write_text("x")
    found = samples_of(render_metrics(tmp_path))
    service = ("service", "checkout")
    assert 5 <= found["tiercel_base_age_seconds", service] < 65
    assert 3600 <= found["tiercel_base_as_of_age_seconds", service] < 3660
    assert found["tiercel_base_manifests_unreadable",] == 2
    assert len([key for key in found if key[0] == "tiercel_base_age_seconds"]) == 1
