# plan.pxd - everything one (model version, feature service) needs to answer, wired together.
#
# A ServingPlan turns entity keys and request-time features into scores: keys -> stored rows -> request features ->
# scorer. Every HTTP path calls the same plan object, so every path gives the same answer.
#
# Owns   : its readers (which keep their sealed base mapped) and its scorer. A plan is immutable; a new base or a new
#          version makes a new plan, and requests in flight finish on the one they started with.
# Lends  : nothing.
# GIL    : predict() needs it; row reads and scoring of more than RELEASE_GIL_ROWS rows run without it.
# Threads: safe; all scratch memory belongs to the call.
from tiercel._hot.payload cimport Body, BodyReader
from tiercel._hot.reader cimport GroupReader
from tiercel._hot.reply cimport ReplyForm, ReplyIds
from tiercel._hot.scorer cimport Scorer
from tiercel._hot.typedefs cimport feature_t, int32_t, int64_t, score_t, uint8_t
from tiercel._hot.values cimport Group

# Below this many rows handing the GIL over costs more than it frees.
cdef enum:
    RELEASE_GIL_ROWS = 32
    FEW_FIELDS = 64        # a body's fields, no more than these, are read into the stack
    SCRATCH_BYTES = 4096   # a call that needs no more takes none from the heap


# Scratch of one call, from one block: `few`, or the heap when that is too small.
cdef struct Scratch:
    feature_t* rows        # n_rows x n_features
    score_t* scores        # n_rows x n_outputs
    uint8_t* statuses      # n_rows x n_stored: ValueStatus by row, then by stored column (all groups in order)
    uint8_t* keys          # n_rows x MAX_KEY_BYTES
    int32_t* key_lengths   # n_rows; -1 = null key
    uint8_t* read_status   # n_rows
    int64_t* events        # n_rows x most views of a group
    uint8_t* given         # n_features: 1 = the request brought this feature
    int32_t* n_missing     # n_features: rows without a value
    uint8_t few[SCRATCH_BYTES]


cdef class ServingPlan:
    cdef readonly str model
    cdef readonly int version
    cdef readonly object signature
    cdef readonly object schema            # ServiceSchema or None
    cdef readonly object base              # OnlineBase or None
    cdef readonly Py_ssize_t n_features
    cdef readonly Py_ssize_t n_outputs
    cdef Scorer _scorer                    # compiled kernel, or None when _python_scorer serves
    cdef object _python_scorer
    cdef list _readers                     # GroupReader per used group
    cdef list _groups                      # Group per used group, same order
    cdef dict _slot_of                     # feature name -> Slot
    cdef list _slots                       # Slot per feature, in vector order
    cdef frozenset _join_keys
    cdef BodyReader _reader
    cdef ReplyForm _form
    cdef list _required                    # vector indexes that only the request can bring
    cdef Py_ssize_t _n_stored, _max_views
    cdef bint _missing_entity_is_error, _accepts_missing

    cpdef tuple predict(self, dict entities, dict features, int64_t now_us)
    cpdef bytes reply(self, dict entities, dict features, int64_t now_us, int kind, ReplyIds ids)

    # The reply to one JSON (kind 0) or msgpack (1) body of `size` >= 1 bytes, or None: hand the body on to the general
    # path, which answers it or says what is wrong. now_us counts when the body has no `now`. Never raises.
    cdef bytes answer_body(self, const uint8_t* data, Py_ssize_t size, int kind, int64_t now_us, ReplyIds ids)

    cdef int64_t _assemble(
        self, Scratch* scratch, Py_ssize_t n_rows, bint many, dict entities, dict features, int64_t now_us
    ) except? -2
    cdef bint _assemble_body(
        self, Scratch* scratch, Py_ssize_t n_rows, Body* body, const uint8_t* end, int kind, int64_t now_us,
        int64_t* age_us,
    ) except -1
    cdef bint _read_group_body(
        self, Scratch* scratch, Py_ssize_t n_rows, Group group, GroupReader reader, Body* body, const uint8_t* end,
        int kind, int64_t now_us, int64_t* oldest_us,
    ) except -1
    cdef bint _is_needed(self, Scratch* scratch, Py_ssize_t n_rows, Group group) noexcept
    cdef void _read_group(
        self, Scratch* scratch, Py_ssize_t n_rows, GroupReader reader, Py_ssize_t first, int64_t now_us
    ) noexcept
    cdef int _allocate(self, Scratch* scratch, Py_ssize_t n_rows) except -1
    cdef int _mark_given(self, Scratch* scratch, dict features) except -1
    cdef int _read_groups(
        self, Scratch* scratch, Py_ssize_t n_rows, dict entities, int64_t now_us, int64_t* oldest_us
    ) except -1
    cdef int _encode_keys(self, Scratch* scratch, Py_ssize_t n_rows, Group group, dict entities) except -1
    cdef int _check_reads(self, Scratch* scratch, Py_ssize_t n_rows, Group group, dict entities) except -1
    cdef void _note_ages(
        self, Scratch* scratch, Py_ssize_t n_rows, Group group, Py_ssize_t n_views, int64_t* oldest_us
    ) noexcept
    cdef int _fill_given(self, Scratch* scratch, Py_ssize_t n_rows, dict features) except -1
    cdef bint _count_missing(self, Scratch* scratch, Py_ssize_t n_rows) noexcept
    cdef int _refuse_missing(self, Scratch* scratch, Py_ssize_t n_rows, bint many) except -1
    cdef int _score(self, Scratch* scratch, Py_ssize_t n_rows) except -1
    cdef object _row_score(self, Scratch* scratch, Py_ssize_t row)
