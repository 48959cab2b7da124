import asyncio
from typing import Any

from tiercel._hot.fast_path import FastPath
from tiercel._hot.plan import Prepared

class HotProtocol:
    """The asyncio protocol of one connection."""

    path: FastPath
    config: Any
    server_state: Any
    app_state: dict[str, Any]
    loop: asyncio.AbstractEventLoop
    begun_ns: int
    def __init__(
        self, path: FastPath, config: Any, server_state: Any, app_state: dict[str, Any], loop: asyncio.AbstractEventLoop
    ) -> None: ...
    def connection_made(self, transport: asyncio.BaseTransport) -> None: ...
    def data_received(self, data: bytes) -> None: ...
    def eof_received(self) -> bool | None: ...
    def connection_lost(self, exc: Exception | None) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...
    def adopt(self, transport: asyncio.Transport, write_paused: bool) -> None: ...
    def shutdown(self) -> None: ...
    def complete(self, asked: Prepared, scores: Any, error: Exception | None, /) -> None:
        """Answer a question that waited: with its scores, or with `error`."""
    def release(self, held: bytes, refusal: bytes | None, /) -> None:
        """Send the reply that was held, or what refuses it."""
