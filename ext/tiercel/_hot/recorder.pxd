# recorder.pxd - where a plan leaves what it answered: counted, then journaled.
#
# Owns   : references to its counters and journal, which several recorders may share, and its declaration.
# GIL    : record() needs none, never raises, never blocks, never allocates and makes no system call.
# Threads: record() on the thread of the event loop only: one writer per worker. Made in any thread.
#
# SAFETY: record() reads n_rows x n_features values and n_rows x n_outputs scores. Whoever keeps a recorder for a plan must
#   have compared `n_features` and `n_outputs` with the plan's (0 means that nothing is read: the recorder keeps nothing).
from tiercel._hot.counters cimport PlanCounters, WorkerCounters
from tiercel._hot.journal cimport Journal, PlanMark
from tiercel._hot.prediction cimport Prediction


cdef class PlanRecorder:
    cdef readonly Py_ssize_t n_features, n_outputs, n_keys
    cdef readonly PlanCounters counters     # or None
    cdef readonly WorkerCounters worker     # or None
    cdef readonly Journal journal           # or None
    cdef readonly bytes declaration
    cdef readonly bint keeps_requests       # whoever has none of a request at hand need not make it
    cdef readonly bint is_recorded          # the last record is in the journal
    cdef bint _counts, _journals
    cdef PlanMark _mark
    cdef object __weakref__

    cdef void record(self, const Prediction* prediction) noexcept nogil
