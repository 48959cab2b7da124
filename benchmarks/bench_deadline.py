"""What looking at the deadline costs before each stage of a prediction.

    python -m benchmarks.bench_deadline [--rounds 40] [--repeat 20000] [--smoke]

Alone, compiled: reading the clock, deciding whether the next stage fits, both, and working out when the request is due; each
in a loop of its own, less the loop. Then whole predictions, body bytes to reply bytes, of a plan (a forest of 100 x 31 over 23
stored features): without a deadline, with one from a header (`budget_us`), and with one in the body, which has to be read;
and with a plan that is not measured, whose stages always fit. The rounds of all take turns, and differences are taken within
a round. Last the general path's check, in Python: `require_time`.

A plan looks before it reads and before it scores: two checks. Their clock is read in any case, for Server-Timing.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tiercel._hot.plan import ServingPlan
from tiercel._hot.reply import ReplyIds

from benchmarks import compiled, workload
from benchmarks.machine import describe
from tiercel import Project
from tiercel.serving.asked import require_time
from tiercel.serving.deadline import Deadline
from tiercel.serving.engine import Engine

if TYPE_CHECKING:
    from collections.abc import Callable

SOURCE = Path(__file__).with_name("deadline_check.pyx")
#: The most that a check may cost a stage, and how many stages are looked at.
WANTED_US, N_CHECKS = 0.2, 2
FAR_NS = 1 << 61
BUDGET_US = 10_000


def alone(n: int) -> dict[str, Callable[[], float]]:
    """Nanoseconds of one, by part."""
    core = compiled.load(SOURCE)
    values = np.random.default_rng(0).integers(1, 1000, 1024)
    return {
        "empty loop": lambda: core.empty(n, values)[0],
        "the clock": lambda: core.clock(n, values)[0],
        "the comparison": lambda: core.compare(n, values, 3000, FAR_NS)[0],
        "clock and comparison: a check": lambda: core.check(n, values, 3000, FAR_NS)[0],
        "when it is due, once a request": lambda: core.budget(n, values, 20_000, -1, 10**9)[0],
    }


def plan_of(engine: Engine, needs_us: tuple[float, float, float] | None) -> ServingPlan:
    """The forest's plan, with what its stages are measured to take; None: not measured."""
    loaded = next(iter(engine._loaded.values()))  # noqa: SLF001 - the kernel and its signature
    plan = engine.find_plan("bench")
    assert plan is not None
    return ServingPlan(
        "bench", 1, loaded.model.signature, loaded.model.scorer, plan.schema, plan.base, needs_us=needs_us
    )


def predictions(engine: Engine, n_rows: int, n: int) -> dict[str, Callable[[], float]]:
    """Nanoseconds of one prediction, by its deadline."""
    ids, now_us = ReplyIds(10_000), time.time_ns() // 1000
    keys = np.random.default_rng(1).integers(0, n_rows, 1000).tolist()
    plain = [json.dumps({"entities": {"user_id": key}}).encode() for key in keys]
    asking = [json.dumps({"entities": {"user_id": key}, "deadline_ms": 10}).encode() for key in keys]
    measured, unmeasured = plan_of(engine, (1.0, 1.0, 1.0)), plan_of(engine, None)

    def timed(plan: ServingPlan, bodies: list[bytes], budget_us: int) -> float:
        assert plan.answer(bodies[0], 0, now_us, ids, budget_us=budget_us) is not None
        begin = time.perf_counter_ns()
        for i in range(n):
            plan.answer(bodies[i % 1000], 0, now_us, ids, budget_us=budget_us)
        return (time.perf_counter_ns() - begin) / n

    return {
        "not measured, no deadline": lambda: timed(unmeasured, plain, -1),
        "no deadline": lambda: timed(measured, plain, -1),
        "deadline from a header": lambda: timed(measured, plain, BUDGET_US),
        "deadline in the body": lambda: timed(measured, asking, -1),
    }


def in_python(n: int) -> Callable[[], float]:
    """Nanoseconds of `require_time`."""
    deadline = Deadline(time.monotonic_ns(), 3_600_000_000)

    def timed() -> float:
        begin = time.perf_counter_ns()
        for _ in range(n):
            require_time(deadline, 100.0, "bench")
        return (time.perf_counter_ns() - begin) / n

    return timed


def in_turn(cases: dict[str, Callable[[], float]], rounds: int) -> dict[str, np.ndarray]:
    """Each case's rounds, in microseconds."""
    found = {name: np.empty(rounds) for name in cases}
    for at in range(rounds):
        for name, call in cases.items():
            found[name][at] = call() / 1000
    return found


def spread(values_us: np.ndarray) -> str:
    """Median and the middle half."""
    low, middle, high = np.quantile(values_us, [0.25, 0.5, 0.75])
    return f"{middle:7.4f} us ({low:.4f} .. {high:.4f})"


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--repeat", type=int, default=20_000)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args(arguments)
    rounds, n, n_rows = (3, 500, 1_000) if options.smoke else (options.rounds, options.repeat, 20_000)
    print(describe())

    found = in_turn(alone(10 * n), rounds)
    loop = found["empty loop"]
    print("\nalone, compiled, less the loop (median and middle half of the rounds)")
    for name, values in found.items():
        print(f"  {name:34s} {spread(values if values is loop else values - loop)}")
    check_us = float(np.median(found["clock and comparison: a check"] - loop))
    verdict = "holds" if check_us < WANTED_US else "does not hold"
    print(f"  a check: {check_us:.4f} us a stage; wanted below {WANTED_US:g}: {verdict}")

    with tempfile.TemporaryDirectory() as directory:
        made = workload.build(Path(directory), n_rows, with_onnx=False)
        with Project(made.project) as project:
            engine = Engine(project.settings, project.registry)
            engine.refresh()
            found = in_turn(predictions(engine, n_rows, n), rounds)
    print("\nwhole predictions, and what a deadline adds to one (differences within a round)")
    base = found["no deadline"]
    for name, values in found.items():
        more = "" if values is base else f"   {1000 * float(np.median(values - base)):+7.1f} ns"
        print(f"  {name:34s} {spread(values)}{more}")
    added_us = float(np.median(found["deadline from a header"] - base)) / N_CHECKS
    print(f"  a deadline from a header adds {added_us:+.4f} us to each of {N_CHECKS} stages that are looked at")

    python_us = in_turn({"require_time": in_python(n)}, rounds)["require_time"]
    print(f"\nthe general path, in Python: require_time {spread(python_us)} a stage, the loop included")


if __name__ == "__main__":
    main()
