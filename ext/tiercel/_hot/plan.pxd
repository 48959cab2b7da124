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
from tiercel._hot.scorer cimport Scorer
from tiercel._hot.typedefs cimport feature_t, int32_t, int64_t, score_t, uint8_t

# Below this many rows handing the GIL over costs more than it frees.
cdef enum:
    RELEASE_GIL_ROWS = 32
    MAX_KEY_BYTES = 512


# Scratch of one predict() call, from one allocation.
cdef struct Scratch:
    feature_t* rows        # n_rows x n_features
    score_t* scores        # n_rows x n_outputs
    uint8_t* statuses      # n_rows x n_stored: ValueStatus by row, then by stored column (all groups in order)
    uint8_t* keys          # n_rows x MAX_KEY_BYTES
    int32_t* key_lengths   # n_rows; -1 = null key
    uint8_t* read_status   # n_rows
    int64_t* events        # n_rows x most views of a group
    uint8_t* given         # n_features: 1 = the request brought this feature


cdef enum Kind:
    KIND_FLOAT             # int or float
    KIND_INT               # int, or a float that is one
    KIND_BOOL
    KIND_STRING
    KIND_NUMBER            # models without a service: int, float or bool


# One place in the feature vector.
cdef class _Slot:
    cdef str name
    cdef Py_ssize_t index
    cdef Kind kind
    cdef bint stored
    cdef dict codes        # category -> float code; None for numbers


# One entity's part of the vector.
cdef class _Group:
    cdef str entity
    cdef tuple key_names
    cdef tuple key_is_string
    cdef list slots        # vector index by reader column
    cdef list view_of      # view index by reader column
    cdef Py_ssize_t first  # first column of the group in Scratch.statuses


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
    cdef list _groups                      # _Group per used group, same order
    cdef dict _slot_of                     # feature name -> _Slot
    cdef list _slots                       # _Slot per feature, in vector order
    cdef frozenset _join_keys
    cdef Py_ssize_t _n_stored, _max_views
    cdef bint _missing_entity_is_error, _accepts_missing

    cpdef tuple predict(self, dict entities, dict features, int64_t now_us)
    cdef Py_ssize_t _count_rows(self, dict entities, dict features) except -2
    cdef int _allocate(self, Scratch* scratch, Py_ssize_t n_rows) except -1
    cdef int _mark_given(self, Scratch* scratch, dict features) except -1
    cdef int _read_groups(
        self, Scratch* scratch, Py_ssize_t n_rows, dict entities, int64_t now_us, int64_t* oldest_us
    ) except -1
    cdef int _encode_keys(self, Scratch* scratch, Py_ssize_t n_rows, _Group group, dict entities) except -1
    cdef int _check_reads(self, Scratch* scratch, Py_ssize_t n_rows, _Group group, dict entities) except -1
    cdef int _note_ages(
        self, Scratch* scratch, Py_ssize_t n_rows, _Group group, Py_ssize_t n_views, int64_t* oldest_us
    ) except -1
    cdef int _fill_given(self, Scratch* scratch, Py_ssize_t n_rows, dict features, dict null_counts) except -1
    cdef list _missing(self, Scratch* scratch, Py_ssize_t n_rows, dict null_counts, bint many)
    cdef int _score(self, Scratch* scratch, Py_ssize_t n_rows) except -1
    cdef list _scores(self, Scratch* scratch, Py_ssize_t n_rows)
    cdef object _row_score(self, Scratch* scratch, Py_ssize_t row)
