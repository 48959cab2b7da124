"""float64 <-> decimal text; see decimal.pxd for the contract. Owner: none, `reply` and `payload` use it."""

from cpython.mem cimport PyMem_Free
from libc.math cimport isfinite
from libc.string cimport memcmp, memcpy, strlen


cdef extern from "Python.h":
    char* PyOS_double_to_string(double val, char format_code, int precision, int flags, int* ptype)
    int Py_DTSF_ADD_DOT_0


cdef Power POWERS[N_POWERS]


cdef int _make_powers() except -1:
    cdef object k, ten = 10, one = 1, power, bits     # Python integers: C ones would overflow
    for k in range(LEAST_POWER, MOST_POWER + 1):
        power = ten ** abs(k)
        if k < 0:
            bits = (one << (127 + power.bit_length())) // power
        else:
            bits = (power << 128) >> power.bit_length()
        POWERS[k - LEAST_POWER].high, POWERS[k - LEAST_POWER].low = bits >> 64, bits & 0xFFFFFFFFFFFFFFFF
    return 0


_make_powers()


cdef Powers powers() noexcept nogil:
    return POWERS


def text(double value):
    """A finite number as replies write it. For tests."""
    cdef char out[DECIMAL_BYTES]
    if not isfinite(value):
        raise ValueError(f"Expected a finite number, got {value}")
    return out[:put_double(POWERS, out, value) - out]


cdef inline uint64_t _next_random(uint64_t* state) noexcept nogil:
    """splitmix64."""
    cdef uint64_t z
    state[0] += <uint64_t>0x9E3779B97F4A7C15
    z = state[0]
    z = (z ^ (z >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * <uint64_t>0x94D049BB133111EB
    return z ^ (z >> 31)


def first_wrong_text(uint64_t seed, Py_ssize_t count):
    """Of `count` doubles of random bits the first whose text is not that of repr(), or None. For tests."""
    cdef char out[DECIMAL_BYTES]
    cdef char* expected
    cdef size_t size
    cdef uint64_t bits
    cdef double value
    cdef Py_ssize_t i
    cdef bint same
    for i in range(count):
        bits = _next_random(&seed)
        memcpy(&value, &bits, 8)
        if not isfinite(value):
            continue
        size = <size_t>(put_double(POWERS, out, value) - out)
        expected = PyOS_double_to_string(value, b"r", 0, Py_DTSF_ADD_DOT_0, NULL)
        if expected is NULL:
            raise MemoryError("No memory for a number's text")
        same = strlen(expected) == size and memcmp(expected, out, size) == 0
        PyMem_Free(expected)
        if not same:
            return value
    return None
