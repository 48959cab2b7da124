"""llhttp for a server that changes to no other protocol: `Upgrade` is a header like any other (RFC 9110, 7.8).

llhttp takes what stands behind such a head for the other protocol, so the body of a POST that offers h2c, as Java's
HttpClient sends it, would be lost. A second llhttp, told of the same framing, reads it.
"""

from __future__ import annotations

from typing import Protocol

from httptools import HttpParserUpgrade, HttpRequestParser

#: All that decides where a body ends. Values come from the first parser, which lets no line end into them.
_FRAMING = frozenset({b"content-length", b"transfer-encoding"})


class Reader(Protocol):
    """Who is told what was read, beside what llhttp tells of a head.

    `headers` are those of the request, names in lower case. An end of the message while `PlainParser.skipped_body` is
    to be ignored.
    """

    headers: list[tuple[bytes, bytes]]

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header or trailer."""

    def on_body(self, body: bytes) -> None:
        """Part of the body."""

    def on_message_complete(self) -> None:
        """The request is whole."""


class PlainParser(HttpRequestParser):  # type: ignore[misc]  # httptools says nothing of its types to mypy
    """Reads a request that offers another protocol to its end, as HTTP/1.1; nothing may follow it on the connection.

    What follows might be in that protocol, to whoever stands in between: it is an error, as after `Connection: close`.
    CONNECT is left as llhttp has it: what follows it is no HTTP in any case.
    """

    def __init__(self, reader: Reader) -> None:
        super().__init__(reader)
        self._reader = reader
        self._rest: HttpRequestParser | None = None

    @property
    def skipped_body(self) -> bool:
        """Whether the head was of a request that offers another protocol, and its body is still to be read."""
        return self._rest is None and bool(self.should_upgrade()) and self.get_method() != b"CONNECT"

    def feed_data(self, data: bytes) -> None:
        """Read on. Raises as llhttp's."""
        if self._rest is None:
            try:
                super().feed_data(data)
            except HttpParserUpgrade as pause:
                if not self.skipped_body:
                    raise
                data = data[pause.args[0] :]
                self._rest = HttpRequestParser(_Rest(self._reader))
                framing = [b"%b: %b\r\n" % header for header in self._reader.headers if header[0] in _FRAMING]
                self._rest.feed_data(b"POST / HTTP/1.1\r\nConnection: close\r\n%b\r\n" % b"".join(framing))
            else:
                return
        self._rest.feed_data(data)


class _Rest:
    """What the second parser calls: of its head, which is no client's, nobody is told."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._in_head = True
        self.on_body, self.on_message_complete = reader.on_body, reader.on_message_complete

    def on_headers_complete(self) -> None:
        self._in_head = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            self._reader.on_header(name, value)
