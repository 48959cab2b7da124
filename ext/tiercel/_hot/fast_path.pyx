"""What all connections of a server share, and how they answer; see fast_path.pxd. Owner: tiercel.http.native."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdlib cimport free
from libc.string cimport memcmp

from tiercel._hot.aside cimport QUIET_NS, RECENT_NS, Aside
from tiercel._hot.counters cimport NEAR_REALTIME_REQUESTS, WORKER_ANSWERED, WorkerCounters
from tiercel._hot.http cimport BODY_JSON, BODY_MSGPACK, BODY_TENSORS, Head
from tiercel._hot.lines cimport Lines, leave_by
from tiercel._hot.output cimport Output, put, reserve
from tiercel._hot.plan cimport RELEASE_GIL_BYTES, Arrival, Assembled, Prepared, ServingPlan, dispose
from tiercel._hot.poller cimport Poller, open_poller
from tiercel._hot.prediction cimport Stopwatch
from tiercel._hot.reply cimport ReplyIds
from tiercel._hot.reply_head cimport HeadWriter
from tiercel._hot.tensors cimport TensorRequest, TensorTallies
from tiercel._hot.typedefs cimport int64_t, uint8_t

cdef int64_t NEVER_NS = (<int64_t>1 << 63) - 1
# Of a longer question that a stand-in is to answer the general path looks at so many rows (serving/question_check.py).
cdef enum:
    CHECKED_ROWS = 64


# Sorts of refusals that are remembered; clients that name ever other deadlines are refused one by one.
cdef enum:
    MAX_REFUSALS = 64
    SURE_NS = 10_000_000    # so much longer than they were kept for, to who is known to be refused


cdef class Refusal:
    def __init__(
        self, bytes reply not None, headers, *, int status, str code not None, str cell not None, int64_t until_ns,
        int64_t slack_ns,
    ):
        self.reply, self.headers, self.status, self.code, self.cell = reply, headers, status, code, cell
        self.until_ns, self.slack_ns = until_ns, slack_ns


cdef inline tuple _sort_of(Prepared asked):
    cdef int64_t budget_ns = asked._asked.due_ns - asked._arrival.begun_ns
    return asked.plan, asked.kind, asked.n_rows, asked._watch.budget_source, budget_ns


cdef class Refusals:
    def __init__(self):
        self._known = {}

    def __len__(self):
        return len(self._known)

    def keep(self, Prepared asked not None, Refusal refusal not None):
        """Say the same to others like it."""
        if len(self._known) >= MAX_REFUSALS:
            self._known.clear()
        self._known[_sort_of(asked)] = refusal

    def clear(self):
        """Forget all of them."""
        self._known.clear()

    cdef Refusal find(self, Prepared asked, int64_t now_ns, object headers, bint is_sure):
        """What is still true of a question, or None. is_sure: that it is refused; then the numbers may be a little older."""
        cdef Refusal found = self._known.get(_sort_of(asked))
        if found is None or found.headers is not headers or now_ns >= found.until_ns + (SURE_NS if is_sure else 0):
            return None
        return found if is_sure or asked._asked.due_ns - now_ns <= found.slack_ns else None


cdef class FastPath:
    def __init__(
        self, engine, *, double header_timeout_s, double body_timeout_s, double idle_timeout_s,
        double busy_poll_us=0, Py_ssize_t max_body_bytes, Py_ssize_t max_connections, ReplyIds ids not None, hand_on, refuse,
        WorkerCounters counters=None, bint hands_on_traced=False, TensorTallies tallies=None,
    ):
        self._engine = engine
        self.header_timeout_s, self.body_timeout_s = header_timeout_s, body_timeout_s
        self.idle_timeout_s, self.busy_poll_us = idle_timeout_s, busy_poll_us
        self.max_body_bytes, self.max_connections = max_body_bytes, max_connections
        self._ids, self._hand_on, self._refuse = ids, hand_on, refuse
        self._counters = WorkerCounters() if counters is None else counters
        self._tallies = TensorTallies() if tallies is None else tallies
        self.hands_on_traced = hands_on_traced
        self._reference, self._heads, self.aside = b"", HeadWriter(), Aside()
        self.late, self.full, self.shed = Refusals(), Refusals(), Refusals()

    def __dealloc__(self):
        free(self._out.data)

    @property
    def answered(self):
        """Requests this path answered."""
        return self._counters.cells[<int>WORKER_ANSWERED]

    cdef Poller _poller_of(self, loop):
        if (self._poller is None or self._poller.loop is not loop) and not self._has_no_poller:
            self._poller = open_poller(loop, <int64_t>(1000 * self.busy_poll_us), self._counters)
            self._has_no_poller = self._poller is None
        return self._poller

    @property
    def poller(self):
        """What reads the connections, or None: there were none yet, or their transports do."""
        return self._poller

    def watch(self, loop, int fd, call):
        """Call `call` whenever `fd` can be read, in its turn among the connections that are read last."""
        poller = self._poller_of(loop)
        try:
            if poller is not None:
                poller.add(fd, call, True)
                return
        except OSError:     # it takes no more
            pass
        loop.add_reader(fd, call)

    def unwatch(self, loop, int fd, call):
        """End it, before `fd` is closed."""
        if self._poller is None or not self._poller.remove(fd, call):
            loop.remove_reader(fd)

    def read_between(self):
        """In the middle of something longer, and with nothing in the output buffer: answer who cannot wait.

        Nothing happens in the middle of reading, or of the bytes of a connection: what is read may be more of those.
        """
        cdef Poller poller = self._poller
        if poller is None or self._is_polling:
            return
        try:
            poller.read_between()
        except Exception as error:      # not the fault of whoever is told between
            poller.loop.call_exception_handler({"message": "Reading between failed", "exception": error})

    def close(self):
        """The event loop is about to end: transports read what still comes."""
        if self._poller is not None:
            self._poller.close()
        self._poller, self._has_no_poller = None, True

    cdef ServingPlan _find(self, const uint8_t* reference, Py_ssize_t length):
        """The plan of a reference, or None. Most requests name what the one before named."""
        routes = self._engine.routes
        if (
            routes is not self._routes
            or length != PyBytes_GET_SIZE(self._reference)
            or memcmp(PyBytes_AS_STRING(self._reference), reference, <size_t>length) != 0
        ):
            if routes is not self._routes:
                self._lines = self._lines_plan = None
                for refusals in (self.late, self.full, self.shed):
                    refusals.clear()        # of plans that may be gone
            self._reference = PyBytes_FromStringAndSize(<const char*>reference, length)
            name, _, version = self._reference.decode("ascii").partition("/versions/")
            self._plan = routes.by_reference.get(f"{name}:{version}" if version else name)
            self._routes = routes
        return self._plan

    cdef Lines _lines_of(self, ServingPlan plan):
        if self._lines_plan is not plan:
            self._lines, self._lines_plan = self.queue.lines(plan), plan
            self._lines.between = self.read_between
        return self._lines

    cpdef int64_t queue_due_ns(self, Prepared asked, bint can_leave) noexcept:
        """When a body's question is due in its queue: sooner than its answer where another model answers who waits in vain."""
        cdef int64_t due_ns = asked._asked.due_ns
        if not can_leave:
            return due_ns
        return leave_by(
            due_ns, due_ns - asked._arrival.begun_ns, asked.plan._needs.read_ns + asked._asked.score_ns, self.socket_peak_ns
        )

    cdef bint _polls(self, Py_ssize_t n_connections, int64_t now_ns) noexcept:
        """Whether queues have to be looked after, or reading may be behind: it is not where all connections, as quickly as
        those that were read lately, are read sooner than that. Who is ready is read in turn, in the first set and in the
        later one, so nobody waits longer."""
        cdef int64_t since_ns = min(now_ns - self._polled_ns, <int64_t>RECENT_NS), n_turns = self._n_turns
        self._polled_ns, self._n_turns = now_ns, 0
        if (
            now_ns - self.aside._tightest_at_ns[1] <= <int64_t>RECENT_NS or len(self.aside) > 0
            or 2 * n_connections * since_ns >= n_turns * <int64_t>QUIET_NS
        ):
            return True
        self.aside.n_read = self.socket_wait_ns = 0
        return False

    cdef bint _answer(
        self, ServingPlan plan, const uint8_t* body, const Head* head, const Arrival* arrival, bint close, tuple told
    ):
        """Append the reply to one body to the output buffer; False to hand the request on (`_why`).

        told: what the reply says behind its own fields, by kind of body, or None.
        """
        cdef Output* out = &self._out
        cdef Py_ssize_t start = out.size, length, room = self._heads.room()
        cdef Stopwatch watch
        cdef TensorRequest tensors
        cdef TensorRequest* request = &tensors if head.kind == BODY_TENSORS else NULL
        tensors.header_length = head.header_length
        if not reserve(out, room):
            return False
        watch.budget_us = -1
        # The body goes where the longest head would end; the head is written once its length is known.
        out.size += room
        if head.content_length >= RELEASE_GIL_BYTES:
            with nogil:
                length = plan.answer_into(body, head.content_length, head.kind, arrival, self._ids, out, &watch, request)
        else:
            length = plan.answer_into(body, head.content_length, head.kind, arrival, self._ids, out, &watch, request)
        self._why = None if length > -2 else "deadline" if length == -2 and arrival.shed_ns == 0 else "overloaded"
        self._budget_us = watch.budget_us if watch.budget_us >= 0 else plan._default_budget_us
        if length < 0 or (told is not None and not _extend(out, start + room, head.kind, told)):
            out.size = start
            return False
        length = out.size - start - room
        if request is not NULL:
            self._heads.write_tensors(out, start, length, tensors.json_bytes, close)
            self._tallies.of(plan.model, plan.version).add(&watch, tensors.n_rows, arrival.wall_us, arrival.begun_ns)
        else:
            self._heads.write(out, start, length, head.kind, &watch, close)
        self._counters.cells[<int>WORKER_ANSWERED] += 1
        return True

    cdef bint _is_question(self, ServingPlan plan, const uint8_t* body, const Head* head, const Arrival* arrival) noexcept:
        """Whether a plan would answer a body if it had the time; False: not, or only the general path can tell.

        For who answers instead and does not read all of it: a client's mistake must not depend on how busy a server is.
        """
        cdef Assembled asked
        cdef Stopwatch watch
        cdef Arrival ample = arrival[0]
        cdef Py_ssize_t most = min(self._ids.max_rows, <Py_ssize_t>CHECKED_ROWS)
        ample.begun_ns, ample.shed_ns = NEVER_NS // 2, 0        # whatever its budget, it is not late
        if not plan._assemble_body(
            body, head.content_length, head.kind, &ample, most, NEVER_NS, 0, &asked, &watch, NULL
        ):
            return False
        dispose(&asked)
        return True

    cdef int _complete(self, Prepared prepared, scores, bint close) except -1:
        """Append the reply to a question that was scored elsewhere; `scores`: None if it has them. Raises as
        Prepared.give_scores."""
        cdef Output* out = &self._out
        cdef Py_ssize_t start = out.size, length, room = self._heads.room()
        cdef Py_ssize_t most = prepared.plan._form.most_bytes(prepared.n_rows)
        if scores is not None:
            prepared.give_scores(scores)
        if not reserve(out, room + most):
            raise MemoryError(f"No memory for a reply of {prepared.n_rows} rows")
        length = prepared._reply_into(<char*>out.data + start + room, prepared.kind, self._ids, 0)
        self._heads.write(out, start, length, prepared.kind, &prepared._watch, close)
        self._counters.cells[<int>WORKER_ANSWERED] += 1
        self._counters.cells[<int>NEAR_REALTIME_REQUESTS] += 1
        return 0


cdef bint _extend(Output* out, Py_ssize_t start, int kind, tuple told):
    """Add to the fields of the reply at `start`, which is the last in `out`; see http/payload.py."""
    cdef bytes more
    if kind == BODY_JSON:
        out.size -= 1       # "}"
        more = told[0]
    elif kind == BODY_MSGPACK:
        out.data[start] += 1    # a map of less than 15
        more = told[1]
    else:
        return False
    return put(out, PyBytes_AS_STRING(more), PyBytes_GET_SIZE(more))
