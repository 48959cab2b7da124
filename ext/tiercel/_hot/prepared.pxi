# prepared.pxi - the second class of plan.pyx, which includes it; see plan.pxd for the contract.


cdef class Prepared:
    """See plan.pxd. Made by `ServingPlan.prepare` and `ServingPlan.blank`."""

    def __init__(self):
        raise TypeError("Expected a question from ServingPlan.prepare or ServingPlan.blank: one of its own has no plan")

    def __dealloc__(self):
        forget(&self._explained)
        if self._has_scratch:
            dispose(&self._asked)

    cdef int _hold(self, ServingPlan plan, Py_ssize_t n_rows) except -1:
        """Be a question of `n_rows` (-1: one, asked for without lists) for a plan."""
        self.plan, self.is_single, self.n_rows = plan, n_rows < 0, max(1, n_rows)
        self._asked.n_rows, self._asked.many = self.n_rows, not self.is_single
        return 0

    cdef int _begin(self) except -1:
        if not self.plan.vectors.begin(&self._asked.scratch, self.n_rows):
            raise MemoryError(f"No memory for {self.n_rows} rows of {self.plan.n_features} features")
        self._has_scratch = True
        return 0

    @property
    def oldest_age_us(self):
        """Age of the oldest stored value that has a time; None where there is none."""
        return None if self._asked.age_us < 0 else self._asked.age_us

    @property
    def read_ns(self):
        """Of the monotonic clock: when the request was read."""
        return self._arrival.read_ns

    def missing(self):
        """[(feature, in how many rows it has no value)] in vector order, of those that lack any."""
        vectors = self.plan.vectors
        return [
            ((<Slot>vectors.slots[i]).name, self._asked.scratch.n_missing[i])
            for i in range(self.plan.n_features) if self._asked.scratch.n_missing[i]
        ]

    @property
    def due_ns(self):
        """Of the monotonic clock: when the answer of a body's question is due."""
        return self._asked.due_ns

    @property
    def budget_us(self):
        """How long a body's question was given, in microseconds."""
        return (self._asked.due_ns - self._arrival.begun_ns) // 1000

    @property
    def is_late(self):
        """Whether a body's question was not assembled, because it would have been late."""
        return bool(self._asked.is_late)

    @property
    def source(self):
        """Who set the deadline of a body's question, as `tiercel.serving.deadline` names it."""
        return SOURCES[self._watch.budget_source]

    @property
    def is_asked(self):
        """Whether a body's question, or its model's settings, named the deadline; else it is its tier's."""
        return self._watch.budget_source != BUDGET_NONE or self.plan._default_budget_us >= 0

    def rows(self):
        """float32 (n_rows, n_features), copied; NaN is missing."""
        matrix = np.empty((self.n_rows, self.plan.n_features), dtype=np.float32)
        cdef feature_t[:, ::1] view = matrix
        if self.plan.n_features:
            memcpy(&view[0, 0], self._asked.scratch.rows, self.n_rows * self.plan.n_features * sizeof(feature_t))
        return matrix

    def score(self):
        """Score here and now."""
        cdef int64_t began_ns = monotonic_ns()
        self.plan._score(&self._asked.scratch, self.n_rows)
        self.is_scored = True
        _lap(&self._watch, STAGE_SCORE)
        if self.n_rows == 1:
            observe(&self.plan._needs, self._watch.at[4] - began_ns, self._watch.at[4])

    def give_scores(self, scores):
        """Take scores that were made elsewhere: (n_rows, n_outputs), or one number for all.

        Raises:
            StoreError: another shape.
        """
        cdef const score_t[:, ::1] view
        shape = self.n_rows, self.plan.n_outputs
        given = np.asarray(scores, dtype=np.float64)
        if given.ndim == 0:
            given = np.full(shape, given)
        if given.shape != shape:
            raise StoreError(f"Expected scores of shape {shape}, got {given.shape}")
        view = np.ascontiguousarray(given)
        memcpy(self._asked.scratch.scores, &view[0, 0], self.n_rows * self.plan.n_outputs * sizeof(score_t))
        self.is_scored = True
        _lap(&self._watch, STAGE_SCORE)

    def scores(self):
        """One score per row: a float, or a list of n_outputs."""
        return [self.plan._row_score(&self._asked.scratch, r) for r in range(self.n_rows)]

    def reply(self, int kind, ReplyIds ids not None, uint32_t flags=0):
        """The reply body (kind 0: JSON, 1: msgpack), recorded with these PredictionFlags.

        Raises:
            RequestError: another kind, or not scored yet.
        """
        cdef char* text
        if kind not in (0, 1) or not self.is_scored:
            raise RequestError("Expected a scored question, and its reply as JSON (0) or msgpack (1)")
        text = <char*>malloc(<size_t>self.most_bytes())
        if text is NULL:
            raise MemoryError(f"No memory for a reply of {self.n_rows} rows")
        try:
            return PyBytes_FromStringAndSize(text, self._reply_into(text, kind, ids, flags))
        finally:
            free(text)

    cdef Py_ssize_t most_bytes(self) noexcept:
        return self.plan._form.most_bytes(self.n_rows) + self.plan.explanations.most_bytes(
            self._reasons, &self._explained, self.n_rows
        )

    cdef Py_ssize_t _reply_into(self, char* text, int kind, ReplyIds ids, uint32_t flags) except -1:
        cdef char id[ID_BYTES]
        cdef uint64_t number = ids.next()
        cdef Py_ssize_t size = self.plan._form.write_into(
            text, kind, ids, number, self.is_single, self.n_rows, self._asked.scratch.scores, self._asked.age_us,
            self._asked.scratch.n_missing,
        )
        size = self._put_explanation(text, size, kind, id, write_id(id, ids._prefix, number))
        self._record(ids, number, flags)
        return size

    @property
    def is_recorded(self):
        """Whether the record of this question is in the journal; asked right after it was answered."""
        return self.plan._recorder is not None and self.plan._recorder.is_recorded

    def record(self, ReplyIds ids not None, uint32_t flags=0):
        """Record what is answered in another shape; returns its id."""
        cdef uint64_t number = ids.next()
        self._record(ids, number, flags)
        return ids.id_of(number)

    def stage_us(self):
        """{stage: microseconds} of an answered question; "parse" is what came before its rows were read."""
        spent = {name: (self._watch.at[i + 1] - self._watch.at[i]) / 1e3 for i, name in enumerate(STAGE_NAMES)}
        if self._watch.explain_ns > 0:      # it was part of the last stage
            last = STAGE_NAMES[<int>STAGE_REPLY]
            reply_us = spent.pop(last)
            spent["explain"] = self._watch.explain_ns / 1e3
            spent[last] = reply_us - spent["explain"]
        return spent

    cdef int _record(self, ReplyIds ids, uint64_t number, uint32_t flags) except -1:
        _lap(&self._watch, STAGE_REPLY)
        if not self.plan._records:
            return 0
        if self._entities is not None:
            self._asked.keys.size = 0
            self.plan._assembler.put_keys(self.n_rows, self._entities, &self._asked.keys)
            self._keep_question()
        self.plan._record(&self._asked, &self._watch, &self._arrival, number, flags | self._arrival.flags)
        return 0

    cdef int _keep_question(self) except -1:
        """Have the record keep what was asked, as the plan understood it."""
        self._asked.request, self._asked.request_kind, self._asked.request_header = NULL, <uint32_t>REQUEST_QUESTION, -1
        if not self.plan._keeps_requests or self.n_rows * (len(self._entities) + len(self._features)) > MOST_CELLS:
            return 0
        try:
            self._request = pack({"entities": self._entities, "features": self._features})
        except Exception:       # a value that msgpack has no form for: it is not kept, and the record says so
            return 0
        self._asked.request = <const uint8_t*>PyBytes_AS_STRING(self._request)
        self._asked.request_bytes = PyBytes_GET_SIZE(self._request)
        return 0

    # -- explaining ------------------------------------------------------------------------------------------------

    @property
    def explain_need_us(self):
        """What explaining its rows takes, as measured, in microseconds."""
        return self.plan.explanations.need_ns(self.n_rows) / 1000.0

    cdef int _ask(self, bint is_full, ReasonForm form) except -1:
        """Be explained anew."""
        if not self.is_scored:
            raise RequestError("Expected a scored question to explain, got one without scores")
        if form is not None and (form.n_features != self.plan.n_features):
            raise StoreError(f"Expected a form of {self.plan.n_features} features, got {form.n_features}")
        forget(&self._explained)
        self._explained.is_full = is_full
        self._reasons = self.plan.explanations.form if form is None else form
        return 0

    def explain(self, bint is_full=False, ReasonForm form=None):
        """Explain its scored rows here and now, by the compiled explainer; releases the GIL.

        Args:
            is_full: contributions of features too.
            form: of the reasons; None: the plan's own.
        """
        cdef int64_t began_ns = monotonic_ns()
        self._ask(is_full, form)
        with nogil:
            self.plan.explanations.explain(
                self._asked.scratch.rows, self._asked.scratch.scores, self.n_rows, &self._explained
            )
        self._watch.explain_ns += max(<int64_t>1, monotonic_ns() - began_ns)

    def give_attributions(
        self, const double[:, ::1] values not None, double expected, Py_ssize_t output=0, *, bint is_full=False,
        ReasonForm form not None, const double[:, ::1] standard_error=None, int64_t took_ns=1,
    ):
        """Take contributions that were computed elsewhere.

        Args:
            values: (n_rows, n_features), to the margin of `output`.
            expected: the margin that they start from.
            output: which margin.
            is_full, form: as for `explain`.
            standard_error: of sampled values, likewise.
            took_ns: what computing them took.

        Raises:
            StoreError: other shapes.
        """
        cdef size_t n_bytes = <size_t>(self.n_rows * self.plan.n_features) * sizeof(double)
        cdef bint fits = values.shape[0] == self.n_rows and values.shape[1] == self.plan.n_features
        if standard_error is not None:
            fits = fits and standard_error.shape[0] == self.n_rows and standard_error.shape[1] == self.plan.n_features
        if not fits:
            raise StoreError(
                f"Expected contributions of {self.n_rows} rows and {self.plan.n_features} features, got "
                f"{values.shape[0]} and {values.shape[1]}"
            )
        if not 0 <= output < form.n_outputs:
            raise StoreError(f"Expected one of {form.n_outputs} outputs, got {output}")
        self._ask(is_full, form)
        self._explained.phi = <double*>malloc(n_bytes + 1)
        if standard_error is not None:
            self._explained.standard_error = <double*>malloc(n_bytes + 1)
        if self._explained.phi is NULL or (standard_error is not None and self._explained.standard_error is NULL):
            forget(&self._explained)
            raise MemoryError(f"No memory for contributions to {self.n_rows} rows")
        if n_bytes:
            memcpy(self._explained.phi, &values[0, 0], n_bytes)
            if standard_error is not None:
                memcpy(self._explained.standard_error, &standard_error[0, 0], n_bytes)
        self._explained.method = EXPLAINED_EXACT if standard_error is None else EXPLAINED_SAMPLED
        self._explained.expected, self._explained.output = expected, output
        self._watch.explain_ns += max(<int64_t>1, took_ns)

    def explain_later(self):
        """There is no time to explain it now: the reply says where to ask, or that nobody can."""
        self._ask(True, None)
        self._explained.method = EXPLAINED_LATER
        if not self.plan.is_kept:
            self._explained.method, self._explained.why = EXPLAINED_NONE, WHY_NOT_KEPT
        self._watch.explain_ns += 1

    def explain_not(self, str why=None):
        """It cannot be explained: for this reason, or (None) because no model answered."""
        self._ask(False, None)
        self._explained.method, self._explained.why = EXPLAINED_NONE, WHY_READY if why is None else WHY_OWN
        self._own = None if why is None else own_words(why[:200])
        self._watch.explain_ns += 1

    def explanation(self, str id not None):
        """What a reply of this id says of it, as a JSON object: "id", and "reasons" and "explanation" once it is explained."""
        cdef bytes head = b'{"id":"%b"}' % id.encode("ascii")
        cdef bytes number = id.encode("ascii")
        cdef Py_ssize_t size = PyBytes_GET_SIZE(head)
        cdef char* text
        if len(id) > ID_BYTES:
            raise RequestError(f"Expected an id of at most {ID_BYTES} bytes, got {len(id)}")
        text = <char*>malloc(<size_t>(size + self.most_bytes()))
        if text is NULL:
            raise MemoryError(f"No memory for an explanation of {self.n_rows} rows")
        try:
            memcpy(text, PyBytes_AS_STRING(head), <size_t>size)
            size = self._put_explanation(text, size, BODY_JSON, PyBytes_AS_STRING(number), PyBytes_GET_SIZE(number))
            return PyBytes_FromStringAndSize(text, size)
        finally:
            free(text)

    cdef Py_ssize_t _put_explanation(
        self, char* text, Py_ssize_t length, int kind, const char* id, Py_ssize_t id_size
    ) except -1:
        cdef Text own[2]
        cdef int i
        if self._own is not None:
            for i in range(2):
                own[i].data, own[i].size = PyBytes_AS_STRING(<bytes>self._own[i]), PyBytes_GET_SIZE(<bytes>self._own[i])
        return self.plan.explanations.write_into(
            self._reasons, text, length, kind, self._asked.scratch.rows, self.n_rows, self.is_single, &self._explained, own,
            id, id_size,
        )
