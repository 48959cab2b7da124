# plan.pxd - everything one (model version, feature service) needs to answer, wired together.
#
# A ServingPlan turns entity keys and request-time features into scores: keys -> stored rows -> request features ->
# on-demand transforms -> scorer -> reply -> record. Every HTTP path calls the same plan object, so every path gives the
# same answer.
#
# A request may have a deadline. A stage is begun only if what it is measured to take (`needs_us`) fits what is left; where
# it does not, answer_into() hands on, and the general path finds another answer or refuses. Where somebody can stand in for
# the model, it hands on too what would keep the event loop for too much of the time, though it would be in time itself.
#
# Owns   : its VectorProgram (which keeps the sealed base mapped), its scorer and its recorder. A plan is immutable; a new
#          base or a new version makes a new plan, and requests in flight finish on the one they started with.
# Lends  : nothing.
# GIL    : predict() and reply() need it, and release it to score RELEASE_GIL_ROWS rows and more. answer_into() needs
#          none, and takes it only for a scorer that is Python.
# Threads: safe, but for a plan with a recorder: answers that are recorded come from one thread.
from tiercel._hot.assembler cimport Assembler
from tiercel._hot.explained cimport Explained, Explanations
from tiercel._hot.needs cimport Needs
from tiercel._hot.output cimport Output
from tiercel._hot.payload cimport Body
from tiercel._hot.prediction cimport Stopwatch
from tiercel._hot.recorder cimport PlanRecorder
from tiercel._hot.reasons cimport ReasonForm
from tiercel._hot.reply cimport ReplyForm, ReplyIds
from tiercel._hot.scorer cimport Scorer
from tiercel._hot.tensors cimport TensorForm, TensorRequest
from tiercel._hot.typedefs cimport int64_t, uint8_t, uint32_t, uint64_t
from tiercel._hot.vector cimport Scratch, VectorProgram

cdef enum:
    OWN_DEFAULT = -2
    FEW_FIELDS = 64        # a body's fields, no more than these, are read into the stack
    RELEASE_GIL_BYTES = 16384   # a body of this size has rows enough to keep the GIL from others for long


# When a request came.
cdef struct Arrival:
    int64_t wall_us        # since the epoch; the time of the read unless the request says another
    int64_t read_ns        # of the monotonic clock: when the socket was read, and the request was whole
    int64_t begun_ns       # ... when its first byte was read: from then on budgets count
    int64_t budget_us      # as a header says; -1: none does
    int budget_source      # BudgetSource: which header
    int64_t default_us     # given to a request that names none, -1: none; OWN_DEFAULT: what the plan gives its own
    uint32_t flags         # PredictionFlag
    int64_t shed_ns        # counted as over of its time, where it has a deadline: of one that has to make room
    bint is_cheap          # in a queue: one row costs its batch so little that refusing it would make room for nobody


# The rows of one body, put together by one plan. `scratch` may point into itself, so this never moves.
cdef struct Assembled:
    Scratch scratch
    Output keys            # as Prediction.keys wants them; empty where the plan records nothing
    int64_t now_us         # the time of the read, for ages and ttl
    int64_t age_us         # of the oldest stored value that has a time; -1: none
    int64_t due_ns         # of the monotonic clock; NEVER_NS: nobody asked for a deadline
    int64_t score_ns       # what scoring is measured to take
    const uint8_t* request # for the record: the body as it came, borrowed; NULL: none
    Py_ssize_t request_bytes
    int64_t request_header # of tensors, as TensorRequest has it
    uint32_t request_kind  # RequestKind
    Py_ssize_t n_rows
    int explain            # Explain of payload.h
    bint many              # lists were sent
    bint is_late           # not assembled, because it would have been late


cdef class ServingPlan:
    cdef readonly str model
    cdef readonly int version
    cdef readonly object signature
    cdef readonly object schema            # ServiceSchema or None
    cdef readonly object base              # OnlineBase or None
    cdef readonly Py_ssize_t n_features
    cdef readonly Py_ssize_t n_outputs
    cdef readonly VectorProgram vectors
    cdef Scorer _scorer                    # compiled kernel, or None when _python_scorer serves
    cdef object _python_scorer
    cdef PlanRecorder _recorder            # or None
    cdef Assembler _assembler
    cdef readonly Explanations explanations
    cdef ReplyForm _form
    cdef TensorForm _tensors
    cdef bint _is_compiled, _records, _accepts_missing
    cdef readonly bint is_kept             # answers are journaled: they can be explained later
    cdef bint _keeps_requests              # ... in its records
    cdef readonly str tier
    cdef readonly bint is_inline           # may be scored where other requests wait
    cdef readonly bint is_plain            # False: answer_into() hands everything on
    cdef readonly bint is_queued           # prepare_body() makes questions for a queue
    cdef readonly bint has_stand_in        # somebody else may answer what its queue refuses or fails
    cdef readonly bint is_strict           # a reply is sent once its record is durable: who calls answer_into() sees to it
    cdef readonly object scorer
    cdef Needs _needs
    cdef int64_t _default_budget_us        # of requests that name none; -1: none

    cpdef tuple predict(self, dict entities, dict features, int64_t now_us)
    cpdef bytes reply(self, dict entities, dict features, int64_t now_us, int kind, ReplyIds ids)
    cpdef Prepared prepare(self, dict entities, dict features, int64_t now_us, int64_t read_ns=*)

    # The reply to one JSON (kind 0), msgpack (1) or tensor (2) body of `size` >= 1 bytes, appended to `out`; returns its
    # length, or less: nothing is appended, hand the body on to the general path, which answers it or says what is wrong.
    # -1: no more is known; -2: it would be late; -3: it would be in time, and others who come meanwhile would not
    # (`is_behind`), where somebody can stand in.
    # `watch` is filled in with the stages of an answered request. `request` belongs to tensors, NULL for the others: its
    # header_length is given, and its json_bytes and n_rows are left of an answered one.
    cdef Py_ssize_t answer_into(
        self, const uint8_t* data, Py_ssize_t size, int kind, const Arrival* arrival, ReplyIds ids, Output* out,
        Stopwatch* watch, TensorRequest* request,
    ) noexcept nogil

    # A JSON or msgpack body's question for a queue, or to be refused; `is_late`: it would be late, and nothing was read for it. None: hand the
    # body on to the general path.
    cdef Prepared prepare_body(self, const uint8_t* data, Py_ssize_t size, int kind, const Arrival* arrival, ReplyIds ids)

    # Parse, read and assemble; False: hand on, and there is nothing to release. dispose() after use. `default_ns`: the budget
    # of a body that names none and that can keep it; 0: none.
    cdef bint _assemble_body(
        self, const uint8_t* data, Py_ssize_t size, int kind, const Arrival* arrival, Py_ssize_t max_rows,
        int64_t max_score_ns, int64_t default_ns, Assembled* out, Stopwatch* watch, TensorRequest* request,
    ) noexcept nogil
    cdef int64_t _due_ns(
        self, const Arrival* arrival, int64_t body_budget_us, int body_source, Stopwatch* watch
    ) noexcept nogil
    cdef bint is_finite(self, const Assembled* asked) noexcept nogil

    # Explain scored rows if there is time for it until `due_ns`; takes `explained` from EXPLAINED_NOT. Never fails.
    cdef void _explain(self, const Assembled* asked, int64_t due_ns, Explained* explained, Stopwatch* watch) noexcept nogil
    # Until when an explanation may take: the request's deadline, else the tier's bound for each row, at most a second.
    cdef int64_t _explain_due_ns(self, const Assembled* asked, int64_t begun_ns) noexcept nogil
    cdef int _score(self, Scratch* scratch, Py_ssize_t n_rows) except -1
    cdef bint _score_python(self, Scratch* scratch, Py_ssize_t n_rows) noexcept
    cdef bint _fill(self, Body* body, const uint8_t* end, int kind, Assembled* out, Stopwatch* watch) noexcept nogil
    cdef void _record(
        self, const Assembled* asked, const Stopwatch* watch, const Arrival* arrival, uint64_t number, uint32_t flags,
    ) noexcept nogil
    cdef object _row_score(self, Scratch* scratch, Py_ssize_t row)


# A question whose rows are assembled by one plan: to be scored, here or elsewhere, and then answered, once.
#
# Owns   : what it assembled. Keeps the plan, so the base it was read from stays mapped.
# GIL    : needed by all of it.
# Threads: one at a time; answering belongs to the thread that records.
cdef class Prepared:
    cdef readonly ServingPlan plan
    cdef readonly Py_ssize_t n_rows
    cdef readonly bint is_single           # no list was sent
    cdef readonly bint is_scored
    cdef readonly int kind                 # of a body's: 0 JSON, 1 msgpack
    cdef dict _entities                    # join keys; None: they are in `_asked.keys` already
    cdef dict _features                    # beside them
    cdef bytes _request                    # what `_asked.request` points into
    cdef Assembled _asked
    cdef bint _has_scratch
    cdef Arrival _arrival
    cdef Stopwatch _watch
    cdef Explained _explained
    cdef ReasonForm _reasons               # of who asked for another one than the plan's; or None
    cdef tuple _own                        # WHY_OWN: own_words(), or None

    # The reply of a scored question at `text`, which has room for most_bytes(), recorded; returns its length.
    cdef Py_ssize_t _reply_into(self, char* text, int kind, ReplyIds ids, uint32_t flags) except -1
    cdef Py_ssize_t most_bytes(self) noexcept
    # Append the explanation to the `length` bytes of a reply at `text`; returns the new length.
    cdef Py_ssize_t _put_explanation(self, char* text, Py_ssize_t length, int kind, const char* id, Py_ssize_t id_size) except -1
    cdef int _ask(self, bint is_full, ReasonForm form) except -1
    cdef int _record(self, ReplyIds ids, uint64_t number, uint32_t flags) except -1
    cdef int _keep_question(self) except -1
    cdef int _hold(self, ServingPlan plan, Py_ssize_t n_rows) except -1
    cdef int _begin(self) except -1


cdef void dispose(Assembled* asked) noexcept nogil
