"""Questions as Python values -> feature vectors; see assembler.pxd for the contract. Owner: tiercel._hot.plan."""

from libc.math cimport NAN, isnan
from libc.stdint cimport uint16_t
from libc.string cimport memcpy

from tiercel._hot.clock cimport monotonic_ns
from tiercel._hot.output cimport Output, reserve
from tiercel._hot.prediction cimport KEY_ABSENT, STAGE_COMPUTE, STAGE_READ, Stopwatch
from tiercel._hot.reader cimport READ_MISSING, READ_OK
from tiercel._hot.typedefs cimport feature_t, int32_t, int64_t, uint8_t
from tiercel._hot.values cimport MAX_KEY_BYTES, Group, Slot, convert, put_int, put_string, refuse_read, require_rows, show
from tiercel._hot.vector cimport GroupStep, Scratch, VectorProgram

from tiercel.errors import RequestError
from tiercel.types import NO_EVENT_US

cdef int64_t NO_EVENT = NO_EVENT_US


cdef class Assembler:
    """Assembles one plan's vectors, and says what is wrong with what was sent.

    Args:
        model, version, schema: for messages.
        vectors: where everything goes.
        accepts_missing: whether the model can score NaN.
    """

    def __cinit__(self, str model, int version, schema, VectorProgram vectors not None, bint accepts_missing):
        self.model, self.version, self.schema, self.vectors = model, version, schema, vectors
        self.n_features, self._accepts_missing = vectors.n_features, accepts_missing

    cdef int64_t assemble(
        self, Scratch* scratch, Py_ssize_t n_rows, bint many, dict entities, dict features, int64_t now_us,
        Stopwatch* watch,
    ) except? -2:
        """Rows and missing counts from Python values; returns the age of the oldest value, -1 without one."""
        cdef int64_t oldest_us = NO_EVENT
        self._mark_given(scratch, features)
        self._read_groups(scratch, n_rows, entities, now_us, &oldest_us)
        watch.at[<int>STAGE_READ + 1] = monotonic_ns()
        self._fill_given(scratch, n_rows, features)
        if self.vectors.finish(scratch, n_rows, now_us) and not self._accepts_missing:
            self._refuse_missing(scratch, n_rows, many)
        watch.at[<int>STAGE_COMPUTE + 1] = monotonic_ns()
        return -1 if oldest_us == NO_EVENT else max(0, now_us - oldest_us)

    cdef int _mark_given(self, Scratch* scratch, dict features) except -1:
        """Note which features the request brings; refuse unknown ones and the absence of needed ones."""
        cdef VectorProgram vectors = self.vectors
        cdef Py_ssize_t i
        for name in features:
            found = vectors.slot_of.get(name)
            if found is None and name in vectors.computed_by:
                raise RequestError(
                    f"Expected features that can be sent, got {show(name)} at $.features, which on-demand feature view "
                    f"'{vectors.computed_by[name]}' computes. Send its inputs.",
                    code="computed_feature",
                )
            if found is None:
                raise RequestError(
                    f"Expected features of model '{self.model}' version {self.version}, got {show(name)} at "
                    f"$.features. Known: {', '.join(vectors.slot_of)}",
                    code="unknown_feature",
                )
            if (<Slot>found).index >= 0:
                scratch.given[(<Slot>found).index] = 1
        absent = [
            (<Slot>vectors.slots[vectors.required[i]]).name
            for i in range(vectors.n_required) if not scratch.given[vectors.required[i]]
        ]
        if absent:
            raise RequestError(
                f"Expected request-time features {', '.join(absent)} at $.features, got none of them. "
                f"Send null for a value that is not known.",
                code="missing_feature",
            )
        return 0

    cdef int _read_groups(
        self, Scratch* scratch, Py_ssize_t n_rows, dict entities, int64_t now_us, int64_t* oldest_us
    ) except -1:
        cdef VectorProgram vectors = self.vectors
        cdef const GroupStep* step
        cdef Group group
        cdef Py_ssize_t g
        for name in entities:
            if name not in vectors.join_keys:
                known = ", ".join(vectors.join_keys) or "none: every feature of this model comes with the request"
                raise RequestError(
                    f"Expected join keys of model '{self.model}' ({known}), got {show(name)} at $.entities",
                    code="unknown_entity_key",
                )
        oldest_us[0] = NO_EVENT
        for g in range(vectors.n_groups):
            group, step = <Group>vectors.groups[g], &vectors.groups_c[g]
            if not vectors.is_needed(scratch, n_rows, step):
                continue
            self._encode_keys(scratch, n_rows, group, entities)
            if n_rows < RELEASE_GIL_ROWS:
                vectors.read_group(scratch, n_rows, step, now_us)
            else:
                with nogil:
                    vectors.read_group(scratch, n_rows, step, now_us)
            self._check_reads(scratch, n_rows, group, entities)
            vectors.note_ages(scratch, n_rows, step, oldest_us)
        return 0

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
            if status == READ_OK or (status == READ_MISSING and not self.vectors.missing_entity_is_error):
                continue
            refuse_read(status, group.entity, group.key_names, entities, r, self.schema.name)
        return 0

    cdef int _fill_given(self, Scratch* scratch, Py_ssize_t n_rows, dict features) except -1:
        cdef VectorProgram vectors = self.vectors
        cdef Slot slot
        cdef Py_ssize_t r
        cdef int32_t place
        cdef feature_t value
        cdef bint many
        for name, column in features.items():
            slot = <Slot>vectors.slot_of[name]
            many = type(column) is list
            require_rows(column, n_rows, "features", name)
            place = vectors.wide_of[slot.index] if slot.index >= 0 else -1
            for r in range(n_rows):
                each = (<list>column)[r] if many else column
                value = convert(slot, each, r, many)
                if slot.index < 0:
                    continue
                scratch.rows[r * vectors.n_slots + slot.index] = value
                scratch.n_missing[slot.index] += isnan(value)
                if place >= 0:
                    scratch.wide[r * vectors.n_wide + place] = (
                        NAN if each is None else <double>value if vectors.wide_is_float32[slot.index] else <double>each
                    )
        return 0

    cdef int put_keys(self, Py_ssize_t n_rows, dict entities, Output* out) except -1:
        """The join keys as Prediction.keys wants them; one that was not needed and is not one counts as absent."""
        cdef int32_t length
        cdef uint16_t size
        cdef Py_ssize_t r
        cdef uint8_t* key
        for r in range(n_rows):
            for i, name in enumerate(self.vectors.join_keys):
                if not reserve(out, 2 + MAX_KEY_BYTES):
                    raise MemoryError(f"No memory for the keys of {n_rows} rows")
                value = entities.get(name)
                if type(value) is list:
                    value = (<list>value)[r] if r < len(<list>value) else None
                length, key = -1, out.data + out.size + 2
                if value is not None:
                    try:
                        if self.vectors.key_is_text[<Py_ssize_t>i]:
                            length = put_string(key, 0, value, False, name, r, False)
                        else:
                            length = put_int(key, 0, value, name, r, False)
                    except RequestError:
                        length = -1
                size = KEY_ABSENT if length < 0 else <uint16_t>length
                memcpy(out.data + out.size, &size, 2)
                out.size += 2 + max(length, 0)
        return 0

    cdef int _refuse_missing(self, Scratch* scratch, Py_ssize_t n_rows, bint many) except -1:
        indexes = [i for i in range(self.n_features) if scratch.n_missing[i]]
        row = None
        if many:
            row = min([_first_nan(scratch, n_rows, self.n_features, i) for i in indexes])
        raise RequestError(
            f"Model '{self.model}' version {self.version} cannot score missing values, got none for "
            f"{', '.join([(<Slot>self.vectors.slots[i]).name for i in indexes])}"
            f"{f' (first at row {row})' if many else ''}. Send the values, "
            f"materialize them, or register a model with an imputer.",
            code="missing_not_allowed",
            row=row,
        )


cdef Py_ssize_t _first_nan(Scratch* scratch, Py_ssize_t n_rows, Py_ssize_t n_features, Py_ssize_t index):
    cdef Py_ssize_t r
    for r in range(n_rows):
        if isnan(scratch.rows[r * n_features + index]):
            return r
    return n_rows
