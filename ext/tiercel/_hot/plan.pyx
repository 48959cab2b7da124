"""Keys and request features -> scores; see plan.pxd for the contract. Owner: tiercel.serving.engine."""

from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.math cimport fabs, isnan
from libc.string cimport memcpy, memset

import numpy as np

from tiercel._hot.reader cimport (
    READ_MISSING, READ_OK, READ_WRONG_SCHEMA, READ_WRONG_WIDTH, VALUE_PRESENT, GroupReader, ReadStatus,
)
from tiercel._hot.scorer cimport SCORE_OK, Scorer, ScoreStatus
from tiercel._hot.typedefs cimport feature_t, int32_t, int64_t, score_t, uint8_t, uint64_t

from tiercel.errors import BaseCorruptError, EntityNotFoundError, RequestError, SchemaMismatchError, StoreError
from tiercel.types import NO_EVENT_US, STATIC_EVENT_US, DType

cdef feature_t NAN_F = float("nan")
# Halfway between the largest float32 and the next power of two: below it a double rounds to a finite float32.
cdef double FLOAT32_BOUND = 3.4028235677973366e38
cdef double INT64_BOUND = 9223372036854775808.0
cdef int64_t NO_EVENT = NO_EVENT_US
cdef int64_t STATIC_EVENT = STATIC_EVENT_US


cdef class _Slot:
    pass


cdef class _Group:
    pass


cdef Kind _kind_of(object dtype):
    if dtype is DType.STRING:
        return KIND_STRING
    if dtype is DType.BOOL:
        return KIND_BOOL
    return KIND_INT if dtype is DType.INT64 else KIND_FLOAT


cdef str _show(object value):
    """A value as an error message shows it: short, whatever was sent."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


cdef str _where(str part, str name, Py_ssize_t row, bint many):
    return f"$.{part}.{name}[{row}]" if many else f"$.{part}.{name}"


cdef class ServingPlan:
    """One model version, ready to answer.

    Args:
        model, version: names for messages and replies.
        signature: `tiercel.types.Signature`; its features are the vector's order.
        scorer: a compiled `Scorer`, or any object with `score(float32 (n, n_features)) -> float64 (n, n_outputs)`.
        schema: `tiercel.types.ServiceSchema` the model was registered against, or None: all features by request.
        base: the service's opened `tiercel.features.online.OnlineBase`, or None without a service.

    Raises:
        SchemaMismatchError: the signature names a feature the service does not have.
    """

    def __init__(self, str model, int version, signature, scorer, schema=None, base=None):
        self.model, self.version, self.signature, self.schema, self.base = model, version, signature, schema, base
        self.n_features, self.n_outputs = len(signature.features), signature.n_outputs
        self._accepts_missing = signature.accepts_missing
        self._missing_entity_is_error = schema is not None and schema.on_missing_entity == "error"
        if isinstance(scorer, Scorer):
            self._scorer = scorer
        else:
            self._python_scorer = scorer
        if scorer.n_features != self.n_features or scorer.n_outputs != self.n_outputs:
            raise SchemaMismatchError(
                f"Model '{model}' version {version}: expected a scorer of {self.n_features} features and "
                f"{self.n_outputs} outputs, got {scorer.n_features} and {scorer.n_outputs}"
            )
        self._wire(schema, base)

    def _wire(self, schema, base):
        cdef _Slot slot
        cdef _Group group
        self._slot_of, self._slots, self._readers, self._groups = {}, [], [], []
        self._n_stored = self._max_views = 0
        stored = {} if schema is None else {column.name: column for g in schema.groups for column in g.columns}
        request = {} if schema is None else {field.name: field for field in schema.request_fields}
        for name in self.signature.features:
            if schema is not None and name not in stored and name not in request:
                raise SchemaMismatchError(
                    f"Model '{self.model}' version {self.version} expects feature '{name}', which feature service "
                    f"'{schema.name}' does not have. Register the model with the service it was trained on."
                )
        # A feature of the service that this model does not use may be sent all the same: it is checked and left out, so
        # that one request fits champion and challenger.
        index_of = {name: index for index, name in enumerate(self.signature.features)}
        for name in [*self.signature.features, *(n for n in [*stored, *request] if n not in index_of)]:
            slot = _Slot()
            slot.name, slot.index, slot.stored, slot.codes = name, index_of.get(name, -1), name in stored, None
            if name in stored:
                slot.kind = _kind_of(stored[name].dtype)
                categories = base.categories.get(name, ()) if slot.kind == KIND_STRING else None
            elif name in request:
                slot.kind = _kind_of(request[name].dtype)
                categories = request[name].categories
            else:
                slot.kind, categories = KIND_NUMBER, None
            if categories is not None:
                slot.codes = {category: float(code) for code, category in enumerate(categories)}
            self._slot_of[name] = slot
            if slot.index >= 0:
                self._slots.append(slot)
        join_keys = {key.name for g in (() if schema is None else schema.groups) for key in g.keys}
        for group_index, group_schema in enumerate(() if schema is None else schema.groups):
            columns = [column for column in group_schema.columns if column.name in index_of]
            if not columns:
                continue
            group = _Group()
            group.entity = group_schema.entity
            group.key_names = tuple(key.name for key in group_schema.keys)
            group.key_is_string = tuple(key.dtype is DType.STRING for key in group_schema.keys)
            group.slots = [(<_Slot>self._slot_of[column.name]).index for column in columns]
            group.view_of = [column.view for column in columns]
            group.first = self._n_stored
            self._n_stored += len(columns)
            self._max_views = max(self._max_views, len(group_schema.views))
            self._groups.append(group)
            self._readers.append(base.group_reader(group_index, [column.name for column in columns], group.slots))
        self._join_keys = frozenset(join_keys)

    @property
    def join_keys(self):
        """Names that `entities` may hold."""
        return self._join_keys

    cpdef tuple predict(self, dict entities, dict features, int64_t now_us):
        """Score one or many rows.

        Args:
            entities: join key -> value, or list of values (one per row). Null means "no such entity".
            features: feature -> value, or list of values. What is given here wins over what is stored; a group of
                stored features needs no entity when the request brings all of them.
            now_us: the time of the read, for ages and ttl.

        Returns:
            (single, scores, oldest_age_us, missing): single is True when no list was sent; scores is a float (or a
            list of n_outputs floats) when single, else a list of those; oldest_age_us is None when nothing stored and
            timed was read; missing is [(feature, number of rows)] in vector order.

        Raises:
            RequestError, EntityNotFoundError: what was sent; `row` is set when many rows were.
            StoreError: the base holds something the plan cannot read.
        Threads: safe.
        """
        cdef Scratch scratch
        cdef int64_t oldest_us = NO_EVENT
        cdef Py_ssize_t n_rows = self._count_rows(entities, features)
        cdef bint many = n_rows >= 0
        if not many:
            n_rows = 1
        null_counts = {}
        if n_rows == 0:
            return False, [], None, []
        self._allocate(&scratch, n_rows)
        try:
            self._mark_given(&scratch, features)
            self._read_groups(&scratch, n_rows, entities, now_us, &oldest_us)
            self._fill_given(&scratch, n_rows, features, null_counts)
            missing = self._missing(&scratch, n_rows, null_counts, many)
            self._score(&scratch, n_rows)
            return (
                not many,
                self._scores(&scratch, n_rows) if many else self._row_score(&scratch, 0),
                None if oldest_us == NO_EVENT else max(0, now_us - oldest_us),
                missing,
            )
        finally:
            PyMem_RawFree(scratch.rows)

    cdef Py_ssize_t _count_rows(self, dict entities, dict features) except -2:
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

    cdef int _allocate(self, Scratch* scratch, Py_ssize_t n_rows) except -1:
        # Widest types first keeps every part aligned within the one block; `rows` is the block's start because it is
        # what gets freed, so scores (8 bytes) start at a multiple of 8 after it.
        cdef size_t n = <size_t>n_rows
        cdef size_t rows_bytes = (n * <size_t>self.n_features * sizeof(feature_t) + 7) & ~(<size_t>7)
        cdef size_t scores_bytes = n * <size_t>self.n_outputs * sizeof(score_t)
        cdef size_t events_bytes = n * <size_t>self._max_views * sizeof(int64_t)
        cdef size_t total = (
            rows_bytes + scores_bytes + events_bytes + n * sizeof(int32_t)
            + n * <size_t>self._n_stored + n * MAX_KEY_BYTES + n + <size_t>self.n_features
        )
        cdef uint8_t* block = <uint8_t*>PyMem_RawMalloc(total)
        if block == NULL:
            raise MemoryError(f"No memory for {n_rows} rows of {self.n_features} features")
        scratch.rows = <feature_t*>block
        block += rows_bytes
        scratch.scores = <score_t*>block
        block += scores_bytes
        scratch.events = <int64_t*>block
        block += events_bytes
        scratch.key_lengths = <int32_t*>block
        block += n * sizeof(int32_t)
        scratch.statuses = block
        block += n * <size_t>self._n_stored
        scratch.keys = block
        block += n * MAX_KEY_BYTES
        scratch.read_status = block
        block += n
        scratch.given = block
        return 0

    cdef int _mark_given(self, Scratch* scratch, dict features) except -1:
        """Note which features the request brings; refuse unknown ones and the absence of needed ones."""
        cdef _Slot slot
        memset(scratch.given, 0, self.n_features)
        for name in features:
            found = self._slot_of.get(name)
            if found is None:
                raise RequestError(
                    f"Expected features of model '{self.model}' version {self.version}, got {_show(name)} at "
                    f"$.features. Known: {', '.join(self._slot_of)}",
                    code="unknown_feature",
                )
            if (<_Slot>found).index >= 0:
                scratch.given[(<_Slot>found).index] = 1
        for slot in self._slots:
            if not slot.stored and not scratch.given[slot.index]:
                absent = [
                    (<_Slot>s).name for s in self._slots
                    if not (<_Slot>s).stored and not scratch.given[(<_Slot>s).index]
                ]
                raise RequestError(
                    f"Expected request-time features {', '.join(absent)} at $.features, got none of them. "
                    f"Send null for a value that is not known.",
                    code="missing_feature",
                )
        return 0

    cdef int _read_groups(
        self, Scratch* scratch, Py_ssize_t n_rows, dict entities, int64_t now_us, int64_t* oldest_us
    ) except -1:
        cdef _Group group
        cdef GroupReader reader
        cdef Py_ssize_t g, r, c, n_columns, first
        cdef bint needed
        for name in entities:
            if name not in self._join_keys:
                known = ", ".join(sorted(self._join_keys)) or "none: every feature of this model comes with the request"
                raise RequestError(
                    f"Expected join keys of model '{self.model}' ({known}), got {_show(name)} at $.entities",
                    code="unknown_entity_key",
                )
        for g in range(len(self._groups)):
            group = <_Group>self._groups[g]
            reader = <GroupReader>self._readers[g]
            n_columns, first = reader.n_columns, group.first
            needed = False
            for index in group.slots:
                if not scratch.given[<Py_ssize_t>index]:
                    needed = True
                    break
            if not needed:
                for r in range(n_rows):
                    memset(scratch.statuses + r * self._n_stored + first, VALUE_PRESENT, n_columns)
                continue
            self._encode_keys(scratch, n_rows, group, entities)
            if n_rows < RELEASE_GIL_ROWS:
                _read_rows(self, scratch, n_rows, reader, first, now_us)
            else:
                with nogil:
                    _read_rows(self, scratch, n_rows, reader, first, now_us)
            self._check_reads(scratch, n_rows, group, entities)
            self._note_ages(scratch, n_rows, group, reader.n_views, oldest_us)
        return 0

    cdef int _encode_keys(self, Scratch* scratch, Py_ssize_t n_rows, _Group group, dict entities) except -1:
        """Keys of one group for all rows, as tiercel.features.keys encodes them (a test compares the two)."""
        cdef Py_ssize_t r, part, n_parts = len(group.key_names)
        cdef int32_t length
        cdef uint8_t* key
        cdef bint many
        columns = []
        for name in group.key_names:
            if name not in entities:
                raise RequestError(
                    f"Expected join key '{name}' of entity '{group.entity}' at $.entities, got "
                    f"{', '.join(sorted(entities)) or 'no entities'}",
                    code="missing_entity_key",
                )
            columns.append(entities[name])
            if type(entities[name]) is list and len(<list>entities[name]) < n_rows:
                raise _changed_meanwhile("entities", name)
        for r in range(n_rows):
            key, length = scratch.keys + r * MAX_KEY_BYTES, 0
            for part in range(n_parts):
                value = columns[part]
                many = type(value) is list
                if many:
                    value = (<list>value)[r]
                if value is None:
                    length = -1
                    break
                if group.key_is_string[part]:
                    length = _put_string(key, length, value, part < n_parts - 1, group.key_names[part], r, many)
                else:
                    length = _put_int(key, length, value, group.key_names[part], r, many)
            scratch.key_lengths[r] = length
        return 0

    cdef int _check_reads(
        self, Scratch* scratch, Py_ssize_t n_rows, _Group group, dict entities
    ) except -1:
        cdef Py_ssize_t r
        cdef uint8_t status
        for r in range(n_rows):
            status = scratch.read_status[r]
            if status == READ_OK or (status == READ_MISSING and not self._missing_entity_is_error):
                continue
            columns = [entities[name] for name in group.key_names]
            many = list in [type(column) for column in columns]
            shown = ", ".join([
                f"{name}={_show(column[r] if type(column) is list else column)}"
                for name, column in zip(group.key_names, columns)
            ])
            if status == READ_MISSING:
                raise EntityNotFoundError(
                    f"Expected a stored row of entity '{group.entity}', got none for {shown}"
                    f"{f' (row {r})' if many else ''}. Materialize the entity, or declare the feature service with "
                    f'on_missing_entity="null" if unknown entities are to be scored.',
                    row=r if many else None,
                )
            if status == READ_WRONG_SCHEMA or status == READ_WRONG_WIDTH:
                raise SchemaMismatchError(
                    f"Feature service '{self.schema.name}': the stored row of {shown} has another schema than the "
                    f"model expects. Run `tiercel materialize`."
                )
            raise StoreError(f"Feature service '{self.schema.name}': reading {shown} failed in the store (status {status})")
        return 0

    cdef int _note_ages(
        self, Scratch* scratch, Py_ssize_t n_rows, _Group group, Py_ssize_t n_views, int64_t* oldest_us
    ) except -1:
        """Lower `oldest_us` to the earliest event time of any value that the model is given from this group."""
        cdef Py_ssize_t r, c, n_columns = len(group.slots)
        cdef int64_t event_us
        cdef uint8_t* statuses
        for r in range(n_rows):
            if scratch.read_status[r] != READ_OK:
                continue
            statuses = scratch.statuses + r * self._n_stored + group.first
            for c in range(n_columns):
                if statuses[c] != VALUE_PRESENT or scratch.given[<Py_ssize_t>group.slots[c]]:
                    continue
                event_us = scratch.events[r * n_views + <Py_ssize_t>group.view_of[c]]
                if event_us != NO_EVENT and event_us != STATIC_EVENT and (
                    oldest_us[0] == NO_EVENT or event_us < oldest_us[0]
                ):
                    oldest_us[0] = event_us
        return 0

    cdef int _fill_given(self, Scratch* scratch, Py_ssize_t n_rows, dict features, dict null_counts) except -1:
        cdef _Slot slot
        cdef Py_ssize_t r, n_null
        cdef feature_t* out
        cdef feature_t value
        cdef bint many
        for name, column in features.items():
            slot = <_Slot>self._slot_of[name]
            many = type(column) is list
            if many and len(<list>column) < n_rows:
                raise _changed_meanwhile("features", name)
            n_null = 0
            if slot.index < 0:
                for r in range(n_rows if many else 1):
                    _convert(slot, (<list>column)[r] if many else column, r, many)
                continue
            out = scratch.rows + slot.index
            if many:
                for r in range(n_rows):
                    value = _convert(slot, (<list>column)[r], r, True)
                    n_null += isnan(value)
                    out[r * self.n_features] = value
            else:
                value = _convert(slot, column, 0, False)
                n_null = n_rows if isnan(value) else 0
                for r in range(n_rows):
                    out[r * self.n_features] = value
            if n_null:
                null_counts[slot.index] = n_null
        return 0

    cdef list _missing(self, Scratch* scratch, Py_ssize_t n_rows, dict null_counts, bint many):
        """[(name, rows)] of features the model gets no value for, in vector order; refuses them where it cannot cope."""
        cdef _Group group
        cdef Py_ssize_t g, c, r, index, n_missing
        counts = null_counts
        for g in range(len(self._groups)):
            group = <_Group>self._groups[g]
            for c in range(len(group.slots)):
                index = group.slots[c]
                if scratch.given[index]:
                    continue
                n_missing = 0
                for r in range(n_rows):
                    n_missing += scratch.statuses[r * self._n_stored + group.first + c] != VALUE_PRESENT
                if n_missing:
                    counts[index] = n_missing
        if not counts:
            return []
        missing = [((<_Slot>self._slots[i]).name, counts[i]) for i in sorted(counts)]
        if not self._accepts_missing:
            row = None
            if many:
                row = min([_first_nan(scratch, n_rows, self.n_features, i) for i in counts])
            raise RequestError(
                f"Model '{self.model}' version {self.version} cannot score missing values, got none for "
                f"{', '.join([name for name, _ in missing])}{f' (first at row {row})' if many else ''}. Send the values, "
                f"materialize them, or register a model with an imputer.",
                code="missing_not_allowed",
                row=row,
            )
        return missing

    cdef int _score(self, Scratch* scratch, Py_ssize_t n_rows) except -1:
        cdef ScoreStatus status
        cdef feature_t[:, ::1] rows
        cdef score_t[:, ::1] scores
        if self._scorer is not None:
            if n_rows < RELEASE_GIL_ROWS:
                status = self._scorer.score_rows(scratch.rows, n_rows, self.n_features, scratch.scores)
            else:
                with nogil:
                    status = self._scorer.score_rows(scratch.rows, n_rows, self.n_features, scratch.scores)
            if status != SCORE_OK:
                raise MemoryError(f"No memory for scoring {n_rows} rows")
            return 0
        matrix = np.empty((n_rows, self.n_features), dtype=np.float32)
        rows = matrix
        memcpy(&rows[0, 0], scratch.rows, n_rows * self.n_features * sizeof(feature_t))
        scores = np.ascontiguousarray(self._python_scorer.score(matrix), dtype=np.float64)
        if scores.shape[0] != n_rows or scores.shape[1] != self.n_outputs:
            raise StoreError(f"Expected scores of shape ({n_rows}, {self.n_outputs}), got {(<object>scores).shape}")
        memcpy(scratch.scores, &scores[0, 0], n_rows * self.n_outputs * sizeof(score_t))
        return 0

    cdef list _scores(self, Scratch* scratch, Py_ssize_t n_rows):
        cdef Py_ssize_t r
        return [self._row_score(scratch, r) for r in range(n_rows)]

    cdef object _row_score(self, Scratch* scratch, Py_ssize_t row):
        cdef Py_ssize_t k
        if self.n_outputs == 1:
            return scratch.scores[row]
        return [scratch.scores[row * self.n_outputs + k] for k in range(self.n_outputs)]


cdef Py_ssize_t _first_nan(Scratch* scratch, Py_ssize_t n_rows, Py_ssize_t n_features, Py_ssize_t index):
    cdef Py_ssize_t r
    for r in range(n_rows):
        if isnan(scratch.rows[r * n_features + index]):
            return r
    return n_rows


cdef void _read_rows(
    ServingPlan plan, Scratch* scratch, Py_ssize_t n_rows, GroupReader reader, Py_ssize_t first, int64_t now_us
) noexcept nogil:
    cdef Py_ssize_t r
    cdef int32_t length
    for r in range(n_rows):
        length = scratch.key_lengths[r]
        scratch.read_status[r] = reader.read_into(
            NULL if length < 0 else scratch.keys + r * MAX_KEY_BYTES, <size_t>max(length, 0), now_us,
            scratch.rows + r * plan.n_features,
            scratch.statuses + r * plan._n_stored + first,
            scratch.events + r * reader.n_views,
        )


cdef int32_t _put_int(uint8_t* key, int32_t length, object value, str name, Py_ssize_t row, bint many) except -2:
    cdef int64_t number
    cdef uint64_t bits
    cdef int i
    if type(value) is not int:
        raise RequestError(
            f"Expected an integer at {_where('entities', name, row, many)}, got {_show(value)}",
            code="wrong_type", row=row if many else None,
        )
    try:
        number = value
    except OverflowError:
        raise RequestError(
            f"Expected a 64-bit integer at {_where('entities', name, row, many)}, got {_show(value)}",
            code="not_finite", row=row if many else None,
        ) from None
    if length + 8 > MAX_KEY_BYTES - 2:
        raise _key_too_long(name, row, many)
    bits = <uint64_t>number ^ (<uint64_t>1 << 63)       # order-preserving: negative numbers sort first
    for i in range(8):
        key[length + i] = <uint8_t>(bits >> (56 - 8 * i))
    return length + 8


cdef int32_t _put_string(
    uint8_t* key, int32_t length, object value, bint prefixed, str name, Py_ssize_t row, bint many
) except -2:
    cdef Py_ssize_t size
    cdef const char* text
    if type(value) is not str:
        raise RequestError(
            f"Expected a string at {_where('entities', name, row, many)}, got {_show(value)}",
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


cdef object _changed_meanwhile(str part, str name):
    """Other threads run while rows are read; a list they shortened must not be read past its end."""
    return RequestError(f"The list at $.{part}.{name} became shorter while it was being scored", code="wrong_length")


cdef object _key_too_long(str name, Py_ssize_t row, bint many):
    return RequestError(
        f"Expected an entity key of at most {MAX_KEY_BYTES - 2} bytes, got a longer one at "
        f"{_where('entities', name, row, many)}",
        code="key_too_long", row=row if many else None,
    )


cdef feature_t _convert(_Slot slot, object value, Py_ssize_t row, bint many) except? -1:
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
                f"Expected a known category at {_where('features', slot.name, row, many)}, got {_show(value)}. "
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
        if not (fabs(number) < (INT64_BOUND if slot.kind == KIND_INT else FLOAT32_BOUND)):
            raise RequestError(
                f"Expected a {'64-bit integer' if slot.kind == KIND_INT else 'finite float32 number'} at {_where('features', slot.name, row, many)}, got {_show(value)}. "
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
        f"Expected {wanted} at {_where('features', slot.name, row, many)}, got {_show(value)}",
        code="wrong_type", row=row if many else None,
    )
