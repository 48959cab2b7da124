/* generator.h - one thread that sends HTTP/1.1 requests over K keep-alive connections and times the replies.
 *
 * Open loop  (rate > 0): requests are due at the events of a Poisson process of `rate` per second. A request that is due is
 *            sent as soon as a connection is free, and its latency counts from when it was due: a server that stalls is
 *            charged for everybody who would have asked meanwhile. Nothing is ever skipped, unless `abandon_ns` says that
 *            who had to wait longer for a connection does not ask any more. After `seconds` the rate may change to `step_rate`.
 * Closed loop (rate == 0): every free connection sends at once; latency counts from the send.
 * Beside     an open loop a closed one may run over connections of its own: other requests, which are only counted. A second
 *            generator for them would take turns with this one on their core, in slices of milliseconds.
 *
 * The thread polls without sleeping in open loop; it waits in epoll in closed loop. "Lag" is the time a request was due AND
 * had a free connection but was not sent yet: the generator's own delay, to be small beside what is measured.
 * Owns: sockets and buffers for one call. Lends: nothing. Threads: any number of calls on different threads at once. */
#ifndef BENCH_GENERATOR_H
#define BENCH_GENERATOR_H

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* -- histogram: 2^HISTOGRAM_BITS buckets per power of two, so a bucket is at most 1/256 of its values wide ----------- */
#define HISTOGRAM_BITS 8
#define HISTOGRAM_HALF (1 << HISTOGRAM_BITS)
#define HISTOGRAM_SIZE ((64 - HISTOGRAM_BITS + 1) * HISTOGRAM_HALF)

static inline uint32_t histogram_index(uint64_t value) {
    if (value < HISTOGRAM_HALF) return (uint32_t)value;
    uint32_t shift = 63u - (uint32_t)__builtin_clzll(value) - HISTOGRAM_BITS;
    return (shift + 1) * HISTOGRAM_HALF + (uint32_t)((value >> shift) - HISTOGRAM_HALF);
}

/* The largest value of a bucket: what is reported is never less than what was measured. */
static inline uint64_t histogram_highest(uint32_t index) {
    if (index < HISTOGRAM_HALF) return index;
    uint32_t shift = index / HISTOGRAM_HALF - 1;
    uint64_t top = (uint64_t)(index % HISTOGRAM_HALF) + HISTOGRAM_HALF;
    return ((top + 1) << shift) - 1; /* of the last bucket: wraps to 2^64 - 1 */
}

typedef struct {
    uint64_t *counts; /* HISTOGRAM_SIZE */
    uint64_t n, max;
    double sum;
} histogram;

static inline void histogram_add(histogram *h, uint64_t value) {
    h->counts[histogram_index(value)]++;
    h->n++;
    h->sum += (double)value;
    if (value > h->max) h->max = value;
}

/* -- Poisson arrivals: splitmix64 -> uniform (0, 1] -> exponential gap ------------------------------------------------ */
static inline double next_gap_s(uint64_t *state, double rate) {
    uint64_t z = (*state += 0x9E3779B97F4A7C15ull);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    z ^= z >> 31;
    return -log((double)((z >> 11) + 1) * 0x1.0p-53) / rate;
}

/* -- one run ---------------------------------------------------------------------------------------------------------- */
typedef struct {
    uint32_t address; /* IPv4, network order */
    uint16_t port;    /* network order */
    const uint8_t *requests;
    const int64_t *starts; /* n_requests + 1 offsets into `requests` */
    int64_t n_requests;
    int connections;
    double rate, warmup_s, seconds, grace_s;
    uint64_t seed, late_ns, window_ns;
    int64_t keep_every;       /* keep the bodies of the first KEPT_FIRST good replies, then of every n-th */
    double step_rate, step_s; /* open loop: after `seconds`, that rate for so long; 0: no more */
    uint64_t abandon_ns;      /* open loop: give a request up, unsent, when no connection was free for longer; 0: never */
    const uint8_t *beside;    /* requests of a closed loop beside an open one, cut by `beside_starts` */
    const int64_t *beside_starts;
    int64_t n_beside;
    int beside_connections;
} generator_config;

#define KEPT_BYTES 1024
#define KEPT_FIRST 16
#define BUFFER_BYTES 65536
typedef struct {
    int64_t request;
    int32_t size;
    uint8_t body[KEPT_BYTES];
} kept_reply;

/* What became of one request, when it was not a reply with a status. */
#define FATE_BROKEN 0
#define FATE_UNFINISHED (-1)
#define FATE_ABANDONED (-2)
#define NOT_TIMED UINT32_MAX
typedef struct {
    int64_t due_ns, sent_ns, done_ns; /* from when the measurement began; sent and done are -1 where they never were */
    uint32_t request;
    uint32_t server_us; /* the stages of Server-Timing together, without the budget; NOT_TIMED: none was sent */
    int32_t status;     /* of HTTP, or a fate */
    int32_t spare;
} logged_request;

typedef struct {
    histogram latency, service, lag; /* ns: from due (open loop) and from sent, to the whole reply read; send lag */
    uint64_t sent, ok, refused, bad_status, broken, unfinished, abandoned, late, all_ok; /* refused: by a 503 or 504 */
    double measured_s;
    kept_reply *kept;
    int64_t kept_size, n_kept;
    int last_status;
    uint32_t *windows; /* n_windows x HISTOGRAM_SIZE: latency again, by the window of `window_ns` the reply came in */
    int64_t n_windows;
    logged_request *log; /* of what was due after the warm-up, in the order of its end; log_size 0: none */
    int64_t log_size, n_logged, n_unlogged;
    uint64_t beside_ok, beside_failed; /* while it was measured */
} generator_result;

typedef struct {
    int fd;
    int busy;
    int is_beside;
    int64_t request;
    uint64_t due_ns, sent_ns, free_ns;
    int32_t have, head, total; /* bytes read; length of the head once known; of head and body (-1: chunked) */
    int status;
    uint32_t server_us;
    uint8_t in[BUFFER_BYTES];
} connection;

/* When requests are due: a Poisson process whose rate may change once. */
typedef struct {
    uint64_t state, start, due;
    double due_s, rate, step_at_s, step_rate;
} schedule;

static inline void advance(schedule *s) {
    double gap_s = next_gap_s(&s->state, s->rate);
    if (s->due_s + gap_s >= s->step_at_s) { /* the process has no memory: it begins anew where its rate changes */
        s->due_s = s->step_at_s;
        s->rate = s->step_rate;
        s->step_at_s = INFINITY;
        gap_s = next_gap_s(&s->state, s->rate);
    }
    s->due_s += gap_s;
    s->due = s->start + (uint64_t)(s->due_s * 1e9);
}

static inline void log_request(generator_result *result, uint64_t from, uint64_t due, uint64_t sent, uint64_t done,
                               int64_t request, uint32_t server_us, int status) {
    if (due < from || result->log_size == 0) return;
    if (result->n_logged == result->log_size) {
        result->n_unlogged++;
        return;
    }
    logged_request *at = &result->log[result->n_logged++];
    *at = (logged_request){.due_ns = (int64_t)(due - from), .sent_ns = sent ? (int64_t)(sent - from) : -1,
                           .done_ns = done ? (int64_t)(done - from) : -1, .request = (uint32_t)request,
                           .server_us = server_us, .status = status};
}

static inline uint64_t now_ns(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (uint64_t)at.tv_sec * 1000000000ull + (uint64_t)at.tv_nsec;
}

static int open_connection(const generator_config *config, int epoll, connection *c) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = config->port, .sin_addr = {config->address}};
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0) return -1;
    if (connect(c->fd, (struct sockaddr *)&to, sizeof to) != 0) {
        close(c->fd);
        c->fd = -1;
        return -1;
    }
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    fcntl(c->fd, F_SETFL, fcntl(c->fd, F_GETFL) | O_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data = {.ptr = c}};
    c->busy = 0;
    c->free_ns = now_ns();
    return epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &event);
}

static int send_all(int fd, const uint8_t *data, int64_t size) {
    while (size > 0) {
        ssize_t n = send(fd, data, (size_t)size, MSG_NOSIGNAL);
        if (n > 0) {
            data += n;
            size -= n;
        } else if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            struct pollfd wait = {.fd = fd, .events = POLLOUT};
            if (poll(&wait, 1, 1000) == 0) return -1;
        } else if (n < 0 && errno == EINTR) {
            continue;
        } else {
            return -1;
        }
    }
    return 0;
}

/* The milliseconds of a Server-Timing value, without those of an entry "budget", in microseconds. `value` ends in '\n'. */
static uint32_t sum_timing_us(const char *value) {
    double total_ms = 0;
    while (*value != '\n') {
        while (*value == ' ' || *value == ',') value++;
        int counts = strncasecmp(value, "budget", 6) != 0;
        for (; *value != ',' && *value != '\n'; value++)
            if (counts && strncasecmp(value, ";dur=", 5) == 0) total_ms += strtod(value + 5, NULL);
    }
    return total_ms >= 0 && total_ms < 4e6 ? (uint32_t)(total_ms * 1000 + 0.5) : NOT_TIMED;
}

/* Parse the head of a reply: 0 when incomplete, -1 when it is no HTTP reply we can delimit, 1 when `total` is known. */
static int parse_reply_head(connection *c) {
    const uint8_t *end = memmem(c->in, (size_t)c->have, "\r\n\r\n", 4);
    if (end == NULL) return c->have == BUFFER_BYTES ? -1 : 0;
    c->head = (int32_t)(end - c->in) + 4;
    if (c->head < 16 || memcmp(c->in, "HTTP/1.", 7) != 0) return -1;
    c->status = (c->in[9] - '0') * 100 + (c->in[10] - '0') * 10 + (c->in[11] - '0');
    c->total = -2;
    for (const uint8_t *line = memchr(c->in, '\n', (size_t)c->head); line != NULL && line + 1 < end;) {
        const char *name = (const char *)line + 1;
        if (strncasecmp(name, "content-length:", 15) == 0) {
            long length = strtol(name + 15, NULL, 10);
            if (length < 0 || length > BUFFER_BYTES - c->head) return -1;
            c->total = c->head + (int32_t)length;
        } else if (strncasecmp(name, "transfer-encoding: chunked", 26) == 0) {
            c->total = -1;
        } else if (strncasecmp(name, "server-timing:", 14) == 0) {
            c->server_us = sum_timing_us(name + 14);
        }
        line = memchr(name, '\n', (size_t)(end + 2 - (const uint8_t *)name));
    }
    return c->total == -2 ? -1 : 1;
}

/* -1: broken, 0: more to come, 1: the whole reply is here. */
static int take_reply(connection *c) {
    if (c->head == 0) {
        int parsed = parse_reply_head(c);
        if (parsed <= 0) return parsed;
    }
    if (c->total == -1) { /* chunked: the only reply on this connection, so its end is the end of what was read */
        if (c->have >= c->head + 5 && memcmp(c->in + c->have - 5, "0\r\n\r\n", 5) == 0) return 1;
        return c->have == BUFFER_BYTES ? -1 : 0;
    }
    return c->have < c->total ? 0 : c->have == c->total ? 1 : -1;
}

static void close_connection(connection *c) {
    close(c->fd);
    c->fd = -1;
}

static void send_beside(const generator_config *config, connection *c, int64_t *n_sent) {
    int64_t request = (*n_sent)++ % config->n_beside;
    const uint8_t *bytes = config->beside + config->beside_starts[request];
    c->have = c->head = c->total = 0;
    if (send_all(c->fd, bytes, config->beside_starts[request + 1] - config->beside_starts[request]) != 0)
        shutdown(c->fd, SHUT_RDWR);
}

/* 0, or an errno: no memory, or the server could not be reached at all. */
static int generate(const generator_config *config, generator_result *result) {
    int failure = 0, k = config->connections, n_all = k + config->beside_connections, n_free = 0, free_at = 0;
    int64_t n_sent = 0, n_beside_sent = 0;
    /* Sending is looked at again after so many replies. */
    int at_once = config->beside_connections ? 16 : 256;
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    connection *all = calloc((size_t)n_all, sizeof *all);
    connection **ring = calloc((size_t)k, sizeof *ring); /* free connections, longest free first */
    struct epoll_event events[256];
    if (all == NULL || ring == NULL || epoll < 0) {
        failure = ENOMEM;
        goto done;
    }
    for (int i = 0; i < n_all; i++) all[i].fd = -1;
    for (int i = 0; i < n_all; i++) {
        if (open_connection(config, epoll, &all[i]) != 0) {
            failure = errno ? errno : ECONNREFUSED;
            goto done;
        }
        all[i].is_beside = i >= k;
        if (i < k) ring[n_free++] = &all[i];
    }
    int open_loop = config->rate > 0;
    uint64_t start = now_ns(), now = start;
    uint64_t measure_from = start + (uint64_t)(config->warmup_s * 1e9);
    uint64_t end = measure_from + (uint64_t)((config->seconds + config->step_s) * 1e9);
    uint64_t give_up = end + (uint64_t)(config->grace_s * 1e9);
    schedule next = {.state = config->seed, .start = start, .rate = config->rate, .step_rate = config->step_rate,
                     .step_at_s = config->step_s > 0 ? config->warmup_s + config->seconds : INFINITY};
    if (open_loop) advance(&next);
    uint64_t last_reply = measure_from;
    int busy = 0;
    for (int i = k; i < n_all; i++) send_beside(config, &all[i], &n_beside_sent);
    for (;;) {
        now = now_ns();
        if (now > give_up) break;
        int more = open_loop ? next.due < end : now < end;
        while (more && n_free > 0 && (!open_loop || next.due <= now)) {
            connection *c = ring[free_at];
            /* Not how late it is, which may be our own doing, but how long no connection was free. */
            if (open_loop && config->abandon_ns && c->free_ns > next.due + config->abandon_ns) {
                result->abandoned++;
                log_request(result, measure_from, next.due, 0, 0, n_sent % config->n_requests, NOT_TIMED, FATE_ABANDONED);
                n_sent++;
                advance(&next);
                more = next.due < end;
                continue;
            }
            if (c->fd < 0 && open_connection(config, epoll, c) != 0) { /* the server closed it: a request is lost with it */
                result->broken++;
                log_request(result, measure_from, open_loop ? next.due : now, 0, 0, n_sent % config->n_requests, NOT_TIMED,
                            FATE_BROKEN);
                c->fd = -1;
                c->free_ns = now_ns();
                ring[(free_at + n_free) % k] = c;
            } else {
                uint64_t ready = open_loop && next.due > c->free_ns ? next.due : c->free_ns;
                uint64_t lag = now > ready ? now - ready : 0;
                c->request = n_sent % config->n_requests;
                c->due_ns = open_loop ? next.due : now;
                c->sent_ns = now;
                c->busy = 1;
                c->have = c->head = c->total = 0;
                c->server_us = NOT_TIMED;
                const uint8_t *bytes = config->requests + config->starts[c->request];
                int64_t size = config->starts[c->request + 1] - config->starts[c->request];
                n_sent++;
                if (c->due_ns >= measure_from) {
                    result->sent++;
                    if (open_loop) {
                        histogram_add(&result->lag, lag);
                        result->late += lag > config->late_ns;
                    }
                }
                busy++;
                /* A connection that cannot be written to is noticed when it is read. */
                if (send_all(c->fd, bytes, size) != 0) shutdown(c->fd, SHUT_RDWR);
                n_free--;
            }
            free_at = (free_at + 1) % k;
            if (open_loop) {
                advance(&next);
                more = next.due < end;
            }
            now = now_ns();
        }
        if (!more && busy == 0 && now >= end) break;
        int n = epoll_wait(epoll, events, at_once, open_loop ? 0 : 1);
        for (int i = 0; i < n; i++) {
            connection *c = events[i].data.ptr;
            ssize_t got = recv(c->fd, c->in + c->have, (size_t)(BUFFER_BYTES - c->have), 0);
            if (got < 0 && (errno == EAGAIN || errno == EINTR)) continue;
            int taken = -1;
            if (got > 0 && (c->busy || c->is_beside)) {
                c->have += (int32_t)got;
                taken = take_reply(c);
            }
            if (taken == 0) continue;
            now = now_ns();
            if (c->is_beside) {
                int counts = now >= measure_from && now < end, is_good = taken == 1 && c->status == 200;
                result->beside_ok += counts && is_good;
                result->beside_failed += counts && !is_good;
                if (taken != 1)
                    close_connection(c);
                else if (now < end)
                    send_beside(config, c, &n_beside_sent);
                continue;
            }
            int was_busy = c->busy;
            if (taken == 1 && c->status == 200) {
                result->all_ok++;
                if (c->due_ns >= measure_from) {
                    histogram_add(&result->latency, now - c->due_ns);
                    histogram_add(&result->service, now - c->sent_ns);
                    int64_t window = (int64_t)((now - measure_from) / config->window_ns);
                    if (window < result->n_windows)
                        result->windows[window * HISTOGRAM_SIZE + histogram_index(now - c->due_ns)]++;
                    result->ok++;
                    last_reply = now;
                }
                if ((result->all_ok <= KEPT_FIRST || result->all_ok % (uint64_t)config->keep_every == 0) &&
                    result->n_kept < result->kept_size && c->total > 0 && c->total - c->head <= KEPT_BYTES) {
                    kept_reply *kept = &result->kept[result->n_kept++];
                    kept->request = c->request;
                    kept->size = c->total - c->head;
                    memcpy(kept->body, c->in + c->head, (size_t)kept->size);
                }
            } else if (taken == 1) {
                if (c->status == 503 || c->status == 504)
                    result->refused++;
                else
                    result->bad_status++;
                result->last_status = c->status;
            } else {
                result->broken += was_busy;
                close_connection(c);
            }
            if (was_busy) {
                log_request(result, measure_from, c->due_ns, c->sent_ns, now, c->request, c->server_us,
                            taken == 1 ? c->status : FATE_BROKEN);
                busy--;
                c->busy = 0;
                c->free_ns = now;
                ring[(free_at + n_free) % k] = c;
                n_free++;
            } /* an idle connection that the server closed stays in the ring and is opened again when its turn comes */
        }
    }
    result->unfinished = (uint64_t)busy;
    for (int i = 0; i < k; i++)
        if (all[i].busy)
            log_request(result, measure_from, all[i].due_ns, all[i].sent_ns, 0, all[i].request, NOT_TIMED, FATE_UNFINISHED);
    for (; open_loop && next.due < end; advance(&next), n_sent++) { /* due, but never sent: the server could not take them */
        if (config->abandon_ns)
            result->abandoned++;
        else
            result->unfinished++;
        log_request(result, measure_from, next.due, 0, 0, n_sent % config->n_requests, NOT_TIMED,
                    config->abandon_ns ? FATE_ABANDONED : FATE_UNFINISHED);
    }
    result->measured_s = (double)((last_reply > end ? last_reply : end) - measure_from) * 1e-9;
done:
    if (all != NULL)
        for (int i = 0; i < n_all; i++)
            if (all[i].fd >= 0) close(all[i].fd);
    if (epoll >= 0) close(epoll);
    free(all);
    free(ring);
    return failure;
}

#endif
