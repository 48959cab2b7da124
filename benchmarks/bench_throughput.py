"""What batching gives near-realtime models over HTTP, and what it gives MLServer and BentoML, whose adaptive batching is on.

    python -m benchmarks.bench_throughput [--seconds S] [--rounds N] [--rows N] [--peers NAMES] [--cache DIR] [--smoke]

Two networks, of 23 -> 128 -> 64 -> 1 and 23 -> 512 -> 256 -> 1, because what batching gives depends on what a row costs
alone. tiercel serves each twice: near-realtime, in batches, and in realtime, inline, each row by itself. The peers serve the
same ONNX file through the same onnxruntime with one thread, from the same rows (LMDB), asked by the same key.

Every server has the first core and the generator the last. 64 connections in closed loop; the contenders of a network take
turns, round by round. Of 50 users all must give the network's own scores, and of every run 200 replies are looked at.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks import tiers
from benchmarks.contenders import environment
from benchmarks.contenders.contender import SERVERS, Contender, batched
from benchmarks.contenders.process import Server, StartError, cores_for, started
from benchmarks.loadgen.run import Requests, Run, run
from benchmarks.machine import describe
from benchmarks.measuring import TOLERANCE, versions_of
from benchmarks.networks import NARROW, WIDE, network
from tiercel.types import Tier

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.workload import Workload

CONNECTIONS = 64
NETWORKS = {"net": NARROW, "wide": WIDE}
PEERS = ("mlserver", "bentoml")
#: Batching is to give this many times what each row by itself does, and what a peer's batching does.
WANTED = 3.0


@dataclass
class Rounds:
    """What one contender's rounds gave."""

    contender: Contender
    server: Server
    requests: Requests
    runs: list[Run] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)  # of the process tree, for each request
    batches: list[float] = field(
        default_factory=list
    )  # rows of one, in the mean of a round; of tiercel's near-realtime

    @property
    def per_second(self) -> float:
        """Answers, in the median round."""
        return statistics.median(each.per_second for each in self.runs)


class Truth:
    """A network's scores, from onnxruntime and the rows in this process."""

    def __init__(self, made: Workload, name: str) -> None:
        if str(SERVERS) not in sys.path:
            sys.path.append(str(SERVERS))
        from scorer import BatchScorer

        self._scorer = BatchScorer(str(made.directory), name)

    def agrees(self, contender: Contender) -> Callable[[int, bytes], bool]:
        """(user, reply body) -> whether the reply's score is the network's."""

        def check(user: int, body: bytes) -> bool:
            try:
                found = contender.read(body)
            except (ValueError, KeyError, TypeError, IndexError):
                return False
            return bool(np.isclose(found, self._scorer.score([user])[0], rtol=TOLERANCE, atol=TOLERANCE))

        return check


def contenders_of(name: str, peers: list[str]) -> list[Contender]:
    """Who serves a network: tiercel's two ways first."""
    return [
        replace(tiers.asks(name), name=name, title="tiercel, near-realtime"),
        replace(tiers.asks(f"{name}_inline"), name=f"{name}_inline", title="tiercel, inline, a row at a time"),
        *(each for each in batched(name) if each.home in peers),
    ]


def compare(truth: Truth, rounds: Rounds, n_rows: int) -> None:
    """Answers of 50 users.

    Raises:
        SystemExit: one is wrong.
    """
    agrees = truth.agrees(rounds.contender)
    for user in range(0, n_rows, max(1, n_rows // 50)):
        reply = rounds.server.ask(user, rounds.contender)
        if reply.status_code != 200 or not agrees(user, reply.content):
            raise SystemExit(
                f"{rounds.contender.name}: wrong answer about {user}: {reply.status_code} {reply.text[:200]}"
            )


class Bench:
    """The rounds of all contenders.

    Args:
        made: the workload.
        ours: tiercel, serving all networks.
        cache: of the peers' environments.
        logs: a directory.
        seconds: of one run.
        rounds: of each contender.
    """

    def __init__(self, made: Workload, ours: Server, cache: Path, logs: Path, seconds: float, rounds: int) -> None:
        self.made, self.ours, self.cache, self.logs = made, ours, cache, logs
        self.seconds, self.rounds, self.n_failed = seconds, rounds, 0
        self.not_measured: dict[str, str] = {}

    def measure(self, name: str, peers: list[str]) -> list[Rounds]:
        """Everybody's rounds with a network; who does not start is left out."""
        truth, found = Truth(self.made, name), []
        with ExitStack() as stack:
            for contender in contenders_of(name, peers):
                server = self.ours
                if contender.is_peer:
                    try:
                        server = stack.enter_context(started(contender, self.made.directory, self.cache, self.logs))
                    except StartError as error:
                        self.not_measured[contender.name] = str(error)
                        continue
                requests = Requests.make(
                    path=contender.path, content_type=contender.content_type, body=contender.body,
                    n_rows=self.made.n_rows, seed=7,
                )  # fmt: skip
                found.append(Rounds(contender, server, requests))
                compare(truth, found[-1], self.made.n_rows)
            for at in range(-1, self.rounds):  # once before anything counts: caches, and what batches take, are learned
                for each in found:
                    self._run(each, truth, counts=at >= 0)
        return found

    def _run(self, rounds: Rounds, truth: Truth, *, counts: bool) -> None:
        before, batched_before = rounds.server.cpu_s(), self._batched()
        one = run(
            rounds.server.port, rounds.requests, rate=0, seconds=self.seconds, connections=CONNECTIONS, warmup_s=0,
            core=cores_for(1)[1], check=truth.agrees(rounds.contender), may_refuse=True,
        )  # fmt: skip
        self.n_failed += one.failed
        if counts:
            rounds.cpu_us.append(1e6 * (rounds.server.cpu_s() - before) / max(1, one.ok))
            rounds.runs.append(one)
            rows, batches = self._batched() - batched_before
            if batches:
                rounds.batches.append(rows / batches)

    def _batched(self) -> np.ndarray:
        """(rows, batches) that tiercel scored near-realtime so far."""
        found = tiers.metrics(self.ours)
        return np.array([found[f"tiercel_near_realtime_{what}_total"] for what in ("rows", "batches")])


def why(runs: list[Run]) -> str:
    """What failed in which run."""
    reasons = [one.why for one in runs if one.why]
    return f" ({'; '.join(reasons)})" if reasons else ""


def show(widths: tuple[int, ...], found: list[Rounds]) -> None:
    """One network's table, and what batching is to give."""
    ours, inline, *_ = found
    print(f"\n{' -> '.join(map(str, widths))}, {CONNECTIONS} connections in closed loop; answers equal")
    for each in found:
        us = each.runs[-1].latency.summary_us()
        values = [one.per_second for one in each.runs]
        print(
            f"  {each.contender.title:42s} {each.per_second:8,.0f}/s ({min(values):,.0f} .. {max(values):,.0f})  near-realtime "
            f"is {ours.per_second / each.per_second:6.2f} x  CPU {statistics.median(each.cpu_us):6.1f} us  "
            f"p50 {us['p50']:8,.0f}  p99 {us['p99']:8,.0f} us  refused {sum(one.refused for one in each.runs)}  failed "
            f"{sum(one.failed for one in each.runs)}{why(each.runs)}"
        )
    print(f"  rows of a near-realtime batch, by round: {', '.join(f'{rows:.1f}' for rows in ours.batches)}")
    for each in (inline, *(each for each in found if each.contender.is_peer)):
        ratio = ours.per_second / each.per_second
        print(
            f"  near-realtime is {ratio:.2f} x {each.contender.title}: wanted {WANTED:g}, {'holds' if ratio >= WANTED else 'does not hold'}"
        )


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--peers", help=f"of {', '.join(PEERS)}; or none. Default: all, with --smoke none")
    parser.add_argument("--cache", type=Path, default=environment.default_cache(), help="of their environments")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args(arguments)
    seconds, rounds, n_rows = (0.3, 1, 2_000) if options.smoke else (options.seconds, options.rounds, options.rows)
    text = options.peers or ("none" if options.smoke else ",".join(PEERS))
    peers = [] if text == "none" else text.split(",")
    if unknown := set(peers) - set(PEERS):
        raise SystemExit(f"Expected peers among {', '.join(PEERS)}, got {', '.join(sorted(unknown))}")
    print(describe("onnxruntime", "uvloop"))
    models = [
        tiers.Model(f"{name}{suffix}", network(widths), tier)
        for name, widths in NETWORKS.items()
        for suffix, tier in (("", Tier.NEAR_REALTIME), ("_inline", Tier.REALTIME))
    ]
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        made = tiers.prepare(directory / "work", n_rows, models)
        with tiers.serving(made, directory / "logs") as ours:
            tiers.check_tiers(ours, {model.name: model.tier for model in models}, insist=not options.smoke)
            bench = Bench(made, ours, options.cache, directory / "logs", seconds, rounds)
            found = {name: bench.measure(name, peers) for name in NETWORKS}
    for each in (each for each in found["net"] if each.contender.is_peer):
        versions = versions_of(each.contender, options.cache)
        print(", ".join(f"{package} {version}" for package, version in versions.items()))
    for name, rounds_found in found.items():
        show(NETWORKS[name], rounds_found)
    for name, why in bench.not_measured.items():
        print(f"  {name} was not measured: {why}")
    if options.smoke and (bench.n_failed or bench.not_measured):
        raise SystemExit(f"{bench.n_failed} requests failed; not measured: {bench.not_measured or 'nothing'}")


if __name__ == "__main__":
    main()
