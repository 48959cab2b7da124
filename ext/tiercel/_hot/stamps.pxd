# stamps.pxd - how long what is read now has waited in its socket, by the kernel's stamps.
#
# The kernel stamps what comes with the wall clock, and a read may ask for the stamp. That costs 0.2 to 0.4 us of some 10 that a
# prediction takes, so not every read asks. Sockets are read in the order in which they became ready: while one has hardly
# waited, those that are read soon after it have not either. What waits long is asked again with each read, so that after a
# stall each request is known to have just the time it has.
#
# The wall clock may be set. When it moves against the monotonic one, stamps are not believed for as long as anything that was
# stamped before may wait to be read. Between two looks at clocks a machine may stall, so the wall clock is read between two of
# the other: how far they are apart is then known as well as the three were taken at once.
#
# Owns   : nothing but the numbers below.
# GIL    : held.
# Threads: those of the poller.
from tiercel._hot.typedefs cimport int64_t

cdef enum:
    HARDLY_NS = 1_000_000           # so little is no wait
    ASK_NS = 250_000                # ... and so long nobody is asked after it
    SET_NS = 1_000_000              # less is no setting
    SLEWED_PART = 1000              # ... and a clock is slewed by at most half of this part of the time
    DOUBT_NS = 60_000_000_000       # as a connection that stands in line may wait to be read


cdef class Stamps:
    cdef int64_t _asks_at_ns, _seen_ns, _doubted_until_ns
    cdef int64_t _apart_ns          # the wall clock less the monotonic one, as known

    # Whether a read at `now_ns` of the monotonic clock is to ask.
    cpdef bint asks(self, int64_t now_ns) noexcept
    # How long bytes have waited that were read just now, at `at_ns` of the wall clock, and stamped `came_ns` (0: they were
    # not); -1: nobody knows. `before_ns` and `after_ns` are of the monotonic clock, about the look at the other.
    cpdef int64_t waited_ns(self, int64_t came_ns, int64_t before_ns, int64_t at_ns, int64_t after_ns) noexcept
