"""A process that computes all the time on the core of the server under test."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_SPIN = """
import os, sys
from tiercel import priority
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {int(sys.argv[1])})
%s
print("begun", flush=True)
n = 0
while True:
    n += sum(range(1000))
"""


@contextlib.contextmanager
def spinning(how: str | None) -> Iterator[None]:
    """It computes on the first core, where the server is, until the block ends.

    Args:
        how: a statement that it begins with, which may ask for a priority; None: there is no such process.
    """
    if how is None:
        yield
        return
    core = min(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    command = [sys.executable, "-c", _SPIN % how, str(core)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            if process.stdout is None or process.stdout.readline() != b"begun\n":
                raise RuntimeError(f"Expected the neighbour to begin, got none (exit status {process.poll()})")
            yield
        finally:
            process.kill()
