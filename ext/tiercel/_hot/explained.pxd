# explained.pxd - what a reply says beside its scores: attributions of its rows, checked, and the reasons that follow.
#
# A prediction never fails because its explanation did: what cannot be explained says so in the explanation, and why.
#
# Owns   : Explanations: references to an explainer, the scorer of its margins and a form. Immutable.
#          Explained: its arrays, from malloc; forget() frees them.
# GIL    : not needed by the cdef functions, which never raise.
# Threads: safe; an Explained belongs to one thread at a time.
from tiercel._hot.explainer cimport Explainer
from tiercel._hot.reasons cimport ReasonForm
from tiercel._hot.reply cimport Text
from tiercel._hot.scorer cimport Scorer
from tiercel._hot.typedefs cimport feature_t, int64_t, score_t

cdef enum ExplainedMethod:
    EXPLAINED_NOT = 0           # nobody asked
    EXPLAINED_EXACT = 1
    EXPLAINED_SAMPLED = 2
    EXPLAINED_LATER = 3         # there is no time; the reply says where it can be had
    EXPLAINED_NONE = 4          # `why` says why

cdef enum WhyNone:
    WHY_PLAN = 0                # the plan's own words: its model has no explainer
    WHY_OWN = 1                 # words of whoever explained
    WHY_READY = 2               # a last score or a default answered: no model did
    WHY_ADDITIVITY = 3          # contributions do not add up to the margin
    WHY_NOT_KEPT = 4            # there is no time now, and nothing to explain it from later
    WHY_NO_MEMORY = 5
    WHY_FAILED = 6
    N_WHYS = 7


cdef struct Explained:
    int method                  # ExplainedMethod
    int why                     # WhyNone, of EXPLAINED_NONE
    bint is_full                # contributions of features too
    Py_ssize_t output           # which margin was explained
    double expected
    double* phi                 # n_rows x n_features, or NULL
    double* standard_error      # likewise, of EXPLAINED_SAMPLED
    int64_t took_ns


cdef class Explanations:
    cdef readonly object explainer     # of tiercel.models.explaining, or None
    cdef readonly ReasonForm form      # of who asks for no other; or None
    cdef readonly str why              # why there is no explainer; empty where there is one
    cdef Explainer _compiled           # or None
    cdef Scorer _margins               # or None: nothing to check by
    cdef readonly bint is_inline       # compiled, or nothing to do: needs nobody else's thread
    cdef bint _has_compiled, _has_margins
    cdef readonly Py_ssize_t n_features, n_outputs
    cdef int64_t _call_ns, _row_ns     # as measured
    cdef tuple _why_texts
    cdef Text _whys[2]                 # by format

    # What explaining so many rows takes, as measured; 0 where there is nothing to do.
    cdef int64_t need_ns(self, Py_ssize_t n_rows) noexcept nogil

    # Explain n_rows scored rows; sets everything of `out` but `is_full`. Nothing is to be forgotten before.
    cdef void explain(
        self, const feature_t* rows, const score_t* scores, Py_ssize_t n_rows, Explained* out
    ) noexcept nogil

    # Say what is known of an explanation behind a reply of `length` bytes at `reply`, which has room for most_bytes() more:
    # a JSON object, or a msgpack map of at most 13. Returns the new length.
    # form: may be NULL where method is EXPLAINED_NONE. own: the words of WHY_OWN, by format.
    # id  : of the reply, for EXPLAINED_LATER.
    cdef Py_ssize_t most_bytes(self, ReasonForm form, const Explained* explained, Py_ssize_t n_rows) noexcept nogil
    cdef Py_ssize_t write_into(
        self, ReasonForm form, char* reply, Py_ssize_t length, int kind, const feature_t* rows, Py_ssize_t n_rows, bint single,
        const Explained* explained, const Text* own, const char* id, Py_ssize_t id_size,
    ) noexcept nogil
    cdef bint _adds_up(self, const feature_t* rows, Py_ssize_t n_rows, const Explained* explained) noexcept nogil
    cdef Py_ssize_t _output_of(self, const score_t* scores, Py_ssize_t n_rows) noexcept nogil


# Give back what it holds; it is then EXPLAINED_NOT.
cdef void forget(Explained* explained) noexcept nogil

# The words of WHY_OWN, by format.
cdef tuple own_words(str why)
