/* poller.h - the kernel's list of sockets that can be read: epoll, where there is one. */
#ifndef TIERCEL_POLLER_H
#define TIERCEL_POLLER_H

#include <errno.h>
#ifdef __linux__
#include <sys/epoll.h>
#endif

enum { TC_MAX_EVENTS = 1024 };

/* As epoll has them: -1 with errno, ENOSYS where there is none. */
static inline int tc_poll_open(void) {
#ifdef __linux__
    return epoll_create1(EPOLL_CLOEXEC);
#else
    errno = ENOSYS;
    return -1;
#endif
}

static inline int tc_poll_add(int set, int fd) {
#ifdef __linux__
    struct epoll_event event = {.events = EPOLLIN, .data = {.fd = fd}};
    return epoll_ctl(set, EPOLL_CTL_ADD, fd, &event);
#else
    (void)set, (void)fd;
    errno = ENOSYS;
    return -1;
#endif
}

static inline void tc_poll_remove(int set, int fd) {
#ifdef __linux__
    struct epoll_event event = {0};
    epoll_ctl(set, EPOLL_CTL_DEL, fd, &event);
#else
    (void)set, (void)fd;
#endif
}

/* Up to `at_most` <= TC_MAX_EVENTS descriptors that can be read, in the order in which they became so; how many.
 * Does not wait. */
static inline int tc_poll_ready(int set, int *ready, int at_most) {
#ifdef __linux__
    struct epoll_event events[TC_MAX_EVENTS];
    int n = epoll_wait(set, events, at_most, 0);
    for (int i = 0; i < n; i++)
        ready[i] = events[i].data.fd;
    return n;
#else
    (void)set, (void)ready, (void)at_most;
    return 0;
#endif
}

#endif
