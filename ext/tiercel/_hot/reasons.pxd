# reasons.pxd - from contributions to the reasons of a prediction, written straight into JSON or msgpack.
#
# What is written are members of a reply's map, without the braces around it or a comma before it:
#     "reasons": [...], "explanation": {...}       two members; or, where nothing can be explained:
#     "explanation": {"method": "none", ...}       one member
# A reason is a group of features. Its contribution is the sum of theirs; how far that is adverse follows from the sign of
# the output that is explained (+1: a higher margin is, -1: a lower one is, 0: either way counts). A feature is missing where
# it is NaN; then it may count towards another reason, or towards none. The "features" of a reason are those that count
# towards it in the row: of a reason for missing values those that are missing. Which reasons are told:
#     share of a reason = its adverse contribution / all adverse contributions, those of excluded features among them
# rounded to SHARE_UNIT. Told are the k largest shares, none below the minimum; equal ones in the order of codes. So noise
# in the last bits of contributions moves nothing but ties within SHARE_UNIT. Where nothing is adverse beyond noise
# (SHARE_UNIT of the margin's size), or nothing reaches the minimum, the one reason "insufficient" is told.
#
# Owns   : the constant parts of what it writes, and its tables. Immutable.
# GIL    : not needed by the cdef functions, which allocate nothing and never raise. write() and absent() need it.
# Threads: safe.
from tiercel._hot.reply cimport Text
from tiercel._hot.typedefs cimport feature_t, int32_t, int64_t, uint8_t

cdef enum:
    MAX_K = 16
    SHARES = 1000000000        # SHARE_UNIT is one of so many parts
    MOST_ABSENT_BYTES = 512    # of what write_absent_into() and write_later_into() write


# Why there is no explanation, of those that compiled code finds.
cdef enum Absence:
    ABSENT_NOT_FINITE = 0      # a contribution is no finite number
    ABSENT_NO_MEMORY = 1
    ABSENT_FAILED = 2          # the explainer said so
    ABSENT_NO_TIME = 3         # the request's deadline
    ABSENT_MANY_ROWS = 4       # more rows than are explained in a call
    N_ABSENCES = 5


# When a feature counts towards a reason.
cdef enum Presence:
    ALWAYS = 0
    WHEN_PRESENT = 1
    WHEN_MISSING = 2


cdef struct Member:
    int32_t feature
    int32_t presence


cdef struct Told:
    Py_ssize_t reason
    int64_t share              # in SHARE_UNITs
    double contribution


cdef class ReasonForm:
    cdef list _kept                        # the bytes that the Texts point at
    cdef Text* _texts                      # owned; the others point into it
    cdef Text* _openings[2]                # by format, by reason: up to the contribution; where it varies: to the features
    cdef Text* _names[2]                   # by format, by feature: `"name":`
    cdef Text* _heads[2]                   # by format, by output: of "explanation", up to "expected"
    cdef Text* _tails                      # by format: from behind "expected"
    cdef Text* _insufficient               # by format: the one reason
    cdef Text* _absences[2]                # by format, by Absence: the whole member
    cdef Text* _whys                       # by format: of rows that are left out
    cdef Member* _members                  # owned; in the order of reasons, then of features
    cdef int32_t* _ends                    # owned; by reason: past its last member
    cdef Member* _excluded                 # points into _members
    cdef Py_ssize_t _n_excluded
    cdef signed char* _signs               # owned; by output
    cdef signed char* _varies              # owned; by reason: which of its features count depends on the row
    cdef int64_t _minimum                  # share, in SHARE_UNITs; at least 1
    cdef Py_ssize_t _row_bytes, _full_row_bytes, _constant_bytes
    cdef readonly Py_ssize_t n_features, n_outputs, n_reasons, k

    # Bytes that write_into() may need.
    cdef Py_ssize_t most_bytes(self, Py_ssize_t n_rows, bint full) noexcept nogil

    # Write the members at `out`, which has room; returns their length.
    # n_rows         : at least 1.
    # kind           : BODY_JSON or BODY_MSGPACK.
    # rows, phi      : n_rows * n_features each; phi are contributions to the margin of `output` (0 <= output < n_outputs).
    # single         : the request had no lists, so n_rows is 1 and "reasons" is one list.
    # expected       : the margin that contributions start from.
    # full           : contributions of features too.
    # standard_error : like phi, or NULL: contributions are exact. Written where `full`.
    # n_members      : set to how many members were written.
    # A row whose contributions are not finite has null for its reasons and contributions, and the explanation says so; where
    # no row is left, the explanation is absent.
    cdef Py_ssize_t write_into(
        self, char* out, int kind, const feature_t* rows, const double* phi, Py_ssize_t n_rows, bint single,
        Py_ssize_t output, double expected, bint full, const double* standard_error, int* n_members,
    ) noexcept nogil

    # The explanation (one member) of a prediction that has none: of an Absence; or one to fetch later, under the reply's id
    # of 16 to 64 bytes.
    cdef Py_ssize_t write_absent_into(self, char* out, int kind, int absence) noexcept nogil
    cdef Py_ssize_t write_later_into(self, char* out, int kind, const char* id, Py_ssize_t id_size) noexcept nogil

    # Reasons of one row in the order they are told, at most k at `told`; -1: a contribution is not finite.
    cdef Py_ssize_t choose(
        self, const feature_t* row, const double* phi, Py_ssize_t output, double expected, Told* told,
    ) noexcept nogil
    cdef double _contribution(self, Py_ssize_t reason, const feature_t* row, const double* phi) noexcept nogil
    cdef char* _put_reasons(
        self, char* at, int kind, const feature_t* row, const Told* told, Py_ssize_t n_told,
    ) noexcept nogil
    cdef char* _put_opening(self, char* at, int kind, const feature_t* row, Py_ssize_t reason) noexcept nogil
    cdef char* _put_all_values(
        self, char* at, int kind, const double* values, const double* phi, double expected, Py_ssize_t n_rows, bint single,
    ) noexcept nogil
    cdef char* _put_values(self, char* at, int kind, const double* values) noexcept nogil
    cdef bint _is_finite(self, const double* phi, double expected) noexcept nogil
    cdef int _keep(self, Py_ssize_t index, bytes text) except -1
    cdef Py_ssize_t _keep_all(self, Py_ssize_t at, list texts) except -1
    cdef int _measure(self) except -1
