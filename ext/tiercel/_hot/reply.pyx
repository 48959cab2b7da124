"""Prediction replies as bytes; see reply.pxd for the contract. Owner: tiercel.http.predict."""

import json
import secrets

import msgpack

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_RawFree, PyMem_RawMalloc
from libc.math cimport isfinite
from libc.string cimport memcpy, strlen

from tiercel._hot.payload cimport BODY_JSON
from tiercel._hot.typedefs cimport uint8_t


cdef extern from "Python.h":
    char* PyOS_double_to_string(double val, char format_code, int precision, int flags, int* ptype) except NULL
    int Py_DTSF_ADD_DOT_0

cdef enum:
    FEW_BYTES = 4096
    NUMBER_BYTES = 32       # "-2.2250738585072014e-308," and any int64


cdef class ReplyIds:
    """Ids unique across restarts and workers: 64 random bits per process, then a counter, in hexadecimal.

    Args:
        max_rows: most rows of one request; a body of more is not answered by `ServingPlan.answer`.
    """

    def __cinit__(self, Py_ssize_t max_rows):
        cdef bytes prefix = secrets.token_hex(8).encode()
        memcpy(self._prefix, PyBytes_AS_STRING(prefix), 16)
        self.max_rows = max_rows

    cdef Py_ssize_t write(self, char* out) noexcept:
        """The next id, at most 32 bytes; returns its length."""
        cdef uint64_t count
        cdef int n_digits = 1, i, digit
        self._count += 1
        memcpy(out, self._prefix, 16)
        count = self._count
        while count >> (4 * n_digits) and n_digits < 16:
            n_digits += 1
        for i in range(n_digits):
            digit = <int>(count >> (4 * (n_digits - 1 - i))) & 15
            out[16 + i] = <char>(digit + (48 if digit < 10 else 87))     # 0-9a-f
        return 16 + n_digits


cdef class ReplyForm:
    """What every reply of one model version says.

    Args:
        model, version: what answered.
        features: names in vector order.
        classes: class names of a model of several outputs, else empty.
        n_outputs: scores per row.
    """

    def __cinit__(self, str model, int version, features, classes, Py_ssize_t n_outputs):
        features, classes = list(features), list(classes) if n_outputs > 1 else []
        pack = msgpack.packb
        self.n_features, self.n_outputs = len(features), n_outputs
        head = {"model": model, "version": version, "tier": "realtime"}
        self._heads = (
            _json(head)[1:-1],
            b"".join([pack(name) + pack(value) for name, value in head.items()]),
        )
        self._classes = (
            b',"classes":' + _json(classes) if n_outputs > 1 else b"",
            pack("classes") + pack(classes) if n_outputs > 1 else b"",
        )
        self._names = (tuple([_json(name) for name in features]), tuple([pack(name) for name in features]))
        self._names_size = max([sum([len(name) for name in names]) for names in self._names])

    cdef bytes write(
        self, int kind, ReplyIds ids, bint single, Py_ssize_t n_rows, const score_t* scores, int64_t age_us,
        const int32_t* n_missing,
    ):
        cdef char few[FEW_BYTES]
        cdef char* start = few
        cdef char* at
        cdef bytes result
        cdef Py_ssize_t most = (
            256 + PyBytes_GET_SIZE(self._heads[kind]) + PyBytes_GET_SIZE(self._classes[kind]) + self._names_size
            + self.n_features * NUMBER_BYTES + n_rows * (self.n_outputs * NUMBER_BYTES + 8)
        )
        if most > FEW_BYTES:
            start = <char*>PyMem_RawMalloc(most)
            if start is NULL:
                raise MemoryError(f"No memory for a reply of {n_rows} rows")
        try:
            if kind == BODY_JSON:
                at = self._write_json(start, ids, single, n_rows, scores, age_us, n_missing)
            else:
                at = self._write_msgpack(start, ids, single, n_rows, scores, age_us, n_missing)
            result = PyBytes_FromStringAndSize(start, at - start)
        finally:
            if start is not few:
                PyMem_RawFree(start)
        return result

    cdef char* _write_json(
        self, char* at, ReplyIds ids, bint single, Py_ssize_t n_rows, const score_t* scores, int64_t age_us,
        const int32_t* n_missing,
    ) except NULL:
        cdef Py_ssize_t r, k, i
        cdef bint first = True
        cdef tuple names = <tuple>self._names[0]
        at = _put(at, b'{"id":"', 7)
        at += ids.write(at)
        at = _put(at, b'",', 2)
        at = _put_bytes(at, <bytes>self._heads[0])
        at = _put(at, b',"score":', 9) if single else _put(at, b',"scores":[', 11)
        for r in range(n_rows):
            if r:
                at = _put(at, b",", 1)
            if self.n_outputs > 1:
                at = _put(at, b"[", 1)
            for k in range(self.n_outputs):
                if k:
                    at = _put(at, b",", 1)
                at = _put_double(at, scores[r * self.n_outputs + k])
            if self.n_outputs > 1:
                at = _put(at, b"]", 1)
        if not single:
            at = _put(at, b"]", 1)
        at = _put_bytes(at, <bytes>self._classes[0])
        at = _put(at, b',"features":{"oldest_age_ms":', 29)
        at = _put(at, b"null", 4) if age_us < 0 else _put_double(at, <double>age_us / 1000)
        at = _put(at, b',"missing":[' if single else b',"missing":{', 12)
        for i in range(self.n_features):
            if n_missing[i] == 0:
                continue
            if not first:
                at = _put(at, b",", 1)
            first = False
            at = _put_bytes(at, <bytes>names[i])
            if not single:
                at = _put(at, b":", 1)
                at = _put_decimal(at, n_missing[i])
        return _put(at, b"]}}" if single else b"}}}", 3)

    cdef char* _write_msgpack(
        self, char* at, ReplyIds ids, bint single, Py_ssize_t n_rows, const score_t* scores, int64_t age_us,
        const int32_t* n_missing,
    ) except NULL:
        cdef Py_ssize_t r, k, i, id_size, n_named = 0
        cdef tuple names = <tuple>self._names[1]
        cdef char text[32]
        at = _put(at, b"\x87\xa2id" if self.n_outputs > 1 else b"\x86\xa2id", 4)
        id_size = ids.write(text)
        if id_size < 32:
            at = _put_byte(at, <uint8_t>(0xA0 | id_size))
        else:
            at = _put_byte(_put_byte(at, 0xD9), <uint8_t>id_size)
        at = _put(at, text, id_size)
        at = _put_bytes(at, <bytes>self._heads[1])
        if single:
            at = _put(at, b"\xa5score", 6)
        else:
            at = _put_count(_put(at, b"\xa6scores", 7), 0x90, 0xDC, n_rows)
        for r in range(n_rows):
            if self.n_outputs > 1:
                at = _put_count(at, 0x90, 0xDC, self.n_outputs)
            for k in range(self.n_outputs):
                at = _put_float64(at, scores[r * self.n_outputs + k])
        at = _put_bytes(at, <bytes>self._classes[1])
        at = _put(at, b"\xa8features\x82\xadoldest_age_ms", 24)
        at = _put_byte(at, 0xC0) if age_us < 0 else _put_float64(at, <double>age_us / 1000)
        at = _put(at, b"\xa7missing", 8)
        for i in range(self.n_features):
            n_named += n_missing[i] != 0
        at = _put_count(at, 0x90, 0xDC, n_named) if single else _put_count(at, 0x80, 0xDE, n_named)
        for i in range(self.n_features):
            if n_missing[i] == 0:
                continue
            at = _put_bytes(at, <bytes>names[i])
            if not single:
                at = _put_uint(at, n_missing[i])
        return at


cdef bytes _json(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


cdef inline char* _put(char* at, const char* text, Py_ssize_t size) noexcept:
    memcpy(at, text, size)
    return at + size


cdef inline char* _put_bytes(char* at, bytes text) noexcept:
    return _put(at, PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text))


cdef inline char* _put_byte(char* at, uint8_t value) noexcept:
    at[0] = <char>value
    return at + 1


cdef char* _put_double(char* at, double value) except NULL:
    """Shortest text that reads back as `value`; null for what JSON has no number for."""
    cdef char* text
    cdef size_t size
    if not isfinite(value):
        return _put(at, b"null", 4)
    text = PyOS_double_to_string(value, b"r", 0, Py_DTSF_ADD_DOT_0, NULL)
    size = strlen(text)
    memcpy(at, text, size)
    PyMem_Free(text)
    return at + size


cdef char* _put_decimal(char* at, int64_t value) noexcept:
    cdef char digits[20]
    cdef int n = 0
    while True:
        digits[n] = <char>(48 + value % 10)
        n += 1
        value //= 10
        if value == 0:
            break
    while n:
        n -= 1
        at[0] = digits[n]
        at += 1
    return at


cdef char* _put_big_endian(char* at, uint64_t value, int n_bytes) noexcept:
    cdef int i
    for i in range(n_bytes):
        at[i] = <char>(value >> (8 * (n_bytes - 1 - i)))
    return at + n_bytes


cdef char* _put_float64(char* at, double value) noexcept:
    cdef uint64_t bits
    memcpy(&bits, &value, 8)
    return _put_big_endian(_put_byte(at, 0xCB), bits, 8)


cdef char* _put_count(char* at, uint8_t fix, uint8_t wide, Py_ssize_t count) noexcept:
    """The head of an array or map: `fix` is the tag of its short form, `wide` that of its 16-bit form."""
    if count < 16:
        return _put_byte(at, <uint8_t>(fix | count))
    if count < 65536:
        return _put_big_endian(_put_byte(at, wide), count, 2)
    return _put_big_endian(_put_byte(at, <uint8_t>(wide + 1)), count, 4)


cdef char* _put_uint(char* at, uint64_t value) noexcept:
    if value < 128:
        return _put_byte(at, <uint8_t>value)
    if value < 256:
        return _put_big_endian(_put_byte(at, 0xCC), value, 1)
    if value < 65536:
        return _put_big_endian(_put_byte(at, 0xCD), value, 2)
    return _put_big_endian(_put_byte(at, 0xCE), value, 4)
