# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""What a plan does before a stage when requests have deadlines, alone: for bench_deadline. The same code as in plan.pyx.

Each returns nanoseconds for each of `n` rounds of a loop. `due_ns` is far enough away never to come, as in a request that is
in time; what the loop does is summed up and returned too, or the compiler would leave it out.
"""

from libc.stdint cimport int64_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec


cdef inline int64_t monotonic_ns() noexcept nogil:
    cdef timespec at
    clock_gettime(CLOCK_MONOTONIC, &at)
    return <int64_t>at.tv_sec * 1_000_000_000 + at.tv_nsec


def empty(int64_t n, const int64_t[::1] values):
    """The loop: a value is read and summed."""
    cdef int64_t i, found = 0, begin
    with nogil:
        begin = monotonic_ns()
        for i in range(n):
            found += values[i & 1023]
        begin = monotonic_ns() - begin
    return begin / <double>n, found


def clock(int64_t n, const int64_t[::1] values):
    """And the clock is read: what a stage's end costs that is timed, with or without deadlines."""
    cdef int64_t i, found = 0, begin
    with nogil:
        begin = monotonic_ns()
        for i in range(n):
            found += values[i & 1023] ^ monotonic_ns()
        begin = monotonic_ns() - begin
    return begin / <double>n, found


def compare(int64_t n, const int64_t[::1] values, int64_t needs_ns, int64_t due_ns):
    """And it is decided whether what comes next still fits, by times that were taken before."""
    cdef int64_t i, found = 0, begin
    with nogil:
        begin = monotonic_ns()
        for i in range(n):
            if values[i & 1023] + needs_ns <= due_ns:
                found += values[i & 1023]
        begin = monotonic_ns() - begin
    return begin / <double>n, found


def check(int64_t n, const int64_t[::1] values, int64_t needs_ns, int64_t due_ns):
    """All of it: the clock is read, and what comes next fits or not."""
    cdef int64_t i, found = 0, begin, at
    with nogil:
        begin = monotonic_ns()
        for i in range(n):
            at = monotonic_ns()
            if at + needs_ns <= due_ns:
                found += values[i & 1023]
        begin = monotonic_ns() - begin
    return begin / <double>n, found


def budget(int64_t n, const int64_t[::1] values, int64_t header_us, int64_t default_us, int64_t begun_ns):
    """When a request is due, by its header, its body (`values`) and its model: once for each request."""
    cdef int64_t i, found = 0, begin, budget_us, body_us, source
    with nogil:
        begin = monotonic_ns()
        for i in range(n):
            budget_us, body_us, source = header_us, values[i & 1023], header_us >= 0
            if body_us >= 0 and (budget_us < 0 or body_us < budget_us):
                budget_us, source = body_us, 2
            if budget_us < 0:
                budget_us = default_us
            found += source if budget_us < 0 else source + begun_ns + 1000 * budget_us
        begin = monotonic_ns() - begin
    return begin / <double>n, found
