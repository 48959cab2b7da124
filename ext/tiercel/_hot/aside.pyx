"""Who is refused, and read later, while requests come faster than they can be answered; see aside.pxd. Owner: tiercel.http.native."""

from collections import deque

from tiercel._hot.clock cimport monotonic_ns
from tiercel._hot.typedefs cimport int64_t

# How often the line is looked at when nothing is read.
TICK_S = 0.001


cdef class Aside:
    def __init__(self):
        self._line = deque()
        self._allowed, self.inline_ns = BURST, -RECENT_NS

    def __len__(self):
        return len(self._line)

    def close(self):
        """Call everybody back: the event loop is about to end, or the server to stop."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._line:
            self._line.popleft().come_back()

    cpdef void note(self, bint is_queued, int64_t budget_ns, int64_t now_ns, int64_t needed_ns=0) noexcept:
        cdef int kind = 1 if is_queued else 0
        if is_queued:
            budget_ns = max(budget_ns // QUEUED_PART, min(budget_ns // 100 * QUEUED_PERCENT, budget_ns - 2 * needed_ns))
        if (
            budget_ns <= self._tightest_ns[kind] or self._tightest_ns[kind] == 0
            or now_ns - self._tightest_at_ns[kind] > RECENT_NS
        ):
            self._tightest_ns[kind], self._tightest_at_ns[kind] = budget_ns, now_ns

    cdef void note_inline(self, int64_t budget_ns, int64_t now_ns) noexcept:
        self.inline_ns = now_ns
        if budget_ns > 0:
            self.note(False, budget_ns, now_ns)

    cpdef bint sheds(self, bint is_queued, int64_t wait_ns, int64_t now_ns, bint is_read_last=False) noexcept:
        cdef int kind = 1 if is_queued else 0
        cdef int64_t most_ns = 0, inline_ns = 0
        cdef double kept
        if self._tightest_ns[kind] == 0 or now_ns - self._tightest_at_ns[kind] > RECENT_NS:
            return False
        most_ns = self._tightest_ns[1] if is_queued else self._tightest_ns[0] // INLINE_PART
        if is_queued and not is_read_last and self._tightest_ns[0] > 0 and now_ns - self._tightest_at_ns[0] <= RECENT_NS:
            inline_ns = self._tightest_ns[0] // INLINE_PART
            most_ns = min(most_ns, self._tightest_ns[0] // BOTH_PART)
        most_ns = max(most_ns, QUIET_NS)
        if wait_ns <= most_ns:
            return False
        # A share of all, evenly: those who are left wait just so long.
        kept = <double>most_ns / <double>wait_ns
        if 0 < inline_ns < wait_ns:     # inline ones, which come first, are near their deadlines
            kept *= (<double>inline_ns / <double>wait_ns) ** 2
        self._debt[kind] += 1 - kept
        if self._debt[kind] < 1:
            return False
        self._debt[kind] -= 1
        return True

    cpdef bint is_too_much(self, int64_t now_ns, int64_t wait_ns, bint is_read_last=False) noexcept:
        cdef bint is_lost = (
            self._tightest_ns[0] > 0 and now_ns - self._tightest_at_ns[0] <= RECENT_NS
            and wait_ns > max(self._tightest_ns[0] // 100 * LATE_PERCENT, <int64_t>LATE_NS)
        )
        if self._allowed < 1 and (is_lost or is_read_last or now_ns - self.inline_ns > RECENT_NS):
            return True
        self._allowed = max(0.0, self._allowed - 1)
        return False

    cpdef int add(self, connection, loop) except -1:
        self._line.append(connection)
        if self._timer is None:
            self._loop = loop
            self._timer = loop.call_later(TICK_S, self._on_timer)
        return 0

    cpdef int poll(self, int64_t now_ns, int64_t wait_ns) except -1:
        cdef double more = <double>(now_ns - self._polled_ns) / (SLOW_NS if wait_ns > QUIET_NS else QUICK_NS)
        more += <double>self.n_read / READS_EACH
        self._wait_ns, self._polled_ns, self.n_read = wait_ns, now_ns, 0
        self._allowed = min(self._allowed + more, <double>BURST)
        self._due = min(self._due + more, <double>BURST)
        while self._line and self._due >= 1:
            self._due -= 1
            self._line.popleft().come_back()
        return 0

    def _on_timer(self):
        cdef int64_t now_ns = monotonic_ns()
        self._timer = None
        # What was said while something was read says nothing of now, when nothing is.
        self.poll(now_ns, self._wait_ns if now_ns - self._polled_ns < 10 * QUIET_NS else 0)
        if self._line and self._timer is None:
            self._timer = self._loop.call_later(TICK_S, self._on_timer)
