# steps.pxd - what happens to a row before a model sees it: imputing and scaling, one step after another.
#
# Owns   : the steps and the arrays they point into, taken in __init__ and immutable afterwards.
# Lends  : `each`, as long as the object lives.
# GIL    : needed to make; `each` may be read without.
# Threads: safe.
from tiercel._hot.typedefs cimport int32_t

cdef extern from "transforms.h" nogil:
    enum: TC_STEP_KINDS
    ctypedef struct tc_step:
        int32_t kind
        const float* a
        const float* b
    void tc_apply_step(const tc_step* step, float* row, Py_ssize_t n)


cdef class Steps:
    cdef tc_step* each                 # n of them, from malloc
    cdef Py_ssize_t n
    cdef list _arrays                  # what they point into
