# clock.pxd - what time it is. Inline functions only.
from posix.time cimport CLOCK_MONOTONIC, CLOCK_REALTIME, clock_gettime, timespec

from tiercel._hot.typedefs cimport int64_t


# Nanoseconds of the monotonic clock: for durations and deadlines.
cdef inline int64_t monotonic_ns() noexcept nogil:
    cdef timespec at
    clock_gettime(CLOCK_MONOTONIC, &at)
    return <int64_t>at.tv_sec * 1_000_000_000 + at.tv_nsec


# Seconds of the same.
cdef inline double monotonic_s() noexcept nogil:
    return 1e-9 * <double>monotonic_ns()


# Nanoseconds since the epoch.
cdef inline int64_t wall_ns() noexcept nogil:
    cdef timespec at
    clock_gettime(CLOCK_REALTIME, &at)
    return <int64_t>at.tv_sec * 1_000_000_000 + at.tv_nsec


# Microseconds since the epoch.
cdef inline int64_t wall_us() noexcept nogil:
    cdef timespec at
    clock_gettime(CLOCK_REALTIME, &at)
    return <int64_t>at.tv_sec * 1_000_000 + at.tv_nsec // 1000
