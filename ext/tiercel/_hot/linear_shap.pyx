"""Attributions of compiled linear models; see linear_shap.pxd for the contract."""

import numpy as np

from libc.stdlib cimport free, malloc
from libc.string cimport memcpy
from tiercel._hot.explainer cimport EXPLAIN_NO_MEMORY, EXPLAIN_OK, Explainer, ExplainStatus
from tiercel._hot.steps cimport Steps, tc_apply_step
from tiercel._hot.typedefs cimport feature_t

cdef enum:
    STACK_FEATURES = 512


cdef class LinearExplainer(Explainer):
    """What each feature adds to a linear margin, against the mean of a reference set.

    With features taken from the reference independently of each other, the Shapley value of feature j is
    `weights[j] * (prepared(x)[j] - mean(prepared(reference))[j])`; preparation steps must be of one feature each.

    Args (arrays are copied):
        weights: float64, shape (n_raw, n_features).
        intercept: float64, shape (n_raw,).
        mean: float64, shape (n_features,): of the prepared reference rows.
        steps: (TC_* kind, a, b) applied to each row first.
    Raises:
        ValueError: shapes or kinds that do not fit together.
    """

    def __reduce__(self):
        raise TypeError("LinearExplainer is not pickled; make it from its model and reference")

    def __init__(self, *, weights, intercept, mean, list steps):
        if self._arrays is not None:
            raise TypeError("LinearExplainer is immutable; it cannot be initialised twice")
        weights, intercept = np.array(weights, dtype=np.float64, order="C"), np.array(intercept, dtype=np.float64)
        mean = np.array(mean, dtype=np.float64)
        if weights.ndim != 2 or weights.size < 1 or intercept.shape != weights.shape[:1]:
            raise ValueError(f"Expected weights (n, m) and intercept (n,), got {weights.shape} and {intercept.shape}")
        if mean.shape != weights.shape[1:]:
            raise ValueError(f"Expected a mean of {weights.shape[1]} features, got shape {mean.shape}")
        # In the order that explain_row adds, so that additivity holds to the last places.
        expected = weights @ mean + intercept
        cdef const double[:, ::1] weights_view = weights
        cdef const double[::1] mean_view = mean
        cdef const double[::1] expected_view = expected
        self._arrays = {"weights": weights, "mean": mean, "expected": expected}
        self._weights, self._mean, self._expected = &weights_view[0, 0], &mean_view[0], &expected_view[0]
        self.n_raw, self.n_features, self.method = weights.shape[0], weights.shape[1], "linear"
        self._steps = Steps(steps, self.n_features)

    cdef double expected(self, Py_ssize_t raw) noexcept nogil:
        return self._expected[raw]

    cdef ExplainStatus explain_row(self, const feature_t* row, Py_ssize_t raw, double* phi) noexcept nogil:
        cdef float stack[STACK_FEATURES]
        cdef float* prepared = stack
        cdef Py_ssize_t j, n = self.n_features
        cdef const double* weight = self._weights + raw * n
        if n > STACK_FEATURES:
            prepared = <float*>malloc(n * sizeof(float))
            if prepared == NULL:
                return EXPLAIN_NO_MEMORY
        memcpy(prepared, row, n * sizeof(float))
        for j in range(self._steps.n):
            tc_apply_step(&self._steps.each[j], prepared, n)
        for j in range(n):
            phi[j] = weight[j] * (<double>prepared[j] - self._mean[j])
        if prepared != stack:
            free(prepared)
        return EXPLAIN_OK
