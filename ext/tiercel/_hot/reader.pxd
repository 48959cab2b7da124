# reader.pxd - sealed base -> feature vector in the caller's buffer.
#
# A base is one LMDB file that nobody writes any more (features/base.py). A GroupReader decodes the rows of one entity
# group by a program fixed at construction: which columns, where in the row, where in the output.
#
# Owns   : BaseFile owns the environment and one read transaction; GroupReader owns its program and keeps its BaseFile.
# Lends  : nothing. Values are copied out; no pointer into the map outlives a call.
# GIL    : read_into and read_many_into need none. They never raise; the caller maps ReadStatus to errors.
# Threads: one sealed file is immutable and mdb_get on the main database keeps no state in a read-only transaction
#          (see the SAFETY note in reader.pyx), so concurrent calls are allowed.
from tiercel._hot.typedefs cimport feature_t, int32_t, int64_t, uint8_t, uint32_t


cdef enum ReadStatus:
    READ_OK = 0
    READ_MISSING = 1              # no row under this key: outputs are NaN, statuses NOT_FOUND
    READ_WRONG_WIDTH = 2          # stored length != the schema's row width
    READ_WRONG_SCHEMA = 3         # fingerprint in the row != the group's
    READ_STORE_ERROR = 4          # liblmdb reported an error

# Per value; equal to tiercel.types.ValueStatus.
cdef enum ValueStatus:
    VALUE_PRESENT = 0
    VALUE_NULL = 1
    VALUE_NOT_FOUND = 2
    VALUE_OUTSIDE_TTL = 3


cdef class BaseFile:
    pass                          # fields: the store owner decides; keep them private to reader.pyx


cdef class GroupReader:
    cdef readonly Py_ssize_t n_columns      # values written per row, in program order
    cdef readonly Py_ssize_t n_views

    # key      : the entity's encoded key WITHOUT the group prefix (the reader adds it); see features/keys.py.
    # now_us   : the time of the read; a view older than its ttl at now_us gives NaN + VALUE_OUTSIDE_TTL.
    # out      : written at out[slot[i]] for column i; every slot is written on READ_OK and READ_MISSING.
    # status   : n_columns values (or NULL), by column, not by slot.
    # event_us : n_views event times (or NULL); NO_EVENT_US where the view has no row.
    cdef ReadStatus read_into(
        self, const uint8_t* key, size_t key_len, int64_t now_us,
        feature_t* out, uint8_t* status, int64_t* event_us,
    ) noexcept nogil
