"""Counters on disk: shared by plans of a version, merged over workers, kept when a worker dies."""

from __future__ import annotations

import copy
import json
import shutil
import struct
import subprocess
import sys
import threading

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.monitor.recorders import FEATURES, SIGNATURE, make_recorder, rows_of
from tests.reference import binning
from tiercel._hot.counters import WORKER_CELLS, worker_sections

from tiercel.errors import CounterFileError
from tiercel.monitor.counting import read_counter_file
from tiercel.monitor.metrics import quantile_us, render_metrics
from tiercel.monitor.reference import Reference
from tiercel.monitor.totals import fold, read_totals
from tiercel.settings import JournalSettings
from tiercel.types import Tier

NO_JOURNAL = JournalSettings(enabled=False)


def test_a_versions_counts_are_its_own(tmp_path):
    """Two versions counted side by side, one on its reference's edges, each have exactly their own rows."""
    rows, scores = rows_of(300)
    reference = Reference.build(rows, scores, FEATURES)
    recorder = make_recorder(tmp_path, NO_JOURNAL)
    recorder.for_plan("late", 1, SIGNATURE, reference=reference).add(rows, scores)
    recorder.for_plan("late", 2, SIGNATURE).add(rows[:10].copy(), scores[:10].copy())
    one, two = sorted(read_totals(tmp_path / "counters").plans.values(), key=lambda c: c.what["version"])
    np.testing.assert_array_equal(one.section("features"), reference.feature_counts)
    np.testing.assert_array_equal(one.section("scores"), reference.score_counts)
    assert one.what["reference"] == reference.digest
    assert two.section("plan")[4:6].tolist() == [10, 0]
    present = two.section("features")
    np.testing.assert_array_equal(present[:, 25], np.isnan(rows[:10]).sum(axis=0))
    np.testing.assert_array_equal(present[:, 0] + present[:, 25], [10] * 3)
    recorder.close()


def test_a_swapped_base_goes_on_counting(tmp_path):
    """Plans of one version on different bases add to the same counters."""
    recorder = make_recorder(tmp_path, NO_JOURNAL)
    rows, scores = rows_of(1)
    one = recorder.for_plan("late", 1, SIGNATURE, base_name="one")
    two = recorder.for_plan("late", 1, SIGNATURE, base_name="two")
    assert recorder.for_plan("late", 1, SIGNATURE, base_name="one") is one
    assert one.counters is two.counters
    one.add(rows, scores)
    two.add(rows, scores)
    (counts,) = read_totals(tmp_path / "counters").plans.values()
    assert counts.section("plan")[1] == 2
    recorder.close()


def test_plans_are_made_while_others_record(tmp_path):
    """A refresh thread that makes plans does not disturb the thread that records."""
    recorder = make_recorder(tmp_path)
    rows, scores = rows_of(1)
    plan = recorder.for_plan("late", 1, SIGNATURE)
    kept = []
    refresh = threading.Thread(
        target=lambda: kept.extend(recorder.for_plan("late", v, SIGNATURE) for v in range(2, 40))
    )
    refresh.start()
    for number in range(3000):
        plan.add(rows, scores, number=number)
    refresh.join()
    recorder.close()
    totals = read_totals(tmp_path / "counters")
    assert len(totals.plans) == 39
    assert totals.worker["journal_records"] == 3000


CHILD = """
import os, signal, sys
from pathlib import Path
from tests.monitor.recorders import SIGNATURE, make_recorder, rows_of
recorder = make_recorder(Path(sys.argv[1]), worker=int(sys.argv[2]))
rows, scores = rows_of(5)
recorder.for_plan("late", 1, SIGNATURE).add(rows, scores, repeat=100)
recorder.counters.count_reply(404, "model_not_found")
recorder.counters.add("degraded_default", 3)
recorder.counters.set("near_realtime_waiting_rows", 5)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_totals_outlive_killed_workers(tmp_path):
    """The counts of killed workers stay in the totals, are folded into one file once, and never go backwards."""
    live = make_recorder(tmp_path, NO_JOURNAL)
    for worker in range(2):
        subprocess.run([sys.executable, "-c", CHILD, str(tmp_path), str(worker)], check=False, timeout=60)
    rows, scores = rows_of(5)
    live.for_plan("late", 1, SIGNATURE).add(rows, scores, repeat=7)
    directory = tmp_path / "counters"
    before = render_metrics(tmp_path)
    backup = tmp_path / "backup"
    shutil.copytree(directory, backup)
    assert fold(directory) == 1  # the second start has folded the first
    assert render_metrics(tmp_path) == before
    assert fold(directory) == 0
    # As after a crash between the new totals and the removal of what they hold.
    for dead in backup.iterdir():
        if dead.is_dir() and not (directory / dead.name).exists():
            shutil.copytree(dead, directory / dead.name)
    assert render_metrics(tmp_path) == before
    assert fold(directory) == 0
    totals = read_totals(directory)
    (counts,) = totals.plans.values()
    assert counts.section("plan")[1] == 207
    assert totals.errors == {"model_not_found": 2}
    assert totals.worker["degraded_default"] == 6
    assert totals.n_live == 1
    live.close()


def test_gauges_are_of_workers_that_live(tmp_path):
    """What waits is what waits with the workers that run: a killed one takes its part along, folded or not."""
    live = make_recorder(tmp_path, NO_JOURNAL)
    live.counters.set("near_realtime_waiting_rows", 2)
    other = make_recorder(tmp_path, NO_JOURNAL, worker=1)
    other.counters.set("near_realtime_waiting_rows", 40)
    directory = tmp_path / "counters"
    assert read_totals(directory).worker["near_realtime_waiting_rows"] == 42
    other.close()
    for n_folded in (1, 0):
        assert read_totals(directory).worker["near_realtime_waiting_rows"] == 2
        assert fold(directory) == n_folded
    assert b"tiercel_near_realtime_waiting_rows 2.0" in render_metrics(tmp_path)
    live.close()


def test_files_with_fewer_or_more_cells_are_read(tmp_path):
    """Counts of a tiercel that counted less, or more, are added up by name, and its gauges end with its worker."""
    recorder = make_recorder(tmp_path, NO_JOURNAL)
    recorder.counters.add("answered", 5)
    recorder.counters.set("near_realtime_waiting_rows", 9)
    (directory,) = [path for path in (tmp_path / "counters").iterdir() if path.is_dir()]
    path = directory / "worker.counters"
    made = path.read_bytes()
    recorder.close()

    def rewrite(change):
        """The file with another description in the same place."""
        size = int.from_bytes(made[12:16], "little")
        described = json.loads(made[64 : 64 + size])
        change(described["what"])
        text = json.dumps(described, separators=(",", ":")).encode()
        path.write_bytes(
            made[:12] + len(text).to_bytes(4, "little") + made[16:64] + text.ljust(4096 - 64, b"\0") + made[4096:]
        )

    def older(what):
        del what["gauges"]
        what["cells"] = what["cells"][:16]

    def newer(what):
        what["cells"] = ["later" if name == "near_realtime_waiting_rows" else name for name in what["cells"]]
        what["gauges"] = ["later"]

    rewrite(older)
    totals = read_totals(tmp_path / "counters")
    assert (totals.problems, totals.worker["answered"], totals.worker["degraded_default"]) == ([], 5, 0)
    rewrite(newer)
    totals = read_totals(tmp_path / "counters")
    assert (totals.problems, totals.worker["answered"]) == ([], 5)
    assert "later" not in totals.worker
    for bad in (["a", "a"], [1], "answered" * 10, None):
        rewrite(lambda what, bad=bad: what.update(cells=bad))
        assert len(read_totals(tmp_path / "counters").problems) == 1


@pytest.mark.parametrize("n_cells", [16, 32, len(WORKER_CELLS), 200])
def test_files_of_another_size_are_read(tmp_path, n_cells):
    """A tiercel that counts in fewer or more cells put its errors elsewhere: an update loses no counts of those before it."""
    recorder = make_recorder(tmp_path, NO_JOURNAL)
    recorder.counters.add("answered", 5)
    recorder.counters.count_reply(404, "not_found")
    recorder.close()
    (path,) = (tmp_path / "counters").glob("*/worker.counters")
    made = path.read_bytes()
    size, first = (int.from_bytes(made[at:end], "little") for at, end in ((12, 16), (16, 24)))
    sections = worker_sections()
    (n_now,) = sections["worker"][1]
    cells = np.frombuffer(made[first:], np.uint64)[: sections["error_names"][0] + 64 * 6]
    described = json.loads(made[64 : 64 + size])
    described["what"].update(
        cells=[*WORKER_CELLS, *(f"later_{k}" for k in range(n_cells))][:n_cells], sections=worker_sections(n_cells)
    )
    kept = np.concatenate([np.resize(np.r_[cells[:n_now], np.zeros(n_cells, np.uint64)], n_cells), cells[n_now:]])

    def totals_of(described):
        text = json.dumps(described, separators=(",", ":")).encode()
        first = 64 + -(-len(text) // 8) * 8
        head = made[:12] + struct.pack("=IQQ", len(text), first, len(kept)) + made[32:64]
        path.write_bytes((head + text).ljust(first, b"\0") + kept.tobytes())
        return read_totals(tmp_path / "counters")

    totals = totals_of(described)
    assert totals.problems == []
    assert (totals.worker["answered"], totals.worker["replies_4xx"], totals.errors) == (5, 1, {"not_found": 1})
    for name, told in (("worker", [n_cells + 1]), ("worker", [float(n_cells)]), ("worker", [-1]), ("errors", [64.0])):
        bad = copy.deepcopy(described)
        bad["what"]["sections"][name] = [bad["what"]["sections"][name][0], told]
        totals = totals_of(bad)
        assert (len(totals.problems), totals.worker["answered"]) == (1, 0)
    described["what"]["cells"].append("one more than there are cells")
    totals = totals_of(described)
    assert (len(totals.problems), totals.worker["answered"]) == (1, 0)


def test_tiers_of_a_version_are_counted_apart(tmp_path):
    """One version that answers in two tiers has counts of its own in each, and files without a tier are realtime's."""
    recorder = make_recorder(tmp_path, NO_JOURNAL)
    rows, scores = rows_of(1)
    recorder.for_plan("late", 1, SIGNATURE).add(rows, scores, repeat=2)
    recorder.for_plan("late", 1, SIGNATURE, tier=Tier.NEAR_REALTIME).add(rows, scores, repeat=3)
    assert recorder.for_plan("late", 1, SIGNATURE, tier=Tier.NEAR_REALTIME) is recorder.for_plan(
        "late", 1, SIGNATURE, tier=Tier.NEAR_REALTIME
    )
    versions = read_totals(tmp_path / "counters").by_version()
    done = {key: int(counts.sections["plan"][1]) for key, counts in versions.items()}
    assert done == {("late", 1, "realtime"): 2, ("late", 1, "near-realtime"): 3}
    (directory,) = [path for path in (tmp_path / "counters").iterdir() if path.is_dir()]
    for path in directory.glob("plan-*"):  # as an older tiercel wrote it; of the same length
        path.write_bytes(path.read_bytes().replace(b'"tier":"realtime"', b'"reit":"realtime"'))
    assert set(read_totals(tmp_path / "counters").by_version()) == set(done)
    recorder.close()


def test_a_version_with_two_references_is_one_version(tmp_path):
    """Requests counted on edges of two references are added up per version."""
    rows, scores = rows_of(50)
    recorder = make_recorder(tmp_path, NO_JOURNAL)
    for n, seed in ((2, 1), (3, 2)):
        reference = Reference.build(*rows_of(50, seed=seed), FEATURES)
        recorder.for_plan("late", 1, SIGNATURE, base_name=str(seed), reference=reference).add(rows, scores, repeat=n)
    totals = read_totals(tmp_path / "counters")
    assert len(totals.plans) == 2
    (counts,) = totals.by_version().values()
    assert counts.sections["plan"][1] == 5
    assert counts.sections["features"][:, 25].tolist() == (5 * np.isnan(rows).sum(axis=0)).tolist()
    recorder.close()


def test_starts_leave_no_files_behind(tmp_path):
    """A start adds the counts of those before it to the totals and removes their files, so restarts fill no disk."""
    rows, scores = rows_of(1)
    for _ in range(5):
        recorder = make_recorder(tmp_path)
        recorder.for_plan("late", 1, SIGNATURE).add(rows, scores)
        recorder.close()
    assert len([path for path in (tmp_path / "counters").iterdir() if path.is_dir()]) == 1
    assert read_totals(tmp_path / "counters").worker["journal_records"] == 5


def test_damaged_totals_stop_no_worker(tmp_path):
    """A worker counts on beside a totals file that cannot be read, which is left as it is, and says so."""
    (tmp_path / "counters").mkdir()
    (tmp_path / "counters" / "totals.msgpack").write_bytes(b"no totals")
    recorder = make_recorder(tmp_path)
    recorder.for_plan("late", 1, SIGNATURE).add(*rows_of(1))
    recorder.close()
    assert "totals.msgpack" in recorder.problems[0]
    assert (tmp_path / "counters" / "totals.msgpack").read_bytes() == b"no totals"
    assert read_totals(tmp_path / "counters").worker["journal_records"] == 1


def test_metrics_are_prometheus_text(tmp_path):
    """Requests, rows, missing values, durations and errors read back from the text as they were counted."""
    recorder = make_recorder(tmp_path)
    rows, scores = rows_of(4)
    plan = recorder.for_plan("late", 1, SIGNATURE)
    plan.add(rows, scores, flags=1, total_ns=70_000, stage_ns=(1, 2, 3, 4, 5), repeat=3)
    plan.add(rows, scores, total_ns=30_000)
    recorder.counters.count_reply(400, "wrong_type")
    recorder.counters.add("answered", 3)
    samples = {
        (s.name, *sorted(s.labels.items())): s.value
        for family in text_string_to_metric_families(render_metrics(tmp_path).decode())
        for s in family.samples
    }
    label = [("model", "late"), ("version", "1")]
    tier = ("tier", "realtime")
    assert samples["tiercel_requests_total", label[0], ("path", "fast"), tier, label[1]] == 3
    assert samples["tiercel_rows_total", label[0], ("path", "general"), tier, label[1]] == 4
    missing = samples["tiercel_feature_missing_total", ("feature", "a"), label[0], tier, label[1]]
    assert missing == 4 * np.isnan(rows[:, 0]).sum()
    at = [label[0], ("stage", "total"), ("tier", "realtime"), label[1]]
    duration = "tiercel_request_duration_seconds"
    assert samples[f"{duration}_bucket", ("le", "5e-05"), *at] == 1
    assert samples[f"{duration}_bucket", ("le", "0.0001"), *at] == 4
    assert samples[f"{duration}_bucket", ("le", "+Inf"), *at] == samples[f"{duration}_count", *at] == 4
    assert samples[f"{duration}_sum", *at] == pytest.approx(240e-6, rel=1e-9)
    assert samples["tiercel_errors_total", ("code", "wrong_type")] == 1
    assert samples["tiercel_journal_records_total", ("outcome", "written")] == 4
    assert samples["tiercel_fast_path_total", ("outcome", "answered")] == 3
    (counts,) = read_totals(tmp_path / "counters").plans.values()
    assert quantile_us(counts.section("durations_ns")[5], 0.99) == pytest.approx(70, rel=0.016)
    recorder.close()


def test_unreadable_counter_files_are_left_out_and_named(tmp_path):
    """Foreign, cut, half-made and newer files do not stop the metrics; each is a problem, the rest is counted."""
    recorder = make_recorder(tmp_path, NO_JOURNAL)
    rows, scores = rows_of(2)
    recorder.for_plan("late", 1, SIGNATURE).add(rows, scores)
    (directory,) = [path for path in (tmp_path / "counters").iterdir() if path.is_dir()]
    good = next(directory.glob("plan-*")).read_bytes()
    bad = {
        "empty": b"",
        "foreign": b"hello" * 100,
        "newer": good[:8] + b"\x63" + good[9:],
        "cells": good.replace(b'"n_outputs":1', b'"n_outputs":7'),
        "json": good.replace(b'"what"', b'{what"'),
        **{f"cut{n}": good[:n] for n in (1, 63, 64, 100, 4096, len(good) - 1)},
    }
    for name, content in bad.items():
        (directory / f"plan-{name}.counters").write_bytes(content)
        with pytest.raises(CounterFileError, match="expected"):
            read_counter_file(directory / f"plan-{name}.counters")
    (directory / ".plan-000009.counters").write_bytes(good)
    (tmp_path / "counters" / "stray").write_text("x")
    totals = read_totals(tmp_path / "counters")
    assert len(totals.problems) == len(bad)
    (counts,) = totals.plans.values()
    assert counts.section("plan")[1] == 1
    assert f"tiercel_counter_files_unreadable {float(len(bad))}".encode() in render_metrics(tmp_path)
    recorder.close()


def test_metrics_of_nothing(tmp_path):
    """Before anything was served there are metrics already, and they are zero."""
    assert b"tiercel_workers 0.0" in render_metrics(tmp_path / "nowhere")


def test_a_state_directory_that_refuses_stops_nobody(tmp_path):
    """Where no file can be made the worker counts in its own memory, says so, and predictions go on."""
    (tmp_path / "counters").write_text("in the way")
    (tmp_path / "journal").write_text("in the way")
    recorder = make_recorder(tmp_path)
    rows, scores = rows_of(3)
    plan = recorder.for_plan("late", 1, SIGNATURE)
    plan.add(rows, scores)
    assert plan.counters.snapshot()["plan"][1] == 1
    assert len(recorder.problems) == 2
    recorder.close()


def test_a_reference_of_other_features_is_not_used(tmp_path):
    """Counting on edges of other features would mislead; the version is counted without edges and it is said."""
    rows, scores = rows_of(50)
    recorder = make_recorder(tmp_path, NO_JOURNAL)
    plan = recorder.for_plan("late", 1, SIGNATURE, reference=Reference.build(rows, scores, ("x", "y", "z")))
    plan.add(rows, scores)
    assert plan.counters.snapshot()["features"][:, 1:24].sum() == 0
    assert "other features" in recorder.problems[0]
    recorder.close()


def test_counts_equal_the_slow_count_on_reference_edges(tmp_path):
    """Through files and reader, traffic on reference edges is counted as the slow twin counts it."""
    rows, scores = rows_of(200)
    reference = Reference.build(rows, scores, FEATURES)
    traffic, answers = rows_of(100, seed=9)
    traffic[:5] = [[np.inf] * 3, [-np.inf] * 3, [-0.0] * 3, [1e30] * 3, [-1e30] * 3]
    recorder = make_recorder(tmp_path, NO_JOURNAL)
    recorder.for_plan("late", 1, SIGNATURE, reference=reference).add(traffic, answers)
    (counts,) = read_totals(tmp_path / "counters").plans.values()
    np.testing.assert_array_equal(counts.section("features"), binning.histograms(reference.feature_edges, traffic))
    assert [path.name for path in tmp_path.iterdir()] == ["counters"]
    recorder.close()
