# recorder.pxd - where a plan leaves what it answered.
#
# GIL    : record() needs none, never raises, never blocks and never allocates.
# Threads: record() on the thread of the event loop only: one writer per worker.
from tiercel._hot.prediction cimport Prediction


cdef class PlanRecorder:
    cdef void record(self, const Prediction* prediction) noexcept nogil
