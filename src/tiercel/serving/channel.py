"""The supervisor's line to each of its processes: JSON messages over a socket pair, one a line.

The end of the stream is the news that the other side is gone, however it went.
"""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import socket

#: Unread messages beyond this are not added to: the peer is stuck, and what it misses is said again later.
MAX_PENDING_BYTES = 1 << 20
#: A line longer than this is not one of ours.
MAX_LINE_BYTES = 1 << 20

Message = dict[str, Any]


class Channel:
    """One end.

    Args:
        end: a connected stream socket; owned.
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._in = b""
        self._out = b""
        self.is_open = True

    def fileno(self) -> int:
        """For selectors; -1 once closed."""
        return self._socket.fileno()

    @property
    def wants_write(self) -> bool:
        """Whether something waits for the peer to read."""
        return bool(self._out)

    def send(self, message: Message) -> None:
        """Send as much as goes at once on a non-blocking socket, or all on a blocking one. A lost peer is no error."""
        if len(self._out) < MAX_PENDING_BYTES:
            self._out += json.dumps(message, separators=(",", ":")).encode() + b"\n"
        self.flush()

    def flush(self) -> None:
        """Go on sending."""
        try:
            while self._out and self.is_open:
                self._out = self._out[self._socket.send(self._out) :]
        except BlockingIOError:
            pass
        except OSError:
            self._out = b""  # reading will say that the peer is gone

    def receive(self) -> list[Message]:
        """What arrived; afterwards `is_open` is False if nothing more can."""
        while self.is_open:
            try:
                data = self._socket.recv(65536)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            self._in += data
            if not data or len(self._in) > MAX_LINE_BYTES:
                self.is_open = False
        *lines, self._in = self._in.split(b"\n")
        return [message for line in lines if (message := _parse(line)) is not None]

    def wait(self) -> Message | None:
        """The next message on a blocking socket; None when there will be none. Use before the first `receive`."""
        while b"\n" not in self._in:
            try:
                data = self._socket.recv(65536)
            except OSError:
                data = b""
            if not data:
                self.is_open = False
                return None
            self._in += data
        line, _, self._in = self._in.partition(b"\n")
        return _parse(line)

    def set_blocking(self, blocking: bool) -> None:
        """Start-up waits, what follows does not."""
        self._socket.setblocking(blocking)

    def close(self) -> None:
        """Hang up."""
        self.is_open = False
        self._socket.close()


def _parse(line: bytes) -> Message | None:
    with contextlib.suppress(ValueError):
        message = json.loads(line)
        if isinstance(message, dict):
            return message
    return None
