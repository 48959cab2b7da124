"""Prediction records in preallocated memory; see journal.pxd for the contract. Owner: tiercel.monitor.segments."""

import struct

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from tiercel._hot.prediction cimport (
    KEY_ABSENT, MAX_REQUEST_BYTES_MANY, MAX_REQUEST_BYTES_ONE, REQUEST_TOO_LARGE, REQUEST_WITHHELD, Prediction,
)
from tiercel._hot.typedefs cimport feature_t, int32_t, int64_t, score_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "record.h" nogil:
    uint64_t tiercel_checksum(const uint64_t* words, size_t n, uint64_t seed)
    void tiercel_publish_u64(uint64_t* at, uint64_t value)
    uint64_t tiercel_observe_u64(const uint64_t* at)
    void* tiercel_take_pointer(void** at)
    void* tiercel_observe_pointer(void** at)
    void tiercel_publish_pointer(void** at, void* value)
    void tiercel_touch(uint8_t* base, size_t size)
    void tiercel_start_writing(int descriptor, int64_t start, int64_t size)


SEGMENT_HEADER_BYTES = HEADER_BYTES
RECORD_BYTES = MAX_RECORD_BYTES
#: struct format of a PRED record's body up to its arrays; offset 16 in the record.
PREDICTION_HEAD = struct.Struct("=Q4q5qIIiiiIIIq")
#: The same of segments of format 1.
PREDICTION_HEAD_1 = struct.Struct("=Q4q5qIIiiiI")
#: What a record keeps of a request at most: of one row, of many.
REQUEST_BYTES_ONE, REQUEST_BYTES_MANY = MAX_REQUEST_BYTES_ONE, MAX_REQUEST_BYTES_MANY
PLAN, PREDICTION, END = KIND_PLAN, KIND_PREDICTION, KIND_END


cdef inline size_t _padded(size_t size) noexcept nogil:
    return (size + 7) & ~<size_t>7


cdef class Journal:
    """The writer of one worker's journal. Starts without a segment: what is appended before `offer` is dropped."""

    def __cinit__(self):
        self._buffers = {}

    def __dealloc__(self):
        cdef Segment* segment = <Segment*>tiercel_take_pointer(&self._retired)
        while segment != NULL:
            following = segment.next
            free(segment)
            segment = following
        free(tiercel_take_pointer(&self._ready))
        free(self._current)

    @property
    def wants_segment(self):
        """Whether none is ready. Keeper only."""
        return tiercel_observe_pointer(&self._ready) == NULL

    def offer(self, buffer, uint64_t sequence):
        """Make `buffer` the next segment: writable, 8-aligned, header written, zeros behind it. Keeper only.

        Args:
            sequence: greater than that of every segment before.

        Raises:
            ValueError: not such a buffer, or one is ready already.
        """
        view = memoryview(buffer).cast("B")
        cdef Py_buffer held
        PyObject_GetBuffer(view, &held, PyBUF_SIMPLE | PyBUF_WRITABLE)
        cdef uint8_t* base = <uint8_t*>held.buf
        cdef size_t size = held.len & ~7
        PyBuffer_Release(&held)         # `view` keeps the export alive
        if size < HEADER_BYTES + END_BYTES or <size_t>base % 8:
            raise ValueError(f"Expected a segment of at least {HEADER_BYTES + END_BYTES} aligned bytes, got {size}")
        if sequence == 0 or sequence in self._buffers or not self.wants_segment:
            raise ValueError("Expected to offer one segment at a time, numbered from 1")
        cdef Segment* segment = <Segment*>malloc(sizeof(Segment))
        if segment == NULL:
            raise MemoryError
        segment.base, segment.size, segment.used, segment.sequence = base, size, HEADER_BYTES, sequence
        segment.n_records, segment.next = 0, NULL
        self._buffers[sequence] = view
        tiercel_publish_pointer(&self._ready, segment)

    def take_retired(self):
        """Segments that are full or sealed and will not be written again: [(sequence, bytes used, records)]. Keeper only."""
        cdef Segment* segment = <Segment*>tiercel_take_pointer(&self._retired)
        cdef Segment* following
        taken = []
        while segment != NULL:
            following = segment.next
            taken.append((segment.sequence, segment.used, segment.n_records))
            self._buffers.pop(segment.sequence).release()
            free(segment)
            segment = following
        return taken[::-1]

    def withdraw(self):
        """Take back the segment that is ready and unused: its sequence, or None. Keeper only; the event loop may append meanwhile."""
        cdef Segment* segment = <Segment*>tiercel_take_pointer(&self._ready)
        if segment == NULL:
            return None
        sequence = segment.sequence
        self._buffers.pop(sequence).release()
        free(segment)
        return sequence

    def progress(self):
        """(sequence, bytes used) of the segment that is being written, or None. Keeper only."""
        # `used` is read while the event loop writes it: any of its values does, since all lie inside the segment. The
        # segment lives: only take_retired, on this thread, frees it.
        cdef Segment* segment = <Segment*>tiercel_observe_pointer(&self._observed)
        if segment == NULL:
            return None
        return segment.sequence, tiercel_observe_u64(<uint64_t*>&segment.used)

    def seal(self):
        """End the current segment. Event loop only, or after it."""
        if self._current != NULL:
            self._retire()

    cdef AppendStatus append(self, PlanMark* mark, const Prediction* prediction) noexcept nogil:
        cdef size_t row_bytes = mark.n_outputs * sizeof(score_t) + mark.n_features * sizeof(feature_t)
        cdef const uint8_t* keys = prediction.keys
        cdef const uint8_t* keys_end = prediction.keys + prediction.key_bytes
        cdef const uint8_t* keys_from
        cdef const uint8_t* row_end
        cdef size_t size, written = 0
        cdef int32_t row = 0, first
        cdef bint whole = prediction.n_rows == 1
        cdef size_t request_bytes = _kept_bytes(mark, prediction)
        self._bytes = 0
        if whole and sizeof(PredictionHead) + 32 + row_bytes + prediction.key_bytes + request_bytes > MAX_RECORD_BYTES:
            request_bytes = 0       # the record matters more
        while True:
            # The rows from `first` that fit one record.
            first, keys_from = row, keys
            size = sizeof(PredictionHead) + 32 + request_bytes      # the padding of four arrays
            if whole:
                row, keys = 1, keys_end
                size += row_bytes + prediction.key_bytes
            else:
                while row < prediction.n_rows:
                    row_end = _after_keys(keys, keys_end, mark.n_keys)
                    if size + row_bytes + (row_end - keys) > MAX_RECORD_BYTES:
                        break
                    size += row_bytes + (row_end - keys)
                    row, keys = row + 1, row_end
                if row == prediction.n_rows:
                    keys = keys_end
            if (row == first and prediction.n_rows > 0) or size > MAX_RECORD_BYTES:
                return APPEND_TOO_LARGE
            if not self._reserve(mark, size):
                return APPEND_NO_SEGMENT
            _write(self._current, mark, prediction, first, row - first, keys_from, keys - keys_from, request_bytes)
            request_bytes = 0       # the first record has it
            written += size
            self._bytes = written
            if row >= prediction.n_rows:
                return APPENDED

    cdef bint _reserve(self, PlanMark* mark, size_t size) noexcept nogil:
        """Room for a record of at most `size` bytes, behind the plan's declaration and before the end mark."""
        cdef size_t declaration = RECORD_HEAD_BYTES + 8 + _padded(mark.declaration_bytes)
        cdef Segment* segment = self._current
        cdef size_t needed
        if segment != NULL:
            needed = size + END_BYTES + (0 if mark.declared_in == segment.sequence else declaration)
            if needed > segment.size - segment.used:
                if size + declaration + END_BYTES + HEADER_BYTES > segment.size:
                    return False        # not in any segment
                self._retire()
        if self._current == NULL:
            segment = <Segment*>tiercel_take_pointer(&self._ready)
            if segment == NULL:
                return False
            self._current = segment
            tiercel_publish_pointer(&self._observed, segment)
            if size + declaration + END_BYTES > segment.size - segment.used:
                return False
        if mark.declared_in != self._current.sequence:
            self._declare(mark)
        return True

    cdef void _retire(self) noexcept nogil:
        cdef Segment* segment = self._current
        cdef uint64_t* record = <uint64_t*>(segment.base + segment.used)
        cdef uint64_t commit = END_BYTES | (<uint64_t>KIND_END << 32)
        record[2] = segment.n_records
        record[1] = tiercel_checksum(record + 2, 1, commit)
        tiercel_publish_u64(record, commit)
        segment.used += END_BYTES
        self._current = NULL
        tiercel_publish_pointer(&self._observed, NULL)
        # One pusher; the keeper only ever takes the whole list, so a lost race means it is empty now.
        segment.next = <Segment*>tiercel_take_pointer(&self._retired)
        tiercel_publish_pointer(&self._retired, segment)

    cdef void _declare(self, PlanMark* mark) noexcept nogil:
        cdef Segment* segment = self._current
        cdef uint8_t* at = segment.base + segment.used
        cdef size_t size = RECORD_HEAD_BYTES + 8 + _padded(mark.declaration_bytes)
        cdef uint64_t commit = size | (<uint64_t>KIND_PLAN << 32)
        cdef uint32_t lengths[2]
        lengths[0], lengths[1] = mark.plan, <uint32_t>mark.declaration_bytes
        memset(at + size - 8, 0, 8)
        memcpy(at + RECORD_HEAD_BYTES, lengths, 8)
        memcpy(at + RECORD_HEAD_BYTES + 8, mark.declaration, mark.declaration_bytes)
        (<uint64_t*>at)[1] = tiercel_checksum(<uint64_t*>(at + 16), (size - 16) // 8, commit)
        tiercel_publish_u64(<uint64_t*>at, commit)
        segment.used += size
        mark.declared_in = segment.sequence


cdef inline const uint8_t* _after_keys(const uint8_t* at, const uint8_t* end, int32_t n_keys) noexcept nogil:
    """Where the next row's keys start; never past `end`."""
    cdef uint16_t length
    cdef int32_t i
    for i in range(n_keys):
        if end - at < 2:
            return end
        memcpy(&length, at, 2)
        at += 2
        if length != KEY_ABSENT:
            if end - at < length:
                return end
            at += length
    return at


cdef inline size_t _kept_bytes(const PlanMark* mark, const Prediction* prediction) noexcept nogil:
    """How much of the request a record keeps: all of it, or nothing."""
    cdef size_t most = MAX_REQUEST_BYTES_ONE if prediction.n_rows == 1 else MAX_REQUEST_BYTES_MANY
    if not mark.keeps_requests or prediction.request is NULL or prediction.request_bytes > most:
        return 0
    return prediction.request_bytes


cdef inline void _write(
    Segment* segment, const PlanMark* mark, const Prediction* prediction, int32_t first, int32_t n_rows,
    const uint8_t* keys, size_t key_bytes, size_t request_bytes,
) noexcept nogil:
    cdef uint8_t* start = segment.base + segment.used
    cdef PredictionHead* head = <PredictionHead*>start
    cdef uint8_t* at = start + sizeof(PredictionHead)
    cdef size_t score_bytes = <size_t>n_rows * mark.n_outputs * sizeof(score_t)
    cdef size_t feature_bytes = <size_t>n_rows * mark.n_features * sizeof(feature_t)
    cdef uint64_t commit
    cdef size_t size
    head.number = prediction.number
    head.received_us, head.now_us = prediction.received_us, prediction.now_us
    head.oldest_age_us, head.total_ns = prediction.oldest_age_us, prediction.total_ns
    memcpy(head.stage_ns, prediction.stage_ns, sizeof(head.stage_ns))
    head.plan, head.flags = mark.plan, prediction.flags
    head.first_row, head.n_rows, head.request_rows = first, n_rows, prediction.n_rows
    head.key_bytes = <uint32_t>key_bytes
    head.request_kind, head.request_bytes = prediction.request_kind, <uint32_t>request_bytes
    head.request_header = prediction.request_header
    if first == 0 and request_bytes == 0 and prediction.request_kind != 0:
        head.request_kind |= <uint32_t>REQUEST_TOO_LARGE if mark.keeps_requests else <uint32_t>REQUEST_WITHHELD
    memcpy(at, prediction.scores + <size_t>first * mark.n_outputs, score_bytes)
    at += score_bytes
    # The segment was zeros, so padding needs no store.
    memcpy(at, prediction.rows + <size_t>first * mark.n_features, feature_bytes)
    at += _padded(feature_bytes)
    if key_bytes:
        memcpy(at, keys, key_bytes)
    at += _padded(key_bytes)
    if request_bytes:
        memcpy(at, prediction.request, request_bytes)
        at += _padded(request_bytes)
    size = at - start
    commit = size | (<uint64_t>KIND_PREDICTION << 32)
    head.checksum = tiercel_checksum(<uint64_t*>(start + 16), (size - 16) // 8, commit)
    tiercel_publish_u64(&head.commit, commit)
    segment.used += size
    segment.n_records += 1


def fault_in(buffer, size_t start, size_t size):
    """Make the pages of buffer[start : start + size] present and writable, changing nothing, without the GIL.

    Raises:
        ValueError: they are not all inside the buffer.
    """
    cdef Py_buffer held
    PyObject_GetBuffer(buffer, &held, PyBUF_SIMPLE | PyBUF_WRITABLE)
    try:
        if start % 8 or start > <size_t>held.len or size > <size_t>held.len - start:
            raise ValueError(f"Expected aligned bytes inside {held.len}, got {size} from {start}")
        with nogil:
            tiercel_touch(<uint8_t*>held.buf + start, size)
    finally:
        PyBuffer_Release(&held)


def start_writing(int descriptor, int64_t start, int64_t size):
    """Have the kernel begin to write those bytes of a file to the disk, without waiting for it. Linux; elsewhere nothing."""
    with nogil:
        tiercel_start_writing(descriptor, start, size)


def next_record(const uint8_t[::1] data not None, size_t at):
    """The record at `at` in a segment's bytes, which may be damaged, cut short, or be written meanwhile.

    Returns:
        (kind, size), or (0, 0) when nothing was committed there, or (-1, 0) when something is there that is not a whole
        record with the right checksum.
    """
    cdef size_t length = data.shape[0], size
    cdef const uint8_t* start
    cdef uint64_t head[2]
    cdef uint64_t commit
    cdef uint32_t kind
    if at % 8 or at > length:
        raise ValueError(f"Expected an aligned place inside {length} bytes, got {at}")
    if length - at < RECORD_HEAD_BYTES:
        return (0, 0) if _is_zero(&data[0] + at, length - at) else (-1, 0)
    start = &data[0] + at
    if <size_t>start % 8:
        raise ValueError("Expected 8-aligned bytes")
    commit = tiercel_observe_u64(<const uint64_t*>start)
    if commit == 0:
        return 0, 0
    memcpy(head, start, 16)
    size, kind = commit & 0xFFFFFFFFu, <uint32_t>(commit >> 32)
    if size % 8 or size < END_BYTES or size > length - at:
        return -1, 0
    if kind != KIND_PLAN and kind != KIND_PREDICTION and kind != KIND_END:
        return -1, 0
    if tiercel_checksum(<const uint64_t*>(start + 16), (size - 16) // 8, commit) != head[1]:
        return -1, 0
    return kind, size


cdef bint _is_zero(const uint8_t* data, size_t size) noexcept nogil:
    cdef size_t i
    for i in range(size):
        if data[i]:
            return False
    return True
