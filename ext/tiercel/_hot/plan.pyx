"""Keys and request features -> scores; see plan.pxd for the contract. Owner: tiercel.serving.engine."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.math cimport NAN, isnan
from libc.stdint cimport uint16_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, CLOCK_REALTIME, clock_gettime, timespec

import numpy as np

from tiercel._hot.output cimport Output, reserve
from tiercel._hot.payload cimport Body, Column
from tiercel._hot.prediction cimport (
    KEY_ABSENT, N_STAGES, PREDICTION_FAST, PREDICTION_MANY, STAGE_COMPUTE, STAGE_PARSE, STAGE_READ, STAGE_REPLY,
    STAGE_SCORE, Prediction,
)
from tiercel._hot.reader cimport READ_MISSING, READ_OK
from tiercel._hot.recorder cimport PlanRecorder
from tiercel._hot.reply cimport ReplyForm, ReplyIds
from tiercel._hot.scorer cimport SCORE_OK, Scorer, ScoreStatus
from tiercel._hot.typedefs cimport feature_t, int32_t, int64_t, score_t, uint8_t, uint32_t, uint64_t
from tiercel._hot.values cimport (
    MAX_KEY_BYTES, Group, Slot, convert, count_rows, put_int, put_string, refuse_read, require_rows, show,
)
from tiercel._hot.vector cimport GroupStep, Scratch, VectorProgram, release

from tiercel.errors import RequestError, SchemaMismatchError, StoreError
from tiercel.types import NO_EVENT_US

cdef int64_t NO_EVENT = NO_EVENT_US


cdef int64_t monotonic_ns() noexcept nogil:
    cdef timespec at
    clock_gettime(CLOCK_MONOTONIC, &at)
    return <int64_t>at.tv_sec * 1_000_000_000 + at.tv_nsec


cdef int64_t wall_us() noexcept nogil:
    cdef timespec at
    clock_gettime(CLOCK_REALTIME, &at)
    return <int64_t>at.tv_sec * 1_000_000 + at.tv_nsec // 1000


cdef inline void _lap(Stopwatch* watch, int stage) noexcept nogil:
    """The end of `stage`, if anybody wants to know."""
    if watch is not NULL:
        watch.at[<int>stage + 1] = monotonic_ns()


cdef class ServingPlan:
    """One model version, ready to answer.

    Args:
        model, version: names for messages and replies.
        signature: `tiercel.types.Signature`; its features are the vector's order.
        scorer: a compiled `Scorer`, or any object with `score(float32 (n, n_features)) -> float64 (n, n_outputs)`.
        schema: `tiercel.types.ServiceSchema` the model was registered against, or None: all features by request.
        base: the service's opened `tiercel.features.online.OnlineBase`, or None without a service.
        transforms: the service's compiled transforms (`tiercel.features.transforms`).
        recorder: where every answer in the shape of a reply is left; None: nowhere. `predict` is not recorded.

    Raises:
        SchemaMismatchError: the signature names a feature the service does not have, or a transform is not there.
    """

    def __init__(
        self, str model, int version, signature, scorer, schema=None, base=None, *, transforms=(), PlanRecorder recorder=None
    ):
        self.model, self.version, self.signature, self.schema, self.base = model, version, signature, schema, base
        self.n_features, self.n_outputs = len(signature.features), signature.n_outputs
        self._accepts_missing = signature.accepts_missing
        self._is_compiled = isinstance(scorer, Scorer)
        if self._is_compiled:
            self._scorer = scorer
        else:
            self._python_scorer = scorer
        if scorer.n_features != self.n_features or scorer.n_outputs != self.n_outputs:
            raise SchemaMismatchError(
                f"Model '{model}' version {version}: expected a scorer of {self.n_features} features and "
                f"{self.n_outputs} outputs, got {scorer.n_features} and {scorer.n_outputs}"
            )
        if recorder is not None and recorder.n_features != 0 and (
            recorder.n_features != self.n_features or recorder.n_outputs != self.n_outputs
        ):
            raise SchemaMismatchError(
                f"Model '{model}' version {version}: expected a recorder of {self.n_features} features and "
                f"{self.n_outputs} outputs, got {recorder.n_features} and {recorder.n_outputs}"
            )
        self._recorder, self._records = recorder, recorder is not None
        self.vectors = VectorProgram(f"Model '{model}' version {version}", signature, schema, base, transforms)
        self._form = ReplyForm(model, version, signature.features, signature.classes, self.n_outputs)

    @property
    def join_keys(self):
        """Names that `entities` may hold."""
        return frozenset(self.vectors.join_keys)

    # -- from bytes ------------------------------------------------------------------------------------------------

    def answer(self, const unsigned char[::1] body not None, int kind, int64_t now_us, ReplyIds ids not None):
        """The reply to a body (kind 0: JSON, 1: msgpack), or None to hand it on."""
        cdef Output out
        cdef Arrival arrival
        cdef Py_ssize_t size
        if body.shape[0] == 0 or kind not in (0, 1):
            return None
        memset(&out, 0, sizeof(Output))
        arrival.wall_us, arrival.read_ns, arrival.flags = now_us, monotonic_ns(), 0
        with nogil:
            size = self.answer_into(&body[0], body.shape[0], kind, &arrival, ids, &out)
        try:
            return None if size < 0 else PyBytes_FromStringAndSize(<const char*>out.data, size)
        finally:
            free(out.data)

    cdef Py_ssize_t answer_into(
        self, const uint8_t* data, Py_ssize_t size, int kind, const Arrival* arrival, ReplyIds ids, Output* out
    ) noexcept nogil:
        cdef Column few_columns[FEW_FIELDS]
        cdef uint8_t few_given[FEW_FIELDS]
        cdef Body body
        cdef Scratch scratch
        cdef Output keys
        cdef Stopwatch stopwatch
        cdef Stopwatch* watch = NULL
        cdef int64_t now_us, oldest_us, age_us
        cdef uint64_t number
        cdef Py_ssize_t n_rows, length = -1, n_fields = self.vectors.body_reader.n_fields
        cdef void* block = NULL
        cdef bint many
        if self._records:
            watch = &stopwatch
            stopwatch.at[0] = monotonic_ns()
        body.columns, body.given = few_columns, few_given
        if n_fields > FEW_FIELDS:
            block = malloc(n_fields * (sizeof(Column) + 1))
            if block is NULL:
                return -1
            body.columns = <Column*>block
            body.given = <uint8_t*>block + n_fields * sizeof(Column)
        if not self.vectors.body_reader.read(data, size, kind, ids.max_rows, &body):
            free(block)
            return -1
        many = body.n_rows >= 0
        n_rows = body.n_rows if many else 1
        now_us = arrival.wall_us if body.now_us < 0 else body.now_us
        _lap(watch, STAGE_PARSE)
        if self.vectors.begin(&scratch, n_rows):
            memset(&keys, 0, sizeof(Output))
            if (
                self.vectors.mark_body(&scratch, &body)
                and self.vectors.read_body(&scratch, n_rows, &body, data + size, kind, now_us, &oldest_us)
            ):
                _lap(watch, STAGE_READ)
                if (
                    self.vectors.fill_body(&scratch, n_rows, &body, data + size, kind)
                    and (not self.vectors.finish(&scratch, n_rows, now_us) or self._accepts_missing)
                ):
                    _lap(watch, STAGE_COMPUTE)
                    if self._is_compiled:
                        if self._scorer.score_rows(scratch.rows, n_rows, self.n_features, scratch.scores) == SCORE_OK:
                            length = 0
                    else:
                        with gil:
                            if self._score_python(&scratch, n_rows):
                                length = 0
                    _lap(watch, STAGE_SCORE)
            if length == 0 and not reserve(out, self._form.most_bytes(n_rows)):
                length = -1
            if length == 0 and self._records and not self.vectors.put_body_keys(n_rows, &body, data + size, kind, &keys):
                length = -1
            if length == 0:
                age_us = -1 if oldest_us == NO_EVENT else max(0, now_us - oldest_us)
                number = ids.next()
                length = self._form.write_into(
                    <char*>out.data + out.size, kind, ids, number, not many, n_rows, scratch.scores, age_us,
                    scratch.n_missing,
                )
                out.size += length
                if self._records:
                    _lap(watch, STAGE_REPLY)
                    self._record(
                        &scratch, n_rows, &keys, watch, arrival, now_us, age_us, number,
                        arrival.flags | (PREDICTION_MANY if many else 0),
                    )
            free(keys.data)
        release(&scratch)
        free(block)
        return length

    cdef void _record(
        self, const Scratch* scratch, Py_ssize_t n_rows, const Output* keys, const Stopwatch* watch, const Arrival* arrival,
        int64_t now_us, int64_t age_us, uint64_t number, uint32_t flags,
    ) noexcept nogil:
        cdef Prediction prediction
        cdef Py_ssize_t stage
        prediction.number, prediction.received_us, prediction.now_us = number, arrival.wall_us, now_us
        prediction.oldest_age_us, prediction.flags, prediction.n_rows = age_us, flags, <int32_t>n_rows
        prediction.total_ns = watch.at[<int>N_STAGES] - arrival.read_ns
        for stage in range(<Py_ssize_t>N_STAGES):
            prediction.stage_ns[stage] = watch.at[stage + 1] - watch.at[stage]
        prediction.rows, prediction.scores = scratch.rows, scratch.scores
        prediction.keys, prediction.key_bytes = keys.data, <size_t>keys.size
        self._recorder.record(&prediction)

    # -- from Python values ----------------------------------------------------------------------------------------

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
        if not self.vectors.begin(&scratch, n_rows):
            raise MemoryError(f"No memory for {n_rows} rows of {self.n_features} features")
        try:
            age_us = self._assemble(&scratch, n_rows, many, entities, features, now_us, NULL)
            return (
                not many,
                [self._row_score(&scratch, r) for r in range(n_rows)] if many else self._row_score(&scratch, 0),
                None if age_us < 0 else age_us,
                [((<Slot>self.vectors.slots[i]).name, scratch.n_missing[i])
                 for i in range(self.n_features) if scratch.n_missing[i]],
            )
        finally:
            release(&scratch)

    cpdef bytes reply(self, dict entities, dict features, int64_t now_us, int kind, ReplyIds ids):
        """As `predict`, answering with a reply body (kind 0: JSON, 1: msgpack) and recorded. Needs at least one row."""
        cdef Scratch scratch
        cdef Output keys
        cdef Stopwatch watch
        cdef Arrival arrival
        cdef char* text
        cdef bytes result
        cdef int64_t age_us
        cdef uint64_t number
        cdef Py_ssize_t n_rows = count_rows(entities, features)
        cdef bint many = n_rows >= 0
        if n_rows == 0 or kind not in (0, 1):
            raise RequestError("Expected at least one row, as JSON (0) or msgpack (1)")
        n_rows = n_rows if many else 1
        if not self.vectors.begin(&scratch, n_rows):
            raise MemoryError(f"No memory for {n_rows} rows of {self.n_features} features")
        memset(&keys, 0, sizeof(Output))
        arrival.wall_us, arrival.read_ns, arrival.flags = wall_us(), monotonic_ns(), 0
        watch.at[0] = watch.at[1] = arrival.read_ns
        try:
            age_us = self._assemble(&scratch, n_rows, many, entities, features, now_us, &watch)
            number = ids.next()
            text = <char*>malloc(<size_t>self._form.most_bytes(n_rows))
            if text is NULL:
                raise MemoryError(f"No memory for a reply of {n_rows} rows")
            result = PyBytes_FromStringAndSize(text, self._form.write_into(
                text, kind, ids, number, not many, n_rows, scratch.scores, age_us, scratch.n_missing
            ))
            free(text)
            if self._records:
                self._put_keys(n_rows, entities, &keys)
                _lap(&watch, STAGE_REPLY)
                self._record(
                    &scratch, n_rows, &keys, &watch, &arrival, now_us, age_us, number, PREDICTION_MANY if many else 0
                )
            return result
        finally:
            free(keys.data)
            release(&scratch)

    cdef int64_t _assemble(
        self, Scratch* scratch, Py_ssize_t n_rows, bint many, dict entities, dict features, int64_t now_us,
        Stopwatch* watch,
    ) except? -2:
        """Rows, missing counts and scores from Python values; returns the age of the oldest value, -1 without one."""
        cdef int64_t oldest_us = NO_EVENT
        self._mark_given(scratch, features)
        self._read_groups(scratch, n_rows, entities, now_us, &oldest_us)
        _lap(watch, STAGE_READ)
        self._fill_given(scratch, n_rows, features)
        if self.vectors.finish(scratch, n_rows, now_us) and not self._accepts_missing:
            self._refuse_missing(scratch, n_rows, many)
        _lap(watch, STAGE_COMPUTE)
        self._score(scratch, n_rows)
        _lap(watch, STAGE_SCORE)
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

    cdef int _put_keys(self, Py_ssize_t n_rows, dict entities, Output* out) except -1:
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

    cdef int _score(self, Scratch* scratch, Py_ssize_t n_rows) except -1:
        cdef ScoreStatus status
        cdef feature_t[:, ::1] rows
        cdef score_t[:, ::1] scores
        if self._is_compiled:
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

    cdef bint _score_python(self, Scratch* scratch, Py_ssize_t n_rows) noexcept:
        try:
            self._score(scratch, n_rows)
        except Exception:       # the general path meets it again and says what it is
            return False
        return True

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
