# tensors.pxd - the Open Inference Protocol of one plan: infer requests to the columns that every body becomes, scores to
# replies. See tensors.h and tensor_values.h; the general path's twin is http/oip.py.
#
# A request that is read here means what it means there, and the reply has the same bytes but for ids and times. What is
# not certainly right is handed on.
#
# Owns   : a TensorForm owns the constant parts of its plan's replies, and keeps the VectorProgram that it reads for.
#          Immutable. A TensorRequest owns memory from read() to free_tensors().
# Lends  : `Body.columns` point into the request's bytes and into its TensorRequest: valid as long as both are.
# GIL    : read() and write_into() need none and never raise.
# Threads: safe, but for a TensorTally: the event loop's only.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from tiercel._hot.payload cimport Body, BodySchema, Cell, FieldSpec
from tiercel._hot.prediction cimport Stopwatch
from tiercel._hot.reply cimport ReplyIds, Text
from tiercel._hot.typedefs cimport score_t
from tiercel._hot.vector cimport VectorProgram


cdef extern from "tensors.h" nogil:
    ctypedef struct TensorRequest:
        Cell id
        int64_t timeout_us         # -1: none
        int64_t header_length      # given by the caller: of the JSON, -1: all is JSON, 0: nothing is
        int64_t n_rows             # left by read()
        int64_t json_bytes         # left by write_into(): of the reply's JSON, -1: all is JSON
        bint is_binary             # how the scores are wanted
    ctypedef struct TensorSchema:
        const BodySchema* names
        const FieldSpec* fields
        const uint8_t* key_is_text
        int32_t n_features
        int32_t n_vector
    void free_tensors(TensorRequest* request)


cdef class TensorForm:
    cdef readonly VectorProgram vectors
    cdef readonly Py_ssize_t n_outputs
    cdef TensorSchema _schema
    cdef bytes _kept_head, _kept_tier
    cdef Text _head, _tier                 # they point at what is kept

    # body.columns and body.given have room for the fields of `vectors.body_reader`; request.header_length is set.
    # False: hand on. free_tensors() after use in either case; only what read() left besides tensors stays good after it.
    cdef bint read(
        self, const uint8_t* data, Py_ssize_t size, int64_t max_rows, Body* body, TensorRequest* request
    ) noexcept nogil

    # The reply to a request of `n_rows`, at `out`, which has room for most_bytes(); returns its length. The request's
    # bytes are still there. `number` is from ids.next(); `watch` has every stage but that of the reply, which ends here.
    # begun_ns: when the request was begun.
    cdef Py_ssize_t most_bytes(self, Py_ssize_t n_rows, const TensorRequest* request) noexcept nogil
    cdef Py_ssize_t write_into(
        self, char* out, TensorRequest* request, ReplyIds ids, uint64_t number, Py_ssize_t n_rows, const score_t* scores,
        int64_t age_us, Stopwatch* watch, int64_t begun_ns,
    ) noexcept nogil


# What one worker answered of one model version with tensors, for the protocol's statistics.
cdef class TensorTally:
    cdef readonly int64_t n_requests, n_rows, last_ms, total_ns
    cdef int64_t _stage_ns[5]              # N_STAGES

    cdef void add(self, const Stopwatch* watch, int64_t n_rows, int64_t wall_us, int64_t begun_ns) noexcept


# All tallies of one worker.
cdef class TensorTallies:
    cdef dict _tallies                     # (model, version) -> TensorTally

    cdef TensorTally of(self, str model, int version)
