# shap_layout.pxd - laying out a forest's trees for shap_kernel.h: units, their keys and their tables.
#
# Owns   : the arrays it makes, which `shap` takes over; it lives only while a ForestExplainer is made.
# Lends  : nothing.
# GIL    : needed.
# Threads: one.
from tiercel._hot.forest_kernel cimport tc_set
from tiercel._hot.shap_kernel cimport TC_MAX_PATH, tc_asked_set, tc_branch, tc_tip, tc_top, tc_unit
from tiercel._hot.typedefs cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t


cdef class Layout:
    # The forest, its tests as forest_kernel.h asks them: `yes` is where a true one leads.
    cdef const int32_t[::1] yes
    cdef const int32_t[::1] no
    cdef const int32_t[::1] set_of
    cdef const int32_t[::1] feature
    cdef const uint32_t[::1] column
    cdef const float[::1] cut
    cdef const int64_t[::1] leaf
    cdef const double[:, ::1] values
    cdef const double[::1] cover               # no values: interventional
    cdef const tc_set* sets
    cdef const uint32_t* words
    cdef const float[:, ::1] reference         # expanded; no rows: path-dependent
    cdef const double* weights                 # of one reference row among all
    cdef const double* quadrature
    cdef Py_ssize_t n_references, merge_bytes, n_outputs
    # By node: different features above a leaf, and whether it has a table; of the unit that begins here its inner nodes
    # (-1: it has no table), its leaves (0: it has one), its features and its bytes.
    cdef uint8_t[::1] path_length
    cdef uint8_t[::1] has_table
    cdef int32_t[::1] unit_inner
    cdef int32_t[::1] unit_leaves
    cdef int32_t[::1] unit_width
    cdef int64_t[::1] unit_bytes
    # Of the path to the node that is being looked at.
    cdef uint32_t path[TC_MAX_PATH]
    cdef double share[TC_MAX_PATH + 1]
    # What is made, and how much of it there is.
    cdef float[::1] out_threshold
    cdef uint32_t[::1] out_column
    cdef uint32_t[::1] out_columns
    cdef tc_asked_set* out_sets
    cdef tc_top* out_tops
    cdef tc_unit* out_units
    cdef double[::1] out_tables
    cdef double[::1] reached                   # by leaf: how often it is reached when nothing is known of a row
    cdef object alone                          # uint64, grown as needed
    cdef Py_ssize_t n_nodes, n_columns, n_asked, n_tops, n_units, n_leaves_alone, n_table, n_alone, n_slots
    # For walking trees by path.
    cdef tc_branch* out_branches
    cdef tc_tip* out_tips
    cdef Py_ssize_t n_tips, first_branch
    cdef uint32_t[::1] walk_place              # by node: its place among the tree's inner nodes
    cdef uint32_t[::1] place_of                # by node: its place among the answers
    cdef uint32_t asked[TC_MAX_PATH + 1]       # by bit of the path: the place that the feature led to last
    # Of the tree that is being placed.
    cdef Py_ssize_t begin, first_top, first_slot, first_leaf
    cdef uint64_t[:, ::1] masks                # by node, of every reference row
    cdef double[::1] leaf_table
    cdef uint64_t[::1] distinct
    cdef double[::1] distinct_count
    # Of the unit that is being filled: its features, and the edges to the leaf (inner node, answer, bit of the path).
    cdef uint32_t unit_columns[256]
    cdef int edge_inner[256]
    cdef int edge_answer[256]
    cdef int edge_bit[256]
    cdef int edge_count, unit_n_columns, unit_n_inner

    cdef int find(self, uint32_t feature, int length) noexcept nogil
    cdef int measure(self, Py_ssize_t node, int length, int depth, Py_ssize_t tree) except -1
    cdef int add_features(self, Py_ssize_t node, int length, int count) noexcept nogil
    cdef int join(self, Py_ssize_t node, int length) noexcept nogil
    cdef tuple count(self, starts)
    cdef int place_node(self, Py_ssize_t node) noexcept nogil
    cdef int follow(self, Py_ssize_t node, int bit) noexcept nogil
    cdef double part(self, Py_ssize_t node, Py_ssize_t child) noexcept nogil
    cdef int place(self, Py_ssize_t node, int length) except -1
    cdef bint is_unit(self, Py_ssize_t node) noexcept nogil
    cdef Py_ssize_t place_top(self, Py_ssize_t node, int bit) noexcept nogil
    cdef int lead(self, Py_ssize_t top, int side, Py_ssize_t child) noexcept nogil
    cdef int place_leaves(self, Py_ssize_t node, tc_unit* unit) except -1
    cdef int make_room(self, Py_ssize_t words) except -1
    cdef int place_unit(self, Py_ssize_t node, int length) except -1
    cdef int fill(self, Py_ssize_t node, int length, tc_unit* unit) except -1
    cdef int expect(self, Py_ssize_t node, int length, int32_t n) noexcept nogil
    cdef int fill_leaf(self, Py_ssize_t node, int length, tc_unit* unit) except -1
    cdef int keep_leaf(self, Py_ssize_t node, int length, tc_unit* unit) except -1
    cdef int32_t find_distinct(self, Py_ssize_t node) noexcept nogil
    cdef Py_ssize_t number_walk(self, Py_ssize_t root) except -1
    cdef int place_walk(self, Py_ssize_t node, int length) except -1
