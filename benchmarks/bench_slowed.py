"""A champion that becomes ten times as slow while it serves: does its fallback keep every request in time?

    python -m benchmarks.bench_slowed [--requests 1000000] [--times 10] [--load 0.5] [--rows N] [--smoke]

Two champions, both a forest of 500 x 127 by onnxruntime: one near-realtime, with a deadline of 50 ms, and one that the
evidence lets be realtime, inline, with one of 10 ms. The fallback of both is the compiled forest of 100 x 31. Each is
asked at half of what 8 connections in closed loop get of it and not of its fallback; first as it is, then, without a
restart and without anybody telling the server, while every batch of its is scored ten times over (contenders/servers/slowed),
and then as it was.

A time-out is a request whose answer came later than the deadline after it was due, or never, or that got a 503, a 504 or
another error, or for which none of 256 connections was free until its deadline ("unsent"). Who answered is what the server
counted in /metrics. "In the server" is a time-out by Server-Timing, which begins when the request was read; by it, a machine
that stops between client and server is not the server's. How often it does is what the floor shows, a constant reply on the
same core: between the runs it is asked at the same rate, for a third of their time, and its answers are counted alike.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from benchmarks import tiers
from benchmarks.contenders.contender import FLOOR, SERVERS, TIERCEL
from benchmarks.loadgen.replies import ABANDONED, BROKEN, UNFINISHED, Replies, percentiles
from benchmarks.loadgen.run import run
from benchmarks.machine import describe
from benchmarks.networks import forest
from benchmarks.workload import N_FEATURES
from tiercel.types import Tier

FALLBACK = tiers.TREE
FATES = {BROKEN: "broken", UNFINISHED: "unfinished", ABANDONED: "unsent"}
#: Requests are sent in runs of this many seconds, so that a log of each fits.
PIECE_S = 10.0
#: So few wait for each other no longer than a champion may keep them waiting: more are answered by the fallback.
CLOSED_CONNECTIONS = 8
#: The floor is asked for so much of the time, in runs between.
FLOOR_SHARE = 1 / 3
#: Connections are made by then: a server that accepts 256 at once reads nobody meanwhile.
CONNECTED_S = 0.1
#: What was on its way when a run ended is counted by then.
SETTLE_S = 0.5


@dataclass(frozen=True)
class Champion:
    """A model that is slowed."""

    name: str
    tier: Tier
    deadline_ms: float

    @property
    def declared(self) -> str:
        """Its table in tiercel.toml."""
        return f'\n[models.{self.name}]\ndeadline_ms = {self.deadline_ms}\nfallback = "{FALLBACK}"\n'


CHAMPIONS = (Champion("queued", Tier.NEAR_REALTIME, 50.0), Champion("inline", Tier.REALTIME, 10.0))


@dataclass
class Tally:
    """What became of the requests of one phase."""

    n: int = 0
    late: int = 0  # answered after the deadline, from when they were due
    late_in_server: int = 0
    statuses: Counter[int] = field(default_factory=Counter)  # or fates, of those without an answer

    @property
    def timed_out(self) -> int:
        """All that were not answered in time."""
        return self.late + self.statuses.total()

    def add(self, replies: Replies, deadline_ns: int) -> None:
        """Count the requests of one run."""
        answered = replies.answered
        self.n += len(replies)
        self.late += len(answered) - replies.n_within(deadline_ns)
        self.late_in_server += int((answered.server_ns > deadline_ns).sum())
        self.statuses.update(replies.log["status"][replies.log["status"] != 200].tolist())

    def __str__(self) -> str:
        """How many, and why."""
        others = [f"{FATES.get(status, status)} {n:,}" for status, n in sorted(self.statuses.items())]
        return f"{self.timed_out:,} time-outs ({', '.join([f'late {self.late:,}', *others])}; in the server late {self.late_in_server:,})"


def answered_by(server: tiers.Server, names: list[str]) -> dict[str, int]:
    """How many requests each model answered so far, and how often somebody stood in, by the server's own counts."""
    time.sleep(SETTLE_S)
    found = dict.fromkeys([*names, "degraded"], 0)
    for sample, value in tiers.metrics(server).items():
        for name in names:
            if sample.startswith("tiercel_requests_total{") and f'model="{name}"' in sample:
                found[name] += int(value)
        if sample.startswith("tiercel_degraded_total{"):
            found["degraded"] += int(value)
    return found


@dataclass(frozen=True)
class Floor:
    """A constant reply, asked as the champion is."""

    port: int
    core: int

    def run(self, rate: float, seconds: float, deadline_ms: float, seed: int) -> Replies:
        """One run."""
        question = tiers.floor_requests()
        one = run(
            self.port, question, rate=rate, seconds=seconds, connections=256, warmup_s=CONNECTED_S, core=self.core,
            abandon_s=deadline_ms / 1000, logged=True, seed=seed,
        )  # fmt: skip
        assert one.replies is not None
        return one.replies


def phase(load: tiers.Load, champion: Champion, rate: float, n: int, title: str, floor: Floor | None = None) -> Tally:
    """Send `n` requests, and print what became of them; and of the floor's between them."""
    names, tally, beside = [champion.name, FALLBACK], Tally(), Tally()
    floor_ns: list[np.ndarray] = []
    before, took_s, late = answered_by(load.server, names), 0.0, False
    last: Replies | None = None
    while tally.n < n:
        begin = time.monotonic()
        seconds = min(PIECE_S, max(0.05, (n - tally.n) / rate))
        one = load.run(
            champion.name, rate=rate, seconds=seconds, connections=256, warmup_s=CONNECTED_S,
            abandon_s=champion.deadline_ms / 1000, may_refuse=True, logged=True, seed=tally.n + 1,
        )  # fmt: skip
        last, late = one.replies, late or not one.kept_schedule
        assert last is not None
        tally.add(last, int(1e6 * champion.deadline_ms))
        took_s += time.monotonic() - begin
        if floor is not None:
            between = floor.run(rate, FLOOR_SHARE * min(PIECE_S, n / rate), champion.deadline_ms, tally.n)
            beside.add(between, int(1e6 * champion.deadline_ms))
            floor_ns.append(between.answered.latency_ns)
    after = answered_by(load.server, names)
    counted = {name: after[name] - before[name] for name in after}
    print(f"  {title:10s} {tally.n:9,} requests at {rate:,.0f}/s in {took_s:.0f} s: {tally}{' ~' if late else ''}")
    print(
        f"             answered by the champion {counted[champion.name]:,}, by the fallback {counted[FALLBACK]:,} "
        f"({counted['degraded']:,} counted as degraded)"
    )
    if floor is not None:
        print(f"             the floor between, {beside.n:,} requests: {beside}")
        print(f"             from due, {percentiles(np.concatenate(floor_ns))}")
    assert last is not None
    print(f"             from due, the last run: {percentiles(last.answered.latency_ns)}")
    return tally


def measure(load: tiers.Load, champion: Champion, slow: Path, floor: Floor, share: float, n: int, n_quiet: int) -> int:
    """Print one champion's section; returns the time-outs while it was slow."""
    names = [champion.name, FALLBACK]
    before = answered_by(load.server, names)
    closed = load.run(champion.name, may_refuse=True, connections=CLOSED_CONNECTIONS)
    after = answered_by(load.server, names)
    own, others = (after[name] - before[name] for name in names)
    per_second = closed.per_second * own / max(1, own + others)
    rate = share * per_second
    print(
        f"\n{champion.name}: {champion.tier}, deadline {champion.deadline_ms:g} ms; closed loop {per_second:,.0f}/s of its own"
    )
    phase(load, champion, rate, n_quiet, "as it is")
    slow.touch()
    try:
        found = phase(load, champion, rate, n, "slowed", floor)
    finally:
        slow.unlink()
    phase(load, champion, rate, n_quiet, "as it was")
    return found.timed_out


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1_000_000, help="while the champion is slow")
    parser.add_argument("--times", type=int, default=10, help="how slow it becomes")
    parser.add_argument("--load", type=float, default=0.5, help="of what a closed loop gets")
    parser.add_argument("--champions", default=",".join(each.name for each in CHAMPIONS))
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args(arguments)
    n, n_rows, trees, seconds = (2_000, 2_000, 50, 0.3) if options.smoke else (options.requests, options.rows, 500, 2.0)
    chosen = [each for each in CHAMPIONS if each.name in options.champions.split(",")]
    print(describe("onnxruntime", "uvloop"))
    data = forest(trees, 127, N_FEATURES)
    models = [tiers.Model(each.name, data, each.tier) for each in CHAMPIONS]
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        slow = directory / "slow"
        made = tiers.prepare(directory / "work", n_rows, models, "".join(each.declared for each in CHAMPIONS))
        contender = replace(
            TIERCEL, environment=lambda _: {
                "PYTHONPATH": str(SERVERS / "slowed"), "BENCH_SLOW_FILE": str(slow), "BENCH_SLOW_TIMES": str(options.times),
            },
        )  # fmt: skip
        with (
            tiers.serving(made, directory / "logs", contender) as server,
            tiers.serving(made, directory / "floor", FLOOR) as constant,
        ):
            tiers.check_tiers(server, {model.name: model.tier for model in models}, insist=not options.smoke)
            load = tiers.Load(server, n_rows, {each.name: None for each in CHAMPIONS}, seconds)
            found = {
                each: measure(load, each, slow, Floor(constant.port, load.core), options.load, n, max(200, n // 20))
                for each in chosen
            }
    print()
    for champion, timed_out in found.items():
        print(f"{champion.name}: {timed_out:,} time-outs in {n:,} requests while slowed {options.times} x (wanted 0)")


if __name__ == "__main__":
    main()
