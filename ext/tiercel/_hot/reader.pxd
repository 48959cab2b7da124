# reader.pxd - sealed base -> feature vector in the caller's buffer.
#
# A base is one LMDB file that nobody writes any more (features/base.py). A GroupReader decodes the rows of one entity
# group by a program fixed at construction: which columns, where in the row, where in the output.
#
# Owns   : BaseFile owns the environment and one read transaction; GroupReader owns its program and keeps its BaseFile.
# Lends  : nothing. Values are copied out; no pointer into the map outlives a call.
# GIL    : read_row, read_into and read_many_into need none. They never raise; the caller maps ReadStatus to errors.
# Threads: one sealed file is immutable, pages.h only looks at it, and mdb_get on the main database keeps no state in a
#          read-only transaction (see the SAFETY note in reader.pyx), so concurrent calls are allowed.
from tiercel._hot.liblmdb cimport MDB_dbi, MDB_env, MDB_stat, MDB_txn
from tiercel._hot.pages cimport tc_pages
from tiercel._hot.typedefs cimport feature_t, int32_t, int64_t, uint8_t, uint32_t


cdef enum ReadStatus:
    READ_OK = 0
    READ_MISSING = 1              # no row under this key: outputs are NaN, statuses NOT_FOUND
    READ_WRONG_WIDTH = 2          # stored length != the schema's row width
    READ_WRONG_SCHEMA = 3         # fingerprint in the row != the group's
    READ_STORE_ERROR = 4          # liblmdb reported an error, or a page is not one

# Per value; equal to tiercel.types.ValueStatus.
cdef enum ValueStatus:
    VALUE_PRESENT = 0
    VALUE_NULL = 1
    VALUE_NOT_FOUND = 2
    VALUE_OUTSIDE_TTL = 3


# How one column is decoded: type, place in the row, validity bit, view, place in the output.
cdef struct ColumnStep:
    int32_t kind                  # ColumnKind
    int32_t offset                # bytes from the start of the row
    int32_t bit                   # index into the validity bitmap
    int32_t view
    int32_t slot

cdef enum ColumnKind:
    KIND_FLOAT32 = 0
    KIND_FLOAT64 = 1
    KIND_INT64 = 2
    KIND_BOOL = 3
    KIND_CODE = 4                 # string, as its int32 dictionary code

cdef enum:
    MAX_STORED_KEY = 511          # group byte + entity key; liblmdb's MDB_MAXKEYSIZE
    MAX_VIEWS = 256               # = features.layout.MAX_VIEWS; sizes a stack buffer


cdef class BaseFile:
    cdef MDB_env* _env
    cdef MDB_txn* _txn            # one, for the life of the file: the file never changes, so it pins nothing
    cdef MDB_dbi _dbi
    cdef tc_pages _pages          # of LMDB's map, where rows are found without it (pages.h); map NULL: mdb_get finds them
    cdef readonly str path
    cdef object __weakref__
    cdef MDB_stat _stat(self) except *
    cdef int _look_into_map(self) except -1


# One column again, as the float64 that a transform sees.
cdef struct WideStep:
    int32_t column                # index into RowProgram.steps; not of text
    int32_t place                 # in `wide`


# How the rows of one group are read; all a read needs, so that code without the GIL can hold one.
cdef struct RowProgram:
    tc_pages pages                # borrowed from the BaseFile, as are these
    MDB_txn* txn
    MDB_dbi dbi
    int (*get)(MDB_txn*, MDB_dbi, void*, void*) noexcept nogil
    uint8_t group
    uint32_t fingerprint
    size_t row_bytes
    size_t bitmap_offset
    Py_ssize_t n_columns          # values written per row
    Py_ssize_t n_views
    Py_ssize_t n_wide
    ColumnStep* steps             # n_columns
    WideStep* wide                # n_wide
    int64_t* ttl_us               # n_views; INT64_MAX: never expires


cdef class GroupReader:
    cdef BaseFile _base           # keeps the map alive
    cdef RowProgram program       # lent; valid as long as the reader is
    cdef readonly Py_ssize_t n_columns, n_views, n_wide
    cdef readonly Py_ssize_t n_slots        # `out` must have room for this many values: highest slot + 1

    # read_row without wide values.
    cdef ReadStatus read_into(
        self, const uint8_t* key, size_t key_len, int64_t now_us,
        feature_t* out, uint8_t* status, int64_t* event_us,
    ) noexcept nogil

    # n_rows keys; row i is written at out + i * out_stride, status + i * n_columns, event_us + i * n_views.
    # results: n_rows ReadStatus values. Returns the number of rows that are neither READ_OK nor READ_MISSING.
    cdef Py_ssize_t read_many_into(
        self, const uint8_t* const* keys, const size_t* key_lens, Py_ssize_t n_rows, int64_t now_us,
        feature_t* out, Py_ssize_t out_stride, uint8_t* status, int64_t* event_us, uint8_t* results,
    ) noexcept nogil


# key      : the entity's encoded key WITHOUT the group prefix (the reader adds it); see features/keys.py.
#            NULL means "no such entity" (a null key value): READ_MISSING.
# now_us   : the time of the read; a view older than its ttl at now_us gives NaN + VALUE_OUTSIDE_TTL.
#            An event later than now_us is not stale: its value is given (age is negative).
# out      : written at out[slot[i]] for column i; every slot is written, NaN unless VALUE_PRESENT.
# status   : n_columns values (or NULL), by column, not by slot.
# event_us : n_views event times (or NULL); NO_EVENT_US where the view has no row.
# wide     : n_wide values at their places (or NULL): the same values as float64, Int64 rounded once.
# On any status but READ_OK the outputs are those of READ_MISSING.
cdef ReadStatus read_row(
    const RowProgram* program, const uint8_t* key, size_t key_len, int64_t now_us,
    feature_t* out, uint8_t* status, int64_t* event_us, double* wide,
) noexcept nogil

# What liblmdb says about a return code.
cdef str lmdb_error(int code)
