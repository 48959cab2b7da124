"""Instructions per request, where Linux's perf may count them: the one figure that a busy machine hardly moves."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Callable

from benchmarks.contenders.process import tree

ATTACH_S = 0.3  # perf says nothing when it has attached


def available() -> bool:
    """Whether perf is installed and may count."""
    if shutil.which("perf") is None:
        return False
    done = subprocess.run(
        ["perf", "stat", "-x,", "-e", "instructions:u,instructions:k", "true"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode == 0 and not {"<not supported>", "<not counted>"} & set(
        done.stderr.replace("\n", ",").split(",")
    )


def count(root: int, load: Callable[[], int]) -> dict[str, float] | None:
    """Instructions of the process tree for each of the requests that `load()` says it made, in user mode and in the kernel.

    None: perf could not attach.
    """
    command = ["perf", "stat", "-x,", "-e", "instructions:u,instructions:k", "-p", ",".join(map(str, tree(root)))]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    time.sleep(ATTACH_S)
    try:
        n = load()
    finally:
        process.send_signal(signal.SIGINT)
        said = process.communicate()[1]
    found = {}
    for line in said.splitlines():
        value, _, rest = line.partition(",")
        for mode, name in (("u", "user"), ("k", "kernel")):
            if f"instructions:{mode}" in rest and value.isdigit():
                found[name] = int(value) / max(1, n)
    return found if len(found) == 2 else None
