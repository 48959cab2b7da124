"""How long a request waits in its socket before this worker reads it.

The kernel says when bytes came only to who reads them, and of a connection's first not even then (`tiercel._hot.stamps`). So
that it is known before, a byte of our own is sent after them: it stands behind every socket that is ready, in the list of the
poller that reads them (`epoll` hands out ready descriptors first come, first served), among those that it reads last. So it
takes as long as a near-realtime request that comes at the same moment, and no shorter than a realtime one. One is on its way at
a time, and only while requests are read: an idle server sends none, but one after a long wait, which shows whether it is over.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from tiercel._hot.fast_path import FastPath

#: No more often than this.
PERIOD_NS = 1_000_000
#: What was measured longer ago says nothing.
STALE_NS = 10_000_000


class SocketWait:
    """Measures it, told by `probe` that requests are read.

    Args:
        loop: that reads them.
        reader: watches sockets as those of connections are watched; default: the loop itself.
        clock_ns: monotonic.

    Attributes:
        peak_ns: about the longest of the last 64 waits.

    Threads: the event loop's only.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        reader: FastPath | None = None,
    ) -> None:
        self._loop, self._clock_ns, self._reader = loop, clock_ns, reader
        self._sender, self._receiver = socket.socketpair()
        self._sender.setblocking(False)
        self._receiver.setblocking(False)
        self._sent_ns = self._seen_ns = self._last_ns = 0
        self.peak_ns = 0
        if reader is None:
            loop.add_reader(self._receiver, self._seen)
        else:
            reader.watch(loop, self._receiver.fileno(), self._seen)

    def probe(self) -> int:
        """What a request that is read now has waited, in nanoseconds, as far as known."""
        now_ns = self._clock_ns()
        if self._sent_ns:
            return max(self._last_ns, now_ns - self._sent_ns)
        since_ns = now_ns - self._seen_ns
        if since_ns > STALE_NS + self._last_ns:
            self._last_ns = 0
        if since_ns >= PERIOD_NS:
            self._send(now_ns)
        return self._last_ns

    def _send(self, now_ns: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._sender.fileno(), b"?")
            self._sent_ns = now_ns

    def close(self) -> None:
        """End it."""
        with contextlib.suppress(RuntimeError):  # the loop is closed already
            if self._reader is None:
                self._loop.remove_reader(self._receiver)
            else:
                self._reader.unwatch(self._loop, self._receiver.fileno(), self._seen)
        self._sender.close()
        self._receiver.close()

    def _seen(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._receiver.recv(64)
        self._seen_ns = self._clock_ns()
        self._last_ns, self._sent_ns = self._seen_ns - self._sent_ns, 0
        self.peak_ns = max(self._last_ns, self.peak_ns - self.peak_ns // 64)
        if self._last_ns > PERIOD_NS:
            # A stall that is over is nobody's wait any more. In a backlog this one comes back as late.
            self._send(self._seen_ns)
