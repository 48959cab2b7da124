"""Reading protobuf's wire format, bounded: a length never reaches past its message, nothing is recursive.

Compiled because ONNX writes the arrays of tree ensembles as one field per element: a million fields for 500 trees.
"""

import numpy as np

from tiercel._hot.typedefs cimport int64_t, uint8_t, uint32_t, uint64_t


cdef int64_t _varint(const uint8_t* data, int64_t at, int64_t end, uint64_t* value) noexcept nogil:
    """The position after a varint, or -1 when it is cut short or longer than ten bytes."""
    cdef uint64_t result = 0
    cdef int shift = 0
    while at < end and shift < 70:
        if shift < 64:
            result |= <uint64_t>(data[at] & 0x7F) << shift
        if data[at] < 0x80:
            value[0] = result
            return at + 1
        at += 1
        shift += 7
    return -1


def scan(const uint8_t[::1] data not None, int64_t start, int64_t end, int64_t max_fields):
    """The fields of the message in data[start:end]: (numbers, wire types, values, lengths).

    A value is the number itself (wire types 0, 1, 5: varint, and the bits of a 64- or 32-bit float) with length 0, or
    the offset of the bytes (wire type 2) with their length.
    Raises:
        ValueError: not a protobuf message, or more than max_fields fields.
    """
    if not (0 <= start <= end <= data.shape[0]):
        raise ValueError(f"Expected a range within {data.shape[0]} bytes, got {start}:{end}")
    cdef int64_t at, n = 0, room, k
    cdef uint64_t key, value
    cdef int wire
    cdef const uint8_t* p = &data[0] if data.shape[0] else NULL
    cdef uint32_t[::1] numbers
    cdef uint8_t[::1] wires
    cdef uint64_t[::1] values
    cdef int64_t[::1] lengths
    # Every field takes two bytes at least; grown by doubling, so a small message costs little.
    room = min(max((end - start) // 8, 64), max_fields)
    arrays = (np.empty(room, np.uint32), np.empty(room, np.uint8), np.empty(room, np.uint64), np.empty(room, np.int64))
    numbers, wires, values, lengths = arrays
    at = start
    while at < end:
        if n == room:
            if room >= max_fields:
                raise ValueError(f"Expected at most {max_fields} fields in a message")
            room = min(2 * room, max_fields)
            arrays = tuple(np.resize(array, room) for array in arrays)
            numbers, wires, values, lengths = arrays
        at = _varint(p, at, end, &key)
        if at < 0 or key >> 3 == 0 or key >> 32 != 0:
            raise ValueError("Expected a protobuf field, got other bytes; the file is cut short or altered")
        wire = <int>(key & 7)
        lengths[n] = 0
        if wire == 0:
            at = _varint(p, at, end, &value)
            if at < 0:
                raise ValueError("A number is cut short")
        elif wire == 2:
            at = _varint(p, at, end, &value)
            if at < 0 or value > <uint64_t>(end - at):
                raise ValueError("A field is longer than its message")
            lengths[n] = <int64_t>value
            value = <uint64_t>at
            at += lengths[n]
        elif wire == 1 or wire == 5:
            room_needed = 8 if wire == 1 else 4
            if end - at < room_needed:
                raise ValueError("A number is cut short")
            value = 0
            for k in range(<int64_t>room_needed):
                value |= <uint64_t>p[at + k] << (8 * k)
            at += <int64_t>room_needed
        else:
            raise ValueError(f"Wire type {wire} does not belong in such a file")
        numbers[n], wires[n], values[n] = <uint32_t>(key >> 3), <uint8_t>wire, value
        n += 1
    return tuple(array[:n] for array in arrays)


def unpack_varints(const uint8_t[::1] data not None, int64_t start, int64_t end):
    """A packed field of varints as int64.

    Raises:
        ValueError: cut short.
    """
    if not (0 <= start <= end <= data.shape[0]):
        raise ValueError(f"Expected a range within {data.shape[0]} bytes, got {start}:{end}")
    result = np.empty(end - start, dtype=np.int64)
    cdef int64_t[::1] out = result
    cdef int64_t at = start, n = 0
    cdef uint64_t value
    while at < end:
        at = _varint(&data[0], at, end, &value)
        if at < 0:
            raise ValueError("A number is cut short")
        out[n] = <int64_t>value
        n += 1
    return result[:n]
