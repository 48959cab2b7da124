"""Virtual environments of the peers: made on demand in a cache directory, one for each set of pinned requirements."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path


class InstallError(Exception):
    """A peer's requirements could not be installed; the text is what pip said last."""


def default_cache() -> Path:
    """Where environments and compiled parts are kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tiercel-bench"


def directory(cache: Path, name: str, requirements: tuple[str, ...]) -> Path:
    """The environment's place: other requirements, or another Python, make another environment."""
    digest = hashlib.sha256("\n".join((sys.version, *requirements)).encode()).hexdigest()[:12]
    return cache / "environments" / f"{name}-{digest}"


def ensure(cache: Path, name: str, requirements: tuple[str, ...]) -> Path:
    """The interpreter of the environment, installed first if it is not there yet.

    Raises:
        InstallError: pip or venv failed. Nothing half-made is left behind.
    """
    home = directory(cache, name, requirements)
    python = home / "bin" / "python"
    if (home / "versions.json").exists():
        return python
    shutil.rmtree(home, ignore_errors=True)
    home.parent.mkdir(parents=True, exist_ok=True)
    try:
        _run([sys.executable, "-m", "venv", str(home)])
        _run([str(python), "-m", "pip", "install", "--quiet", *requirements])
        listed = json.loads(_run([str(python), "-m", "pip", "list", "--format=json"]))
    except InstallError:
        shutil.rmtree(home, ignore_errors=True)
        raise
    versions = {package["name"].lower(): package["version"] for package in listed}
    (home / "versions.json").write_text(json.dumps(versions, indent=1))
    return python


def versions(cache: Path, name: str, requirements: tuple[str, ...]) -> dict[str, str]:
    """What is installed there: every package, in lower case, with its version."""
    return json.loads((directory(cache, name, requirements) / "versions.json").read_text())


def _run(command: list[str]) -> str:
    nice = ["nice", "-n", "10"] if shutil.which("nice") else []
    done = subprocess.run([*nice, *command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise InstallError(said[-1] if said else f"{command[0]} ended with status {done.returncode}")
    return done.stdout
