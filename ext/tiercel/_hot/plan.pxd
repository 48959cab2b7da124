# plan.pxd - everything one (model version, feature service) needs to answer, wired together.
#
# A ServingPlan turns entity keys and request-time features into scores: keys -> stored rows -> request features ->
# on-demand transforms -> scorer -> reply -> record. Every HTTP path calls the same plan object, so every path gives the
# same answer.
#
# Owns   : its VectorProgram (which keeps the sealed base mapped), its scorer and its recorder. A plan is immutable; a new
#          base or a new version makes a new plan, and requests in flight finish on the one they started with.
# Lends  : nothing.
# GIL    : predict() and reply() need it, and release it to score RELEASE_GIL_ROWS rows and more. answer_into() needs
#          none, and takes it only for a scorer that is Python.
# Threads: safe, but for a plan with a recorder: answers that are recorded come from one thread.
from tiercel._hot.output cimport Output
from tiercel._hot.recorder cimport PlanRecorder
from tiercel._hot.reply cimport ReplyForm, ReplyIds
from tiercel._hot.scorer cimport Scorer
from tiercel._hot.typedefs cimport int64_t, uint8_t, uint32_t, uint64_t
from tiercel._hot.values cimport Group
from tiercel._hot.vector cimport Scratch, VectorProgram

# Below this many rows handing the GIL over costs more than it frees.
cdef enum:
    RELEASE_GIL_ROWS = 32
    FEW_FIELDS = 64        # a body's fields, no more than these, are read into the stack


# When a request came.
cdef struct Arrival:
    int64_t wall_us        # since the epoch; the time of the read unless the request says another
    int64_t read_ns        # of the monotonic clock: when the socket was read
    uint32_t flags         # PredictionFlag


# The stages of one recorded request: monotonic nanoseconds at the end of each.
cdef struct Stopwatch:
    int64_t at[6]          # before the first stage, then after each


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
    cdef ReplyForm _form
    cdef bint _is_compiled, _records, _accepts_missing

    cpdef tuple predict(self, dict entities, dict features, int64_t now_us)
    cpdef bytes reply(self, dict entities, dict features, int64_t now_us, int kind, ReplyIds ids)

    # The reply to one JSON (kind 0) or msgpack (1) body of `size` >= 1 bytes, appended to `out`; returns its length, or -1:
    # nothing is appended, hand the body on to the general path, which answers it or says what is wrong.
    cdef Py_ssize_t answer_into(
        self, const uint8_t* data, Py_ssize_t size, int kind, const Arrival* arrival, ReplyIds ids, Output* out
    ) noexcept nogil

    cdef int64_t _assemble(
        self, Scratch* scratch, Py_ssize_t n_rows, bint many, dict entities, dict features, int64_t now_us,
        Stopwatch* watch,
    ) except? -2
    cdef int _mark_given(self, Scratch* scratch, dict features) except -1
    cdef int _read_groups(
        self, Scratch* scratch, Py_ssize_t n_rows, dict entities, int64_t now_us, int64_t* oldest_us
    ) except -1
    cdef int _encode_keys(self, Scratch* scratch, Py_ssize_t n_rows, Group group, dict entities) except -1
    cdef int _check_reads(self, Scratch* scratch, Py_ssize_t n_rows, Group group, dict entities) except -1
    cdef int _fill_given(self, Scratch* scratch, Py_ssize_t n_rows, dict features) except -1
    cdef int _refuse_missing(self, Scratch* scratch, Py_ssize_t n_rows, bint many) except -1
    cdef int _score(self, Scratch* scratch, Py_ssize_t n_rows) except -1
    cdef bint _score_python(self, Scratch* scratch, Py_ssize_t n_rows) noexcept
    cdef int _put_keys(self, Py_ssize_t n_rows, dict entities, Output* out) except -1
    cdef void _record(
        self, const Scratch* scratch, Py_ssize_t n_rows, const Output* keys, const Stopwatch* watch, const Arrival* arrival,
        int64_t now_us, int64_t age_us, uint64_t number, uint32_t flags,
    ) noexcept nogil
    cdef object _row_score(self, Scratch* scratch, Py_ssize_t row)


# Nanoseconds of the monotonic clock; microseconds of the wall clock.
cdef int64_t monotonic_ns() noexcept nogil
cdef int64_t wall_us() noexcept nogil
