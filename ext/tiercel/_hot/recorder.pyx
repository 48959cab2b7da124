"""Where a plan leaves what it answered; see recorder.pxd for the contract. Owner: tiercel.monitor.recording."""

import numpy as np

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t

from tiercel._hot.counters cimport (
    JOURNAL_BYTES, JOURNAL_DROPPED, JOURNAL_RECORDS, JOURNAL_TOO_LARGE, PlanCounters, WorkerCounters,
)
from tiercel._hot.journal cimport APPEND_TOO_LARGE, APPENDED, AppendStatus, Journal
from tiercel._hot.prediction cimport N_STAGES, PREDICTION_FAST, PREDICTION_MANY, Prediction
from tiercel._hot.typedefs cimport uint8_t, uint64_t


FAST, MANY = PREDICTION_FAST, PREDICTION_MANY


cdef class PlanRecorder:
    """Records the predictions of one plan. Without arguments: keeps nothing.

    Args:
        counters: of the plan's (model, version); None: do not count.
        worker: where written and dropped records are counted; needed with a journal.
        journal: None: do not journal.
        plan: number of the declaration, unique in the journal.
        declaration: JSON that says what the plan is.
        n_keys: join keys per row.
        keeps_requests: whether records have the request, as far as it is small enough.
    """

    def __cinit__(
        self, PlanCounters counters=None, WorkerCounters worker=None, Journal journal=None, unsigned int plan=0,
        bytes declaration=b"", Py_ssize_t n_keys=0, bint keeps_requests=True,
    ):
        if journal is not None and (worker is None or counters is None):
            raise ValueError("Expected counters and a worker's counters beside a journal")
        if not 0 <= n_keys < 1 << 16:
            raise ValueError(f"Expected a number of join keys, got {n_keys}")
        self.counters, self.worker, self.journal, self.declaration = counters, worker, journal, declaration
        self.n_keys = n_keys
        self._counts, self._journals = counters is not None, journal is not None
        self.keeps_requests = self._mark.keeps_requests = self._journals and keeps_requests
        if counters is not None:
            self.n_features, self.n_outputs = counters.n_features, counters.n_outputs
        self._mark.plan = plan
        self._mark.n_features, self._mark.n_outputs = <int>self.n_features, <int>self.n_outputs
        self._mark.n_keys = <int>n_keys
        self._mark.declaration = <const uint8_t*>PyBytes_AS_STRING(declaration)
        self._mark.declaration_bytes = PyBytes_GET_SIZE(declaration)

    cdef void record(self, const Prediction* prediction) noexcept nogil:
        cdef AppendStatus status
        cdef uint64_t* cells
        self.is_recorded = False
        if not self._counts:
            return
        self.counters.count(prediction)
        if not self._journals:
            return
        status = self.journal.append(&self._mark, prediction)
        cells = self.worker.cells
        cells[JOURNAL_BYTES] += self.journal._bytes
        if status == APPENDED:
            self.is_recorded = True
            cells[JOURNAL_RECORDS] += 1
        elif status == APPEND_TOO_LARGE:
            cells[JOURNAL_TOO_LARGE] += 1
        else:
            cells[JOURNAL_DROPPED] += 1

    def add(
        self, const float[:, ::1] rows not None, const double[:, ::1] scores not None, *, unsigned long long number=0,
        int64_t received_us=0, now_us=None, int64_t oldest_age_us=-1, int64_t total_ns=0, stage_ns=(0, 0, 0, 0, 0),
        unsigned int flags=0, bytes keys=b"", unsigned int repeat=1, bytes request=b"", unsigned int request_kind=0,
        int64_t request_header=-1,
    ):
        """Record one request from Python, as a plan does it from compiled code. For tests, benchmarks and Python paths.

        Args:
            rows: float32 (n_rows, n_features), as scored.
            scores: float64 (n_rows, n_outputs).
            keys: as in prediction.pxd.
            repeat: record it so many times, with numbers counting up; for benchmarks.
            request, request_kind, request_header: as in prediction.pxd.

        Raises:
            ValueError: shapes that are not the plan's.
        Threads: as record().
        """
        cdef Prediction prediction
        cdef unsigned int i
        if rows.shape[0] != scores.shape[0] or not 0 < rows.shape[0] < 1 << 30 or len(stage_ns) != N_STAGES:
            raise ValueError(f"Expected as many rows as scores and {N_STAGES} stages, got {rows.shape[0]}, {scores.shape[0]}")
        if self.counters is not None and (rows.shape[1] != self.n_features or scores.shape[1] != self.n_outputs):
            raise ValueError(
                f"Expected {self.n_features} features and {self.n_outputs} outputs, got {rows.shape[1]}, {scores.shape[1]}"
            )
        prediction.number, prediction.received_us = number, received_us
        prediction.now_us = received_us if now_us is None else now_us
        prediction.oldest_age_us, prediction.total_ns, prediction.flags = oldest_age_us, total_ns, flags
        for i in range(N_STAGES):
            prediction.stage_ns[i] = stage_ns[i]
        prediction.n_rows = <int>rows.shape[0]
        prediction.rows = &rows[0, 0] if rows.shape[1] else NULL
        prediction.scores = &scores[0, 0] if scores.shape[1] else NULL
        prediction.keys, prediction.key_bytes = <const uint8_t*>PyBytes_AS_STRING(keys), PyBytes_GET_SIZE(keys)
        prediction.request = <const uint8_t*>PyBytes_AS_STRING(request) if request else NULL
        prediction.request_bytes, prediction.request_kind = PyBytes_GET_SIZE(request), request_kind
        prediction.request_header = request_header
        with nogil:
            for i in range(repeat):
                self.record(&prediction)
                prediction.number += 1
