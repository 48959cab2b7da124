# forest.pxd - a tree ensemble as a Scorer.
#
# Owns   : its node, leaf and category arrays (NumPy arrays kept in _arrays), laid out once in __init__, then immutable.
# Lends  : nothing.
# GIL    : score_rows needs none and never raises; SCORE_NO_MEMORY is possible only when scratch must be allocated
#          (a block of rows, over 512 features, over 32 raw outputs).
# Threads: safe; all scratch memory belongs to the call.
from tiercel._hot.forest_blocks cimport ForestBlocks
from tiercel._hot.forest_masks cimport ForestMasks
from tiercel._hot.forest_kernel cimport tc_forest
from tiercel._hot.scorer cimport Scorer
from tiercel._hot.steps cimport Steps
from tiercel._hot.typedefs cimport int32_t, int64_t, uint8_t


cdef class ForestScorer(Scorer):
    cdef tc_forest _forest
    cdef Steps _steps
    cdef dict _arrays                  # what _forest points into
    cdef ForestBlocks _blocks          # the same trees, for many rows at once
    cdef ForestMasks _masks            # the same trees, for one row
    cdef readonly Py_ssize_t n_trees
    cdef readonly Py_ssize_t n_nodes
    cdef readonly Py_ssize_t n_leaves
    cdef readonly Py_ssize_t depth     # edges of the longest path
    cdef readonly bint is_compact      # 8-byte nodes

    cdef int _lay_out(
        self, const int32_t[::1] tree_start, const int32_t[::1] feature, const float[::1] threshold,
        const int32_t[::1] left, const int32_t[::1] right, const uint8_t[::1] missing_left,
        const int32_t[::1] set_of, const int64_t[::1] leaf, Py_ssize_t n_values, bint compact,
    ) except -1
