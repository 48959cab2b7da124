"""Strict audit: what it costs that a reply is sent only once its record is on the disk, and whether that holds under kill -9.

    python -m benchmarks.bench_strict [--seconds S] [--rows N] [--connections N] [--kills N] [--smoke]

1. The workload's forest over HTTP, one worker on the first core, the generator on the last: closed loop with --connections,
   then open loop at 5,000 a second, with `audit = "default"` and with `audit = "strict"`.
2. A worker that serves a strict model is killed (SIGKILL) at --kills random moments while eight connections ask it. Then the
   journal is read: every id that a client was told must be there.

A kill of the process leaves the kernel's cache, so the second part shows that nothing is told before it is recorded; that it
is on the disk too is what each sync is for (`tests/monitor/test_group_commit.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import tempfile
import threading
import time
from pathlib import Path

import sqlalchemy.dialects.sqlite
import uvicorn
import uvicorn.loops.uvloop

from benchmarks import tiers
from benchmarks.machine import describe
from tiercel.http.app import DataPlane
from tiercel.http.native import NativeHttp
from tiercel.http.predict import make_ids
from tiercel.monitor.journal import read_journal
from tiercel.monitor.recording import Recorder
from tiercel.registry import Registry
from tiercel.serving.engine import Engine
from tiercel.settings import load_settings

#: What a worker imports when it starts, so that the forks have it.
IMPORTED = (sqlalchemy.dialects.sqlite, uvicorn.loops.uvloop)

STRICT = '[models.bench.explain]\naudit = "strict"\n'
#: Of the open loop, and what closed loop should reach.
WANTED_RATE = 5000.0
N_ASKING = 8


def speed(made, logs: Path, *, seconds: float, n_rows: int, connections: int) -> None:  # type: ignore[no-untyped-def]
    """The first part."""
    plain = (made.project / "tiercel.toml").read_text()
    for name, text in (("default", plain), ("strict", plain + STRICT)):
        (made.project / "tiercel.toml").write_text(text)
        with tiers.serving(made, logs) as server:
            load = tiers.Load(server, n_rows, {tiers.TREE: None}, seconds)
            load.run(tiers.TREE, seconds=min(1.0, seconds))
            before = server.cpu_s()
            closed = load.run(tiers.TREE, connections=connections)
            cpu_us = 1e6 * (server.cpu_s() - before) / max(1, closed.sent)
            opened = load.run(tiers.TREE, rate=WANTED_RATE, connections=connections)
        for what, found in ((f"{connections} connections, closed loop", closed), (f"{WANTED_RATE:,.0f}/s", opened)):
            us = found.latency.summary_us()
            mark = "" if found.kept_schedule else " ~"
            print(
                f"  {name:8s} {what:32s} {found.per_second:9,.0f} /s  p50 {us['p50']:9,.0f}  p99 {us['p99']:9,.0f}  "
                f"p99.9 {us['p99.9']:9,.0f}  max {us['max']:9,.0f} us  {found.failed} failed{mark}"
            )
        print(f"  {name:8s} {cpu_us:.1f} us of CPU for each request in closed loop, all processes")


def serve(directory: Path, listener: socket.socket) -> None:
    """A worker in this process, without a supervisor: until it is killed."""
    settings = load_settings(directory)
    ids = make_ids(settings.server)
    recorder = Recorder(settings.state_dir, 0, ids.prefix, settings.journal)
    engine = Engine(settings, Registry.for_state(settings.state_dir), recorder)
    engine.refresh()
    native = NativeHttp(engine, settings.server, ids, recorder.counters)
    plane = DataPlane(engine, settings.server, native, declared=settings.models, commit=recorder.commit)
    config = uvicorn.Config(
        plane, loop="uvloop", http=native.protocol, ws="none", lifespan="off", access_log=False, log_config=None
    )  # type: ignore[arg-type]
    uvicorn.Server(config).run(sockets=[listener])


def ask(port: int, user: int, told: list[str]) -> None:
    """Ask on one connection until the server is gone; each id is told once its whole reply was read."""
    body = json.dumps({"entities": {"user_id": user}}).encode()
    request = b"POST /predict/bench HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
        len(body), body
    )  # fmt: skip
    with socket.create_connection(("127.0.0.1", port), 30) as connection, connection.makefile("rb") as replies:
        while True:
            try:
                connection.sendall(request)
                if not replies.readline().startswith(b"HTTP/1.1 200"):
                    return
                length = 0
                while (line := replies.readline()) not in (b"\r\n", b""):
                    name, _, value = line.partition(b":")
                    if name.lower() == b"content-length":
                        length = int(value)
                content = replies.read(length)
            except OSError:
                return
            if len(content) < length or not content:
                return
            told.append(json.loads(content)["id"])


def kill_often(directory: Path, kills: int) -> None:
    """The second part.

    Raises:
        SystemExit: a reply's record is missing.
    """
    seed = random.SystemRandom().randrange(1 << 32)
    chance, told = random.Random(seed), []
    began_s = time.monotonic()
    for _ in range(kills):
        with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
            port = listener.getsockname()[1]
            child = os.fork()
            if child == 0:
                try:
                    serve(directory, listener)
                finally:
                    os._exit(1)
            before = len(told)
            threads = [threading.Thread(target=ask, args=(port, user, told)) for user in range(N_ASKING)]
            for thread in threads:
                thread.start()
        wanted = before + chance.randrange(1, 400)
        deadline_s = time.monotonic() + 60
        while len(told) < wanted:
            if time.monotonic() > deadline_s:
                raise SystemExit(
                    f"Expected {wanted - before} replies of a worker within a minute, got {len(told) - before}"
                )
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
        for thread in threads:
            thread.join()
        os.waitpid(child, 0)
    recorded = {record.id for record in read_journal(load_settings(directory).state_dir / "journal")}
    missing = set(told) - recorded
    print(
        f"  {kills} kills in {time.monotonic() - began_s:.0f} s (seed {seed}): {len(told):,} replies were read, "
        f"{len(missing)} of their records are missing; {len(recorded):,} records in all"
    )
    if missing:
        raise SystemExit(f"Expected a record of every reply, missing: {sorted(missing)[:5]}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args(arguments)
    seconds, kills = (0.3, 2) if options.smoke else (options.seconds, options.kills)
    n_rows = 2000 if options.smoke else options.rows
    print(describe())
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        made = tiers.prepare(directory / "work", n_rows, [])
        speed(made, directory, seconds=seconds, n_rows=n_rows, connections=options.connections)
        kill_often(made.project, kills)


if __name__ == "__main__":
    main()
