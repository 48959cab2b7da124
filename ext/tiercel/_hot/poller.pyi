import asyncio

from tiercel._hot.busy_poll import BusyPoll
from tiercel._hot.counters import WorkerCounters

class Readable:
    """What a poller can tell that its socket is to be read."""

class Poller:
    """Reads the sockets of connections on one event loop."""

    loop: asyncio.AbstractEventLoop
    busy_poll: BusyPoll
    def __init__(self, loop: asyncio.AbstractEventLoop, busy_poll_ns: int, counters: WorkerCounters) -> None:
        """busy_poll_ns: how long to wait awake for the next request, at most; 0: not at all. counters: of such waits."""

    def __len__(self) -> int:
        """How many connections it reads."""
    @property
    def n_later(self) -> int:
        """How many of them are read after the others."""

    def open(self) -> None: ...
    def close(self) -> None:
        """Read nothing more; connections are read by their transports again."""
