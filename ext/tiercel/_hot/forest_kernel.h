/* forest_kernel.h - walking trees without branches, several at once.
 *
 * A row is held twice, [x, -x]. A node asks one question, `row[feature] <= threshold`, which NaN always answers with no.
 * "x <= t, NaN to the left" is asked as "-x <= -next(t), NaN to the right" on the negated copy with the children
 * swapped, so the direction of missing values costs nothing while walking.
 *
 * Siblings are neighbours: next = at + delta + !(row[feature] <= threshold). A leaf's threshold is a NaN, its delta -1:
 * it leads to itself, so no exit test is needed and a group of walks runs to the depth of its deepest tree. The low 22
 * bits of that NaN are the leaf's number within its tree.
 */
#ifndef TIERCEL_FOREST_KERNEL_H
#define TIERCEL_FOREST_KERNEL_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "transforms.h"

#define TC_LEAF_BITS 0x7FC00000u
#define TC_LEAF_MASK 0x003FFFFFu
#define TC_NO_SET 0xFFFFFFFFu

/* Trees of up to 32,767 nodes over up to 32,767 features. */
typedef struct { float threshold; uint16_t feature; int16_t delta; } tc_node;

/* Any tree. `set`: TC_NO_SET, or which category set decides (a member goes to the first child). */
typedef struct { float threshold; uint32_t feature; int32_t delta; uint32_t set; } tc_wide_node;

/* Members of one categorical split: bit c of words[start ..], or, for n_bits < 0, exactly the value `equal`. */
typedef struct { uint32_t start; int32_t n_bits; float equal; uint8_t missing_first; uint8_t floor_negative; } tc_set;

static inline uint32_t tc_leaf_of(float threshold) {
    uint32_t bits;
    memcpy(&bits, &threshold, sizeof bits);
    return bits & TC_LEAF_MASK;
}

enum { TC_SURE_LEVELS = 6 };

#define TC_STEP(nodes, at, row) \
    ((at) += (intptr_t)(nodes)[at].delta + !((row)[(nodes)[at].feature] <= (nodes)[at].threshold))

/* Eight walks with their own starts and rows; `at` ends on the leaves.
 *
 * PERF: trees grown leaf by leaf are much deeper than their usual path. After TC_SURE_LEVELS, every other level asks
 *   whether all eight stand on leaves. Measured on a noisy machine: about a tenth off 500 x 127 leaves, nothing certain
 *   either way on 100 x 31. Revisit with bench_forest.py on a quiet one.
 */
#define TC_DEFINE_WALK8(name, node_t)                                                                                  \
    static inline void name(const node_t* nodes, intptr_t* at, const float* r0, const float* r1, const float* r2,      \
                            const float* r3, const float* r4, const float* r5, const float* r6, const float* r7,       \
                            int32_t depth) {                                                                           \
        intptr_t a0 = at[0], a1 = at[1], a2 = at[2], a3 = at[3], a4 = at[4], a5 = at[5], a6 = at[6], a7 = at[7];       \
        for (int32_t level = 0; level < depth; level++) {                                                              \
            TC_STEP(nodes, a0, r0);                                                                                    \
            TC_STEP(nodes, a1, r1);                                                                                    \
            TC_STEP(nodes, a2, r2);                                                                                    \
            TC_STEP(nodes, a3, r3);                                                                                    \
            TC_STEP(nodes, a4, r4);                                                                                    \
            TC_STEP(nodes, a5, r5);                                                                                    \
            TC_STEP(nodes, a6, r6);                                                                                    \
            TC_STEP(nodes, a7, r7);                                                                                    \
            if (level >= TC_SURE_LEVELS && (level & 1) != 0 &&                                                         \
                (nodes[a0].delta & nodes[a1].delta & nodes[a2].delta & nodes[a3].delta & nodes[a4].delta &             \
                 nodes[a5].delta & nodes[a6].delta & nodes[a7].delta) < 0)                                             \
                break;                                                                                                 \
        }                                                                                                              \
        at[0] = a0; at[1] = a1; at[2] = a2; at[3] = a3; at[4] = a4; at[5] = a5; at[6] = a6; at[7] = a7;                \
    }

TC_DEFINE_WALK8(tc_walk8, tc_node)
TC_DEFINE_WALK8(tc_wide_walk8, tc_wide_node)

/* Is x a member? Categories are what the source library casts to an integer; everything else is no member. */
static inline int tc_is_member(const tc_set* set, const uint32_t* words, float x) {
    if (x != x) return set->missing_first;
    if (set->n_bits < 0) return x == set->equal;
    /* LightGBM truncates (-1, 0) to category 0; XGBoost refuses every negative value. */
    if (!(set->floor_negative ? x > -1.0f : x >= 0.0f) || !(x < (float)set->n_bits)) return 0;
    uint32_t category = (uint32_t)(int32_t)x;
    return (words[set->start + (category >> 5)] >> (category & 31u)) & 1u;
}

/* One walk of a tree that has category sets. */
static inline intptr_t tc_set_walk(const tc_wide_node* nodes, const tc_set* sets, const uint32_t* words, intptr_t at,
                                   const float* row) {
    for (;;) {
        const tc_wide_node* node = &nodes[at];
        if (node->delta < 0) return at;
        int second = node->set == TC_NO_SET ? !(row[node->feature] <= node->threshold)
                                            : !tc_is_member(&sets[node->set], words, row[node->feature]);
        at += node->delta + second;
    }
}

/* ---- a forest, as forest.pyx lays it out; immutable, so any number of threads may score ---- */

enum { TC_SUM = 0, TC_MIN = 1, TC_MAX = 2 };
enum { TC_LANES = 8, TC_CHUNK_TREES = 256, TC_BLOCK_ROWS = 64, TC_STACK_FLOATS = 1024, TC_STACK_RAW = 32 };

typedef struct {
    Py_ssize_t n_features, n_raw, n_trees, n_steps, width;
    const tc_step* steps;
    const tc_node* nodes;               /* or NULL: wide_nodes */
    const tc_wide_node* wide_nodes;
    const tc_set* sets;
    const uint32_t* words;
    const int32_t* tree_start;          /* n_trees: position of the root */
    const int32_t* tree_depth;          /* n_trees */
    const uint8_t* tree_has_sets;       /* n_trees */
    const int32_t* tree_raw;            /* n_trees: raw output a tree of width 1 adds to */
    const int64_t* tree_leaf;           /* n_trees: index of the tree's first leaf in values */
    const int32_t* lanes;               /* n_groups x TC_LANES trees walked together, by chunk, then by depth */
    const int32_t* lane_depth;          /* n_groups */
    const int32_t* chunk_group;         /* n_chunks + 1: first group of a chunk */
    const double* values;               /* n_leaves x width, or NULL: values_f32 */
    const float* values_f32;
    const double* base;                 /* n_raw */
    double divisor;                     /* of averages; 0: none */
    double post_scale;
    int32_t aggregate, base_first, post, normalize, pick;   /* pick: the one output to keep, -1: all */
} tc_forest;

/* out = [x, -x] after the forest's own steps. */
static inline void tc_expand(const tc_forest* f, const float* row, float* out) {
    Py_ssize_t n = f->n_features;
    memcpy(out, row, (size_t)n * sizeof *out);
    for (Py_ssize_t s = 0; s < f->n_steps; s++) tc_apply_step(&f->steps[s], out, n);
    for (Py_ssize_t j = 0; j < n; j++) out[n + j] = -out[j];
}

static inline int64_t tc_found(const tc_forest* f, Py_ssize_t tree, intptr_t at) {
    return f->tree_leaf[tree] + tc_leaf_of(f->nodes != NULL ? f->nodes[at].threshold : f->wide_nodes[at].threshold);
}

/* Leaves (indices into values) of trees [first, first + n), n <= TC_CHUNK_TREES, for one expanded row. */
static inline void tc_find_leaves(const tc_forest* f, Py_ssize_t chunk, const float* row, int64_t* found) {
    Py_ssize_t first = chunk * TC_CHUNK_TREES;
    for (int32_t g = f->chunk_group[chunk]; g < f->chunk_group[chunk + 1]; g++) {
        const int32_t* lane = &f->lanes[(Py_ssize_t)g * TC_LANES];
        intptr_t at[TC_LANES];
        for (int i = 0; i < TC_LANES; i++) at[i] = f->tree_start[lane[i]];
        if (f->nodes != NULL) {
            tc_walk8(f->nodes, at, row, row, row, row, row, row, row, row, f->lane_depth[g]);
        } else if (f->lane_depth[g] >= 0) {
            tc_wide_walk8(f->wide_nodes, at, row, row, row, row, row, row, row, row, f->lane_depth[g]);
        } else {
            for (int i = 0; i < TC_LANES; i++) {
                if (i > 0 && lane[i] == lane[i - 1]) { at[i] = at[i - 1]; continue; }
                at[i] = tc_set_walk(f->wide_nodes, f->sets, f->words, at[i], row);
            }
        }
        for (int i = 0; i < TC_LANES; i++) found[lane[i] - first] = tc_found(f, lane[i], at[i]);
    }
}

/* Up to eight expanded rows, one behind the other, down one tree: at[0 .. n) ends on their leaves. */
static inline void tc_walk_tree(const tc_forest* f, Py_ssize_t tree, const float* rows, int n, intptr_t* at) {
    Py_ssize_t width = 2 * f->n_features;
    const float* r[TC_LANES];
    for (int lane = 0; lane < TC_LANES; lane++) {
        at[lane] = f->tree_start[tree];
        r[lane] = rows + (lane < n ? lane : 0) * width;
    }
    if (f->nodes != NULL)
        tc_walk8(f->nodes, at, r[0], r[1], r[2], r[3], r[4], r[5], r[6], r[7], f->tree_depth[tree]);
    else if (!f->tree_has_sets[tree])
        tc_wide_walk8(f->wide_nodes, at, r[0], r[1], r[2], r[3], r[4], r[5], r[6], r[7], f->tree_depth[tree]);
    else
        for (int lane = 0; lane < n; lane++) at[lane] = tc_set_walk(f->wide_nodes, f->sets, f->words, at[lane], r[lane]);
}

/* One tree's leaf into one row's raw outputs; `seen` tells MIN and MAX whether acc holds anything yet. */
#define TC_DEFINE_ADD(name, real, values_of)                                                                           \
    static inline void name(const tc_forest* f, Py_ssize_t tree, int64_t leaf, real* acc) {                            \
        const real* value = &f->values_of[leaf * f->width];                                                            \
        Py_ssize_t k = f->width == 1 ? f->tree_raw[tree] : 0, end = f->width == 1 ? k + 1 : f->width;                  \
        if (f->aggregate == TC_SUM) {                                                                                  \
            for (; k < end; k++) acc[k] += *value++;                                                                   \
        } else if (f->aggregate == TC_MIN) {                                                                           \
            for (; k < end; k++, value++) acc[k] = (tree == 0 || *value < acc[k]) ? *value : acc[k];                   \
        } else {                                                                                                       \
            for (; k < end; k++, value++) acc[k] = (tree == 0 || *value > acc[k]) ? *value : acc[k];                   \
        }                                                                                                              \
    }

/* Raw outputs to scores. The source libraries finish in the type they add in. */
#define TC_DEFINE_FINISH(name, real)                                                                                   \
    static inline void name(const tc_forest* f, const real* acc, double* out) {                                        \
        double stack[TC_STACK_RAW];                                                                                    \
        double* raw = f->pick >= 0 ? stack : out;                                                                      \
        for (Py_ssize_t k = 0; k < f->n_raw; k++) {                                                                    \
            real value = acc[k];                                                                                       \
            if (f->divisor != 0.0) value = value / (real)f->divisor;                                                   \
            if (!f->base_first) value = value + (real)f->base[k];                                                      \
            raw[k] = (double)value;                                                                                    \
        }                                                                                                              \
        tc_transform(f->post, f->post_scale, raw, f->n_raw);                                                           \
        if (f->normalize) tc_normalize_scores(raw, f->n_raw);                                                          \
        if (f->pick >= 0) out[0] = raw[f->pick];                                                                       \
    }

/* One row: trees in flight. Many rows: one tree at a time stays in the nearest cache while eight rows walk it. */
#define TC_DEFINE_SCORE(suffix, real, values_of)                                                                       \
    TC_DEFINE_ADD(tc_add_##suffix, real, values_of)                                                                    \
    TC_DEFINE_FINISH(tc_finish_##suffix, real)                                                                         \
    static inline void tc_score_one_##suffix(const tc_forest* f, const float* row, real* acc, double* out) {           \
        int64_t found[TC_CHUNK_TREES];                                                                                 \
        for (Py_ssize_t k = 0; k < f->n_raw; k++) acc[k] = f->base_first ? (real)f->base[k] : (real)0;                 \
        for (Py_ssize_t chunk = 0, first = 0; first < f->n_trees; chunk++, first += TC_CHUNK_TREES) {                  \
            Py_ssize_t n = f->n_trees - first < TC_CHUNK_TREES ? f->n_trees - first : TC_CHUNK_TREES;                  \
            tc_find_leaves(f, chunk, row, found);                                                                      \
            if (f->n_raw == 1 && f->aggregate == TC_SUM) {                                                             \
                real sum = acc[0];                                                                                     \
                for (Py_ssize_t t = 0; t < n; t++) sum += f->values_of[found[t]];                                      \
                acc[0] = sum;                                                                                          \
            } else {                                                                                                   \
                for (Py_ssize_t t = 0; t < n; t++) tc_add_##suffix(f, first + t, found[t], acc);                       \
            }                                                                                                          \
        }                                                                                                              \
        tc_finish_##suffix(f, acc, out);                                                                               \
    }                                                                                                                  \
    static inline void tc_score_block_##suffix(const tc_forest* f, const float* rows, Py_ssize_t n_rows, real* acc,    \
                                               double* out, Py_ssize_t n_outputs) {                                    \
        Py_ssize_t width = 2 * f->n_features;                                                                          \
        for (Py_ssize_t i = 0; i < n_rows; i++)                                                                        \
            for (Py_ssize_t k = 0; k < f->n_raw; k++)                                                                  \
                acc[i * f->n_raw + k] = f->base_first ? (real)f->base[k] : (real)0;                                    \
        for (Py_ssize_t tree = 0; tree < f->n_trees; tree++) {                                                         \
            for (Py_ssize_t i = 0; i < n_rows; i += TC_LANES) {                                                        \
                intptr_t at[TC_LANES];                                                                                 \
                int n = n_rows - i < TC_LANES ? (int)(n_rows - i) : TC_LANES;                                          \
                tc_walk_tree(f, tree, rows + i * width, n, at);                                                        \
                for (int lane = 0; lane < n; lane++)                                                                   \
                    tc_add_##suffix(f, tree, tc_found(f, tree, at[lane]), &acc[(i + lane) * f->n_raw]);                \
            }                                                                                                          \
        }                                                                                                              \
        for (Py_ssize_t i = 0; i < n_rows; i++) tc_finish_##suffix(f, &acc[i * f->n_raw], &out[i * n_outputs]);        \
    }

TC_DEFINE_SCORE(f64, double, values)
TC_DEFINE_SCORE(f32, float, values_f32)

/* One row after another. `row` holds 2 * n_features floats, `acc` n_raw doubles. */
static inline void tc_walk_singly(const tc_forest* f, const float* rows, Py_ssize_t n_rows, Py_ssize_t stride,
                                  float* row, void* acc, double* out, Py_ssize_t n_outputs) {
    for (Py_ssize_t i = 0; i < n_rows; i++) {
        tc_expand(f, rows + i * stride, row);
        if (f->values != NULL) tc_score_one_f64(f, row, (double*)acc, out + i * n_outputs);
        else tc_score_one_f32(f, row, (float*)acc, out + i * n_outputs);
    }
}

/* Eight rows down one tree. 0, or 1 when there is no memory for scratch space. */
static inline int tc_walk_together(const tc_forest* f, const float* rows, Py_ssize_t n_rows, Py_ssize_t stride,
                                   double* out, Py_ssize_t n_outputs) {
    Py_ssize_t width = 2 * f->n_features;
    Py_ssize_t block = n_rows < TC_BLOCK_ROWS ? n_rows : TC_BLOCK_ROWS;
    size_t row_bytes = ((size_t)(block * width) * sizeof(float) + 63u) & ~(size_t)63u;
    char* scratch = (char*)malloc(row_bytes + (size_t)(block * f->n_raw) * sizeof(double));
    if (scratch == NULL) return 1;
    float* expanded = (float*)scratch;
    void* acc = scratch + row_bytes;
    for (Py_ssize_t first = 0; first < n_rows; first += block) {
        Py_ssize_t n = n_rows - first < block ? n_rows - first : block;
        for (Py_ssize_t i = 0; i < n; i++) tc_expand(f, rows + (first + i) * stride, expanded + i * width);
        if (f->values != NULL) tc_score_block_f64(f, expanded, n, (double*)acc, out + first * n_outputs, n_outputs);
        else tc_score_block_f32(f, expanded, n, (float*)acc, out + first * n_outputs, n_outputs);
    }
    free(scratch);
    return 0;
}

/* Walks for any number of rows. 0, or 1 when there is no memory for scratch space. */
static inline int tc_walk_rows(const tc_forest* f, const float* rows, Py_ssize_t n_rows, Py_ssize_t stride,
                               double* out, Py_ssize_t n_outputs) {
    Py_ssize_t width = 2 * f->n_features;
    float row_stack[TC_STACK_FLOATS];
    double acc_stack[TC_STACK_RAW];
    float* row = row_stack;
    void* acc = acc_stack;
    int status = 0;
    if (n_rows >= TC_LANES) return tc_walk_together(f, rows, n_rows, stride, out, n_outputs);
    if (width > TC_STACK_FLOATS) row = (float*)malloc((size_t)width * sizeof *row);
    if (f->n_raw > TC_STACK_RAW) acc = malloc((size_t)f->n_raw * sizeof(double));
    if (row == NULL || acc == NULL) status = 1;
    else tc_walk_singly(f, rows, n_rows, stride, row, acc, out, n_outputs);
    if (row != row_stack) free(row);
    if (acc != acc_stack) free(acc);
    return status;
}

/* Every tree's leaf, numbered within its tree, of every row: out is n_rows x n_trees. 0, or 1 without memory for scratch. */
static inline int tc_leaf_numbers(const tc_forest* f, const float* rows, Py_ssize_t n_rows, Py_ssize_t stride,
                                  int32_t* out) {
    Py_ssize_t width = 2 * f->n_features;
    Py_ssize_t block = n_rows < TC_BLOCK_ROWS ? n_rows : TC_BLOCK_ROWS;
    float* expanded = (float*)malloc((size_t)(block * width) * sizeof *expanded);
    if (expanded == NULL) return 1;
    for (Py_ssize_t first = 0; first < n_rows; first += block) {
        Py_ssize_t n_block = n_rows - first < block ? n_rows - first : block;
        for (Py_ssize_t i = 0; i < n_block; i++) tc_expand(f, rows + (first + i) * stride, expanded + i * width);
        for (Py_ssize_t tree = 0; tree < f->n_trees; tree++) {
            for (Py_ssize_t i = 0; i < n_block; i += TC_LANES) {
                intptr_t at[TC_LANES];
                int n = n_block - i < TC_LANES ? (int)(n_block - i) : TC_LANES;
                tc_walk_tree(f, tree, expanded + i * width, n, at);
                for (int lane = 0; lane < n; lane++)
                    out[(first + i + lane) * f->n_trees + tree] = (int32_t)(tc_found(f, tree, at[lane]) - f->tree_leaf[tree]);
            }
        }
    }
    free(expanded);
    return 0;
}

#endif
