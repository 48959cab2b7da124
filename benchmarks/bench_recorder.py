"""Recording one prediction of 23 features: counters, journal, both; beside the same done with NumPy and with a JSON log.

    python -m benchmarks.bench_recorder [--rounds 15] [--smoke]

The counters are files, the journal is segments on disk kept by its thread, as in a worker. Records cycle through 512 rows, so
no branch learns one input. Before timing, the compiled counts are compared with NumPy's.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.machine import describe
from tiercel.monitor.recording import PlanRecorder, Recorder
from tiercel.monitor.reference import Reference
from tiercel.settings import JournalSettings
from tiercel.types import Signature, Task

if TYPE_CHECKING:
    from collections.abc import Callable

N_FEATURES = 23
N_ROWS = 512
FEATURES = tuple(f"f{i}" for i in range(N_FEATURES))
SIGNATURE = Signature(FEATURES, Task.BINARY, ("no", "yes"))
REQUEST = json.dumps({"entities": {"tailnum": "N14228"}, "features": {"distance": 1400, "hour": 7}}).encode().ljust(120)
STAGES = (600, 1100, 200, 1600, 700)


def add_all(
    recorder: PlanRecorder, rows: list[np.ndarray], scores: list[np.ndarray], repeat: int, request: bytes = b""
) -> None:
    for row, score in zip(rows, scores, strict=True):
        recorder.add(
            row, score, total_ns=6000, stage_ns=STAGES, oldest_age_us=10**9, repeat=repeat, request=request,
            request_kind=1 if request else 0,
        )  # fmt: skip


def per_record(call: Callable[[], None], n: int) -> float:
    begin = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - begin) / n


def numpy_counts(reference: Reference, rows: list[np.ndarray]) -> np.ndarray:
    """What a worker would do without compiled counters: a search per feature, one scattered addition."""
    counts = np.zeros((N_FEATURES, 28), np.uint64)
    columns = np.arange(N_FEATURES)
    edges = [np.ascontiguousarray(e) for e in reference.feature_edges]
    for row in rows:
        cells = [e.searchsorted(v, "right") for e, v in zip(edges, row[0], strict=True)]
        cells = np.where(np.isnan(row[0]), 25, cells)
        np.add.at(counts, (columns, cells), 1)
    return counts


def log_lines(path: Path, rows: list[np.ndarray], scores: list[np.ndarray]) -> None:
    """One JSON line per prediction, flushed, as a structured logger writes it."""
    with path.open("a") as stream:
        for number, (row, score) in enumerate(zip(rows, scores, strict=True)):
            line = {"id": f"x{number:x}", "at": time.time(), "score": score[0, 0], "features": row[0].tolist()}
            stream.write(json.dumps(line) + "\n")
            stream.flush()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args(arguments)
    rounds, repeat = (2, 2) if options.smoke else (options.rounds, 40)
    rng = np.random.default_rng(0)
    training = rng.gamma(2, 3, (20_000, N_FEATURES)).astype(np.float32)
    training[rng.random(training.shape) < 0.02] = np.nan
    reference = Reference.build(training, rng.random((len(training), 1)), FEATURES)
    rows = [np.ascontiguousarray(training[i : i + 1]) for i in range(N_ROWS)]
    scores = [rng.random((1, 1)) for _ in rows]
    with tempfile.TemporaryDirectory() as directory:
        state = Path(directory)
        both = Recorder(state, 0, "0" * 16, JournalSettings())
        counting = Recorder(state, 1, "1" * 16, JournalSettings(enabled=False))
        plans = {
            "nothing (the call and the loop)": PlanRecorder(),
            "counters": counting.for_plan("m", 1, SIGNATURE, reference=reference),
            "counters + journal": both.for_plan("m", 1, SIGNATURE, reference=reference),
        }
        add_all(plans["counters"], rows, scores, 1)
        counters = plans["counters"].counters
        assert counters is not None
        assert (counters.snapshot()["features"] == numpy_counts(reference, rows)).all()
        print(describe("numpy"))
        samples: dict[str, list[float]] = {}
        for _ in range(rounds):
            for name, plan in plans.items():
                n = N_ROWS * repeat
                samples.setdefault(name, []).append(
                    per_record(lambda plan=plan: add_all(plan, rows, scores, repeat), n)  # type: ignore[misc]
                )
            time.sleep(0.2)  # the keeper makes room for as much again
            samples.setdefault("counters + journal + request of 120 bytes", []).append(
                per_record(lambda: add_all(plans["counters + journal"], rows, scores, repeat, REQUEST), N_ROWS * repeat)
            )
            time.sleep(0.2)
            samples.setdefault("NumPy searchsorted + add.at (counters only)", []).append(
                per_record(lambda: numpy_counts(reference, rows), N_ROWS)
            )
            samples.setdefault("JSON line to a file (journal only)", []).append(
                per_record(lambda: log_lines(state / "log.jsonl", rows, scores), N_ROWS)
            )
        base = float(np.median(samples["counters + journal"]))
        for name, values in samples.items():
            p50, p99 = np.percentile(values, [50, 99])
            print(f"  {name:46s} p50 {p50:10.1f}  p99 {p99:10.1f} ns/record  {p50 / base:8.2f} x")
        worker = both.counters
        print(f"  journal: {worker.get('journal_records')} written, {worker.get('journal_dropped')} dropped")
        both.close()
        counting.close()


if __name__ == "__main__":
    main()
