# walk.pxd - every row of a sealed base, in key order: to verify it, or to have its pages in memory before the first read.
#
# Owns   : a transaction and a cursor of its own; keeps its BaseFile.
# Lends  : nothing.
# GIL    : fill() needs it; touch() releases it.
# Threads: not safe; one walk belongs to one caller.
from tiercel._hot.liblmdb cimport MDB_cursor, MDB_txn
from tiercel._hot.reader cimport MAX_STORED_KEY, BaseFile
from tiercel._hot.typedefs cimport uint8_t, uint32_t


cdef class BaseWalk:
    cdef BaseFile _base
    cdef MDB_txn* _txn
    cdef MDB_cursor* _cursor
    cdef bint _done
    cdef Py_ssize_t _n_groups
    cdef uint32_t* _fingerprints
    cdef size_t* _row_bytes
    cdef list _key_kinds
    cdef uint8_t _previous[MAX_STORED_KEY]
    cdef size_t _previous_len
    cdef readonly list group_rows
    cdef readonly Py_ssize_t n_rows
    cdef object _fail(self, str what)
    cdef bint _is_key(self, uint8_t group, size_t size) except -1
