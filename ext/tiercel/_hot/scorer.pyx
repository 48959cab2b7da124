"""Base of the compiled scorers; see scorer.pxd for the contract."""

import numpy as np

from tiercel._hot.typedefs cimport feature_t, score_t


cdef class Scorer:
    """A model kernel: float32 rows in, float64 scores out."""

    cdef ScoreStatus score_rows(
        self, const feature_t* rows, Py_ssize_t n_rows, Py_ssize_t stride, score_t* out
    ) noexcept nogil:
        return SCORE_NO_MEMORY      # never reached: the base class cannot score

    def score(self, const feature_t[:, ::1] rows not None):
        """Scores of `rows` (float32, shape (n, n_features), C-contiguous) as float64, shape (n, n_outputs).

        Raises:
            ValueError: another number of columns.
            MemoryError: no room for scratch space.
        Threads: safe; the GIL is released while scoring.
        """
        if self.n_outputs == 0:
            raise TypeError("Scorer is a base class; use one of its subclasses")
        if rows.shape[1] != self.n_features:
            raise ValueError(f"Expected rows of {self.n_features} features, got {rows.shape[1]}")
        cdef Py_ssize_t n_rows = rows.shape[0]
        result = np.empty((n_rows, self.n_outputs), dtype=np.float64)
        cdef score_t[:, ::1] out = result
        cdef ScoreStatus status = SCORE_OK
        if n_rows > 0:
            with nogil:
                status = self.score_rows(&rows[0, 0], n_rows, rows.shape[1], &out[0, 0])
        if status != SCORE_OK:
            raise MemoryError("No memory for scoring scratch space")
        return result
