"""`python -m benchmarks [NAME ...] [--smoke]`: run benchmarks; `--smoke` runs each briefly to show that it works."""

from __future__ import annotations

import importlib
import sys
import time

BENCHMARKS = ("bench_feature_read", "bench_forest", "bench_plan", "bench_point_in_time", "bench_recorder", "bench_http")


def main() -> int:
    arguments = sys.argv[1:]
    smoke = "--smoke" in arguments
    names = [f"bench_{name.removeprefix('bench_')}" for name in arguments if not name.startswith("-")]
    for name in names or BENCHMARKS:
        if name not in BENCHMARKS:
            print(f"Expected one of {', '.join(BENCHMARKS)}; got {name}", file=sys.stderr)
            return 2
        print(f"\n=== {name}", flush=True)
        start = time.perf_counter()
        importlib.import_module(f"benchmarks.{name}").main(["--smoke"] if smoke else [])
        print(f"--- {name}: {time.perf_counter() - start:.1f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
