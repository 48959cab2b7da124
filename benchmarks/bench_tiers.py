"""Tiers beside each other over HTTP: realtime while near-realtime is at its limit.

    python -m benchmarks.bench_tiers [--seconds S] [--rounds N] [--rows N] [--smoke]

One worker on the first core, the generator on the last. A forest of 100 x 31 is served in realtime, a neural network of
23 -> 128 -> 64 -> 1 by onnxruntime near-realtime (asked for at registration) and, as another model, in realtime: inline, one
row at a time. All read the same stored row of 23 features.

1. Requests per second of each, 64 connections in closed loop.
2. Realtime at a third of its capacity, quiet, and while 64 other connections of the same generator keep the near-realtime
   queue full, in turns. `~` says that the generator fell behind.

What more load than that does to both is `bench_overload`'s question; what batching gives, and gives others,
`bench_throughput`'s.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks import tiers
from benchmarks.machine import describe
from benchmarks.networks import NARROW, network
from tiercel.types import Tier

if TYPE_CHECKING:
    from benchmarks.loadgen.run import Run

MODELS = {tiers.TREE: "forest, realtime", "net": "network, near-realtime", "net_inline": "network, realtime"}
#: Realtime's p99.9 beside a full near-realtime queue: at most so many times its quiet one, and below this.
WANTED, WANTED_MS = 2.0, 10.0


def tail(one: Run) -> str:
    """Percentiles of the latency, and a mark where the generator fell behind."""
    us = one.latency.summary_us()
    mark = "" if one.kept_schedule else " ~"
    return f"p50 {us['p50']:9,.0f}  p99 {us['p99']:9,.0f}  p99.9 {us['p99.9']:9,.0f}  max {us['max']:9,.0f} us{mark}"


def measure(load: tiers.Load, rounds: int) -> None:
    """Print the two tables."""
    print("\n requests per second, 64 connections in closed loop (median of the rounds)")
    capacity: dict[str, float] = {}
    for name, what in MODELS.items():
        runs = [load.run(name) for _ in range(rounds)]
        capacity[name] = float(np.median([each.per_second for each in runs]))
        print(f"  {what:24s} {capacity[name]:10,.0f}   {tail(runs[-1])}   failed {sum(each.failed for each in runs)}")
    print(f"  near-realtime x inline: {capacity['net'] / capacity['net_inline']:.2f}")

    rate = capacity[tiers.TREE] / 3
    print(f"\n realtime at a third of its capacity ({rate:,.0f}/s)")
    quiet, loaded = [], []
    for _ in range(rounds):
        quiet.append(load.run(tiers.TREE, rate=rate))
        loaded.append(load.run(tiers.TREE, rate=rate, beside=(load.requests["net"], 64)))
        print(f"  quiet                    {tail(quiet[-1])}   failed {quiet[-1].failed}")
        print(
            f"  beside {loaded[-1].beside_per_second:8,.0f}/s of net {tail(loaded[-1])}   "
            f"failed {loaded[-1].failed + loaded[-1].beside_failed}"
        )
    ratios = [
        b.latency.percentile_ns(99.9) / max(1, q.latency.percentile_ns(99.9))
        for q, b in zip(quiet, loaded, strict=True)
    ]
    print(
        f"  p99.9 beside x quiet, by round: {', '.join(f'{each:.2f}' for each in ratios)} (wanted at most {WANTED:g}, and "
        f"p99.9 below {WANTED_MS:g} ms)"
    )


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args(arguments)
    seconds, rounds, n_rows = (0.3, 1, 2_000) if options.smoke else (options.seconds, options.rounds, options.rows)
    print(describe("onnxruntime", "uvloop"))
    models = [
        tiers.Model("net", network(NARROW), Tier.NEAR_REALTIME),
        tiers.Model("net_inline", network(NARROW), Tier.REALTIME),
    ]
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        made = tiers.prepare(directory / "work", n_rows, models)
        with tiers.serving(made, directory / "logs") as server:
            tiers.check_tiers(server, {model.name: model.tier for model in models}, insist=not options.smoke)
            load = tiers.Load(server, n_rows, dict.fromkeys(MODELS), seconds)
            for name in MODELS:
                load.run(name, seconds=0.3)
            measure(load, rounds)


if __name__ == "__main__":
    main()
