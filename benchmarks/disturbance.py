"""tiercel at half of its capacity, quiet and then disturbed: what its p99.9 becomes, and whether a request fails."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx

from benchmarks import workload
from benchmarks.contenders import process
from benchmarks.contenders.contender import FLOOR, TIERCEL, TIERCEL_2, TIERCEL_UNRECORDED, Contender, has_option
from benchmarks.contenders.process import Server
from benchmarks.loadgen.run import Run
from benchmarks.measuring import CAPACITY_CONNECTIONS, OPEN_CONNECTIONS, Bench, Rounds
from benchmarks.record import median_of, ratio_of
from benchmarks.workload import Workload

IDLE_CONNECTIONS = 10_000
EVERY_S = 1.0
TWO_WORKERS_SHARE = 0.25
PAGES = ("/metrics", "/", "/api/workers", "/readyz")


def run_all(bench: Bench, measured: Rounds) -> list[dict[str, Any]]:
    """Each disturbance: what it was, the ratio, what failed. What cannot be run here says why."""
    rate = measured.rate[0.5]
    found: list[dict[str, Any]] = []
    with ExitStack() as stack:
        server = bench.start(stack, TIERCEL)
        if server is None:
            return []
        with _swapping(bench.workload) as swap:
            found.append(disturbed_by(bench, server, rate, swap, "a base swapped every second", "p999_swap"))
        with _promoting(bench.workload) as promote:
            found.append(
                disturbed_by(bench, server, rate, promote, "the champion changed every second", "p999_promote")
            )
        found.append(_page(bench, server, rate))
        try:
            found += _idle(bench, server, rate)
        except OSError as error:  # no more descriptors, or ports: a closed connection holds its own for a minute
            found.append({"what": f"{IDLE_CONNECTIONS:,} idle connections", "told": f"not measured: {error}"})
        found.append(_two_workers(bench, server, measured.capacity))
        found.append(_journal(bench, server, stack))
    return found


def _pair(
    bench: Bench, server: Server, rate: float, disturb: Callable[[], None], n: int, every_s: float = EVERY_S
) -> tuple[list[Run], list[Run], int]:
    """(quiet runs, disturbed runs, how often it was disturbed), in turns."""
    quiet, disturbed, count = [], [], 0
    seconds = max(bench.plan.seconds, 2.5 * EVERY_S)
    for at in range(n):
        quiet.append(bench.load(server, TIERCEL, rate=rate, connections=OPEN_CONNECTIONS, seconds=seconds, seed=at + 1))
        with _every(every_s, disturb) as times:
            disturbed.append(
                bench.load(server, TIERCEL, rate=rate, connections=OPEN_CONNECTIONS, seconds=seconds, seed=at + 1)
            )
        count += times[0]
    return quiet, disturbed, count


def disturbed_by(
    bench: Bench,
    server: Server,
    rate: float,
    disturb: Callable[[], None],
    what: str,
    figure: str,
    every_s: float = EVERY_S,
) -> dict[str, Any]:
    bench.say(f"tiercel: {what}")
    quiet, disturbed, count = _pair(bench, server, rate, disturb, bench.turns, every_s)
    calm, rough = median_of(quiet), median_of(disturbed)
    return {
        "what": what, "figure": figure, "value": ratio_of(rough["by_round"], calm["by_round"], "p99.9"),
        "failed": calm["failed"] + rough["failed"],
        "told": f"{count} times; p99.9 {rough['p99.9']:,.0f} us, quiet {calm['p99.9']:,.0f} us; "
                f"p99 {rough['p99']:,.0f} us, quiet {calm['p99']:,.0f} us",
        "quiet": calm, "disturbed": rough,
    }  # fmt: skip


@contextlib.contextmanager
def _every(seconds: float, act: Callable[[], None]) -> Iterator[list[int]]:
    """`act` every so often on another thread, at the lowest priority, off the generator's core where there is room."""
    stop, times = threading.Event(), [0]
    errors: list[Exception] = []

    def loop() -> None:
        if hasattr(os, "sched_setaffinity"):
            cores = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, set(cores[1:-1]) or {cores[0]})  # on two cores it has to share the server's
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        while not stop.wait(seconds):
            try:
                act()
            except Exception as error:  # noqa: BLE001 - raised again where the run ends
                errors.append(error)
                return
            times[0] += 1

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield times
    finally:
        stop.set()
        thread.join()
    if errors:
        raise errors[0]


@contextlib.contextmanager
def _swapping(work: Workload) -> Iterator[Callable[[], None]]:
    """Makes the other one of two bases current, by renaming a MANIFEST as publishing does."""
    from tiercel import Project

    with Project(work.project) as project:
        project.materialize()
    manifest = next((work.project / ".tiercel" / "features").glob("*/MANIFEST"))
    newer = manifest.read_bytes()
    from tiercel.features.rollback import rollback

    rollback(manifest.parent)
    texts = [newer, manifest.read_bytes()]

    def swap() -> None:
        texts.reverse()
        scratch = manifest.with_name("MANIFEST.bench")
        scratch.write_bytes(texts[0])
        scratch.replace(manifest)

    yield swap


@contextlib.contextmanager
def _promoting(work: Workload) -> Iterator[Callable[[], None]]:
    """Moves the champion alias between version 1 and version 2, which is the same model."""
    from tiercel import Project

    with Project(work.project) as project:
        versions = [1, 2]

        def promote() -> None:
            versions.reverse()
            project.promote("bench", versions[0])

        yield promote
        if versions[0] != 1:
            promote()


def _page(bench: Bench, server: Server, rate: float) -> dict[str, Any]:
    """The control process asked for whatever it shows, again and again."""
    what = "pages of the control process read 20 times a second"
    if not has_option("admin_port"):
        return {"what": what, "told": "not measured: this version has no control process"}
    url = f"http://127.0.0.1:{server.port + 1}"

    with httpx.Client(base_url=url, timeout=10) as client:
        try:
            missing = [path for path in PAGES if client.get(path).status_code != 200]
        except httpx.TransportError as error:
            return {"what": what, "told": f"not measured: the control process does not answer: {error}"}
        paths = [path for path in PAGES if path not in missing]
        if not paths:
            return {"what": what, "told": f"not measured: the control process has no {' and no '.join(missing)}"}

        def read() -> None:
            for path in paths:
                client.get(path).raise_for_status()

        return disturbed_by(bench, server, rate, read, f"{' and '.join(paths)} of the control process read 20 times a second",
                          "p999_page", every_s=0.05)  # fmt: skip


def _journal(bench: Bench, server: Server, stack: ExitStack) -> dict[str, Any]:
    """CPU per request with and without journal and counters, in turns."""
    what = "journal and counters, share of CPU per request"
    if not workload.without_journal(bench.workload):
        return {"what": what, "told": "not measured: this version has no [journal] setting"}
    other = bench.start(stack, TIERCEL_UNRECORDED)
    if other is None:
        return {"what": what, "told": f"not measured: {bench.not_measured.pop(TIERCEL_UNRECORDED.name)}"}
    bench.say("tiercel: with and without the journal")
    for each, contender in ((server, TIERCEL), (other, TIERCEL_UNRECORDED)):
        bench.load(each, contender, rate=0, connections=CAPACITY_CONNECTIONS, seconds=0.3)
    with_it, without = [], []
    for _ in range(max(2, bench.plan.rounds)):
        with_it.append(bench.closed(server, TIERCEL))
        without.append(bench.closed(other, TIERCEL_UNRECORDED))
    on, off = (statistics.median(run["cpu_us"] for run in runs) for runs in (with_it, without))
    return {
        "what": what, "figure": "journal_share", "value": (on - off) / on,
        "failed": sum(run["failed"] for run in (*with_it, *without)), "told": f"{on:.2f} us with, {off:.2f} us without",
    }  # fmt: skip


def _idle(bench: Bench, server: Server, rate: float) -> list[dict[str, Any]]:
    """Memory of idle connections, and p99 beside them, in turns with runs without.

    Told beside it: what other processes of the machine ran meanwhile. A monitor that lists everybody's open descriptors has
    thousands more to list, holds up a core for it, and is no server's doing: the floor is held up as much.
    """
    wanted = IDLE_CONNECTIONS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted + 1000:
        wanted = max(0, hard - 1000)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted + 1000), hard))
    bench.say(f"tiercel: {wanted:,} idle connections")
    servers = [(server, TIERCEL)]
    with ExitStack() as stack:
        other = bench.start(stack, FLOOR)
        if other is not None:
            servers.append((other, FLOOR))
        else:
            bench.say(f"without the floor: {bench.not_measured.pop(FLOOR.name)}")
        runs: dict[str, tuple[list[Run], list[Run]]] = {contender.name: ([], []) for _, contender in servers}
        kib = []
        others: tuple[list[float], list[float]] = ([], [])

        def load(each: Server, contender: Contender, seed: int, beside: bool) -> Run:
            ours = {os.getpid(), *(pid for running, _ in servers for pid in process.tree(running.pid))}
            watched, began = process.Others(ours), time.monotonic()
            run = bench.load(each, contender, rate=rate, connections=OPEN_CONNECTIONS, seed=seed)
            others[beside].append(watched.ran_s() / (time.monotonic() - began))
            return run

        for at in range(max(3, bench.plan.rounds)):
            for each, contender in servers:
                quiet, beside = runs[contender.name]
                quiet.append(load(each, contender, 2 * at + 1, beside=False))
                before = each.rss_mb()["worker_anonymous"]
                with ExitStack() as held:
                    for _ in range(wanted):
                        held.enter_context(socket.create_connection(("127.0.0.1", each.port), timeout=10))
                    time.sleep(0.5)
                    if contender is TIERCEL:
                        kib.append(1024 * (each.rss_mb()["worker_anonymous"] - before) / max(1, wanted))
                    beside.append(load(each, contender, 2 * at + 2, beside=True))
                time.sleep(0.5)
    (calm, crowded), *floor = [tuple(median_of(each) for each in pair) for pair in runs.values()]
    ratio = ratio_of(crowded["by_round"], calm["by_round"], "p99")
    figures = {}
    told = f"p99 {crowded['p99']:,.0f} us, without {calm['p99']:,.0f} us"
    if floor:
        told += f" (the floor {floor[0][1]['p99']:,.0f} us, {floor[0][0]['p99']:,.0f} us)"
        figures["p99_idle_x_floor"] = ratio / ratio_of(floor[0][1]["by_round"], floor[0][0]["by_round"], "p99")
    if crowded["typical"]["p99"] and calm["typical"]["p99"]:
        told += (
            f"; in the median tenth of a second {crowded['typical']['p99']:,.0f} us, {calm['typical']['p99']:,.0f} us"
        )
        figures["typical_p99_idle"] = crowded["typical"]["p99"] / calm["typical"]["p99"]
    alone, among = (1000 * statistics.median(each) for each in others)
    told += f"; the machine's other processes ran {among:.1f} ms a second, without {alone:.1f} ms"
    return [
        {
            "what": f"{wanted:,} idle connections", "figure": "idle_kib", "value": kib[0],
            "told": f"{kib[0]:.2f} KiB of private memory each",
        },
        {
            "what": f"load beside {wanted:,} idle connections", "figure": "p99_idle", "value": ratio,
            "failed": crowded["failed"] + calm["failed"], "told": told, "more_figures": figures,
        },
    ]  # fmt: skip


def _two_workers(bench: Bench, server: Server, capacity: float) -> dict[str, Any]:
    """Requests per CPU second of workers: two beside one, each with as much to do.

    Open loop, a quarter of one worker's capacity for each worker, in turns. In closed loop what a worker spends on a request
    depends on how many wait for it whenever it looks, and that on who else has its core: the generator, where there are two.
    """
    what = "two workers"
    with ExitStack() as stack:
        both = bench.start(stack, TIERCEL_2)
        if both is None:
            return {"what": what, "told": f"not measured: {bench.not_measured.pop(TIERCEL_2.name)}"}
        bench.say("tiercel: two workers")
        rate = TWO_WORKERS_SHARE * capacity
        cpu_us: dict[int, list[float]] = {1: [], 2: []}
        failed = 0
        for at in range(max(3, bench.plan.rounds) + 1):  # the first is not counted
            for each, contender in ((server, TIERCEL), (both, TIERCEL_2)):
                n = contender.workers
                before = each.worker_cpu_s()
                run = bench.load(each, contender, rate=n * rate, connections=n * CAPACITY_CONNECTIONS, seed=at + 1)
                failed += run.failed
                if at:  # the generator's warm-up is not among the requests that it counts
                    seconds = bench.plan.seconds + bench.plan.warmup_s
                    cpu_us[n].append(1e6 * (each.worker_cpu_s() - before) / (n * rate * seconds))
    one, two = (statistics.median(cpu_us[n]) for n in (1, 2))
    return {
        "what": what, "figure": "workers_2", "value": one / two, "failed": failed,
        "told": f"{two:.1f} us of CPU per request, one worker {one:.1f} us, at {rate:,.0f} requests/s for each worker",
    }  # fmt: skip
