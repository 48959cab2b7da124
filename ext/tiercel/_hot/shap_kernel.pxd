# shap_kernel.pxd - declarations only: the C structures and functions of shap_kernel.h.
#
# Owns   : nothing; shap owns what the pointers lead to.
# GIL    : not needed by any function here; none raises.
# Threads: safe; all scratch memory belongs to the call.
from tiercel._hot.forest_kernel cimport tc_set
from tiercel._hot.steps cimport tc_step
from tiercel._hot.typedefs cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

cdef extern from "shap_kernel.h" nogil:
    enum: TC_MAX_PATH, TC_NARROW, TC_WEIGHTS, TC_UNIT_TABLE, TC_UNIT_LEAVES, TC_UNIT_LEAF
    ctypedef struct tc_top:
        uint32_t node, yes, no, bit
    ctypedef struct tc_unit:
        int64_t data
        uint32_t node, columns
        uint8_t prefix, inner, width, kind
    ctypedef struct tc_asked_set:
        uint32_t node, feature, set
    ctypedef struct tc_branch:
        double share
        uint32_t parent_side, answer, column, before
    ctypedef struct tc_tip:
        double share
        uint32_t parent_side, leaf
    ctypedef struct tc_walked:
        int64_t branch, tip
        int32_t n_branches, n_tips, n_points
    ctypedef struct tc_shap:
        Py_ssize_t n_features, n_raw, n_nodes, n_steps, width, max_slots, max_units, n_sets
        const tc_step* steps
        const float* threshold
        const uint32_t* column
        const tc_asked_set* asked_sets
        const tc_set* sets
        const uint32_t* words
        const tc_top* tops
        const tc_unit* units
        const uint64_t* alone
        const tc_walked* walked
        const tc_branch* branches
        const tc_tip* tips
        const double* values
        Py_ssize_t max_branches
        const uint32_t* columns
        const double* tables
        const int64_t* tree_top
        const int64_t* tree_unit
        const int64_t* tree_node
        const int64_t* tree_set
        const int64_t* raw_tree
        const double* quadrature
        const double* weights
        const double* narrow
        double counts[256]
        int32_t by_path, simd
    int tc_shap_simd()
    void tc_expand_row(const tc_shap* s, const float* row, float* out)
    int tc_is_no(const tc_set* sets, const uint32_t* words, const float* row, uint32_t column, float threshold,
                 int32_t set)
    int32_t tc_distinct(const uint64_t* of, Py_ssize_t n, uint64_t* distinct, double* count)
    void tc_leaf_table(const double* weights, const uint64_t* masks, const double* count, int32_t n, int width,
                       double* table)
    void tc_path_table(const double* quadrature, const double* share, int width, double* table)
    # 0, or 1 when there is no memory for scratch space.
    int tc_explain_rows(const tc_shap* s, const float* rows, Py_ssize_t n_rows, Py_ssize_t stride, Py_ssize_t raw,
                        double* phi)
    # The same; of a forest without tables.
    int tc_interact_rows(const tc_shap* s, const float* rows, Py_ssize_t n_rows, Py_ssize_t stride, Py_ssize_t raw,
                         double* pairs, double* phi)
