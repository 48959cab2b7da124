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


# One entity's part of the vector.
cdef class Group:
    cdef str entity
    cdef tuple key_names
    cdef Py_ssize_t n_columns, n_parts
    cdef int32_t* slots        # n_columns: vector index by reader column
    cdef int32_t* view_of      # n_columns: view index by reader column
    cdef int32_t* key_fields   # n_parts: BodyReader's field number of each join key
    cdef uint8_t* key_is_text  # n_parts
    cdef Py_ssize_t first  # first column of the group in Scratch.statuses


# What a feature or request field of a DType may be.
cdef Kind kind_of(object dtype)

# Number of rows when any value is a list, else -1. Raises RequestError on lists of different lengths.
cdef Py_ssize_t count_rows(dict entities, dict features) except -2

# Raise what a ReadStatus other than READ_OK means for the keys of one row.
cdef int refuse_read(uint8_t status, str entity, tuple key_names, dict entities, Py_ssize_t row, str service) except -1

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

# Refuse a list that another thread shortened while rows were read: it must not be read past its end.
cdef int require_rows(object column, Py_ssize_t n_rows, str part, str name) except -1
