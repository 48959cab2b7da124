"""Whether to wait awake for what comes next; see busy_poll.pxd. Owner: none, `poller` asks it."""

from tiercel._hot.typedefs cimport int64_t


cdef class BusyPoll:
    def __init__(self, int64_t longest_ns):
        self.longest_ns, self._rest = longest_ns, <int>FEWEST_RESTED

    cpdef bint tries(self) noexcept:
        if self.longest_ns <= 0:
            return False
        if self._n_rested > 0:
            self._n_rested -= 1
            return False
        return True

    cpdef void tried(self, bint came) noexcept:
        if came:
            self._luck += 1
            if self._luck >= <int>MOST_LUCK:
                self._luck, self._rest = <int>MOST_LUCK, <int>FEWEST_RESTED
            return
        self._luck -= <int>MISFORTUNE
        if self._luck < 0:
            self._luck, self._n_rested = 0, self._rest
            self._rest = min(2 * self._rest, <int>MOST_RESTED)
