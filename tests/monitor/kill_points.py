"""Really killed at every step: what a process does to files is done again and again, killed before its first change, its second ...

Run in a process of its own that has no thread, because each try is a fork of it.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import traceback
from typing import TYPE_CHECKING

import duckdb  # noqa: F401 - here, or every fork would import them anew
import pyarrow.dataset
import pyarrow.parquet  # noqa: F401

if TYPE_CHECKING:
    from pathlib import Path

#: What changes a file, or makes a change last.
STEPS = ("open", "write", "fsync", "replace", "unlink", "mkdir", "rmdir", "ftruncate", "rename")
MAX_STEPS = 400


def arm(step: int) -> None:
    """From here on, die like a power cut's process before the change number `step` (from 0)."""
    left = [step]

    def wrapped(name, original):
        def call(*arguments, **named):
            if name != "open" or arguments[1] & (os.O_CREAT | os.O_RDWR):
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1
            return original(*arguments, **named)

        return call

    for name in STEPS:
        setattr(os, name, wrapped(name, getattr(os, name)))


def in_child(act, *arguments) -> int:
    """Call it in a fork; returns how that ended, as `os.waitpid` says it."""
    child = os.fork()
    if child == 0:
        try:
            act(*arguments)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def try_every_step(directory: Path, prepare, act, check_killed, check_recovered) -> int:
    """Make a state, then act on copies of it, killed one step later each time, until it comes to its end.

    Args:
        directory: empty.
        prepare: makes a state in a directory.
        act: what is killed, and then done again.
        check_killed: what must hold after any kill.
        check_recovered: what must hold after it was done again.

    Returns:
        How many steps there were.
    """
    os.fsync = lambda _descriptor: None  # what a kill leaves does not depend on it, and hundreds of them take minutes
    template = directory / "template"
    template.mkdir()
    status = in_child(prepare, template)
    assert status in {0, signal.SIGKILL}, status

    def attempt(place, step):
        arm(step)
        act(place)

    def recover(place):
        check_killed(place)
        act(place)
        check_recovered(place)

    for step in range(MAX_STEPS):
        place = directory / str(step)
        shutil.copytree(template, place)
        status = in_child(attempt, place, step)
        assert status in {0, signal.SIGKILL}, (step, status)
        assert in_child(recover, place) == 0, f"killed before step {step}"
        if status == 0:
            return step
        shutil.rmtree(place)
    raise AssertionError(f"more than {MAX_STEPS} steps")
