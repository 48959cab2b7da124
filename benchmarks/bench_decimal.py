"""What one number costs to text and from text: ours, CPython's, C's strtod and orjson's.

    python -m benchmarks.bench_decimal [--count 20000] [--smoke]

Nanoseconds per number, one thread, the median of nine runs in which contenders take turns. Ours, CPython's and strtod run
in one compiled loop, so no call from Python is in their figures. orjson reads and writes one JSON list of all the numbers;
its figure holds the list and, reading, a Python float per number, which ours never makes. Texts are those of repr().
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import orjson
from tiercel._hot import decimal


def numbers(count: int) -> dict[str, np.ndarray]:
    """What replies and bodies hold: scores, prices, and for the worst case any float64 of any size."""
    rng = np.random.default_rng(1)
    bits = rng.integers(0, 2**64, 2 * count, dtype=np.uint64).view(np.float64)
    return {
        "scores in 0..1": rng.random(count),
        "prices, two decimals": np.round(rng.random(count) * 1000, 2),
        "any float64": bits[np.isfinite(bits)][:count],
    }


def measure(values: np.ndarray, runs: int) -> dict[str, float]:
    """Nanoseconds per number by contender; all are checked to agree first."""
    as_list = values.tolist()
    lines = "".join(f"{value!r}\n" for value in as_list).encode()
    text = orjson.dumps(as_list)
    assert all(decimal.text(value) == repr(value).encode() for value in as_list)
    assert [decimal.number(line) for line in lines.split()] == as_list == orjson.loads(text)
    contenders: dict[str, Callable[[], object]] = {
        "write, tiercel": lambda: decimal.write_all(values, True),
        "write, CPython repr": lambda: decimal.write_all(values, False),
        "write, orjson": lambda: orjson.dumps(as_list),
        "read, tiercel": lambda: decimal.read_all(lines, 0),
        "read, strtod": lambda: decimal.read_all(lines, 1),
        "read, CPython float": lambda: decimal.read_all(lines, 2),
        "read, orjson": lambda: orjson.loads(text),
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(runs):
        for name, call in contenders.items():
            start = time.perf_counter_ns()
            call()
            times[name].append((time.perf_counter_ns() - start) / len(values))
    return {name: statistics.median(found) for name, found in times.items()}


def main(argv: list[str] | None = None) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--smoke", action="store_true", help="briefly, to show that it works")
    options = parser.parse_args(argv)
    count, runs = (500, 2) if options.smoke else (options.count, 9)
    for kind, values in numbers(count).items():
        for name, cost in measure(values, runs).items():
            print(f"{kind:22s} {name:22s} {cost:8.1f} ns")


if __name__ == "__main__":
    main()
