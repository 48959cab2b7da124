/* sockets.h - what is asked of a connection's socket directly. */
#ifndef TIERCEL_SOCKETS_H
#define TIERCEL_SOCKETS_H

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
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

/* As receive_now, and when the last of those bytes came: nanoseconds of the wall clock; 0: the kernel does not say. It does
 * for sockets accepted from a listener that was told to stamp (SO_TIMESTAMPNS, serving/listening.py). */
static inline ssize_t receive_stamped(int fd, void *data, size_t size, int64_t *came_ns) {
    *came_ns = 0;
#ifdef SCM_TIMESTAMPNS
    union {
        struct cmsghdr aligned;
        char bytes[CMSG_SPACE(sizeof(struct timespec))];
    } control;
    struct iovec part = {.iov_base = data, .iov_len = size};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof(control.bytes)};
    ssize_t n = recvmsg(fd, &message, MSG_DONTWAIT);
    if (n < 0)
        return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR ? -1 : -2;
    for (struct cmsghdr *told = CMSG_FIRSTHDR(&message); told != NULL; told = CMSG_NXTHDR(&message, told)) {
        if (told->cmsg_level == SOL_SOCKET && told->cmsg_type == SCM_TIMESTAMPNS &&
            told->cmsg_len >= CMSG_LEN(sizeof(struct timespec))) {
            struct timespec at;
            memcpy(&at, CMSG_DATA(told), sizeof(at));
            *came_ns = (int64_t)at.tv_sec * 1000000000 + at.tv_nsec;
        }
    }
    return n;
#else
    return receive_now(fd, data, size);
#endif
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
