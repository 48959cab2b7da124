"""Infer requests and replies of one plan; see tensors.pxd for the contract. Owner: tiercel._hot.plan."""

import json

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from tiercel._hot.clock cimport monotonic_ns
from tiercel._hot.decimal cimport Powers, powers
from tiercel._hot.payload cimport CELL_TEXT
from tiercel._hot.prediction cimport BUDGET_NONE, N_STAGES, STAGE_REPLY
from tiercel._hot.reply cimport NUMBER_BYTES, put_decimal, put_number, write_id

from tiercel._hot.reply_head import SOURCES, STAGE_NAMES

cdef extern from "tensors.h" nogil:
    bint read_tensors(
        Powers powers, const uint8_t* p, int64_t n_bytes, const TensorSchema* schema, int64_t max_rows, Body* body,
        TensorRequest* request,
    )
    uint32_t id_size(const TensorRequest* request)
    const char* id_text(const TensorRequest* request)

cdef Powers POWERS = powers()
# The input that is a whole vector (FEATURES of http/oip_model.py).
VECTOR = "features"

# By Stage and by BudgetSource: the texts of a reply that name them, in bytes that these tuples keep.
cdef tuple KEPT_STAGES = tuple([b'%b"%b":' % (b"," if i else b"{", name.encode()) for i, name in enumerate(STAGE_NAMES)])
cdef tuple KEPT_SOURCES = tuple([b',"budget_from":"%b' % name.encode() for name in SOURCES])
cdef Text STAGES[8]
cdef Text FROM[8]


cdef int _lend(tuple kept, Text* texts) except -1:
    for i, text in enumerate(kept):
        texts[<Py_ssize_t>i].data, texts[<Py_ssize_t>i].size = PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text)
    return 0


assert len(KEPT_STAGES) == N_STAGES <= 8 >= len(KEPT_SOURCES)
_lend(KEPT_STAGES, STAGES)
_lend(KEPT_SOURCES, FROM)

cdef enum:
    FIXED_BYTES = 1024      # every name, bracket, time and count of a reply; the rest is counted


cdef class TensorForm:
    """What the infer requests of one plan may bring, and what their replies say.

    Args:
        model, version: what answered.
        vectors: of the plan.
        n_outputs: scores per row.
        tier: `tiercel.types.Tier` as text.
    """

    def __cinit__(self, str model, int version, VectorProgram vectors not None, Py_ssize_t n_outputs, str tier="realtime"):
        cdef Py_ssize_t i
        cdef bint is_whole
        self.vectors, self.n_outputs = vectors, n_outputs
        self._kept_head = b'{"model_name":%b,"model_version":"%d","id":"' % (_json(model), version)
        self._kept_tier = b'","parameters":{"tier":%b,"prediction_id":"' % _json(tier)
        self._head.data, self._head.size = PyBytes_AS_STRING(self._kept_head), PyBytes_GET_SIZE(self._kept_head)
        self._tier.data, self._tier.size = PyBytes_AS_STRING(self._kept_tier), PyBytes_GET_SIZE(self._kept_tier)
        names, keys = vectors.slot_of.keys(), set(vectors.join_keys)
        # A whole vector is left to the general path where one of its values cannot be sent, or its name means something
        # else; that says what is wrong, or finds the meaning.
        is_whole = VECTOR not in names and VECTOR not in keys and not keys & names
        for i in range(vectors.n_features):
            is_whole = is_whole and i < vectors.body_reader.n_features and vectors.body_reader.features[i].index == i
        self._schema.names, self._schema.fields = &vectors.body_reader._schema, vectors.body_reader.features
        self._schema.key_is_text = vectors.key_is_text
        self._schema.n_features = <int32_t>vectors.body_reader.n_features
        self._schema.n_vector = <int32_t>vectors.n_features if is_whole else 0

    @property
    def takes_vectors(self):
        """Whether a whole vector in one tensor is read here."""
        return self._schema.n_vector > 0

    cdef bint read(
        self, const uint8_t* data, Py_ssize_t size, int64_t max_rows, Body* body, TensorRequest* request
    ) noexcept nogil:
        memset(body.given, 0, self.vectors.body_reader.n_fields)
        return read_tensors(POWERS, data, size, &self._schema, max_rows, body, request)

    cdef Py_ssize_t most_bytes(self, Py_ssize_t n_rows, const TensorRequest* request) noexcept nogil:
        return (
            FIXED_BYTES + self._head.size + self._tier.size + id_size(request)
            + n_rows * self.n_outputs * NUMBER_BYTES
        )

    cdef Py_ssize_t write_into(
        self, char* out, TensorRequest* request, ReplyIds ids, uint64_t number, Py_ssize_t n_rows, const score_t* scores,
        int64_t age_us, Stopwatch* watch, int64_t begun_ns,
    ) noexcept nogil:
        cdef Py_ssize_t stage, n_scores = n_rows * self.n_outputs
        cdef char* at = _put(out, self._head.data, self._head.size)
        if request.id.type == CELL_TEXT:
            at = _put(at, id_text(request), id_size(request))
        else:
            at += write_id(at, ids._prefix, number)
        at = _put(at, self._tier.data, self._tier.size)
        at += write_id(at, ids._prefix, number)
        if watch.budget_source != BUDGET_NONE:
            at = _put(at, b'","budget_us":', 14)
            at = put_decimal(at, watch.budget_us)
            at = _put_text(at, &FROM[watch.budget_source])
        at = _put(at, b'"', 1)
        if age_us >= 0:
            at = put_number(_put(at, b',"oldest_age_ms":', 17), <double>age_us / 1000)
        # As on the general path the reply says what came before it; the journal gets the rest.
        watch.at[<int>STAGE_REPLY + 1] = monotonic_ns()
        at = _put(at, b',"timing_us":', 13)
        for stage in range(<Py_ssize_t>N_STAGES):
            at = _put_us(_put_text(at, &STAGES[stage]), watch.at[stage + 1] - watch.at[stage])
        at = _put_us(_put(at, b',"total":', 9), watch.at[<int>N_STAGES] - begun_ns)
        at = _put(at, b'}},"outputs":[{"name":"score","datatype":"FP64","shape":[', 57)
        at = put_decimal(at, n_rows)
        if self.n_outputs > 1:
            at = put_decimal(_put(at, b",", 1), self.n_outputs)
        if request.is_binary:
            at = put_decimal(_put(at, b'],"parameters":{"binary_data_size":', 35), n_scores * <Py_ssize_t>sizeof(score_t))
            at = _put(at, b"}}]}", 4)
            request.json_bytes = at - out
            return _put(at, <const char*>scores, n_scores * <Py_ssize_t>sizeof(score_t)) - out
        request.json_bytes = -1
        at = _put_numbers(_put(at, b'],"data":', 9), scores, n_scores)
        return _put(at, b"}]}", 3) - out


cdef class TensorTally:
    def stage_ns(self):
        """{stage: nanoseconds}."""
        return {name: self._stage_ns[i] for i, name in enumerate(STAGE_NAMES)}

    cdef void add(self, const Stopwatch* watch, int64_t n_rows, int64_t wall_us, int64_t begun_ns) noexcept:
        cdef Py_ssize_t stage
        self.n_requests, self.n_rows = self.n_requests + 1, self.n_rows + n_rows
        self.last_ms = wall_us // 1000
        self.total_ns = self.total_ns + watch.at[<int>N_STAGES] - begun_ns
        for stage in range(<Py_ssize_t>N_STAGES):
            self._stage_ns[stage] += watch.at[stage + 1] - watch.at[stage]


cdef class TensorTallies:
    def __init__(self):
        self._tallies = {}

    def get(self, str model, int version):
        """The tally of a version; None where none was answered."""
        return self._tallies.get((model, version))

    cdef TensorTally of(self, str model, int version):
        found = self._tallies.get((model, version))
        if found is None:
            found = self._tallies[model, version] = TensorTally()
        return <TensorTally>found


def json_numbers(const double[::1] values not None):
    cdef Py_ssize_t n = values.shape[0]
    cdef char* text = <char*>malloc(<size_t>(2 + n * NUMBER_BYTES))
    if text is NULL:
        raise MemoryError(f"No memory for {n} numbers")
    try:
        return PyBytes_FromStringAndSize(text, _put_numbers(text, &values[0] if n else NULL, n) - text)
    finally:
        free(text)


cdef bytes _json(value):
    return json.dumps(value, ensure_ascii=False).encode()


cdef inline char* _put(char* at, const char* text, Py_ssize_t size) noexcept nogil:
    memcpy(at, text, <size_t>size)
    return at + size


cdef inline char* _put_text(char* at, const Text* text) noexcept nogil:
    return _put(at, text.data, text.size)


cdef char* _put_us(char* at, int64_t ns) noexcept nogil:
    """Microseconds with one decimal."""
    cdef int64_t tenths = max(0, ns + 50) // 100
    at = put_decimal(at, tenths // 10)
    at[0], at[1] = 46, <char>(48 + tenths % 10)     # "."
    return at + 2


cdef char* _put_numbers(char* at, const double* values, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    at = _put(at, b"[", 1)
    for i in range(n):
        if i:
            at = _put(at, b",", 1)
        at = put_number(at, values[i])
    return _put(at, b"]", 1)
