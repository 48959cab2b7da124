# forest_blocks.pxd - a forest laid out for many rows at once; forest_blocks.h says how it is evaluated.
#
# Owns   : the arrays that `blocks` points into (NumPy arrays kept in _arrays), built once in __init__, then immutable:
#          12 bytes per inner node, 2 per tree and at most 40 per distinct threshold.
# Lends  : `blocks`, as long as the object lives.
# GIL    : needed to build; `blocks` may be read without.
# Threads: safe.
from tiercel._hot.forest_kernel cimport tc_blocks, tc_op
from tiercel._hot.typedefs cimport int32_t, int64_t


cdef class ForestBlocks:
    cdef tc_blocks blocks              # lanes 0: this forest is better walked
    cdef dict _arrays                  # what blocks points into

    cdef int _write_ops(
        self, const int64_t[::1] order, const int32_t[::1] group, const int32_t[::1] left, const int32_t[::1] right,
        const int32_t[::1] node_leaf, const int32_t[::1] column, const int64_t[::1] bound, int32_t[::1] cell,
        tc_op* ops, Py_ssize_t n_constants,
    ) except -1
