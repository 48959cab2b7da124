"""The strict head parser; see http.pxd for the shape and the contract. Owner: tiercel.http.native."""

from libc.string cimport memcmp

from tiercel._hot.prediction cimport BUDGET_HEADER_MS, BUDGET_HEADER_SECONDS, BUDGET_NONE
from tiercel._hot.typedefs cimport int64_t, uint8_t

NEED_MORE, FAST, HAND_ON = HEAD_NEED_MORE, HEAD_FAST, HEAD_HAND_ON

# What a byte may be part of.
cdef enum:
    TOKEN = 1          # a header name (RFC 9110 tchar)
    VALUE = 2          # a header value here: printable ASCII and space, not tab
    REFERENCE = 4      # a model reference
    HOST = 8           # a host and port

cdef uint8_t CLASS_OF[256]


cdef void _classify() noexcept:
    cdef int byte
    cdef uint8_t mask
    for byte in range(256):
        mask = 0
        if 32 <= byte < 127:
            mask |= VALUE
        if 48 <= byte < 58 or 65 <= byte < 91 or 97 <= byte < 123:
            mask |= TOKEN | REFERENCE | HOST
        CLASS_OF[byte] = mask
    for byte in b"!#$%&'*+-.^_`|~":
        CLASS_OF[byte] |= TOKEN
    for byte in b"-._@:":
        CLASS_OF[byte] |= REFERENCE
    for byte in b"-._:[]":
        CLASS_OF[byte] |= HOST


_classify()

# The request lines up to the reference, and from it; between the two an infer request may name a version.
cdef const char* PREDICT_START = b"POST /predict/"
cdef const char* PREDICT_END = b" HTTP/1.1\r\n"
cdef const char* INFER_START = b"POST /v2/models/"
cdef const char* INFER_END = b"/infer HTTP/1.1\r\n"
cdef const char* VERSIONS = b"/versions/"
cdef enum:
    PREDICT_START_LENGTH = 14
    PREDICT_END_LENGTH = 11
    INFER_START_LENGTH = 16
    INFER_END_LENGTH = 17
    VERSIONS_LENGTH = 10
    MAX_VERSION_DIGITS = 9

# How bytes compare with a text: they are no part of it, begin with it, or are its beginning.
cdef enum:
    DIFFERS
    MATCHES
    BEGINS

# Headers that mean something here, as bits of what was seen.
cdef enum:
    SEEN_HOST = 1
    SEEN_LENGTH = 2
    SEEN_TYPE = 4
    SEEN_CONNECTION = 8
    SEEN_TIMEOUT_S = 16
    SEEN_TIMEOUT_MS = 32
    SEEN_HEADER_LENGTH = 64
    PREDICT_REQUIRED = 7
    INFER_REQUIRED = 3

cdef double MAX_BUDGET_US = 3_600_000_000


cdef bint _same(const uint8_t* text, const char* lower, Py_ssize_t length) noexcept nogil:
    """Whether `length` bytes of text equal the lower-case letters and '-', '/', '.' of `lower`, in any case."""
    cdef Py_ssize_t i
    cdef uint8_t byte
    for i in range(length):
        byte = text[i]
        if 65 <= byte < 91:
            byte |= 32
        if byte != <uint8_t>lower[i]:
            return False
    return True


cdef inline int _match(const uint8_t* data, Py_ssize_t size, const char* text, Py_ssize_t length) noexcept nogil:
    if memcmp(data, text, <size_t>min(size, length)) != 0:
        return DIFFERS
    return BEGINS if size < length else MATCHES


cdef int _kind_of(const uint8_t* value, Py_ssize_t length, bint is_infer) noexcept nogil:
    """BodyKind of a Content-Type, -1 for any other type. Clients of Triton call a body of tensors JSON or octets."""
    cdef Py_ssize_t i = 0
    while i < length and value[i] != 59:  # ';'
        i += 1
    while i > 0 and value[i - 1] == 32:
        i -= 1
    if is_infer:
        if i == 16 and _same(value, b"application/json", 16):
            return BODY_TENSORS
        return BODY_TENSORS if i == 24 and _same(value, b"application/octet-stream", 24) else -1
    if i == 16 and _same(value, b"application/json", 16):
        return BODY_JSON
    if i == 19 and _same(value, b"application/msgpack", 19):
        return BODY_MSGPACK
    if i == 21 and _same(value, b"application/x-msgpack", 21):
        return BODY_MSGPACK
    if i == 23 and _same(value, b"application/vnd.msgpack", 23):
        return BODY_MSGPACK
    return -1


cdef Py_ssize_t _length_of(const uint8_t* value, Py_ssize_t length) noexcept nogil:
    """A length of 1 to 15 digits (which cannot overflow), -1 for anything else."""
    cdef Py_ssize_t total = 0, i
    if length < 1 or length > 15:
        return -1
    for i in range(length):
        if value[i] < 48 or value[i] > 57:
            return -1
        total = total * 10 + (value[i] - 48)
    return total


cdef int64_t _budget_of(const uint8_t* value, Py_ssize_t length, double unit_us) noexcept nogil:
    """Microseconds of a deadline written as at most 15 digits with at most one point among them, -1 for anything else.

    Digits below 2**53 and a power of ten are exact, so their quotient is rounded as float(text) rounds.
    """
    cdef double digits = 0, scale = 1, us
    cdef Py_ssize_t i, n_digits = 0
    cdef bint after_point = False
    for i in range(length):
        if value[i] == 46 and not after_point and n_digits > 0:
            after_point = True
        elif 48 <= value[i] < 58 and n_digits < 15:
            digits = digits * 10 + (value[i] - 48)
            n_digits += 1
            if after_point:
                scale *= 10
        else:
            return -1
    us = digits / scale * unit_us
    return <int64_t>us if n_digits > 0 and 1 <= us <= MAX_BUDGET_US else -1


cdef inline bint _take_budget(
    const uint8_t* value, Py_ssize_t length, double unit_us, int source, Head* out
) noexcept nogil:
    """Note a deadline if it is the smallest so far; False when it is not plainly one."""
    cdef int64_t budget_us = _budget_of(value, length, unit_us)
    if budget_us < 0:
        return False
    if out.budget_us < 0 or budget_us < out.budget_us:
        out.budget_us, out.budget_source = budget_us, source
    return True


cdef bint _is_host(const uint8_t* value, Py_ssize_t length) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(length):
        if not CLASS_OF[value[i]] & HOST:
            return False
    return length > 0


cdef bint _take_header(
    const uint8_t* name, Py_ssize_t name_length, const uint8_t* value, Py_ssize_t length, Py_ssize_t max_body_bytes,
    int* seen, Head* out,
) noexcept nogil:
    """Note one header; False when it takes the request out of the shape."""
    cdef int bit = 0
    if name_length == 4 and _same(name, b"host", 4):
        bit = SEEN_HOST
        if not _is_host(value, length):
            return False
    elif name_length == 14 and _same(name, b"content-length", 14):
        bit = SEEN_LENGTH
        out.content_length = _length_of(value, length)
        if out.content_length < 0 or out.content_length > max_body_bytes:
            return False
    elif name_length == 12 and _same(name, b"content-type", 12):
        bit = SEEN_TYPE
        out.kind = _kind_of(value, length, out.kind == BODY_TENSORS)
        if out.kind < 0:
            return False
    elif name_length == 10 and _same(name, b"connection", 10):
        bit = SEEN_CONNECTION
        if length != 10 or not _same(value, b"keep-alive", 10):
            return False
    elif name_length == 25 and _same(name, b"x-request-timeout-seconds", 25):
        bit = SEEN_TIMEOUT_S
        if not _take_budget(value, length, 1e6, BUDGET_HEADER_SECONDS, out):
            return False
    elif name_length == 30 and _same(name, b"x-envoy-expected-rq-timeout-ms", 30):
        bit = SEEN_TIMEOUT_MS
        if not _take_budget(value, length, 1e3, BUDGET_HEADER_MS, out):
            return False
    elif name_length == 31 and out.kind == BODY_TENSORS and _same(name, b"inference-header-content-length", 31):
        bit = SEEN_HEADER_LENGTH
        out.header_length = _length_of(value, length)
        if out.header_length < 0:
            return False
    elif name_length == 11 and _same(name, b"traceparent", 11):
        out.is_traced = True
    elif (
        (name_length == 17 and _same(name, b"transfer-encoding", 17))
        or (name_length == 16 and _same(name, b"content-encoding", 16))
        or (name_length == 16 and _same(name, b"proxy-connection", 16))
        or (name_length == 6 and _same(name, b"expect", 6))
        or (name_length == 7 and (_same(name, b"upgrade", 7) or _same(name, b"trailer", 7)))
        or (name_length == 2 and _same(name, b"te", 2))
    ):
        return False
    if seen[0] & bit:
        return False
    seen[0] |= bit
    return True


cdef HeadStatus _take_line(const uint8_t* data, Py_ssize_t size, HeadStatus more, Head* out, Py_ssize_t* next) noexcept nogil:
    """The request line, `next` is behind it. HEAD_FAST: on with the headers."""
    cdef int found = _match(data, size, PREDICT_START, PREDICT_START_LENGTH), other
    cdef Py_ssize_t at = PREDICT_START_LENGTH, first, end_length = PREDICT_END_LENGTH
    cdef const char* end = PREDICT_END
    out.kind = BODY_JSON
    if found != MATCHES:
        other = _match(data, size, INFER_START, INFER_START_LENGTH)
        if other != MATCHES:
            return HEAD_HAND_ON if found == DIFFERS and other == DIFFERS else more
        out.kind, at, end, end_length = BODY_TENSORS, INFER_START_LENGTH, INFER_END, INFER_END_LENGTH
    out.reference_start = at
    while at < size and CLASS_OF[data[at]] & REFERENCE:
        at += 1
    if at >= size:
        return more
    if at == out.reference_start:
        return HEAD_HAND_ON
    if out.kind == BODY_TENSORS:
        found = _match(data + at, size - at, VERSIONS, VERSIONS_LENGTH)
        if found == BEGINS:
            return more
        if found == MATCHES:
            at += VERSIONS_LENGTH
            first = at
            while at < size and 48 <= data[at] < 58:
                at += 1
            if at >= size:
                return more
            if at == first or at - first > MAX_VERSION_DIGITS or data[first] == 48:
                return HEAD_HAND_ON
    out.reference_length = at - out.reference_start
    found = _match(data + at, size - at, end, end_length)
    next[0] = at + end_length
    return HEAD_FAST if found == MATCHES else more if found == BEGINS else HEAD_HAND_ON


cdef HeadStatus parse_head(const uint8_t* data, Py_ssize_t size, Py_ssize_t max_body_bytes, Head* out) noexcept nogil:
    cdef Py_ssize_t at, name, value, end, n_headers = 0
    cdef int seen = 0, required
    cdef bint whole = size < MAX_HEAD_BYTES     # False: what is missing would be beyond the cap
    cdef HeadStatus more = HEAD_NEED_MORE if whole else HEAD_HAND_ON, status
    if size > MAX_HEAD_BYTES:
        size = MAX_HEAD_BYTES
    status = _take_line(data, size, more, out, &at)
    if status != HEAD_FAST:
        return status
    required = INFER_REQUIRED if out.kind == BODY_TENSORS else PREDICT_REQUIRED
    out.budget_us, out.budget_source, out.is_traced, out.header_length = -1, BUDGET_NONE, False, -1
    while True:
        # At the start of a line.
        if at >= size:
            return more
        if data[at] == 13:
            if at + 1 >= size:
                return more
            if data[at + 1] != 10 or seen & required != required:
                return HEAD_HAND_ON
            out.head_length = at + 2
            return HEAD_FAST
        n_headers += 1
        if n_headers > MAX_HEADERS:
            return HEAD_HAND_ON
        name = at
        while at < size and CLASS_OF[data[at]] & TOKEN:
            at += 1
        if at >= size:
            return more
        if data[at] != 58 or at == name:  # ':'
            return HEAD_HAND_ON
        end = at
        at += 1
        while at < size and data[at] == 32:
            at += 1
        value = at
        while at < size and CLASS_OF[data[at]] & VALUE:
            at += 1
        if at >= size:
            return more
        if data[at] != 13:
            return HEAD_HAND_ON
        if at + 1 >= size:
            return more
        if data[at + 1] != 10:
            return HEAD_HAND_ON
        if not _take_header(data + name, end - name, data + value, at - value, max_body_bytes, &seen, out):
            return HEAD_HAND_ON
        at += 2


def read_head(const uint8_t[::1] data not None, Py_ssize_t max_body_bytes):
    """Offsets of one head; see http.pyi."""
    cdef Head head
    cdef HeadStatus status
    if data.shape[0] == 0:
        return HEAD_NEED_MORE, 0, 0, 0, 0, 0, -1, False, -1
    status = parse_head(&data[0], data.shape[0], max_body_bytes, &head)
    if status != HEAD_FAST:
        return status, 0, 0, 0, 0, 0, -1, False, -1
    return (
        status, head.reference_start, head.reference_length, head.head_length, head.content_length, head.kind,
        head.budget_us, head.is_traced, head.header_length,
    )
