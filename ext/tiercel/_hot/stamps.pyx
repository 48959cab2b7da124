"""How long what is read now has waited in its socket; see stamps.pxd. Owner: none, `poller` lends it to `connection`."""

from tiercel._hot.clock cimport monotonic_ns, wall_ns
from tiercel._hot.typedefs cimport int64_t


cdef class Stamps:
    def __init__(self):
        cdef int64_t before_ns
        for _ in range(10):     # until the machine does not stall in between
            before_ns = monotonic_ns()
            self._apart_ns = wall_ns() - before_ns
            self._seen_ns = monotonic_ns()
            if self._seen_ns - before_ns < SET_NS // 4:
                break

    cpdef bint asks(self, int64_t now_ns) noexcept:
        return now_ns >= self._asks_at_ns

    cpdef int64_t waited_ns(self, int64_t came_ns, int64_t before_ns, int64_t at_ns, int64_t after_ns) noexcept:
        cdef int64_t most_ns = at_ns - before_ns, least_ns = at_ns - after_ns, waited_ns
        cdef int64_t moved_ns = max(least_ns - self._apart_ns, self._apart_ns - most_ns)
        if moved_ns > SET_NS + (after_ns - self._seen_ns) // SLEWED_PART:
            self._doubted_until_ns = after_ns + <int64_t>DOUBT_NS
        self._apart_ns, self._seen_ns = min(max(self._apart_ns, least_ns), most_ns), after_ns
        self._asks_at_ns = after_ns
        if after_ns < self._doubted_until_ns:
            return -1
        if came_ns == 0:
            self._asks_at_ns = after_ns + ASK_NS
            return -1
        waited_ns = max(<int64_t>0, at_ns - came_ns)
        if waited_ns <= HARDLY_NS:
            self._asks_at_ns = after_ns + ASK_NS
        return waited_ns
