"""Prediction replies as bytes; see reply.pxd for the contract. Owner: tiercel.http.predict."""

import json
import secrets

import msgpack

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from libc.math cimport isfinite
from libc.string cimport memcpy

from tiercel._hot.decimal cimport Powers, powers, put_double
from tiercel._hot.payload cimport BODY_JSON, BODY_MSGPACK
from tiercel._hot.typedefs cimport uint8_t


cdef Powers POWERS = powers()

cdef enum:
    FEW_BYTES = 4096


cdef class ReplyIds:
    """Ids unique across restarts and workers: 64 random bits per process, then a counter, in hexadecimal.

    Args:
        max_rows: most rows of one request; a body of more is not answered by `ServingPlan.answer`.
    """

    def __cinit__(self, Py_ssize_t max_rows):
        cdef bytes prefix = secrets.token_hex(8).encode()
        memcpy(self._prefix, PyBytes_AS_STRING(prefix), 16)
        self.max_rows = max_rows

    def id_of(self, uint64_t number):
        """The id that a reply of this number carries."""
        return f"{self.prefix}{number:x}"

    @property
    def prefix(self):
        """What every id of this process begins with: 16 hexadecimal digits."""
        return self._prefix[:16].decode("ascii")

    cdef uint64_t next(self) noexcept nogil:
        self._count = self._count + 1       # "+=" does not compile with None checks on
        return self._count


cdef class ReplyForm:
    """What every reply of one model version says.

    Args:
        model, version: what answered.
        features: names in vector order.
        classes: class names of a model of several outputs, else empty.
        n_outputs: scores per row.
        tier: `tiercel.types.Tier` as text.
    """

    def __cinit__(self, str model, int version, features, classes, Py_ssize_t n_outputs, str tier="realtime"):
        features, classes = list(features), list(classes) if n_outputs > 1 else []
        pack = msgpack.packb
        self.n_features, self.n_outputs = len(features), n_outputs
        head = {"model": model, "version": version, "tier": tier}
        self._kept = []
        self._constants = <Text*>PyMem_RawMalloc((4 + 2 * self.n_features) * sizeof(Text))
        if self._constants is NULL:
            raise MemoryError("No memory for the form of a reply")
        self._keep(0, _json(head).removeprefix(b"{").removesuffix(b"}"))
        self._keep(1, b"".join([pack(name) + pack(value) for name, value in head.items()]))
        self._keep(2, b',"classes":' + _json(classes) if n_outputs > 1 else b"")
        self._keep(3, pack("classes") + pack(classes) if n_outputs > 1 else b"")
        self._heads, self._classes = self._constants, self._constants + 2
        self._names[BODY_JSON], self._names[BODY_MSGPACK] = self._constants + 4, self._constants + 4 + self.n_features
        for i, name in enumerate(features):
            self._keep(4 + i, _json(name))
            self._keep(4 + self.n_features + i, pack(name))
        self._constant_size = sum([len(text) for text in self._kept])

    def __dealloc__(self):
        PyMem_RawFree(self._constants)

    cdef int _keep(self, Py_ssize_t index, bytes text) except -1:
        self._kept.append(text)
        self._constants[index].data, self._constants[index].size = PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text)
        return 0

    cdef bytes write(
        self, int kind, ReplyIds ids, bint single, Py_ssize_t n_rows, const score_t* scores, int64_t age_us,
        const int32_t* n_missing,
    ):
        cdef char few[FEW_BYTES]
        cdef char* start = few
        cdef bytes result
        cdef Py_ssize_t most = self.most_bytes(n_rows)
        if most > FEW_BYTES:
            start = <char*>PyMem_RawMalloc(most)
            if start is NULL:
                raise MemoryError(f"No memory for a reply of {n_rows} rows")
        result = PyBytes_FromStringAndSize(
            start, self.write_into(start, kind, ids, ids.next(), single, n_rows, scores, age_us, n_missing)
        )
        if start is not few:
            PyMem_RawFree(start)
        return result

    cdef Py_ssize_t most_bytes(self, Py_ssize_t n_rows) noexcept nogil:
        return (
            256 + self._constant_size + self.n_features * NUMBER_BYTES + n_rows * (self.n_outputs * NUMBER_BYTES + 8)
        )

    cdef Py_ssize_t write_into(
        self, char* out, int kind, ReplyIds ids, uint64_t number, bint single, Py_ssize_t n_rows, const score_t* scores,
        int64_t age_us, const int32_t* n_missing,
    ) noexcept nogil:
        cdef char id[ID_BYTES]
        cdef Py_ssize_t id_size = write_id(id, ids._prefix, number)
        if kind == BODY_JSON:
            return self._write_json(out, id, id_size, single, n_rows, scores, age_us, n_missing) - out
        return self._write_msgpack(out, id, id_size, single, n_rows, scores, age_us, n_missing) - out

    cdef char* _write_json(
        self, char* at, const char* id, Py_ssize_t id_size, bint single, Py_ssize_t n_rows, const score_t* scores,
        int64_t age_us, const int32_t* n_missing,
    ) noexcept nogil:
        cdef Py_ssize_t r, k, i
        cdef bint first = True
        cdef const Text* names = self._names[BODY_JSON]
        at = _put(at, b'{"id":"', 7)
        at = _put(at, id, id_size)
        at = _put(at, b'",', 2)
        at = _put_text(at, self._heads)
        at = _put(at, b',"score":', 9) if single else _put(at, b',"scores":[', 11)
        for r in range(n_rows):
            if r:
                at = _put(at, b",", 1)
            if self.n_outputs > 1:
                at = _put(at, b"[", 1)
            for k in range(self.n_outputs):
                if k:
                    at = _put(at, b",", 1)
                at = put_number(at, scores[r * self.n_outputs + k])
            if self.n_outputs > 1:
                at = _put(at, b"]", 1)
        if not single:
            at = _put(at, b"]", 1)
        at = _put_text(at, self._classes)
        at = _put(at, b',"features":{"oldest_age_ms":', 29)
        at = _put(at, b"null", 4) if age_us < 0 else put_number(at, <double>age_us / 1000)
        at = _put(at, b',"missing":[' if single else b',"missing":{', 12)
        for i in range(self.n_features):
            if n_missing[i] == 0:
                continue
            if not first:
                at = _put(at, b",", 1)
            first = False
            at = _put_text(at, names + i)
            if not single:
                at = _put(at, b":", 1)
                at = put_decimal(at, n_missing[i])
        return _put(at, b"]}}" if single else b"}}}", 3)

    cdef char* _write_msgpack(
        self, char* at, const char* id, Py_ssize_t id_size, bint single, Py_ssize_t n_rows, const score_t* scores,
        int64_t age_us, const int32_t* n_missing,
    ) noexcept nogil:
        cdef Py_ssize_t r, k, i, n_named = 0
        cdef const Text* names = self._names[BODY_MSGPACK]
        at = _put(at, b"\x87\xa2id" if self.n_outputs > 1 else b"\x86\xa2id", 4)
        if id_size < 32:
            at = _put_byte(at, <uint8_t>(0xA0 | id_size))
        else:
            at = _put_byte(_put_byte(at, 0xD9), <uint8_t>id_size)
        at = _put(at, id, id_size)
        at = _put_text(at, self._heads + 1)
        if single:
            at = _put(at, b"\xa5score", 6)
        else:
            at = _put_count(_put(at, b"\xa6scores", 7), 0x90, 0xDC, n_rows)
        for r in range(n_rows):
            if self.n_outputs > 1:
                at = _put_count(at, 0x90, 0xDC, self.n_outputs)
            for k in range(self.n_outputs):
                at = _put_float64(at, scores[r * self.n_outputs + k])
        at = _put_text(at, self._classes + 1)
        at = _put(at, b"\xa8features\x82\xadoldest_age_ms", 24)
        at = _put_byte(at, 0xC0) if age_us < 0 else _put_float64(at, <double>age_us / 1000)
        at = _put(at, b"\xa7missing", 8)
        for i in range(self.n_features):
            n_named += n_missing[i] != 0
        at = _put_count(at, 0x90, 0xDC, n_named) if single else _put_count(at, 0x80, 0xDE, n_named)
        for i in range(self.n_features):
            if n_missing[i] == 0:
                continue
            at = _put_text(at, names + i)
            if not single:
                at = _put_uint(at, n_missing[i])
        return at


cdef bytes _json(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


cdef Py_ssize_t write_id(char* out, const char* prefix, uint64_t number) noexcept nogil:
    """An id, at most 32 bytes; returns its length."""
    cdef int n_digits = 1, i, digit
    memcpy(out, prefix, 16)
    while number >> (4 * n_digits) and n_digits < 16:
        n_digits += 1
    for i in range(n_digits):
        digit = <int>(number >> (4 * (n_digits - 1 - i))) & 15
        out[16 + i] = <char>(digit + (48 if digit < 10 else 87))     # 0-9a-f
    return 16 + n_digits


cdef inline char* _put(char* at, const char* text, Py_ssize_t size) noexcept nogil:
    memcpy(at, text, size)
    return at + size


cdef inline char* _put_text(char* at, const Text* text) noexcept nogil:
    return _put(at, text.data, text.size)


cdef inline char* _put_byte(char* at, uint8_t value) noexcept nogil:
    at[0] = <char>value
    return at + 1


cdef char* put_number(char* at, double value) noexcept nogil:
    """Shortest text that reads back as `value`; null for what JSON has no number for."""
    if not isfinite(value):
        return _put(at, b"null", 4)
    return put_double(POWERS, at, value)


cdef char* put_decimal(char* at, int64_t value) noexcept nogil:
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


cdef char* _put_big_endian(char* at, uint64_t value, int n_bytes) noexcept nogil:
    cdef int i
    for i in range(n_bytes):
        at[i] = <char>(value >> (8 * (n_bytes - 1 - i)))
    return at + n_bytes


cdef char* _put_float64(char* at, double value) noexcept nogil:
    cdef uint64_t bits
    memcpy(&bits, &value, 8)
    return _put_big_endian(_put_byte(at, 0xCB), bits, 8)


cdef char* _put_count(char* at, uint8_t fix, uint8_t wide, Py_ssize_t count) noexcept nogil:
    """The head of an array or map: `fix` is the tag of its short form, `wide` that of its 16-bit form."""
    if count < 16:
        return _put_byte(at, <uint8_t>(fix | count))
    if count < 65536:
        return _put_big_endian(_put_byte(at, wide), count, 2)
    return _put_big_endian(_put_byte(at, <uint8_t>(wide + 1)), count, 4)


cdef char* _put_uint(char* at, uint64_t value) noexcept nogil:
    if value < 128:
        return _put_byte(at, <uint8_t>value)
    if value < 256:
        return _put_big_endian(_put_byte(at, 0xCC), value, 1)
    if value < 65536:
        return _put_big_endian(_put_byte(at, 0xCD), value, 2)
    return _put_big_endian(_put_byte(at, 0xCE), value, 4)
