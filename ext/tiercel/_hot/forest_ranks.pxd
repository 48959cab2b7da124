# forest_ranks.pxd - the distinct thresholds of a forest by feature, and tables that find a value's place among them.
#
# Owns   : NumPy arrays, made once in __init__, then immutable: 16 bytes per node while a scorer is made, and at most 44 per
#          distinct threshold, which it keeps.
# Lends  : the arrays; forest_blocks and forest_masks keep references to those that they point into.
# GIL    : needed.
# Threads: safe.


cdef class ForestRanks:
    cdef readonly object features      # int32: those that a node compares with a threshold, ascending
    cdef readonly object cut_start     # int64 (len(features) + 1): where each one's thresholds begin in `cut`
    cdef readonly object cut           # float32: distinct thresholds, ascending by feature; no NaN
    cdef readonly object nodes         # int64: the nodes with such a threshold
    cdef readonly object places        # int64: each node's place among its feature's thresholds
    cdef readonly Py_ssize_t most_cuts
    cdef object _tables

    cpdef tuple tables(self)
