"""Closed loop with wrk, for comparison with our own generator: requests are made before the run, not formatted in it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.loadgen.run import Requests

#: wrk calls request() for every request: it hands out ready strings. Formatting one there costs wrk a third of its rate.
LUA = """
local requests, at = {}, 0
local file = io.open("REQUESTS", "rb")
local sizes = io.open("SIZES", "r")
for line in sizes:lines() do requests[#requests + 1] = file:read(tonumber(line)) end
local n = #requests
request = function()
  at = at + 1
  if at > n then at = 1 end
  return requests[at]
end
"""
SENT_AT_MOST = 50_000  # what LuaJIT keeps in its caches' reach


def available() -> bool:
    """Whether wrk is installed (Debian package `wrk`)."""
    return shutil.which("wrk") is not None


def write_script(requests: Requests, directory: Path) -> Path:
    """The Lua script, and the files it reads."""
    n = min(SENT_AT_MOST, len(requests.starts) - 1)
    (directory / "requests").write_bytes(requests.data[: requests.starts[n]].tobytes())
    sizes = (requests.starts[1 : n + 1] - requests.starts[:n]).tolist()
    (directory / "sizes").write_text("".join(f"{size}\n" for size in sizes))
    script = directory / "post.lua"
    script.write_text(LUA.replace("REQUESTS", str(directory / "requests")).replace("SIZES", str(directory / "sizes")))
    return script


def run(port: int, script: Path, *, connections: int, seconds: float, core: int) -> dict[str, Any]:
    """Requests per second, p50 and p99 in microseconds, and what failed."""

    def pin() -> None:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {core})

    whole = max(1, round(seconds))
    command = [
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{whole}s",
        "--latency",
        "-s",
        str(script),
        f"http://127.0.0.1:{port}/",
    ]
    text = subprocess.run(command, check=True, capture_output=True, text=True, preexec_fn=pin).stdout
    units = {"us": 1.0, "ms": 1e3, "s": 1e6}
    found = {q: float(value) * units[unit] for q, value, unit in re.findall(r"(50|99)%\s+([\d.]+)(us|ms|s)", text)}
    failed = sum(int(n) for n in re.findall(r"Non-2xx or 3xx responses: (\d+)", text))
    failed += sum(int(n) for group in re.findall(r"Socket errors: (.*)", text) for n in re.findall(r"\d+", group))
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    count = re.search(r"(\d+) requests in", text)
    return {
        "per_second": float(rate[1]) if rate else 0.0, "requests": int(count[1]) if count else 0,
        "p50": found.get("50", 0.0), "p99": found.get("99", 0.0), "failed": failed,
    }  # fmt: skip
