"""Who waits in a near-realtime queue; see lines.pxd for the contract. Owners: tiercel.serving.schedule and .waiters."""

import logging

from libc.string cimport memcpy

import numpy as np

from tiercel._hot.clock cimport monotonic_ns
from tiercel._hot.counters cimport NEAR_REALTIME_WAITING_ROWS, WorkerCounters
from tiercel._hot.plan cimport Prepared
from tiercel._hot.prediction cimport STAGE_SCORE
from tiercel._hot.typedefs cimport feature_t, int64_t, score_t

cdef int64_t NEVER_NS = (<int64_t>1 << 63) - 1          # nobody is due

log = logging.getLogger("tiercel.serving")


cpdef int64_t leave_by(int64_t due_ns, int64_t budget_ns, int64_t needed_ns, int64_t lag_ns) noexcept:
    """When a question that somebody else can answer has to leave a queue, to be answered by them in time.

    Args:
        due_ns: when the answer is due.
        budget_ns: all that the question was given: a quarter of it is the most that is kept, and another the most for the lag.
        needed_ns: what scoring takes where nobody waits; where that leaves little, less is kept.
        lag_ns: how far behind reading, and with it answering, is now and then.
    """
    cdef int64_t quarter_ns = budget_ns // 4, kept_ns = min((budget_ns - needed_ns) // 2, <int64_t>STANDING_IN_NS)
    return due_ns - min(quarter_ns, max(<int64_t>LEAST_STANDING_IN_NS, kept_ns)) - min(lag_ns, quarter_ns)


cpdef int64_t wanted_by(int64_t due_ns, int64_t left_ns, int64_t needed_ns) noexcept:
    """By when a question that can leave has to be done, as foreseen, to be let in. So hardly any waits in vain; and a queue
    that is never empty scores no less for being shorter."""
    return due_ns - max(0, left_ns - needed_ns) // LEAVING_PART


cdef class Seat:
    def __init__(self, Prepared prepared not None, hot, int64_t due_ns, bint can_leave=False):
        self.prepared, self._hot, self.due_ns, self.can_leave = prepared, hot, due_ns, can_leave
        self.n_rows = self.rest = self.unscored = prepared.n_rows

    @property
    def rows(self):
        """float32 (n_rows, n_features), copied."""
        return self.prepared.rows()

    def done(self):
        """Whether it has its answer, or wants none any more."""
        return bool(self._is_done)

    def set_result(self, scores):
        """Answer with scores."""
        self._end(scores, None)

    def set_exception(self, error):
        """Answer with an error."""
        self._end(None, error)

    def cancel(self):
        """The client is gone: leave the queue at once. What runs already is scored, and dropped."""
        if self._is_done:
            return False
        self._is_done, self._hot = True, None
        self.tell_cancelled(self)
        return True

    cdef int _end(self, scores, error) except -1:
        self._is_done = True
        hot, self._hot = self._hot, None
        try:
            hot.complete(self.prepared, scores, error)
        except Exception:       # the queue has others to answer
            log.exception("A queued request could not be answered")
        return 0


cdef class Lines:
    def __init__(
        self, list small not None, list large not None, list alone not None, Py_ssize_t small_rows=0,
        WorkerCounters counters=None,
    ):
        self.small, self.large, self.alone, self.small_rows = small, large, alone, small_rows
        self._counters = counters
        self._ratio = 1

    @property
    def n_rows(self):
        """Rows that wait."""
        return self.small_rows + self.other_rows

    def set_pace(
        self, list table not None, double ratio, int64_t overhead_ns, Py_ssize_t best, int64_t best_ns, Py_ssize_t max_rows
    ):
        """What batches take from now on.

        Args:
            table: by number of rows, microseconds of a batch; at least `best` + 1 of them. Not changed once it was given.
            ratio: times this.
            overhead_ns: and this more.
            best, best_ns: rows of the largest batch, and what it takes until the next one can start.
            max_rows: that may wait.
        """
        cdef Py_ssize_t i
        if table is not self._table:
            self._table, self._n = table, min(len(table), MAX_BATCH + 1)
            for i in range(self._n):
                self._p99_us[i] = table[i]
        if not 0 < best < self._n:
            raise ValueError(f"Expected batches of 1 to {self._n - 1} rows, got {best}")
        self._ratio, self._overhead_ns, self._best, self._best_ns, self._max_rows = (
            ratio, overhead_ns, best, best_ns, max_rows
        )

    cpdef int tell(self) except -1:
        """Keep the worker's gauge of rows that wait, which is of all its queues."""
        cdef int64_t waiting
        cdef Py_ssize_t more = self.small_rows + self.other_rows - self._told
        if more and self._counters is not None:
            waiting = <int64_t>self._counters.cells[<int>NEAR_REALTIME_WAITING_ROWS] + more
            self._counters.cells[<int>NEAR_REALTIME_WAITING_ROWS] = max(0, waiting)
            self._told += more
        return 0

    cdef int64_t _batch_ns(self, Py_ssize_t n_rows) noexcept:
        return <int64_t>(1000 * (self._p99_us[n_rows] * self._ratio)) + self._overhead_ns

    cdef Py_ssize_t _rows_within(self, int64_t ns) noexcept:
        """The most rows, at least 0, that a batch may have to take no longer."""
        cdef double us = <double>(ns - self._overhead_ns) / 1000
        cdef Py_ssize_t low = 0, high = self._n - 1, middle
        while low < high:
            middle = (low + high + 1) // 2
            if self._p99_us[middle] * self._ratio <= us:
                low = middle
            else:
                high = middle - 1
        return low

    cpdef int64_t free_ns(self, int64_t now_ns) noexcept:
        """When the next batch can start, as foreseen. A batch that should be over is expected to take as long again as it is
        late: the longer it takes the longer it takes, and who is let in for the end that was foreseen would be late."""
        if self.ends_ns == 0:
            return now_ns
        return self.ends_ns if now_ns <= self.ends_ns else now_ns + (now_ns - self.ends_ns)

    cdef Entry take_in(self, Seat seat, int64_t now_ns) except *:
        cdef Py_ssize_t n = seat.rest, depth = self.small_rows + self.other_rows, low, high, middle
        cdef int64_t due_ns = seat.due_ns, by_ns = due_ns, first_ns, free_ns
        if not self.is_open or n > self._best or self.large or self.alone or self._batch_ns(n) > due_ns - now_ns:
            return ENTRY_UNDECIDED
        if depth and depth + n > self._max_rows:
            return ENTRY_REFUSED
        if seat.can_leave:
            by_ns = wanted_by(due_ns, due_ns - now_ns, self._batch_ns(n))
        first_ns = min(by_ns, _due_ns(self.small[0])) if self.small else by_ns
        free_ns = self.free_ns(now_ns)
        if free_ns + (depth + n + self._best - 1) // self._best * self._best_ns <= first_ns:
            self.is_tight = False
        elif self.is_tight:
            return ENTRY_UNDECIDED
        elif not self._fits_small(n, due_ns, free_ns, by_ns):
            return ENTRY_REFUSED
        high = len(self.small)
        if high == 0 or _due_ns(self.small[high - 1]) <= due_ns:
            self.small.append(seat)
        else:
            low = 0
            while low < high:
                middle = (low + high) // 2
                if _due_ns(self.small[middle]) > due_ns:
                    high = middle
                else:
                    low = middle + 1
            self.small.insert(low, seat)
        seat.tell_cancelled = self.cancelled
        self.small_rows += n
        self.n_open += 1
        self.n_asked += 1
        self.tell()
        if seat.can_leave:
            self.may_leave = True
            if self.ends_ns != 0 and due_ns < self.look_ns:
                self.watch()    # should the running batch overrun
        if self.ends_ns == 0 and not self.is_woken:
            self.wake()
        return ENTRY_TAKEN

    def fits_small(self, Py_ssize_t n, int64_t due_ns, int64_t free_ns, int64_t by_ns=NEVER_NS):
        """Whether `n` more rows among the small are in time, and those behind them as much as without them.

        In time is by `due_ns`, which also is where they stand, and by `by_ns`.

        The forecast, which nobody who comes later can spoil: the next batch, at `free_ns`, is cut short where the tightest
        request needs that, and every one after it is full. Only the first in line may have a batch cut short, and not below
        half the best size while more rows wait: a queue that promised each the last microsecond would keep its promises in
        ever smaller batches, and do less the more is asked of it. A newcomer does not move who is ahead of it, so only those
        behind need another look.
        """
        if self._best == 0:
            raise ValueError("Expected set_pace before anybody is let in")
        return bool(self._fits_small(n, due_ns, free_ns, min(by_ns, due_ns)))

    cdef bint _fits_small(self, Py_ssize_t n, int64_t due_ns, int64_t free_ns, int64_t by_ns) except -1:
        cdef Py_ssize_t at = len(self.small) - 1, rows = self.small_rows + n
        cdef int64_t first_ns = NEVER_NS if at < 0 else _due_ns(self.small[0]), other_ns
        cdef Cut before = self._next_cut(first_ns, free_ns), after = before
        if due_ns < first_ns:
            after = self._next_cut(by_ns, free_ns)
            if after.rows < min(before.rows, self.small_rows + self.other_rows + n, (self._best + 1) // 2):
                return False
        if self._foreseen_ns(rows, after) <= by_ns:     # PERF: whoever is behind is due later
            return True
        while at >= 0:
            item = self.small[at]
            other_ns = _due_ns(item)
            if other_ns <= due_ns:
                break
            if self._foreseen_ns(rows, after) > other_ns >= self._foreseen_ns(rows - n, before):
                return False
            rows -= (<Seat>item).rest if type(item) is Seat else <Py_ssize_t>item.rest
            at -= 1
        return self._foreseen_ns(rows, after) <= by_ns

    cdef Cut _next_cut(self, int64_t first_due_ns, int64_t free_ns) noexcept:
        # The largest next batch for the first in line; a full one if it is late in any case.
        cdef Cut cut
        cut.rows, cut.ends_ns = self._best, free_ns + self._best_ns
        if cut.ends_ns > first_due_ns:
            cut.rows = min(self._best, self._rows_within(first_due_ns - free_ns))
            if cut.rows > 0:
                cut.ends_ns = free_ns + self._batch_ns(cut.rows)
            else:
                cut.rows = self._best
        return cut

    cdef int64_t _foreseen_ns(self, Py_ssize_t rows, Cut cut) noexcept:
        # The end of the last of `rows`.
        if rows <= cut.rows:
            return cut.ends_ns
        return cut.ends_ns + (rows - cut.rows + self._best - 1) // self._best * self._best_ns

    cdef bint is_cheap(self) noexcept:
        # What a row more takes: without what every batch takes, and what it waits, in which others are scored or read.
        return 0 < self._best < self._n and 1000 * self._p99_us[self._best] * self._ratio < self._best * <double>CHEAP_ROW_NS

    def entry(self, Seat seat not None, int64_t now_ns):
        """As `take`, for tests: "taken", "refused" (the queue's own door would refuse it too) or "undecided"."""
        return ("taken", "refused", "undecided")[<int>self.take_in(seat, now_ns)]

    def take(self, Seat seat not None, int64_t now_ns):
        """Let in who is in time with everybody who waits; False: it is not, or nothing is decided."""
        return self.take_in(seat, now_ns) == ENTRY_TAKEN

    def cut(self, int64_t now_ns):
        """The batch that starts at `now_ns`, taken out of the line: [(request, first row, end)]. None: not only `small` waits.

        As `serving.schedule.next_batch` and `advance` have it.
        """
        cdef Py_ssize_t n = 0, room = self._best, at = 0, n_small = len(self.small), rest, take, start
        cdef bint is_bound = False
        cdef int64_t due_ns
        cdef list parts
        if self.large or self.alone:
            return None
        parts = []
        while n < room and at < n_small:
            item = self.small[at]
            if type(item) is Seat:
                rest, due_ns, start = (<Seat>item).rest, (<Seat>item).due_ns, (<Seat>item).n_rows - (<Seat>item).rest
            else:
                rest, due_ns = item.rest, item.due_ns
                start = <Py_ssize_t>item.n_rows - rest
            take = min(rest, room - n)
            if not is_bound and take == rest and now_ns + self._batch_ns(n + take) <= due_ns:
                is_bound = True
                if now_ns + self._best_ns > due_ns:
                    room = min(room, max(n + take, self._rows_within(due_ns - now_ns)))
            if type(item) is Seat:
                (<Seat>item).rest = rest - take
            else:
                item.rest = rest - take
            parts.append((item, start, start + take))
            n += take
            if take < rest:
                break
            at += 1
        del self.small[:at]
        self.small_rows -= n
        self.tell()
        return parts

    @staticmethod
    def gather(list parts not None, Py_ssize_t n_features):
        """The rows of a batch, one after the other: float32 (n, n_features)."""
        cdef Py_ssize_t n = 0, at = 0, start, stop
        cdef feature_t[:, ::1] view
        for _, start, stop in parts:
            n += stop - start
        matrix = np.empty((n, n_features), dtype=np.float32)
        if n == 0 or n_features == 0:
            return matrix
        view = matrix
        for item, start, stop in parts:
            if type(item) is Seat:
                memcpy(
                    &view[at, 0], (<Seat>item).prepared._asked.scratch.rows + start * n_features,
                    (stop - start) * n_features * sizeof(feature_t),
                )
            else:
                matrix[at : at + stop - start] = item.rows[start:stop]
            at += stop - start
        return matrix

    def answer(self, list parts not None, const score_t[:, ::1] scores not None, int64_t now_ns):
        """Give the scores of a batch to the seats that it holds whole; returns the other parts, with the place of their first
        score: [(request, first row, end, place)]."""
        cdef Py_ssize_t at = 0, start, stop, n_outputs = scores.shape[1]
        cdef int64_t scored_ns = monotonic_ns(), began_ns
        cdef Seat seat
        cdef list others = []
        cdef int n_told = 0
        for item, start, stop in parts:
            if type(item) is Seat and stop - start == (<Seat>item).n_rows:
                seat = item
                if not seat._is_done:
                    self.late += now_ns > seat.due_ns
                    self.n_open -= 1
                    memcpy(
                        seat.prepared._asked.scratch.scores, &scores[at, 0], (stop - start) * n_outputs * sizeof(score_t)
                    )
                    seat.prepared.is_scored = True
                    seat.prepared._watch.at[<int>STAGE_SCORE + 1] = scored_ns
                    seat._end(None, None)
                    n_told += 1
                    if n_told % TOLD_AT_ONCE == 0 and self.between is not None:
                        began_ns = monotonic_ns()
                        self.between()
                        now_ns += monotonic_ns() - began_ns     # the others are answered so much later
            else:
                others.append((item, start, stop, at))
            at += stop - start
        return others


cdef inline int64_t _due_ns(item) except? -1:
    return (<Seat>item).due_ns if type(item) is Seat else item.due_ns
