"""What a near-realtime model still answers when another process never leaves the server's core.

    python -m benchmarks.bench_neighbour [--seconds S] [--rounds N] [--loads 0.25,0.5,1] [--smoke]

A forest of 500 x 127 by onnxruntime, whose batches are scored on threads, and which names 100 ms as its deadline; one worker
on the first core, the generator on the last. Quiet runs and runs beside a process of no special priority that computes all
the time on the first core take turns. First 64 connections in closed loop; what they get without the neighbour is the
capacity. Then Poisson arrivals over 512 connections at shares of it. Answered in time is by the client, from when a request
was due; the floor is what is asked, but at most a half of the capacity: a half of the core. Scoring threads stand back behind
the event loop and so behind the neighbour too, which leaves them less.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import tiers
from benchmarks.bench_overload import FOREST, WARM_S, Mix
from benchmarks.loadgen.replies import percentiles, share
from benchmarks.loadgen.run import Run
from benchmarks.machine import describe
from benchmarks.neighbour import spinning
from benchmarks.networks import forest
from benchmarks.workload import N_FEATURES
from tiercel.types import Tier

#: Without and with the neighbour, by what it begins with.
KINDS = {"quiet": None, "beside": "pass"}
LOADS = (0.25, 0.5, 1.0)
CONNECTIONS, HALF = 512, 0.5


def show_closed(rounds: dict[str, list[Run]]) -> float:
    """Answers per second in closed loop; returns the capacity."""
    capacity = float(np.median([each.per_second for each in rounds["quiet"]]))
    for kind, runs in rounds.items():
        found = sorted(each.per_second for each in runs)
        print(
            f"  {kind:8} {np.median(found):8,.0f}/s ({found[0]:,.0f} to {found[-1]:,.0f}), "
            f"{np.median(found) / capacity:.2f} of the capacity; refused {sum(each.refused for each in runs):,}, "
            f"failed {sum(each.failed for each in runs)}"
        )
    return capacity


def show_open(mix: Mix, kind: str, runs: list[Run], floor: float) -> None:
    """Runs at one rate."""
    replies = [each.replies.due_within(0, mix.load.seconds) for each in runs if each.replies is not None]
    good = sorted(mix.n_in_time(each) / mix.load.seconds for each in replies)
    answered, in_time = sum(len(each.answered) for each in replies), sum(mix.n_in_time(each) for each in replies)
    print(
        f"  {kind:8} in time {np.median(good):8,.0f}/s ({good[0]:,.0f} to {good[-1]:,.0f}), "
        f"{np.median(good) / floor:.2f} of the floor; of answered {share(in_time, answered)}; "
        f"refused {sum(len(each.refused) for each in replies):,}"
    )
    print(f"           from due {percentiles(replies[-1].answered.latency_ns)}")


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--loads", type=lambda text: tuple(map(float, text.split(","))), default=LOADS)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args(arguments)
    seconds, rounds, n_rows, trees, warm_s = (
        (0.3, 1, 2_000, 50, 0.1) if options.smoke else (options.seconds, options.rounds, options.rows, 500, WARM_S)
    )
    print(describe("onnxruntime", "uvloop"))
    models = [tiers.Model(FOREST.model, forest(trees, 127, N_FEATURES), Tier.NEAR_REALTIME)]
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        made = tiers.prepare(directory / "work", n_rows, models)
        with tiers.serving(made, directory / "logs") as server:
            tiers.check_tiers(server, {FOREST.model: Tier.NEAR_REALTIME}, insist=not options.smoke)
            mix = Mix(tiers.Load(server, n_rows, {FOREST.model: FOREST.bound_ms}, seconds), (FOREST,), warm_s)
            mix.load.run(mix.requests, seconds=min(1.0, seconds))  # what batches take is learned
            closed: dict[str, list[Run]] = {kind: [] for kind in KINDS}
            for _ in range(rounds):
                for kind, how in KINDS.items():
                    with spinning(how):
                        closed[kind].append(mix.load.run(mix.requests, may_refuse=True))
            print("\n64 connections in closed loop")
            capacity = show_closed(closed)
            failed = sum(each.failed for runs in closed.values() for each in runs)
            for times in options.loads:
                runs: dict[str, list[Run]] = {kind: [] for kind in KINDS}
                for _ in range(rounds):
                    for kind, how in KINDS.items():
                        with spinning(how):
                            runs[kind].append(mix.run(times * capacity, 0.25 * capacity, CONNECTIONS))
                print(
                    f"\nopen loop at {times:g} x the capacity, {times * capacity:,.0f}/s, over {CONNECTIONS} connections"
                )
                for kind, found in runs.items():
                    show_open(mix, kind, found, min(times, HALF) * capacity)
                    failed += sum(each.failed for each in found)
    if options.smoke and failed:
        raise SystemExit(f"{failed} requests failed or were left unfinished")


if __name__ == "__main__":
    main()
