"""Base of the compiled explainers; see explainer.pxd for the contract."""

import time

import numpy as np

from tiercel._hot.typedefs cimport feature_t


cdef class Explainer:
    """An explanation kernel: float32 rows in, what each feature adds to the margin out."""

    cdef ExplainStatus explain_row(self, const feature_t* row, Py_ssize_t raw, double* phi) noexcept nogil:
        return EXPLAIN_NO_MEMORY    # never reached: the base class cannot explain

    cdef double expected(self, Py_ssize_t raw) noexcept nogil:
        return 0.0

    cdef ExplainStatus explain_rows(
        self, const feature_t* rows, Py_ssize_t n_rows, Py_ssize_t stride, Py_ssize_t raw, double* phi
    ) noexcept nogil:
        cdef Py_ssize_t i
        cdef ExplainStatus status
        for i in range(n_rows):
            status = self.explain_row(rows + i * stride, raw, phi + i * self.n_features)
            if status != EXPLAIN_OK:
                return status
        return EXPLAIN_OK

    cdef int _check(self, Py_ssize_t width, Py_ssize_t raw) except -1:
        if self.n_raw == 0:
            raise TypeError("Explainer is a base class; use one of its subclasses")
        if width != self.n_features:
            raise ValueError(f"Expected rows of {self.n_features} features, got {width}")
        if not (0 <= raw < self.n_raw):
            raise ValueError(f"Expected an output below {self.n_raw}, got {raw}")
        return 0

    def explain(self, const feature_t[:, ::1] rows not None, Py_ssize_t raw=0):
        """What each feature adds to margin `raw`: float64, shape (n, n_features).

        Args:
            rows: float32, shape (n, n_features), C-contiguous.
            raw: which margin.
        Raises:
            ValueError: another number of columns, or no such margin.
            MemoryError: no room for scratch space.
        Threads: safe; the GIL is released while explaining.
        """
        self._check(rows.shape[1], raw)
        cdef Py_ssize_t n_rows = rows.shape[0]
        result = np.empty((n_rows, self.n_features), dtype=np.float64)
        cdef double[:, ::1] phi = result
        cdef ExplainStatus status = EXPLAIN_OK
        if n_rows > 0:
            with nogil:
                status = self.explain_rows(&rows[0, 0], n_rows, rows.shape[1], raw, &phi[0, 0])
        if status != EXPLAIN_OK:
            raise MemoryError("No memory for explanation scratch space")
        return result

    def expected_margin(self, Py_ssize_t raw=0):
        """What margin `raw` is expected to be when nothing of a row is known: the value attributions start from."""
        self._check(self.n_features, raw)
        return self.expected(raw)

    def time_one_row(self, const feature_t[:, ::1] rows not None, Py_ssize_t repeats, Py_ssize_t raw=0):
        """Explain `rows` one at a time from compiled code, `repeats` times over: (attributions, seconds per row).

        For measuring and benchmarks: cycling over many different rows keeps branch predictors and caches honest.
        """
        self._check(rows.shape[1], raw)
        if rows.shape[0] < 1 or repeats < 1:
            raise ValueError(f"Expected rows and repeats, got {rows.shape[0]} and {repeats}")
        result = np.empty((rows.shape[0], self.n_features), dtype=np.float64)
        cdef double[:, ::1] phi = result
        cdef Py_ssize_t i, repeat, n_rows = rows.shape[0]
        cdef ExplainStatus status = EXPLAIN_OK
        begin = time.perf_counter_ns()
        with nogil:
            for repeat in range(repeats):
                for i in range(n_rows):
                    status = self.explain_row(&rows[i, 0], raw, &phi[i, 0])
                    if status != EXPLAIN_OK:
                        break
        if status != EXPLAIN_OK:
            raise MemoryError("No memory for explanation scratch space")
        return result, (time.perf_counter_ns() - begin) / 1e9 / (n_rows * repeats)
