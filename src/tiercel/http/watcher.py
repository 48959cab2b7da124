"""The process that watches, as the control process keeps it: always there, started again when it dies, ever later."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from tiercel.http.kept_process import KeptProcess
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

    Threads: the event loop's only.
    """

    def __init__(self, settings: Settings, command: Sequence[str] | None = None) -> None:
        self._is_enabled = settings.monitor.enabled
        self._kept = KeptProcess(
            settings,
            interpreter("tiercel.batch.watcher") if command is None else command,
            name="watching process",
            backoff_s=(FIRST_BACKOFF_S, MAX_BACKOFF_S),
            steady_s=STEADY_S,
            grace_s=STOP_GRACE_S,
        )

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return self._kept.pid

    @property
    def n_restarts(self) -> int:
        """How often it died."""
        return self._kept.n_deaths

    async def keep(self) -> None:
        """Look after it until cancelled; ends it then. Where the settings say so there is none."""
        if not self._is_enabled:
            return
        try:
            while True:
                try:
                    self._kept.reap()
                    if self._kept.is_due:
                        self._kept.start()
                except Exception as error:  # no more processes or memory: the next turn tries again
                    self._kept.back_off()
                    known = isinstance(error, OSError)
                    log.error("Watching cannot be started: %s", error, exc_info=None if known else error)  # noqa: TRY400
                await asyncio.sleep(POLL_S)
        finally:
            await self._kept.stop()
