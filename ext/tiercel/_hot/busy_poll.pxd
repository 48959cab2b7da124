# busy_poll.pxd - whether to wait awake for what comes next, instead of sleeping until it comes.
#
# To sleep and to be woken takes some 10 us here, with caches that are cold afterwards: a fifth and more of what a client sees
# that asks, reads the reply and asks again. Such a client, on the same host, asks again within some 25 us, and to wait for that
# awake costs the core nothing that anybody of its own class wanted. So it is with many clients whose requests come as close
# together. Where they do not come that soon, it does cost; so it is done for as long as four of five waits end with a request,
# and given up for ever longer where they do not (clients that need this very core to go on; clients that think). What halt
# polling is to a virtual machine.
#
# Source : the kernel's guest halt polling grows and shrinks the length of a wait (Documentation/virt/guest-halt-polling.rst);
#          here the length is given and what adapts is how often.
# Owns   : nothing but the numbers below.
# GIL    : held.
# Threads: those of the poller.
from tiercel._hot.typedefs cimport int64_t

cdef enum:
    MOST_LUCK = 16
    MISFORTUNE = 4          # a wait in vain takes as much luck as so many others bring
    FEWEST_RESTED = 16
    MOST_RESTED = 1024


cdef class BusyPoll:
    cdef readonly int64_t longest_ns        # one wait; 0: never
    cdef int _luck, _rest, _n_rested

    # Whether to wait now. To be told how that went.
    cpdef bint tries(self) noexcept
    cpdef void tried(self, bint came) noexcept
