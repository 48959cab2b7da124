"""placeholder"""
cdef class BaseFile:
    pass

cdef class GroupReader:
    cdef ReadStatus read_into(
        self, const uint8_t* key, size_t key_len, int64_t now_us,
        feature_t* out, uint8_t* status, int64_t* event_us,
    ) noexcept nogil:
        return READ_STORE_ERROR
