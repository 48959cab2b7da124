# counters.pxd - what a worker counts, in memory that other processes read while it counts.
#
# Cells are uint64 in native order, in a buffer that the caller mapped from a file. Only ever added to, so that readers
# merge workers by addition and take windows by subtraction. The exception are gauges: set to what is so now, summed over
# the workers that live, and forgotten with the worker.
#
# Owns   : a Py_buffer on the caller's cells (held until the object goes), its own copy of the edges.
# Lends  : `cells`, to compiled code that keeps a reference to the object.
# GIL    : count() needs none, never raises, never blocks, never allocates.
# Threads: one writer, the thread of the event loop. A reader in any process sees each cell whole; while a request is being
#          counted it may see some of its cells and not the others. `begun` > `done` says that it did, or that the writer
#          was killed there.
from tiercel._hot.prediction cimport Prediction
from tiercel._hot.typedefs cimport feature_t, score_t, uint8_t, uint64_t


# Cells of one histogram (TIERCEL_CELLS of them): 0..23 = how many edges are <= the value, +inf, NaN, -inf, one spare.
cdef enum:
    CELL_ABOVE_ALL = 24     # +inf
    CELL_MISSING = 25       # NaN
    CELL_BELOW_ALL = 26     # -inf

# Single cells at the start of a plan's block.
cdef enum:
    PLAN_BEGUN              # requests whose counting began
    PLAN_DONE               # ... and ended
    PLAN_REQUESTS_GENERAL
    PLAN_REQUESTS_FAST
    PLAN_ROWS_GENERAL
    PLAN_ROWS_FAST
    PLAN_MANY               # requests with lists
    PLAN_SHADOW             # requests of which the score was not sent; counted among the requests above too, not in durations
    N_PLAN_CELLS = 8

# One log-linear histogram: 1024 cells, overflow, sum, and "nothing to measure".
cdef enum:
    MAGNITUDE_OVERFLOW = 1024
    MAGNITUDE_SUM = 1025
    MAGNITUDE_NONE = 1026
    MAGNITUDE_CELLS = 1032

# Cells of a worker. The event loop's thread writes them, except those marked "keeper", which the journal's keeper writes.
# Files name their cells: new ones go behind the last, and none changes its place or is taken out.
cdef enum:
    WORKER_ANSWERED         # requests the compiled protocol answered
    WORKER_HANDED_ON        # ... and those it gave to the general path
    WORKER_CONNECTIONS      # accepted
    WORKER_DISCONNECTIONS   # gone again
    WORKER_2XX              # responses of the general path by status class
    WORKER_3XX
    WORKER_4XX
    WORKER_5XX
    JOURNAL_RECORDS         # requests whose record is in the journal
    JOURNAL_BYTES
    JOURNAL_DROPPED         # requests of which some part is not, because no segment was ready
    JOURNAL_TOO_LARGE       # ... because a row does not fit a record
    SEGMENTS_PREPARED       # keeper
    SEGMENTS_FAILED         # keeper: could not be made (disk full, ...)
    SEGMENTS_SEALED         # keeper
    SEGMENTS_REMOVED        # keeper: retention
    DEGRADED_FALLBACK       # answers by rung of the degrade ladder
    DEGRADED_LAST_SCORE
    DEGRADED_DEFAULT
    REFUSED_DEADLINE        # requests refused before they were begun: could not be in time
    REFUSED_CAPACITY        # ... no room
    NEAR_REALTIME_REQUESTS  # taken from the queue and scored
    NEAR_REALTIME_BATCHES
    NEAR_REALTIME_ROWS
    SHADOW_SCORED
    SHADOW_FAILED
    SHADOW_DROPPED          # no spare time
    CHALLENGER_FAILED       # requests of the challenger's share that it could not answer
    JOBS_SUBMITTED
    SPANS_DROPPED           # of traces: the queue was full, or the collector did not take them
    NEAR_REALTIME_WAITING_ROWS  # gauge: in the queue now
    SEGMENTS_REMOVED_UNREAD # keeper: of those removed, before they were in the prediction table
    BUSY_POLLS_CAME         # waits awake for the next request, by whether one came in time
    BUSY_POLLS_IN_VAIN
    BUSY_POLL_NS            # ... and how long they took, together
    N_WORKER_CELLS = 35
    N_ERROR_CODES = 64      # named error cells behind them
    ERROR_NAME_BYTES = 48   # length in the first byte, then ASCII


cdef class WorkerCounters:
    cdef uint64_t* cells            # N_WORKER_CELLS; bump with `counters.cells[WORKER_ANSWERED] += 1`
    cdef uint8_t* _names            # N_ERROR_CODES x ERROR_NAME_BYTES, in the same buffer
    cdef Py_buffer _view
    cdef bint _has_view
    cdef dict _slot_of              # error code -> slot


cdef class PlanCounters:
    cdef uint64_t* cells
    cdef readonly Py_ssize_t n_features, n_outputs
    cdef float* _feature_edges      # n_features x 24
    cdef double* _score_edges       # n_outputs x 24
    cdef uint64_t* _durations       # stages in order, then total
    cdef uint64_t* _ages
    cdef uint64_t* _features
    cdef uint64_t* _scores
    cdef Py_buffer _view
    cdef bint _has_view
    cdef object __weakref__

    cdef void count(self, const Prediction* prediction) noexcept nogil
