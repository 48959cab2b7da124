# reply_head.pxd - the heads of successful replies: status line, the server's headers, what the body is, stage times.
#
# A body is written first, room() behind where its reply begins, because a head says how long it is; then its head, and
# the body is moved up to it.
#
# Owns   : a HeadWriter owns the lines that all replies begin with.
# GIL    : held. Raises: never, but refresh().
# Threads: one at a time.
from tiercel._hot.output cimport Output
from tiercel._hot.prediction cimport Stopwatch


cdef class HeadWriter:
    cdef object _default_headers           # the list that _prefix was made from
    cdef bytes _prefix

    # The status line and the headers that uvicorn adds to every reply; it makes a new list each second.
    cdef int refresh(self, object server_state) except -1
    # For the longest head.
    cdef Py_ssize_t room(self) noexcept

    # The head of the reply that begins at `start` and has `length` bytes of body, room() behind it.
    # kind: BodyKind; `watch` goes into Server-Timing.
    cdef void write(
        self, Output* out, Py_ssize_t start, Py_ssize_t length, int kind, const Stopwatch* watch, bint close
    ) noexcept
    # The same of tensors, which tell the times in their JSON. json_bytes: of that, where more follows it; -1: nothing does.
    cdef void write_tensors(
        self, Output* out, Py_ssize_t start, Py_ssize_t length, Py_ssize_t json_bytes, bint close
    ) noexcept
    cdef void _end(self, Output* out, Py_ssize_t start, Py_ssize_t at, Py_ssize_t length, bint close) noexcept
