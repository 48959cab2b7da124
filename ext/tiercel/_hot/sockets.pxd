# sockets.pxd - what is asked of a connection's socket directly; see sockets.h. Declarations only.
from tiercel._hot.typedefs cimport int64_t

cdef extern from "sockets.h" nogil:
    # As many bytes as the socket takes at once; -1: none.
    Py_ssize_t send_now(int fd, const void* data, size_t size) noexcept
    # Bytes that came; 0: no more will; -1: none yet; -2: an error.
    Py_ssize_t receive_now(int fd, void* data, size_t size) noexcept
    # The same, and when the last of them came: nanoseconds of the wall clock; 0: the kernel does not say.
    Py_ssize_t receive_stamped(int fd, void* data, size_t size, int64_t* came_ns) noexcept
    # Nanoseconds since the last bytes came, to the milliseconds that the kernel counts in; -1: it does not say.
    int64_t unread_ns(int fd) noexcept
