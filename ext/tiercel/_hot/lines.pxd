# lines.pxd - who waits in one near-realtime queue, in three lines by earliest deadline, and what every request goes through.
#
# The queue itself is serving/near_realtime.py. Here is what it does for each request and not for each batch: letting in the
# one that is in time, cutting the next batch off the first line, gathering its rows, giving its answers. Whatever
# is not that simple is left to it.
#
# Owns   : the lines; a copy of the cost curve. A seat keeps its question, and its connection until it is answered.
# Lends  : nothing.
# GIL    : needed by all of it.
# Threads: one at a time, the event loop's.
from tiercel._hot.counters cimport WorkerCounters
from tiercel._hot.plan cimport Prepared
from tiercel._hot.typedefs cimport int64_t

cdef enum:
    MAX_BATCH = 512         # serving/cost.py has the same
    CHEAP_ROW_NS = 5000     # with what a seat costs, about what a refusal does
    TOLD_AT_ONCE = 16       # seats, until `between` is called
    # What is kept for who stands in, if it can be: its own scoring, after that of the others who leave at the same time, once
    # the event loop gets to it.
    STANDING_IN_NS = 12500000
    LEAST_STANDING_IN_NS = 5000000
    LEAVING_PART = 4        # of what is left for waiting is kept free: forecasts of a wait are off by as much


cpdef int64_t leave_by(int64_t due_ns, int64_t budget_ns, int64_t needed_ns, int64_t lag_ns) noexcept
cpdef int64_t wanted_by(int64_t due_ns, int64_t left_ns, int64_t needed_ns) noexcept


# A question of the compiled path in a queue. To the queue it is what FutureWaiter is (serving/waiters.py).
cdef class Seat:
    cdef readonly Prepared prepared
    cdef object _hot                        # `complete(prepared, scores, error)` is called once, unless it is cancelled
    cdef public object tell_cancelled       # called with the seat when its client is gone
    cdef public object scores               # of a request in several parts
    cdef public int64_t due_ns
    cdef public Py_ssize_t rest, unscored   # not in a batch yet; not scored yet
    cdef readonly Py_ssize_t n_rows
    cdef public bint is_large, is_suspect, can_leave
    cdef bint _is_done

    cdef int _end(self, scores, error) except -1


# A new seat, as Seat(prepared, hot, due_ns, can_leave) makes it. PERF: without a call through Python, every request's.
cdef inline Seat seat_of(Prepared prepared, hot, int64_t due_ns, bint can_leave):
    cdef Seat seat = Seat.__new__(Seat)
    seat.prepared, seat._hot, seat.due_ns, seat.can_leave = prepared, hot, due_ns, can_leave
    seat.n_rows = seat.rest = seat.unscored = prepared.n_rows
    return seat


cdef enum Entry:
    ENTRY_TAKEN
    ENTRY_REFUSED           # the queue's own door would refuse it too: it is full, or somebody would be late
    ENTRY_UNDECIDED


# The next batch, as foreseen.
cdef struct Cut:
    Py_ssize_t rows
    int64_t ends_ns


# `small` fits one batch, `large` does not, `alone` is what was in a batch that failed and is tried once more by itself. The
# first `*_at` of a line are done; `small_rows` and `other_rows` are the rows that rest in the first and in the other two.
cdef class Lines:
    cdef readonly list small, large, alone
    cdef public Py_ssize_t small_rows, other_rows, small_at, large_at, alone_at
    cdef public Py_ssize_t n_open           # let in and not answered
    cdef public Py_ssize_t late             # answered after they were due
    cdef public int64_t n_asked             # how often somebody wanted to know what it takes
    cdef public int64_t ends_ns             # when the running batch is done, as foreseen; 0: none runs
    cdef public bint is_open                # who is in time may come in
    cdef public bint is_tight               # somebody waits whom only a run of the schedule ahead showed to be in time
    cdef public bint is_woken               # a batch is about to be started
    cdef public bint may_leave              # somebody was let in that can go elsewhere
    cdef public int64_t look_ns             # when the running batch is looked after: who can leave is told by then
    cdef public object watch                # called when somebody was let in that has to be told sooner
    cdef public object wake                 # called when somebody was let in and none is
    cdef public object cancelled            # for `Seat.tell_cancelled`
    cdef public object between              # called after each few answers of a batch, so that others are read; or None
    cdef WorkerCounters _counters           # where the rows that wait are a gauge, or None
    cdef Py_ssize_t _told
    cdef object _table                      # what `_p99_us` was copied from
    cdef double _p99_us[MAX_BATCH + 1]      # of a batch of so many rows, before `_ratio`
    cdef double _ratio
    cdef int64_t _overhead_ns, _best_ns
    cdef Py_ssize_t _n, _best, _max_rows

    # Let in who is in time with everybody who waits.
    cdef Entry take_in(self, Seat seat, int64_t now_ns) except *
    cpdef int64_t free_ns(self, int64_t now_ns) noexcept
    cdef bint _fits_small(self, Py_ssize_t n, int64_t due_ns, int64_t free_ns, int64_t by_ns) except -1
    cdef Cut _next_cut(self, int64_t first_due_ns, int64_t free_ns) noexcept
    cdef int64_t _foreseen_ns(self, Py_ssize_t rows, Cut cut) noexcept
    cpdef int tell(self) except -1
    # Whether a row more takes hardly longer than refusing it would.
    cdef bint is_cheap(self) noexcept
    cdef int64_t _batch_ns(self, Py_ssize_t n_rows) noexcept
    cdef Py_ssize_t _rows_within(self, int64_t ns) noexcept
