/* record.h - the inner steps of recording: the cell a value falls into, the checksum of a journal record, and the order
 * of stores that other processes rely on. No allocation, no I/O, no failure. */
#ifndef TIERCEL_RECORD_H
#define TIERCEL_RECORD_H

#include <fcntl.h> /* sync_file_range: Python.h, included before, asks for it */
#include <float.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>

#define TIERCEL_EDGES 24    /* slots per histogram; the last is always +inf, so that +inf has a cell of its own */
#define TIERCEL_CELLS 28    /* cells per histogram; see counters.pxd */

/* Number of edges <= value: 0 (below all) .. 23 (not below any), 24 for +inf. Then 25 for NaN and 26 for -inf, for both of
 * which no edge counts. PERF: comparing with all 24 beats a binary search: no branch, six SSE compares (bench_recorder.py). */
static inline int tiercel_feature_cell(const float *edges, float value) {
    int32_t n = 0;
    for (int i = 0; i < TIERCEL_EDGES; i++) n += edges[i] <= value;
    return n + 25 * (value != value) + 26 * (value < -FLT_MAX);
}

static inline int tiercel_score_cell(const double *edges, double value) {
    int64_t n = 0;
    for (int i = 0; i < TIERCEL_EDGES; i++) n += edges[i] <= value;
    return (int)n + 25 * (value != value) + 26 * (value < -DBL_MAX);
}

static inline void tiercel_count_rows(
    uint64_t *cells, const float *edges, const float *rows, int64_t n_rows, int64_t n_features
) {
    for (int64_t row = 0; row < n_rows; row++)
        for (int64_t i = 0; i < n_features; i++)
            cells[TIERCEL_CELLS * i + tiercel_feature_cell(edges + TIERCEL_EDGES * i, rows[row * n_features + i])]++;
}

static inline void tiercel_count_scores(
    uint64_t *cells, const double *edges, const double *scores, int64_t n_rows, int64_t n_outputs
) {
    for (int64_t row = 0; row < n_rows; row++)
        for (int64_t i = 0; i < n_outputs; i++)
            cells[TIERCEL_CELLS * i + tiercel_score_cell(edges + TIERCEL_EDGES * i, scores[row * n_outputs + i])]++;
}

/* Log-linear cell of a value of at least 0: exact below 64, then 32 cells per power of two, 1024 from 2^36 on. */
static inline int tiercel_magnitude_cell(int64_t value) {
    if (value < 0) return 0;
    if (value < 32) return (int)value;
    if (value >= ((int64_t)1 << 36)) return 1024;
    int exponent = 63 - __builtin_clzll((unsigned long long)value);
    return (exponent - 4) * 32 + (int)((value >> (exponent - 5)) & 31);
}

/* 64-bit checksum of n words: any one changed bit changes it. Against torn and rotten bytes, not against an adversary.
 * PERF: two independent lanes of folded multiplication, 16 ns for 240 bytes; CRC32C without SSE4.2 takes ten times that. */
static inline uint64_t tiercel_fold(uint64_t a, uint64_t b) {
    __extension__ typedef unsigned __int128 wide;
    wide product = (wide)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static inline uint64_t tiercel_checksum(const uint64_t *words, size_t n, uint64_t seed) {
    const uint64_t k0 = 0x9E3779B97F4A7C15u, k1 = 0xC2B2AE3D27D4EB4Fu, k2 = 0xD6E8FEB86659FD93u;
    uint64_t a = seed ^ k0, b = seed ^ k1;
    size_t i = 0;
    for (; i + 4 <= n; i += 4) {
        a = tiercel_fold(words[i] ^ k2, words[i + 1] ^ a);
        b = tiercel_fold(words[i + 2] ^ k0, words[i + 3] ^ b);
    }
    for (; i < n; i++) a = tiercel_fold(words[i] ^ k2, a ^ k1);
    return tiercel_fold(a ^ k0 ^ n, b ^ k2);
}

/* What another process must see in order. */
static inline void tiercel_publish_u64(uint64_t *at, uint64_t value) { __atomic_store_n(at, value, __ATOMIC_RELEASE); }
static inline uint64_t tiercel_observe_u64(const uint64_t *at) { return __atomic_load_n(at, __ATOMIC_ACQUIRE); }
static inline void *tiercel_take_pointer(void **at) { return __atomic_exchange_n(at, NULL, __ATOMIC_ACQ_REL); }
static inline void *tiercel_observe_pointer(void **at) { return __atomic_load_n(at, __ATOMIC_ACQUIRE); }
static inline void tiercel_publish_pointer(void **at, void *value) { __atomic_store_n(at, value, __ATOMIC_RELEASE); }

/* Make every page of [base, base + size) present and writable, changing nothing: an atomic "or 0" is safe beside a thread
 * that writes there. Takes the page faults, and what they wait for, away from that thread. base is 8-aligned. */
static inline void tiercel_touch(uint8_t *base, size_t size) {
#ifdef MADV_POPULATE_WRITE
    /* PERF: one system call instead of an exception for each page; half the time (bench_http, keeper's CPU). */
    uintptr_t skew = (uintptr_t)base & 4095;
    if (madvise(base - skew, size + skew, MADV_POPULATE_WRITE) == 0) return;
#endif
    for (size_t at = 0; at + 8 <= size; at += 4096) __atomic_fetch_or((uint64_t *)(base + at), 0, __ATOMIC_RELAXED);
}

/* Begin to write a part of a file to the disk. An error shows again, and is reported, in the fsync that follows. */
static inline void tiercel_start_writing(int descriptor, int64_t start, int64_t size) {
#ifdef __linux__
    (void)sync_file_range(descriptor, start, size, SYNC_FILE_RANGE_WRITE);
#else
    (void)descriptor, (void)start, (void)size;
#endif
}

#endif
