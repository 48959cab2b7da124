"""The connection's hot path; see protocol.pxd for the contract. Owner: tiercel.http.native."""

from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE, PyByteArray_Resize
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.string cimport memchr, memcpy

from tiercel._hot.aside cimport QUIET_NS, RECENT_NS
from tiercel._hot.clock cimport monotonic_ns, monotonic_s, wall_us
from tiercel._hot.connection cimport (
    PATIENT, PHASE_AWAY, PHASE_BODY, PHASE_HEAD, PHASE_IDLE, PHASE_PAUSED, PHASE_WAITING, Connection, Phase,
)
from tiercel._hot.counters cimport WORKER_ANSWERED, WORKER_CONNECTIONS, WORKER_DISCONNECTIONS
from tiercel._hot.fast_path cimport FastPath, Refusal, Refusals
from tiercel._hot.http cimport BODY_TENSORS, HEAD_FAST, HEAD_NEED_MORE, Head, HeadStatus, parse_head
from tiercel._hot.lines cimport ENTRY_REFUSED, ENTRY_TAKEN, Entry, Seat, seat_of
from tiercel._hot.marks cimport forget, mark, read_at
from tiercel._hot.output cimport put
from tiercel._hot.plan cimport OWN_DEFAULT, Arrival, Prepared, ServingPlan
from tiercel._hot.prediction cimport PREDICTION_FAST
from tiercel._hot.sockets cimport unread_ns
from tiercel._hot.typedefs cimport int64_t, uint8_t, uint32_t

# A connection closed for draining first gets this long to bring what is already on its way, and a busy client on a busy
# machine to send its next request: the answer to that says `connection: close`, and nobody writes into a closed socket.
DRAIN_S = 1.0

# Longer than any deadline.
cdef int64_t ALL_NS = <int64_t>1 << 60


cdef bint _has_numbers(Prepared prepared, scores):
    """Whether these are scores of the question, and numbers; else somebody else answers."""
    try:
        if scores is not None:
            prepared.give_scores(scores)
    except Exception:
        return False
    return prepared.plan.is_finite(&prepared._asked)


cdef class HotProtocol(Connection):

    # -- the life of the connection ------------------------------------------------------------------------------

    def connection_made(self, transport):
        self.path._counters.cells[<int>WORKER_CONNECTIONS] += 1
        if len(self.server_state.connections) >= self.path.max_connections:
            self.path._refuse(
                self, transport, 503, "too_many_connections",
                f"Expected at most {self.path.max_connections} connections, got one more. Close some, or try later.",
            )
            return
        self.adopt(transport, False)

    def adopt(self, transport, bint write_paused):
        """Take an idle connection: a new one, or one that the general protocol has finished with."""
        self._open(transport, write_paused)

    def connection_lost(self, exc):
        self.path._counters.cells[<int>WORKER_DISCONNECTIONS] += 1
        place, self._place = self._place, None
        self._leave()
        if place is not None:
            place.cancel()

    def eof_received(self):
        # What was answered is flushed, and the transport closes. A question that waits is withdrawn (connection_lost): who
        # sends no more and who is gone look alike, and the general path takes them for the same.
        return None

    def shutdown(self):
        """Close when idle; otherwise answer what has begun to arrive, then close (uvicorn calls this once)."""
        self._draining = True
        self.come_back()
        if self._phase == PHASE_IDLE:
            # A request may be in the socket already: the loop reads it before this timer fires.
            self.loop.call_later(DRAIN_S, self._close_if_idle)

    def _close_if_idle(self):
        if self._phase == PHASE_IDLE:
            self._close()

    def come_back(self):
        """Read on, after a request was refused (`Aside`)."""
        if self._is_aside:
            self._is_aside, self._came_back = False, True
            self._set_reading(True)

    def pause_writing(self):
        self._write_paused = True

    def resume_writing(self):
        self._write_paused = False
        if self._phase == PHASE_PAUSED:
            self._go_on()

    cdef int _go_on(self, bint says_close=True) except -1:
        """Take up what came while nothing could be answered. says_close: the last reply did, should this be drained."""
        self._set_phase(PHASE_IDLE, True)
        if self._write_paused:
            self._set_phase(PHASE_PAUSED, True)
            self._set_reading(False)
            return 0
        if self._buffer is not None:
            self._take_buffer()
        if self._phase == PHASE_PAUSED or self._phase == PHASE_AWAY or self._phase == PHASE_WAITING or self._is_aside:
            return 0
        self._set_reading(True)
        if self._draining and self._phase == PHASE_IDLE and says_close:
            self._close()
        elif self._draining and self._phase == PHASE_IDLE:
            self.loop.call_later(DRAIN_S, self._close_if_idle)
        return 0

    cdef int _leave(self) except -1:
        Connection._leave(self)
        self._is_aside = False
        self._buffer = self._asked = self._place = self._request = self._held = None
        self._marks.n = 0
        return 0

    # -- requests ------------------------------------------------------------------------------------------------

    cdef int _read(self, const uint8_t* data, Py_ssize_t size) except -1:
        if self._buffer is None and self._phase != PHASE_PAUSED and self._phase != PHASE_WAITING:
            return self._take(data, size, True)
        if self._buffer is None:
            self._buffer = bytearray()
            self.begun_ns = monotonic_ns()
        if self._marks.n > 0 or self._phase == PHASE_WAITING or self._phase == PHASE_PAUSED:
            mark(&self._marks, PyByteArray_GET_SIZE(self._buffer), monotonic_ns())
        PyByteArray_Resize(self._buffer, PyByteArray_GET_SIZE(self._buffer) + size)
        memcpy(PyByteArray_AS_STRING(self._buffer) + PyByteArray_GET_SIZE(self._buffer) - size, data, <size_t>size)
        if self._phase == PHASE_WAITING:
            if PyByteArray_GET_SIZE(self._buffer) > WAITING_BYTES:
                self._set_reading(False)
        elif self._phase != PHASE_PAUSED and PyByteArray_GET_SIZE(self._buffer) >= self._needed:
            self._take_buffer()
        return 0

    cdef int _take_buffer(self) except -1:
        return self._take(<const uint8_t*>PyByteArray_AS_STRING(self._buffer), PyByteArray_GET_SIZE(self._buffer), False)

    cdef int _take(self, const uint8_t* data, Py_ssize_t size, bint is_new) except -1:
        """Answer what can be answered. is_new: `data` was just read; else it is the buffer."""
        cdef Py_ssize_t consumed = 0
        cdef Phase before = self._phase
        cdef Outcome outcome
        if size == 0:
            self._buffer = None
            return 0
        outcome = self._answer_all(data, size, is_new, &consumed)
        if outcome == OUTCOME_DONE:
            self._buffer = None
            self._marks.n = 0
            self._set_phase(PHASE_IDLE, True)
            if self._write_paused:
                self._set_phase(PHASE_PAUSED, True)
                self._set_reading(False)
            elif self._draining:
                self._close()
            elif self._is_refused and self.path.aside.is_too_much(
                monotonic_ns(), self.path.socket_wait_ns, self._is_later
            ):
                self._is_aside = True
                self._set_reading(False)
                self.path.aside.add(self, self.loop)
            return 0
        rest = None
        if is_new:
            rest = PyBytes_FromStringAndSize(<const char*>data + consumed, size - consumed)
        elif consumed:
            del self._buffer[:consumed]
            forget(&self._marks, consumed)
        if outcome == OUTCOME_HAND_ON:
            if rest is None:
                rest = bytes(self._buffer)
            if consumed or before == PHASE_IDLE:
                self._deadline = monotonic_s() + self.path.header_timeout_s
            self._hand(rest, max(0.0, self._deadline - monotonic_s()))
            return 0
        if rest is not None:
            self._buffer = bytearray(rest)
        if PyByteArray_GET_SIZE(self._buffer) == 0:
            self._buffer = None
            self._marks.n = 0
        elif self._marks.n == 0:
            mark(&self._marks, 0, self.begun_ns)
        if outcome == OUTCOME_WAITING:
            self._set_phase(PHASE_WAITING, True)
            return 0
        # A partial request must not keep the reading open: answered piece by piece, it would fill the transport for ever.
        if outcome == OUTCOME_PAUSED or self._write_paused:
            self._set_phase(PHASE_PAUSED, True)
            self._set_reading(False)
        else:
            self._set_phase(PHASE_HEAD if self._needed == 0 else PHASE_BODY, consumed > 0)
        return 0

    cdef Outcome _answer_all(self, const uint8_t* data, Py_ssize_t size, bint is_new, Py_ssize_t* consumed) except *:
        """Answer requests from the start of `data`; `consumed` bytes of it are then done with, and written.

        is_new: nothing of `data` was there before this read.
        """
        cdef FastPath path = self.path
        cdef Py_ssize_t offset = 0, total
        cdef Outcome outcome = OUTCOME_DONE
        cdef Head head
        cdef HeadStatus status
        cdef ServingPlan plan
        cdef Arrival arrival
        cdef int64_t wait_ns, unread, came_ns
        cdef bint close, is_behind, was_polling
        arrival.wall_us, arrival.read_ns, arrival.flags = wall_us(), monotonic_ns(), PREDICTION_FAST
        arrival.default_us, came_ns = OWN_DEFAULT, arrival.read_ns
        if is_new:
            self.begun_ns = came_ns
        if path.queue is not None and arrival.read_ns - path._polled_ns >= POLL_NS and path._polls(
            len(self.server_state.connections), arrival.read_ns
        ):
            # Before `_out` is ours: it may answer others. `data` may be our buffer, so nobody is read meanwhile.
            was_polling, path._is_polling = path._is_polling, True
            try:
                path.queue.poll(self.loop)
            finally:
                path._is_polling = was_polling
            arrival.read_ns = monotonic_ns()    # a batch may have been scored
            path.aside.poll(arrival.read_ns, path.socket_wait_ns)
        # The probe tells whether reading is behind for somebody; for this connection the kernel knows.
        wait_ns = path.socket_wait_ns
        is_behind = self._came_back or wait_ns > QUIET_NS
        unread = self._unread_ns if is_new else 0
        if unread < 0:
            unread = unread_ns(self._fd) if is_behind else 0
        self._is_refused = self._came_back = False
        path._out.size, self._needed = 0, 0
        path._n_turns = path._n_turns + 1
        path._heads.refresh(self.server_state)
        while offset < size:
            status = parse_head(data + offset, size - offset, path.max_body_bytes, &head)
            if status != HEAD_FAST:
                outcome = OUTCOME_PARTIAL if status == HEAD_NEED_MORE else OUTCOME_HAND_ON
                break
            total = head.head_length + head.content_length
            if size - offset < total:
                outcome, self._needed = OUTCOME_PARTIAL, total
                break
            plan = path._find(data + offset + head.reference_start, head.reference_length)
            arrival.begun_ns, arrival.budget_us, arrival.budget_source = self.begun_ns, head.budget_us, head.budget_source
            if plan is None or head.content_length == 0 or (head.is_traced and path.hands_on_traced):
                outcome = OUTCOME_HAND_ON
                break
            path.aside.n_read += 1
            self._n_patient = min(self._n_patient + 1, <int>PATIENT) if plan.is_queued else 0
            arrival.shed_ns, arrival.is_cheap = 0, False
            if self.begun_ns == came_ns:        # read just now; the marks know of the others
                if unread < 0:
                    unread = wait_ns if plan.is_queued else 0
                arrival.begun_ns -= unread
                if is_behind and unread > QUIET_NS and path.queue is not None and path.aside.sheds(
                    plan.is_queued, unread, arrival.read_ns, self._is_later
                ):
                    arrival.shed_ns = ALL_NS
                    arrival.is_cheap = (
                        plan.is_queued and not self._is_later and arrival.read_ns - path.aside.inline_ns <= <int64_t>RECENT_NS
                        and path._lines_of(plan).is_cheap()
                    )
            close = self._draining and offset + total == size
            if plan.is_queued:
                outcome = self._park(plan, data + offset, &head, &arrival, close, &offset)
                if outcome != OUTCOME_DONE:
                    break
            elif plan.is_strict:
                outcome = self._hold(plan, data + offset, &head, &arrival, close, &offset)
                if outcome != OUTCOME_DONE:
                    break
            elif not (
                path._answer(plan, data + offset + head.head_length, &head, &arrival, close, None)
                or (path._why is not None and self._stand_in(plan, data + offset, &head, &arrival, close, path._why))
                or self._refuse_for_time(plan, data + offset, &head, &arrival, close)
            ):
                outcome = OUTCOME_HAND_ON
                break
            else:
                offset += total
                path.aside.note_inline(1000 * path._budget_us, arrival.read_ns)
            self.begun_ns = read_at(&self._marks, offset, came_ns)
            if path._out.size >= WRITE_BYTES:
                self._flush()
                if self._write_paused:
                    # With nothing left the caller pauses just the same; see OUTCOME_DONE there.
                    outcome = OUTCOME_PAUSED if offset < size else OUTCOME_DONE
                    break
        self._flush()
        consumed[0] = offset
        return outcome

    cdef Outcome _park(
        self, ServingPlan plan, const uint8_t* request, const Head* head, const Arrival* arrival, bint close,
        Py_ssize_t* consumed,
    ) except *:
        """Put a request into the queue of its model: OUTCOME_WAITING, or _HAND_ON; _DONE when it is refused in `_out`."""
        cdef FastPath path = self.path
        cdef Prepared prepared
        cdef Seat seat
        cdef Entry entry
        cdef bint can_leave
        cdef Py_ssize_t total = head.head_length + head.content_length
        if path.queue is None or head.kind == BODY_TENSORS:
            return OUTCOME_HAND_ON
        prepared = plan.prepare_body(request + head.head_length, head.content_length, head.kind, arrival, path._ids)
        if prepared is None:
            return OUTCOME_HAND_ON
        path.aside.note(
            True, prepared._asked.due_ns - prepared._arrival.begun_ns, arrival.read_ns, prepared._asked.score_ns
        )
        if prepared._asked.is_late and not plan.has_stand_in:
            if not self._refuse_late(prepared, arrival, close):
                return OUTCOME_HAND_ON
            consumed[0] += total
            return OUTCOME_DONE
        if not close and not plan.has_stand_in and self._refuse_again(path.full, prepared, arrival.read_ns):
            consumed[0] += total
            return OUTCOME_DONE
        self._flush()       # entering may answer others through the same buffer
        if not prepared._asked.is_late:
            can_leave = plan.has_stand_in and not _is_version(request, head)    # an alias may be the champion's
            seat = seat_of(prepared, self, path.queue_due_ns(prepared, can_leave), can_leave)
            entry = path._lines_of(plan).take_in(seat, arrival.read_ns)
            if entry == ENTRY_TAKEN:
                place = seat
            elif entry == ENTRY_REFUSED and plan.has_stand_in:
                place = "overloaded"
            elif entry == ENTRY_REFUSED and not close and self._refuse_again(path.full, prepared, arrival.read_ns, True):
                consumed[0] += total
                return OUTCOME_DONE
            else:
                place = path.queue.enter(prepared, self, close, can_leave)
        else:
            place = "deadline" if arrival.shed_ns == 0 else "overloaded"
        if place is None or (type(place) is str and not (
            self._stand_in(plan, request, head, arrival, close, place)
            or self._refuse_for_time(plan, request, head, arrival, close)
        )):
            return OUTCOME_HAND_ON
        consumed[0] += total
        if type(place) is str:
            return OUTCOME_DONE
        if type(place) is bytes:
            if not put(&path._out, PyBytes_AS_STRING(<bytes>place), PyBytes_GET_SIZE(<bytes>place)):
                raise MemoryError("No memory for a refusal")
            self._is_refused = True
            return OUTCOME_DONE
        self._asked, self._place, self.begun_ns = prepared, place, read_at(&self._marks, consumed[0], arrival.read_ns)
        self._request = PyBytes_FromStringAndSize(<const char*>request, total) if plan.has_stand_in else None
        return OUTCOME_WAITING

    cdef Outcome _hold(
        self, ServingPlan plan, const uint8_t* request, const Head* head, const Arrival* arrival, bint close,
        Py_ssize_t* consumed,
    ) except *:
        """Answer a request whose record must be durable first: OUTCOME_WAITING, or _HAND_ON; _DONE when it is refused."""
        cdef FastPath path = self.path
        cdef bytes held
        self._flush()
        if path.audit is None or not path._answer(plan, request + head.head_length, head, arrival, close, None):
            return OUTCOME_HAND_ON
        held = PyBytes_FromStringAndSize(<const char*>path._out.data, path._out.size)
        path._out.size = 0
        path._counters.cells[<int>WORKER_ANSWERED] -= 1     # not yet
        consumed[0] += head.head_length + head.content_length
        if plan._recorder is None or not plan._recorder.is_recorded:
            told = path.audit.refusal(self, head.kind, close)
            if not put(&path._out, PyBytes_AS_STRING(<bytes?>told), PyBytes_GET_SIZE(<bytes>told)):
                raise MemoryError("No memory for a refusal")
            return OUTCOME_DONE
        self._held, self._says_close, self.begun_ns = held, close, read_at(&self._marks, consumed[0], arrival.read_ns)
        path.audit.hold(self, held, head.kind, close)
        return OUTCOME_WAITING

    def release(self, bytes held not None, bytes refusal):
        """Send the reply that is held or, where its record is not durable, what refuses it; then go on."""
        cdef FastPath path = self.path
        if held is not self._held or self._phase != PHASE_WAITING:
            return      # its client is gone
        self._held = None
        if refusal is None:
            path._counters.cells[<int>WORKER_ANSWERED] += 1
        transport, path._out.size = self._transport, 0
        told = held if refusal is None else refusal
        try:
            if not put(&path._out, PyBytes_AS_STRING(<bytes>told), PyBytes_GET_SIZE(<bytes>told)):
                raise MemoryError("No memory for a reply")
            self._flush()
            self._go_on(self._says_close)
        except BaseException:
            self._abort(transport)      # nobody else would ever answer, or read on
            raise

    cdef bint _stand_in(
        self, ServingPlan plan, const uint8_t* request, const Head* head, const Arrival* arrival, bint close, str reason
    ):
        """Append the answer of a model's fallback, where it can be given here; False to hand the request on."""
        cdef FastPath path = self.path
        cdef Arrival came = arrival[0]
        path._is_lost = False
        if path.queue is None or not plan.has_stand_in:
            return False
        if head.kind == BODY_TENSORS:       # the reply says it elsewhere
            return False
        if _is_version(request, head) or _has(request, head, c"@"):     # the general path tells the champion's alias
            return False
        # A question that would be late was not looked at.
        if (reason == "deadline" or came.shed_ns > 0) and not path._is_question(plan, request + head.head_length, head, arrival):
            return False
        found = path.queue.stand_in(plan, reason)
        if found is None:
            return False
        came.flags, came.shed_ns = came.flags | <uint32_t>found[2], 0
        came.default_us = plan._default_budget_us       # whoever answers, the model was asked
        if not path._answer(found[0], request + head.head_length, head, &came, close, found[1]):
            path._is_lost = path._why == "deadline"
            return False
        path._counters.add("degraded_fallback")
        return True

    cdef bint _refuse_for_time(
        self, ServingPlan plan, const uint8_t* request, const Head* head, const Arrival* arrival, bint close
    ):
        """Refuse in `_out` what was not answered for want of time, by a stand-in neither; False: the general path is to."""
        cdef Prepared prepared
        if self.path._why is None or self.path.queue is None or head.kind == BODY_TENSORS:
            return False
        if plan.has_stand_in and not self.path._is_lost:
            return False
        prepared = plan.prepare_body(request + head.head_length, head.content_length, head.kind, arrival, self.path._ids)
        return prepared is not None and bool(prepared._asked.is_late) and self._refuse_late(prepared, arrival, close)

    cdef bint _refuse_late(self, Prepared asked, const Arrival* arrival, bint close) except *:
        """Refuse in `_out` a question that would be late, or has to make room for others; False: the general path is to."""
        cdef FastPath path = self.path
        cdef bint is_shed = arrival.shed_ns > 0 and not asked.plan.has_stand_in and (
            arrival.read_ns + asked.plan._needs.read_ns + asked._asked.score_ns <= asked._asked.due_ns
        )
        if not close and self._refuse_again(path.shed if is_shed else path.late, asked, arrival.read_ns):
            return True
        told = path.queue.shed(asked, self, close) if is_shed else path.queue.late(asked, self, close)
        if told is None:
            return False
        if not put(&path._out, PyBytes_AS_STRING(<bytes?>told), PyBytes_GET_SIZE(<bytes>told)):
            raise MemoryError("No memory for a refusal")
        self._is_refused = True
        return True

    cdef bint _refuse_again(self, Refusals refusals, Prepared asked, int64_t now_ns, bint is_sure=False):
        """Refuse a question as the last one like it was. is_sure: that it is refused is known, only the words are not."""
        cdef FastPath path = self.path
        cdef Refusal refusal = refusals.find(asked, now_ns, self.server_state.default_headers, is_sure)
        if refusal is None or not put(&path._out, PyBytes_AS_STRING(refusal.reply), PyBytes_GET_SIZE(refusal.reply)):
            return False
        path._counters.count_reply(refusal.status, refusal.code)
        path._counters.add(refusal.cell)
        self._is_refused = True
        return True

    def complete(self, Prepared prepared not None, scores, error):
        """Answer the question that waits, with an error or, where that is None, with its scores (None: it has them); go on."""
        if prepared is not self._asked or self._phase != PHASE_WAITING:
            return      # its client is gone
        transport = self._transport
        try:
            self._answer_waiting(prepared, scores, error)
        except BaseException:
            self._abort(transport)      # nobody else would ever answer, or read on
            raise

    cdef int _answer_waiting(self, Prepared prepared, scores, error) except -1:
        cdef FastPath path = self.path
        cdef bint close
        request, self._request, self._asked, self._place = self._request, None, None, None
        if request is not None and (error is not None or not _has_numbers(prepared, scores)):
            if self._stand_in_later(prepared, <bytes>request, error):
                self._flush()
                self._go_on()
                return 0
            self.begun_ns = prepared._arrival.begun_ns
            self._hand(request if self._buffer is None else request + self._buffer, path.header_timeout_s)
            return 0
        close = self._draining and self._buffer is None
        path._out.size = 0
        path._heads.refresh(self.server_state)
        if error is None:
            try:
                path._complete(prepared, scores, close)
            except Exception as failure:
                error, path._out.size = failure, 0
        if error is not None:
            told = path.queue.refusal(prepared, error, self, close)
            if not put(&path._out, PyBytes_AS_STRING(<bytes?>told), PyBytes_GET_SIZE(<bytes>told)):
                raise MemoryError("No memory for an error")
        self._flush()
        self._go_on()
        return 0

    cdef bint _stand_in_later(self, Prepared prepared, bytes request, error):
        """As `_stand_in`, for a question that has waited in vain."""
        cdef FastPath path = self.path
        cdef Head head
        cdef const uint8_t* data = <const uint8_t*>PyBytes_AS_STRING(request)
        if parse_head(data, PyBytes_GET_SIZE(request), path.max_body_bytes, &head) != HEAD_FAST:
            return False
        path._out.size = 0
        path._heads.refresh(self.server_state)
        return self._stand_in(
            prepared.plan, data, &head, &prepared._arrival, self._draining and self._buffer is None,
            path.queue.reason(error),
        )

    cdef int _hand(self, bytes data, double deadline_s) except -1:
        """Give the connection to the general path, with the bytes that are not answered."""
        transport = self._transport
        self._return_reading()
        self._leave()
        try:
            self.path._hand_on(self, transport, data, deadline_s, self._write_paused, self._draining)
        except BaseException:
            transport.abort()       # it may be nobody's
            raise
        return 0


cdef inline bint _is_version(const uint8_t* request, const Head* head) noexcept:
    """Whether a certain version is asked for, which has no stand-in: "name:3" or "name/versions/3"."""
    return _has(request, head, c":") or _has(request, head, c"/")


cdef inline bint _has(const uint8_t* request, const Head* head, uint8_t byte) noexcept:
    """Whether a model is referred to with such a byte."""
    return memchr(request + head.reference_start, byte, <size_t>head.reference_length) is not NULL
