"""What work without pause on the server's core does to predictions, by how it stands back: nice, or aside.

    python -m benchmarks aside [--seconds 10] [--rounds 5] [--smoke]

`tiercel serve` at half of its capacity; beside it, on the same core, a process that computes all the time, as the watch does
while it turns the journal into rows. `nice` is `priority.stand_back`, what helper processes and threads of workers ask for;
`aside` is `priority.stand_aside`, what the watch's long steps and the dashboard's pages ask for; `equal` asks for nothing.
Kinds take turns, and ratios are to the quiet runs between.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack
from pathlib import Path

from benchmarks import workload
from benchmarks.contenders import environment
from benchmarks.contenders.contender import TIERCEL
from benchmarks.loadgen.run import Run
from benchmarks.machine import describe
from benchmarks.measuring import CAPACITY_CONNECTIONS, OPEN_CONNECTIONS, Bench, Plan
from benchmarks.neighbour import spinning
from benchmarks.record import median_of

KINDS = {"quiet": None, "aside": "priority.stand_aside()", "nice": "priority.stand_back()", "equal": "pass"}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args(arguments)
    if options.smoke:
        options.seconds, options.rounds = 0.5, 1
    print(describe())
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        scratch = Path(directory)
        work = workload.build(scratch / "work", 20_000, with_onnx=True)
        plan = Plan(options.rounds, options.seconds, count_instructions=False)
        bench = Bench(work, environment.default_cache(), scratch, plan, print)
        server = bench.start(stack, TIERCEL)
        if server is None:
            return
        bench.load(server, TIERCEL, rate=0, connections=CAPACITY_CONNECTIONS, seconds=0.5)
        rate = 0.5 * bench.closed(server, TIERCEL)["per_second"]
        runs: dict[str, list[Run]] = {kind: [] for kind in KINDS}
        for at in range(options.rounds):
            for kind, how in KINDS.items():
                with spinning(how):
                    runs[kind].append(
                        bench.load(
                            server,
                            TIERCEL,
                            rate=rate,
                            connections=OPEN_CONNECTIONS,
                            seconds=options.seconds,
                            seed=at + 1,
                        )
                    )
        calm = median_of(runs["quiet"])
        print(f"  at {rate:,.0f} requests/s, median of {options.rounds} runs of {options.seconds:g} s")
        for kind, found in runs.items():
            one = median_of(found)
            print(
                f"  {kind:8} p50 {one['p50']:9,.0f}  p99 {one['p99']:9,.0f}  p99.9 {one['p99.9']:9,.0f} us   "
                f"p99.9 x quiet {one['p99.9'] / calm['p99.9']:6.2f}   failed {one['failed']}"
            )


if __name__ == "__main__":
    main()
