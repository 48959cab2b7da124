# forest_masks.pxd - a forest laid out for one row at a time; forest_masks.h says how it is evaluated.
#
# Owns   : the arrays that `masks` points into (NumPy arrays kept in _arrays), built once in __init__, then immutable: a
#          mask per tree for every distinct threshold, at most forest_masks.MAX_TABLE_BYTES.
# Lends  : `masks`, as long as the object lives.
# GIL    : needed to build; `masks` may be read without.
# Threads: safe.
from tiercel._hot.forest_kernel cimport tc_masks


cdef class ForestMasks:
    cdef tc_masks masks                # mask_bytes 0: this forest is better walked
    cdef readonly double row_ns        # what one row is expected to take, by masks or walked
    cdef dict _arrays                  # what masks points into
