"""The process that runs batch jobs, as the control process keeps it: there when there is work, gone when there is none."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from tiercel.http.kept_process import KeptProcess
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
        self._store = store
        self._kept = KeptProcess(
            settings,
            interpreter("tiercel.batch.runner") if command is None else command,
            name="batch runner",
            backoff_s=(FIRST_BACKOFF_S, MAX_BACKOFF_S),
            steady_s=STEADY_S,
            grace_s=STOP_GRACE_S,
            may_finish=True,
        )

    @property
    def pid(self) -> int | None:
        """Of the runner, while there is one."""
        return self._kept.pid

    async def keep(self) -> None:
        """Look after it until cancelled; ends it then."""
        tidied_s = -TIDY_INTERVAL_S
        try:
            while True:
                try:
                    self._kept.reap()
                    if self._kept.is_due:
                        waiting = await asyncio.to_thread(self._store.open_jobs)
                        if waiting:
                            self._kept.start()
                    if time.monotonic() - tidied_s >= TIDY_INTERVAL_S:
                        tidied_s = time.monotonic()
                        await asyncio.to_thread(self._store.tidy)
                except Exception as error:  # a full disk, no more processes: the next turn tries again
                    self._kept.back_off()
                    known = isinstance(error, OSError)
                    log.error("Batch jobs cannot be looked after: %s", error, exc_info=None if known else error)  # noqa: TRY400
                await asyncio.sleep(POLL_S)
        finally:
            await self._kept.stop()
