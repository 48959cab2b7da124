"""The rounds of the HTTP benchmark: who runs when, and what is taken from it.

Machines are shared and drift, so contenders take turns: every round measures each of them once, and a figure is the
median of its rounds. Servers of this environment run side by side, idle but for the one being asked; a peer, which may
be busy even when nobody asks, runs alone and takes its rounds in one go.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import compiled, instructions, machine, wrk
from benchmarks.contenders import environment
from benchmarks.contenders.contender import SERVERS, Contender
from benchmarks.contenders.process import Server, StartError, cores_for, started
from benchmarks.loadgen.run import Requests, Run, run
from benchmarks.workload import Workload

CAPACITY_CONNECTIONS = 32
OPEN_CONNECTIONS = 64
#: The share of its capacity at which tiercel is compared with the floor.
BESIDE_FLOOR = 0.5
#: How often our own servers take turns, at least.
LEAST_TURNS = 5
#: What differs by a few hundredths needs many turns, and short ones, so that both have the same machine: the median of 40 was up
#: to 4 % from that of 120. A run of less than `CLOSE_FROM_S` has fewer.
CLOSE_TURNS, QUICK_CLOSE_TURNS, CLOSE_FROM_S = 120, 40, 3.0
CLOSE_S, CLOSE_WARMUP_S = 0.3, 0.1
#: A tail beside the floor's: a stall of the machine is in one turn of the two and makes it worth nothing, so there are more.
TAIL_TURNS, TAIL_PART = 15, 2
LOADS = (0.5, 0.7, 0.9)
#: Scores agree to this, absolutely and relatively: float32 models on different engines round differently.
TOLERANCE = 1e-5


class WrongAnswerError(Exception):
    """A contender's score is not the workload's."""


@dataclass(frozen=True)
class Plan:
    """How long and how often."""

    rounds: int
    seconds: float  # of one run
    loads: tuple[float, ...] = LOADS
    warmup_s: float = 0.3
    count_instructions: bool = True
    loop: str = "own"  # who drives the closed loop: "own" or "wrk"


@dataclass
class Rounds:
    """What one contender's rounds gave."""

    contender: Contender
    closed: list[dict[str, Any]] = field(default_factory=list)  # c=32: per_second, p50, p99, cpu_us, failed
    single: list[Run] = field(default_factory=list)  # c=1, closed loop
    open: dict[float, list[Run]] = field(default_factory=dict)  # share of capacity -> runs
    rate: dict[float, float] = field(default_factory=dict)  # share of capacity -> requests per second asked for
    rss: dict[str, float] = field(default_factory=dict)
    instructions: dict[str, float] | None = None  # per request at c=32: user, kernel
    compared: int = 0  # answers compared before anything was timed

    @property
    def capacity(self) -> float:
        """Requests per second of 32 connections that never wait."""
        return statistics.median(each["per_second"] for each in self.closed)


class Bench:
    """One run of the benchmark over a workload.

    Args:
        say: called with a line about what is being done.
    """

    def __init__(self, workload: Workload, cache: Path, scratch: Path, plan: Plan, say: Callable[[str], None]) -> None:
        self.workload, self.cache, self.scratch, self.plan, self.say = workload, cache, scratch, plan, say
        self.truth = Truth(workload)
        self.not_measured: dict[str, str] = {}
        self.floor_at_rate: list[Run] = []
        self.beside_json: list[tuple[Run, Run]] = []  # msgpack and JSON in closed loop, turn by turn
        self._counts = plan.count_instructions and instructions.available()
        self._requests: dict[tuple[str, str, Callable[[int], bytes]], Requests] = {}
        compiled.build(SERVERS / "floor.pyx", cache)

    def start(self, stack: ExitStack, contender: Contender) -> Server | None:
        """The contender's server, its answers compared; None, and a reason kept, when that cannot be."""
        try:
            return stack.enter_context(started(contender, self.workload.directory, self.cache, self.scratch / "logs"))
        except StartError as error:
            self.not_measured[contender.name] = str(error)
            self.say(f"{contender.name}: {error}")
            return None

    def compare(self, server: Server, contender: Contender, n: int = 50) -> int:
        """Scores of `n` users through an ordinary client against the model's own.

        Raises:
            WrongAnswerError: one differs.
        """
        if contender.read is None:
            return 0
        users = range(0, self.workload.n_rows, max(1, self.workload.n_rows // n))
        for user in users:
            reply = server.ask(user, contender)
            if reply.status_code != 200 or not self.truth.agrees(contender)(user, reply.content):
                raise WrongAnswerError(
                    f"{contender.name}: expected {self.truth.score(user)} for user {user}, "
                    f"got status {reply.status_code}: {reply.text[:200]!r}"
                )
        return len(users)

    def requests(self, contender: Contender) -> Requests:
        """What to send it; made once."""
        key = (contender.path, contender.content_type, contender.body)
        if key not in self._requests:
            self._requests[key] = Requests.make(
                path=contender.path, content_type=contender.content_type, body=contender.body,
                n_rows=self.workload.n_rows, seed=7,
            )  # fmt: skip
        return self._requests[key]

    def load(
        self,
        server: Server,
        contender: Contender,
        *,
        rate: float,
        connections: int,
        seconds: float | None = None,
        seed: int = 1,
        warmup_s: float | None = None,
    ) -> Run:
        """One run of our generator against it."""
        return run(
            server.port, self.requests(contender), rate=rate, seconds=seconds or self.plan.seconds,
            connections=connections, warmup_s=self.plan.warmup_s if warmup_s is None else warmup_s, seed=seed,
            core=cores_for(contender.workers)[1], check=None if contender.read is None else self.truth.agrees(contender),
        )  # fmt: skip

    def closed(self, server: Server, contender: Contender) -> dict[str, Any]:
        """Capacity: 32 connections in closed loop; CPU of the process tree over the very requests."""
        core = cores_for(contender.workers)[1]
        if self.plan.loop == "wrk":
            script = wrk.write_script(self.requests(contender), self.scratch)
            before = server.cpu_s()
            seen = wrk.run(server.port, script, connections=CAPACITY_CONNECTIONS, seconds=self.plan.seconds, core=core)
            return {**seen, "cpu_us": 1e6 * (server.cpu_s() - before) / max(1, seen["requests"])}
        before = server.cpu_s()
        one = run(
            server.port, self.requests(contender), rate=0, seconds=self.plan.seconds, connections=CAPACITY_CONNECTIONS,
            warmup_s=0, core=core, check=None if contender.read is None else self.truth.agrees(contender),
        )  # fmt: skip
        used = server.cpu_s() - before
        summary = one.latency.summary_us()
        return {
            "per_second": one.per_second, "requests": one.ok, "p50": summary["p50"], "p99": summary["p99"],
            "failed": one.failed, "why": one.why, "cpu_us": 1e6 * used / max(1, one.ok),
        }  # fmt: skip

    def _count(self, server: Server, contender: Contender) -> dict[str, float] | None:
        def load() -> int:
            return run(
                server.port, self.requests(contender), rate=0, seconds=min(1.0, self.plan.seconds),
                connections=CAPACITY_CONNECTIONS, warmup_s=0, core=cores_for(contender.workers)[1],
            ).ok  # fmt: skip

        return instructions.count(server.pid, load)

    def measure(self, contenders: Sequence[Contender]) -> dict[str, Rounds]:
        """All of it: by contender, in the order given."""
        found = {contender.name: Rounds(contender) for contender in contenders}
        self._together([each for each in contenders if not each.is_peer], found)
        for contender in contenders:
            if contender.is_peer:
                self.say(f"{contender.name}: starting (its environment is made first if there is none)")
                self._together([contender], found)
        return {name: rounds for name, rounds in found.items() if rounds.closed}

    def _together(self, contenders: list[Contender], found: dict[str, Rounds]) -> None:
        with ExitStack() as stack:
            servers: dict[str, Server] = {}
            for contender in list(contenders):
                server = servers.get(contender.process) or self.start(stack, contender)
                if server is None:
                    contenders.remove(contender)
                    continue
                servers[contender.process] = server
                found[contender.name].compared = self.compare(server, contender)
            for contender in contenders:  # faulted in, and warm
                self.load(servers[contender.process], contender, rate=0, connections=CAPACITY_CONNECTIONS, seconds=0.3)
            turns = self.plan.rounds if any(each.is_peer for each in contenders) else self.turns
            for at in range(turns):
                for contender in contenders:
                    self.say(f"{contender.name}: round {at + 1} of {turns}, closed loop")
                    server, rounds = servers[contender.process], found[contender.name]
                    # Caches, and what the host gives a core, are another's until then.
                    self.load(server, contender, rate=0, connections=CAPACITY_CONNECTIONS, seconds=0.3)
                    rounds.closed.append(self.closed(server, contender))
                    rounds.single.append(
                        self.load(server, contender, rate=0, connections=1, seconds=self.plan.seconds / 2)
                    )
                    rounds.rss = server.rss_mb()
                    if self._counts and rounds.instructions is None:
                        rounds.instructions = self._count(server, contender)
            in_turns = {"tiercel", "floor"} <= servers.keys() and BESIDE_FLOOR in self.plan.loads
            for at in range(self.plan.rounds):
                for contender in contenders:
                    rounds = found[contender.name]
                    for share in self.plan.loads:
                        rate = rounds.rate.setdefault(share, share * rounds.capacity)
                        runs = rounds.open.setdefault(share, [])
                        if in_turns and (contender.name, share) == ("tiercel", BESIDE_FLOOR):
                            continue
                        self.say(f"{contender.name}: round {at + 1} of {self.plan.rounds}, {rate:,.0f} requests/s")
                        runs.append(self._open(servers, contender, rate, at))
            if in_turns:
                self._beside_floor(servers, found)
            if {"tiercel", "tiercel_msgpack"} <= found.keys() and "tiercel" in servers:
                self._beside_json(servers, found["tiercel"].contender, found["tiercel_msgpack"].contender)

    def _beside_floor(self, servers: dict[str, Server], found: dict[str, Rounds]) -> None:
        """The floor and tiercel at the same rate, in turns: a tail is the machine's too, and that changes by the second."""
        tiercel, floor = found["tiercel"], found["floor"]
        rate, seconds = tiercel.rate[BESIDE_FLOOR], self.plan.seconds / TAIL_PART
        turns = TAIL_TURNS if self.plan.seconds >= 1 else self.plan.rounds
        pair = ((tiercel.contender, tiercel.open[BESIDE_FLOOR]), (floor.contender, self.floor_at_rate))
        for at in range(turns):
            self.say(f"tiercel and the floor in turns: {at + 1} of {turns}, {rate:,.0f} requests/s")
            for contender, runs in pair if at % 2 == 0 else pair[::-1]:
                runs.append(self._open(servers, contender, rate, at, seconds))

    def _beside_json(self, servers: dict[str, Server], json: Contender, msgpack: Contender) -> None:
        """Capacity in both formats, in short turns."""
        turns = QUICK_CLOSE_TURNS if self.plan.seconds < CLOSE_FROM_S else CLOSE_TURNS
        runs: dict[str, Run] = {}
        for at in range(turns if self.plan.seconds >= 1 else self.plan.rounds):
            self.say(f"{msgpack.name} and {json.name} in turns: {at + 1}")
            for each in (json, msgpack) if at % 2 == 0 else (msgpack, json):
                runs[each.name] = self.load(
                    servers[each.process], each, rate=0, connections=CAPACITY_CONNECTIONS,
                    seconds=min(CLOSE_S, self.plan.seconds), warmup_s=CLOSE_WARMUP_S,
                )  # fmt: skip
            self.beside_json.append((runs[msgpack.name], runs[json.name]))

    @property
    def turns(self) -> int:
        """Rounds of what ratios near 1 are made of; a smoke run has as many as it was told."""
        return max(LEAST_TURNS, self.plan.rounds) if self.plan.seconds >= 1 else self.plan.rounds

    def _open(
        self, servers: dict[str, Server], contender: Contender, rate: float, at: int, seconds: float | None = None
    ) -> Run:
        return self.load(
            servers[contender.process], contender, rate=rate, connections=OPEN_CONNECTIONS, seconds=seconds, seed=at + 1
        )

    def choose_loop(self, floor: Contender) -> dict[str, float]:
        """Which closed loop asks the floor faster, wrk's or ours; the plan uses it from here on."""
        with ExitStack() as stack:
            server = self.start(stack, floor)
            if server is None:
                raise SystemExit(f"The floor does not start: {self.not_measured[floor.name]}")
            rates: dict[str, list[float]] = {"own": [], "wrk": []}
            for _ in range(2):
                for loop in rates if wrk.available() else ("own",):
                    object.__setattr__(self.plan, "loop", loop)
                    rates[loop].append(self.closed(server, floor)["per_second"])
        medians = {loop: max(values) for loop, values in rates.items() if values}
        object.__setattr__(self.plan, "loop", max(medians, key=medians.__getitem__))
        return medians


class Truth:
    """The scores, from onnxruntime and the LMDB file in this process."""

    def __init__(self, workload: Workload) -> None:
        if str(SERVERS) not in sys.path:
            sys.path.append(str(SERVERS))
        from scorer import Scorer

        self._scorer = Scorer(str(workload.directory))

    def score(self, user: int) -> float:
        """What every contender must answer for `user`."""
        return self._scorer.score(user)

    def agrees(self, contender: Contender) -> Callable[[int, bytes], bool]:
        """(user, reply body) -> whether the reply's score is right to `TOLERANCE`."""
        read = contender.read
        assert read is not None

        def check(user: int, body: bytes) -> bool:
            try:
                return bool(np.isclose(read(body), self.score(user), rtol=TOLERANCE, atol=TOLERANCE))
            except (ValueError, KeyError, TypeError, IndexError):
                return False

        return check


def versions_of(contender: Contender, cache: Path) -> dict[str, str]:
    """The versions that its row names."""
    if contender.is_peer:
        installed = environment.versions(cache, contender.home, contender.requirements)
        return {name: installed.get(name, "?") for name in contender.versions}
    return {name: machine.version(name) for name in contender.versions}
