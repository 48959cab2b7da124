# prepared.pxi - the second class of plan.pyx, which includes it; see plan.pxd for the contract.


cdef class Prepared:
    """See plan.pxd. Made by `ServingPlan.prepare` and `ServingPlan.blank`."""

    def __init__(self):
        raise TypeError("Expected a question from ServingPlan.prepare or ServingPlan.blank: one of its own has no plan")

    def __dealloc__(self):
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
        charge(&self.plan._needs, self._watch.at[4] - began_ns, self.n_rows, self._watch.at[4])
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
        text = <char*>malloc(<size_t>self.plan._form.most_bytes(self.n_rows))
        if text is NULL:
            raise MemoryError(f"No memory for a reply of {self.n_rows} rows")
        try:
            return PyBytes_FromStringAndSize(text, self._reply_into(text, kind, ids, flags))
        finally:
            free(text)

    cdef Py_ssize_t _reply_into(self, char* text, int kind, ReplyIds ids, uint32_t flags) except -1:
        cdef uint64_t number = ids.next()
        cdef Py_ssize_t size = self.plan._form.write_into(
            text, kind, ids, number, self.is_single, self.n_rows, self._asked.scratch.scores, self._asked.age_us,
            self._asked.scratch.n_missing,
        )
        self._record(ids, number, flags)
        return size

    def record(self, ReplyIds ids not None, uint32_t flags=0):
        """Record what is answered in another shape; returns its id."""
        cdef uint64_t number = ids.next()
        self._record(ids, number, flags)
        return ids.id_of(number)

    def stage_us(self):
        """{stage: microseconds} of an answered question; "parse" is what came before its rows were read."""
        return {name: (self._watch.at[i + 1] - self._watch.at[i]) / 1e3 for i, name in enumerate(STAGE_NAMES)}

    cdef int _record(self, ReplyIds ids, uint64_t number, uint32_t flags) except -1:
        _lap(&self._watch, STAGE_REPLY)
        if not self.plan._records:
            return 0
        if self._entities is not None:
            self._asked.keys.size = 0
            self.plan._assembler.put_keys(self.n_rows, self._entities, &self._asked.keys)
        self.plan._record(&self._asked, &self._watch, &self._arrival, number, flags | self._arrival.flags)
        return 0
