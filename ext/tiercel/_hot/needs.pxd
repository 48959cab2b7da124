# needs.pxd - what answering takes: as it was measured, and as it is now. Inline functions only.
from libc.math cimport fabs

from tiercel._hot.typedefs cimport int64_t


# In nanoseconds; zeros: not measured.
cdef struct Needs:
    int64_t read_ns        # of the rows of one request
    int64_t score_ns       # of a request
    int64_t row_ns         # ... and of each of its rows
    double seen_ns         # of scoring one row inline: what it took lately,
    double spread_ns       # ... and the mean difference from that
    int64_t seen_at_ns     # of the monotonic clock: when that was last seen,
    int64_t n_asked        # ... and how often it was asked for since
    double backlog_ns      # of what was scored inline lately: what is not made up for yet,
    int64_t backlog_at_ns  # ... at this time


# What was seen so long ago, and asked for so often since, is doubted, and one request is let in that it would keep out: who
# is refused for it is not scored, so it would never be seen to be quick again.
cdef enum:
    DOUBT_NS = 250_000_000
    DOUBT_ASKED = 16
    QUICK_ANSWER_NS = 10_000


# Scoring inline keeps everybody waiting who comes meanwhile. A model that somebody can stand in for may use so much of the
# event loop's time; what it used beyond that is its backlog.
cdef inline double backlog_ns(const Needs* needs, int64_t now_ns) noexcept nogil:
    return max(0.0, needs.backlog_ns - 0.75 * <double>(now_ns - needs.backlog_at_ns))


# Whether scoring that takes so long would, with the backlog, keep others waiting for more than half of `budget_ns`, which is
# what a request has: whoever waits for all of that still has the other half, for somebody else's answer. What this one has
# waited already others wait as well, and counts twice: a stall of the host is followed by another, and until everybody has
# caught up whoever is quick answers. Where nothing was scored lately it is not asked: each single answer is in time.
cdef inline bint is_behind(
    const Needs* needs, int64_t score_ns, int64_t waited_ns, int64_t budget_ns, int64_t now_ns
) noexcept nogil:
    cdef double behind_ns = backlog_ns(needs, now_ns)
    return behind_ns > 0 and behind_ns + <double>(2 * waited_ns + score_ns) > <double>(budget_ns // 2)


# Whether scoring one row inline takes hardly longer than refusing to would: to refuse would make room for nobody.
cdef inline bint is_quick(const Needs* needs) noexcept nogil:
    return 0 < needs.seen_ns < QUICK_ANSWER_NS


# So much was scored inline just now. A stall of the host is not the model's: no more than 20 times the usual counts.
cdef inline void charge(Needs* needs, int64_t took_ns, Py_ssize_t n_rows, int64_t now_ns) noexcept nogil:
    cdef double usual = max(<double>(needs.score_ns + n_rows * needs.row_ns), needs.seen_ns)
    needs.backlog_ns, needs.backlog_at_ns = backlog_ns(needs, now_ns) + min(<double>took_ns, 20 * usual), now_ns


cdef inline bint is_doubted(const Needs* needs, int64_t now_ns) noexcept nogil:
    return needs.n_asked > DOUBT_ASKED and now_ns - needs.seen_at_ns >= DOUBT_NS


# What scoring takes besides its rows: as measured, or as it is now where that is slower and not in doubt.
cdef inline int64_t score_ns(Needs* needs, int64_t now_ns) noexcept nogil:
    needs.n_asked += 1
    if is_doubted(needs, now_ns):
        return needs.score_ns
    return max(needs.score_ns, <int64_t>(needs.seen_ns + 4 * needs.spread_ns) - needs.row_ns)


# One row was scored inline. Means of about the last 64; a stall of the host counts as no more than 20 times the usual.
cdef inline void observe(Needs* needs, int64_t took_ns, int64_t now_ns) noexcept nogil:
    cdef double usual = <double>(needs.score_ns + needs.row_ns), difference
    if usual <= 0:      # nothing was measured, so nothing is decided by it
        return
    if is_doubted(needs, now_ns) and 2 * took_ns <= needs.seen_ns:
        needs.seen_ns, needs.spread_ns = took_ns, took_ns / 4.0     # the doubt was right
    needs.seen_at_ns, needs.n_asked = now_ns, 0
    difference = min(<double>took_ns, 20 * max(usual, needs.seen_ns)) - needs.seen_ns
    needs.seen_ns += difference / 64
    needs.spread_ns += (fabs(difference) - needs.spread_ns) / 64
