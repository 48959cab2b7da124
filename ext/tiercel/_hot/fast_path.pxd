# fast_path.pxd - what all connections of a server share: the way to the plans, the output buffer, refusals to repeat.
#
# Owns   : the output buffer. Whoever fills it flushes it before anything else can run (protocol.pyx).
# Lends  : request bodies to plans for the call.
# GIL    : held throughout; a plan's work on a large body releases it.
# Threads: all calls on the thread of the event loop.
from tiercel._hot.aside cimport Aside
from tiercel._hot.counters cimport WorkerCounters
from tiercel._hot.http cimport Head
from tiercel._hot.lines cimport Lines
from tiercel._hot.output cimport Output
from tiercel._hot.plan cimport Arrival, Prepared, ServingPlan
from tiercel._hot.poller cimport Poller
from tiercel._hot.reply cimport ReplyIds
from tiercel._hot.reply_head cimport HeadWriter
from tiercel._hot.tensors cimport TensorTallies
from tiercel._hot.typedefs cimport int64_t, uint8_t


# A refusal that was just given, for as long as its words stay true of other questions: under overload it is what is said most.
#
# Owns   : references. Immutable.
cdef class Refusal:
    cdef bytes reply
    cdef object headers                    # the list of uvicorn's headers that is in it
    cdef str code, cell                    # to be counted with it
    cdef int status
    cdef int64_t until_ns, slack_ns


# The last refusal of each sort of question: of one plan, in one form, about as many rows, with the same deadline.
#
# Owns   : references; plans are let go with `clear`, when there are others.
cdef class Refusals:
    cdef dict _known

    cdef Refusal find(self, Prepared asked, int64_t now_ns, object headers, bint is_sure)


# What all connections of a server share.
cdef class FastPath:
    cdef readonly double header_timeout_s, body_timeout_s, idle_timeout_s, busy_poll_us
    cdef readonly Py_ssize_t max_body_bytes, max_connections
    cdef readonly bint hands_on_traced     # requests of a trace are the general path's
    cdef object _engine, _hand_on, _refuse
    cdef public object queue               # see fast_path.pyi; None: what needs a queue is handed on
    cdef public object audit               # see fast_path.pyi; None: what is strict is handed on
    cdef readonly Refusals late, full, shed    # of questions whose time is over, that found no room, that made some
    cdef readonly Aside aside
    cdef public int64_t socket_wait_ns     # what one that is read last waits in its socket now, as the queue measures it
    cdef public int64_t socket_peak_ns     # about the longest of the last of those waits
    cdef bint _is_polling                  # queues are looked after, in the middle of bytes that are to be answered
    cdef int64_t _budget_us                # what the last body was given; -1: it named none, and its model has none
    cdef str _why                          # the last body was not answered: in a word, or None: no more is known
    cdef bint _is_lost                     # ... nor by the stand-in that was asked, for want of time
    cdef int64_t _polled_ns, _n_turns      # when queues were looked after; how often a connection was read since
    cdef ReplyIds _ids
    cdef WorkerCounters _counters          # answered and connections here; handed on and errors by the general path
    cdef Output _out
    cdef object _routes                    # the Routes that _plan was found in
    cdef bytes _reference
    cdef ServingPlan _plan                 # plan of _reference, or None
    cdef Lines _lines                      # of `_lines_plan`'s queue
    cdef ServingPlan _lines_plan           # or None
    cdef HeadWriter _heads
    cdef TensorTallies _tallies
    cdef Poller _poller                    # of the loop that its connections live on, or None
    cdef bint _has_no_poller               # the system gave none, or close() was called

    cdef Poller _poller_of(self, loop)              # or None: transports read
    cdef Lines _lines_of(self, ServingPlan plan)    # of a plan that is_queued
    cpdef int64_t queue_due_ns(self, Prepared asked, bint can_leave) noexcept
    cdef bint _polls(self, Py_ssize_t n_connections, int64_t now_ns) noexcept
    cdef ServingPlan _find(self, const uint8_t* reference, Py_ssize_t length)
    cdef bint _is_question(self, ServingPlan plan, const uint8_t* body, const Head* head, const Arrival* arrival) noexcept
    cdef int _complete(self, Prepared prepared, scores, bint close) except -1
    cdef bint _answer(
        self, ServingPlan plan, const uint8_t* body, const Head* head, const Arrival* arrival, bint close, tuple told
    )
