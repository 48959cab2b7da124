"""The near-realtime tier: a bounded queue by earliest deadline, scored in batches on threads.

**When a batch starts.** A batch starts as soon as no other of this version is running; whatever arrives while one runs
gathers for the next. That is work-conserving, and waiting with an idle thread for company never pays here: the requests
that would come are not known, the time given away is certain, and under load the running batch is the window in which the
next one fills - exactly as long as the load makes it. A batch started early costs capacity only if the queue then grows,
and in a growing queue batches are full. Starting is one pass of the event loop away (`call_soon`), so that all requests
read in one pass share a batch; there is no tick and no window.

**Where it is scored.** On a thread, with the GIL released; on the event loop where that takes less than handing it over and
back (`inline_scoring`).

**Who is let in.** A request is refused before it waits: `DeadlineError` if not even an idle server could answer in
time, `CapacityError` if it would be late behind what goes before it, or would make somebody late who was let in
earlier. As long as batches take what was learned of them (`pace`), nobody who was let in is late. Who has a stand-in is
refused sooner, so that a quarter of its wait may go wrong, and leaves in time for it (`wanted_by`, `leave_by`). The
test costs O(1) for a request with the latest deadline, as those of one tier mostly are, O(requests behind it)
otherwise, and a run of the schedule ahead only close to the limit while a large or suspect request waits (`admission`,
`schedule`).

**When scoring fails.** Scorers are pure functions of their rows, so the members of a failed batch are tried once more, each
by itself, in the order of their deadlines and if these allow it: one poisoned request then fails alone. If the first
`MAX_STRIKES` fail as well, the scorer is at fault and the rest fail at once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from bisect import bisect_left, bisect_right
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from tiercel.serving.admission import Admission
from tiercel.serving.batch_scoring import copy_of, score_rows, try_to_score
from tiercel.serving.batches import Batch, Suspect, Trial, cut
from tiercel.serving.cost import MAX_ROWS
from tiercel.serving.inline_scoring import InlineScoring
from tiercel.serving.pace import Pace
from tiercel.serving.queue_errors import became_late, shut
from tiercel.serving.schedule import Lines
from tiercel.serving.turns import waited_ns
from tiercel.serving.waiters import FutureWaiter
from tiercel.types import Tier

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor, Future

    from numpy.typing import NDArray

    from tiercel.errors import CapacityError, TiercelError
    from tiercel.monitor.counting import WorkerCounters
    from tiercel.serving.cost import CostCurve
    from tiercel.serving.waiters import Seat, Waiter

log = logging.getLogger("tiercel.serving")

BUDGET_US = Tier.NEAR_REALTIME.budget_us or 0
#: Members of a failed batch that fail alone, before the others are not tried any more.
MAX_STRIKES = 3
#: How long the event loop is waited for before its work is done by `poll`.
PATIENCE_NS = 1_000_000
#: A batch that is so much later than foreseen hangs; its waiters are told, since nothing can interrupt it.
STUCK_NS = 1_000_000_000

_BY_DUE = attrgetter("due_ns")


class Batcher:
    """The queue of one model version.

    Args:
        score: float32 (n, n_features) -> float64 (n, n_outputs); a pure function, called in the executor's threads or,
            where it is quick, on the event loop; one call at a time.
        cost: of `score`; the batcher's own from here on.
        executor: one or two threads, shared by all batchers of a worker. What a batch waits for a thread is measured and
            counted as part of its cost, so a busy neighbour shortens this queue.
        n_features: numbers in a row.
        n_outputs: numbers in a score.
        budget_us: the tier's; bounds batches and queue.
        clock_ns: monotonic; the clock that deadlines are of.
        waited_ns: how long the calling thread has waited for its turns.
        counters: of the worker: batches and their rows are counted there, and rows that wait; None: nowhere.
        inline: which batches are scored on the event loop; default: by an allowance of its own.

    Attributes:
        batches, rows: that were scored.
        batch_sizes: batches by size; index k counts those of 2**(k-1) < rows <= 2**k.
        refused: by `submit` and `take`, by reason: "deadline" (hopeless from the start), "capacity" (it, or somebody accepted,
            would be late), "full" (as many rows wait as fit the budget), "closing". Whom `lines` refuses is not counted here.
        cancelled: accepted, and left by their client.
        expired: accepted, and dropped unscored because scoring would have come too late: the host got slower.
        failed: requests that got an error of the scorer.
        retried: members of failed batches that were tried alone.

    Threads: everything on one event loop, the constructor anywhere.
    """

    def __init__(
        self,
        score: Callable[[NDArray[np.float32]], NDArray[np.float64]],
        cost: CostCurve,
        executor: Executor,
        *,
        n_features: int,
        n_outputs: int,
        budget_us: int = BUDGET_US,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        waited_ns: Callable[[], int] = waited_ns,
        counters: WorkerCounters | None = None,
        inline: InlineScoring | None = None,
    ) -> None:
        self.n_features, self.n_outputs = n_features, n_outputs
        self.batches = self.rows = self.cancelled = self.expired = self.failed = self.retried = 0
        self.batch_sizes = [0] * (MAX_ROWS - 1).bit_length() + [0]
        self._score, self._executor, self._clock, self._waited = score, executor, clock_ns, waited_ns
        self._budget_us, self._inline = budget_us, inline or InlineScoring()
        self._counters = counters
        self._pace = Pace(cost, budget_us)
        self._small: list[Waiter] = []
        self._large: list[Waiter] = []
        self._alone: list[Suspect] = []
        self._lines = Lines(self._small, self._large, self._alone, counters=counters)
        self._lines.is_open, self._lines.wake, self._lines.cancelled = True, self._wake, self._cancelled
        self._lines.watch = self._watch_running
        self._pace.tell(self._lines)
        self._admission = Admission(self._lines, self._pace)
        self.refused = self._admission.refused
        self._running: Batch | None = None
        self._is_stuck = False
        self._woken_ns = 0
        self._start: asyncio.Handle | None = None  # of `_start_next`, while a batch is about to be started
        self._is_busy = False  # who is told something may come back with the next request, and poll
        self._is_closing = False
        self._drained = asyncio.Event()
        self._watch: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    # What it looks like from outside

    @property
    def n_waiting(self) -> int:
        """Requests with rows that are in no batch yet."""
        return len(self._small) + len(self._large) + len(self._alone)

    @property
    def late(self) -> int:
        """Requests answered after they were due."""
        return self._lines.late

    @property
    def depth_rows(self) -> int:
        """Rows that are in no batch yet."""
        return self._lines.n_rows

    @property
    def best_rows(self) -> int:
        """Rows of the largest batch."""
        return self._pace.terms.best

    @property
    def max_rows_waiting(self) -> int:
        """As many rows as are scored within the tier's budget. One request may be larger if nothing else waits."""
        return self._pace.max_rows

    def predicted_wait_us(self, n_rows: int = 1) -> int:
        """When `n_rows` that come now, behind everything that waits, would be done."""
        return self._admission.wait_us(n_rows, self._clock())

    def need_us(self, n_rows: int = 1) -> int:
        """What scoring `n_rows` takes where nothing else waits."""
        return self._admission.need_us(n_rows, self._clock())

    def submit(
        self, rows: NDArray[np.float32], due_ns: int, *, can_leave: bool = False
    ) -> asyncio.Future[NDArray[np.float64]]:
        """Have `rows` scored by `due_ns`.

        Args:
            rows: float32, shape (n, n_features); not to be changed before the answer.
            due_ns: of the batcher's clock.
            can_leave: somebody else answers what has no scores by then: it is told at that time even while a batch with it
                still runs. Otherwise a running batch is waited for, since late scores are better than none.

        Returns:
            float64, shape (n, n_outputs), the caller's own. It may fail with ModelError (the scorer failed), DeadlineError
            (the host got slower, and it can no longer be done in time) or CapacityError (shut down). Cancel it when nobody
            wants the answer any more.

        Raises:
            DeadlineError, CapacityError: refused; nothing was queued.
            ValueError: `rows` is not such an array.
        """
        if rows.ndim != 2 or rows.shape[1] != self.n_features or rows.dtype != np.float32:
            raise ValueError(f"Expected float32 rows of {self.n_features} features, got {rows.dtype} {rows.shape}")
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        waiter = FutureWaiter(self._cancelled, np.ascontiguousarray(rows), due_ns, loop=self._loop)
        waiter.can_leave = can_leave
        if waiter.rest == 0:
            waiter.set_result(np.empty((0, self.n_outputs)))
        else:
            self._accept(waiter)
        return waiter

    def lines(self) -> Lines:
        """Where seats may be taken without `take`, by who is in time. To be asked for on the event loop."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        return self._lines

    def take(self, seat: Seat) -> Seat:
        """As `submit`, for a seat, which is told; not from within this call."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        seat.tell_cancelled = self._cancelled
        self._accept(seat)
        return seat

    def _accept(self, waiter: Waiter) -> None:
        """Put a request in line. Raises as `submit`."""
        due_ns = waiter.due_ns
        self._admit(waiter)
        line = self._large if waiter.is_large else self._small
        if not line or line[-1].due_ns <= due_ns:
            line.append(waiter)
        else:
            line.insert(bisect_right(line, due_ns, key=_BY_DUE), waiter)
        self._count(waiter, waiter.rest)
        self._lines.tell()
        self._lines.n_open += 1
        if waiter.can_leave:
            self._lines.may_leave = True
            if due_ns < self._lines.look_ns and self._running is not None:
                self._watch_running()  # should that one overrun
        self._wake()

    def poll(self) -> None:
        """Do now what the event loop has been asked to do: take back a batch that is scored, start or score the next.

        PERF: the loop calls back between rounds of reading, and a round takes up to 2100 ready sockets: tens of
        milliseconds, in which what is read would wait for a batch that nobody starts. So whoever reads calls this. Rounds
        that are short are let be: all they read shares a batch.
        """
        if self._is_busy:
            return
        batch, now_ns = self._running, self._clock()
        if batch is None:
            if self._lines.is_woken and now_ns - self._woken_ns > PATIENCE_NS:
                self._start_next()
        elif batch.done is not None and now_ns - batch.done_ns > PATIENCE_NS:
            self._end(batch, batch.done)

    async def close(self, *, drain: bool = True) -> None:
        """Refuse new requests, and return when all accepted ones are answered. May be called again.

        Args:
            drain: score what waits; otherwise it fails with CapacityError at once, and only the running batch ends.
        """
        self._is_closing, self._lines.is_open = True, False
        if not drain:
            self._fail_waiting(lambda: self._shut("closed before the request's turn came"))
        while self._lines.n_open:
            self._drained.clear()
            await self._drained.wait()
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    # Who is let in

    def _admit(self, waiter: Waiter) -> None:
        """Refuse, or return."""
        if self._is_closing:
            self.refused["closing"] += 1
            raise self._shut("closing")
        self._admission.admit(waiter, self._clock(), stuck_us=self._budget_us if self._is_stuck else 0)

    # Batches

    def _wake(self) -> None:
        if self._running is None and not self._lines.is_woken and self._loop is not None:
            self._lines.is_woken, self._woken_ns = True, self._clock()
            self._start = self._loop.call_soon(self._start_next)

    def _start_next(self) -> None:
        """Start a batch, if none runs and somebody waits."""
        if self._start is not None:  # `poll` may be first: one call leads to the next, and there is to be one
            self._start.cancel()
            self._start = None
        self._lines.is_woken, self._is_busy = False, True
        try:
            while self._running is None and (self._small or self._large or self._alone):
                now_ns = self._clock()
                self._expire(now_ns)
                parts, trial = self._lines.cut(now_ns), None
                if parts is None:
                    parts, trial = cut(self._lines, now_ns, self._pace.terms)
                if parts and self._score_batch(parts, trial, now_ns):
                    break  # others are read first
        finally:
            self._is_busy = False
            if self._lines.n_rows:
                self._wake()
        if not self._lines.n_rows:
            self._lines.is_tight = False

    def _score_batch(self, parts: list[tuple[Waiter, int, int]], trial: Trial | None, now_ns: int) -> bool:
        """Score a batch; True: that is done, and its waiters are answered."""
        try:
            rows = self._lines.gather(parts, self.n_features)
            n_rows = len(rows)
            is_quick = trial is None and self._inline.suits(self.batches, self._pace.scoring_ns(n_rows), now_ns)
            if not is_quick:
                done = self._executor.submit(score_rows, self._score, rows, self.n_outputs, self._clock, self._waited)
        except Exception as error:  # noqa: BLE001 - shut down, no thread or memory to be had: whatever it is, they are told
            for waiter, _, _ in parts:
                self._fail(waiter, self._shut(str(error)))
            return False
        batch = Batch(parts, n_rows, now_ns, now_ns + self._pace.terms.batch_ns(n_rows), trial)
        self._running, self._lines.ends_ns = batch, batch.ends_ns
        if is_quick:
            # Nothing runs meanwhile: what it waited for the loop is the time that a batch takes besides scoring.
            batch.began_ns = min(now_ns, self._woken_ns)
            self._score_here(batch, rows)
            return True
        self._watch_over(batch, now_ns)
        done.add_done_callback(lambda done: self._hand_back(batch, done))
        return False

    def _score_here(self, batch: Batch, rows: NDArray[np.float32]) -> None:
        began_ns = self._clock()
        scored, error = try_to_score(self._score, rows, self.n_outputs, self._clock)
        self._inline.note(self.batches, self._clock() - began_ns, has_failed=scored is None)
        self._finish(batch, scored, error)
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise error

    def _hand_back(self, batch: Batch, done: Future[Any]) -> None:
        """From the scoring thread to the event loop."""
        batch.done_ns, batch.done = self._clock(), done
        try:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._end, batch, done)
        except RuntimeError:  # the loop is closed: nobody can be waiting
            log.debug("A batch of %d rows ended after its event loop", batch.n_rows)

    def _end(self, batch: Batch, done: Future[Any]) -> None:
        """Answer a batch's waiters and start the next."""
        batch.done = None  # it leads back to the batch, and what only the collector frees makes long pauses
        if batch is not self._running:
            return  # `poll` was first
        ended_ns = self._clock()
        error = None if done.cancelled() else done.exception()
        self._finish(batch, None if done.cancelled() or error is not None else done.result(), error)
        self._start_next()
        if self._running is not None:
            self._pace.learn_between(batch.n_rows, self._running.began_ns - ended_ns)

    def _finish(
        self, batch: Batch, scored: tuple[NDArray[np.float64], int, int] | None, error: BaseException | None
    ) -> None:
        """Answer the waiters of the running batch: with scores, or with what was wrong; neither: it was called off."""
        now_ns = self._clock()
        self._running, self._is_stuck, self._is_busy, self._lines.ends_ns = None, False, True, 0
        self._lines.is_open, self._woken_ns = not (self._is_closing or self._pace.is_doubted), now_ns
        if error is not None:
            self._blame(batch, error, now_ns)
        elif scored is None:
            for waiter, _, _ in batch.parts:
                self._fail(waiter, self._shut("the scoring threads were shut down"))
        else:
            try:
                self._answer_all(batch, *scored, now_ns)
            except Exception as failure:  # noqa: BLE001 - out of memory, or our own mistake: nobody may hang for it
                for waiter, _, _ in batch.parts:
                    self._fail_scoring(waiter, failure)

    def _answer_all(self, batch: Batch, scores: NDArray[np.float64], scored_ns: int, wait_ns: int, now_ns: int) -> None:
        self._learn(batch, scored_ns, wait_ns, now_ns)
        began_ns = self._clock()
        for waiter, start, stop, at in self._lines.answer(batch.parts, scores, now_ns):
            self._answer(waiter, start, stop, scores[at : at + stop - start], now_ns)
        self._pace.learn_telling(batch.n_rows, self._clock() - began_ns, self._lines)
        self._say_drained()
        if batch.trial is not None:
            batch.trial.has_passed = True

    def _answer(self, waiter: Waiter, start: int, stop: int, scores: NDArray[np.float64], now_ns: int) -> None:
        if waiter.done():
            return
        if stop - start == waiter.n_rows:
            answer = scores.copy()  # the batch's array would live as long as the slowest reader of its neighbours
        else:
            if waiter.scores is None:
                waiter.scores = np.empty((waiter.n_rows, self.n_outputs))
            waiter.scores[start:stop] = scores
            waiter.unscored -= stop - start
            if waiter.unscored:
                return
            answer = waiter.scores
        self._lines.late += now_ns > waiter.due_ns
        waiter.set_result(answer)
        self._close_one()

    def _learn(self, batch: Batch, scored_ns: int, wait_ns: int, now_ns: int) -> None:
        self._admission.learned(now_ns)
        self.batches += 1
        self.rows += batch.n_rows
        self.batch_sizes[(batch.n_rows - 1).bit_length()] += 1
        if self._counters is not None:
            self._counters.add("near_realtime_batches")
            self._counters.add("near_realtime_rows", batch.n_rows)
        self._pace.learn(batch.n_rows, scored_ns, now_ns - batch.began_ns - scored_ns, wait_ns)
        self._pace.tell(self._lines)
        self._lines.is_open = not self._is_closing  # whatever was doubted is known now

    # Who leaves without an answer

    def _blame(self, batch: Batch, error: BaseException, now_ns: int) -> None:
        """Fail, or try once more, the members of a batch that failed."""
        trial = batch.trial
        if trial is None and len(batch.parts) > 1:
            trial = Trial()
            self._lines.is_tight = True
            for waiter, start, stop in batch.parts:
                if waiter.done():
                    continue
                if now_ns + self._pace.terms.batch_ns(stop - start) > waiter.due_ns:
                    self._fail_scoring(waiter, error)
                    continue
                suspect = Suspect(waiter, start, stop, trial)
                waiter.is_suspect = True
                self._alone.insert(bisect_right(self._alone, suspect.due_ns, key=_BY_DUE), suspect)
                self._lines.other_rows += suspect.rest
                self.retried += 1
            self._lines.tell()
            return
        for waiter, _, _ in batch.parts:
            self._fail_scoring(waiter, error)
        if trial is not None:
            trial.strikes += 1
            if trial.strikes >= MAX_STRIKES and not trial.has_passed:
                for suspect in [each for each in self._alone if each.trial is trial]:
                    self._fail_scoring(suspect.waiter, error)

    def _fail_scoring(self, waiter: Waiter, error: BaseException) -> None:
        """Each waiter gets an error of its own: a shared one would gather the tracebacks of all who await it."""
        if waiter.done():
            return
        self.failed += 1
        own = copy_of(error, waiter.n_rows)
        own.__cause__ = error
        self._fail(waiter, own)

    def _fail(self, waiter: Waiter, error: TiercelError) -> None:
        if waiter.done():
            return
        self._withdraw(waiter)
        waiter.set_exception(error)
        self._close_one()

    def _fail_waiting(self, error: Callable[[], TiercelError]) -> None:
        for waiter in (*self._small, *self._large, *(suspect.waiter for suspect in self._alone)):
            self._fail(waiter, error())

    def _expire(self, now_ns: int) -> None:
        """Drop who cannot be done in time any more, though it was let in: scoring it would only make others late."""
        lines: tuple[list[Any], ...] = (self._small, self._large, self._alone)
        for line in lines:
            while line:
                first = line[0]
                if now_ns + self._pace.typical_ns(first.rest) <= first.due_ns:
                    break
                self._drop(first.waiter if isinstance(first, Suspect) else first, now_ns)

    def _drop(self, waiter: Waiter, now_ns: int) -> None:
        self.expired += 1
        needed_ns = self._pace.terms.alone_ns(waiter.unscored)
        self._fail(waiter, became_late(waiter.unscored, needed_ns, waiter.due_ns - now_ns))

    def _cancelled(self, waiter: Waiter) -> None:
        self.cancelled += 1
        self._withdraw(waiter)
        self._close_one()

    def _withdraw(self, waiter: Waiter) -> None:
        """Take what still waits of it out of the lines."""
        if waiter.rest:
            line = self._large if waiter.is_large else self._small
            at = bisect_left(line, waiter.due_ns, key=_BY_DUE)
            while line[at] is not waiter:
                at += 1
            del line[at]
            self._count(waiter, -waiter.rest)
            waiter.rest = 0
        if waiter.is_suspect:
            for suspect in [each for each in self._alone if each.waiter is waiter]:
                self._alone.remove(suspect)
                self._lines.other_rows -= suspect.rest
        self._lines.tell()

    def _count(self, waiter: Waiter, n_rows: int) -> None:
        if waiter.is_large:
            self._lines.other_rows += n_rows
        else:
            self._lines.small_rows += n_rows

    def _close_one(self) -> None:
        self._lines.n_open -= 1
        self._say_drained()

    def _say_drained(self) -> None:
        if self._is_closing and not self._lines.n_open:
            self._drained.set()

    def _shut(self, why: str) -> CapacityError:
        return shut(why, self._budget_us)

    # Batches that take too long

    def _watch_running(self) -> None:
        if self._running is not None:
            self._watch_over(self._running, self._clock())

    def _watch_over(self, batch: Batch, now_ns: int) -> None:
        """Look again when somebody may have to be told that there are no scores yet."""
        look_ns = batch.ends_ns + STUCK_NS if not self._is_stuck else now_ns + 1000 * self._budget_us
        if self._lines.may_leave:
            firsts = [line[0].due_ns for line in (self._small, self._large, self._alone) if line]
            leaves_ns = batch.leaves_ns()
            if leaves_ns is not None:
                firsts.append(leaves_ns)
            look_ns = max(now_ns, min((look_ns, *firsts)))
        if self._watch is not None:
            if self._lines.look_ns <= look_ns:
                return
            self._watch.cancel()
        if self._loop is not None:
            self._lines.look_ns = look_ns
            self._watch = self._loop.call_later((look_ns - now_ns + 500_000) / 1e9, self._look)  # not just before

    def _look(self) -> None:
        """Once in a while under load, never when idle: tell those who would wait for too long, or for ever."""
        self._watch = None
        batch = self._running
        if batch is None:
            return
        now_ns = self._clock()
        if now_ns >= batch.ends_ns + STUCK_NS:
            if not self._is_stuck:
                self._is_stuck, self._lines.is_open = True, False
                log.error("Scoring %d rows has not returned for %.1f s", batch.n_rows, (now_ns - batch.began_ns) / 1e9)
            for waiter, _, _ in batch.parts:
                if not waiter.done():
                    self._drop(waiter, now_ns)
        elif self._lines.may_leave:
            for waiter, _, _ in batch.parts:
                if waiter.can_leave and waiter.due_ns <= now_ns and not waiter.done():
                    self._drop(waiter, now_ns)
        self._expire(now_ns)
        if batch is self._running:  # who is told may come back with the next request, and `poll`
            self._watch_over(batch, now_ns)
