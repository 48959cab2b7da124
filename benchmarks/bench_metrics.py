"""One scrape of /metrics: reading the counter files of all workers and writing Prometheus' text.

    python -m benchmarks.bench_metrics [--rounds 50] [--features 50] [--versions 2] [--workers 2] [--smoke]

The files are those of workers that serve, with traffic counted on reference edges. Before timing, the text is read with
prometheus_client's own parser and its request counts are compared with what was recorded.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.machine import describe, percentiles
from tiercel.monitor.metrics import render_metrics
from tiercel.monitor.recording import Recorder
from tiercel.monitor.reference import Reference
from tiercel.settings import JournalSettings
from tiercel.types import Signature, Task

N_REQUESTS = 2000


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--features", type=int, default=50)
    parser.add_argument("--versions", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args(arguments)
    features = tuple(f"f{i}" for i in range(options.features))
    signature = Signature(features, Task.BINARY, ("no", "yes"))
    rng = np.random.default_rng(0)
    rows = rng.gamma(2, 3, (N_REQUESTS, len(features))).astype(np.float32)
    reference = Reference.build(rows, rng.random((len(rows), 1)), features)
    with tempfile.TemporaryDirectory() as directory:
        state = Path(directory)
        workers = [Recorder(state, n, f"{n:016x}", JournalSettings(enabled=False)) for n in range(options.workers)]
        for worker in workers:
            for number in range(1, options.versions + 1):
                plan = worker.for_plan("m", number, signature, reference=reference)
                for row, total_ns in zip(rows, rng.gamma(3, 8000, N_REQUESTS).astype(int).tolist(), strict=True):
                    plan.add(row[None], np.full((1, 1), 0.5), total_ns=total_ns, stage_ns=(total_ns // 5,) * 5)
        text = render_metrics(state)
        counted = sum(
            sample.value
            for family in text_string_to_metric_families(text.decode())
            for sample in family.samples
            if sample.name == "tiercel_requests_total"
        )
        assert counted == N_REQUESTS * options.versions * options.workers
        print(describe("prometheus-client", "numpy"))
        samples_us = []
        for _ in range(3 if options.smoke else options.rounds):
            begin = time.perf_counter_ns()
            render_metrics(state)
            samples_us.append((time.perf_counter_ns() - begin) / 1e3)
        shape = f"{options.workers} workers, {options.versions} versions of {len(features)} features"
        print(f"  {shape}, {len(text):,} bytes: {percentiles(samples_us)}")
        for worker in workers:
            worker.close()


if __name__ == "__main__":
    main()
