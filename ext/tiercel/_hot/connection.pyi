import asyncio
from typing import Any

from tiercel._hot.fast_path import FastPath
from tiercel._hot.poller import Readable

class Connection(Readable):
    """A client's connection apart from what is said on it."""

    path: FastPath
    config: Any
    server_state: Any
    app_state: dict[str, Any]
    loop: asyncio.AbstractEventLoop
    def __init__(
        self, path: FastPath, config: Any, server_state: Any, app_state: dict[str, Any], loop: asyncio.AbstractEventLoop
    ) -> None: ...
    @property
    def is_polled(self) -> bool:
        """Whether the poller reads it when it is read, not its transport."""
    def data_received(self, data: bytes) -> None: ...
