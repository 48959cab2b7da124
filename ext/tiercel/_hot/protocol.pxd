# protocol.pxd - one client connection: predictions and infer requests of the boring shape are answered here, all else is
# handed on.
#
# Bytes come in as connection.pxd has it. Every complete request whose head is HEAD_FAST (http.pxd), whose reference is
# loaded and whose plan answers (`answer_into` returns a reply, not None) is answered at once, in order; the replies of
# one read event go out in one write. From the first request that is none of this, the connection belongs to the general
# protocol, which receives the bytes from that request on, untouched; it returns the connection with adopt() when it has
# nothing left to do. So there is one writer at any moment, and an error has one author.
#
# A request whose model is scored in batches (`plan.is_queued`) is assembled here and waits in the queue of near-realtime.
# Its connection waits with it: what comes meanwhile is kept and not looked at, so order holds. The queue calls
# complete(), once; when the client goes away first, the question is withdrawn. Infer requests of such a model are handed on.
#
# A model that is strict (`plan.is_strict`) is answered here, and its reply held: the connection waits, as above, until the
# record is durable. Then release() sends the reply, or what refuses it.
#
# Limits : a request's head and body have a deadline each, counted from their first byte however they trickle; an idle
#          connection and a peer that does not read its replies have another. At most max_connections connections.
#          A head is at most MAX_HEAD_BYTES, a body at most max_body_bytes; what is larger is handed on unread.
# Writes : straight to the socket while the transport holds nothing back, else through the transport.
# Overload: a request that waited unread has that much less time; of those that could still be answered a share is refused,
#          and a connection whose request was refused may be read later (aside.pxd).
# Flow   : while the transport's write buffer is full nothing is read and nothing more is answered; while a request waits
#          for its batch at most WAITING_BYTES are read, and what one read brings.
# Owns   : the bytes of its one incomplete request, and its timer.
# Lends  : `body` to answer_into() for the call.
# GIL    : held throughout; the plan releases it for large requests.
# Threads: all calls on the thread of the event loop.
from tiercel._hot.connection cimport Connection, Phase
from tiercel._hot.fast_path cimport Refusals
from tiercel._hot.http cimport Head
from tiercel._hot.marks cimport Marks
from tiercel._hot.plan cimport Arrival, Prepared, ServingPlan
from tiercel._hot.typedefs cimport int64_t, uint8_t

# How much is gathered before it is written and the transport may say stop.
cdef enum:
    WRITE_BYTES = 65536

# How much of what follows a waiting request is read ahead.
cdef enum:
    WAITING_BYTES = 65536


# How often the queue is polled while requests are read.
cdef enum:
    POLL_NS = 250_000

cdef enum Outcome:
    OUTCOME_DONE        # everything was answered
    OUTCOME_PARTIAL     # an incomplete request is left
    OUTCOME_HAND_ON     # the next request is not for this path
    OUTCOME_PAUSED      # the transport is full
    OUTCOME_WAITING     # the last request that was taken waits for its batch, or its reply is held


cdef class HotProtocol(Connection):
    cdef readonly int64_t begun_ns         # of the monotonic clock: when the first byte of the next request was read
    cdef bytearray _buffer                 # the incomplete request, or what follows a waiting one; or None
    cdef Marks _marks                      # of what came while a request waited or the peer did not read
    cdef Prepared _asked                   # the question that waits, or None
    cdef object _place                     # ... its place in the queue
    cdef bytes _held                       # the reply that waits for its record, or None
    cdef bytes _request                    # ... its bytes, where somebody else may have to answer it
    cdef Py_ssize_t _needed                # bytes of it that are worth another look
    cdef bint _says_close
    cdef bint _is_refused                  # the last read brought a request that was refused
    cdef bint _is_aside                    # not read until come_back()

    cdef int _take(self, const uint8_t* data, Py_ssize_t size, bint is_new) except -1
    cdef int _take_buffer(self) except -1
    cdef Outcome _answer_all(self, const uint8_t* data, Py_ssize_t size, bint is_new, Py_ssize_t* consumed) except *
    cdef Outcome _park(
        self, ServingPlan plan, const uint8_t* request, const Head* head, const Arrival* arrival, bint close,
        Py_ssize_t* consumed,
    ) except *
    cdef Outcome _hold(
        self, ServingPlan plan, const uint8_t* request, const Head* head, const Arrival* arrival, bint close,
        Py_ssize_t* consumed,
    ) except *
    cdef bint _stand_in(
        self, ServingPlan plan, const uint8_t* request, const Head* head, const Arrival* arrival, bint close, str reason
    )
    cdef bint _stand_in_later(self, Prepared prepared, bytes request, error)
    cdef int _answer_waiting(self, Prepared prepared, scores, error) except -1
    cdef bint _refuse_for_time(
        self, ServingPlan plan, const uint8_t* request, const Head* head, const Arrival* arrival, bint close
    )
    cdef bint _refuse_late(self, Prepared asked, const Arrival* arrival, bint close) except *
    cdef bint _refuse_again(self, Refusals refusals, Prepared asked, int64_t now_ns, bint is_sure=*)
    cdef int _go_on(self, bint says_close=*) except -1
    cdef int _hand(self, bytes data, double deadline_s) except -1
