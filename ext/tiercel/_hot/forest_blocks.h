/* forest_blocks.h - many rows at once, without walking.
 *
 * All that a forest asks of a feature is how it compares with the forest's own thresholds for it. So a value is replaced,
 * exactly, by its rank: 1 + the number of thresholds below it; a missing value is 0 where the node sends it to the first
 * child and above every other rank where it does not. Ranks are one byte while a feature has up to 254 thresholds, two
 * bytes otherwise. A category set is a column of its own: 0 for members, 1 for the rest.
 *
 * A vector is 64 bytes: one rank, or one leaf number, of 64 rows (of 32, with two bytes). Every inner node is evaluated
 * for all rows, children before parents: its vector is `rank < bound ? first : second`, where first and second are the
 * children's vectors. A leaf's vector is its number repeated, so the root's vector says where each row ends. There is
 * nothing to predict and nothing to gather; the cost grows with the number of nodes, not with the depth.
 *
 * Which values are added, in which order and precision, is what the walk of one row does (forest_kernel.h): equal bits.
 */
#ifndef TIERCEL_FOREST_BLOCKS_H
#define TIERCEL_FOREST_BLOCKS_H

#include "forest_kernel.h"

/* PERF: AVX2 against the SSE2 that every x86-64 has, Zen 3, same run: 296 against 374 ns a row for 100 x 31 leaves, 2.8
 *   against 4.5 us for 500 x 127. Elsewhere the portable vectors are what the compiler makes of them (NEON on aarch64).
 *   AVX-512 could not be measured, so there is none. */
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#include <immintrin.h>
#define TC_HAVE_AVX2 1
#else
#define TC_HAVE_AVX2 0
#endif

enum { TC_BLOCK_VECTORS = 4, TC_TURNED = 16 };
enum { TC_VECTOR = 64, TC_UNIT = 8, TC_MAX_VECTORS = 65536 / (TC_VECTOR / TC_UNIT) };

/* One inner node. Positions count in TC_UNIT bytes, an x86 addressing mode; `bound` is the biased rank bound repeated. */
typedef struct { uint16_t column, first, second, to; uint32_t bound; } tc_op;

/* How one feature is ranked. With n_buckets: a monotone function of the value picks a bucket, starts[bucket] is the
 * number of thresholds in lower ones, and `probes` comparisons from there finish. Without: a binary search, where
 * n_cuts + 1 is rounded up to a power of two. Beyond n_cuts, cuts holds +inf up to what either may read. */
typedef struct {
    int64_t cuts;               /* position in tc_blocks.cuts */
    int64_t starts;             /* position in tc_blocks.starts */
    int32_t feature, n_cuts, n_buckets, probes, steps;
    float low, scale;
    int32_t right, left;        /* of blocks: column for nodes that send missing values to the second, first child; -1: none */
} tc_ranking;

typedef struct { int32_t feature, set, column; } tc_membership;

typedef struct {
    int32_t lanes;              /* rows in a vector: 64, or 32 when ranks need two bytes; 0: this forest is walked */
    int32_t min_rows;           /* a shorter rest is cheaper to walk */
    int32_t use_avx2;
    Py_ssize_t n_columns, n_cells, n_constants, n_rankings, n_memberships, n_groups;
    const tc_op* ops;
    const int64_t* group_op;    /* n_groups + 1 */
    const int32_t* group_tree;  /* n_groups + 1: a group is neighbouring trees, their nodes sorted by height */
    const uint16_t* root;       /* n_trees: where a tree's leaf numbers are found after its group */
    const tc_ranking* rankings;
    const tc_membership* memberships;
    const float* cuts;
    const uint16_t* starts;
} tc_blocks;

static inline int tc_has_avx2(void) {
#if TC_HAVE_AVX2
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") != 0;
#else
    return 0;
#endif
}

/* The bucket of x: never falls as x rises, whatever rounds or overflows on the way; 0 for NaN. */
static inline int32_t tc_bucket(float x, float low, float scale, float last) {
    float at = (x - low) * scale;
    at = at > 0.0f ? at : 0.0f;
    at = at < last ? at : last;
    return (int32_t)at;
}

/* ---- ranks ---- */

/* How many of the n_cuts thresholds lie below each of n values. */
static inline void tc_count_buckets(const tc_ranking* g, const float* cuts, const uint16_t* starts, const float* x,
                                    int32_t* count, int n) {
    float low = g->low, scale = g->scale, last = (float)(g->n_buckets - 1);
    for (int i = 0; i < n; i++) count[i] = tc_bucket(x[i], low, scale, last);
    if (g->probes == 1) {
        for (int i = 0; i < n; i++) {
            int32_t start = starts[count[i]];
            count[i] = start + (cuts[start] < x[i]);
        }
    } else if (g->probes == 2) {
        for (int i = 0; i < n; i++) {
            int32_t start = starts[count[i]];
            count[i] = start + (cuts[start] < x[i]) + (cuts[start + 1] < x[i]);
        }
    } else {
        for (int i = 0; i < n; i++) {
            int32_t start = starts[count[i]], below = start;
            for (int32_t k = 0; k < g->probes; k++) below += cuts[start + k] < x[i];
            count[i] = below;
        }
    }
}

/* Eight searches in flight; n is a multiple of eight. */
static inline void tc_count_search(const tc_ranking* g, const float* cuts, const float* x, int32_t* count, int n) {
    for (int first = 0; first < n; first += 8) {
        uint32_t at[8] = {0, 0, 0, 0, 0, 0, 0, 0};
        for (uint32_t half = 1u << g->steps >> 1; half > 0; half >>= 1)
            for (int i = 0; i < 8; i++) at[i] += cuts[at[i] + half - 1] < x[first + i] ? half : 0;
        for (int i = 0; i < 8; i++) count[first + i] = (int32_t)at[i];
    }
}

/* Columns of n rows, 1 <= n <= TC_BLOCK_VECTORS * LANES: one vector's columns after another's. Rows missing in the last
 * vector repeat row n - 1. A few features at a time are turned into contiguous values; the padding keeps them from
 * falling on the same cache sets. */
#define TC_DEFINE_COLUMNS(name, cell_t, bias, LANES)                                                                   \
    static void name(const tc_forest* f, const tc_blocks* b, const float* rows, int n, Py_ssize_t stride,              \
                     char* columns) {                                                                                  \
        enum { MOST = TC_BLOCK_VECTORS * LANES, PADDED = MOST + 16 };                                                  \
        float x[TC_TURNED][PADDED];                                                                                    \
        int32_t count[MOST];                                                                                           \
        int n_vectors = (n + LANES - 1) / LANES, full = n_vectors * LANES;                                             \
        Py_ssize_t step = b->n_columns * TC_VECTOR;                                                                    \
        for (Py_ssize_t r = 0; r < b->n_rankings; r += TC_TURNED) {                                                    \
            const tc_ranking* some = &b->rankings[r];                                                                  \
            int n_some = b->n_rankings - r < TC_TURNED ? (int)(b->n_rankings - r) : TC_TURNED;                         \
            for (int i = 0; i < full; i++) {                                                                           \
                const float* row = rows + (i < n ? i : n - 1) * stride;                                                \
                for (int k = 0; k < n_some; k++) x[k][i] = row[some[k].feature];                                       \
            }                                                                                                          \
            for (int k = 0; k < n_some; k++) {                                                                         \
                const tc_ranking* g = &some[k];                                                                        \
                const float* value = x[k];                                                                             \
                int32_t missing = g->n_cuts;                                                                           \
                if (g->n_buckets > 0) tc_count_buckets(g, b->cuts + g->cuts, b->starts + g->starts, value, count, full); \
                else tc_count_search(g, b->cuts + g->cuts, value, count, full);                                        \
                for (int v = 0; v < n_vectors; v++) {                                                                  \
                    const float* of = value + v * LANES;                                                               \
                    const int32_t* rank = count + v * LANES;                                                           \
                    if (g->right >= 0) {                                                                               \
                        cell_t* column = (cell_t*)(columns + v * step + (Py_ssize_t)g->right * TC_VECTOR);             \
                        for (int i = 0; i < LANES; i++)                                                                \
                            column[i] = (cell_t)((of[i] == of[i] ? rank[i] : missing) + 1 - (bias));                   \
                    }                                                                                                  \
                    if (g->left >= 0) {                                                                                \
                        cell_t* column = (cell_t*)(columns + v * step + (Py_ssize_t)g->left * TC_VECTOR);              \
                        for (int i = 0; i < LANES; i++)                                                                \
                            column[i] = (cell_t)((of[i] == of[i] ? rank[i] : -1) + 1 - (bias));                        \
                    }                                                                                                  \
                }                                                                                                      \
            }                                                                                                          \
        }                                                                                                              \
        for (Py_ssize_t m = 0; m < b->n_memberships; m++) {                                                            \
            const tc_membership* g = &b->memberships[m];                                                               \
            for (int i = 0; i < full; i++) {                                                                           \
                cell_t* column = (cell_t*)(columns + i / LANES * step + (Py_ssize_t)g->column * TC_VECTOR);            \
                float value = rows[(i < n ? i : n - 1) * stride + g->feature];                                         \
                column[i % LANES] = (cell_t)(!tc_is_member(&f->sets[g->set], f->words, value) - (bias));               \
            }                                                                                                          \
        }                                                                                                              \
    }

TC_DEFINE_COLUMNS(tc_columns_8, int8_t, 128, 64)
TC_DEFINE_COLUMNS(tc_columns_16, int16_t, 32768, 32)

/* ---- nodes: n_ops vectors of cells from columns and cells; only the first `bytes` of each vector ---- */

#define TC_DEFINE_EVALUATE(name, lane_t)                                                                               \
    static inline void name(const tc_op* op, const tc_op* end, const char* columns, char* cells, int bytes) {          \
        typedef lane_t vector __attribute__((vector_size(16), may_alias));                                             \
        for (; op < end; op++) {                                                                                       \
            typedef uint32_t words __attribute__((vector_size(16)));                                                   \
            words four = {op->bound, op->bound, op->bound, op->bound};                                                 \
            vector bound = (vector)four;                                                                               \
            const char* column = columns + (size_t)op->column * TC_UNIT;                                               \
            const char* first = cells + (size_t)op->first * TC_UNIT;                                                   \
            const char* second = cells + (size_t)op->second * TC_UNIT;                                                 \
            char* to = cells + (size_t)op->to * TC_UNIT;                                                               \
            for (int at = 0; at < bytes; at += 16) {                                                                   \
                vector mask = (vector)(bound > *(const vector*)(column + at));                                         \
                *(vector*)(to + at) = (mask & *(const vector*)(first + at)) | (~mask & *(const vector*)(second + at)); \
            }                                                                                                          \
        }                                                                                                              \
    }

TC_DEFINE_EVALUATE(tc_evaluate_8, int8_t)
TC_DEFINE_EVALUATE(tc_evaluate_16, int16_t)

#if TC_HAVE_AVX2
#define TC_DEFINE_EVALUATE_AVX2(name, greater, BYTES)                                                                  \
    __attribute__((target("avx2"))) static void name(const tc_op* op, const tc_op* end, const char* columns,           \
                                                     char* cells) {                                                    \
        for (; op < end; op++) {                                                                                       \
            __m256i bound = _mm256_set1_epi32((int)op->bound);                                                         \
            const char* column = columns + (size_t)op->column * TC_UNIT;                                               \
            const char* first = cells + (size_t)op->first * TC_UNIT;                                                   \
            const char* second = cells + (size_t)op->second * TC_UNIT;                                                 \
            char* to = cells + (size_t)op->to * TC_UNIT;                                                               \
            for (int at = 0; at < BYTES; at += 32) {                                                                   \
                __m256i mask = greater(bound, _mm256_load_si256((const __m256i*)(column + at)));                       \
                _mm256_store_si256((__m256i*)(to + at),                                                                \
                                   _mm256_blendv_epi8(_mm256_load_si256((const __m256i*)(second + at)),                \
                                                      _mm256_load_si256((const __m256i*)(first + at)), mask));         \
            }                                                                                                          \
        }                                                                                                              \
    }

TC_DEFINE_EVALUATE_AVX2(tc_evaluate_8_avx2, _mm256_cmpgt_epi8, 64)
TC_DEFINE_EVALUATE_AVX2(tc_evaluate_8_avx2_half, _mm256_cmpgt_epi8, 32)
TC_DEFINE_EVALUATE_AVX2(tc_evaluate_16_avx2, _mm256_cmpgt_epi16, 64)
TC_DEFINE_EVALUATE_AVX2(tc_evaluate_16_avx2_half, _mm256_cmpgt_epi16, 32)
#endif

static inline void tc_evaluate(const tc_blocks* b, const tc_op* op, const tc_op* end, int n, const char* columns,
                               char* cells) {
    int half = 2 * n <= b->lanes;
#if TC_HAVE_AVX2
    if (b->use_avx2) {
        if (b->lanes == 64) (half ? tc_evaluate_8_avx2_half : tc_evaluate_8_avx2)(op, end, columns, cells);
        else (half ? tc_evaluate_16_avx2_half : tc_evaluate_16_avx2)(op, end, columns, cells);
        return;
    }
#endif
    if (b->lanes == 64) {
        if (half) tc_evaluate_8(op, end, columns, cells, 32);
        else tc_evaluate_8(op, end, columns, cells, 64);
    } else {
        if (half) tc_evaluate_16(op, end, columns, cells, 32);
        else tc_evaluate_16(op, end, columns, cells, 64);
    }
}

/* ---- a block: up to TC_BLOCK_VECTORS vectors of rows, so that tables and operations are fetched once for all ---- */

/* Four trees at a time keep the sum in a register; the order of additions is the trees' order all the same. */
#define TC_DEFINE_BLOCK(name, real, values_of, id_t, suffix)                                                           \
    static inline void name##_add(const tc_forest* f, const tc_blocks* b, Py_ssize_t tree, Py_ssize_t end, int n,      \
                                  const char* cells, real* acc) {                                                      \
        if (f->aggregate != TC_SUM || f->width != 1) {                                                                 \
            for (; tree < end; tree++) {                                                                               \
                const id_t* id = (const id_t*)(cells + (size_t)b->root[tree] * TC_UNIT);                               \
                for (int i = 0; i < n; i++)                                                                            \
                    tc_add_##suffix(f, tree, f->tree_leaf[tree] + id[i], &acc[i * f->n_raw]);                          \
            }                                                                                                          \
            return;                                                                                                    \
        }                                                                                                              \
        for (; f->n_raw == 1 && end - tree >= 4; tree += 4) {                                                          \
            const id_t* id0 = (const id_t*)(cells + (size_t)b->root[tree] * TC_UNIT);                                  \
            const id_t* id1 = (const id_t*)(cells + (size_t)b->root[tree + 1] * TC_UNIT);                              \
            const id_t* id2 = (const id_t*)(cells + (size_t)b->root[tree + 2] * TC_UNIT);                              \
            const id_t* id3 = (const id_t*)(cells + (size_t)b->root[tree + 3] * TC_UNIT);                              \
            const real* value0 = f->values_of + f->tree_leaf[tree];                                                    \
            const real* value1 = f->values_of + f->tree_leaf[tree + 1];                                                \
            const real* value2 = f->values_of + f->tree_leaf[tree + 2];                                                \
            const real* value3 = f->values_of + f->tree_leaf[tree + 3];                                                \
            for (int i = 0; i < n; i++)                                                                                \
                acc[i] = acc[i] + value0[id0[i]] + value1[id1[i]] + value2[id2[i]] + value3[id3[i]];                   \
        }                                                                                                              \
        for (; tree < end; tree++) {                                                                                   \
            const id_t* id = (const id_t*)(cells + (size_t)b->root[tree] * TC_UNIT);                                   \
            const real* value = f->values_of + f->tree_leaf[tree];                                                     \
            real* to = acc + f->tree_raw[tree];                                                                        \
            for (int i = 0; i < n; i++) to[i * f->n_raw] += value[id[i]];                                              \
        }                                                                                                              \
    }                                                                                                                  \
    static void name(const tc_forest* f, const tc_blocks* b, int n, const char* columns, char* cells, real* acc,       \
                     double* out, Py_ssize_t n_outputs) {                                                              \
        int lanes = b->lanes;                                                                                          \
        for (int i = 0; i < n; i++)                                                                                    \
            for (Py_ssize_t k = 0; k < f->n_raw; k++)                                                                  \
                acc[i * f->n_raw + k] = f->base_first ? (real)f->base[k] : (real)0;                                    \
        for (Py_ssize_t g = 0; g < b->n_groups; g++) {                                                                 \
            const tc_op* op = b->ops + b->group_op[g];                                                                 \
            const tc_op* end = b->ops + b->group_op[g + 1];                                                            \
            for (int first = 0, v = 0; first < n; first += lanes, v++) {                                               \
                int rows = n - first < lanes ? n - first : lanes;                                                      \
                tc_evaluate(b, op, end, rows, columns + v * b->n_columns * TC_VECTOR, cells);                          \
                name##_add(f, b, b->group_tree[g], b->group_tree[g + 1], rows, cells, acc + first * f->n_raw);         \
            }                                                                                                          \
        }                                                                                                              \
        for (int i = 0; i < n; i++) tc_finish_##suffix(f, &acc[i * f->n_raw], &out[i * n_outputs]);                    \
    }

TC_DEFINE_BLOCK(tc_block_8_f64, double, values, uint8_t, f64)
TC_DEFINE_BLOCK(tc_block_8_f32, float, values_f32, uint8_t, f32)
TC_DEFINE_BLOCK(tc_block_16_f64, double, values, uint16_t, f64)
TC_DEFINE_BLOCK(tc_block_16_f32, float, values_f32, uint16_t, f32)

static inline size_t tc_aligned(size_t bytes) { return (bytes + TC_VECTOR - 1) & ~(size_t)(TC_VECTOR - 1); }

/* 0, or 1 when there is no memory for scratch space. */
static inline int tc_score_blocks(const tc_forest* f, const tc_blocks* b, const float* rows, Py_ssize_t n_rows,
                                  Py_ssize_t stride, double* out, Py_ssize_t n_outputs) {
    Py_ssize_t n_features = f->n_features, lanes = b->lanes;
    Py_ssize_t n_vectors = (n_rows + lanes - 1) / lanes;
    if (n_vectors > TC_BLOCK_VECTORS) n_vectors = TC_BLOCK_VECTORS;
    Py_ssize_t block = n_vectors * lanes;
    size_t column_bytes = (size_t)(n_vectors * b->n_columns) * TC_VECTOR, cell_bytes = (size_t)b->n_cells * TC_VECTOR;
    size_t acc_bytes = tc_aligned((size_t)(block * f->n_raw) * sizeof(double));
    size_t row_bytes = f->n_steps > 0 ? (size_t)(block * n_features) * sizeof(float) : 0;
    char* taken = (char*)malloc(column_bytes + cell_bytes + acc_bytes + row_bytes + TC_VECTOR);
    if (taken == NULL) return 1;
    char* columns = (char*)tc_aligned((size_t)taken);
    char* cells = columns + column_bytes;
    void* acc = cells + cell_bytes;
    float* prepared = (float*)(cells + cell_bytes + acc_bytes);
    for (Py_ssize_t k = 0; k < b->n_constants; k++) {
        if (lanes == 64) memset(cells + k * TC_VECTOR, (int)k, TC_VECTOR);
        else for (Py_ssize_t i = 0; i < lanes; i++) ((uint16_t*)(cells + k * TC_VECTOR))[i] = (uint16_t)k;
    }
    for (Py_ssize_t first = 0; first < n_rows; first += block) {
        int n = (int)(n_rows - first < block ? n_rows - first : block);
        const float* some = rows + first * stride;
        double* to = out + first * n_outputs;
        Py_ssize_t step = stride;
        if (f->n_steps > 0) {
            for (int i = 0; i < n; i++) {
                float* row = prepared + i * n_features;
                memcpy(row, some + i * stride, (size_t)n_features * sizeof *row);
                for (Py_ssize_t s = 0; s < f->n_steps; s++) tc_apply_step(&f->steps[s], row, n_features);
            }
            some = prepared;
            step = n_features;
        }
        if (lanes == 64) {
            tc_columns_8(f, b, some, n, step, columns);
            if (f->values != NULL) tc_block_8_f64(f, b, n, columns, cells, (double*)acc, to, n_outputs);
            else tc_block_8_f32(f, b, n, columns, cells, (float*)acc, to, n_outputs);
        } else {
            tc_columns_16(f, b, some, n, step, columns);
            if (f->values != NULL) tc_block_16_f64(f, b, n, columns, cells, (double*)acc, to, n_outputs);
            else tc_block_16_f32(f, b, n, columns, cells, (float*)acc, to, n_outputs);
        }
    }
    free(taken);
    return 0;
}

#endif
