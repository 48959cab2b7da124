"""Batching in process: a small neural network in onnxruntime behind the near-realtime queue, and the same without batches.

    python -m benchmarks.bench_batching [--rounds 7] [--smoke]

A network of 23 -> 128 -> 64 -> 1 runs with one thread of onnxruntime, on one scoring thread, asked from one event loop.
"batched" submits each row to the batcher; "one by one" hands each row to the same executor by itself, as asyncio's
`run_in_executor` does; "direct" calls the model for one row after the other without threads or event loop.

Capacity: 64 waiters that ask again as soon as they are answered. Latency: Poisson arrivals at half of each contender's own
capacity, and of the batched one for all, from a process that writes the moment each is due to a pipe; timed from that moment,
so the sender's sleep, some 60 us late, is in it. Rounds alternate. The answers of all
are compared with the model's own first. Every request is another of 4,096 rows.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.machine import describe, percentiles
from benchmarks.networks import NARROW as WIDTHS
from benchmarks.networks import network
from tiercel.errors import CapacityError, DeadlineError
from tiercel.models.onnx_scorer import OnnxScorer
from tiercel.serving.cost import CostCurve
from tiercel.serving.near_realtime import Batcher

if TYPE_CHECKING:
    from collections.abc import Callable

WAITERS = 64
N_ROWS = 4096
BUDGET_NS = 100_000_000
SIZES = tuple(1 << k for k in range(10))


#: Writes the moment each request is due, when it is due. A process of its own: a loop that watched the clock here would
#: keep the interpreter's lock from the scoring thread.
SENDER = """
import os, random, struct, sys, time
rate, n, seed = float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
draw = random.Random(seed)
due = time.perf_counter() + 0.1
for _ in range(n):
    due += draw.expovariate(rate)
    if (left := due - time.perf_counter()) > 0:
        time.sleep(left)
    os.write(1, struct.pack("d", due))
"""


def measure_cost(scorer: OnnxScorer, rows: np.ndarray, repeat: int) -> list[tuple[int, float, float]]:
    """What a profile holds: (rows, p50 us, p99 us)."""
    points = []
    for n in SIZES:
        samples = []
        for k in range(repeat):
            part = rows[(k * n) % (N_ROWS - n + 1) :][:n]
            begin = time.perf_counter_ns()
            scorer.score(part)
            samples.append((time.perf_counter_ns() - begin) / 1000)
        p50, p99 = np.percentile(samples, [50, 99])
        points.append((n, float(p50), float(p99)))
    return points


class Contenders:
    """The ways to ask for one row, by name; on the running event loop."""

    def __init__(self, scorer: OnnxScorer, cost: list[tuple[int, float, float]], executor: ThreadPoolExecutor) -> None:
        loop = asyncio.get_running_loop()
        self.batcher = Batcher(scorer.score, CostCurve(cost), executor, n_features=WIDTHS[0], n_outputs=1)
        self.ask: dict[str, Callable[[np.ndarray], asyncio.Future[np.ndarray]]] = {
            "batched": lambda row: self.batcher.submit(row, time.monotonic_ns() + BUDGET_NS),
            "one by one": lambda row: loop.run_in_executor(executor, scorer.score, row),
        }


async def compare_answers(contenders: Contenders, singles: list[np.ndarray], expected: np.ndarray) -> None:
    """Before anything is timed. Other sizes of matrices add in another order, hence float32 rounding."""
    for ask in contenders.ask.values():
        for begin in range(0, len(singles), WAITERS):
            found = await asyncio.gather(*(ask(row) for row in singles[begin : begin + WAITERS]))
            np.testing.assert_allclose(np.concatenate(found), expected[begin : begin + WAITERS], rtol=2e-6, atol=1e-7)


async def capacity(
    ask: Callable[[np.ndarray], asyncio.Future[np.ndarray]], singles: list[np.ndarray], seconds: float
) -> float:
    """Answers per second of waiters that never pause."""
    answered = 0
    begin = time.perf_counter()
    end = begin + seconds

    async def wait(number: int) -> None:
        nonlocal answered
        at = number * 61
        while time.perf_counter() < end:
            await ask(singles[at % N_ROWS])
            at += 1
            answered += 1

    await asyncio.gather(*(wait(number) for number in range(WAITERS)))
    return answered / (time.perf_counter() - begin)


async def open_loop(
    ask: Callable[[np.ndarray], asyncio.Future[np.ndarray]],
    singles: list[np.ndarray],
    rate: float,
    seconds: float,
    seed: int,
) -> tuple[list[float], int]:
    """Microseconds from when each request was due to its answer, in order; how many were refused or dropped."""
    n = max(1, int(rate * seconds))
    pending: set[asyncio.Future[np.ndarray]] = set()
    samples: list[float] = []
    refused = asked = 0
    all_asked = asyncio.Event()

    def answered(at: float, future: asyncio.Future[np.ndarray]) -> None:
        nonlocal refused
        pending.discard(future)
        if future.exception() is None:
            samples.append(1e6 * (time.perf_counter() - at))
        else:
            refused += 1

    def read(stream: int) -> None:
        """Ask what came, as a server does."""
        nonlocal asked, refused
        data = os.read(stream, 8 * 512)
        for (at,) in struct.iter_unpack("d", data):
            asked += 1
            try:
                future = ask(singles[asked % N_ROWS])
            except (CapacityError, DeadlineError):
                refused += 1
                continue
            pending.add(future)
            future.add_done_callback(partial(answered, at))
        if asked == n or not data:
            all_asked.set()

    loop = asyncio.get_running_loop()
    command = [sys.executable, "-c", SENDER, str(rate), str(n), str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as sender:  # noqa: ASYNC220 - started before anything is timed
        stream = sender.stdout.fileno()
        loop.add_reader(stream, read, stream)
        await all_asked.wait()
        loop.remove_reader(stream)
    while pending:
        await asyncio.wait(set(pending))
    return samples, refused


async def measure(scorer: OnnxScorer, rounds: int, seconds: float, repeat: int) -> None:
    """Print the tables."""
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(N_ROWS, WIDTHS[0])).astype(np.float32)
    singles = [rows[k : k + 1] for k in range(N_ROWS)]
    cost = measure_cost(scorer, rows, repeat)
    with ThreadPoolExecutor(1) as executor:
        contenders = Contenders(scorer, cost, executor)
        await compare_answers(contenders, singles, scorer.score(rows))
        print(f"\n{' -> '.join(map(str, WIDTHS))}; answers equal")
        print(" cost of n rows, p50 / p99 us: " + ", ".join(f"{n}: {p50:.0f} / {p99:.0f}" for n, p50, p99 in cost))
        begin = time.perf_counter()
        for row in singles:
            scorer.score(row)
        print(f" direct, one row after the other: {N_ROWS / (time.perf_counter() - begin):,.0f} per second")

        found: dict[str, list[float]] = {name: [] for name in contenders.ask}
        for _ in range(rounds):
            for name, ask in contenders.ask.items():
                found[name].append(await capacity(ask, singles, seconds))
        per_second = {name: float(np.median(values)) for name, values in found.items()}
        print(f" capacity, {WAITERS} waiters (median of {rounds} rounds)")
        for name, values in found.items():
            ratio = per_second[name] / per_second["one by one"]
            print(
                f"  {name:12s} {per_second[name]:9,.0f} per second  {min(values):9,.0f} .. {max(values):,.0f}  {ratio:5.2f} x"
            )
        sizes = contenders.batcher.batch_sizes
        mean = contenders.batcher.rows / contenders.batcher.batches
        print(
            f"  batches: {mean:.1f} rows in the mean; by size up to 1, 2, 4, ...: {sizes}; best {contenders.batcher.best_rows}"
        )

        print(" latency in open loop, from when a request was due")
        for share, rate in (("own", None), ("batched", 0.5 * per_second["batched"])):
            for name, ask in contenders.ask.items():
                if rate is not None and name == "batched":
                    continue
                at = 0.5 * per_second[name] if rate is None else rate
                if at > 0.95 * per_second[name]:
                    print(f"  {name:12s} {at:9,.0f} per second is more than it can do")
                    continue
                samples, refused = [], 0
                for seed in range(rounds):
                    more, n_refused = await open_loop(ask, singles, at, seconds, seed)
                    samples += more
                    refused += n_refused
                print(
                    f"  {name:12s} {at:9,.0f} per second, half of the {share} capacity: {percentiles(samples)}, {refused} refused or dropped"
                )
        await contenders.batcher.close()


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--smoke", action="store_true", help="two short rounds")
    options = parser.parse_args(arguments)
    print(describe("onnxruntime", "numpy", "uvloop"))
    import uvloop

    scorer = OnnxScorer(network(WIDTHS), n_features=WIDTHS[0])
    rounds, seconds, repeat = (2, 0.1, 50) if options.smoke else (options.rounds, 1.0, 1000)
    uvloop.run(measure(scorer, rounds, seconds, repeat))


if __name__ == "__main__":
    main()
