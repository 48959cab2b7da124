"""Request bodies read in place; see payload.pxd for the contract. Owner: tiercel._hot.plan."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from tiercel._hot.decimal cimport Powers, powers


cdef extern from "body_text.h" nogil:
    void put_name(NameTable* table, const uint8_t* text, uint32_t size, int32_t value)
    bint read_body(const uint8_t* p, int64_t n_bytes, int kind, const BodySchema* schema, Body* body)
    const Cell* next_item_of(Powers powers, Column* column, const uint8_t* end, int kind, Cell* room)


cdef Powers POWERS = powers()


cdef const Cell* next_item(Column* column, const uint8_t* end, int kind, Cell* room) noexcept nogil:
    return next_item_of(POWERS, column, end, kind, room)


cdef class BodyReader:
    """What a body may hold.

    Args:
        features: `(name, kind, index, categories)` per feature; categories is a sequence of text, or None.
        join_keys: names that `entities` may hold.
    """

    def __cinit__(self, features, join_keys):
        cdef Py_ssize_t i
        features, join_keys, self._kept = list(features), list(join_keys), []
        self.n_features, self.n_fields = len(features), len(features) + len(join_keys)
        self.features = <FieldSpec*>calloc(max(self.n_features, 1), sizeof(FieldSpec))
        if self.features is NULL:
            raise MemoryError("No memory for a body reader")
        for i, (_, kind, index, categories) in enumerate(features):
            self.features[i].kind, self.features[i].index = kind, index
            self.features[i].n_categories = len(categories or ())
            self._build(&self.features[i].categories, categories or (), 0)
        self._build(&self._schema.features, [name for name, *_ in features], 0)
        self._build(&self._schema.entities, join_keys, self.n_features)
        self._field_of = {name: self.n_features + i for i, name in enumerate(join_keys)}

    def __dealloc__(self):
        cdef Py_ssize_t i
        if self.features is not NULL:
            for i in range(self.n_features):
                free(self.features[i].categories.places)
        free(self.features)
        free(self._schema.features.places)
        free(self._schema.entities.places)

    cdef int _build(self, NameTable* table, names, int32_t first) except -1:
        cdef uint32_t n_places = 2
        cdef bytes text
        names = list(names)
        while n_places < 2 * len(names) + 1:
            n_places *= 2
        table.places = <Name*>calloc(n_places, sizeof(Name))
        if table.places is NULL:
            raise MemoryError(f"No memory for {len(names)} names")
        table.mask = n_places - 1
        for value, name in enumerate(names, first):
            text = name.encode("utf-8", "surrogatepass")    # a name that is not UTF-8 matches nothing that was checked
            self._kept.append(text)
            put_name(table, <const uint8_t*>PyBytes_AS_STRING(text), <uint32_t>PyBytes_GET_SIZE(text), value)
        return 0

    cdef bint read(self, const uint8_t* data, Py_ssize_t size, int kind, int64_t max_rows, Body* body) noexcept nogil:
        cdef BodySchema schema = self._schema
        schema.max_rows, schema.powers = max_rows, POWERS
        memset(body.given, 0, self.n_fields)
        return read_body(data, size, kind, &schema, body)
