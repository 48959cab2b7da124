"""The dashboard's pages: how long one takes, and what opening them does to predictions.

    python -m benchmarks.bench_dashboard [--models 50] [--features 50] [--rounds 20] [--starts 5] [--no-load] [--smoke]

A state directory with an hour of traffic in windows of a minute and the drift reports of all models. The control process
runs in a process of its own. "First" is the first page after the process said that it listens, asked at once: what it must
load and read is part of it. "Later" are pages of a process that has stood for a while, each asked when what is kept of it
is too old to be used. "Again" is one that is still fresh.

Then `tiercel serve` at half of its capacity, quiet and while four readers look: each opens the overview, a model's page and
a service's once a second (twelve pages a second; a page left open asks once in five). On two cores they share the server's.
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np
from tests.support import monitored

from benchmarks import workload
from benchmarks.contenders import environment
from benchmarks.contenders.contender import TIERCEL
from benchmarks.disturbance import disturbed_by
from benchmarks.machine import describe
from benchmarks.measuring import CAPACITY_CONNECTIONS, Bench, Plan
from tiercel.http.dashboard.pages import FRESH_S
from tiercel.registry import Registry
from tiercel.types import Tier

SERVE = """
import socket, sys, uvicorn
from pathlib import Path
from tiercel.http.control import ControlPlane
from tiercel.settings import load_settings
listener = socket.socket(fileno=int(sys.argv[2]))
plane = ControlPlane(load_settings(Path(sys.argv[1])))
plane.hear({"has_served": True})
config = uvicorn.Config(plane, log_config=None, ws="none", loop="uvloop", http="httptools")
uvicorn.Server(config).run(sockets=[listener])
"""
WANTED_MS = 300.0
WANTED_RATIO = 1.2


def seed(project: Path, n_models: int, n_features: int, *, with_champions: bool, n_windows: int = 60) -> None:
    """Models with traffic, references and drift reports; without champions a server has nothing to load."""
    state = project / ".tiercel"
    features = [f"feature_{i:02d}" for i in range(n_features)]
    now_us = time.time_ns() // 1000
    with Registry.for_state(state) as registry:
        versions = []
        for i in range(n_models):
            version = monitored.register(registry, f"model-{i:02d}", features=features, seed=i)
            if with_champions:
                registry.promote(version.name, 1, actor="bench", reason="first")
            versions.append(version)
        plans = [(each, Tier.REALTIME, {"shift": 0.3 * (i % 5 == 0)}, 1.0) for i, each in enumerate(versions)]
        monitored.seed_windows(state, plans, now_us=now_us, per_window=20, n_windows=n_windows).close()
        monitored.seed_drift(state, registry, versions, now_us=now_us)
    monitored.seed_alerts(state, now_us=now_us, model="model-00", version=1)


class Control:
    """The control process of a project."""

    def __init__(self, project: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            command = [sys.executable, "-c", SERVE, str(project), str(listener.fileno())]
            self._process = subprocess.Popen(command, pass_fds=(listener.fileno(),))
        self.client = httpx.Client(base_url=self.url, timeout=60)
        while True:
            try:
                self.client.get("/livez").raise_for_status()
            except httpx.TransportError:
                time.sleep(0.01)
            else:
                break

    def ask_ms(self, path: str) -> tuple[float, int]:
        """Milliseconds for a page, and its bytes."""
        begin = time.perf_counter()
        reply = self.client.get(path)
        assert reply.status_code == 200, (path, reply.status_code, reply.text[:300])
        return 1e3 * (time.perf_counter() - begin), len(reply.content)

    def close(self) -> None:
        """End it."""
        self.client.close()
        self._process.terminate()
        self._process.wait()


def row(name: str, samples_ms: list[float], n_bytes: int, more: str = "") -> str:
    """A line of the table."""
    p50, most = float(np.median(samples_ms)), max(samples_ms)
    return f"  {name:44} p50 {p50:7.1f}  max {most:7.1f} ms  {n_bytes / 1e3:7.1f} kB  n={len(samples_ms)}{more}"


def measure_pages(project: Path, n_rounds: int, n_starts: int) -> None:
    """First pages of new processes, then pages of one that has stood for a while."""
    found: dict[str, list[float]] = {}
    sizes: dict[str, int] = {}

    def ask(control: Control, name: str, path: str) -> None:
        ms, sizes[name] = control.ask_ms(path)
        found.setdefault(name, []).append(ms)

    for _ in range(n_starts):
        control = Control(project)
        ask(control, "/ first, at once", "/")
        control.close()
    for _ in range(n_starts):
        control = Control(project)
        time.sleep(3)  # it loads and reads meanwhile, so that the first reader need not wait
        ask(control, "/ first, 3 s after the start", "/")
        ask(control, "/models/model-00 first", "/models/model-00")
        ask(control, "/?window=24h first", "/?window=24h")
        control.close()
    control = Control(project)
    page = control.client.get("/").text
    assert page.count('<tr role="row" class') == len(list(Registry.for_state(project / ".tiercel").list_models()))
    for _ in range(n_rounds):
        time.sleep(FRESH_S + 0.05)
        ask(control, "/ later", "/")
        ask(control, "/?part=main later", "/?part=main")
        ask(control, "/models/model-00 later", "/models/model-00")
        ask(control, "/alerts later", "/alerts")
        ask(control, "/ again", "/")
    control.close()
    for name, samples in found.items():
        late = sum(each > WANTED_MS for each in samples)
        print(row(name, samples, sizes[name], f"  {late} over {WANTED_MS:g} ms" if late else ""), flush=True)


def measure_disturbance(
    scratch: Path, n_models: int, n_features: int, *, seconds: float, rounds: int, share: float = 0.5
) -> None:
    """p99.9 of predictions, quiet and while pages are opened."""
    work = workload.build(scratch / "work", 20_000, with_onnx=True)
    seed(work.project, n_models, n_features, with_champions=False)
    bench = Bench(work, environment.default_cache(), scratch, Plan(rounds, seconds, count_instructions=False), print)
    with ExitStack() as stack:
        server = bench.start(stack, TIERCEL)
        if server is None:
            return
        bench.load(server, TIERCEL, rate=0, connections=CAPACITY_CONNECTIONS, seconds=0.5)
        rate = share * bench.closed(server, TIERCEL)["per_second"]
        with httpx.Client(base_url=f"http://127.0.0.1:{server.port + 1}", timeout=30) as client:

            def read() -> None:
                for _ in range(4):
                    for path in ("/", "/models/bench", "/features/bench"):
                        client.get(path).raise_for_status()

            read()
            found = disturbed_by(bench, server, rate, read, "four readers open three pages a second", "p999_dashboard")
    typical = [found[kind]["typical"]["p99.9"] for kind in ("quiet", "disturbed")]
    print(f"  at {rate:,.0f} requests/s: {found['told']}")
    print(f"  ratio {found['value']:.2f} (wanted: at most {WANTED_RATIO}), {found['failed']} failed")
    if all(typical):
        print(f"  in the median tenth of a second: {typical[1]:,.0f} us, quiet {typical[0]:,.0f} us")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=50)
    parser.add_argument("--features", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--no-load", action="store_true", help="pages only")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args(arguments)
    n_models, n_features = (3, 5) if options.smoke else (options.models, options.features)
    print(describe("jinja2", "plotly", "duckdb", "numpy"))
    print(f"  {n_models} models of {n_features} features, an hour of windows of a minute")
    with tempfile.TemporaryDirectory() as directory:
        project = Path(directory) / "project"
        project.mkdir()
        (project / "tiercel.toml").write_text('[project]\nname = "bench"\n[monitor]\nenabled = false\n')
        seed(project, n_models, n_features, with_champions=True, n_windows=5 if options.smoke else 60)
        measure_pages(project, 1 if options.smoke else options.rounds, 1 if options.smoke else options.starts)
        if not options.no_load:
            measure_disturbance(
                Path(directory), n_models, n_features,
                seconds=0.5 if options.smoke else options.seconds, rounds=1 if options.smoke else 5,
            )  # fmt: skip


if __name__ == "__main__":
    main()
