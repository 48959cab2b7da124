# cython: language_level=3, boundscheck=False, wraparound=False
"""The floor: what the exchange of one request and one reply costs on this event loop when nothing is done in between.

An asyncio protocol that finds where each request ends - the blank line after the head, then as many bytes as
Content-Length says - and answers each with the same bytes. It parses nothing else: not the method, the path, the body. The
replies of one read go out in one write. A request without Content-Length has no body.

The reply is as long as tiercel's to the same request, so the bytes on the wire are the same work.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdlib cimport strtol

cdef extern from "string.h" nogil:
    void* memmem(const void* haystack, size_t n, const void* needle, size_t m)

cdef extern from "strings.h" nogil:
    int strncasecmp(const char* a, const char* b, size_t n)

BODY = (
    b'{"id":"00000000000000000","model":"bench","version":1,"tier":"realtime","score":0.1234567890123456,'
    b'"features":{"oldest_age_ms":12345678901.234,"missing":[]}}'
)
cdef bytes REPLY = (
    b"HTTP/1.1 200 OK\r\ndate: Mon, 01 Jan 2026 00:00:00 GMT\r\ncontent-type: application/json\r\ncontent-length: "
    + str(len(BODY)).encode()
    + b"\r\nserver-timing: parse;dur=0.001, read;dur=0.001, compute;dur=0.000, score;dur=0.002, reply;dur=0.000\r\n\r\n" + BODY
)


cdef Py_ssize_t request_length(const char* data, Py_ssize_t size) noexcept nogil:
    """Bytes of the request at `data`, or 0 when it is not all here."""
    cdef const char* end = <const char*>memmem(data, <size_t>size, b"\r\n\r\n", 4)
    cdef const char* line
    cdef long length = 0
    if end == NULL:
        return 0
    line = data
    while line < end:
        if strncasecmp(line, b"content-length:", 15) == 0:
            length = strtol(line + 15, NULL, 10)
        line = <const char*>memmem(line, <size_t>(end + 2 - line), b"\r\n", 2) + 2
    length += end + 4 - data
    return length if length <= size else 0


cdef class FloorProtocol:
    """Plain asyncio (`loop.create_server(FloorProtocol, ...)`), or uvicorn's `http=`, which passes keyword arguments."""

    cdef object _transport, _server_state
    cdef bytes _rest

    def __init__(self, config=None, server_state=None, app_state=None, _loop=None):
        self._server_state = server_state
        self._rest = b""

    def connection_made(self, transport):
        self._transport = transport
        if self._server_state is not None:
            self._server_state.connections.add(self)

    def connection_lost(self, exc):
        if self._server_state is not None:
            self._server_state.connections.discard(self)

    def data_received(self, data):
        cdef bytes whole = self._rest + data if self._rest else data
        cdef const char* at = PyBytes_AS_STRING(whole)
        cdef Py_ssize_t left = PyBytes_GET_SIZE(whole), length, n = 0
        while left:
            length = request_length(at, left)
            if length == 0:
                break
            at += length
            left -= length
            n += 1
        self._rest = at[:left] if left else b""
        if n:
            self._transport.write(REPLY if n == 1 else REPLY * n)

    def eof_received(self):
        return None

    def pause_writing(self):
        pass

    def resume_writing(self):
        pass

    def shutdown(self):
        self._transport.close()
