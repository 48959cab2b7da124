# connection.pxd - a client's connection apart from what is said on it: reading, writing, deadlines, the way out.
#
# Reads  : the transport brings the first bytes. From then on a Poller reads the socket, unless it is no plain one (TLS, a
#          test's) or there is no poller; the transport is paused meanwhile. That the peer ends, or is gone, is the
#          transport's to find and to say: it reads again then (and finds an end, also after a reset).
# Writes : straight to the socket while the transport holds nothing back, else through the transport.
# Limits : a request's head and body have a deadline each, counted from their first byte however they trickle; an idle
#          connection and a peer that does not read its replies have another.
# Owns   : its timer; its place in the poller.
# GIL    : held throughout.
# Threads: all calls on the thread of the event loop.
from tiercel._hot.fast_path cimport FastPath
from tiercel._hot.poller cimport Poller, Readable
from tiercel._hot.typedefs cimport int64_t, uint8_t

# Who asks both tiers is read with those that cannot wait; who has asked nothing inline so far is soon believed.
cdef enum:
    PATIENT = 32
    SOON = 4

cdef enum Phase:
    PHASE_IDLE          # between requests
    PHASE_HEAD          # part of a head is here
    PHASE_BODY          # a head and part of its body are here
    PHASE_PAUSED        # the peer does not read: requests may be waiting in the buffer
    PHASE_WAITING       # a request is in a queue, or its reply is held: what follows it may be in the buffer
    PHASE_AWAY          # handed on, refused or closed


cdef class Connection(Readable):
    cdef readonly FastPath path
    cdef readonly object config, server_state, app_state, loop
    cdef object _transport, _timer
    cdef Poller _poller                    # that reads it, or is going to when reading goes on; None: the transport does
    cdef double _deadline, _timer_at       # seconds of the monotonic clock
    cdef Phase _phase
    cdef bint _write_paused, _read_paused, _draining
    cdef int _fd                           # of the open connection, -1: read and write through the transport only
    cdef bint _is_queued                   # the transport may still hold bytes that must go first
    cdef int _n_patient                    # requests in a row, up to PATIENT, that could wait to be read
    cdef bint _is_later                    # the poller reads it after those that cannot
    cdef bint _came_back                   # it was not read for a while, and has not been since
    # How long the bytes of this read had been in the socket; 0: hardly, -1: that was not told.
    cdef int64_t _unread_ns

    # What came, in order. `data` is only lent.
    cdef int _read(self, const uint8_t* data, Py_ssize_t size) except -1
    # As receive_now; what is read then has waited `_unread_ns`.
    cdef Py_ssize_t _receive(self, uint8_t* buffer, size_t size) except? -3
    cdef int _open(self, transport, bint write_paused) except -1
    cdef int _set_reading(self, bint wanted) except -1
    cdef int _poll(self) except -1
    cdef int _stop_polling(self) except -1
    cdef int _return_reading(self) except -1        # to the transport
    cdef int _flush(self) except -1                 # what is in the path's output buffer
    cdef int _close(self) except -1
    cdef int _abort(self, transport) except -1      # which was its own, should it have left meanwhile
    cdef int _set_phase(self, Phase phase, bint renew) except -1
    cdef int _arm(self, double now) except -1
    cdef int _leave(self) except -1
