# http.pxd - the head of one HTTP/1.1 request, strictly: accepted in the one shape the hot path serves, or not at all.
#
# The shape: "POST /predict/<reference> HTTP/1.1", "POST /v2/models/<reference>/infer HTTP/1.1" or
# "POST /v2/models/<reference>/versions/<number>/infer HTTP/1.1", with a reference of [A-Za-z0-9._:@-] and a number of at
# most nine digits without a zero in front; then at most MAX_HEADERS lines "name: value" of token names and printable ASCII
# values, CRLF line ends only, MAX_HEAD_BYTES in all; exactly one Host of [A-Za-z0-9.:_\[\]-]; exactly one Content-Length of
# 1 to 15 digits, no greater than the caller's cap; exactly one Content-Type that is JSON or msgpack (parameters ignored),
# and for an infer request at most one, JSON's or that of octets; Connection at most once and then "keep-alive"; none of
# Transfer-Encoding, Content-Encoding, Expect, Upgrade, TE, Trailer; each header with a deadline (serving/deadline.py) at
# most once, of at most 15 digits and a decimal point; of an infer request Inference-Header-Content-Length at most once, of
# 1 to 15 digits. Whatever has this shape means the same to every HTTP parser; everything else is for the general parser to
# judge.
#
# Owns   : nothing; allocates nothing.
# Lends  : nothing. Results are offsets into the caller's bytes.
# GIL    : not needed. Raises: never.
# Threads: safe; no state.
from tiercel._hot.typedefs cimport int64_t, uint8_t

cdef enum:
    MAX_HEAD_BYTES = 8192      # of the whole head, its empty line included
    MAX_HEADERS = 64


cdef enum HeadStatus:
    HEAD_NEED_MORE = 0         # a proper prefix of a head that can still have the shape
    HEAD_FAST = 1              # the shape; `out` is filled in
    HEAD_HAND_ON = 2           # not the shape, whatever follows


cdef enum BodyKind:
    BODY_JSON = 0
    BODY_MSGPACK = 1
    BODY_TENSORS = 2           # of an infer request: JSON, then maybe binary tensors


cdef struct Head:
    Py_ssize_t reference_start   # into the caller's bytes; the reference of a version is "<name>/versions/<number>"
    Py_ssize_t reference_length
    Py_ssize_t head_length       # where the body starts
    Py_ssize_t content_length
    int kind                     # BodyKind
    int64_t budget_us            # the smallest deadline that a header names; -1: none
    int budget_source            # BudgetSource: which one
    bint is_traced               # there is a traceparent
    Py_ssize_t header_length     # what Inference-Header-Content-Length says of BODY_TENSORS; -1: it is not there


# Reads data[0 .. size) and never beyond. `out` is meaningful only with HEAD_FAST.
cdef HeadStatus parse_head(const uint8_t* data, Py_ssize_t size, Py_ssize_t max_body_bytes, Head* out) noexcept nogil
