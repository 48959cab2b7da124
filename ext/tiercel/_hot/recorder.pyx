"""Where a plan leaves what it answered; see recorder.pxd for the contract."""


cdef class PlanRecorder:
    """Base of what records a plan's predictions. This one keeps nothing."""

    cdef void record(self, const Prediction* prediction) noexcept nogil:
        pass
