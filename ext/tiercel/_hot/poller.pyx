"""Reads the sockets of connections; see poller.pxd. Owner: tiercel.http.native."""

import logging
import os
from contextvars import Context

from libc.errno cimport errno
from libc.stdlib cimport free, malloc
from posix.unistd cimport close

from tiercel._hot.typedefs cimport uint8_t

cdef extern from "poller.h" nogil:
    enum:
        TC_MAX_EVENTS
    int tc_poll_open() noexcept
    int tc_poll_add(int set, int fd) noexcept
    void tc_poll_remove(int set, int fd) noexcept
    int tc_poll_ready(int set, int* ready) noexcept

log = logging.getLogger("tiercel.http")


cdef class Readable:
    cdef int receive(self, uint8_t* buffer, size_t size) except -1:
        raise NotImplementedError

    cdef int failed(self, error) except -1:
        raise NotImplementedError

    cdef int let_go(self) except -1:
        raise NotImplementedError


cdef class Poller:
    def __cinit__(self, loop):
        self._epoll = -1
        self.loop, self._members = loop, []
        self._buffer = <uint8_t*>malloc(READ_BYTES)
        if self._buffer is NULL:
            raise MemoryError("No memory to read into")
        self._epoll = tc_poll_open()
        if self._epoll < 0:
            raise OSError(errno, os.strerror(errno))

    def __dealloc__(self):
        free(self._buffer)
        if self._epoll >= 0:
            close(self._epoll)

    def __len__(self):
        return sum(isinstance(member, Readable) for member in self._members)

    def open(self):
        """Have the loop watch it, in a context of its own: that of whoever comes first is not the others'."""
        Context().run(self.loop.add_reader, self._epoll, self._on_ready)

    def close(self):
        """Read nothing more; whoever was read here is let go."""
        members, self._members = self._members, []
        if self._epoll < 0:
            return
        if not self.loop.is_closed():
            self.loop.remove_reader(self._epoll)
            for member in members:
                if isinstance(member, Readable):
                    (<Readable>member).let_go()
        close(self._epoll)
        self._epoll = -1

    cdef int add(self, int fd, member) except -1:
        while len(self._members) <= fd:
            self._members.append(None)
        if tc_poll_add(self._epoll, fd) != 0:
            raise OSError(errno, os.strerror(errno))
        self._members[fd] = member
        return 0

    cdef bint remove(self, int fd, member) except -1:
        if not (0 <= fd < len(self._members) and self._members[fd] == member):
            return False
        self._members[fd] = None
        tc_poll_remove(self._epoll, fd)
        return True

    def _on_ready(self):
        cdef int ready[TC_MAX_EVENTS]
        cdef int i, n = tc_poll_ready(self._epoll, ready)
        for i in range(n):
            # One that was read before may have closed this one's connection, or the whole poller.
            member = self._members[ready[i]] if ready[i] < len(self._members) else None
            try:
                if isinstance(member, Readable):
                    (<Readable>member).receive(self._buffer, READ_BYTES)
                elif member is not None:
                    member()
            except Exception as error:      # the others are read all the same
                if isinstance(member, Readable):
                    (<Readable>member).failed(error)
                else:
                    self.remove(ready[i], member)
                    self.loop.call_exception_handler({"message": "What a poller calls failed", "exception": error})


cdef Poller open_poller(loop):
    cdef Poller poller
    try:
        poller = Poller(loop)
        poller.open()
    except OSError as error:
        log.debug("Connections are read by the event loop's transports: %s", error)
        return None
    return poller
