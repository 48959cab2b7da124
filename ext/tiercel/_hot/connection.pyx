"""A client's connection apart from what is said on it; see connection.pxd. Owner: none, `protocol` builds on it."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE

from tiercel._hot.clock cimport monotonic_ns, monotonic_s, wall_ns
from tiercel._hot.fast_path cimport FastPath
from tiercel._hot.poller cimport Poller, Readable
from tiercel._hot.sockets cimport receive_now, receive_stamped, send_now
from tiercel._hot.stamps cimport Stamps
from tiercel._hot.typedefs cimport int64_t, uint8_t


cdef int _plain_socket(transport) except -2:
    """The descriptor behind a transport that writes bytes as they are; -1 for any other (TLS, a pipe, a test's)."""
    connection = transport.get_extra_info("socket")
    if connection is None or transport.get_extra_info("sslcontext") is not None:
        return -1
    return connection.fileno()


cdef class Connection(Readable):
    def __init__(self, FastPath path not None, config, server_state, app_state, loop):
        self.path, self.config, self.server_state, self.app_state, self.loop = (
            path, config, server_state, app_state, loop
        )
        self._phase = PHASE_AWAY
        self._fd, self._n_patient = -1, <int>PATIENT - SOON

    cdef int _open(self, transport, bint write_paused) except -1:
        self.server_state.connections.add(self)
        self._transport, self._poller = transport, None
        self._write_paused, self._read_paused = write_paused, False
        # What the general protocol wrote may still be on its way.
        self._fd, self._is_queued = _plain_socket(transport), True
        return self._set_phase(PHASE_IDLE, True)

    cdef int _close(self) except -1:
        self._stop_polling()
        self._fd = -1
        self._transport.close()
        return 0

    cdef int _abort(self, transport) except -1:
        self._stop_polling()
        self._fd = -1
        transport.abort()
        return 0

    cdef int _leave(self) except -1:
        """The connection is no longer ours, or no longer at all."""
        self.server_state.connections.discard(self)
        self._phase = PHASE_AWAY
        self._stop_polling()
        self._fd, self._n_patient = -1, 0       # the general path's requests may be of any kind
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return 0

    # -- reading -------------------------------------------------------------------------------------------------

    cdef int _read(self, const uint8_t* data, Py_ssize_t size) except -1:
        raise NotImplementedError

    @property
    def is_polled(self):
        """Whether the poller reads it when it is read, not its transport."""
        return self._poller is not None

    def data_received(self, data):
        """The transport read something. Next time the poller does."""
        cdef bytes whole
        if self._phase == PHASE_AWAY:
            return
        whole = data if type(data) is bytes else bytes(data)
        self._unread_ns = -1
        self._read(<const uint8_t*>PyBytes_AS_STRING(whole), PyBytes_GET_SIZE(whole))
        if self._fd < 0 or self._poller is not None or self._transport.is_closing():
            return
        self._poller = self.path._poller_of(self.loop)
        if self._poller is not None and not self._read_paused:
            self._transport.pause_reading()
            self._poll()

    cdef int _poll(self) except -1:
        """Read by the poller; where that takes no more, by the transport."""
        self._is_later = self._n_patient >= PATIENT
        try:
            self._poller.add(self._fd, self, self._is_later)
        except OSError:
            self._poller = None
            self._transport.resume_reading()
        return 0

    cdef int _stop_polling(self) except -1:
        if self._poller is not None:
            self._poller.remove(self._fd, self)
            self._poller = None
        return 0

    cdef int _return_reading(self) except -1:
        if (self._poller is not None or self._read_paused) and not self._transport.is_closing():
            self._transport.resume_reading()
        self._stop_polling()
        self._read_paused = False
        return 0

    cdef int _set_reading(self, bint wanted) except -1:
        if wanted != self._read_paused or self._transport.is_closing():
            return 0
        self._read_paused = not wanted
        if self._poller is not None and wanted:
            self._poll()
        elif self._poller is not None:
            self._poller.remove(self._fd, self)
        elif wanted:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()
        return 0

    cdef int receive(self, uint8_t* buffer, size_t size) except -1:
        cdef Poller poller = self._poller
        cdef Py_ssize_t n
        # A transport that failed to send closes by itself.
        if self._is_queued and self._transport.is_closing():
            return self._stop_polling()
        n = self._receive(buffer, size)
        if n > 0:
            self._read(buffer, n)
            # Handed on or closed, parked, held, or with a reply that the socket did not take.
            if self._poller is None or self._phase >= PHASE_PAUSED or self._is_queued:
                poller.leaves_work = True
            if self._is_later != (self._n_patient >= PATIENT) and self._poller is not None and not self._read_paused:
                self._poller.remove(self._fd, self)
                self._poll()
            return 0
        if n != -1:
            self._return_reading()
        return 0

    cdef Py_ssize_t _receive(self, uint8_t* buffer, size_t size) except? -3:
        cdef Stamps stamps = self._poller.stamps
        cdef int64_t came_ns, at_ns, now_ns = monotonic_ns()
        cdef Py_ssize_t n
        if not (self._came_back or stamps.asks(now_ns)):
            self._unread_ns = 0
            return receive_now(self._fd, buffer, size)
        n = receive_stamped(self._fd, buffer, size, &came_ns)
        if n > 0:
            at_ns = wall_ns()
            self._unread_ns = stamps.waited_ns(came_ns, now_ns, at_ns, monotonic_ns())
        return n

    cdef int failed(self, error) except -1:
        transport = self._transport
        self.loop.call_exception_handler(
            {"message": "Answering a connection failed", "exception": error, "protocol": self, "transport": transport}
        )
        if transport is not None:
            self._abort(transport)
        return 0

    cdef int let_go(self) except -1:
        return self._return_reading()

    # -- writing -------------------------------------------------------------------------------------------------

    cdef int _flush(self) except -1:
        cdef FastPath path = self.path
        cdef Py_ssize_t size = path._out.size, sent = 0
        if size == 0:
            return 0
        path._out.size = 0
        # PERF: a reply that the socket takes at once needs no bytes object and none of the transport's queues, which cost
        #   as much as the prediction (bench_http). What the socket does not take, an error too, is the transport's business.
        if self._is_queued and self._fd >= 0:
            self._is_queued = self._transport.get_write_buffer_size() > 0
        if not self._is_queued and self._fd >= 0:
            sent = max(0, send_now(self._fd, path._out.data, <size_t>size))
        if sent < size:
            self._is_queued = True
            self._transport.write(PyBytes_FromStringAndSize(<const char*>path._out.data + sent, size - sent))
        return 0

    # -- deadlines -----------------------------------------------------------------------------------------------

    cdef int _set_phase(self, Phase phase, bint renew) except -1:
        """Enter a phase; its deadline starts now when it is another phase or `renew` says another request."""
        cdef double now
        if phase == self._phase and not renew:
            return 0
        now = monotonic_s()
        self._phase = phase
        if phase == PHASE_HEAD:
            self._deadline = now + self.path.header_timeout_s
        elif phase == PHASE_BODY:
            self._deadline = now + self.path.body_timeout_s
        else:
            self._deadline = now + self.path.idle_timeout_s
        # PERF: the timer is not moved with every request. One that fires early is armed again for the rest.
        if self._timer is None or self._timer_at > self._deadline:
            self._arm(now)
        return 0

    cdef int _arm(self, double now) except -1:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = self._deadline
        self._timer = self.loop.call_later(max(0.0, self._deadline - now), self._on_timer)
        return 0

    def _on_timer(self):
        cdef double now = monotonic_s()
        self._timer = None
        if self._phase == PHASE_AWAY:
            return
        if now < self._deadline - 0.001:
            self._arm(now)
            return
        transport = self._transport
        if self._phase == PHASE_PAUSED or transport.is_closing() or transport.get_write_buffer_size() > 0:
            self._abort(transport)  # its peer does not read: a close would wait for it for ever
            return
        phase = self._phase
        if phase == PHASE_WAITING:      # its queue answers it whatever happens, and knows until when
            self._set_phase(PHASE_WAITING, True)
            return
        if phase == PHASE_IDLE:
            self._close()
            # Should the close not come through, the next timer aborts.
            self._deadline = now + self.path.idle_timeout_s
            self._arm(now)
            return
        self._leave()
        if phase == PHASE_HEAD:
            text = f"Expected a whole request head within {self.path.header_timeout_s:g} s, got only part of it"
            self.path._refuse(self, transport, 408, "head_timeout", text)
        else:
            text = f"Expected the whole body within {self.path.body_timeout_s:g} s, got only part of it"
            self.path._refuse(self, transport, 408, "body_timeout", text)
