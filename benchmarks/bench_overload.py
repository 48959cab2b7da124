"""More than a server can do: who is answered in time, who is refused and how soon, and how soon it is over afterwards.

    python -m benchmarks.bench_overload [--seconds S] [--rows N] [--loads 0.8,2,5] [--connections 512,4096] [--smoke]

One worker on the first core, the generator on the last. First a forest of 500 x 127 by onnxruntime (near-realtime) alone,
of which a row costs more than its request; then a network (23 -> 128 -> 64 -> 1, near-realtime) alone; then a mix: 70 % ask
a forest of 100 x 31 in realtime, 25 % the network, 5 % the large forest. Requests name their tier's bound as their deadline:
10 and 100 ms.

Capacity is what 64 connections in closed loop get of the same requests. Then Poisson arrivals at shares of it, each run
preceded by some seconds of the same that do not count (a connection is known by what it has asked), and followed, in the
same run, by a second at half of the capacity. Arrivals know nothing of each other, but each needs a connection: one that
finds none free for a millisecond is turned away by the client ("unsent"), as a load balancer with so many connections does.
512 of them hold less than the near-realtime queue, so the client's limit is met before the server's; with 4,096 the server
has to refuse. A request over one of thousands of connections costs any server more, as each finds less in the caches: how
much is what the floor, a constant reply, gets of its closed loop over so many.

An answer counts as in time by the client, from when its request was due; "from the send" leaves out what it waited for a
connection, "in the server" is what Server-Timing says, from the moment the server read it. Goodput is answers in time, for
the client, per second; the peak is the most that any load had. Refused is a 503 or a 504, timed from the send; failed is
any other status or a broken connection, unfinished no reply within 5 s after the end. Recovered is from when on
99 % of what is due in a tenth of a second is answered in time.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks import tiers
from benchmarks.contenders.contender import FLOOR
from benchmarks.loadgen.replies import ABANDONED, REFUSALS, UNFINISHED, Replies, percentiles, share
from benchmarks.loadgen.run import Requests, Run, run
from benchmarks.machine import describe
from benchmarks.networks import NARROW, forest, network
from benchmarks.workload import N_FEATURES
from tiercel.types import Tier

if TYPE_CHECKING:
    from benchmarks.contenders.process import Server

LOADS = (0.8, 2.0, 5.0)
CONNECTIONS = (512, 4096)
#: What is promised: in time of accepted at 0.8 of capacity, goodput of its peak beyond, refusals, the end of it.
IN_TIME, GOODPUT, REFUSAL_MS, RECOVERY_S = 0.999, 0.9, 1.0, 1.0
CALM, CALM_S = 0.5, 1.0
#: Of every load, before what counts.
WARM_S = 2.0
#: How long a request waits for a free connection.
PATIENCE_S = 0.001


@dataclass(frozen=True)
class Part:
    """Requests for one model."""

    model: str
    title: str
    share: float
    bound_ms: float

    @property
    def bound_ns(self) -> int:
        return int(1e6 * self.bound_ms)


TREE = Part(tiers.TREE, "forest 100 x 31, realtime", 0.70, 10.0)
NET = Part("net", "network, near-realtime", 0.25, 100.0)
FOREST = Part("forest", "forest 500 x 127, near-realtime", 0.05, 100.0)
LOADS_OF = {"the forest alone": (FOREST,), "the network alone": (NET,), "mixed": (TREE, NET, FOREST)}


class Mix:
    """Requests for several models in the order in which they are sent, and what their replies come to.

    Args:
        load: to send them with.
        parts: their models.
        warm_s: of every open loop, before what counts.
    """

    def __init__(self, load: tiers.Load, parts: tuple[Part, ...], warm_s: float) -> None:
        self.load, self.parts, self.warm_s = load, parts, warm_s
        self.requests, self.kinds = Requests.mixed(
            [load.requests[part.model] for part in parts], [part.share for part in parts], n=100_000, seed=11
        )
        self.bounds_ns = np.array([part.bound_ns for part in parts])[self.kinds]

    def capacity(self, rounds: int) -> float:
        """Answers per second of 64 connections in closed loop; the median round's."""
        runs = [self.load.run(self.requests, may_refuse=True) for _ in range(rounds)]
        found = float(np.median([each.per_second for each in runs]))
        us = runs[-1].latency.summary_us()
        print(
            f"  capacity {found:,.0f}/s: closed loop, p50 {us['p50']:,.0f}, p99 {us['p99']:,.0f} us, "
            f"refused {sum(each.refused for each in runs)}, failed {sum(each.failed for each in runs)}"
        )
        return found

    def run(self, rate: float, calm_rate: float, connections: int) -> Run:
        """One load, and the second after it."""
        return self.load.run(
            self.requests, rate=rate, connections=connections, may_refuse=True, logged=True, abandon_s=PATIENCE_S,
            warmup_s=self.warm_s, then=(calm_rate, CALM_S),
        )  # fmt: skip

    def n_in_time(self, replies: Replies) -> int:
        """Answers within their model's bound, from when they were due."""
        answered = replies.answered
        return int((answered.latency_ns <= self.bounds_ns[answered.log["request"]]).sum())


def show_part(part: Part, replies: Replies) -> None:
    """One model's replies under a load."""
    answered, refused = replies.answered, replies.refused
    n, server = len(answered), answered.server_ns
    print(
        f"    {part.title:32s} due {len(replies):8,}  answered {n:8,}  refused {len(refused):8,}  unsent "
        f"{replies.count(ABANDONED):7,}  failed {replies.n_failed}, unfinished {replies.count(UNFINISHED)}"
    )
    print(
        f"      answered within {part.bound_ms:g} ms: {share(replies.n_within(part.bound_ns), n)}, from the send "
        f"{share(int((answered.service_ns <= part.bound_ns).sum()), n)}, in the server "
        f"{share(int((server <= part.bound_ns).sum()), len(server))}"
    )
    print(f"      from due       {percentiles(answered.latency_ns)}")
    print(f"      in the server  {percentiles(server)}")


def show(mix: Mix, times: float, one: Run, seconds: float) -> float:
    """One load; returns its goodput per second."""
    assert one.replies is not None
    replies, after = one.replies.due_within(0, seconds), one.replies.due_within(seconds, seconds + CALM_S)
    refused, good = replies.refused, mix.n_in_time(replies)
    print(
        f"  {times:g} x capacity: {len(replies) / seconds:,.0f}/s due{'' if one.kept_schedule else ' ~'}, goodput "
        f"{good / seconds:,.0f}/s"
    )
    for kind, part in enumerate(mix.parts):
        show_part(part, replies.of(mix.kinds, kind))
    if len(refused):
        quick = int((refused.service_ns < 1e6 * REFUSAL_MS).sum())
        kinds = ", ".join(f"{status}: {replies.count(status):,}" for status in REFUSALS)
        print(
            f"    refusals ({kinds}) within {REFUSAL_MS:g} ms {share(quick, len(refused))}: {percentiles(refused.service_ns)}"
        )
    recovered = one.replies.recovered_s(seconds, mix.bounds_ns)
    print(
        f"    the second after, at {CALM:g} x: {share(mix.n_in_time(after), len(after))} of {len(after):,} answered in time; "
        f"recovered after {'more' if recovered is None else f'{recovered:.1f} s'}"
    )
    return good / seconds


def kept_by_the_floor(floor: Server, core: int, connections: int, seconds: float, rounds: int) -> float:
    """What a constant reply gets over so many connections, of what it gets over 64; the median round's."""
    question = tiers.floor_requests()
    shares = []
    for _ in range(rounds):
        few, many = (
            run(floor.port, question, rate=0, seconds=seconds, connections=n, core=core) for n in (64, connections)
        )
        shares.append(many.per_second / few.per_second)
    return float(np.median(shares))


def measure(mix: Mix, capacity: float, kept: float, loads: tuple[float, ...], connections: int) -> int:
    """Print one section; returns how many requests failed. kept: `kept_by_the_floor`."""
    goodputs, failed = {}, 0
    for times in loads:
        one = mix.run(times * capacity, CALM * capacity, connections)
        goodputs[times] = show(mix, times, one, mix.load.seconds)
        failed += one.failed
    peak = max(*goodputs.values(), capacity)
    print(
        f"  goodput of its peak ({peak:,.0f}/s; wanted {GOODPUT:g}): "
        + ", ".join(f"{found / peak:.2f} at {times:g} x" for times, found in goodputs.items() if times > 1)
        + f"; the floor keeps {kept:.2f} over so many connections: "
        + ", ".join(f"{found / capacity / kept:.2f}" for times, found in goodputs.items() if times > 1)
        + " of the capacity times that"
    )
    return failed


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3, help="of the capacity")
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--loads", type=lambda text: tuple(map(float, text.split(","))), default=LOADS)
    parser.add_argument("--connections", type=lambda text: tuple(map(int, text.split(","))), default=CONNECTIONS)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args(arguments)
    seconds, rounds, n_rows, trees = (
        (0.3, 1, 2_000, 50) if options.smoke else (options.seconds, options.rounds, options.rows, 500)
    )
    print(describe("onnxruntime", "uvloop"))
    models = [
        tiers.Model(NET.model, network(NARROW), Tier.NEAR_REALTIME),
        tiers.Model(FOREST.model, forest(trees, 127, N_FEATURES), Tier.NEAR_REALTIME),
    ]
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        made = tiers.prepare(directory / "work", n_rows, models)
        with (
            tiers.serving(made, directory / "logs") as server,
            tiers.serving(made, directory / "floor", FLOOR) as floor,
        ):
            tiers.check_tiers(
                server,
                {tiers.TREE: Tier.REALTIME, **{model.name: model.tier for model in models}},
                insist=not options.smoke,
            )
            load = tiers.Load(server, n_rows, {part.model: part.bound_ms for part in (TREE, NET, FOREST)}, seconds)
            failed, warm_s = 0, 0.1 if options.smoke else WARM_S
            kept = {n: kept_by_the_floor(floor, load.core, n, seconds, rounds) for n in options.connections}
            for title, parts in LOADS_OF.items():
                mix = Mix(load, parts, warm_s)
                load.run(mix.requests, seconds=0.3)  # what batches take is learned
                print(f"\n{title}")
                capacity = mix.capacity(rounds)
                for connections in options.connections:
                    print(f" {title}, open loop over {connections:,} connections")
                    failed += measure(mix, capacity, kept[connections], options.loads, connections)
    if options.smoke and failed:
        raise SystemExit(f"{failed} requests failed or were left unfinished")


if __name__ == "__main__":
    main()
