"""Tiers beside each other over HTTP: realtime while near-realtime is at its limit, and near-realtime beyond it.

    python -m benchmarks.bench_tiers [--seconds S] [--rounds N] [--rows N] [--smoke]

One worker on the first core, the generator on the last. A forest of 100 x 31 is served in realtime, a neural network of
23 -> 128 -> 64 -> 1 by onnxruntime near-realtime (asked for at registration) and, as another model, in realtime: inline, one
row at a time. All read the same stored row of 23 features.

1. Requests per second of each, 64 connections in closed loop.
2. Realtime at a third of its capacity, quiet, and while 64 connections keep the near-realtime queue full, in turns. On two
   cores that load's generator shares the last core with the one that measures: `~` says that it fell behind.
3. Near-realtime in open loop at 0.8, 2 and 5 times its capacity: what was answered in time, how late, what was refused.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks import workload
from benchmarks.bench_batching import network
from benchmarks.contenders import environment
from benchmarks.contenders.contender import TIERCEL
from benchmarks.contenders.process import Server, cores_for, started
from benchmarks.loadgen.run import Requests, Run, run
from benchmarks.machine import describe
from tiercel import Project

if TYPE_CHECKING:
    from collections.abc import Iterator

CONNECTIONS = 64
OVERLOAD_CONNECTIONS = 512
MODELS = {"bench": "forest, realtime", "net": "network, near-realtime", "net_inline": "network, realtime"}
LOADS = (0.8, 2.0, 5.0)


def prepare(directory: Path, n_rows: int) -> workload.Workload:
    """The HTTP benchmark's project with the network registered in two tiers."""
    made = workload.build(directory, n_rows, with_onnx=False)
    with Project(made.project) as project:
        golden = np.random.default_rng(2).normal(size=(256, workload.N_FEATURES)).astype(np.float32)
        for name, tier in (("net", "near-realtime"), ("net_inline", "realtime")):
            project.register(
                network(), name=name, service="bench", feature_names=workload.NAMES, golden_rows=golden, tier=tier,
                alias="champion",
            )  # fmt: skip
    return made


class Load:
    """What the generator sends to one server."""

    def __init__(self, server: Server, n_rows: int, seconds: float) -> None:
        self.server, self.seconds = server, seconds
        self.core = cores_for(1)[1]
        self.requests = {
            name: Requests.make(
                path=f"/predict/{name}", content_type="application/json", body=TIERCEL.body, n_rows=n_rows, seed=7
            )
            for name in MODELS
        }

    def run(self, name: str, rate: float = 0.0, connections: int = CONNECTIONS, seconds: float | None = None) -> Run:
        """Closed loop without a rate."""
        return run(
            self.server.port, self.requests[name], rate=rate, seconds=seconds or self.seconds, connections=connections,
            warmup_s=0.3, core=self.core,
        )  # fmt: skip

    @contextmanager
    def beside(self, name: str) -> Iterator[list[Run]]:
        """Closed loop on another thread for as long as the block runs, which must be about `seconds`."""
        found: list[Run] = []
        thread = threading.Thread(target=lambda: found.append(self.run(name, seconds=self.seconds + 1.0)))
        thread.start()
        try:
            yield found
        finally:
            thread.join()


def tail(one: Run) -> str:
    """Percentiles of the latency, and a mark where the generator fell behind."""
    us = one.latency.summary_us()
    mark = "" if one.kept_schedule else " ~"
    return f"p50 {us['p50']:9,.0f}  p99 {us['p99']:9,.0f}  p99.9 {us['p99.9']:9,.0f}  max {us['max']:9,.0f} us{mark}"


def measure(load: Load, rounds: int) -> None:
    """Print the three tables."""
    print("\n requests per second, 64 connections in closed loop (median of the rounds)")
    capacity: dict[str, float] = {}
    for name, what in MODELS.items():
        runs = [load.run(name) for _ in range(rounds)]
        capacity[name] = float(np.median([each.per_second for each in runs]))
        print(f"  {what:24s} {capacity[name]:10,.0f}   {tail(runs[-1])}   failed {sum(each.failed for each in runs)}")
    print(f"  near-realtime x inline: {capacity['net'] / capacity['net_inline']:.2f}")

    print(f"\n realtime at a third of its capacity ({capacity['bench'] / 3:,.0f}/s)")
    quiet, beside = [], []
    for _ in range(rounds):
        quiet.append(load.run("bench", capacity["bench"] / 3))
        with load.beside("net") as found:
            beside.append(load.run("bench", capacity["bench"] / 3))
        print(f"  quiet                    {tail(quiet[-1])}   failed {quiet[-1].failed}")
        print(f"  beside {found[0].per_second:8,.0f}/s of net {tail(beside[-1])}   failed {beside[-1].failed}")
    ratios = [
        b.latency.percentile_ns(99.9) / max(1, q.latency.percentile_ns(99.9))
        for q, b in zip(quiet, beside, strict=True)
    ]
    print(f"  p99.9 beside x quiet, by round: {', '.join(f'{each:.2f}' for each in ratios)}")

    print(f"\n near-realtime in open loop, deadline 100 ms, {OVERLOAD_CONNECTIONS} connections")
    for share in LOADS:
        one = load.run("net", share * capacity["net"], OVERLOAD_CONNECTIONS)
        in_time = one.latency.share_below_ns(100_000_000)
        print(
            f"  {share:3.1f} x capacity: answered {one.per_second:8,.0f}/s ({one.per_second / capacity['net']:.2f} of capacity), "
            f"{100 * in_time:.2f} % of them in time, {one.failed:,} refused or unfinished of {one.sent:,}   {tail(one)}"
        )
    after = load.run("net", 0.5 * capacity["net"], seconds=1.0)
    print(f"  right after, at 0.5 x: {tail(after)}   failed {after.failed}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args(arguments)
    seconds, rounds, n_rows = (0.3, 1, 2_000) if options.smoke else (options.seconds, options.rounds, options.rows)
    print(describe("tiercel", "onnxruntime", "uvloop"))
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        made = prepare(directory / "work", n_rows)
        with started(TIERCEL, made.directory, environment.default_cache(), directory / "logs") as server:
            load = Load(server, n_rows, seconds)
            for name in MODELS:
                load.run(name, seconds=0.3)
            measure(load, rounds)


if __name__ == "__main__":
    main()
