# payload.pxd - request bodies (JSON, msgpack) read in place against the names a plan knows; see payload.h
# and body_text.h.
#
# Owns   : a BodyReader owns its tables of names and keeps the bytes they point at. Immutable.
# Lends  : `Body.columns` point into the request's bytes: valid as long as those are.
# GIL    : read() needs none and never raises; False hands the body on to the general path.
# Threads: safe; what a request needs belongs to the call.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t

from tiercel._hot.decimal cimport Powers


cdef extern from "payload.h" nogil:
    ctypedef enum Kind:
        KIND_FLOAT
        KIND_INT
        KIND_BOOL
        KIND_STRING
        KIND_NUMBER
    enum:
        BODY_JSON
        BODY_MSGPACK
        BODY_TENSORS
        EXPLAIN_NOT
        EXPLAIN_REASONS
        EXPLAIN_FULL
        CELL_NULL
        CELL_TEXT
    ctypedef struct Cell:
        int32_t type
    ctypedef struct Column:
        Cell cell
        const uint8_t* items
    ctypedef struct Name:
        pass
    ctypedef struct NameTable:
        Name* places
        uint32_t mask
    ctypedef struct Body:
        Column* columns
        uint8_t* given
        int64_t n_rows
        int64_t now_us
        int64_t budget_us
        int32_t explain           # EXPLAIN_NOT unless the body asks
        int32_t n_entities, n_features
    ctypedef struct FieldSpec:
        int32_t index             # place in the vector, -1: checked and left out
        int kind                  # Kind
        NameTable categories      # of KIND_STRING
        int32_t n_categories
    ctypedef struct BodySchema:
        NameTable entities, features
        int64_t max_rows
        Powers powers
    void rewind_column(Column* column)
    int32_t put_key_part(uint8_t* key, int32_t length, int32_t room, const Cell* cell, bint is_text, bint prefixed)
    bint to_feature(const Cell* cell, int kind, const NameTable* categories, float* out)


cdef const Cell* next_item(Column* column, const uint8_t* end, int kind, Cell* room) noexcept nogil


# The next row's value: the scalar again, or the next item of a list that read() accepted, maybe in `room`.
cdef inline const Cell* next_cell(Column* column, const uint8_t* end, int kind, Cell* room) noexcept nogil:
    return &column.cell if column.items is NULL else next_item(column, end, kind, room)


cdef class BodyReader:
    cdef BodySchema _schema
    cdef FieldSpec* features               # n_features; field numbers of join keys follow theirs
    cdef readonly Py_ssize_t n_features
    cdef readonly Py_ssize_t n_fields      # features, then join keys
    cdef list _kept
    cdef dict _field_of                    # join key -> field number

    # body.columns and body.given have room for n_fields. False: hand on.
    cdef bint read(self, const uint8_t* data, Py_ssize_t size, int kind, int64_t max_rows, Body* body) noexcept nogil
    cdef int _build(self, NameTable* table, names, int32_t first) except -1
