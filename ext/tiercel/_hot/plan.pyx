"""Keys and request features -> scores; see plan.pxd for the contract. Owner: tiercel.serving.engine."""

from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from libc.math cimport isnan
from libc.string cimport memcpy, memset

import numpy as np

from tiercel._hot.payload cimport (
    CELL_NULL, KIND_NUMBER, KIND_STRING, Body, BodyReader, Cell, Column, FieldSpec, next_cell, put_key_part,
    rewind_column, to_feature,
)
from tiercel._hot.reader cimport READ_MISSING, READ_OK, VALUE_PRESENT, GroupReader, ReadStatus
from tiercel._hot.reply cimport ReplyForm, ReplyIds
from tiercel._hot.scorer cimport SCORE_OK, Scorer, ScoreStatus
from tiercel._hot.typedefs cimport feature_t, int32_t, int64_t, score_t, uint8_t
from tiercel._hot.values cimport (
    MAX_KEY_BYTES, Group, Slot, convert, count_rows, kind_of, put_int, put_string, refuse_read, require_rows, show,
)

from tiercel.errors import RequestError, SchemaMismatchError, StoreError
from tiercel.types import NO_EVENT_US, STATIC_EVENT_US, DType

cdef int64_t NO_EVENT = NO_EVENT_US
cdef int64_t STATIC_EVENT = STATIC_EVENT_US


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
        cdef Slot slot
        cdef Py_ssize_t i
        cdef Group group
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
            slot = Slot()
            slot.name, slot.index, slot.stored, slot.codes = name, index_of.get(name, -1), name in stored, None
            if name in stored:
                slot.kind = kind_of(stored[name].dtype)
                categories = base.categories.get(name, ()) if slot.kind == KIND_STRING else None
            elif name in request:
                slot.kind = kind_of(request[name].dtype)
                categories = request[name].categories
            else:
                slot.kind, categories = KIND_NUMBER, None
            if categories is not None:
                slot.codes = {category: float(code) for code, category in enumerate(categories)}
            self._slot_of[name] = slot
            if slot.index >= 0:
                self._slots.append(slot)
        join_keys = sorted({key.name for g in (() if schema is None else schema.groups) for key in g.keys})
        for group_index, group_schema in enumerate(() if schema is None else schema.groups):
            columns = [column for column in group_schema.columns if column.name in index_of]
            if not columns:
                continue
            group = Group(len(columns), len(group_schema.keys))
            slots = [(<Slot>self._slot_of[column.name]).index for column in columns]
            group.entity = group_schema.entity
            group.key_names = tuple(key.name for key in group_schema.keys)
            for i in range(group.n_columns):
                group.slots[i], group.view_of[i] = slots[i], columns[i].view
            for i, key in enumerate(group_schema.keys):
                group.key_is_text[i] = key.dtype is DType.STRING
                group.key_fields[i] = len(self._slot_of) + join_keys.index(key.name)
            group.first = self._n_stored
            self._n_stored += len(columns)
            self._max_views = max(self._max_views, len(group_schema.views))
            self._groups.append(group)
            self._readers.append(base.group_reader(group_index, [column.name for column in columns], slots))
        self._join_keys = frozenset(join_keys)
        self._reader = BodyReader(
            [(name, (<Slot>s).kind, (<Slot>s).index, (<Slot>s).codes) for name, s in self._slot_of.items()], join_keys
        )
        self._required = [(<Slot>s).index for s in self._slots if not (<Slot>s).stored]
        self._form = ReplyForm(
            self.model, self.version, self.signature.features, self.signature.classes, self.n_outputs
        )

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
        cdef int64_t age_us
        cdef Py_ssize_t n_rows = count_rows(entities, features)
        cdef bint many = n_rows >= 0
        if n_rows == 0:
            return False, [], None, []
        n_rows = n_rows if many else 1
        self._allocate(&scratch, n_rows)
        try:
            age_us = self._assemble(&scratch, n_rows, many, entities, features, now_us)
            return (
                not many,
                [self._row_score(&scratch, r) for r in range(n_rows)] if many else self._row_score(&scratch, 0),
                None if age_us < 0 else age_us,
                [((<Slot>self._slots[i]).name, scratch.n_missing[i])
                 for i in range(self.n_features) if scratch.n_missing[i]],
            )
        finally:
            _release(&scratch)

    cpdef bytes reply(self, dict entities, dict features, int64_t now_us, int kind, ReplyIds ids):
        """As `predict`, answering with a reply body (kind 0: JSON, 1: msgpack). Needs at least one row."""
        cdef Scratch scratch
        cdef int64_t age_us
        cdef Py_ssize_t n_rows = count_rows(entities, features)
        cdef bint many = n_rows >= 0
        if n_rows == 0 or kind not in (0, 1):
            raise RequestError("Expected at least one row, as JSON (0) or msgpack (1)")
        n_rows = n_rows if many else 1
        self._allocate(&scratch, n_rows)
        try:
            age_us = self._assemble(&scratch, n_rows, many, entities, features, now_us)
            return self._form.write(kind, ids, not many, n_rows, scratch.scores, age_us, scratch.n_missing)
        finally:
            _release(&scratch)

    def answer(self, const unsigned char[::1] body not None, int kind, int64_t now_us, ReplyIds ids not None):
        """`answer_body` for Python: the reply to a body (kind 0: JSON, 1: msgpack), or None to hand it on."""
        if body.shape[0] == 0 or kind not in (0, 1):
            return None
        return self.answer_body(&body[0], body.shape[0], kind, now_us, ids)

    cdef bytes answer_body(self, const uint8_t* data, Py_ssize_t size, int kind, int64_t now_us, ReplyIds ids):
        cdef Column few_columns[FEW_FIELDS]
        cdef uint8_t few_given[FEW_FIELDS]
        cdef Body body
        cdef Scratch scratch
        cdef int64_t age_us
        cdef Py_ssize_t n_rows, n_fields = self._reader.n_fields
        cdef void* block = NULL
        body.columns, body.given = few_columns, few_given
        if n_fields > FEW_FIELDS:
            block = PyMem_RawMalloc(n_fields * (sizeof(Column) + 1))
            if block is NULL:
                return None
            body.columns = <Column*>block
            body.given = <uint8_t*>block + n_fields * sizeof(Column)
        scratch.rows = NULL
        try:
            if not self._reader.read(data, size, kind, ids.max_rows, &body):
                return None
            n_rows = 1 if body.n_rows < 0 else body.n_rows
            self._allocate(&scratch, n_rows)
            if not self._assemble_body(
                &scratch, n_rows, &body, data + size, kind, now_us if body.now_us < 0 else body.now_us, &age_us
            ):
                return None
            return self._form.write(kind, ids, body.n_rows < 0, n_rows, scratch.scores, age_us, scratch.n_missing)
        except Exception:       # the general path meets it again and says what it is
            return None
        finally:
            if scratch.rows is not NULL:
                _release(&scratch)
            PyMem_RawFree(block)

    cdef int64_t _assemble(
        self, Scratch* scratch, Py_ssize_t n_rows, bint many, dict entities, dict features, int64_t now_us
    ) except? -2:
        """Rows, missing counts and scores from Python values; returns the age of the oldest value, -1 without one."""
        cdef int64_t oldest_us = NO_EVENT
        self._mark_given(scratch, features)
        self._read_groups(scratch, n_rows, entities, now_us, &oldest_us)
        self._fill_given(scratch, n_rows, features)
        if self._count_missing(scratch, n_rows) and not self._accepts_missing:
            self._refuse_missing(scratch, n_rows, many)
        self._score(scratch, n_rows)
        return -1 if oldest_us == NO_EVENT else max(0, now_us - oldest_us)

    cdef bint _assemble_body(
        self, Scratch* scratch, Py_ssize_t n_rows, Body* body, const uint8_t* end, int kind, int64_t now_us,
        int64_t* age_us,
    ) except -1:
        """As `_assemble`, from a body; False to hand it on."""
        cdef FieldSpec* field
        cdef Column* column
        cdef Cell room
        cdef const Cell* cell
        cdef feature_t value
        cdef feature_t* out
        cdef Py_ssize_t f, r, g
        cdef int64_t oldest_us = NO_EVENT
        memset(scratch.given, 0, self.n_features)
        memset(scratch.n_missing, 0, self.n_features * sizeof(int32_t))
        for f in range(self._reader.n_features):
            if body.given[f] and self._reader.features[f].index >= 0:
                scratch.given[self._reader.features[f].index] = 1
        for index in self._required:
            if not scratch.given[<Py_ssize_t>index]:
                return False
        for g in range(len(self._groups)):
            if not self._read_group_body(
                scratch, n_rows, <Group>self._groups[g], <GroupReader>self._readers[g], body, end, kind, now_us,
                &oldest_us,
            ):
                return False
        for f in range(self._reader.n_features):
            if not body.given[f]:
                continue
            field, column = &self._reader.features[f], &body.columns[f]
            rewind_column(column)
            out = NULL if field.index < 0 else scratch.rows + field.index
            for r in range(n_rows):
                cell = next_cell(column, end, kind, &room)
                if not to_feature(cell, field.kind, &field.categories, &value):
                    return False
                if out is not NULL:
                    out[r * self.n_features] = value
                    scratch.n_missing[field.index] += cell.type == CELL_NULL
        if self._count_missing(scratch, n_rows) and not self._accepts_missing:
            return False
        self._score(scratch, n_rows)
        age_us[0] = -1 if oldest_us == NO_EVENT else max(0, now_us - oldest_us)
        return True

    cdef bint _read_group_body(
        self, Scratch* scratch, Py_ssize_t n_rows, Group group, GroupReader reader, Body* body, const uint8_t* end,
        int kind, int64_t now_us, int64_t* oldest_us,
    ) except -1:
        """One group's rows for the keys of a body; False to hand it on."""
        cdef Cell room
        cdef const Cell* cell
        cdef uint8_t* key
        cdef int32_t length
        cdef Py_ssize_t r, part
        cdef bint is_null
        if not self._is_needed(scratch, n_rows, group):
            return True
        for part in range(group.n_parts):
            if not body.given[group.key_fields[part]]:
                return False
            rewind_column(&body.columns[group.key_fields[part]])
        for r in range(n_rows):
            key, length, is_null = scratch.keys + r * MAX_KEY_BYTES, 0, False
            for part in range(group.n_parts):
                cell = next_cell(&body.columns[group.key_fields[part]], end, kind, &room)
                if cell.type == CELL_NULL:
                    is_null = True
                    continue
                length = put_key_part(
                    key, length, MAX_KEY_BYTES - 2, cell, group.key_is_text[part], part < group.n_parts - 1
                )
                if length < 0:
                    return False
            scratch.key_lengths[r] = -1 if is_null else length
        self._read_group(scratch, n_rows, reader, group.first, now_us)
        for r in range(n_rows):
            if scratch.read_status[r] > READ_MISSING:
                return False
            if scratch.read_status[r] == READ_MISSING and self._missing_entity_is_error:
                return False
        self._note_ages(scratch, n_rows, group, reader.n_views, oldest_us)
        return True

    cdef int _allocate(self, Scratch* scratch, Py_ssize_t n_rows) except -1:
        # Widest types first keeps every part aligned within the one block; `rows` is the block's start because it is
        # what gets freed, so scores (8 bytes) start at a multiple of 8 after it.
        cdef size_t n = <size_t>n_rows
        cdef size_t rows_bytes = (n * <size_t>self.n_features * sizeof(feature_t) + 7) & ~(<size_t>7)
        cdef size_t scores_bytes = n * <size_t>self.n_outputs * sizeof(score_t)
        cdef size_t events_bytes = n * <size_t>self._max_views * sizeof(int64_t)
        cdef size_t total = (
            rows_bytes + scores_bytes + events_bytes + n * sizeof(int32_t)
            + n * <size_t>self._n_stored + n * MAX_KEY_BYTES + n + <size_t>self.n_features * (1 + sizeof(int32_t))
        )
        cdef uint8_t* block = scratch.few
        if total > SCRATCH_BYTES:
            block = <uint8_t*>PyMem_RawMalloc(total)
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
        scratch.n_missing = <int32_t*>block
        block += <size_t>self.n_features * sizeof(int32_t)
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
        cdef Slot slot
        memset(scratch.given, 0, self.n_features)
        memset(scratch.n_missing, 0, self.n_features * sizeof(int32_t))
        for name in features:
            found = self._slot_of.get(name)
            if found is None:
                raise RequestError(
                    f"Expected features of model '{self.model}' version {self.version}, got {show(name)} at "
                    f"$.features. Known: {', '.join(self._slot_of)}",
                    code="unknown_feature",
                )
            if (<Slot>found).index >= 0:
                scratch.given[(<Slot>found).index] = 1
        for slot in self._slots:
            if not slot.stored and not scratch.given[slot.index]:
                absent = [
                    (<Slot>s).name for s in self._slots
                    if not (<Slot>s).stored and not scratch.given[(<Slot>s).index]
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
        cdef Group group
        cdef GroupReader reader
        cdef Py_ssize_t g
        for name in entities:
            if name not in self._join_keys:
                known = ", ".join(sorted(self._join_keys)) or "none: every feature of this model comes with the request"
                raise RequestError(
                    f"Expected join keys of model '{self.model}' ({known}), got {show(name)} at $.entities",
                    code="unknown_entity_key",
                )
        for g in range(len(self._groups)):
            group = <Group>self._groups[g]
            reader = <GroupReader>self._readers[g]
            if not self._is_needed(scratch, n_rows, group):
                continue
            self._encode_keys(scratch, n_rows, group, entities)
            self._read_group(scratch, n_rows, reader, group.first, now_us)
            self._check_reads(scratch, n_rows, group, entities)
            self._note_ages(scratch, n_rows, group, reader.n_views, oldest_us)
        return 0

    cdef bint _is_needed(self, Scratch* scratch, Py_ssize_t n_rows, Group group) noexcept:
        """Whether any feature of a group is not brought by the request; of a group without one all count as present."""
        cdef Py_ssize_t c, r
        for c in range(group.n_columns):
            if not scratch.given[group.slots[c]]:
                return True
        for r in range(n_rows):
            memset(scratch.statuses + r * self._n_stored + group.first, VALUE_PRESENT, group.n_columns)
        return False

    cdef void _read_group(
        self, Scratch* scratch, Py_ssize_t n_rows, GroupReader reader, Py_ssize_t first, int64_t now_us
    ) noexcept:
        if n_rows < RELEASE_GIL_ROWS:
            _read_rows(self, scratch, n_rows, reader, first, now_us)
        else:
            with nogil:
                _read_rows(self, scratch, n_rows, reader, first, now_us)

    cdef int _encode_keys(self, Scratch* scratch, Py_ssize_t n_rows, Group group, dict entities) except -1:
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
            require_rows(entities[name], n_rows, "entities", name)
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
                if group.key_is_text[part]:
                    length = put_string(key, length, value, part < n_parts - 1, group.key_names[part], r, many)
                else:
                    length = put_int(key, length, value, group.key_names[part], r, many)
            scratch.key_lengths[r] = length
        return 0

    cdef int _check_reads(self, Scratch* scratch, Py_ssize_t n_rows, Group group, dict entities) except -1:
        cdef Py_ssize_t r
        cdef uint8_t status
        for r in range(n_rows):
            status = scratch.read_status[r]
            if status == READ_OK or (status == READ_MISSING and not self._missing_entity_is_error):
                continue
            refuse_read(status, group.entity, group.key_names, entities, r, self.schema.name)
        return 0

    cdef void _note_ages(
        self, Scratch* scratch, Py_ssize_t n_rows, Group group, Py_ssize_t n_views, int64_t* oldest_us
    ) noexcept:
        """Lower `oldest_us` to the earliest event time of any value that the model is given from this group."""
        cdef Py_ssize_t r, c, n_columns = group.n_columns
        cdef int64_t event_us
        cdef uint8_t* statuses
        for r in range(n_rows):
            if scratch.read_status[r] != READ_OK:
                continue
            statuses = scratch.statuses + r * self._n_stored + group.first
            for c in range(n_columns):
                if statuses[c] != VALUE_PRESENT or scratch.given[group.slots[c]]:
                    continue
                event_us = scratch.events[r * n_views + group.view_of[c]]
                if event_us != NO_EVENT and event_us != STATIC_EVENT and (
                    oldest_us[0] == NO_EVENT or event_us < oldest_us[0]
                ):
                    oldest_us[0] = event_us

    cdef int _fill_given(self, Scratch* scratch, Py_ssize_t n_rows, dict features) except -1:
        cdef Slot slot
        cdef Py_ssize_t r, n_null
        cdef feature_t* out
        cdef feature_t value
        cdef bint many
        for name, column in features.items():
            slot = <Slot>self._slot_of[name]
            many = type(column) is list
            require_rows(column, n_rows, "features", name)
            n_null = 0
            if slot.index < 0:
                for r in range(n_rows if many else 1):
                    convert(slot, (<list>column)[r] if many else column, r, many)
                continue
            out = scratch.rows + slot.index
            if many:
                for r in range(n_rows):
                    value = convert(slot, (<list>column)[r], r, True)
                    n_null += isnan(value)
                    out[r * self.n_features] = value
            else:
                value = convert(slot, column, 0, False)
                n_null = n_rows if isnan(value) else 0
                for r in range(n_rows):
                    out[r * self.n_features] = value
            scratch.n_missing[slot.index] = <int32_t>n_null
        return 0

    cdef bint _count_missing(self, Scratch* scratch, Py_ssize_t n_rows) noexcept:
        """Add what the store has no value for to n_missing; whether anything is missing at all."""
        cdef Group group
        cdef Py_ssize_t g, c, r, i
        cdef bint any_missing = False
        for g in range(len(self._groups)):
            group = <Group>self._groups[g]
            for c in range(group.n_columns):
                if scratch.given[group.slots[c]]:
                    continue
                for r in range(n_rows):
                    scratch.n_missing[group.slots[c]] += (
                        scratch.statuses[r * self._n_stored + group.first + c] != VALUE_PRESENT
                    )
        for i in range(self.n_features):
            any_missing |= scratch.n_missing[i] != 0
        return any_missing

    cdef int _refuse_missing(self, Scratch* scratch, Py_ssize_t n_rows, bint many) except -1:
        indexes = [i for i in range(self.n_features) if scratch.n_missing[i]]
        row = None
        if many:
            row = min([_first_nan(scratch, n_rows, self.n_features, i) for i in indexes])
        raise RequestError(
            f"Model '{self.model}' version {self.version} cannot score missing values, got none for "
            f"{', '.join([(<Slot>self._slots[i]).name for i in indexes])}"
            f"{f' (first at row {row})' if many else ''}. Send the values, "
            f"materialize them, or register a model with an imputer.",
            code="missing_not_allowed",
            row=row,
        )

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


cdef void _release(Scratch* scratch) noexcept:
    if <uint8_t*>scratch.rows is not scratch.few:
        PyMem_RawFree(scratch.rows)
