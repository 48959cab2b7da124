# aside.pxd - overload of the event loop: whose requests are refused though they could be answered, and who is read later.
#
# Requests that come faster than they can be answered wait in their sockets, and reading one only to refuse it costs nearly
# as much as a quick answer (which is therefore given: needs.pxd). So two things keep the core for those who are answered in
# time. Where reading is behind by more than a part of the deadlines that requests name lately, just so many are refused as
# keep it there, and nearly all queued ones where inline ones would be late soon. Queued ones may wait unread for most of
# their deadline: batches are read about as fast as they are answered, so little of it is needed for the queue, and thousands
# of connections are answered each in its turn, where a quarter of the deadline had half of them refused for nothing
# (bench_overload). And a connection whose request was refused is not read again at once, where that happens more often than
# once in READS_EACH requests. It stands in a line with the others and is read in its turn, one for as many requests that are
# read, and one each SLOW_NS in any case, QUICK_NS where reading is not behind. Until then its next request waits in the
# socket, which costs nothing; how long it did is asked of the kernel (protocol.pyx). Whoever asks on at once may so wait for
# its next refusal as long as Retry-After told it to. While others are answered inline nobody stands in line: whatever comes
# on a connection waits with it, and for a request of a few milliseconds that is too long (bench_overload). But where reading
# itself takes most of an inline request's deadline, those who are read at once are late too: with thousands of connections
# all of them would be read in turn, and each refused. Then who was refused stands in line, so that the others are in time. A
# connection that is read last (poller.pxd) asks queued models alone and keeps no inline request from being read: for it none
# of that counts.
#
# Owns   : the line, and its timer. Keeps connections alive that stand in it.
# GIL    : held throughout.
# Threads: all calls on the thread of the event loop.
from tiercel._hot.typedefs cimport int64_t

cdef enum:
    READS_EACH = 32
    SLOW_NS = 2_000_000
    QUICK_NS = 20_000
    BURST = 64                          # so many refusals at once are nothing
    QUIET_NS = 1_000_000                # reading is not behind
    RECENT_NS = 1_000_000_000           # deadlines named longer ago count no more
    INLINE_PART = 4                     # of an inline request's deadline it may wait unread
    QUEUED_PERCENT = 66                 # of a queued one's, if that leaves twice what its model needs
    QUEUED_PART = 4                     # ... and so much of it in any case
    BOTH_PART = 8                       # ... of an inline one's, where a queued one is refused for it
    LATE_PERCENT = 75                   # of an inline request's deadline: read so late, it is nearly lost
    LATE_NS = 7_500_000                 # less is not late: one client's tighter deadline makes nobody else wait in line


cdef class Aside:
    cdef object _line, _loop, _timer
    cdef double _allowed, _due          # refusals that cost no place in the line; those who may come back
    cdef public int64_t inline_ns              # of the monotonic clock: when somebody was answered inline
    cdef public int64_t n_read                 # requests since the last poll, or since there was nothing to look after
    cdef double _debt[2]                # refusals that are due; by whether it is a queued request
    cdef int64_t _tightest_ns[2]        # the tightest deadline lately, 0: none; of queued requests, what they may wait unread
    cdef int64_t _tightest_at_ns[2]
    cdef int64_t _wait_ns, _polled_ns

    # A request was given so much time, of which its model needs `needed_ns`.
    cpdef void note(self, bint is_queued, int64_t budget_ns, int64_t now_ns, int64_t needed_ns=*) noexcept
    # Somebody was answered inline; budget_ns <= 0: without a deadline.
    cdef void note_inline(self, int64_t budget_ns, int64_t now_ns) noexcept
    # Whether a request that was read after `wait_ns` in its socket is to be refused, if it has a deadline.
    cpdef bint sheds(self, bint is_queued, int64_t wait_ns, int64_t now_ns, bint is_read_last=*) noexcept
    # A request was refused: whether its connection has to stand in line; `wait_ns` is how far behind reading is.
    cpdef bint is_too_much(self, int64_t now_ns, int64_t wait_ns, bint is_read_last=*) noexcept
    # Stand in line: `connection.come_back()` is called once.
    cpdef int add(self, connection, loop) except -1
    # Call back whose turn it is; `wait_ns` is how far behind reading is.
    cpdef int poll(self, int64_t now_ns, int64_t wait_ns) except -1
