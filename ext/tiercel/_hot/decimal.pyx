"""float64 <-> decimal text; see decimal.pxd for the contract. Owner: none, `reply` and `payload` use it."""

from cpython.bytes cimport PyBytes_AS_STRING
from cpython.mem cimport PyMem_Free
from libc.math cimport isfinite
from libc.stdint cimport uint8_t
from libc.stdlib cimport strtod
from libc.string cimport memcmp, memcpy, strlen


cdef extern from "Python.h":
    char* PyOS_double_to_string(double val, char format_code, int precision, int flags, int* ptype)
    int Py_DTSF_ADD_DOT_0
    double PyOS_string_to_double(const char* s, char** endptr, void* overflow_exception) except? -1


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


def number(const unsigned char[::1] text not None):
    """The number that a JSON text is, maybe infinite, or None where it is not one number. For tests."""
    cdef Decimal out
    cdef const uint8_t* end
    if text.shape[0] == 0:
        return None
    end = &text[0] + text.shape[0]
    return out.number if read_decimal(POWERS, &text[0], end, True, &out) == end else None


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


def first_wrong_number(uint64_t seed, Py_ssize_t count):
    """Of `count` texts of 1 to 25 random digits and an exponent the first not read as float() reads it, or None."""
    cdef char text[64]
    cdef uint64_t bits
    cdef Decimal out
    cdef double expected
    cdef Py_ssize_t i
    cdef int n, k, exponent
    for i in range(count):
        bits = _next_random(&seed)
        n = 1 + <int>(bits % 25)
        exponent = <int>((bits >> 32) % 660) - 345 - n
        text[0] = <char>(49 + (bits >> 8) % 9)
        for k in range(1, n):
            if k % 16 == 1:
                bits = _next_random(&seed)
            text[k] = <char>(48 + (bits & 15) % 10)
            bits >>= 4
        text[n] = b"e"
        n += 1
        if exponent < 0:
            text[n] = b"-"
            n += 1
            exponent = -exponent
        text[n], text[n + 1], text[n + 2] = 48 + exponent // 100, 48 + exponent // 10 % 10, 48 + exponent % 10
        n += 3
        text[n] = 0
        expected = PyOS_string_to_double(text, NULL, NULL)
        if read_decimal(POWERS, <const uint8_t*>text, <const uint8_t*>text + n, True, &out) is NULL:
            return text[:n]
        if memcmp(&expected, &out.number, 8) != 0:
            return text[:n]
    return None


def write_all(const double[::1] values not None, bint ours):
    """The bytes that the texts of finite numbers have in all, ours or CPython's repr. For benchmarks: one compiled loop."""
    cdef char out[DECIMAL_BYTES]
    cdef char* theirs
    cdef Py_ssize_t i, total = 0
    for i in range(values.shape[0]):
        if ours:
            total += put_double(POWERS, out, values[i]) - out
            continue
        theirs = PyOS_double_to_string(values[i], b"r", 0, Py_DTSF_ADD_DOT_0, NULL)
        if theirs is NULL:
            raise MemoryError("No memory for a number's text")
        total += strlen(theirs)
        PyMem_Free(theirs)
    return total


def read_all(bytes lines not None, int how):
    """The sum of numbers that each end in a newline: ours (0), C's strtod (1), CPython's (2). For benchmarks.

    Raises:
        ValueError: something else stands there.
    """
    cdef const char* p = PyBytes_AS_STRING(lines)
    cdef const char* end = p + len(lines)
    cdef char* stop
    cdef Decimal out
    cdef double total = 0
    while p < end:
        if how == 0:
            stop = <char*>read_decimal(POWERS, <const uint8_t*>p, <const uint8_t*>end, True, &out)
        elif how == 1:
            out.number = strtod(p, &stop)
        else:
            out.number = PyOS_string_to_double(p, &stop, NULL)
        if stop is NULL or stop >= end or stop[0] != b"\n":
            raise ValueError("Expected numbers that end in a newline each")
        total += out.number
        p = stop + 1
    return total
