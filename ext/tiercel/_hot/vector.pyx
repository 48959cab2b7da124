"""Feature vectors of one plan; see vector.pxd for the contract. Owner: tiercel._hot.plan."""

from libc.math cimport NAN, isnan
from libc.stdint cimport uint16_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memmove, memset

from tiercel._hot.output cimport Output, put, reserve
from tiercel._hot.payload cimport (
    BODY_TENSORS, CELL_NULL, KIND_NUMBER, KIND_STRING, Body, BodyReader, Cell, Column, FieldSpec, next_cell, put_key_part,
    rewind_column, to_feature,
)
from tiercel._hot.prediction cimport KEY_ABSENT
from tiercel._hot.reader cimport READ_MISSING, READ_OK, VALUE_PRESENT, GroupReader, RowProgram, read_row
from tiercel._hot.typedefs cimport feature_t, int32_t, int64_t, score_t, uint8_t
from tiercel._hot.values cimport MAX_KEY_BYTES, Group, Slot, kind_of

from tiercel.errors import SchemaMismatchError
from tiercel.types import NO_EVENT_US, NOW_US, STATIC_EVENT_US, DType

cdef int64_t NO_EVENT = NO_EVENT_US
cdef int64_t STATIC_EVENT = STATIC_EVENT_US

cdef extern from *:
    """
    /* The number that to_feature() accepted, as float64; only of cells that are no text. */
    static inline double cell_number(const Cell *cell) {
        switch (cell->type) {
        case CELL_NULL: return NAN;
        case CELL_FLOAT: return cell->as.number;
        default: return (double)cell->as.integer;
        }
    }
    """
    double cell_number(const Cell* cell) noexcept nogil

cdef extern from "tensor_values.h" nogil:
    bint is_plain_fp32(const Column* column, int kind)
    bint fill_fp32(const Column* column, int64_t n_rows, float* out, int64_t step, int32_t* n_missing)


cdef class VectorProgram:
    """Wires names to slots.

    Args:
        what: the model, for messages.
        signature: `tiercel.types.Signature`; its features are the vector's order.
        schema: `tiercel.types.ServiceSchema`, or None: all features come with the request.
        base: the service's `OnlineBase`, or None.
        transforms: one per `schema.transforms`, each with `schema` and `address` of its C function; kept alive.

    Raises:
        SchemaMismatchError: the signature names a feature the service does not have, or a transform is missing.
    """

    def __cinit__(self, str what, signature, schema, base, transforms):
        self.n_features, self._n_outputs = len(signature.features), signature.n_outputs
        self.missing_entity_is_error = schema is not None and schema.on_missing_entity == "error"
        self._transforms = tuple(transforms)
        self._now_place = -1
        stored = {} if schema is None else {column.name: column for g in schema.groups for column in g.columns}
        request = {} if schema is None else {field.name: field for field in schema.request_fields}
        self.computed_by = {} if schema is None else {
            output.name: transform.name for transform in schema.transforms for output in transform.outputs
        }
        for name in signature.features:
            if schema is not None and name not in stored and name not in request and name not in self.computed_by:
                raise SchemaMismatchError(
                    f"{what} expects feature '{name}', which feature service '{schema.name}' does not have. Register the "
                    f"model with the service it was trained on."
                )
        steps = self._used_transforms(what, signature, schema)
        inputs = list(dict.fromkeys([name for step in steps for name in step.schema.inputs]))
        for name in inputs:
            # SAFETY: nothing else writes a transform's input, and text is no number.
            field = stored.get(name) or request.get(name)
            if name != NOW_US and (field is None or field.dtype is DType.STRING):
                raise SchemaMismatchError(
                    f"{what}: expected every input of an on-demand feature view of feature service '{schema.name}' to be a "
                    f"number that is stored or comes with the request, got '{name}'. Run `tiercel apply`."
                )
        if len(set(signature.features)) < len(signature.features):
            raise SchemaMismatchError(f"{what}: expected every feature once, got {', '.join(signature.features)}")
        self.n_wide = len(inputs)
        place_of = {name: place for place, name in enumerate(inputs)}
        self._now_place = place_of.get(NOW_US, -1)
        # A feature of the service that this model does not use may be sent all the same: it is checked and left out, so
        # that one request fits champion and challenger.
        names = [*signature.features, *[name for name in inputs if name != NOW_US and name not in signature.features]]
        self.n_slots = len(names)
        index_of = {name: index for index, name in enumerate(names)}
        others = [name for name in (*stored, *request) if name not in index_of]
        self._make_slots(names, others, stored, request, base, place_of)
        self._make_groups(schema, base, index_of, place_of)
        self._make_transforms(steps, place_of, index_of)
        self.body_reader = BodyReader(
            [
                (name, (<Slot>slot).kind, (<Slot>slot).index, (<Slot>slot).codes)
                for name, slot in self.slot_of.items()
            ],
            self.join_keys,
        )

    def __dealloc__(self):
        cdef Py_ssize_t i
        if self.transforms_c is not NULL:
            for i in range(self.n_transforms):
                free(self.transforms_c[i].inputs)
                free(self.transforms_c[i].outputs)
        free(self.transforms_c)
        free(self.groups_c)
        free(self.wide_of)
        free(self.wide_is_float32)
        free(self.computed)
        free(self.required)
        free(self.key_is_text)

    def _used_transforms(self, str what, signature, schema):
        """The transforms that compute any feature of this model."""
        used = {self.computed_by[name] for name in signature.features if name in self.computed_by}
        given = {transform.schema.name: transform for transform in self._transforms}
        wanted = [transform for transform in (() if schema is None else schema.transforms) if transform.name in used]
        for transform in wanted:
            if transform.name not in given or given[transform.name].schema != transform:
                raise SchemaMismatchError(
                    f"{what} needs on-demand feature view '{transform.name}' of feature service '{schema.name}', which "
                    f"is not compiled, or from another definition"
                )
        return [given[transform.name] for transform in wanted]

    def _make_slots(self, names, others, stored, request, base, place_of):
        cdef Slot slot
        cdef Py_ssize_t index
        self.slot_of, self.slots = {}, []
        self.wide_of = <int32_t*>_zeroed(self.n_slots, sizeof(int32_t))
        self.wide_is_float32 = <uint8_t*>_zeroed(self.n_slots, 1)
        self.computed = <uint8_t*>_zeroed(self.n_slots, 1)
        self.required = <int32_t*>_zeroed(self.n_slots, sizeof(int32_t))
        for index, name in enumerate([*names, *others]):
            slot = Slot()
            slot.name, slot.index, slot.stored, slot.codes = name, index if index < self.n_slots else -1, name in stored, None
            dtype = None
            if name in stored:
                dtype = stored[name].dtype
                slot.kind = kind_of(dtype)
                categories = base.categories.get(name, ()) if slot.kind == KIND_STRING else None
            elif name in request:
                dtype = request[name].dtype
                slot.kind = kind_of(dtype)
                categories = request[name].categories
            else:
                slot.kind, categories = KIND_NUMBER, None
            if categories is not None:
                slot.codes = {category: float(code) for code, category in enumerate(categories)}
            if slot.index < 0:
                self.slot_of[name] = slot
                continue
            self.slots.append(slot)
            self.wide_of[index] = place_of.get(name, -1)
            self.wide_is_float32[index] = dtype is DType.FLOAT32
            if name in self.computed_by:
                self.computed[index] = 1
                continue
            self.slot_of[name] = slot
            if not slot.stored:
                self.required[self.n_required] = <int32_t>index
                self.n_required += 1

    def _make_groups(self, schema, base, index_of, place_of):
        cdef Group group
        cdef GroupReader reader
        cdef GroupStep* step
        cdef Py_ssize_t i
        self.groups, self._readers = [], []
        groups = () if schema is None else schema.groups
        is_text = {key.name: key.dtype is DType.STRING for g in groups for key in g.keys}
        self.join_keys = tuple(sorted(is_text))
        self.n_join_keys = len(self.join_keys)
        self.key_is_text = <uint8_t*>_zeroed(self.n_join_keys, 1)
        for i, name in enumerate(self.join_keys):
            self.key_is_text[i] = is_text[name]
        self.groups_c = <GroupStep*>_zeroed(len(groups), sizeof(GroupStep))
        for group_index, group_schema in enumerate(groups):
            columns = [column for column in group_schema.columns if column.name in index_of]
            if not columns:
                continue
            group = Group(len(columns), len(group_schema.keys))
            slots = [index_of[column.name] for column in columns]
            group.entity = group_schema.entity
            group.key_names = tuple([key.name for key in group_schema.keys])
            for i in range(group.n_columns):
                group.slots[i], group.view_of[i] = slots[i], columns[i].view
            for i, key in enumerate(group_schema.keys):
                group.key_is_text[i] = key.dtype is DType.STRING
                group.key_fields[i] = len(self.slot_of) + self.join_keys.index(key.name)
            group.first = self.n_stored
            reader = base.group_reader(group_index, [column.name for column in columns], slots, place_of)
            step = &self.groups_c[self.n_groups]
            step.reader = &reader.program
            step.slots, step.view_of, step.key_fields = group.slots, group.view_of, group.key_fields
            step.key_is_text, step.n_columns, step.n_parts = group.key_is_text, group.n_columns, group.n_parts
            step.first = group.first
            self.n_stored += len(columns)
            self._max_views = max(self._max_views, len(group_schema.views))
            self.n_groups += 1
            self.groups.append(group)
            self._readers.append(reader)

    def _make_transforms(self, steps, place_of, index_of):
        cdef TransformStep* step
        cdef size_t address
        cdef Py_ssize_t i
        self.transforms_c = <TransformStep*>_zeroed(len(steps), sizeof(TransformStep))
        for transform in steps:
            inputs, outputs = transform.schema.inputs, transform.schema.outputs
            if max(len(inputs), len(outputs)) > MAX_TRANSFORM_VALUES:
                raise SchemaMismatchError(
                    f"On-demand feature view '{transform.schema.name}': expected at most {MAX_TRANSFORM_VALUES} inputs and "
                    f"outputs, got {len(inputs)} and {len(outputs)}"
                )
            step = &self.transforms_c[self.n_transforms]
            self.n_transforms += 1
            address = transform.address
            step.call = <transform_t>address
            step.n_inputs, step.n_outputs = <int32_t>len(inputs), <int32_t>len(outputs)
            step.inputs = <int32_t*>_zeroed(step.n_inputs, sizeof(int32_t))
            step.outputs = <int32_t*>_zeroed(step.n_outputs, sizeof(int32_t))
            for i, name in enumerate(inputs):
                step.inputs[i] = place_of[name]
            for i, output in enumerate(outputs):
                step.outputs[i] = index_of.get(output.name, -1)

    # -- one call --------------------------------------------------------------------------------------------------

    cdef bint begin(self, Scratch* scratch, Py_ssize_t n_rows) noexcept nogil:
        # Widest types first keeps every part aligned within the one block; `rows` is the block's start because it is
        # what gets freed, so what follows it starts at a multiple of 8.
        cdef size_t n = <size_t>n_rows
        cdef size_t rows_bytes = (n * <size_t>self.n_slots * sizeof(feature_t) + 7) & ~(<size_t>7)
        cdef size_t wide_bytes = n * <size_t>self.n_wide * sizeof(double)
        cdef size_t scores_bytes = n * <size_t>self._n_outputs * sizeof(score_t)
        cdef size_t events_bytes = n * <size_t>self._max_views * sizeof(int64_t)
        cdef size_t total = (
            rows_bytes + wide_bytes + scores_bytes + events_bytes + n * sizeof(int32_t)
            + n * <size_t>self.n_stored + n * MAX_KEY_BYTES + n + <size_t>self.n_slots * (1 + sizeof(int32_t))
        )
        cdef uint8_t* block = scratch.few
        if total > SCRATCH_BYTES:
            block = <uint8_t*>malloc(total)
        scratch.rows = <feature_t*>block
        if block is NULL:
            return False
        block += rows_bytes
        scratch.wide = <double*>block
        block += wide_bytes
        scratch.scores = <score_t*>block
        block += scores_bytes
        scratch.events = <int64_t*>block
        block += events_bytes
        scratch.key_lengths = <int32_t*>block
        block += n * sizeof(int32_t)
        scratch.n_missing = <int32_t*>block
        block += <size_t>self.n_slots * sizeof(int32_t)
        scratch.statuses = block
        block += n * <size_t>self.n_stored
        scratch.keys = block
        block += n * MAX_KEY_BYTES
        scratch.read_status = block
        block += n
        scratch.given = block
        memset(scratch.given, 0, self.n_slots)
        memset(scratch.n_missing, 0, self.n_slots * sizeof(int32_t))
        return True

    cdef bint mark_body(self, Scratch* scratch, const Body* body) noexcept nogil:
        cdef Py_ssize_t f
        for f in range(self.body_reader.n_features):
            if body.given[f] and self.body_reader.features[f].index >= 0:
                scratch.given[self.body_reader.features[f].index] = 1
        for f in range(self.n_required):
            if not scratch.given[self.required[f]]:
                return False
        return True

    cdef bint read_body(
        self, Scratch* scratch, Py_ssize_t n_rows, Body* body, const uint8_t* end, int kind, int64_t now_us,
        int64_t* oldest_us,
    ) noexcept nogil:
        cdef const GroupStep* group
        cdef Cell room
        cdef const Cell* cell
        cdef uint8_t* key
        cdef int32_t length
        cdef Py_ssize_t g, r, part
        cdef bint is_null
        oldest_us[0] = NO_EVENT
        for g in range(self.n_groups):
            group = &self.groups_c[g]
            if not self.is_needed(scratch, n_rows, group):
                continue
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
            self.read_group(scratch, n_rows, group, now_us)
            for r in range(n_rows):
                if scratch.read_status[r] > READ_MISSING:
                    return False
                if scratch.read_status[r] == READ_MISSING and self.missing_entity_is_error:
                    return False
            self.note_ages(scratch, n_rows, group, oldest_us)
        return True

    cdef bint fill_body(
        self, Scratch* scratch, Py_ssize_t n_rows, Body* body, const uint8_t* end, int kind
    ) noexcept nogil:
        cdef const FieldSpec* field
        cdef Column* column
        cdef Cell room
        cdef const Cell* cell
        cdef feature_t value
        cdef Py_ssize_t f, r, slot
        cdef int32_t place
        for f in range(self.body_reader.n_features):
            if not body.given[f]:
                continue
            field, column = &self.body_reader.features[f], &body.columns[f]
            slot = field.index
            place = self.wide_of[slot] if slot >= 0 else -1
            # PERF: of a batch of vectors the cells would take longer than all else but the scores (bench_oip).
            if kind == BODY_TENSORS and slot >= 0 and place < 0 and is_plain_fp32(column, field.kind):
                if not fill_fp32(column, n_rows, scratch.rows + slot, self.n_slots, &scratch.n_missing[slot]):
                    return False
                continue
            rewind_column(column)
            for r in range(n_rows):
                cell = next_cell(column, end, kind, &room)
                if not to_feature(cell, field.kind, &field.categories, &value):
                    return False
                if slot < 0:
                    continue
                scratch.rows[r * self.n_slots + slot] = value
                scratch.n_missing[slot] += cell.type == CELL_NULL
                if place >= 0:
                    scratch.wide[r * self.n_wide + place] = (
                        <double>value if self.wide_is_float32[slot] else cell_number(cell)
                    )
        return True

    cdef bint put_body_keys(
        self, Py_ssize_t n_rows, Body* body, const uint8_t* end, int kind, Output* out
    ) noexcept nogil:
        cdef Py_ssize_t first = self.body_reader.n_features, k, r
        cdef Cell room
        cdef const Cell* cell
        cdef int32_t length
        cdef uint16_t size
        for k in range(self.n_join_keys):
            if body.given[first + k]:
                rewind_column(&body.columns[first + k])
        for r in range(n_rows):
            for k in range(self.n_join_keys):
                if not reserve(out, 2 + MAX_KEY_BYTES):
                    return False
                length = -1
                if body.given[first + k]:
                    cell = next_cell(&body.columns[first + k], end, kind, &room)
                    if cell.type != CELL_NULL:
                        length = put_key_part(out.data + out.size + 2, 0, MAX_KEY_BYTES - 2, cell, self.key_is_text[k], False)
                size = KEY_ABSENT if length < 0 else <uint16_t>length
                memcpy(out.data + out.size, &size, 2)
                out.size += 2 + max(length, 0)
        return True

    cdef bint is_needed(self, Scratch* scratch, Py_ssize_t n_rows, const GroupStep* group) noexcept nogil:
        cdef Py_ssize_t c, r
        for c in range(group.n_columns):
            if not scratch.given[group.slots[c]]:
                return True
        for r in range(n_rows):
            memset(scratch.statuses + r * self.n_stored + group.first, VALUE_PRESENT, group.n_columns)
        return False

    cdef void read_group(
        self, Scratch* scratch, Py_ssize_t n_rows, const GroupStep* group, int64_t now_us
    ) noexcept nogil:
        cdef Py_ssize_t r
        cdef int32_t length
        for r in range(n_rows):
            length = scratch.key_lengths[r]
            scratch.read_status[r] = read_row(
                group.reader, NULL if length < 0 else scratch.keys + r * MAX_KEY_BYTES, <size_t>max(length, 0), now_us,
                scratch.rows + r * self.n_slots,
                scratch.statuses + r * self.n_stored + group.first,
                scratch.events + r * group.reader.n_views,
                NULL if self.n_wide == 0 else scratch.wide + r * self.n_wide,
            )

    cdef void note_ages(
        self, Scratch* scratch, Py_ssize_t n_rows, const GroupStep* group, int64_t* oldest_us
    ) noexcept nogil:
        """Lower `oldest_us` to the earliest event time of any value that the vector takes from this group."""
        cdef Py_ssize_t r, c
        cdef int64_t event_us
        cdef uint8_t* statuses
        for r in range(n_rows):
            if scratch.read_status[r] != READ_OK:
                continue
            statuses = scratch.statuses + r * self.n_stored + group.first
            for c in range(group.n_columns):
                if statuses[c] != VALUE_PRESENT or scratch.given[group.slots[c]]:
                    continue
                event_us = scratch.events[r * group.reader.n_views + group.view_of[c]]
                if event_us != NO_EVENT and event_us != STATIC_EVENT and (
                    oldest_us[0] == NO_EVENT or event_us < oldest_us[0]
                ):
                    oldest_us[0] = event_us

    cdef bint finish(self, Scratch* scratch, Py_ssize_t n_rows, int64_t now_us) noexcept nogil:
        cdef const GroupStep* group
        cdef Py_ssize_t g, c, r, i
        cdef bint any_missing = False
        for g in range(self.n_groups):
            group = &self.groups_c[g]
            for c in range(group.n_columns):
                if scratch.given[group.slots[c]]:
                    continue
                for r in range(n_rows):
                    scratch.n_missing[group.slots[c]] += (
                        scratch.statuses[r * self.n_stored + group.first + c] != VALUE_PRESENT
                    )
        self._transform(scratch, n_rows, now_us)
        for i in range(self.n_features):
            any_missing |= scratch.n_missing[i] != 0
        if self.n_slots > self.n_features:
            for r in range(1, n_rows):
                memmove(
                    scratch.rows + r * self.n_features, scratch.rows + r * self.n_slots,
                    self.n_features * sizeof(feature_t),
                )
        return any_missing

    cdef void _transform(self, Scratch* scratch, Py_ssize_t n_rows, int64_t now_us) noexcept nogil:
        cdef double inputs[MAX_TRANSFORM_VALUES]
        cdef double outputs[MAX_TRANSFORM_VALUES]
        cdef const TransformStep* step
        cdef double* wide
        cdef feature_t value
        cdef Py_ssize_t t, r, i
        for r in range(n_rows):
            wide = scratch.wide + r * self.n_wide
            if self._now_place >= 0:
                wide[self._now_place] = <double>now_us
            for t in range(self.n_transforms):
                step = &self.transforms_c[t]
                for i in range(step.n_inputs):
                    inputs[i] = wide[step.inputs[i]]
                step.call(inputs, outputs)
                for i in range(step.n_outputs):
                    if step.outputs[i] < 0:
                        continue
                    value = <feature_t>outputs[i]
                    scratch.rows[r * self.n_slots + step.outputs[i]] = value
                    scratch.n_missing[step.outputs[i]] += isnan(value)


cdef void* _zeroed(Py_ssize_t n, size_t size) except NULL:
    cdef void* block = calloc(<size_t>max(n, 1), size)
    if block is NULL:
        raise MemoryError("No memory for a plan")
    return block


cdef void release(Scratch* scratch) noexcept nogil:
    if <uint8_t*>scratch.rows is not scratch.few:
        free(scratch.rows)
