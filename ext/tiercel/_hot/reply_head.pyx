"""Heads of replies; see reply_head.pxd for the contract. Owner: tiercel._hot.protocol."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.string cimport memcpy, memmove

from tiercel._hot.output cimport Output
from tiercel._hot.payload cimport BODY_JSON
from tiercel._hot.prediction cimport BUDGET_NONE, N_STAGES, STAGE_REPLY, Stopwatch
from tiercel._hot.typedefs cimport int64_t, uint8_t

# By Stage, and by BudgetSource; the latter are those of serving/deadline.py.
STAGE_NAMES = ("parse", "read", "compute", "score", "reply")
SOURCES = ("tier", "x-request-timeout-seconds", "x-envoy-expected-rq-timeout-ms", "deadline_ms", "timeout")

cdef enum:
    MAX_LENGTH_DIGITS = 20
    FIXED_BYTES = 704       # content headers, seven numbers of at most 20 + 3 digits, and their names

cdef bytes JSON_HEADERS = b"content-type: application/json\r\ncontent-length: "
cdef bytes MSGPACK_HEADERS = b"content-type: application/msgpack\r\ncontent-length: "
cdef bytes OCTET_HEADERS = b"content-type: application/octet-stream\r\ncontent-length: "
cdef bytes JSON_LENGTH = b"\r\ninference-header-content-length: "
cdef bytes TIMING = b"\r\nserver-timing: "
cdef tuple TIMED = tuple([(", " if i else "").encode() + name.encode() + b";dur=" for i, name in enumerate(STAGE_NAMES)])
cdef bytes EXPLAINED = b", explain;dur="
cdef bytes BUDGET = b", budget;dur="
cdef tuple BUDGETED = tuple([b';desc="%b"' % name.encode() for name in SOURCES])
cdef bytes END = b"\r\n\r\n"
cdef bytes CLOSE_END = b"\r\nconnection: close\r\n\r\n"


cdef class HeadWriter:
    def __init__(self):
        self._prefix = b""

    cdef int refresh(self, object server_state) except -1:
        headers = server_state.default_headers
        if headers is not self._default_headers:
            lines = [b"HTTP/1.1 200 OK\r\n"]
            for name, value in headers:
                lines += [name, b": ", value, b"\r\n"]
            self._prefix = b"".join(lines)
            self._default_headers = headers
        return 0

    cdef Py_ssize_t room(self) noexcept:
        return PyBytes_GET_SIZE(self._prefix) + FIXED_BYTES

    cdef void write(
        self, Output* out, Py_ssize_t start, Py_ssize_t length, int kind, const Stopwatch* watch, bint close
    ) noexcept:
        cdef Py_ssize_t at = _copy(out, start, self._prefix)
        at = _copy(out, at, JSON_HEADERS if kind == BODY_JSON else MSGPACK_HEADERS)
        at = _copy_decimal(out, at, length)
        at = _copy_timing(out, at, watch)
        self._end(out, start, at, length, close)

    cdef void write_tensors(
        self, Output* out, Py_ssize_t start, Py_ssize_t length, Py_ssize_t json_bytes, bint close
    ) noexcept:
        cdef Py_ssize_t at = _copy(out, start, self._prefix)
        at = _copy(out, at, JSON_HEADERS if json_bytes < 0 else OCTET_HEADERS)
        at = _copy_decimal(out, at, length)
        if json_bytes >= 0:
            at = _copy_decimal(out, _copy(out, at, JSON_LENGTH), json_bytes)
        self._end(out, start, at, length, close)

    cdef void _end(self, Output* out, Py_ssize_t start, Py_ssize_t at, Py_ssize_t length, bint close) noexcept:
        """The last line of the head, and the body behind it."""
        at = _copy(out, at, CLOSE_END if close else END)
        memmove(out.data + at, out.data + start + self.room(), <size_t>length)
        out.size = at + length


cdef inline Py_ssize_t _copy(Output* out, Py_ssize_t at, bytes text) noexcept:
    memcpy(out.data + at, PyBytes_AS_STRING(text), <size_t>PyBytes_GET_SIZE(text))
    return at + PyBytes_GET_SIZE(text)


cdef inline Py_ssize_t _copy_decimal(Output* out, Py_ssize_t at, Py_ssize_t value) noexcept:
    cdef uint8_t digits[MAX_LENGTH_DIGITS]
    cdef int first = MAX_LENGTH_DIGITS
    while True:
        first -= 1
        digits[first] = <uint8_t>(48 + value % 10)
        value //= 10
        if value == 0:
            break
    memcpy(out.data + at, &digits[first], <size_t>(MAX_LENGTH_DIGITS - first))
    return at + MAX_LENGTH_DIGITS - first


cdef Py_ssize_t _copy_timing(Output* out, Py_ssize_t at, const Stopwatch* watch) noexcept:
    """The Server-Timing header: each stage in milliseconds, with three decimals."""
    cdef int stage
    cdef int64_t spent_ns
    at = _copy(out, at, TIMING)
    for stage in range(<int>N_STAGES):
        spent_ns = watch.at[stage + 1] - watch.at[stage]
        if stage == STAGE_REPLY and watch.explain_ns > 0:
            at = _copy_ms(out, _copy(out, at, EXPLAINED), (watch.explain_ns + 500) // 1000)
            spent_ns -= watch.explain_ns
        at = _copy(out, at, <bytes>TIMED[stage])
        at = _copy_ms(out, at, max(0, spent_ns + 500) // 1000)
    if watch.budget_source != BUDGET_NONE:
        at = _copy(out, at, BUDGET)
        at = _copy_ms(out, at, watch.budget_us)
        at = _copy(out, at, <bytes>BUDGETED[watch.budget_source])
    return at


cdef inline Py_ssize_t _copy_ms(Output* out, Py_ssize_t at, int64_t us) noexcept:
    """Microseconds of at least 0, as milliseconds with three decimals."""
    cdef uint8_t* to
    at = _copy_decimal(out, at, us // 1000)
    us %= 1000
    to = out.data + at
    to[0] = 46      # "."
    to[1], to[2], to[3] = <uint8_t>(48 + us // 100), <uint8_t>(48 + us // 10 % 10), <uint8_t>(48 + us % 10)
    return at + 4
