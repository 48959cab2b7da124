"""Keys and request features -> scores; see plan.pxd for the contract. Owner: tiercel.serving.engine."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.math cimport NAN, isfinite, isnan
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

import msgpack
import numpy as np

from tiercel._hot.assembler cimport RELEASE_GIL_ROWS, Assembler
from tiercel._hot.clock cimport monotonic_ns, wall_us
from tiercel._hot.explained cimport (
    EXPLAINED_EXACT, EXPLAINED_LATER, EXPLAINED_NONE, EXPLAINED_NOT, EXPLAINED_SAMPLED, WHY_NOT_KEPT, WHY_OWN, WHY_READY,
    Explained, Explanations, forget, own_words,
)
from tiercel._hot.needs cimport charge, is_behind, is_quick, observe, score_ns
from tiercel._hot.output cimport Output, reserve
from tiercel._hot.payload cimport BODY_JSON, BODY_TENSORS, EXPLAIN_FULL, EXPLAIN_NOT, Body, Column
from tiercel._hot.prediction cimport (
    BUDGET_BODY, BUDGET_NONE, BUDGET_TIMEOUT, MAX_REQUEST_BYTES_MANY, N_STAGES, PREDICTION_DEGRADED, PREDICTION_MANY,
    REQUEST_QUESTION, STAGE_COMPUTE, STAGE_PARSE, STAGE_READ, STAGE_REPLY, STAGE_SCORE, Prediction, Stopwatch,
)
from tiercel._hot.reasons cimport ReasonForm
from tiercel._hot.recorder cimport PlanRecorder
from tiercel._hot.reply cimport ID_BYTES, ReplyForm, ReplyIds, Text, write_id
from tiercel._hot.scorer cimport SCORE_OK, Scorer, ScoreStatus
from tiercel._hot.tensors cimport TensorForm, TensorRequest, free_tensors
from tiercel._hot.typedefs cimport feature_t, int32_t, int64_t, score_t, uint8_t, uint32_t, uint64_t
from tiercel._hot.values cimport Slot, count_rows
from tiercel._hot.vector cimport Scratch, VectorProgram, release

from tiercel._hot.reply_head import SOURCES, STAGE_NAMES
from tiercel.errors import RequestError, SchemaMismatchError, StoreError
from tiercel.types import NO_EVENT_US, Tier

cdef int64_t NO_EVENT = NO_EVENT_US
cdef int64_t NEVER_NS = (<int64_t>1 << 63) - 1
# Whatever takes longer is not scored where other requests wait for it.
cdef int64_t INLINE_NS = 1000 * Tier.REALTIME.budget_us
# What a queued request is given that names no deadline.
cdef int64_t QUEUED_NS = 1000 * Tier.NEAR_REALTIME.budget_us
# What explaining may take of a request that names none, however many rows it has.
cdef int64_t MOST_EXPLAIN_NS = 1_000_000_000


# More values than these are not packed for the record: it would not keep them, and packing holds up others.
cdef enum:
    MOST_CELLS = 16384

cdef object pack = msgpack.Packer(autoreset=True, unicode_errors="surrogatepass").pack


cdef inline void _lap(Stopwatch* watch, int stage) noexcept nogil:
    """The end of `stage`."""
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
        tier: `tiercel.types.Tier` as text, for replies.
        is_inline: whether it may be scored where other requests wait; else `answer` hands everything on.
        is_plain: False: `answer` hands everything on for another reason (a rollout, a shadow).
        needs_us: (reading, scoring, scoring of each row) of one request as measured, in microseconds; None: not measured.
        default_budget_us: the deadline of a request that names none; None: no deadline.
        has_stand_in: whether another model, or a default, may answer what its queue refuses or fails.
        explanations: how it explains; None: it does not.
        is_strict: whether a reply may be sent only once its record is durable.

    Raises:
        SchemaMismatchError: the signature names a feature the service does not have, or a transform is not there.
    """

    def __init__(
        self, str model, int version, signature, scorer, schema=None, base=None, *, transforms=(), PlanRecorder recorder=None,
        str tier="realtime", bint is_inline=True, bint is_plain=True, needs_us=None, default_budget_us=None,
        bint has_stand_in=False, Explanations explanations=None, bint is_strict=False,
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
        self._keeps_requests = recorder is not None and recorder.keeps_requests
        self.vectors = VectorProgram(f"Model '{model}' version {version}", signature, schema, base, transforms)
        self._assembler = Assembler(model, version, schema, self.vectors, self._accepts_missing)
        self._form = ReplyForm(model, version, signature.features, signature.classes, self.n_outputs, tier)
        self._tensors = TensorForm(model, version, self.vectors, self.n_outputs, tier)
        self.tier, self.is_inline, self.is_plain, self.scorer = tier, is_inline, is_inline and is_plain, scorer
        self.is_strict, self.has_stand_in = is_strict, has_stand_in
        self.is_queued = is_plain and not is_inline and tier == Tier.NEAR_REALTIME and not is_strict
        if needs_us is not None:
            self._needs.read_ns, self._needs.score_ns, self._needs.row_ns = [int(1000 * each) for each in needs_us]
        self._default_budget_us = -1 if default_budget_us is None else default_budget_us
        self.is_kept = recorder is not None and recorder.journal is not None
        if explanations is None:
            explanations = Explanations(self.n_features, self.n_outputs)
        if explanations.n_features != self.n_features or explanations.n_outputs != self.n_outputs:
            raise SchemaMismatchError(
                f"Model '{model}' version {version}: expected explanations of {self.n_features} features and "
                f"{self.n_outputs} outputs, got {explanations.n_features} and {explanations.n_outputs}"
            )
        self.explanations = explanations

    @property
    def join_keys(self):
        """Names that `entities` may hold."""
        return frozenset(self.vectors.join_keys)

    @property
    def known_features(self):
        """Names that `features` may hold."""
        return self.vectors.slot_of.keys()

    def score_us(self, Py_ssize_t n_rows=1):
        """What scoring so many rows is measured to take, in microseconds; 0: not measured."""
        return (score_ns(&self._needs, monotonic_ns()) + n_rows * self._needs.row_ns) / 1000

    def need_us(self, Py_ssize_t n_rows=1):
        """What reading and scoring so many rows is measured to take, in microseconds; 0: not measured."""
        return (self._needs.read_ns + score_ns(&self._needs, monotonic_ns()) + n_rows * self._needs.row_ns) / 1000

    def is_behind(self, Py_ssize_t n_rows, int64_t budget_us, int64_t waited_ns=0):
        """Whether scoring so many rows inline would keep others waiting too long for a stand-in: for half of `budget_us`, which
        each of them has. `waited_ns`: what who asks has waited, and others with it. See needs.pxd."""
        cdef int64_t now_ns = monotonic_ns()
        cdef int64_t took_ns = score_ns(&self._needs, now_ns) + n_rows * self._needs.row_ns
        return bool(self.is_inline and is_behind(&self._needs, took_ns, waited_ns, 1000 * budget_us, now_ns))

    # -- from bytes ------------------------------------------------------------------------------------------------

    def answer(
        self, const unsigned char[::1] body not None, int kind, int64_t now_us, ReplyIds ids not None, *, int64_t budget_us=-1,
        int64_t header_length=-1
    ):
        """The reply to a body (kind 0: JSON, 1: msgpack, 2: tensors) that has just come, or None to hand it on.

        budget_us: its deadline in microseconds from now; -1: none but what the body says.
        header_length: of tensors: how long the JSON before them is; -1: all of it.
        """
        cdef Output out
        cdef TensorRequest request
        cdef Arrival arrival
        cdef Stopwatch watch
        cdef Py_ssize_t size
        if body.shape[0] == 0 or kind not in (0, 1, 2):
            return None
        memset(&out, 0, sizeof(Output))
        request.header_length = header_length
        arrival.wall_us, arrival.read_ns, arrival.flags, arrival.shed_ns = now_us, monotonic_ns(), 0, 0
        arrival.is_cheap = False
        arrival.begun_ns, arrival.budget_us, arrival.budget_source = arrival.read_ns, budget_us, BUDGET_NONE
        arrival.default_us = OWN_DEFAULT
        with nogil:
            size = self.answer_into(
                &body[0], body.shape[0], kind, &arrival, ids, &out, &watch, &request if kind == BODY_TENSORS else NULL
            )
        try:
            return None if size < 0 else PyBytes_FromStringAndSize(<const char*>out.data, size)
        finally:
            free(out.data)

    cdef Py_ssize_t answer_into(
        self, const uint8_t* data, Py_ssize_t size, int kind, const Arrival* arrival, ReplyIds ids, Output* out,
        Stopwatch* watch, TensorRequest* request,
    ) noexcept nogil:
        cdef Assembled asked
        cdef Explained explained
        cdef char id[ID_BYTES]
        cdef uint64_t number
        cdef Py_ssize_t length = -1, most
        explained.method, explained.phi, explained.standard_error = EXPLAINED_NOT, NULL, NULL
        if not self.is_plain or not self._assemble_body(
            data, size, kind, arrival, ids.max_rows, INLINE_NS, 0, &asked, watch, request
        ):
            return -2 if self.is_plain and asked.is_late else -1
        if watch.at[3] + asked.score_ns > asked.due_ns:
            dispose(&asked)
            return -2
        if asked.explain != EXPLAIN_NOT and not (
            self.explanations.is_inline and asked.score_ns + self.explanations.need_ns(asked.n_rows) <= INLINE_NS
        ):
            dispose(&asked)     # the general path has threads for it
            return -1
        if self.has_stand_in and asked.due_ns != NEVER_NS and is_behind(
            &self._needs, asked.score_ns, watch.at[3] - arrival.begun_ns, asked.due_ns - arrival.begun_ns, watch.at[3]
        ):
            dispose(&asked)
            return -3
        if self._is_compiled:
            if self._scorer.score_rows(asked.scratch.rows, asked.n_rows, self.n_features, asked.scratch.scores) == SCORE_OK:
                length = 0
        else:
            with gil:
                if self._score_python(&asked.scratch, asked.n_rows):
                    length = 0
        _lap(watch, STAGE_SCORE)
        charge(&self._needs, watch.at[4] - watch.at[3], asked.n_rows, watch.at[4])
        if length == 0 and asked.n_rows == 1:
            observe(&self._needs, watch.at[4] - watch.at[3], watch.at[4])
        if (self.has_stand_in or arrival.flags & <uint32_t>PREDICTION_DEGRADED) and length == 0 and not self.is_finite(&asked):
            length = -1
        if length == 0:
            most = self._form.most_bytes(asked.n_rows) if request is NULL else self._tensors.most_bytes(asked.n_rows, request)
            if asked.explain != EXPLAIN_NOT:
                explained.is_full = asked.explain == EXPLAIN_FULL
                self._explain(&asked, self._explain_due_ns(&asked, arrival.begun_ns), &explained, watch)
                most += self.explanations.most_bytes(self.explanations.form, &explained, asked.n_rows)
            if not reserve(out, most):
                length = -1
        if length == 0:
            number = ids.next()
            if request is NULL:
                length = self._form.write_into(
                    <char*>out.data + out.size, kind, ids, number, not asked.many, asked.n_rows, asked.scratch.scores,
                    asked.age_us, asked.scratch.n_missing,
                )
                if explained.method != EXPLAINED_NOT:
                    length = self.explanations.write_into(
                        self.explanations.form, <char*>out.data + out.size, length, kind, asked.scratch.rows, asked.n_rows,
                        not asked.many, &explained, NULL, id, write_id(id, ids._prefix, number),
                    )
            else:
                length = self._tensors.write_into(
                    <char*>out.data + out.size, request, ids, number, asked.n_rows, asked.scratch.scores, asked.age_us,
                    watch, arrival.begun_ns,
                )
            out.size += length
            _lap(watch, STAGE_REPLY)
            if self._records:
                self._record(&asked, watch, arrival, number, arrival.flags)
        forget(&explained)
        dispose(&asked)
        return length

    cdef void _explain(self, const Assembled* asked, int64_t due_ns, Explained* explained, Stopwatch* watch) noexcept nogil:
        cdef int64_t began_ns = monotonic_ns()
        if began_ns + self.explanations.need_ns(asked.n_rows) <= due_ns or not self.explanations._has_compiled:
            self.explanations.explain(asked.scratch.rows, asked.scratch.scores, asked.n_rows, explained)
        elif self.is_kept:
            explained.method = EXPLAINED_LATER
        else:
            explained.method, explained.why = EXPLAINED_NONE, WHY_NOT_KEPT
        watch.explain_ns = max(<int64_t>1, monotonic_ns() - began_ns)

    cdef int64_t _explain_due_ns(self, const Assembled* asked, int64_t begun_ns) noexcept nogil:
        cdef int64_t bound_ns = INLINE_NS if self.is_inline else QUEUED_NS
        if asked.due_ns != NEVER_NS:
            return asked.due_ns
        return begun_ns + min(asked.n_rows * bound_ns, MOST_EXPLAIN_NS)

    cdef bint _assemble_body(
        self, const uint8_t* data, Py_ssize_t size, int kind, const Arrival* arrival, Py_ssize_t max_rows,
        int64_t max_score_ns, int64_t default_ns, Assembled* out, Stopwatch* watch, TensorRequest* request,
    ) noexcept nogil:
        cdef Column few_columns[FEW_FIELDS]
        cdef uint8_t few_given[FEW_FIELDS]
        cdef Body body
        cdef void* block = NULL
        cdef bint done = False, is_read
        cdef Py_ssize_t n_fields = self.vectors.body_reader.n_fields
        out.is_late, watch.explain_ns = False, 0
        out.request, out.request_bytes, out.request_kind = data, size, <uint32_t>kind + 1
        out.request_header = -1 if request is NULL else request.header_length
        watch.at[0] = arrival.read_ns if arrival.flags & <uint32_t>PREDICTION_DEGRADED else monotonic_ns()   # waits count
        body.columns, body.given = few_columns, few_given
        if n_fields > FEW_FIELDS:
            block = malloc(n_fields * (sizeof(Column) + 1))
            if block is NULL:
                return False
            body.columns = <Column*>block
            body.given = <uint8_t*>block + n_fields * sizeof(Column)
        if request is NULL:
            is_read = self.vectors.body_reader.read(data, size, kind, max_rows, &body)
        else:
            is_read = self._tensors.read(data, size, max_rows, &body, request)
            body.budget_us = request.timeout_us
        if is_read:
            out.many, out.explain = body.n_rows >= 0, body.explain
            out.n_rows = body.n_rows if out.many else 1
            out.now_us = arrival.wall_us if body.now_us < 0 else body.now_us
            _lap(watch, STAGE_PARSE)
            out.score_ns = score_ns(&self._needs, watch.at[1]) + out.n_rows * self._needs.row_ns
            out.due_ns = self._due_ns(arrival, body.budget_us, BUDGET_BODY if request is NULL else BUDGET_TIMEOUT, watch)
            if out.due_ns == NEVER_NS and default_ns > 0:
                # As the router has it: what cannot keep the tier's bound is not held to it, and the general path says how.
                if 2 * (self._needs.read_ns + out.score_ns) > default_ns:
                    is_read = False
                out.due_ns = arrival.begun_ns + default_ns
            out.is_late = is_read and (
                watch.at[1] + self._needs.read_ns + out.score_ns
                + (0 if out.n_rows == 1 and out.explain == EXPLAIN_NOT
                   and (is_quick(&self._needs) if self.is_inline else arrival.is_cheap) else arrival.shed_ns) > out.due_ns
            )
            if is_read and not out.is_late and out.score_ns <= max_score_ns:
                memset(&out.keys, 0, sizeof(Output))
                if self.vectors.begin(&out.scratch, out.n_rows):
                    done = self._fill(&body, data + size, kind, out, watch)
                    if not done:
                        dispose(out)
        if request is not NULL:
            free_tensors(request)
        free(block)
        return done

    cdef bint _fill(self, Body* body, const uint8_t* end, int kind, Assembled* out, Stopwatch* watch) noexcept nogil:
        cdef int64_t oldest_us
        if not (
            self.vectors.mark_body(&out.scratch, body)
            and self.vectors.read_body(&out.scratch, out.n_rows, body, end, kind, out.now_us, &oldest_us)
        ):
            return False
        _lap(watch, STAGE_READ)
        out.age_us = -1 if oldest_us == NO_EVENT else max(0, out.now_us - oldest_us)
        if not self.vectors.fill_body(&out.scratch, out.n_rows, body, end, kind):
            return False
        if self.vectors.finish(&out.scratch, out.n_rows, out.now_us) and not self._accepts_missing:
            return False
        if self._records and not self.vectors.put_body_keys(out.n_rows, body, end, kind, &out.keys):
            return False
        _lap(watch, STAGE_COMPUTE)
        return True

    cdef bint is_finite(self, const Assembled* asked) noexcept nogil:
        """Whether every score is a number: where somebody can stand in, another one counts as a failure."""
        cdef Py_ssize_t i
        for i in range(asked.n_rows * self.n_outputs):
            if not isfinite(asked.scratch.scores[i]):
                return False
        return True

    cdef Prepared prepare_body(self, const uint8_t* data, Py_ssize_t size, int kind, const Arrival* arrival, ReplyIds ids):
        cdef Prepared prepared
        cdef bint done
        prepared = Prepared.__new__(Prepared)
        if size >= RELEASE_GIL_BYTES:
            with nogil:
                done = self._assemble_body(
                    data, size, kind, arrival, ids.max_rows, NEVER_NS, QUEUED_NS, &prepared._asked, &prepared._watch, NULL
                )
        else:
            done = self._assemble_body(
                data, size, kind, arrival, ids.max_rows, NEVER_NS, QUEUED_NS, &prepared._asked, &prepared._watch, NULL
            )
        if not done and not prepared._asked.is_late:
            return None
        if prepared._asked.explain != EXPLAIN_NOT:      # whoever awaits the scores explains them: the general path
            if done:
                dispose(&prepared._asked)
            return None
        prepared.plan, prepared.kind, prepared._has_scratch, prepared._arrival = self, kind, done, arrival[0]
        prepared.n_rows, prepared.is_single = prepared._asked.n_rows, not prepared._asked.many
        prepared._asked.request = NULL      # the body is the connection's, and goes before the question is answered
        if self._keeps_requests and size <= MAX_REQUEST_BYTES_MANY:
            prepared._request = PyBytes_FromStringAndSize(<const char*>data, size)
            prepared._asked.request = <const uint8_t*>PyBytes_AS_STRING(prepared._request)
        return prepared

    def prepare_again(
        self, const unsigned char[::1] body not None, int kind, int64_t now_us, Py_ssize_t max_rows, *, int64_t header_length=-1
    ):
        """The question of a body (kind 0: JSON, 1: msgpack, 2: tensors) that was answered before: its rows, to be scored.

        Whatever its deadline is, it is not late.

        Args:
            now_us: the time of the read, unless the body says another.
            max_rows: that a body may have.
            header_length: of tensors: how long the JSON before them is; -1: all of it.

        Returns:
            A question, or None: this plan would not answer the body as it is.
        Threads: safe.
        """
        cdef Prepared prepared = Prepared.__new__(Prepared)
        cdef TensorRequest request
        if body.shape[0] == 0 or kind not in (0, 1, 2):
            return None
        request.header_length = header_length
        prepared._arrival.wall_us, prepared._arrival.flags, prepared._arrival.budget_us = now_us, 0, -1
        prepared._arrival.read_ns = monotonic_ns()
        prepared._arrival.begun_ns, prepared._arrival.default_us = NEVER_NS // 2, -1
        prepared._arrival.budget_source = BUDGET_NONE
        if not self._assemble_body(
            &body[0], body.shape[0], kind, &prepared._arrival, max_rows, NEVER_NS, 0, &prepared._asked, &prepared._watch,
            &request if kind == BODY_TENSORS else NULL,
        ):
            return None
        prepared.plan, prepared.kind, prepared._has_scratch = self, kind, True
        prepared.n_rows, prepared.is_single = prepared._asked.n_rows, not prepared._asked.many
        prepared._asked.request = NULL
        return prepared

    cdef int64_t _due_ns(
        self, const Arrival* arrival, int64_t body_budget_us, int body_source, Stopwatch* watch
    ) noexcept nogil:
        """When the reply is due: the smaller of what header and body say, else the model's own; far away without any."""
        cdef int64_t budget_us = arrival.budget_us
        watch.budget_source = BUDGET_NONE if budget_us < 0 else arrival.budget_source
        if body_budget_us >= 0 and (budget_us < 0 or body_budget_us < budget_us):
            budget_us, watch.budget_source = body_budget_us, body_source
        watch.budget_us = budget_us
        if budget_us < 0:
            budget_us = self._default_budget_us if arrival.default_us == OWN_DEFAULT else arrival.default_us
        return NEVER_NS if budget_us < 0 else arrival.begun_ns + 1000 * budget_us

    cdef void _record(
        self, const Assembled* asked, const Stopwatch* watch, const Arrival* arrival, uint64_t number, uint32_t flags,
    ) noexcept nogil:
        cdef Prediction prediction
        cdef Py_ssize_t stage
        prediction.number, prediction.received_us, prediction.now_us = number, arrival.wall_us, asked.now_us
        prediction.oldest_age_us, prediction.n_rows = asked.age_us, <int32_t>asked.n_rows
        prediction.flags = flags | (PREDICTION_MANY if asked.many else 0)
        prediction.total_ns = watch.at[<int>N_STAGES] - arrival.read_ns
        for stage in range(<Py_ssize_t>N_STAGES):
            prediction.stage_ns[stage] = watch.at[stage + 1] - watch.at[stage]
        prediction.rows, prediction.scores = asked.scratch.rows, asked.scratch.scores
        prediction.keys, prediction.key_bytes = asked.keys.data, <size_t>asked.keys.size
        prediction.request, prediction.request_bytes = asked.request, <size_t>asked.request_bytes
        prediction.request_header, prediction.request_kind = asked.request_header, asked.request_kind
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
        cdef Prepared prepared
        if count_rows(entities, features) == 0:
            return False, [], None, []
        prepared = self.prepare(entities, features, now_us)
        prepared.score()
        scores = prepared.scores()
        return prepared.is_single, scores[0] if prepared.is_single else scores, prepared.oldest_age_us, prepared.missing()

    cpdef bytes reply(self, dict entities, dict features, int64_t now_us, int kind, ReplyIds ids):
        """As `predict`, answering with a reply body (kind 0: JSON, 1: msgpack) and recorded. Needs at least one row."""
        cdef Prepared prepared = self.prepare(entities, features, now_us)
        prepared.score()
        return prepared.reply(kind, ids)

    cpdef Prepared prepare(self, dict entities, dict features, int64_t now_us, int64_t read_ns=0):
        """Read and assemble the rows of a question, to be scored later. Arguments and errors as `predict`.

        Args:
            read_ns: of the monotonic clock, when the request was read; 0: now.

        Raises:
            RequestError: there is not one row.
        """
        cdef Prepared prepared = Prepared.__new__(Prepared)
        cdef Py_ssize_t n_rows = count_rows(entities, features)
        if n_rows == 0:
            raise RequestError("Expected at least one row, got an empty list")
        prepared._hold(self, n_rows)
        prepared._entities, prepared._features, prepared._asked.now_us = entities, features, now_us
        prepared._arrival.wall_us, prepared._arrival.flags, prepared._arrival.budget_us = wall_us(), 0, -1
        # What came before this - the rest of the body, the event loop, decoding - counts as parsing.
        prepared._watch.at[1] = monotonic_ns()
        prepared._watch.at[0] = prepared._arrival.read_ns = read_ns if read_ns else prepared._watch.at[1]
        prepared._begin()
        prepared._asked.age_us = self._assembler.assemble(
            &prepared._asked.scratch, prepared.n_rows, not prepared.is_single, entities, features, now_us, &prepared._watch
        )
        return prepared

    def blank(self, dict entities, Py_ssize_t n_rows=-1, int64_t read_ns=0, dict features=None):
        """A question that nothing was read for: every feature is missing. For answers that need no features.

        Args:
            entities: join keys, for the record.
            n_rows: -1: one row, asked for without lists.
            features: of the question, for the record.
        """
        cdef Prepared prepared = Prepared.__new__(Prepared)
        cdef Py_ssize_t i
        prepared._hold(self, n_rows)
        prepared._entities, prepared._features, prepared._asked.age_us = entities, features or {}, -1
        prepared._arrival.wall_us = prepared._asked.now_us = wall_us()
        prepared._arrival.flags, prepared._arrival.budget_us = 0, -1
        for i in range(1, <Py_ssize_t>STAGE_SCORE + 1):
            prepared._watch.at[i] = monotonic_ns()
        prepared._watch.at[0] = prepared._arrival.read_ns = read_ns if read_ns else prepared._watch.at[1]
        prepared._begin()
        for i in range(prepared.n_rows * self.n_features):
            prepared._asked.scratch.rows[i] = NAN
        for i in range(self.n_features):
            prepared._asked.scratch.n_missing[i] = <int32_t>prepared.n_rows
        return prepared

    def recall(self, const feature_t[:, ::1] rows not None, scores, *, bint is_single):
        """A question of rows that were scored before, with their scores: to be explained as it would have been then.

        Args:
            rows: float32 (n, n_features) as recorded, n at least 1; one where `is_single`.
            scores: float64 (n, n_outputs).
            is_single: no list was sent.

        Raises:
            StoreError: other shapes.
        """
        cdef Py_ssize_t row, i, n_rows = rows.shape[0]
        cdef Prepared prepared
        if rows.shape[1] != self.n_features or n_rows < 1 or (is_single and n_rows > 1):
            raise StoreError(f"Expected rows of {self.n_features} features, got {n_rows} rows of {rows.shape[1]}")
        prepared = self.blank({}, -1 if is_single else n_rows)
        if self.n_features:
            memcpy(prepared._asked.scratch.rows, &rows[0, 0], n_rows * self.n_features * sizeof(feature_t))
        for i in range(self.n_features):
            prepared._asked.scratch.n_missing[i] = 0
            for row in range(n_rows):
                prepared._asked.scratch.n_missing[i] += isnan(rows[row, i])
        prepared.give_scores(scores)
        return prepared

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


include "prepared.pxi"


cdef void dispose(Assembled* asked) noexcept nogil:
    """Give back what was assembled."""
    free(asked.keys.data)
    release(&asked.scratch)
