# liblmdb.pxd - the few functions of lmdb.h (0.9 series) that the reader calls.
#
# The library is the one inside the installed `lmdb` wheel: its extension module exports liblmdb's own functions
# (`mdb09_get`, ... since 3.0, `mdb_get`, ... before), so one process never holds two copies of LMDB.
#
# Owns   : the dlopen handle, kept for the life of the process (code pointers must stay valid).
# GIL    : needed for ensure_loaded; the functions themselves need none.
# Threads: `api` is written once, under the GIL, before the first environment exists; read-only afterwards.
from libc.stdint cimport uint32_t


cdef enum:
    MDB_SUCCESS = 0
    MDB_NOTFOUND = -30798
    MDB_CORRUPTED = -30796
    MDB_NOSUBDIR = 0x4000
    MDB_RDONLY = 0x20000
    MDB_NOLOCK = 0x400000
    MDB_NORDAHEAD = 0x800000
    MDB_FIRST = 0                 # MDB_cursor_op
    MDB_NEXT = 8


cdef struct MDB_val:
    size_t mv_size
    void* mv_data


cdef struct MDB_stat:
    unsigned int ms_psize
    unsigned int ms_depth
    size_t ms_branch_pages
    size_t ms_leaf_pages
    size_t ms_overflow_pages
    size_t ms_entries


# Opaque handles, as in lmdb.h (MDB_env*, MDB_txn*, MDB_cursor*).
ctypedef void MDB_env
ctypedef void MDB_txn
ctypedef void MDB_cursor
ctypedef unsigned int MDB_dbi


cdef struct LmdbApi:
    char* (*version)(int* major, int* minor, int* patch) noexcept nogil
    char* (*strerror)(int err) noexcept nogil
    int (*env_create)(MDB_env** env) noexcept nogil
    int (*env_set_mapsize)(MDB_env* env, size_t size) noexcept nogil
    int (*env_open)(MDB_env* env, const char* path, unsigned int flags, unsigned int mode) noexcept nogil
    void (*env_close)(MDB_env* env) noexcept nogil
    int (*env_get_fd)(MDB_env* env, int* fd) noexcept nogil
    int (*txn_begin)(MDB_env* env, MDB_txn* parent, unsigned int flags, MDB_txn** txn) noexcept nogil
    void (*txn_abort)(MDB_txn* txn) noexcept nogil
    int (*dbi_open)(MDB_txn* txn, const char* name, unsigned int flags, MDB_dbi* dbi) noexcept nogil
    int (*stat)(MDB_txn* txn, MDB_dbi dbi, MDB_stat* stat) noexcept nogil
    int (*get)(MDB_txn* txn, MDB_dbi dbi, MDB_val* key, MDB_val* data) noexcept nogil
    int (*cursor_open)(MDB_txn* txn, MDB_dbi dbi, MDB_cursor** cursor) noexcept nogil
    void (*cursor_close)(MDB_cursor* cursor) noexcept nogil
    int (*cursor_get)(MDB_cursor* cursor, MDB_val* key, MDB_val* data, int op) noexcept nogil


# Valid after ensure_loaded() returned.
cdef LmdbApi api

# Resolve `api` once. Raises UnsupportedLmdbError.
cdef int ensure_loaded() except -1
