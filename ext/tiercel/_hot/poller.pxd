# poller.pxd - the sockets of many connections, watched and read without the event loop's transports.
#
# A transport reads for each request with a turn through the loop's machinery, a context and a bytes object: a twelfth of what
# a prediction takes (bench_http, 9.5 us of CPU without and 10.3 with). Here the loop watches one descriptor for all: an epoll
# set of our own. Its turn reads every socket that is ready, each once, in the order in which they became so, into one buffer.
#
# Those who can wait stand in a second set, which stands in the first: they are read last, and after each few of them whoever
# of the others has become ready meanwhile. A connection that asks near-realtime models alone is one of them, so that a full
# near-realtime tier holds a realtime request up for a few reads and not for a whole turn (bench_tiers).
#
# After those who cannot wait the turn waits awake for a moment for whoever comes next, where `busy_poll` finds that worth it: a
# client that asks by itself, from the same host, is answered in two thirds of the time (bench_http, c=1). It does not wait in a
# turn that left something to the event loop - a batch to start, a connection of the general path's, a reply that the socket did
# not take - nor after those who can wait, whose batches want the core. What other threads and timers call on the loop meanwhile
# comes after the turn: TURN_NS, one wait and what came in it later at most.
#
# Owns   : the epoll sets and the buffer; a reference to each member.
# Lends  : the buffer, to receive() for the call.
# GIL    : held, but for waiting awake.
# Threads: the event loop's only.
from tiercel._hot.busy_poll cimport BusyPoll
from tiercel._hot.counters cimport WorkerCounters
from tiercel._hot.stamps cimport Stamps
from tiercel._hot.typedefs cimport int64_t, uint8_t

cdef enum:
    READ_BYTES = 262144         # what one read brings at most
    LATER_AT_ONCE = 16          # of those who can wait, until the others are looked at again
    FIRST_BETWEEN = 64          # of the others, so that those who can wait have their share
    TURN_NS = 250_000           # then nothing more is waited for: the event loop has others to look after


# What can be told that its socket is to be read.
cdef class Readable:
    # Read it once, into `buffer`, without waiting. What this raises is given to failed().
    cdef int receive(self, uint8_t* buffer, size_t size) except -1
    cdef int failed(self, error) except -1
    # The poller reads nothing more: somebody else is to.
    cdef int let_go(self) except -1


# Sockets that are watched, and whose they are.
cdef class ReadySet:
    cdef int epoll              # -1: closed
    cdef list members           # by descriptor: a Readable, a callable, or None

    cdef int add(self, int fd, member) except -1
    cdef bint remove(self, int fd, member) except -1
    cdef void close(self) noexcept


cdef class Poller:
    cdef readonly object loop
    cdef readonly BusyPoll busy_poll
    cdef Stamps stamps                  # of what the members read
    cdef WorkerCounters _counters       # of waiting awake
    cdef ReadySet _first, _later        # `_later` is a member of `_first`
    cdef uint8_t* _buffer
    cdef bint _is_reading
    cdef bint leaves_work               # set by a member that was read in this turn: the event loop has something to do for it
    cdef int _n_read                    # since a turn came to those who can wait: it has an end, too

    # Tell `member` - call it, if it is none of ours - whenever `fd` can be read, until it is removed; after the others, where
    # it can wait. A descriptor that was closed meanwhile, and is another socket's now, is that one's. Raises OSError.
    cdef int add(self, int fd, member, bint later) except -1
    # Whether `fd` was this member's.
    cdef bint remove(self, int fd, member) except -1
    # In the middle of something longer: read who cannot wait. Nothing, in the middle of reading.
    cdef int read_between(self) except -1
    cdef bint _has_come(self, int64_t until_ns) except -1
    cdef bint _read_first(self, int at_most) except -1
    cdef int _read_one(self, ReadySet among, int fd) except -1


# The poller of a loop, which waits awake for so long at most and counts that; None where the system has none to give: its
# transports read.
cdef Poller open_poller(loop, int64_t busy_poll_ns, WorkerCounters counters)
