# output.pxd - a growing buffer of bytes, for code without the GIL. Declarations only.
#
# Owns   : `data`, from malloc; whoever holds the Output frees it with free().
from libc.stdint cimport uint8_t
from libc.stdlib cimport realloc
from libc.string cimport memcpy


cdef struct Output:
    uint8_t* data
    Py_ssize_t size, capacity


# Make room for `more` bytes after `size`; False without memory, with everything as it was.
cdef inline bint reserve(Output* out, Py_ssize_t more) noexcept nogil:
    cdef Py_ssize_t capacity
    cdef uint8_t* grown
    if out.capacity - out.size >= more:
        return True
    capacity = 2 * (out.size + more)
    grown = <uint8_t*>realloc(out.data, <size_t>capacity)
    if grown is NULL:
        return False
    out.data, out.capacity = grown, capacity
    return True


cdef inline bint put(Output* out, const void* data, Py_ssize_t size) noexcept nogil:
    if not reserve(out, size):
        return False
    memcpy(out.data + out.size, data, <size_t>size)
    out.size += size
    return True
