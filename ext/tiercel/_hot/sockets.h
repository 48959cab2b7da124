/* sockets.h - what is asked of a connection's socket directly. */
#ifndef TIERCEL_SOCKETS_H
#define TIERCEL_SOCKETS_H

#include <errno.h>
#include <stdint.h>
#include <sys/socket.h>
#ifdef __linux__
#include <netinet/in.h>
#include <netinet/tcp.h>
#endif

#ifndef MSG_NOSIGNAL /* macOS; CPython ignores SIGPIPE anyway */
#define MSG_NOSIGNAL 0
#endif

/* As many bytes as the socket takes at once; -1: none. */
static inline ssize_t send_now(int fd, const void *data, size_t size) {
    return send(fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL);
}

/* Bytes that came; 0: no more will; -1: none yet; -2: an error. */
static inline ssize_t receive_now(int fd, void *data, size_t size) {
    ssize_t n = recv(fd, data, size, MSG_DONTWAIT);
    return n >= 0 ? n : errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR ? -1 : -2;
}

/* Nanoseconds since the last bytes came, to the milliseconds that the kernel counts in; -1: it does not say. */
static inline int64_t unread_ns(int fd) {
#ifdef __linux__
    struct tcp_info info;
    socklen_t size = sizeof(info);
    if (fd >= 0 && getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) == 0)
        return (int64_t)info.tcpi_last_data_recv * 1000000;
#else
    (void)fd;
#endif
    return -1;
}

#endif
