"""A contender's process tree: started pinned, waited for, measured, ended. Linux tells CPU and memory by process."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.contenders import environment
from benchmarks.contenders.contender import Contender, Place, environment_of

TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class StartError(Exception):
    """A contender could not be installed or did not answer; the text says why."""


@dataclass(frozen=True)
class Server:
    """A running contender."""

    contender: Contender
    pid: int
    port: int
    cores: frozenset[int]

    def cpu_s(self) -> float:
        """User and system seconds of the process tree so far, ended children included."""
        return sum(_stat(pid).cpu_s for pid in tree(self.pid))

    def worker_cpu_s(self) -> float:
        """As `cpu_s`, of the workers alone: what watches them, on whatever time they leave, is in other processes."""
        return sum(_stat(pid).cpu_s for pid in self._workers())

    def rss_mb(self) -> dict[str, float]:
        """Resident megabytes: of the tree, of its largest worker, what is private of both, and how many processes there are."""
        pids = tree(self.pid)
        parts = [_memory(pid) for pid in pids]
        workers = [_memory(pid) for pid in self._workers()]
        return {
            "rss": sum(total for total, _ in parts), "worker": max(total for total, _ in workers),
            "anonymous": sum(anon for _, anon in parts), "worker_anonymous": max(anon for _, anon in workers),
            "processes": len(pids),
        }  # fmt: skip

    def _workers(self) -> list[int]:
        """The processes that answer: tiercel's workers, which say so; of others all."""
        pids = tree(self.pid)
        return [pid for pid in pids if any(each.startswith("worker-") for each in _arguments(pid))] or pids

    def ask(self, user: int, contender: Contender | None = None) -> httpx.Response:
        """One request through an ordinary client."""
        asked = contender or self.contender
        return httpx.post(
            f"http://127.0.0.1:{self.port}{asked.path}", content=asked.body(user),
            headers={"content-type": asked.content_type}, timeout=10,
        )  # fmt: skip


@dataclass(frozen=True)
class _Stat:
    parent: int
    cpu_s: float
    started: int  # with the pid, what a process is; 0 when it has ended


def _stat(pid: int) -> _Stat:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return _Stat(0, 0.0, 0)
    cpu_s = sum(int(field) for field in fields[11:15]) * TICK_S
    return _Stat(int(fields[1]), cpu_s, 0 if fields[0] in "ZX" else int(fields[19]))


def _arguments(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


def _memory(pid: int) -> tuple[float, float]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0, 0.0
    fields = dict(line.split(":", 1) for line in lines)
    return tuple(int(fields.get(name, "0 kB").split()[0]) / 1024 for name in ("VmRSS", "RssAnon"))


def tree(root: int) -> list[int]:
    """A process and its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            children.setdefault(_stat(int(entry.name)).parent, []).append(int(entry.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


class Others:
    """What the machine's other processes run, kernel threads among them: to the nanosecond, where Linux counts it.

    Args:
        ours: the processes that do not count.
    """

    def __init__(self, ours: Collection[int]) -> None:
        self._ours, self._before = frozenset(ours), {}
        self.ran_s()

    def ran_s(self) -> float:
        """Seconds since this was asked last; without those of threads that have ended since."""
        before, self._before = self._before, dict(self._tasks())
        return sum(max(0, ran_ns - before.get(task, 0)) for task, ran_ns in self._before.items()) * 1e-9

    def _tasks(self) -> Iterator[tuple[str, int]]:
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) not in self._ours:
                with contextlib.suppress(OSError):  # a process that has ended
                    for task in entry.glob("task/*/schedstat"):
                        with contextlib.suppress(OSError):
                            yield str(task), int(task.read_text().split()[0])


def cores_for(workers: int) -> tuple[frozenset[int], int]:
    """(the server's cores, the generator's): the last core is the generator's, alone while the machine has enough."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    if len(cores) > workers:
        return frozenset(cores[:workers]), cores[-1]
    return frozenset(cores), cores[-1]


def free_port() -> int:
    """A port of the loopback that is free, and the next one too (some servers want a second)."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            with contextlib.suppress(OSError):
                second.bind(("127.0.0.1", port + 1))
                return port


@contextlib.contextmanager
def started(contender: Contender, directory: Path, cache: Path, logs: Path) -> Iterator[Server]:
    """The contender, answering, pinned to its cores; ended, with all its children, on leaving.

    Raises:
        StartError: it could not be installed, or did not answer in time.
    """
    python = Path()
    if contender.is_peer:
        try:
            python = environment.ensure(cache, contender.home, contender.requirements)
        except environment.InstallError as error:
            raise StartError(f"could not be installed: {error}") from error
    place = Place(python, free_port(), directory, cache)
    cores, _ = cores_for(contender.workers)
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"{contender.name}.log"

    def pin() -> None:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, cores)

    with log.open("wb") as output:
        process = subprocess.Popen(
            contender.command(place), stdin=subprocess.DEVNULL, stdout=output, stderr=output, preexec_fn=pin,
            env=environment_of(contender, place), process_group=0,  # see tiercel.priority: one session
        )  # fmt: skip
    server = Server(contender, process.pid, place.port, cores)
    try:
        _wait(server, process, log)
        yield server
    finally:
        _end(process)


def _wait(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + server.contender.start_s
    said = "no answer"
    while time.monotonic() < until:
        try:
            reply = server.ask(0)
        except httpx.TransportError as error:
            said = str(error) or said
        else:
            if reply.status_code == 200:
                return
            said = f"status {reply.status_code}: {reply.text[:200]}"
        if process.poll() is not None:
            lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
            raise StartError(f"ended with status {process.returncode}: {lines[-1][:300] if lines else 'no output'}")
        time.sleep(0.1)
    raise StartError(f"not ready after {server.contender.start_s:g} s: {said}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, then SIGKILL to what is left of the tree (by pid and start time, so nobody else is hit)."""
    members = {pid: _stat(pid).started for pid in tree(process.pid)}
    process.terminate()
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pid in _left(members, 3):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    _left(members, 5)


def _left(members: dict[int, int], seconds: float) -> list[int]:
    """Which of the processes (pid -> start time) still run after at most that long."""
    until = time.monotonic() + seconds
    while True:
        left = [pid for pid, started_at in members.items() if started_at and _stat(pid).started == started_at]
        if not left or time.monotonic() > until:
            return left
        time.sleep(0.05)
