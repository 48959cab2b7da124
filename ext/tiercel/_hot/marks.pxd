# marks.pxd - when the bytes that wait in a connection's buffer were read. Inline functions only.
#
# Owns   : nothing; Marks is part of its connection.
# GIL    : not needed.
# Threads: those of the connection.
from tiercel._hot.typedefs cimport int64_t

# So many moments, at least so far apart. Where there are more, every other one is forgotten: what was read then counts with
# what came before it, and what comes last always has a moment of its own.
cdef enum:
    N_MARKS = 16
    MARK_NS = 4_000_000


cdef struct Mark:
    Py_ssize_t at       # in the buffer
    int64_t read_ns     # of the monotonic clock


cdef struct Marks:
    Mark of[N_MARKS]
    int n


# What is in the buffer from `at` on was read at `read_ns`.
cdef inline void mark(Marks* marks, Py_ssize_t at, int64_t read_ns) noexcept nogil:
    cdef int i, n = marks.n
    if n > 0 and read_ns - marks.of[n - 1].read_ns < MARK_NS:
        return
    if n == N_MARKS:
        n = N_MARKS // 2
        for i in range(1, n):
            marks.of[i].at, marks.of[i].read_ns = marks.of[2 * i].at, marks.of[2 * i].read_ns
    marks.of[n].at, marks.of[n].read_ns = at, read_ns
    marks.n = n + 1


# When the byte at `offset` of the buffer was read.
cdef inline int64_t read_at(const Marks* marks, Py_ssize_t offset, int64_t otherwise_ns) noexcept nogil:
    cdef int i
    for i in range(marks.n - 1, -1, -1):
        if marks.of[i].at <= offset:
            return marks.of[i].read_ns
    return otherwise_ns


# So many bytes are gone from the start of the buffer.
cdef inline void forget(Marks* marks, Py_ssize_t consumed) noexcept nogil:
    cdef int i, first = 0, n = marks.n
    while first + 1 < n and marks.of[first + 1].at <= consumed:
        first += 1
    for i in range(first, n):
        marks.of[i - first].at = max(0, marks.of[i].at - consumed)
        marks.of[i - first].read_ns = marks.of[i].read_ns
    marks.n = n - first
