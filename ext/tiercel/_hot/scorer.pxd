# scorer.pxd - what the serving plan needs of a model, whatever kind it is.
#
# Owns   : subclasses own their arrays, taken in __cinit__/__init__ and immutable afterwards.
# GIL    : score_rows needs none and never raises.
# Threads: safe. score_rows keeps no state between or during calls outside its own stack (or its own malloc).
from tiercel._hot.typedefs cimport feature_t, score_t


cdef enum ScoreStatus:
    SCORE_OK = 0
    SCORE_NO_MEMORY = 1


cdef class Scorer:
    cdef readonly Py_ssize_t n_features
    cdef readonly Py_ssize_t n_outputs

    # rows: n_rows vectors of n_features values, `stride` values apart (stride >= n_features).
    # out : n_rows * n_outputs values, written entirely when SCORE_OK is returned.
    cdef ScoreStatus score_rows(
        self, const feature_t* rows, Py_ssize_t n_rows, Py_ssize_t stride, score_t* out
    ) noexcept nogil
