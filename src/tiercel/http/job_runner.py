"""The process that runs batch jobs, as the control process keeps it: there when there is work, gone when there is none."""

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

    from tiercel.serving.jobs import JobStore
    from tiercel.settings import Settings

log = logging.getLogger("tiercel.http")

POLL_S = 0.5
FIRST_BACKOFF_S, MAX_BACKOFF_S = 0.1, 5.0
#: One that lived this long has shown that it works: its next death is a first one again.
STEADY_S = 10.0
#: What a runner gets to give its job back. It is killed then, and the job starts again all the same.
STOP_GRACE_S = 3.0
TIDY_INTERVAL_S = 60.0


class JobRunner:
    """Starts the runner when a job waits, again when it dies, ever later; and removes finished jobs when their time is over.

    Args:
        settings: the project, handed to the runner.
        store: of its jobs.
        command: what to run.

    Threads: the event loop's only.
    """

    def __init__(self, settings: Settings, store: JobStore, command: Sequence[str] | None = None) -> None:
        self._settings = settings
        self._store = store
        self._command = interpreter("tiercel.batch.runner") if command is None else list(command)
        self._process: subprocess.Popen[bytes] | None = None
        self._started_s = 0.0
        self._n_failures = 0
        self._restart_s = 0.0

    @property
    def pid(self) -> int | None:
        """Of the runner, while there is one."""
        return None if self._process is None else self._process.pid

    async def keep(self) -> None:
        """Look after it until cancelled; ends it then."""
        tidied_s = -TIDY_INTERVAL_S
        try:
            while True:
                try:
                    self._reap()
                    if self._process is None and time.monotonic() >= self._restart_s:
                        waiting = await asyncio.to_thread(self._store.open_jobs)
                        if waiting:
                            self._start()
                    if time.monotonic() - tidied_s >= TIDY_INTERVAL_S:
                        tidied_s = time.monotonic()
                        await asyncio.to_thread(self._store.tidy)
                except Exception as error:  # a full disk, no more processes: the next turn tries again
                    self._back_off()
                    known = isinstance(error, OSError)
                    log.error("Batch jobs cannot be looked after: %s", error, exc_info=None if known else error)  # noqa: TRY400
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
                process.stdin.flush()  # and stays open: its end tells the runner that this process is gone

    def _reap(self) -> None:
        process = self._process
        if process is None or (status := process.poll()) is None:
            return
        self._forget(process)
        if status == 0:  # nothing was left to do
            self._n_failures = 0
            return
        if time.monotonic() - self._started_s >= STEADY_S:
            self._n_failures = 0
        wait_s = self._back_off()
        log.error("The batch runner (pid %d) ended with status %d; again in %.1f s", process.pid, status, wait_s)

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
