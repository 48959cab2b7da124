"""Infer requests of the Open Inference Protocol per second, of one worker on one core, beside the floor and both paths.

    python -m benchmarks.bench_oip [--seconds S] [--rounds N] [--rows N] [--smoke]

`tiercel serve` with a forest of 100 trees x 31 leaves over 23 stored float32 features runs on the first core, the load
generator on the last: closed loop, 32 connections, requests made before the run. Cases take turns, and a figure is the
median of its rounds. A score of one in 97 replies is compared with the model's own. Where perf counts, so are the server's
instructions for each request, user and kernel: a busy machine hardly moves them.

    key, binary        the entity key as an INT64 tensor in binary, the score in binary
    vector, binary     the row of 23 FP32 itself in binary, the score in binary
    key, JSON          the same key and score as JSON
    64 vectors         64 rows in one request, binary in and out
    ..., general path  the same request with an id that JSON escapes: the compiled path hands it on
    /predict           the server's own protocol, the key as JSON
    floor              a compiled protocol that finds the end of each request and answers with constant bytes; it is sent
                       what "vector, binary" sends
"""

from __future__ import annotations

import argparse
import json
import statistics
import struct
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import numpy as np

from benchmarks import compiled, instructions, workload
from benchmarks.contenders import environment
from benchmarks.contenders.contender import FLOOR, SERVERS, TIERCEL
from benchmarks.contenders.process import Server, cores_for, started
from benchmarks.loadgen.run import Requests, Run, run
from benchmarks.machine import describe
from benchmarks.measuring import TOLERANCE, Truth

if TYPE_CHECKING:
    from collections.abc import Callable

CONNECTIONS = 32
MANY = 64
SCORE = {"name": "score", "parameters": {"binary_data": True}}
#: What makes the compiled path hand a request on, and nothing else of it.
ESCAPED = b'"id":"\\u0031",'
INFER = "/v2/models/bench/infer"


@dataclass
class Case:
    """One kind of request, and what its rounds gave."""

    name: str
    requests: Requests
    read: Callable[[bytes], float] | None
    server: Server
    n_rows: int = 1
    runs: list[Run] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)
    instructions: dict[str, float] | None = None  # for each request; None: not counted

    @property
    def per_second(self) -> float:
        return statistics.median(each.per_second for each in self.runs)


def infer(inputs: list[tuple[dict[str, object], bytes]], *, binary: bool = True, general: bool = False) -> bytes:
    """A whole request of these inputs and their binary parts."""
    fields = {"inputs": [entry for entry, _ in inputs], "outputs": [SCORE] if binary else []}
    text = json.dumps(fields, separators=(",", ":")).encode()
    if general:
        text = b"{" + ESCAPED + text[1:]
    body = text + b"".join(data for _, data in inputs)
    head = (
        f"POST {INFER} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
        f"Inference-Header-Content-Length: {len(text)}\r\n\r\n"
    )
    return head.encode() + body


def tensor(name: str, datatype: str, array: np.ndarray) -> tuple[dict[str, object], bytes]:
    """One binary input."""
    data = array.tobytes()
    entry = {"name": name, "shape": list(array.shape), "datatype": datatype}
    return {**entry, "parameters": {"binary_data_size": len(data)}}, data


def key(user: int, *, general: bool = False) -> bytes:
    """The entity key, in binary."""
    return infer([tensor("user_id", "INT64", np.array([user], "<i8"))], general=general)


def key_json(user: int) -> bytes:
    """The entity key, all JSON."""
    entry = {"name": "user_id", "shape": [1], "datatype": "INT64", "data": [user]}
    return infer([(entry, b"")], binary=False)


def predict(user: int) -> bytes:
    """The server's own protocol."""
    body = TIERCEL.body(user)
    head = f"POST {TIERCEL.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {TIERCEL.content_type}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def first_score(body: bytes) -> float:
    """The first score of an infer reply, binary or JSON."""
    reply, length = json.JSONDecoder().raw_decode(body.decode("latin-1"))
    output = reply["outputs"][0]
    return float(output["data"][0] if "data" in output else struct.unpack_from("<d", body, length)[0])


def answered(port: int) -> int:
    """How many requests the worker's compiled path has answered."""
    return int(httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=10).json()["fast_path"]["answered"])


def make_cases(server: Server, floor: Server, n_users: int, n_rows: int) -> list[Case]:
    """Every case, over as many users."""
    users = np.random.default_rng(7).permutation(n_rows)[:n_users]
    rows = np.random.default_rng(0).normal(size=(n_rows, workload.N_FEATURES)).astype("<f4")  # the workload's

    def vectors(user: int, n: int = 1, *, general: bool = False) -> bytes:
        return infer([tensor("features", "FP32", rows[np.arange(user, user + n) % n_rows])], general=general)

    def requests(make: Callable[[int], bytes], at_most: int = n_users) -> Requests:
        return Requests.of([make(user) for user in users[:at_most].tolist()], users[:at_most])

    few = min(n_users, 2000)
    vector = requests(vectors)
    return [
        Case("floor", vector, None, floor),
        Case("key, binary", requests(key), first_score, server),
        Case("vector, binary", vector, first_score, server),
        Case("key, JSON", requests(key_json), first_score, server),
        Case("64 vectors", requests(lambda user: vectors(user, MANY), few), first_score, server, MANY),
        Case("/predict", requests(predict), lambda body: json.loads(body)["score"], server),
        Case("key, general path", requests(lambda user: key(user, general=True)), first_score, server),
        Case("vector, general path", requests(lambda user: vectors(user, general=True)), first_score, server),
        Case(
            "64 vectors, general path", requests(lambda user: vectors(user, MANY, general=True), few), first_score,
            server, MANY,
        ),
    ]  # fmt: skip


def measure(case: Case, truth: Truth, seconds: float) -> None:
    """One round of a case.

    Raises:
        SystemExit: a request failed, a score was wrong, or another path answered than the case says.
    """

    def check(user: int, body: bytes) -> bool:
        assert case.read is not None
        return bool(np.isclose(case.read(body), truth.score(user), rtol=TOLERANCE, atol=TOLERANCE))

    is_floor = case.read is None
    before, before_s = 0 if is_floor else answered(case.server.port), case.server.cpu_s()
    found = run(
        case.server.port, case.requests, rate=0, seconds=seconds, connections=CONNECTIONS, warmup_s=0.1,
        core=cores_for(1)[1], check=None if is_floor else check,
    )  # fmt: skip
    used_s = case.server.cpu_s() - before_s
    if found.failed or (not is_floor and found.checked == 0):
        raise SystemExit(f"{case.name}: {found.why or 'no reply was compared'}")
    here = 0 if is_floor else answered(case.server.port) - before
    if not is_floor and (here >= found.ok) == ("general" in case.name):
        raise SystemExit(f"{case.name}: {here} of {found.ok} requests were answered by the compiled path")
    case.runs.append(found)
    case.cpu_us.append(1e6 * used_s / max(1, found.sent))


def count(case: Case, seconds: float) -> None:
    """Instructions of the server for each request, where they can be counted."""

    def load() -> int:
        return run(
            case.server.port, case.requests, rate=0, seconds=seconds, connections=CONNECTIONS, warmup_s=0,
            core=cores_for(1)[1],
        ).ok  # fmt: skip

    case.instructions = instructions.count(case.server.pid, load)


def table(cases: list[Case]) -> str:
    """Figures side by side; every case beside the floor, and beside the general path's like."""
    by_name = {case.name: case for case in cases}
    lines = [
        f"{'':26}{'req/s':>10}{'rows/s':>12}{'p50 us':>9}{'p99 us':>9}{'CPU us':>8}{'instr.':>10}{'of floor':>10}{'x general':>11}"
    ]
    for case in cases:
        times = [each.latency.summary_us() for each in case.runs]
        p50, p99 = (statistics.median(each[name] for each in times) for name in ("p50", "p99"))
        general = by_name.get(f"{case.name.removesuffix(', binary')}, general path")
        ratio = f"{case.per_second / general.per_second:>11.1f}" if general is not None else ""
        counted = f"{sum(case.instructions.values()) / 1000:>8,.0f} k" if case.instructions else f"{'-':>10}"
        lines.append(
            f"{case.name:26}{case.per_second:>10,.0f}{case.per_second * case.n_rows:>12,.0f}{p50:>9.0f}{p99:>9.0f}"
            f"{statistics.median(case.cpu_us):>8.1f}{counted}{case.per_second / by_name['floor'].per_second:>10.2f}{ratio}"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=100_000, help="stored rows")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args(arguments)
    seconds, rounds, n_rows = (0.3, 1, 2000) if options.smoke else (options.seconds, options.rounds, options.rows)
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        directory, cache = Path(temporary) / "work", environment.default_cache()
        work = workload.build(directory, n_rows, with_onnx=True)
        compiled.build(SERVERS / "floor.pyx", cache)
        logs = Path(temporary) / "logs"
        server = stack.enter_context(started(TIERCEL, directory, cache, logs))
        floor = stack.enter_context(started(FLOOR, directory, cache, logs))
        cases, truth = make_cases(server, floor, min(n_rows, 65_536), n_rows), Truth(work)
        for _ in range(rounds):
            for case in cases:
                measure(case, truth, seconds)
        if instructions.available():
            for case in cases:
                count(case, min(1.0, seconds))
    print(describe("numpy", "uvicorn", "uvloop"))
    print(table(cases))


if __name__ == "__main__":
    main()
