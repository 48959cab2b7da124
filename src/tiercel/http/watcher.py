"""The process that watches, as the control process keeps it: always there, started again when it dies, ever later."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import subprocess
import time
from typing import TYPE_CHECKING

from tiercel.serving.handover import RunnerHandover
from tiercel.serving.processes import interpreter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tiercel.settings import Settings

log = logging.getLogger("tiercel.http")

POLL_S = 0.5
FIRST_BACKOFF_S, MAX_BACKOFF_S = 0.5, 60.0
#: One that lived this long has shown that it works: its next death is a first one again.
STEADY_S = 300.0
STOP_GRACE_S = 4.0


class Watcher:
    """Keeps the watching process alive.

    Args:
        settings: the project, handed to it.
        command: what to run.

    Attributes:
        n_restarts: how often it died.

    Threads: the event loop's only.
    """

    def __init__(self, settings: Settings, command: Sequence[str] | None = None) -> None:
        self._settings = settings
        self._command = interpreter("tiercel.batch.watcher") if command is None else list(command)
        self._process: subprocess.Popen[bytes] | None = None
        self._started_s = 0.0
        self._restart_s = 0.0
        self._n_failures = 0
        self.n_restarts = 0

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return None if self._process is None else self._process.pid

    async def keep(self) -> None:
        """Look after it until cancelled; ends it then. Where the settings say so there is none."""
        if not self._settings.monitor.enabled:
            return
        try:
            while True:
                try:
                    self._reap()
                    if self._process is None and time.monotonic() >= self._restart_s:
                        self._start()
                except Exception as error:  # no more processes or memory: the next turn tries again
                    self._back_off()
                    known = isinstance(error, OSError)
                    log.error("Watching cannot be started: %s", error, exc_info=None if known else error)  # noqa: TRY400
                await asyncio.sleep(POLL_S)
        finally:
            await self._stop()

    def _start(self) -> None:
        message = RunnerHandover(self._settings, log.isEnabledFor(logging.INFO)).to_message()
        # A session of its own: what a terminal sends to the server's process group is the supervisor's business.
        process = subprocess.Popen(self._command, stdin=subprocess.PIPE, start_new_session=True)  # noqa: S603 - our own module
        self._process, self._started_s = process, time.monotonic()
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # it died at once; that is seen to in the next turn
                process.stdin.write(json.dumps(message).encode() + b"\n")
                process.stdin.flush()  # and stays open: its end tells the process that this one is gone

    def _reap(self) -> None:
        process = self._process
        if process is None or (status := process.poll()) is None:
            return
        self._forget(process)
        self.n_restarts += 1
        if time.monotonic() - self._started_s >= STEADY_S:
            self._n_failures = 0
        wait_s = self._back_off()
        log.error("The watching process (pid %d) ended with status %d; again in %.1f s", process.pid, status, wait_s)

    def _back_off(self) -> float:
        self._n_failures += 1
        wait_s = min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** (self._n_failures - 1))
        self._restart_s = time.monotonic() + wait_s
        return wait_s

    async def _stop(self) -> None:
        process = self._process
        if process is None:
            return
        process.terminate()
        try:
            await asyncio.to_thread(process.wait, STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            await asyncio.to_thread(process.wait)
        self._forget(process)

    def _forget(self, process: subprocess.Popen[bytes]) -> None:
        self._process = None
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
