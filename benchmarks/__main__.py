"""`python -m benchmarks [NAME ...] [OPTIONS]`: run benchmarks; `--smoke` runs each briefly to show that it works.

Other options are those of the one benchmark that is named.
"""

from __future__ import annotations

import importlib
import sys
import time

BENCHMARKS = (
    "bench_aside",
    "bench_batching",
    "bench_concept",
    "bench_dashboard",
    "bench_deadline",
    "bench_decimal",
    "bench_delay",
    "bench_drift",
    "bench_estimation",
    "bench_explain",
    "bench_explained_calls",
    "bench_feature_read",
    "bench_forest",
    "bench_label_join",
    "bench_ladder",
    "bench_metrics",
    "bench_neighbour",
    "bench_oip",
    "bench_overload",
    "bench_plan",
    "bench_point_in_time",
    "bench_recorder",
    "bench_replay",
    "bench_slowed",
    "bench_strict",
    "bench_throughput",
    "bench_tiers",
    "bench_http",
)


def main() -> int:
    arguments = sys.argv[1:]
    first = next((i for i, argument in enumerate(arguments) if argument.startswith("-")), len(arguments))
    names, options = [f"bench_{name.removeprefix('bench_')}" for name in arguments[:first]], arguments[first:]
    if options not in ([], ["--smoke"]) and len(names) != 1:
        print("Expected options other than --smoke with the name of one benchmark", file=sys.stderr)
        return 2
    for name in names or BENCHMARKS:
        if name not in BENCHMARKS:
            print(f"Expected one of {', '.join(BENCHMARKS)}; got {name}", file=sys.stderr)
            return 2
        print(f"\n=== {name}", flush=True)
        start = time.perf_counter()
        importlib.import_module(f"benchmarks.{name}").main(options)
        print(f"--- {name}: {time.perf_counter() - start:.1f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
