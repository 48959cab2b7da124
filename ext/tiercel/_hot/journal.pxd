# journal.pxd - prediction records, appended to memory that is a preallocated, prefaulted file.
#
# A segment is HEADER_BYTES of header (written by Python before the segment is handed over), then records, 8-aligned:
#
#     u32 length of the record in bytes, u32 kind       commit word, stored last; 0: nothing was written here (yet)
#     u64 checksum of all following words, seeded with the commit word
#     PLAN: u32 plan, u32 bytes of JSON, JSON padded with zeros
#     PRED: see PredictionHead; then scores, rows, keys, request, each padded to 8. Of several records of one request the
#           first has the request.
#     END : u64 PRED records in this segment; nothing follows
#
# Format 1 of segments had no request: its PredictionHead ends with key_bytes.
#
# In native byte order; the header's magic tells. A plan's PLAN record stands before its first PRED record in each segment.
# A process killed anywhere leaves whole records and then zeros: what follows the last commit word does not count.
#
# Owns   : Segment structs; a reference to each segment's buffer until the keeper takes it back.
# GIL    : append() needs none, never raises, never blocks, never allocates, makes no system call.
# Threads: append() and seal() on one thread (the event loop); offer(), take_retired(), progress() on one other (the
#          keeper). Between them: one atomic slot for the next segment, one atomic list of retired ones.
from tiercel._hot.prediction cimport Prediction
from tiercel._hot.typedefs cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t


cdef enum:
    HEADER_BYTES = 256
    RECORD_HEAD_BYTES = 16
    MAX_RECORD_BYTES = 1 << 20      # a larger request becomes several records, by rows
    END_BYTES = 24
    KIND_PLAN = 0x4E414C50          # "PLAN"
    KIND_PREDICTION = 0x44455250    # "PRED"
    KIND_END = 0x20444E45           # "END "


cdef struct PredictionHead:
    uint64_t commit, checksum
    uint64_t number
    int64_t received_us, now_us, oldest_age_us, total_ns
    int64_t stage_ns[5]
    uint32_t plan, flags
    int32_t first_row               # of the request, in this record
    int32_t n_rows                  # in this record
    int32_t request_rows
    uint32_t key_bytes
    uint32_t request_kind, request_bytes
    int64_t request_header


cdef struct Segment:
    uint8_t* base
    size_t size
    size_t used
    uint64_t sequence
    uint64_t n_records
    Segment* next


cdef enum AppendStatus:
    APPENDED = 0
    APPEND_NO_SEGMENT = 1           # none is ready: the disk is full or slow
    APPEND_TOO_LARGE = 2            # one row does not fit a record


# What a plan writes into each segment that has a record of it. Belongs to one Journal.
cdef struct PlanMark:
    uint32_t plan
    int32_t n_features, n_outputs, n_keys
    const uint8_t* declaration      # borrowed; JSON
    size_t declaration_bytes
    uint64_t declared_in            # sequence of the segment that has it; starts as 0, sequences start at 1
    bint keeps_requests


cdef class Journal:
    cdef Segment* _current          # event loop only
    cdef void* _observed            # the same, for the keeper
    cdef void* _ready
    cdef void* _retired
    cdef dict _buffers              # sequence -> memoryview; keeper only
    cdef uint64_t _bytes            # written by the last append()

    cdef AppendStatus append(self, PlanMark* mark, const Prediction* prediction) noexcept nogil
    cdef bint _reserve(self, PlanMark* mark, size_t size) noexcept nogil
    cdef void _retire(self) noexcept nogil
    cdef void _declare(self, PlanMark* mark) noexcept nogil
