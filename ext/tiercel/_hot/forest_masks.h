/* forest_masks.h - one row without walking: every tree of a forest at once, by masks.
 *
 * A tree's leaves are numbered from the left. A node whose test fails rules out the leaves below its first child; when the
 * masks of all nodes that fail are and-ed, the lowest leaf left is where the row ends (QuickScorer: Lucchese et al.,
 * SIGIR 2015). There, failing nodes are looked up one by one. Here, a feature's thresholds are ranked once for the whole
 * forest (forest_blocks.h), and for every rank of every feature the table holds one line with what the nodes that fail
 * then leave of each tree: one row of a model takes as many lines as the model has features, and-ed, whatever the number of
 * nodes. A missing value has a line of its own, which holds each node's direction; so has either answer of a category set.
 *
 * Which values are added, in which order and precision, is what the walk of one row does (forest_kernel.h): equal bits.
 */
#ifndef TIERCEL_FOREST_MASKS_H
#define TIERCEL_FOREST_MASKS_H

#include "forest_blocks.h"

enum { TC_LINE = 64, TC_MASK_COLUMNS = 256, TC_MASK_LINES = 64, TC_MASK_FEATURES = 512 };

typedef struct {
    int32_t mask_bytes;         /* of one tree's mask: 4 or 8; 0: this forest is walked */
    int32_t use_avx2;
    Py_ssize_t n_rankings, n_memberships;
    Py_ssize_t row_bytes;       /* one row of the table: a mask per tree, filled up to whole TC_LINEs */
    const tc_ranking* rankings; /* `right`: the table's row of rank 0; that of a missing value follows the last rank's */
    const tc_membership* memberships;   /* `column`: the table's row of members; that of the others follows */
    const float* cuts;
    const uint16_t* starts;
    const uint8_t* table;       /* on TC_LINE bytes */
    const uint8_t* leaf;        /* n_trees x (8 * mask_bytes): number within its tree of the leaf in each place */
} tc_masks;

/* How many of a feature's thresholds lie below x; 0 for NaN. */
static inline int32_t tc_count_below(const tc_ranking* g, const float* cuts, const uint16_t* starts, float x) {
    if (g->n_buckets > 0) {
        int32_t start = starts[tc_bucket(x, g->low, g->scale, (float)(g->n_buckets - 1))], below = start;
        for (int32_t k = 0; k < g->probes; k++) below += cuts[start + k] < x;
        return below;
    }
    uint32_t at = 0;
    for (uint32_t half = 1u << g->steps >> 1; half > 0; half >>= 1) at += cuts[at + half - 1] < x ? half : 0;
    return (int32_t)at;
}

/* n >= 1 rows of the table and-ed into `left`. Eight vectors stay in registers while the rows pass by. */
#define TC_DEFINE_AND_ROWS(name, attributes, BYTES)                                                                    \
    attributes static void name(const uint8_t* const* rows, int n, Py_ssize_t bytes, uint8_t* left) {                  \
        typedef uint64_t vector __attribute__((vector_size(BYTES), may_alias));                                        \
        Py_ssize_t at = 0;                                                                                             \
        for (; bytes - at >= 8 * BYTES; at += 8 * BYTES) {                                                             \
            vector a[8];                                                                                               \
            for (int k = 0; k < 8; k++) a[k] = *(const vector*)(rows[0] + at + k * BYTES);                             \
            for (int i = 1; i < n; i++) {                                                                              \
                const uint8_t* row = rows[i] + at;                                                                     \
                for (int k = 0; k < 8; k++) a[k] &= *(const vector*)(row + k * BYTES);                                 \
            }                                                                                                          \
            for (int k = 0; k < 8; k++) *(vector*)(left + at + k * BYTES) = a[k];                                      \
        }                                                                                                              \
        for (; at < bytes; at += 2 * BYTES) {                                                                          \
            vector a = *(const vector*)(rows[0] + at), b = *(const vector*)(rows[0] + at + BYTES);                     \
            for (int i = 1; i < n; i++) {                                                                              \
                a &= *(const vector*)(rows[i] + at);                                                                   \
                b &= *(const vector*)(rows[i] + at + BYTES);                                                           \
            }                                                                                                          \
            *(vector*)(left + at) = a;                                                                                 \
            *(vector*)(left + at + BYTES) = b;                                                                         \
        }                                                                                                              \
    }

TC_DEFINE_AND_ROWS(tc_and_rows, , 16)
#if TC_HAVE_AVX2
TC_DEFINE_AND_ROWS(tc_and_rows_avx2, __attribute__((target("avx2"))), 32)
#endif

/* What is left of every tree's leaves for one row, prepared by the forest's own steps. */
static inline void tc_mask_row(const tc_forest* f, const tc_masks* m, const float* row, uint8_t* left) {
    const uint8_t* rows[TC_MASK_COLUMNS];
    int n = 0;
    for (Py_ssize_t r = 0; r < m->n_rankings; r++) {
        const tc_ranking* g = &m->rankings[r];
        float x = row[g->feature];
        int32_t below = tc_count_below(g, m->cuts + g->cuts, m->starts + g->starts, x);
        below = x == x ? below : g->n_cuts + 1;
        rows[n++] = m->table + (Py_ssize_t)(g->right + below) * m->row_bytes;
    }
    for (Py_ssize_t r = 0; r < m->n_memberships; r++) {
        const tc_membership* g = &m->memberships[r];
        int is_other = !tc_is_member(&f->sets[g->set], f->words, row[g->feature]);
        rows[n++] = m->table + (Py_ssize_t)(g->column + is_other) * m->row_bytes;
    }
#if TC_HAVE_AVX2
    if (m->use_avx2) {
        tc_and_rows_avx2(rows, n, m->row_bytes, left);
        return;
    }
#endif
    tc_and_rows(rows, n, m->row_bytes, left);
}

static inline int64_t tc_left_leaf(const tc_forest* f, const tc_masks* m, const uint8_t* left, Py_ssize_t tree) {
    uint64_t mask8;
    uint32_t mask4;
    if (m->mask_bytes == 4) {
        memcpy(&mask4, left + tree * 4, 4);
        return f->tree_leaf[tree] + m->leaf[tree * 32 + __builtin_ctz(mask4)];
    }
    memcpy(&mask8, left + tree * 8, 8);
    return f->tree_leaf[tree] + m->leaf[tree * 64 + __builtin_ctzll(mask8)];
}

#define TC_DEFINE_MASK_SCORE(suffix, real, values_of)                                                                  \
    static inline void tc_mask_score_##suffix(const tc_forest* f, const tc_masks* m, const float* row, real* acc,      \
                                              double* out) {                                                           \
        uint8_t left[TC_MASK_LINES * TC_LINE] __attribute__((aligned(TC_LINE)));                                       \
        tc_mask_row(f, m, row, left);                                                                                  \
        for (Py_ssize_t k = 0; k < f->n_raw; k++) acc[k] = f->base_first ? (real)f->base[k] : (real)0;                 \
        if (f->n_raw == 1 && f->aggregate == TC_SUM) {                                                                 \
            real sum = acc[0];                                                                                         \
            if (m->mask_bytes == 4) {                                                                                  \
                for (Py_ssize_t t = 0; t < f->n_trees; t++) {                                                          \
                    uint32_t mask;                                                                                     \
                    memcpy(&mask, left + t * 4, 4);                                                                    \
                    sum += f->values_of[f->tree_leaf[t] + m->leaf[t * 32 + __builtin_ctz(mask)]];                      \
                }                                                                                                      \
            } else {                                                                                                   \
                for (Py_ssize_t t = 0; t < f->n_trees; t++) sum += f->values_of[tc_left_leaf(f, m, left, t)];          \
            }                                                                                                          \
            acc[0] = sum;                                                                                              \
        } else {                                                                                                       \
            for (Py_ssize_t t = 0; t < f->n_trees; t++) tc_add_##suffix(f, t, tc_left_leaf(f, m, left, t), acc);       \
        }                                                                                                              \
        tc_finish_##suffix(f, acc, out);                                                                               \
    }

TC_DEFINE_MASK_SCORE(f64, double, values)
TC_DEFINE_MASK_SCORE(f32, float, values_f32)

/* One row after another. 0, or 1 when there is no memory for scratch space. */
static inline int tc_mask_rows(const tc_forest* f, const tc_masks* m, const float* rows, Py_ssize_t n_rows,
                               Py_ssize_t stride, double* out, Py_ssize_t n_outputs) {
    float prepared[TC_MASK_FEATURES];
    double acc_stack[TC_STACK_RAW];
    void* acc = f->n_raw > TC_STACK_RAW ? malloc((size_t)f->n_raw * sizeof(double)) : acc_stack;
    if (acc == NULL) return 1;
    for (Py_ssize_t i = 0; i < n_rows; i++) {
        const float* row = rows + i * stride;
        if (f->n_steps > 0) {
            memcpy(prepared, row, (size_t)f->n_features * sizeof *row);
            for (Py_ssize_t s = 0; s < f->n_steps; s++) tc_apply_step(&f->steps[s], prepared, f->n_features);
            row = prepared;
        }
        if (f->values != NULL) tc_mask_score_f64(f, m, row, (double*)acc, out + i * n_outputs);
        else tc_mask_score_f32(f, m, row, (float*)acc, out + i * n_outputs);
    }
    if (acc != acc_stack) free(acc);
    return 0;
}

/* Rows in blocks as far as that pays, the rest by masks or walked. 0, or 1 when there is no memory for scratch space. */
static inline int tc_score_rows(const tc_forest* f, const tc_blocks* b, const tc_masks* m, const float* rows,
                                Py_ssize_t n_rows, Py_ssize_t stride, double* out, Py_ssize_t n_outputs) {
    Py_ssize_t done = 0;
    if (b->lanes > 0 && n_rows >= b->min_rows) {
        Py_ssize_t rest = n_rows % b->lanes;
        done = rest < b->min_rows ? n_rows - rest : n_rows;
        if (tc_score_blocks(f, b, rows, done, stride, out, n_outputs) != 0) return 1;
    }
    if (done == n_rows) return 0;
    rows += done * stride;
    out += done * n_outputs;
    if (m->mask_bytes > 0) return tc_mask_rows(f, m, rows, n_rows - done, stride, out, n_outputs);
    return tc_walk_rows(f, rows, n_rows - done, stride, out, n_outputs);
}

#endif
