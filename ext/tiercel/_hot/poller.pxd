# poller.pxd - the sockets of many connections, watched and read without the event loop's transports.
#
# A transport reads for each request with a turn through the loop's machinery, a context and a bytes object: a twelfth of what
# a prediction takes (bench_http, 9.5 us of CPU without and 10.3 with). Here the loop watches one descriptor for all: an epoll
# set of our own. Its turn reads every socket that is ready, each once, in the order in which they became so, into one buffer.
#
# Owns   : the epoll set and the buffer; a reference to each member.
# Lends  : the buffer, to receive() for the call.
# GIL    : held.
# Threads: the event loop's only.
from tiercel._hot.typedefs cimport uint8_t

# What one read brings at most.
cdef enum:
    READ_BYTES = 262144


# What can be told that its socket is to be read.
cdef class Readable:
    # Read it once, into `buffer`, without waiting. What this raises is given to failed().
    cdef int receive(self, uint8_t* buffer, size_t size) except -1
    cdef int failed(self, error) except -1
    # The poller reads nothing more: somebody else is to.
    cdef int let_go(self) except -1


cdef class Poller:
    cdef readonly object loop
    cdef list _members          # by descriptor: a Readable, a callable, or None
    cdef uint8_t* _buffer
    cdef int _epoll             # -1: closed

    # Tell `member` - call it, if it is none of ours - whenever `fd` can be read, until it is removed. A descriptor that was
    # closed meanwhile, and is another socket's now, is that one's. Raises OSError.
    cdef int add(self, int fd, member) except -1
    # Whether `fd` was this member's.
    cdef bint remove(self, int fd, member) except -1


# The poller of a loop; None where the system has none to give: its transports read.
cdef Poller open_poller(loop)
