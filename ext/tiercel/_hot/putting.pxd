# putting.pxd - parts of JSON and msgpack written at a place that has room; each returns past what it wrote. Declarations
# only.
#
# GIL    : not needed. Raises: never.
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy

from tiercel._hot.reply cimport Text


cdef inline char* put_bytes(char* at, const char* data, Py_ssize_t size) noexcept nogil:
    memcpy(at, data, <size_t>size)
    return at + size


cdef inline char* put_text(char* at, const Text* text) noexcept nogil:
    return put_bytes(at, text.data, text.size)


cdef inline char* put_byte(char* at, uint8_t value) noexcept nogil:
    at[0] = <char>value
    return at + 1


cdef inline char* put_big_endian(char* at, uint64_t value, int n_bytes) noexcept nogil:
    cdef int i
    for i in range(n_bytes):
        at[i] = <char>(value >> (8 * (n_bytes - 1 - i)))
    return at + n_bytes


cdef inline char* put_float64(char* at, double value) noexcept nogil:
    cdef uint64_t bits
    memcpy(&bits, &value, 8)
    return put_big_endian(put_byte(at, 0xCB), bits, 8)


# The head of a msgpack array or map: `fix` is the tag of its short form, `wide` that of its 16-bit form.
cdef inline char* put_count(char* at, uint8_t fix, uint8_t wide, Py_ssize_t count) noexcept nogil:
    if count < 16:
        return put_byte(at, <uint8_t>(fix | count))
    if count < 65536:
        return put_big_endian(put_byte(at, wide), <uint64_t>count, 2)
    return put_big_endian(put_byte(at, <uint8_t>(wide + 1)), <uint64_t>count, 4)
