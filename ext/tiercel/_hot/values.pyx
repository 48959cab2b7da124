"""Python values of a request -> key bytes and float32; see values.pxd for the contract. Owner: tiercel._hot.plan."""

from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.math cimport fabs
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from tiercel._hot.payload cimport KIND_BOOL, KIND_FLOAT, KIND_INT, KIND_NUMBER, KIND_STRING, Kind
from tiercel._hot.reader cimport READ_MISSING, READ_WRONG_SCHEMA, READ_WRONG_WIDTH
from tiercel._hot.typedefs cimport feature_t, int32_t, int64_t, uint8_t, uint64_t

from tiercel.errors import EntityNotFoundError, RequestError, SchemaMismatchError, StoreError
from tiercel.types import DType

cdef feature_t NAN_F = float("nan")
# Halfway between the largest float32 and 2**128: below it a double rounds to a finite float32.
cdef double FLOAT32_BOUND = 3.4028235677973366e38
cdef double INT64_BOUND = 9223372036854775808.0


cdef class Slot:
    pass


cdef class Group:
    def __cinit__(self, Py_ssize_t n_columns, Py_ssize_t n_parts):
        self.n_columns, self.n_parts = n_columns, n_parts
        self.slots = <int32_t*>calloc(max(n_columns, 1), sizeof(int32_t))
        self.view_of = <int32_t*>calloc(max(n_columns, 1), sizeof(int32_t))
        self.key_fields = <int32_t*>calloc(max(n_parts, 1), sizeof(int32_t))
        self.key_is_text = <uint8_t*>calloc(max(n_parts, 1), 1)
        if self.slots is NULL or self.view_of is NULL or self.key_fields is NULL or self.key_is_text is NULL:
            raise MemoryError("No memory for a plan")

    def __dealloc__(self):
        free(self.slots)
        free(self.view_of)
        free(self.key_fields)
        free(self.key_is_text)


cdef str show(object value):
    """A value as an error message shows it: short, whatever was sent."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


cdef Kind kind_of(object dtype):
    if dtype is DType.STRING:
        return KIND_STRING
    if dtype is DType.BOOL:
        return KIND_BOOL
    return KIND_INT if dtype is DType.INT64 else KIND_FLOAT


cdef Py_ssize_t count_rows(dict entities, dict features) except -2:
    """Number of rows when any value is a list, else -1; refuses lists of different lengths."""
    cdef Py_ssize_t n_rows = -1
    cdef str first = None
    for part, values in (("entities", entities), ("features", features)):
        for name, value in (<dict>values).items():
            if type(value) is not list:
                continue
            if n_rows < 0:
                n_rows, first = len(<list>value), f"$.{part}.{name}"
            elif len(<list>value) != n_rows:
                raise RequestError(
                    f"Expected lists of equal length, got {n_rows} at {first} and {len(value)} at $.{part}.{name}",
                    code="wrong_length",
                )
    return n_rows


cdef int refuse_read(uint8_t status, str entity, tuple key_names, dict entities, Py_ssize_t row, str service) except -1:
    columns = [entities[name] for name in key_names]
    many = list in [type(column) for column in columns]
    shown = ", ".join([
        f"{name}={show(column[row] if type(column) is list else column)}"
        for name, column in zip(key_names, columns)
    ])
    if status == READ_MISSING:
        raise EntityNotFoundError(
            f"Expected a stored row of entity '{entity}', got none for {shown}"
            f"{f' (row {row})' if many else ''}. Materialize the entity, or declare the feature service with "
            f'on_missing_entity="null" if unknown entities are to be scored.',
            row=row if many else None,
        )
    if status == READ_WRONG_SCHEMA or status == READ_WRONG_WIDTH:
        raise SchemaMismatchError(
            f"Feature service '{service}': the stored row of {shown} has another schema than the "
            f"model expects. Run `tiercel materialize`."
        )
    raise StoreError(f"Feature service '{service}': reading {shown} failed in the store (status {status})")


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


cdef int require_rows(object column, Py_ssize_t n_rows, str part, str name) except -1:
    if type(column) is list and len(<list>column) < n_rows:
        raise RequestError(
            f"The list at $.{part}.{name} became shorter while it was being scored", code="wrong_length"
        )
    return 0


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
            if slot.kind == KIND_INT and type(value) is int:
                return <feature_t><double><int64_t>value
            number = value
        except OverflowError:
            number = float("inf")
        if not (fabs(number) < (INT64_BOUND if slot.kind == KIND_INT else FLOAT32_BOUND)):
            wanted = "64-bit integer" if slot.kind == KIND_INT else "finite float32 number"
            raise RequestError(
                f"Expected a {wanted} at {_where('features', slot.name, row, many)}, got {show(value)}. "
                f"Send null for a missing value.",
                code="not_finite", row=row if many else None,
            )
        if slot.kind != KIND_INT or number == <double><int64_t>number:
            return <feature_t>number
    wanted = {
        KIND_FLOAT: "a number", KIND_INT: "an integer", KIND_BOOL: "true or false", KIND_STRING: "a string",
        KIND_NUMBER: "a number",
    }[slot.kind]
    raise RequestError(
        f"Expected {wanted} at {_where('features', slot.name, row, many)}, got {show(value)}",
        code="wrong_type", row=row if many else None,
    )
