"""A child process of the control process: handed its settings, started again when it dies, ever later, ended with it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import subprocess
import time
from typing import TYPE_CHECKING

from tiercel.serving.handover import RunnerHandover

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tiercel.settings import Settings

log = logging.getLogger("tiercel.http")


class KeptProcess:
    """At most one process at a time; whoever keeps it calls `reap` and `start` in turns, and `stop` in the end.

    Args:
        settings: the project, handed to it.
        command: what to run.
        name: for the log.
        backoff_s: the first and the longest wait before it is started again.
        steady_s: one that lived this long has shown that it works: its next death is a first one again.
        grace_s: what it gets to end by itself.
        may_finish: whether ending with status 0 is no failure.

    Attributes:
        n_deaths: how often it failed.

    Threads: the event loop's only.
    """

    def __init__(
        self,
        settings: Settings,
        command: Sequence[str],
        *,
        name: str,
        backoff_s: tuple[float, float],
        steady_s: float,
        grace_s: float,
        may_finish: bool = False,
    ) -> None:
        self._settings, self._command, self._name = settings, list(command), name
        self._backoff_s, self._steady_s, self._grace_s = backoff_s, steady_s, grace_s
        self._may_finish = may_finish
        self.process: subprocess.Popen[bytes] | None = None
        self._started_s = 0.0
        self._restart_s = 0.0
        self.n_failures = 0
        self.n_deaths = 0

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return None if self.process is None else self.process.pid

    @property
    def is_due(self) -> bool:
        """Whether there is none and one may be started."""
        return self.process is None and time.monotonic() >= self._restart_s

    def start(self) -> None:
        """Start one. Raises OSError: no more processes or memory."""
        message = RunnerHandover(self._settings, log.isEnabledFor(logging.INFO)).to_message()
        # A group of its own: what a terminal sends to the server's process group is the supervisor's business. Not a session:
        # Linux shares a core between sessions first, and how far a process stands back counts only inside its own.
        process = subprocess.Popen(self._command, stdin=subprocess.PIPE, process_group=0)  # noqa: S603 - our own module
        self.process, self._started_s = process, time.monotonic()
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # it died at once; that is seen to in the next turn
                process.stdin.write(json.dumps(message).encode() + b"\n")
                process.stdin.flush()  # and stays open: its end tells the process that this one is gone

    def reap(self) -> None:
        """Notice that it ended."""
        process = self.process
        if process is None or (status := process.poll()) is None:
            return
        self._forget(process)
        if status == 0 and self._may_finish:
            self.n_failures = 0
            return
        self.n_deaths += 1
        if time.monotonic() - self._started_s >= self._steady_s:
            self.n_failures = 0
        wait_s = self.back_off()
        log.error("The %s (pid %d) ended with status %d; again in %.1f s", self._name, process.pid, status, wait_s)

    def back_off(self) -> float:
        """Start none for a while, longer with each failure; returns how long."""
        self.n_failures += 1
        first_s, longest_s = self._backoff_s
        wait_s = min(longest_s, first_s * 2.0 ** (self.n_failures - 1))
        self._restart_s = time.monotonic() + wait_s
        return wait_s

    async def stop(self) -> None:
        """Have it end; killed when its grace is over."""
        process = self.process
        if process is None:
            return
        process.terminate()
        try:
            await asyncio.to_thread(process.wait, self._grace_s)
        except subprocess.TimeoutExpired:
            process.kill()
            await asyncio.to_thread(process.wait)
        self._forget(process)

    def _forget(self, process: subprocess.Popen[bytes]) -> None:
        self.process = None
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
