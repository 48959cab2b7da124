# reply.pxd - prediction replies, JSON or msgpack, written straight into bytes. Both HTTP paths write here, so theirs are
# the same byte for byte apart from the id.
#
# Owns   : a ReplyForm owns the constant parts of its plan's replies. Immutable.
# GIL    : write() needs it (a bytes object is made); the rest does not: numbers are written by decimal.h.
# Threads: ReplyForm is safe; ReplyIds counts under the GIL.
from libc.stdint cimport int32_t, int64_t, uint64_t

from tiercel._hot.typedefs cimport score_t

cdef enum:
    ID_BYTES = 32
    NUMBER_BYTES = 32       # "-2.2250738585072014e-308," and any int64


# What one worker's replies share.
cdef class ReplyIds:
    cdef char _prefix[16]
    cdef uint64_t _count
    cdef readonly Py_ssize_t max_rows      # a body of more rows is handed on
    cdef uint64_t next(self) noexcept nogil     # number of the next reply; with the prefix it is the reply's id


cdef struct Text:
    const char* data
    Py_ssize_t size


cdef class ReplyForm:
    cdef list _kept                        # the bytes that the Texts point at
    cdef Text* _constants                  # owned; the others point into it
    cdef Text* _heads                      # by format
    cdef Text* _classes                    # by format
    cdef Text* _names[2]                   # by format, by feature
    cdef Py_ssize_t _constant_size
    cdef readonly Py_ssize_t n_features, n_outputs

    # scores    : n_rows * n_outputs. single: the request had no lists, so n_rows is 1.
    # age_us    : negative: nothing stored and timed was read.
    # n_missing : per feature, in how many rows it has no value.
    cdef bytes write(
        self, int kind, ReplyIds ids, bint single, Py_ssize_t n_rows, const score_t* scores, int64_t age_us,
        const int32_t* n_missing,
    )

    # The same at `out`, which has room for most_bytes(n_rows); returns the length. `number` is from ids.next().
    cdef Py_ssize_t most_bytes(self, Py_ssize_t n_rows) noexcept nogil
    cdef Py_ssize_t write_into(
        self, char* out, int kind, ReplyIds ids, uint64_t number, bint single, Py_ssize_t n_rows, const score_t* scores,
        int64_t age_us, const int32_t* n_missing,
    ) noexcept nogil
    cdef int _keep(self, Py_ssize_t index, bytes text) except -1
    cdef char* _write_json(
        self, char* at, const char* id, Py_ssize_t id_size, bint single, Py_ssize_t n_rows, const score_t* scores,
        int64_t age_us, const int32_t* n_missing,
    ) noexcept nogil
    cdef char* _write_msgpack(
        self, char* at, const char* id, Py_ssize_t id_size, bint single, Py_ssize_t n_rows, const score_t* scores,
        int64_t age_us, const int32_t* n_missing,
    ) noexcept nogil


# Parts of a reply, written at `out`, which has room; lengths and ends are returned.
cdef Py_ssize_t write_id(char* out, const char* prefix, uint64_t number) noexcept nogil     # at most ID_BYTES
cdef char* put_number(char* at, double value) noexcept nogil                # at most NUMBER_BYTES; null where not finite
cdef char* put_decimal(char* at, int64_t value) noexcept nogil              # at least 0
