"""Reads the sockets of connections; see poller.pxd. Owner: tiercel.http.native."""

import logging
import os
from contextvars import Context

from libc.errno cimport errno
from libc.stdlib cimport free, malloc
from posix.unistd cimport close

from tiercel._hot.busy_poll cimport BusyPoll
from tiercel._hot.clock cimport monotonic_ns
from tiercel._hot.counters cimport BUSY_POLL_NS, BUSY_POLLS_CAME, BUSY_POLLS_IN_VAIN, WorkerCounters
from tiercel._hot.stamps cimport Stamps
from tiercel._hot.typedefs cimport int64_t, uint8_t

cdef extern from "poller.h" nogil:
    enum:
        TC_MAX_EVENTS
    int tc_poll_open() noexcept
    int tc_poll_add(int set, int fd) noexcept
    void tc_poll_remove(int set, int fd) noexcept
    int tc_poll_ready(int set, int* ready, int at_most) noexcept

log = logging.getLogger("tiercel.http")


cdef class Readable:
    cdef int receive(self, uint8_t* buffer, size_t size) except -1:
        raise NotImplementedError

    cdef int failed(self, error) except -1:
        raise NotImplementedError

    cdef int let_go(self) except -1:
        raise NotImplementedError


cdef class ReadySet:
    def __cinit__(self):
        self.epoll = -1
        self.members = []
        self.epoll = tc_poll_open()
        if self.epoll < 0:
            raise OSError(errno, os.strerror(errno))

    def __dealloc__(self):
        self.close()

    cdef void close(self) noexcept:
        if self.epoll >= 0:
            close(self.epoll)
        self.epoll = -1

    cdef int add(self, int fd, member) except -1:
        while len(self.members) <= fd:
            self.members.append(None)
        if tc_poll_add(self.epoll, fd) != 0:
            raise OSError(errno, os.strerror(errno))
        self.members[fd] = member
        return 0

    cdef bint remove(self, int fd, member) except -1:
        if not (0 <= fd < len(self.members) and self.members[fd] == member):
            return False
        self.members[fd] = None
        tc_poll_remove(self.epoll, fd)
        return True


cdef class Poller:
    def __cinit__(self, loop, int64_t busy_poll_ns, WorkerCounters counters not None):
        self.loop, self.stamps, self._first, self._later = loop, Stamps(), ReadySet(), ReadySet()
        self.busy_poll, self._counters = BusyPoll(busy_poll_ns), counters
        self._buffer = <uint8_t*>malloc(READ_BYTES)
        if self._buffer is NULL:
            raise MemoryError("No memory to read into")

    def __dealloc__(self):
        free(self._buffer)

    def __len__(self):
        return sum(isinstance(member, Readable) for member in self._first.members + self._later.members)

    @property
    def n_later(self):
        """How many of them are read after the others."""
        return sum(isinstance(member, Readable) for member in self._later.members)

    def open(self):
        """Have the loop watch it, in a context of its own: that of whoever comes first is not the others'."""
        self._first.add(self._later.epoll, self._later)
        Context().run(self.loop.add_reader, self._first.epoll, self._on_ready)

    def close(self):
        """Read nothing more; whoever was read here is let go."""
        members = self._first.members + self._later.members
        self._first.members, self._later.members = [], []
        if self._first.epoll < 0:
            return
        if not self.loop.is_closed():
            self.loop.remove_reader(self._first.epoll)
            for member in members:
                if isinstance(member, Readable):
                    (<Readable>member).let_go()
        self._first.close()
        self._later.close()

    cdef int add(self, int fd, member, bint later) except -1:
        return (self._later if later else self._first).add(fd, member)

    cdef bint remove(self, int fd, member) except -1:
        return self._first.remove(fd, member) or self._later.remove(fd, member)

    def _on_ready(self):
        cdef int ready[TC_MAX_EVENTS]
        cdef int i, n
        cdef int64_t until_ns = monotonic_ns() + TURN_NS
        self._is_reading, self.leaves_work = True, False
        try:
            while not self._read_first(TC_MAX_EVENTS):
                if not self._has_come(until_ns):
                    return
            n = tc_poll_ready(self._later.epoll, ready, TC_MAX_EVENTS)
            self._n_read = 0
            for i in range(n):
                if i > 0 and i % LATER_AT_ONCE == 0:
                    self._read_first(FIRST_BETWEEN)
                    if self._n_read >= TC_MAX_EVENTS:
                        break       # the event loop has others to look after; who is left is ready in the next turn
                self._read_one(self._later, ready[i])
        finally:
            self._is_reading = False

    cdef bint _has_come(self, int64_t until_ns) except -1:
        """Wait awake for whoever comes next, where that is worth it; whether somebody has."""
        cdef int ready[1]
        cdef int n = 0, epoll = self._first.epoll
        cdef bint in_time
        cdef int64_t now_ns = monotonic_ns(), began_ns = now_ns
        if self.leaves_work or now_ns >= until_ns or not self.busy_poll.tries():
            return False
        until_ns = now_ns + self.busy_poll.longest_ns
        with nogil:
            while n == 0 and now_ns < until_ns:
                n = tc_poll_ready(epoll, ready, 1)
                now_ns = monotonic_ns()
        self._counters.cells[<int>BUSY_POLL_NS] += min(now_ns - began_ns, self.busy_poll.longest_ns)    # else it did not run
        if n > 0 and ready[0] == self._later.epoll:
            return True     # those who can wait, or the probe among them, were not waited for
        # Whoever took the core from this thread meanwhile needs it more: what came then was not worth waiting for.
        in_time = n > 0 and now_ns < until_ns
        self.busy_poll.tried(in_time)
        self._counters.cells[<int>BUSY_POLLS_CAME if in_time else <int>BUSY_POLLS_IN_VAIN] += 1
        return n > 0

    cdef int read_between(self) except -1:
        if self._is_reading:    # what was read is still in the buffer
            return 0
        self._is_reading = True
        try:
            self._read_first(FIRST_BETWEEN)
        finally:
            self._is_reading = False
        return 0

    cdef bint _read_first(self, int at_most) except -1:
        """Read so many of those that are not read later; whether any of the others is ready."""
        cdef int ready[TC_MAX_EVENTS]
        cdef int i, n = tc_poll_ready(self._first.epoll, ready, at_most), later = self._later.epoll
        cdef bint are_others_ready = False
        for i in range(n):
            if ready[i] == later:
                are_others_ready = True
            else:
                self._read_one(self._first, ready[i])
        return are_others_ready

    cdef int _read_one(self, ReadySet among, int fd) except -1:
        self._n_read = self._n_read + 1
        # One that was read before may have closed this one's connection, or the whole poller.
        member = among.members[fd] if fd < len(among.members) else None
        try:
            if isinstance(member, Readable):
                (<Readable>member).receive(self._buffer, READ_BYTES)
            elif member is not None:
                member()
        except Exception as error:      # the others are read all the same
            self.leaves_work = True
            if isinstance(member, Readable):
                (<Readable>member).failed(error)
            else:
                self.remove(fd, member)
                self.loop.call_exception_handler({"message": "What a poller calls failed", "exception": error})
        return 0


cdef Poller open_poller(loop, int64_t busy_poll_ns, WorkerCounters counters):
    cdef Poller poller
    try:
        poller = Poller(loop, busy_poll_ns, counters)
        poller.open()
    except OSError as error:
        log.debug("Connections are read by the event loop's transports: %s", error)
        return None
    return poller
