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


# What scoring takes besides its rows: as measured, or as it is now where that is slower.
cdef inline int64_t score_ns(const Needs* needs) noexcept nogil:
    return max(needs.score_ns, <int64_t>(needs.seen_ns + 4 * needs.spread_ns) - needs.row_ns)


# One row was scored inline. Means of about the last 64; a stall of the host counts as no more than 20 times the usual.
cdef inline void observe(Needs* needs, int64_t took_ns) noexcept nogil:
    cdef double usual = <double>(needs.score_ns + needs.row_ns), difference
    if usual <= 0:      # nothing was measured, so nothing is decided by it
        return
    difference = min(<double>took_ns, 20 * max(usual, needs.seen_ns)) - needs.seen_ns
    needs.seen_ns += difference / 64
    needs.spread_ns += (fabs(difference) - needs.spread_ns) / 64
