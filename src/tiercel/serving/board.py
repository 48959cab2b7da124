"""How many connections each worker has, in a few bytes of memory that all of them share.

Workers accept from one socket, and every one of them is woken by every connection. Who runs first takes it, so a burst
of clients may end up on one worker: of 32 connections opened at once one of two workers got between 1 and 31, and kept
them (measured with wrk, uvloop 0.23). libuv has no EPOLLEXCLUSIVE, which would not balance either, and one SO_REUSEPORT
socket a worker would leave connections waiting in the queue of a worker that died. So a worker looks here first, and
leaves a connection to whoever has fewer.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile

_COUNT = struct.Struct("q")
ABSENT = -1  # does not accept


class ConnectionBoard:
    """One number for each worker; each writes its own.

    Args:
        fd: of the shared memory; owned.
        n_workers: how many numbers.
    """

    def __init__(self, fd: int, n_workers: int) -> None:
        self.fd = fd
        self._n_workers = n_workers
        self._memory = mmap.mmap(fd, n_workers * _COUNT.size)

    @classmethod
    def make(cls, n_workers: int) -> ConnectionBoard:
        """A new board on which nobody accepts."""
        with tempfile.TemporaryFile() as file:
            file.truncate(n_workers * _COUNT.size)
            board = cls(os.dup(file.fileno()), n_workers)
        for worker in range(n_workers):
            board.put(worker, ABSENT)
        return board

    def put(self, worker: int, n_connections: int) -> None:
        """Say how many connections a worker has, or ABSENT."""
        _COUNT.pack_into(self._memory, worker * _COUNT.size, n_connections)

    def fewest_elsewhere(self, worker: int) -> int | None:
        """The smallest number of the other workers that accept; None if there is none."""
        counts = (_COUNT.unpack_from(self._memory, i * _COUNT.size)[0] for i in range(self._n_workers) if i != worker)
        return min((count for count in counts if count != ABSENT), default=None)

    def close(self) -> None:
        """Let go of the memory."""
        self._memory.close()
        os.close(self.fd)
