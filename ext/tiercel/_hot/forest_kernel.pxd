# forest_kernel.pxd - declarations only: the C structures and functions of forest_kernel.h, forest_blocks.h
# and forest_masks.h.
#
# Owns   : nothing; forest, forest_blocks and forest_masks own what the pointers lead to.
# GIL    : not needed by any function here; none raises.
# Threads: safe; all scratch memory belongs to the call.
from tiercel._hot.steps cimport tc_step
from tiercel._hot.typedefs cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t

cdef extern from "transforms.h" nogil:
    enum: TC_POST_KINDS

cdef extern from "forest_masks.h" nogil:
    enum: TC_SUM, TC_MIN, TC_MAX, TC_LANES, TC_CHUNK_TREES, TC_STACK_RAW
    enum: TC_VECTOR, TC_UNIT, TC_MAX_VECTORS
    enum: TC_LINE, TC_MASK_COLUMNS, TC_MASK_LINES, TC_MASK_FEATURES
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
    ctypedef struct tc_op:
        uint16_t column, first, second, to
        uint32_t bound
    ctypedef struct tc_ranking:
        int64_t cuts, starts
        int32_t feature, n_cuts, n_buckets, probes, steps
        float low, scale
        int32_t right, left
    ctypedef struct tc_membership:
        int32_t feature, set, column
    ctypedef struct tc_blocks:
        int32_t lanes, min_rows, use_avx2
        Py_ssize_t n_columns, n_cells, n_constants, n_rankings, n_memberships, n_groups
        const tc_op* ops
        const int64_t* group_op
        const int32_t* group_tree
        const uint16_t* root
        const tc_ranking* rankings
        const tc_membership* memberships
        const float* cuts
        const uint16_t* starts
    ctypedef struct tc_masks:
        int32_t mask_bytes, use_avx2
        Py_ssize_t n_rankings, n_memberships, row_bytes
        const tc_ranking* rankings
        const tc_membership* memberships
        const float* cuts
        const uint16_t* starts
        const uint8_t* table
        const uint8_t* leaf
    int tc_has_avx2()
    int32_t tc_bucket(float x, float low, float scale, float last)
    # 0, or 1 when there is no memory for scratch space.
    int tc_score_rows(const tc_forest* f, const tc_blocks* b, const tc_masks* m, const float* rows, Py_ssize_t n_rows,
                      Py_ssize_t stride, double* out, Py_ssize_t n_outputs)
    int tc_walk_rows(const tc_forest* f, const float* rows, Py_ssize_t n_rows, Py_ssize_t stride,
                     double* out, Py_ssize_t n_outputs)
    # Leaves numbered within their trees, n_rows x n_trees; the same status.
    int tc_leaf_numbers(const tc_forest* f, const float* rows, Py_ssize_t n_rows, Py_ssize_t stride, int32_t* out)
