# assembler.pxd - questions as Python values: checked, explained where wrong, and assembled into feature vectors.
#
# The general path's twin of what vector.pxd does with a body's bytes: the same slots, the same values (a test compares).
#
# Owns   : nothing but references. Immutable.
# GIL    : needed, and released to read RELEASE_GIL_ROWS rows and more.
# Threads: safe; a Scratch belongs to one call.
from tiercel._hot.output cimport Output
from tiercel._hot.prediction cimport Stopwatch
from tiercel._hot.typedefs cimport int64_t
from tiercel._hot.values cimport Group
from tiercel._hot.vector cimport Scratch, VectorProgram

# Below this many rows handing the GIL over costs more than it frees.
cdef enum:
    RELEASE_GIL_ROWS = 32


cdef class Assembler:
    cdef str model
    cdef int version
    cdef object schema                     # ServiceSchema or None
    cdef VectorProgram vectors
    cdef Py_ssize_t n_features
    cdef bint _accepts_missing

    # Rows and missing counts, in a scratch that vectors.begin() made; returns the age of the oldest value, -1 without one.
    # Notes the ends of the stages of reading and computing.
    cdef int64_t assemble(
        self, Scratch* scratch, Py_ssize_t n_rows, bint many, dict entities, dict features, int64_t now_us,
        Stopwatch* watch,
    ) except? -2
    # The join keys as Prediction.keys wants them, appended to `out`.
    cdef int put_keys(self, Py_ssize_t n_rows, dict entities, Output* out) except -1

    cdef int _mark_given(self, Scratch* scratch, dict features) except -1
    cdef int _read_groups(
        self, Scratch* scratch, Py_ssize_t n_rows, dict entities, int64_t now_us, int64_t* oldest_us
    ) except -1
    cdef int _encode_keys(self, Scratch* scratch, Py_ssize_t n_rows, Group group, dict entities) except -1
    cdef int _check_reads(self, Scratch* scratch, Py_ssize_t n_rows, Group group, dict entities) except -1
    cdef int _fill_given(self, Scratch* scratch, Py_ssize_t n_rows, dict features) except -1
    cdef int _refuse_missing(self, Scratch* scratch, Py_ssize_t n_rows, bint many) except -1
