# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The Python face of generator.h; benchmarks.loadgen.run is what to call."""

import socket

import numpy as np

from cpython.mem cimport PyMem_Calloc, PyMem_Free
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

cdef extern from "arpa/inet.h":
    uint16_t htons(uint16_t value)

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    """

cdef extern from "generator.h" nogil:
    int HISTOGRAM_SIZE, HISTOGRAM_BITS, KEPT_BYTES

    ctypedef struct histogram:
        uint64_t* counts
        uint64_t n, max
        double sum

    ctypedef struct generator_config:
        uint32_t address
        uint16_t port
        const uint8_t* requests
        const int64_t* starts
        int64_t n_requests
        int connections
        double rate, warmup_s, seconds, grace_s
        uint64_t seed, late_ns, window_ns
        int64_t keep_every
        double step_rate, step_s
        uint64_t abandon_ns
        const uint8_t* beside
        const int64_t* beside_starts
        int64_t n_beside
        int beside_connections

    ctypedef struct kept_reply:
        int64_t request
        int32_t size
        uint8_t body[1024]

    ctypedef struct logged_request:
        pass

    ctypedef struct generator_result:
        histogram latency, service, lag
        uint64_t sent, ok, refused, bad_status, broken, unfinished, abandoned, late, all_ok
        double measured_s
        kept_reply* kept
        int64_t kept_size, n_kept
        int last_status
        uint32_t* windows
        int64_t n_windows
        logged_request* log
        int64_t log_size, n_logged, n_unlogged
        uint64_t beside_ok, beside_failed

    uint32_t histogram_index(uint64_t value)
    uint64_t histogram_highest(uint32_t index)
    void histogram_add(histogram* h, uint64_t value)
    double next_gap_s(uint64_t* state, double rate)
    int generate(const generator_config* config, generator_result* result)

BITS = HISTOGRAM_BITS
SIZE = HISTOGRAM_SIZE
#: logged_request of generator.h.
LOGGED = np.dtype(
    [("due_ns", "<i8"), ("sent_ns", "<i8"), ("done_ns", "<i8"), ("request", "<u4"), ("server_us", "<u4"), ("status", "<i4"),
     ("spare", "<i4")]
)
assert LOGGED.itemsize == sizeof(logged_request)


def highest_values():
    """uint64 (SIZE,): the largest value of each bucket."""
    out = np.empty(HISTOGRAM_SIZE, np.uint64)
    cdef uint64_t[::1] view = out
    cdef uint32_t i
    for i in range(<uint32_t>HISTOGRAM_SIZE):
        view[i] = histogram_highest(i)
    return out


def count(const uint64_t[::1] values not None):
    """uint64 (SIZE,): how many of `values` fall into each bucket."""
    out = np.zeros(HISTOGRAM_SIZE, np.uint64)
    cdef uint64_t[::1] view = out
    cdef Py_ssize_t i
    for i in range(values.shape[0]):
        view[histogram_index(values[i])] += 1
    return out


def arrivals(uint64_t seed, double rate, Py_ssize_t n):
    """float64 (n,): when the first `n` requests of a run are due, in seconds from its start."""
    if not rate > 0:
        raise ValueError(f"Expected a rate above 0, got {rate}")
    out = np.empty(n)
    cdef double[::1] view = out
    cdef double at = 0
    cdef Py_ssize_t i
    for i in range(n):
        at += next_gap_s(&seed, rate)
        view[i] = at
    return out


def _check(const uint8_t[::1] requests, const int64_t[::1] starts):
    cdef Py_ssize_t n = 0 if starts is None else starts.shape[0] - 1
    if requests is None or n < 1 or starts[0] != 0 or starts[n] != requests.shape[0] or (np.diff(np.asarray(starts)) <= 0).any():
        raise ValueError("Expected `starts` to cut `requests` into one piece or more, none of them empty")


def run(host, int port, const uint8_t[::1] requests not None, const int64_t[::1] starts not None, *, int connections,
        double rate, double seconds, double warmup_s, double grace_s, uint64_t seed, uint64_t late_ns,
        int64_t keep_every, int64_t keep_at_most, double window_s, double step_rate=0, double step_s=0,
        uint64_t abandon_ns=0, int64_t log_at_most=0, const uint8_t[::1] beside=None, const int64_t[::1] beside_starts=None,
        int beside_connections=0):
    """One run; returns (counts of three histograms, maxima, sums, counters, kept replies, windows, log). The GIL is released.

    windows is uint32 (whole windows of `window_s` in `seconds`, SIZE): the counts of latency by when the reply came.
    log is LOGGED (n,): what became of each request that was due after the warm-up; empty with `log_at_most` 0.
    `beside`, cut by `beside_starts`, is sent in closed loop meanwhile, over `beside_connections` more connections.

    Raises:
        ValueError: the arguments make no run.
        OSError: the server cannot be reached.
    """
    cdef Py_ssize_t n = starts.shape[0] - 1
    _check(requests, starts)
    if beside_connections:
        _check(beside, beside_starts)
        if not (0 < beside_connections <= 60_000 - connections and rate > 0):
            raise ValueError("Expected a closed loop beside an open one, over no more than 60000 connections in all")
    if not (1 <= connections <= 60_000 and 0 <= rate < 1e9 and 0 < seconds and 0 <= warmup_s and 0 <= grace_s
            and keep_every >= 1 and 0.001 <= window_s < 1e9):
        raise ValueError("Expected connections in 1..60000, rate >= 0, times >= 0, keep_every >= 1, window_s >= 0.001")
    if step_s != 0 and not (step_s > 0 and 0 < step_rate < 1e9 and rate > 0):
        raise ValueError(f"Expected a step of an open loop to another rate above 0, got {step_rate} for {step_s} s")
    if not 0 <= log_at_most <= 1 << 28:
        raise ValueError(f"Expected room for at most {1 << 28} requests in the log, got {log_at_most}")
    cdef generator_config config
    cdef generator_result result
    cdef int failure
    cdef uint64_t[:, ::1] counts
    cdef uint32_t[:, ::1] window_counts
    memset(&config, 0, sizeof(config))
    memset(&result, 0, sizeof(result))
    packed = socket.inet_aton(host)
    config.address = <uint32_t>int.from_bytes(packed, "little")
    config.port = htons(<uint16_t>port)
    config.requests, config.starts, config.n_requests = &requests[0], &starts[0], n
    config.connections, config.rate = connections, rate
    config.seconds, config.warmup_s, config.grace_s = seconds, warmup_s, grace_s
    config.seed, config.late_ns, config.keep_every = seed, late_ns, keep_every
    config.step_rate, config.step_s, config.abandon_ns = step_rate, step_s, abandon_ns
    if beside_connections:
        config.beside, config.beside_starts, config.n_beside = &beside[0], &beside_starts[0], beside_starts.shape[0] - 1
        config.beside_connections = beside_connections
    log = np.empty(log_at_most, LOGGED)
    log.view(np.uint8).fill(0)  # its pages are there before the run
    cdef uint8_t[::1] log_bytes = log.view(np.uint8)
    if log_at_most > 0:
        result.log, result.log_size = <logged_request*>&log_bytes[0], log_at_most
    histograms = np.zeros((3, HISTOGRAM_SIZE), np.uint64)
    counts = histograms
    result.latency.counts, result.service.counts, result.lag.counts = &counts[0, 0], &counts[1, 0], &counts[2, 0]
    config.window_ns, result.n_windows = <uint64_t>(window_s * 1e9), <int64_t>(seconds / window_s + 1e-9)
    windows = np.zeros((max(1, result.n_windows), HISTOGRAM_SIZE), np.uint32)[: result.n_windows]
    if result.n_windows > 0:
        window_counts = windows
        result.windows = &window_counts[0, 0]
    result.kept_size = keep_at_most
    result.kept = <kept_reply*>PyMem_Calloc(<size_t>max(1, keep_at_most), sizeof(kept_reply))
    if result.kept == NULL:
        raise MemoryError("Expected memory for the replies to keep, got none")
    try:
        with nogil:
            failure = generate(&config, &result)
        if failure:
            raise OSError(failure, f"Expected a server on {host}:{port}, could not connect")
        kept = [
            (result.kept[i].request, (<char*>result.kept[i].body)[:result.kept[i].size]) for i in range(result.n_kept)
        ]
    finally:
        PyMem_Free(result.kept)
    counters = {
        "sent": result.sent, "ok": result.ok, "refused": result.refused, "bad_status": result.bad_status,
        "broken": result.broken, "unfinished": result.unfinished, "abandoned": result.abandoned, "late": result.late,
        "measured_s": result.measured_s, "last_status": result.last_status, "unlogged": result.n_unlogged,
        "beside_ok": result.beside_ok, "beside_failed": result.beside_failed,
    }
    return (
        histograms, (result.latency.max, result.service.max, result.lag.max),
        (result.latency.sum, result.service.sum, result.lag.sum), counters, kept, windows, log[:result.n_logged],
    )
