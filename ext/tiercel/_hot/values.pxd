# values.pxd - Python values of a request to key bytes and float32, with the errors that say what is wrong with them.
#
# The slow twin of payload.h: what both accept they read alike (a test compares them), and only this one explains.
#
# Owns   : nothing but names. GIL: needed. Threads: safe.
from tiercel._hot.payload cimport Kind
from tiercel._hot.typedefs cimport feature_t, int32_t, uint8_t

cdef enum:
    MAX_KEY_BYTES = 512


# One place in the feature vector.
cdef class Slot:
    cdef str name
    cdef Py_ssize_t index
    cdef Kind kind
    cdef bint stored
    cdef dict codes        # category -> float code; None for numbers


# A value as an error message shows it: short, whatever was sent.
cdef str show(object value)

# Append one part of an entity key at key[length:], as tiercel.features.keys encodes it; returns the new length.
# `key` has room for MAX_KEY_BYTES. Raises RequestError.
cdef int32_t put_int(uint8_t* key, int32_t length, object value, str name, Py_ssize_t row, bint many) except -2
cdef int32_t put_string(
    uint8_t* key, int32_t length, object value, bint prefixed, str name, Py_ssize_t row, bint many
) except -2

# A request value as float32; None is NaN. Raises RequestError.
cdef feature_t convert(Slot slot, object value, Py_ssize_t row, bint many) except? -1
