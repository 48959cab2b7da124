"""What a worker counts; see counters.pxd for the contract. Owner: tiercel.monitor.counting."""

cimport cython

import numpy as np

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from tiercel._hot.prediction cimport (
    N_STAGES, PREDICTION_FAST, PREDICTION_MANY, PREDICTION_RUNG_SHIFT, PREDICTION_SHADOW, RUNG_LAST_SCORE, Prediction,
)
from tiercel._hot.typedefs cimport uint8_t, uint64_t


cdef extern from "record.h" nogil:
    enum:
        TIERCEL_EDGES
        TIERCEL_CELLS
    int tiercel_feature_cell(const float* edges, float value)
    int tiercel_score_cell(const double* edges, double value)
    int tiercel_magnitude_cell(int64_t value)
    void tiercel_count_rows(uint64_t* cells, const float* edges, const float* rows, int64_t n_rows, int64_t n_features)
    void tiercel_count_scores(
        uint64_t* cells, const double* edges, const double* scores, int64_t n_rows, int64_t n_outputs
    )
    void tiercel_publish_u64(uint64_t* at, uint64_t value)
    void tiercel_touch(uint8_t* base, size_t size)


EDGE_SLOTS = TIERCEL_EDGES
HISTOGRAM_CELLS = TIERCEL_CELLS
#: Place of what is not a finite value inside a histogram.
ABOVE_ALL, MISSING, BELOW_ALL = CELL_ABOVE_ALL, CELL_MISSING, CELL_BELOW_ALL
STAGES = ("parse", "read", "compute", "score", "reply", "total")
DURATION_CELLS = MAGNITUDE_CELLS
DURATION_OVERFLOW, DURATION_SUM, DURATION_NONE = MAGNITUDE_OVERFLOW, MAGNITUDE_SUM, MAGNITUDE_NONE
PLAN_CELLS = (
    "begun", "done", "requests_general", "requests_fast", "rows_general", "rows_fast", "requests_many", "requests_shadow",
)
WORKER_CELLS = (
    "answered", "handed_on", "connections", "disconnections", "replies_2xx", "replies_3xx", "replies_4xx", "replies_5xx",
    "journal_records", "journal_bytes", "journal_dropped", "journal_too_large",
    "segments_prepared", "segments_failed", "segments_sealed", "segments_removed",
    "degraded_fallback", "degraded_last_score", "degraded_default", "refused_deadline", "refused_capacity",
    "near_realtime_requests", "near_realtime_batches", "near_realtime_rows",
    "shadow_scored", "shadow_failed", "shadow_dropped", "challenger_failed", "jobs_submitted", "spans_dropped",
    "near_realtime_waiting_rows", "segments_removed_unread", "busy_polls_came", "busy_polls_in_vain", "busy_poll_ns",
)
#: Cells that are set, not added to.
WORKER_GAUGES = ("near_realtime_waiting_rows",)
ERROR_SLOTS = N_ERROR_CODES
ERROR_NAME_SIZE = ERROR_NAME_BYTES


def plan_sections(Py_ssize_t n_features, Py_ssize_t n_outputs):
    """Where a plan's cells are.

    Returns:
        Section name -> (first cell, shape). The last section ends the block.
    """
    durations = N_PLAN_CELLS
    ages = durations + len(STAGES) * MAGNITUDE_CELLS
    features = ages + MAGNITUDE_CELLS
    scores = features + n_features * TIERCEL_CELLS
    return {
        "plan": (0, (N_PLAN_CELLS,)),
        "durations_ns": (durations, (len(STAGES), MAGNITUDE_CELLS)),
        "oldest_age_ms": (ages, (MAGNITUDE_CELLS,)),
        "features": (features, (n_features, TIERCEL_CELLS)),
        "scores": (scores, (n_outputs, TIERCEL_CELLS)),
    }


def worker_sections(Py_ssize_t n_cells=N_WORKER_CELLS):
    """Where a worker's cells are; `error_names` holds text: length, then ASCII. n_cells: as many as whoever wrote them had."""
    return {
        "worker": (0, (n_cells,)),
        "errors": (n_cells, (N_ERROR_CODES,)),
        "error_names": (n_cells + N_ERROR_CODES, (N_ERROR_CODES, ERROR_NAME_BYTES // 8)),
    }


def feature_cell(const float[::1] edges not None, float value):
    """The cell of a value among 24 ascending edges, unused ones +inf. For tests."""
    if edges.shape[0] != TIERCEL_EDGES:
        raise ValueError(f"Expected {TIERCEL_EDGES} edges, got {edges.shape[0]}")
    return tiercel_feature_cell(&edges[0], value)


def score_cell(const double[::1] edges not None, double value):
    """As `feature_cell`, in float64."""
    if edges.shape[0] != TIERCEL_EDGES:
        raise ValueError(f"Expected {TIERCEL_EDGES} edges, got {edges.shape[0]}")
    return tiercel_score_cell(&edges[0], value)


def magnitude_cell(int64_t value):
    """The cell of a duration (ns) or age (ms)."""
    return tiercel_magnitude_cell(value)


def magnitude_bounds():
    """Lowest value of each of the 1024 cells and of the overflow: int64 (1025,). Cell i holds [bounds[i], bounds[i + 1])."""
    i = np.arange(MAGNITUDE_OVERFLOW + 1, dtype=np.int64)
    return np.where(i < 32, i, (32 + i % 32) << np.maximum(i // 32 - 1, 0))


# In a cycle that is collected the buffer would be cleared before who exports from it is gone, and could not be released.
# SAFETY: it refers to a buffer and a dict of texts and numbers, which never lead back to it, so it closes no cycle itself.
@cython.no_gc
cdef class WorkerCounters:
    """Counts of a whole worker.

    Args:
        buffer: writable, 8-aligned, zeroed or counted in before, of `worker_sections()`; None: memory of its own, which no
            other process sees.
    """

    def __cinit__(self, buffer=None):
        cdef const uint8_t* at
        cdef Py_ssize_t slot
        n_bytes = 8 * (N_WORKER_CELLS + N_ERROR_CODES) + N_ERROR_CODES * ERROR_NAME_BYTES
        if buffer is None:
            buffer = np.zeros(n_bytes // 8, np.uint64)
        PyObject_GetBuffer(buffer, &self._view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        self._has_view = True
        if self._view.len != n_bytes or <size_t>self._view.buf % 8:
            raise ValueError(f"Expected {n_bytes} aligned bytes of cells, got {self._view.len}")
        self.cells = <uint64_t*>self._view.buf
        self._names = <uint8_t*>(self.cells + N_WORKER_CELLS + N_ERROR_CODES)
        self._slot_of = {}
        for slot in range(N_ERROR_CODES):
            at = self._names + slot * ERROR_NAME_BYTES
            if at[0]:
                name = (<const char*>at)[1 : 1 + min(<int>at[0], ERROR_NAME_BYTES - 1)]
                self._slot_of[name.decode("ascii", "replace")] = slot

    def __dealloc__(self):
        if self._has_view:
            PyBuffer_Release(&self._view)

    def count_reply(self, int status, str code=None):
        """Count a response of the general path, and its stable error code if it has one."""
        cdef Py_ssize_t slot
        if 200 <= status < 600:
            self.cells[WORKER_2XX + status // 100 - 2] += 1
        if code is not None:
            found = self._slot_of.get(code)
            slot = self._name_slot(code) if found is None else found
            self.cells[N_WORKER_CELLS + slot] += 1

    def _name_slot(self, str code):
        """A slot for a code that was not counted yet; the last one is "other", for all that do not fit."""
        cdef bytes name = code.encode("ascii", "replace")[: ERROR_NAME_BYTES - 1]
        cdef Py_ssize_t slot = len(set(self._slot_of.values()) - {N_ERROR_CODES - 1})
        cdef uint8_t* at
        cdef uint64_t first
        if slot >= N_ERROR_CODES - 1:
            name, slot = b"other", N_ERROR_CODES - 1
        else:
            self._slot_of[code] = slot      # codes are few; what comes after 63 of them is not remembered
        at = self._names + slot * ERROR_NAME_BYTES
        memcpy(at + 1, <const char*>name, len(name))
        memcpy(&first, at, 8)
        (<uint8_t*>&first)[0] = <uint8_t>len(name)
        tiercel_publish_u64(<uint64_t*>at, first)       # the length after the text
        return slot

    def add(self, str cell, uint64_t n=1):
        """Count n in a cell by name, from Python. The caller keeps to the one-writer rule of counters.pxd."""
        self.cells[WORKER_CELLS.index(cell)] += n

    def set(self, str cell, uint64_t value):
        """Set a gauge by name to what is so now. The caller keeps to the one-writer rule of counters.pxd.

        Raises:
            ValueError: the cell is not a gauge; a count that is set could go backwards.
        """
        if cell not in WORKER_GAUGES:
            raise ValueError(f"Expected a gauge ({', '.join(WORKER_GAUGES)}), got {cell!r}")
        tiercel_publish_u64(self.cells + <Py_ssize_t>WORKER_CELLS.index(cell), value)

    def get(self, str cell):
        """What a cell holds."""
        return self.cells[WORKER_CELLS.index(cell)]

    def touch(self):
        """Fault the cells in for writing. Any thread."""
        tiercel_touch(<uint8_t*>self._view.buf, self._view.len)


cdef class PlanCounters:
    """Counts of one (model, version) in one worker.

    Args:
        n_features, n_outputs: of the plan.
        feature_edges: float32 (n_features, 24), ascending, unused places +inf, the last always.
        score_edges: the same in float64 (n_outputs, 24).
        buffer: writable, 8-aligned, of `plan_sections()`; None: memory of its own.
    """

    def __cinit__(
        self, Py_ssize_t n_features, Py_ssize_t n_outputs, const float[:, ::1] feature_edges not None,
        const double[:, ::1] score_edges not None, buffer=None,
    ):
        if n_features < 1 or n_outputs < 1:
            raise ValueError(f"Expected features and outputs, got {n_features} and {n_outputs}")
        if feature_edges.shape[0] != n_features or feature_edges.shape[1] != TIERCEL_EDGES:
            raise ValueError(f"Expected edges of {n_features} features")
        if score_edges.shape[0] != n_outputs or score_edges.shape[1] != TIERCEL_EDGES:
            raise ValueError(f"Expected edges of {n_outputs} outputs")
        for edges in (np.asarray(feature_edges), np.asarray(score_edges)):
            # SAFETY: a value of -inf must be below every edge, or its cell lies past the histogram's end.
            if np.isnan(edges).any() or np.isneginf(edges).any():
                raise ValueError("Expected edges without NaN and -inf")
            if (edges[:, 1:] < edges[:, :-1]).any() or not (edges[:, -1] == np.inf).all():
                raise ValueError("Expected ascending edges that end in +inf")
        sections = plan_sections(n_features, n_outputs)
        n_cells = sections["scores"][0] + n_outputs * TIERCEL_CELLS
        if buffer is None:
            buffer = np.zeros(n_cells, np.uint64)
        PyObject_GetBuffer(buffer, &self._view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        self._has_view = True
        if self._view.len != 8 * n_cells or <size_t>self._view.buf % 8:
            raise ValueError(f"Expected {8 * n_cells} aligned bytes of cells, got {self._view.len}")
        self.n_features, self.n_outputs = n_features, n_outputs
        self._feature_edges = <float*>malloc(n_features * TIERCEL_EDGES * sizeof(float))
        self._score_edges = <double*>malloc(n_outputs * TIERCEL_EDGES * sizeof(double))
        if self._feature_edges == NULL or self._score_edges == NULL:
            raise MemoryError
        memcpy(self._feature_edges, &feature_edges[0, 0], n_features * TIERCEL_EDGES * sizeof(float))
        memcpy(self._score_edges, &score_edges[0, 0], n_outputs * TIERCEL_EDGES * sizeof(double))
        self.cells = <uint64_t*>self._view.buf
        self._durations = self.cells + <Py_ssize_t>sections["durations_ns"][0]
        self._ages = self.cells + <Py_ssize_t>sections["oldest_age_ms"][0]
        self._features = self.cells + <Py_ssize_t>sections["features"][0]
        self._scores = self.cells + <Py_ssize_t>sections["scores"][0]

    def __dealloc__(self):
        free(self._feature_edges)
        free(self._score_edges)
        if self._has_view:
            PyBuffer_Release(&self._view)

    cdef void count(self, const Prediction* prediction) noexcept nogil:
        cdef uint64_t* cells = self.cells
        cdef uint64_t* ages = self._ages
        cdef uint64_t fast = (prediction.flags & PREDICTION_FAST) != 0
        cdef unsigned int stage
        tiercel_publish_u64(cells + PLAN_BEGUN, cells[PLAN_BEGUN] + 1)
        cells[PLAN_REQUESTS_GENERAL + fast] += 1
        cells[PLAN_ROWS_GENERAL + fast] += prediction.n_rows
        cells[PLAN_MANY] += (prediction.flags & PREDICTION_MANY) != 0
        cells[PLAN_SHADOW] += (prediction.flags & PREDICTION_SHADOW) != 0
        # Nobody waited for a shadow, and what it took is not what an answer takes.
        if not prediction.flags & PREDICTION_SHADOW:
            for stage in range(N_STAGES):
                _count_magnitude(self._durations + stage * MAGNITUDE_CELLS, prediction.stage_ns[stage])
            _count_magnitude(self._durations + N_STAGES * MAGNITUDE_CELLS, prediction.total_ns)
        # A last score or a default was made from no features, and is no score of the model.
        if (prediction.flags >> <int>PREDICTION_RUNG_SHIFT & 15) < <unsigned int>RUNG_LAST_SCORE:
            if prediction.oldest_age_us < 0:
                ages[MAGNITUDE_NONE] += 1
            else:
                _count_magnitude(ages, prediction.oldest_age_us // 1000)
            tiercel_count_rows(self._features, self._feature_edges, prediction.rows, prediction.n_rows, self.n_features)
            tiercel_count_scores(self._scores, self._score_edges, prediction.scores, prediction.n_rows, self.n_outputs)
        tiercel_publish_u64(cells + PLAN_DONE, cells[PLAN_DONE] + 1)

    def touch(self):
        """Fault the cells in for writing. Any thread."""
        with nogil:
            tiercel_touch(<uint8_t*>self._view.buf, self._view.len)

    def snapshot(self):
        """The cells now: section -> uint64 array, copied."""
        cells = np.frombuffer(<uint64_t[:self._view.len // 8]>self.cells, np.uint64)
        sections = plan_sections(self.n_features, self.n_outputs)
        return {
            name: cells[first : first + int(np.prod(shape))].reshape(shape).copy()
            for name, (first, shape) in sections.items()
        }


cdef inline void _count_magnitude(uint64_t* cells, int64_t value) noexcept nogil:
    cells[tiercel_magnitude_cell(value)] += 1
    cells[MAGNITUDE_SUM] += value if value > 0 else 0
