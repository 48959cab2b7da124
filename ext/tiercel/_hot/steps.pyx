"""Preparation steps of the compiled kernels; see steps.pxd for the contract and transforms.h for what a step does."""

import numpy as np

from libc.stdlib cimport free, malloc


cdef class Steps:
    """Steps in their order.

    Args:
        steps: (TC_* kind, a, b); a and b hold a value per feature and are copied.
        n_features: of a row.
    Raises:
        ValueError: an unknown kind, or another number of values.
    """

    def __cinit__(self, *args, **kwargs):
        self.each = NULL

    def __dealloc__(self):
        free(self.each)

    def __reduce__(self):
        raise TypeError("Steps are not pickled; they are part of a kernel")

    def __init__(self, list steps not None, Py_ssize_t n_features):
        cdef const float[::1] a
        cdef const float[::1] b
        cdef Py_ssize_t i
        if self._arrays is not None:
            raise TypeError("Steps are immutable; they cannot be initialised twice")
        self._arrays = []
        self.each = <tc_step*>malloc((len(steps) + 1) * sizeof(tc_step))
        if self.each == NULL:
            raise MemoryError
        for i, (kind, first, second) in enumerate(steps):
            kept = (np.array(first, dtype=np.float32), np.array(second, dtype=np.float32))
            if not (0 <= kind < TC_STEP_KINDS) or any(array.shape != (n_features,) for array in kept):
                raise ValueError(f"Expected step {i} to be known and to hold {n_features} values")
            self._arrays.append(kept)
            a, b = kept
            self.each[i].kind, self.each[i].a, self.each[i].b = kind, &a[0], &b[0]
        self.n = len(steps)
