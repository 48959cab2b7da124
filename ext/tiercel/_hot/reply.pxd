# reply.pxd - prediction replies, JSON or msgpack, written straight into bytes. Both HTTP paths write here, so theirs are
# the same byte for byte apart from the id.
#
# Owns   : a ReplyForm owns the constant parts of its plan's replies. Immutable.
# GIL    : needed (a bytes object is made, and floats are formatted by CPython).
# Threads: ReplyForm is safe; ReplyIds counts under the GIL.
from libc.stdint cimport int32_t, int64_t, uint64_t

from tiercel._hot.typedefs cimport score_t


# What one worker's replies share.
cdef class ReplyIds:
    cdef char _prefix[16]
    cdef uint64_t _count
    cdef readonly Py_ssize_t max_rows      # a body of more rows is handed on
    cdef Py_ssize_t write(self, char* out) noexcept


cdef class ReplyForm:
    cdef tuple _heads, _classes, _names    # by format: bytes, bytes, tuple of bytes by feature
    cdef Py_ssize_t _names_size            # bytes of all names in the format that needs more
    cdef readonly Py_ssize_t n_features, n_outputs

    # scores    : n_rows * n_outputs. single: the request had no lists, so n_rows is 1.
    # age_us    : negative: nothing stored and timed was read.
    # n_missing : per feature, in how many rows it has no value.
    cdef bytes write(
        self, int kind, ReplyIds ids, bint single, Py_ssize_t n_rows, const score_t* scores, int64_t age_us,
        const int32_t* n_missing,
    )
    cdef char* _write_json(
        self, char* at, ReplyIds ids, bint single, Py_ssize_t n_rows, const score_t* scores, int64_t age_us,
        const int32_t* n_missing,
    ) except NULL
    cdef char* _write_msgpack(
        self, char* at, ReplyIds ids, bint single, Py_ssize_t n_rows, const score_t* scores, int64_t age_us,
        const int32_t* n_missing,
    ) except NULL
