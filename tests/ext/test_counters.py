"""The compiled counters beside a slow count of the same rows."""

from __future__ import annotations

import gc
import mmap
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tests.reference import binning
from tiercel._hot.counters import (
    PLAN_CELLS,
    WORKER_CELLS,
    WORKER_GAUGES,
    PlanCounters,
    WorkerCounters,
    feature_cell,
    magnitude_bounds,
    magnitude_cell,
    plan_sections,
    score_cell,
    worker_sections,
)
from tiercel._hot.recorder import FAST, MANY, PlanRecorder

SPECIAL = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1.4e-45, -1.4e-45, 3.4028235e38, -3.4028235e38]
FLOATS = st.one_of(st.sampled_from(SPECIAL), st.floats(width=32))


@st.composite
def edges_and_values(draw, dtype):
    """Ascending finite edges, and values among which are the edges and their floating-point neighbours."""
    floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
    inner = np.unique(np.array(draw(st.lists(floats, max_size=23)), dtype)) + dtype(0)
    edges = np.full(24, np.inf, dtype)
    edges[: len(inner)] = inner
    with np.errstate(over="ignore"):
        near = [v for e in inner for v in (e, np.nextafter(e, dtype(np.inf)), np.nextafter(e, dtype(-np.inf)))]
    return edges, np.array([*near, *SPECIAL, *draw(st.lists(FLOATS, max_size=20))], dtype)


@settings(max_examples=150, deadline=None)
@given(edges_and_values(np.float32))
def test_feature_cells_equal_the_slow_count(case):
    """A float32 value falls into the cell that counting edges one by one gives, on edges and special values too."""
    edges, values = case
    assert [feature_cell(edges, v) for v in values] == [binning.cell_of(edges, v) for v in values]


@settings(max_examples=150, deadline=None)
@given(edges_and_values(np.float64))
def test_score_cells_equal_the_slow_count(case):
    """The same for float64 scores."""
    edges, values = case
    assert [score_cell(edges, v) for v in values] == [binning.cell_of(edges, v) for v in values]


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**37), st.integers(0, 4096)))
def test_durations_fall_into_log_linear_cells(value):
    """A duration's cell is the slow computation's, and its bounds enclose the value within 1/32."""
    cell = magnitude_cell(value)
    assert cell == binning.magnitude_cell(value)
    bounds = magnitude_bounds()
    if 0 <= value < 2**36:
        assert bounds[cell] <= value < bounds[cell + 1]
        assert bounds[cell + 1] - bounds[cell] <= max(1, value / 32)


def test_duration_cells_have_no_gap():
    """Cell bounds ascend from 0 to 2**36 without a hole or an overlap."""
    bounds = magnitude_bounds()
    assert bounds[0] == 0
    assert bounds[-1] == 2**36
    assert (np.diff(bounds) > 0).all()
    assert [magnitude_cell(int(b)) for b in bounds] == list(range(1025))


@settings(max_examples=40, deadline=None)
@given(
    rows=hnp.arrays(np.float32, st.tuples(st.integers(1, 9), st.just(3)), elements=FLOATS),
    scores=hnp.arrays(np.float64, st.just((9, 2)), elements=FLOATS),
    fast=st.booleans(),
)
def test_a_request_is_counted_once_everywhere(rows, scores, fast):
    """Requests, rows, each feature's and each score's histogram grow by exactly what was answered."""
    scores = np.ascontiguousarray(scores[: len(rows)])
    edges = np.tile(np.r_[np.linspace(-2, 2, 21), [np.inf] * 3].astype(np.float32), (3, 1))
    counters = PlanCounters(3, 2, edges, edges[:2].astype(np.float64))
    recorder = PlanRecorder(counters)
    recorder.add(rows, scores, flags=(FAST if fast else 0) | MANY, total_ns=16_000, stage_ns=(1, 2, 3, 4, 5))
    found = counters.snapshot()
    assert found["plan"].tolist() == [
        1,
        1,
        *((0, 1) if fast else (1, 0)),
        *((0, len(rows)) if fast else (len(rows), 0)),
        1,
        0,
    ]
    np.testing.assert_array_equal(found["features"], binning.histograms(edges, rows))
    np.testing.assert_array_equal(found["scores"], binning.histograms(edges[:2], scores))
    assert found["durations_ns"][:, :1025].sum(axis=1).tolist() == [1] * 6
    assert found["durations_ns"][:, 1025].tolist() == [1, 2, 3, 4, 5, 16_000]


def test_ages_are_counted_or_absent():
    """A request that read nothing timed is counted as such, the others by age in milliseconds."""
    edges = np.full((1, 24), np.inf, np.float32)
    counters = PlanCounters(1, 1, edges, edges.astype(np.float64))
    recorder = PlanRecorder(counters)
    for age_us in (-1, 0, 5_000, 2**60):
        recorder.add(np.zeros((1, 1), np.float32), np.zeros((1, 1)), oldest_age_us=age_us)
    ages = counters.snapshot()["oldest_age_ms"]
    assert (ages[1026], ages[0], ages[5], ages[1024]) == (1, 1, 1, 1)


@pytest.mark.parametrize(
    "change",
    [
        lambda e: e[:, :23],
        lambda e: np.where(np.arange(24) == 3, np.nan, e).astype(np.float32),
        lambda e: np.where(np.arange(24) == 0, -np.inf, e).astype(np.float32),
        lambda e: e[:, ::-1].copy(),
        np.zeros_like,
        lambda e: e[:2],
    ],
    ids=["too few", "NaN", "-inf", "descending", "no +inf at the end", "of other features"],
)
def test_edges_that_cannot_be_binned_on_are_refused(change):
    """A plan's counters are never made with edges that would put a value into a wrong cell."""
    edges = np.tile(np.r_[np.arange(20), [np.inf] * 4].astype(np.float32), (3, 1))
    with pytest.raises(ValueError):
        PlanCounters(3, 1, np.ascontiguousarray(change(edges)), np.full((1, 24), np.inf))


def test_a_buffer_of_another_size_is_refused():
    """Counters are never made on memory they could run out of."""
    edges = np.full((1, 24), np.inf, np.float32)
    n = sum(int(np.prod(shape)) for _, shape in plan_sections(1, 1).values())
    PlanCounters(1, 1, edges, edges.astype(np.float64), np.zeros(n, np.uint64))
    for wrong in (n - 1, n + 1, 0):
        with pytest.raises(ValueError):
            PlanCounters(1, 1, edges, edges.astype(np.float64), np.zeros(wrong, np.uint64))
    with pytest.raises(ValueError):
        WorkerCounters(np.zeros(8, np.uint64))


def test_a_feature_takes_less_than_a_kilobyte():
    """The counts of one feature take at most 1 KB, so windows are cheap to keep."""
    sections = [plan_sections(n, 1) for n in (10, 11)]
    assert 8 * (sections[1]["scores"][0] - sections[0]["scores"][0]) <= 1024


def test_error_codes_get_cells_as_they_come():
    """Replies are counted by class and code; codes beyond the table are counted as "other", none is lost."""
    buffer = np.zeros(worker_sections()["worker"][1][0] + 64 + 64 * 6, np.uint64)
    worker = WorkerCounters(buffer)
    for i in range(80):
        worker.count_reply(404 if i % 2 else 500, f"code_{i}")
    worker.count_reply(200)
    assert [worker.get(f"replies_{c}xx") for c in (2, 3, 4, 5)] == [1, 0, 40, 40]
    first, shape = worker_sections()["errors"]
    errors = buffer[first : first + shape[0]]
    assert errors.sum() == 80
    assert errors[:63].tolist() == [1] * 63
    names = buffer[-64 * 6 :].tobytes()
    assert names[1 : 1 + names[0]] == b"code_0"
    assert names[63 * 48 + 1 : 63 * 48 + 1 + names[63 * 48]] == b"other"
    again = WorkerCounters(buffer)
    again.count_reply(500, "code_3")
    assert errors[3] == 2


def test_a_recorder_without_counters_keeps_nothing():
    """`PlanRecorder()` takes any prediction and stores nothing."""
    PlanRecorder().add(np.zeros((2, 5), np.float32), np.zeros((2, 3)))


def test_rows_of_another_shape_are_refused():
    """What a recorder would read past is refused before it is read."""
    edges = np.full((2, 24), np.inf, np.float32)
    recorder = PlanRecorder(PlanCounters(2, 1, edges, edges[:1].astype(np.float64)))
    for rows, scores in (((1, 3), (1, 1)), ((1, 2), (1, 2)), ((2, 2), (1, 1)), ((0, 2), (0, 1))):
        with pytest.raises(ValueError):
            recorder.add(np.zeros(rows, np.float32), np.zeros(scores))


def test_shadows_are_counted_apart():
    """A score that was not sent is counted as such, beside its place among the requests."""
    edges = np.full((1, 24), np.inf, np.float32)
    counters = PlanCounters(1, 1, edges, edges.astype(np.float64))
    recorder = PlanRecorder(counters)
    for flags in (0, 16, FAST | MANY, 4 | 1 << 8 | 2 << 12):
        recorder.add(np.zeros((1, 1), np.float32), np.zeros((1, 1)), flags=flags)
    found = dict(zip(PLAN_CELLS, counters.snapshot()["plan"].tolist(), strict=True))
    assert (found["requests_general"], found["requests_fast"], found["requests_shadow"]) == (3, 1, 1)


def test_a_shadows_time_is_nobodys():
    """Durations are those of answers: a shadow moves features and scores of its version, and no duration or its sum."""
    edges = np.full((1, 24), np.inf, np.float32)
    counters = PlanCounters(1, 1, edges, edges.astype(np.float64))
    recorder = PlanRecorder(counters)
    recorder.add(np.ones((1, 1), np.float32), np.ones((1, 1)), total_ns=7, stage_ns=(1, 1, 1, 1, 1))
    answered = counters.snapshot()
    recorder.add(np.ones((2, 1), np.float32), np.ones((2, 1)), total_ns=1_000_000, stage_ns=(9, 9, 9, 9, 9), flags=16)
    found = counters.snapshot()
    np.testing.assert_array_equal(found["durations_ns"], answered["durations_ns"])
    assert (found["features"].sum(), found["scores"].sum()) == (3, 3)


def test_mapped_counters_are_freed_with_a_cycle():
    """Whatever the collector finds them in, the mapping is released, and nothing is raised where nobody can catch it."""
    failures = []
    mapped = mmap.mmap(-1, 8 * (worker_sections()["worker"][1][0] + 64 + 64 * 6))
    held = [WorkerCounters(memoryview(mapped)[:])]
    held.append(held)
    hook, sys.unraisablehook = sys.unraisablehook, failures.append
    try:
        del held
        gc.collect()
    finally:
        sys.unraisablehook = hook
    assert failures == []
    mapped.close()  # refused while anything is exported from it


@pytest.mark.parametrize(("rung", "is_counted"), [(0, True), (1, True), (2, False), (3, False)])
def test_answers_made_without_features_move_no_histogram(rung, is_counted):
    """A last score and a default count as requests, but neither as features, missing or not, nor as scores of the model."""
    edges = np.full((1, 24), np.inf, np.float32)
    counters = PlanCounters(1, 1, edges, edges.astype(np.float64))
    PlanRecorder(counters).add(np.full((3, 1), np.nan, np.float32), np.zeros((3, 1)), flags=4 | rung << 8 | 1 << 12)
    found = counters.snapshot()
    plan = dict(zip(PLAN_CELLS, found["plan"].tolist(), strict=True))
    assert (plan["requests_general"], plan["rows_general"]) == (1, 3)
    wanted = 3 if is_counted else 0
    assert (found["features"].sum(), found["scores"].sum()) == (wanted, wanted)
    assert found["oldest_age_ms"].sum() == is_counted


def test_only_gauges_are_set():
    """A gauge holds what it was last set to; a count cannot be set, so that it never goes backwards."""
    worker = WorkerCounters()
    for value in (7, 2):
        worker.set("near_realtime_waiting_rows", value)
    assert worker.get("near_realtime_waiting_rows") == 2
    for cell in (*set(WORKER_CELLS) - set(WORKER_GAUGES), "nothing"):
        with pytest.raises(ValueError, match="gauge"):
            worker.set(cell, 1)


def test_every_cell_has_its_own_place():
    """Cells that are named apart count apart."""
    worker = WorkerCounters()
    for n, cell in enumerate(WORKER_CELLS):
        worker.add(cell, n + 1)
    assert [worker.get(cell) for cell in WORKER_CELLS] == list(range(1, len(WORKER_CELLS) + 1))
    assert len(WORKER_CELLS) <= worker_sections()["worker"][1][0]
