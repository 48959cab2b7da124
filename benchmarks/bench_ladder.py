"""What deciding who answers costs a request: the entity's bytes, its arm, the rung, its last score.

    python -m benchmarks.bench_ladder [--rounds 60] [--smoke]

Keys cycle through many entities, and the last scores are full, so that each put also forgets one.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.machine import describe
from tiercel.serving.entity_key import key_of
from tiercel.serving.ladder import Candidate, Rung, choose
from tiercel.serving.last_scores import LastScores
from tiercel.serving.rollout import arm_of

if TYPE_CHECKING:
    from collections.abc import Callable

N_ENTITIES = 20_000


def measure(call: Callable[[int], object], rounds: int) -> tuple[float, float]:
    """Median and 99th percentile over rounds of 5000 calls, in microseconds a call."""
    took = []
    for i in range(rounds):
        first = 5000 * i % N_ENTITIES
        begin = time.perf_counter_ns()
        for number in range(first, first + 5000):
            call(number)
        took.append((time.perf_counter_ns() - begin) / 5000 / 1000)
    return float(np.median(took)), float(np.quantile(took, 0.99))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args(arguments)
    entities = [{"customer_id": i, "shop": f"s{i % 97}"} for i in range(N_ENTITIES + 5000)]
    keys = [key_of(each) or b"" for each in entities]
    memory = LastScores(1 << 20)
    ladder = [
        Candidate(Rung.CHAMPION, "fraud", 3, 8000),
        Candidate(Rung.FALLBACK, "fraud_small", 2, 1000),
        Candidate(Rung.DEFAULT, "fraud", None),
    ]

    cases: dict[str, Callable[[int], object]] = {
        "entity_key.key_of, two join keys": lambda i: key_of(entities[i]),
        "rollout.arm_of": lambda i: arm_of("fraud", keys[i], 0.1),
        "ladder.choose, second of three": lambda _: choose(ladder, 2000),
        "last_scores.put, full": lambda i: memory.put("fraud", keys[i], 3, (0.5,), i),
        "last_scores.get, found": lambda i: memory.get("fraud", keys[N_ENTITIES + i % 1000], i, 10**9),
        "a call that does nothing": lambda _: None,
    }
    print(describe())
    for name, call in cases.items():
        p50, p99 = measure(call, 4 if options.smoke else options.rounds)
        print(f"{name:34} p50 {p50:6.3f} us  p99 {p99:6.3f} us")


if __name__ == "__main__":
    main()
