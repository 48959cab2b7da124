"""Python values of a request -> key bytes and float32; see values.pxd for the contract. Owner: tiercel._hot.plan."""

from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.math cimport fabs
from libc.string cimport memcpy

from tiercel._hot.payload cimport KIND_BOOL, KIND_FLOAT, KIND_INT, KIND_NUMBER, KIND_STRING
from tiercel._hot.typedefs cimport feature_t, int32_t, int64_t, uint8_t, uint64_t

from tiercel.errors import RequestError

cdef feature_t NAN_F = float("nan")
cdef double FLOAT32_MAX = 3.4028234663852886e38


cdef class Slot:
    pass


cdef str show(object value):
    """A value as an error message shows it: short, whatever was sent."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


cdef str _where(str part, str name, Py_ssize_t row, bint many):
    return f"$.{part}.{name}[{row}]" if many else f"$.{part}.{name}"


cdef int32_t put_int(uint8_t* key, int32_t length, object value, str name, Py_ssize_t row, bint many) except -2:
    cdef int64_t number
    cdef uint64_t bits
    cdef int i
    if type(value) is not int:
        raise RequestError(
            f"Expected an integer at {_where('entities', name, row, many)}, got {show(value)}",
            code="wrong_type", row=row if many else None,
        )
    try:
        number = value
    except OverflowError:
        raise RequestError(
            f"Expected a 64-bit integer at {_where('entities', name, row, many)}, got {show(value)}",
            code="not_finite", row=row if many else None,
        ) from None
    if length + 8 > MAX_KEY_BYTES - 2:
        raise _key_too_long(name, row, many)
    bits = <uint64_t>number ^ (<uint64_t>1 << 63)       # order-preserving: negative numbers sort first
    for i in range(8):
        key[length + i] = <uint8_t>(bits >> (56 - 8 * i))
    return length + 8


cdef int32_t put_string(
    uint8_t* key, int32_t length, object value, bint prefixed, str name, Py_ssize_t row, bint many
) except -2:
    cdef Py_ssize_t size
    cdef const char* text
    if type(value) is not str:
        raise RequestError(
            f"Expected a string at {_where('entities', name, row, many)}, got {show(value)}",
            code="wrong_type", row=row if many else None,
        )
    try:
        text = PyUnicode_AsUTF8AndSize(value, &size)
    except UnicodeEncodeError:
        raise RequestError(
            f"Expected text at {_where('entities', name, row, many)}, got an unpaired surrogate",
            code="wrong_type", row=row if many else None,
        ) from None
    # 511 bytes is liblmdb's limit and one of them is the group's prefix.
    if length + size + (2 if prefixed else 0) > MAX_KEY_BYTES - 2:
        raise _key_too_long(name, row, many)
    if prefixed:
        key[length], key[length + 1] = <uint8_t>(size >> 8), <uint8_t>(size & 0xFF)
        length += 2
    memcpy(key + length, text, size)
    return length + <int32_t>size


cdef object _key_too_long(str name, Py_ssize_t row, bint many):
    return RequestError(
        f"Expected an entity key of at most {MAX_KEY_BYTES - 2} bytes, got a longer one at "
        f"{_where('entities', name, row, many)}",
        code="key_too_long", row=row if many else None,
    )


cdef feature_t convert(Slot slot, object value, Py_ssize_t row, bint many) except? -1:
    """A request value as float32; None is NaN."""
    cdef double number
    if value is None:
        return NAN_F
    if slot.kind == KIND_STRING:
        if type(value) is str:
            code = slot.codes.get(value)
            if code is not None:
                return <feature_t><double>code
            raise RequestError(
                f"Expected a known category at {_where('features', slot.name, row, many)}, got {show(value)}. "
                f"Send null for a value the model has never seen.",
                code="unknown_category", row=row if many else None,
            )
    elif slot.kind == KIND_BOOL:
        if type(value) is bool:
            return 1.0 if value else 0.0
    elif type(value) is float or type(value) is int or (slot.kind == KIND_NUMBER and type(value) is bool):
        try:
            number = value
        except OverflowError:
            number = float("inf")
        if not (-FLOAT32_MAX <= number <= FLOAT32_MAX):
            raise RequestError(
                f"Expected a finite float32 number at {_where('features', slot.name, row, many)}, got {show(value)}. "
                f"Send null for a missing value.",
                code="not_finite", row=row if many else None,
            )
        # A double of 2**63 or more has no fraction, and casting it to an integer would be undefined.
        if slot.kind != KIND_INT or fabs(number) >= 9.2e18 or number == <double><int64_t>number:
            return <feature_t>number
    wanted = {
        KIND_FLOAT: "a number", KIND_INT: "an integer", KIND_BOOL: "true or false", KIND_STRING: "a string",
        KIND_NUMBER: "a number",
    }[slot.kind]
    raise RequestError(
        f"Expected {wanted} at {_where('features', slot.name, row, many)}, got {show(value)}",
        code="wrong_type", row=row if many else None,
    )
