"""uvicorn's protocol for the admin port, where an offer of another protocol is a header like any other."""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tiercel.http.plain_parser import PlainParser


class AdminProtocol(HttpToolsProtocol):
    """Reads requests with `PlainParser`; a connection on which another protocol was offered ends with the reply.

    Args:
        **uvicorn: what uvicorn gives its protocols.
    """

    def __init__(self, **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self.parser = PlainParser(self)
        # As uvicorn has it: who says `close` and sends more is answered, and not told that the rest is malformed.
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

    def on_headers_complete(self) -> None:
        """What follows a request to change protocols may be in that protocol: no other request is read."""
        super().on_headers_complete()
        if self.parser.should_upgrade():
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        """Note that the body is whole."""
        if not self.parser.skipped_body:
            super().on_message_complete()
