"""Where and with what a figure was measured; printed above every table."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path


def describe(*packages: str) -> str:
    """CPU, cores, kernel, Python and the versions of `packages`, in two lines."""
    versions = [f"{package} {version(package)}" for package in ("tiercel", *packages)]
    return (
        f"{_cpu()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}\n{', '.join(versions)}"
    )


def version(package: str) -> str:
    """Its version here."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def facts() -> dict[str, str | int]:
    """The same as `describe`, for a program."""
    return {
        "cpu": _cpu(), "cores": os.cpu_count() or 0, "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(), "commit": _commit(), "load_average": round(os.getloadavg()[0], 2),
    }  # fmt: skip


def _commit() -> str:
    here = Path(__file__).parent
    done = subprocess.run(
        ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout.strip() or "unknown"


def percentiles(samples_us: list[float]) -> str:
    """p50, p99, p99.9 and max of a list of microseconds."""
    ordered = sorted(samples_us)
    p50, p99, p999 = (ordered[min(len(ordered) - 1, int(len(ordered) * q))] for q in (0.5, 0.99, 0.999))
    return f"p50 {p50:9.2f}  p99 {p99:9.2f}  p99.9 {p999:9.2f}  max {ordered[-1]:9.2f} us  (n={len(ordered)})"


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
