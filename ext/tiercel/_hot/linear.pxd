# linear.pxd - a linear model as a Scorer: weights @ row + intercept, then a transform.
#
# Owns   : its coefficient arrays, immutable after __init__.
# Lends  : nothing.
# GIL    : score_rows needs none and never raises; SCORE_NO_MEMORY is possible only above 512 features or 32 raw outputs.
# Threads: safe; all scratch memory belongs to the call.
from tiercel._hot.scorer cimport Scorer
from tiercel._hot.steps cimport Steps
from tiercel._hot.typedefs cimport int32_t

cdef extern from "transforms.h" nogil:
    enum: TC_POST_KINDS
    void tc_transform(int32_t kind, double scale, double* x, Py_ssize_t n)
    void tc_normalize_scores(double* x, Py_ssize_t n)


cdef class LinearScorer(Scorer):
    cdef const double* _weights        # n_raw x n_features, into _arrays
    cdef const double* _intercept      # n_raw
    cdef Steps _steps
    cdef Py_ssize_t _n_raw
    cdef int32_t _post, _pick
    cdef double _post_scale
    cdef bint _single_precision, _normalize
    cdef dict _arrays                  # what the pointers point into

    cdef void _score_row(self, float* row, double* raw, double* out) noexcept nogil
