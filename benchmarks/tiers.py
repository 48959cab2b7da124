"""One server with models in several tiers, and what is asked of it: for the benchmarks of deadlines, overload and stand-ins."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np

from benchmarks import workload
from benchmarks.contenders import environment
from benchmarks.contenders.contender import FLOOR, TIERCEL
from benchmarks.contenders.process import Server, cores_for, started
from benchmarks.loadgen.run import Requests, Run, run
from tiercel import Project
from tiercel.types import Tier

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from benchmarks.contenders.contender import Contender

#: Every benchmark's project has it: the workload's own forest, compiled, realtime.
TREE = "bench"


@dataclass(frozen=True)
class Model:
    """An ONNX file to register over the workload's service, beside `TREE`."""

    name: str
    data: bytes
    tier: Tier


def prepare(directory: Path, n_rows: int, models: Sequence[Model], declared: str = "") -> workload.Workload:
    """The workload's project with more models in it, which lie beside it as NAME.onnx for peers.

    Args:
        directory: to be made.
        n_rows: users.
        models: to register.
        declared: TOML to append to the project's tiercel.toml.
    """
    made = workload.build(directory, n_rows, with_onnx=False)
    with (made.project / "tiercel.toml").open("a") as stream:
        stream.write(declared)
    golden = np.random.default_rng(2).normal(size=(256, workload.N_FEATURES)).astype(np.float32)
    with Project(made.project) as project:
        for model in models:
            (directory / f"{model.name}.onnx").write_bytes(model.data)
            project.register(
                model.data, name=model.name, service="bench", feature_names=workload.NAMES, golden_rows=golden,
                tier=model.tier, alias="champion",
            )  # fmt: skip
    return made


def asks(name: str) -> Contender:
    """tiercel, asked about a model."""
    return replace(TIERCEL, path=f"/predict/{name}")


def body(user: int, deadline_ms: float | None = None) -> bytes:
    """A question about one user."""
    question: dict[str, Any] = {"entities": {"user_id": user}}
    if deadline_ms is not None:
        question["deadline_ms"] = deadline_ms
    return json.dumps(question).encode()


def floor_requests() -> Requests:
    """What the floor is asked; it looks at nothing of it."""
    return Requests.make(path=FLOOR.path, content_type=FLOOR.content_type, body=FLOOR.body, n_rows=1000, seed=7)


class Load:
    """What the generator sends to a server that answers for several models.

    Args:
        server: tiercel's.
        n_rows: users of its workload.
        deadlines: model -> milliseconds that its requests ask for; None: they ask for nothing.
        seconds: of a run.
    """

    def __init__(self, server: Server, n_rows: int, deadlines: Mapping[str, float | None], seconds: float) -> None:
        self.server, self.seconds, self.deadlines = server, seconds, dict(deadlines)
        self.core = cores_for(1)[1]
        self.requests = {
            name: Requests.make(
                path=f"/predict/{name}", content_type="application/json", body=partial(body, deadline_ms=deadline_ms),
                n_rows=n_rows, seed=7,
            )
            for name, deadline_ms in self.deadlines.items()
        }  # fmt: skip

    def run(self, requests: str | Requests, *, rate: float = 0.0, connections: int = 64, **options: Any) -> Run:
        """One run; closed loop without a rate. `requests`: of a model, or other ones. Options as `run` takes them."""
        chosen = self.requests[requests] if isinstance(requests, str) else requests
        given = {"seconds": self.seconds, "warmup_s": 0.3, "core": self.core, **options}
        return run(self.server.port, chosen, rate=rate, connections=connections, **given)


@contextmanager
def serving(made: workload.Workload, logs: Path, contender: Contender | None = None) -> Iterator[Server]:
    """A tiercel over a project of `prepare`."""
    with started(contender or TIERCEL, made.directory, environment.default_cache(), logs) as server:
        yield server


def check_tiers(server: Server, models: Mapping[str, Tier], *, insist: bool) -> None:
    """That each model answers, in the tier that it was registered for; without `insist` it is only said if not.

    Raises:
        SystemExit: the evidence of this host gave it another, so that the benchmark would measure something else.
    """
    for name, tier in models.items():
        reply = server.ask(1, asks(name))
        found = reply.json().get("tier")
        if reply.status_code != 200 or found != tier:
            text = f"Expected {name} in tier {tier}, got status {reply.status_code}: {reply.text[:300]}"
            if insist:
                raise SystemExit(text)
            print(text)


def metrics(server: Server) -> dict[str, float]:
    """What the server counted: the samples of /metrics by name and labels, as they stand there."""
    text = httpx.get(f"http://127.0.0.1:{server.port + 1}/metrics", timeout=30).raise_for_status().text
    found = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            found[name] = float(value)
    return found
