# explainer.pxd - what the serving plan needs of an explanation kernel, whatever kind of model it explains.
#
# Owns   : subclasses own their arrays, taken in __init__ and immutable afterwards.
# Lends  : nothing.
# GIL    : explain_row, explain_rows and expected need none and never raise.
# Threads: safe. No state is kept between or during calls outside the call's own stack or its own malloc.
from tiercel._hot.typedefs cimport feature_t


cdef enum ExplainStatus:
    EXPLAIN_OK = 0
    EXPLAIN_NO_MEMORY = 1


cdef class Explainer:
    cdef readonly Py_ssize_t n_features
    cdef readonly Py_ssize_t n_raw     # margins that can be explained; a binary classifier has 1
    cdef readonly str method           # "interventional" | "path_dependent" | "linear"

    # row: n_features values. phi: n_features doubles, on the margin, written entirely when EXPLAIN_OK is returned.
    # expected(raw) + sum(phi) == margin of the row (additivity). 0 <= raw < n_raw.
    cdef ExplainStatus explain_row(self, const feature_t* row, Py_ssize_t raw, double* phi) noexcept nogil
    # The same margin with every feature as the reference has it.
    cdef double expected(self, Py_ssize_t raw) noexcept nogil
    cdef int _check(self, Py_ssize_t width, Py_ssize_t raw) except -1
    # n_rows rows, `stride` values apart; phi: n_rows * n_features doubles. Equal, bit for bit, to one row at a time.
    cdef ExplainStatus explain_rows(
        self, const feature_t* rows, Py_ssize_t n_rows, Py_ssize_t stride, Py_ssize_t raw, double* phi
    ) noexcept nogil
