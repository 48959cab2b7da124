# forest.pxd - a tree ensemble as a Scorer.
#
# Owns   : its node, leaf and category arrays (NumPy arrays kept in _arrays), laid out once in __init__, then immutable.
# Lends  : nothing.
# GIL    : score_rows needs none and never raises; SCORE_NO_MEMORY is possible only when scratch must be allocated
#          (eight rows and more, over 512 features, over 32 raw outputs).
# Threads: safe; all scratch memory belongs to the call.
from tiercel._hot.scorer cimport Scorer
from tiercel._hot.typedefs cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t

cdef extern from "transforms.h" nogil:
    enum: TC_STEP_KINDS, TC_POST_KINDS
    ctypedef struct tc_step:
        int32_t kind
        const float* a
        const float* b

cdef extern from "forest_kernel.h" nogil:
    enum: TC_SUM, TC_MIN, TC_MAX, TC_LANES, TC_CHUNK_TREES, TC_STACK_RAW
    uint32_t TC_LEAF_BITS, TC_LEAF_MASK, TC_NO_SET
    ctypedef struct tc_node:
        float threshold
        uint16_t feature
        int delta
    ctypedef struct tc_wide_node:
        float threshold
        uint32_t feature
        int32_t delta
        uint32_t set
    ctypedef struct tc_set:
        uint32_t start
        int32_t n_bits
        float equal
        uint8_t missing_first
        uint8_t floor_negative
    ctypedef struct tc_forest:
        Py_ssize_t n_features, n_raw, n_trees, n_steps, width
        const tc_step* steps
        const tc_node* nodes
        const tc_wide_node* wide_nodes
        const tc_set* sets
        const uint32_t* words
        const int32_t* tree_start
        const int32_t* tree_depth
        const uint8_t* tree_has_sets
        const int32_t* tree_raw
        const int64_t* tree_leaf
        const int32_t* lanes
        const int32_t* lane_depth
        const int32_t* chunk_group
        const double* values
        const float* values_f32
        const double* base
        double divisor, post_scale
        int32_t aggregate, base_first, post, normalize, pick
    int tc_score_rows(const tc_forest* f, const float* rows, Py_ssize_t n_rows, Py_ssize_t stride,
                      double* out, Py_ssize_t n_outputs)


cdef class ForestScorer(Scorer):
    cdef tc_forest _forest
    cdef tc_step* _steps               # n_steps, from malloc
    cdef dict _arrays                  # what _forest points into
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
