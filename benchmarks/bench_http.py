"""One JSON row per request over HTTP: key -> stored row -> forest, beside hand-written servers in the same run.

    python -m benchmarks.bench_http [--rows N] [--seconds S] [--smoke]

Each server runs alone on the first core, `wrk -t1` on the second, keep-alive, closed loop: a measure of capacity. The
answers are compared first. Needs wrk (Debian package `wrk`).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np

from benchmarks import machine, workload
from benchmarks.http_contenders import NAMES

LUA = """
math.randomseed(7)
local headers = {["content-type"] = "application/json"}
request = function()
  local body = '{"entities": {"user_id": ' .. math.random(0, %d) .. '}}'
  return wrk.format("POST", "/predict/bench", headers, body)
end
"""


@contextlib.contextmanager
def server(name: str, directory: Path):
    """The contender on a free port of the loopback, pinned to the first core."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "benchmarks.http_contenders", name, str(port), str(directory)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, preexec_fn=lambda: pin(0))
    try:
        for _ in range(600):
            with contextlib.suppress(httpx.TransportError):
                if ask(port, 0).status_code == 200:
                    break
            if process.poll() is not None:
                raise RuntimeError(f"{name} ended with status {process.returncode}")
            time.sleep(0.1)
        yield process, port
    finally:
        process.terminate()
        process.wait(timeout=30)


def pin(core: int) -> None:
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[core % len(cores)]})


def ask(port: int, user: int) -> httpx.Response:
    return httpx.post(f"http://127.0.0.1:{port}/predict/bench", json={"entities": {"user_id": user}}, timeout=5)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its live descendants so far (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") + sum(cpu_seconds(int(p)) for p in children)


def load(port: int, script: Path, connections: int, seconds: int) -> dict[str, float]:
    """One run of wrk: requests per second, p50 and p99 in microseconds, failed requests."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", str(script),
               f"http://127.0.0.1:{port}/predict/bench"]  # fmt: skip
    text = subprocess.run(command, check=True, capture_output=True, text=True, preexec_fn=lambda: pin(1)).stdout
    units = {"us": 1, "ms": 1e3, "s": 1e6}
    found = {
        quantile: float(value) * units[unit]
        for quantile, value, unit in re.findall(r"(50|99)%\s+([\d.]+)(us|ms|s)", text)
    }
    bad = sum(int(n) for n in re.findall(r"Non-2xx or 3xx responses: (\d+)", text))
    bad += sum(int(n) for group in re.findall(r"Socket errors: (.*)", text) for n in re.findall(r"\d+", group))
    return {
        "rps": float(re.search(r"Requests/sec:\s+([\d.]+)", text)[1]),
        "requests": float(re.search(r"(\d+) requests in", text)[1]),
        "p50": found["50"],
        "p99": found["99"],
        "bad": bad,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args(arguments)
    if shutil.which("wrk") is None:
        raise SystemExit("bench_http needs wrk; install the Debian package wrk")
    n_rows, seconds = (2_000, 1) if options.smoke else (options.rows, options.seconds)
    print(machine.describe("uvicorn", "uvloop", "httptools", "starlette", "orjson", "lmdb", "onnxruntime", "lightgbm"))
    with tempfile.TemporaryDirectory() as temporary:
        work = workload.build(Path(temporary) / "work", n_rows, with_onnx=True)
        script = Path(temporary) / "post.lua"
        script.write_text(LUA % (n_rows - 1))
        results = {}
        answers = {}
        for name in NAMES:
            with server(name, work.directory) as (process, port):
                answers[name] = [ask(port, user).json()["score"] for user in range(0, n_rows, max(1, n_rows // 50))]
                load(port, script, 32, 1)  # warm up
                before = cpu_seconds(process.pid)
                many = load(port, script, 32, seconds)
                used = cpu_seconds(process.pid) - before
                one = load(port, script, 1, max(1, seconds // 2))
                results[name] = (many, one, 1e6 * used / many["requests"])
        np.testing.assert_allclose(answers["tiercel"], answers["handwritten"], rtol=1e-5, atol=1e-6)
        floor = results["constant"][0]["rps"]
        peer = results["handwritten"][0]["rps"]
        print(f"\n{n_rows:,} rows x {workload.N_FEATURES} float32, LightGBM 100 x 31, JSON, one worker; same answers\n")
        print(f"{'server':12} {'c=32 req/s':>11} {'p50 us':>8} {'p99 us':>8} {'c=1 p50 us':>11} {'CPU us/req':>11} "
              f"{'of constant':>12} {'x handwritten':>14} {'failed':>7}")  # fmt: skip
        for name, (many, one, cpu) in results.items():
            print(
                f"{name:12} {many['rps']:11,.0f} {many['p50']:8.0f} {many['p99']:8.0f} {one['p50']:11.0f} {cpu:11.1f} "
                f"{many['rps'] / floor:12.2f} {many['rps'] / peer:14.2f} {many['bad'] + one['bad']:7.0f}"
            )


if __name__ == "__main__":
    main()
