"""Compiled linear models; see linear.pxd for the contract."""

import numpy as np

from libc.stdlib cimport free, malloc
from libc.string cimport memcpy
from tiercel._hot.scorer cimport SCORE_NO_MEMORY, SCORE_OK, Scorer, ScoreStatus
from tiercel._hot.steps cimport Steps, tc_apply_step
from tiercel._hot.typedefs cimport feature_t, int32_t, score_t

cdef enum:
    STACK_FEATURES = 512
    STACK_RAW = 32


cdef class LinearScorer(Scorer):
    """A linear model over float32 rows.

    Args (arrays are copied):
        weights: float64, shape (n_raw, n_features).
        intercept: float64, shape (n_raw,).
        single_precision: round the sums, kept in float64, to float32 before the transform.
        post, post_scale, normalize, pick, steps: as for ForestScorer.
    Raises:
        ValueError: shapes or kinds that do not fit together.
    """

    def __reduce__(self):
        raise TypeError("LinearScorer is not pickled; load it from its artifacts")

    def __init__(
        self, *, weights, intercept, bint single_precision, int post, double post_scale, bint normalize, int pick,
        list steps,
    ):
        if self._arrays is not None:
            raise TypeError("LinearScorer is immutable; it cannot be initialised twice")
        weights, intercept = np.array(weights, dtype=np.float64, order="C"), np.array(intercept, dtype=np.float64)
        if weights.ndim != 2 or weights.shape[0] < 1 or weights.shape[1] < 1 or intercept.shape != (weights.shape[0],):
            raise ValueError(f"Expected weights (n, m) and intercept (n,), got {weights.shape} and {intercept.shape}")
        if not (-1 <= pick < weights.shape[0]) or not (0 <= post < TC_POST_KINDS):
            raise ValueError(f"Expected a known transform and output, got {post} and {pick}")
        cdef const double[:, ::1] weights_view = weights
        cdef const double[::1] intercept_view = intercept
        self._arrays = {"weights": weights, "intercept": intercept}
        self._weights, self._intercept = &weights_view[0, 0], &intercept_view[0]
        self._n_raw, self.n_features = weights.shape[0], weights.shape[1]
        self.n_outputs = 1 if pick >= 0 else self._n_raw
        self._single_precision, self._normalize = single_precision, normalize
        self._post, self._post_scale, self._pick = post, post_scale, pick
        self._steps = Steps(steps, self.n_features)

    cdef ScoreStatus score_rows(
        self, const feature_t* rows, Py_ssize_t n_rows, Py_ssize_t stride, score_t* out
    ) noexcept nogil:
        cdef float row_stack[STACK_FEATURES]
        cdef double raw_stack[STACK_RAW]
        cdef float* row = row_stack
        cdef double* raw = raw_stack
        cdef ScoreStatus status = SCORE_OK
        cdef Py_ssize_t i
        if self.n_features > STACK_FEATURES:
            row = <float*>malloc(self.n_features * sizeof(float))
        if self._n_raw > STACK_RAW:
            raw = <double*>malloc(self._n_raw * sizeof(double))
        if row == NULL or raw == NULL:
            status = SCORE_NO_MEMORY
        else:
            for i in range(n_rows):
                memcpy(row, rows + i * stride, self.n_features * sizeof(float))
                self._score_row(row, raw, out + i * self.n_outputs)
        if row != row_stack:
            free(row)
        if raw != raw_stack:
            free(raw)
        return status

    cdef void _score_row(self, float* row, double* raw, double* out) noexcept nogil:
        cdef Py_ssize_t i, j, k, n = self.n_features
        cdef const double* weight = self._weights
        cdef double even, odd
        for i in range(self._steps.n):
            tc_apply_step(&self._steps.each[i], row, n)
        for k in range(self._n_raw):
            # Two sums hide the latency of the additions; float64 keeps either order far below float32's last place.
            even, odd = 0.0, 0.0
            for j in range(0, n - 1, 2):
                even += weight[j] * <double>row[j]
                odd += weight[j + 1] * <double>row[j + 1]
            if n & 1:
                even += weight[n - 1] * <double>row[n - 1]
            raw[k] = even + odd + self._intercept[k]
            if self._single_precision:
                raw[k] = <double><float>raw[k]
            weight += n
        tc_transform(self._post, self._post_scale, raw, self._n_raw)
        if self._normalize:
            tc_normalize_scores(raw, self._n_raw)
        if self._pick >= 0:
            out[0] = raw[self._pick]
        else:
            memcpy(out, raw, self._n_raw * sizeof(double))
