# decimal.pxd - float64 <-> decimal text, without the GIL; see decimal.h.
#
# Owns   : the table of powers of ten, made at import from exact integers. Immutable.
# Lends  : powers(): for the life of the process, so an importer may keep it.
# GIL    : not needed. Raises: never.
# Threads: safe.
from libc.stdint cimport int64_t, uint8_t, uint64_t


cdef extern from "decimal.h" nogil:
    enum:
        DECIMAL_BYTES
        LEAST_POWER
        MOST_POWER
        N_POWERS
    ctypedef struct Power:
        uint64_t high, low
    ctypedef const Power* Powers
    # Shortest text of a finite value, as repr() writes it, at `at`, which has room for DECIMAL_BYTES; returns past it.
    char* put_double(Powers powers, char* at, double value)
    ctypedef struct Decimal:
        uint64_t digits
        int64_t n_digits
        bint is_negative, is_whole
        double number
    # A number as JSON spells it, from p; returns past it, or NULL. as_double: `number` is set for a whole one too.
    const uint8_t* read_decimal(Powers powers, const uint8_t* p, const uint8_t* end, bint as_double, Decimal* out)


cdef Powers powers() noexcept nogil
