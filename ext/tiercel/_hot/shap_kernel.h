/* shap_kernel.h - Shapley values of a forest, one unit of a tree after another.
 *
 * For one leaf, all that matters of a row is which of the features on the leaf's path it fails, a mask of d bits (a feature
 * may be asked several times on a path; its bit says whether all of its answers lead to the leaf). What the leaf then adds
 * to each feature is one row of a table of 2^d rows, made once when the model is loaded: the sum over the reference rows,
 * or over the training data's flow, is in it. The idea of such tables is that of FastTreeSHAP v2 (Yang 2021) and woodelf
 * (Nadel and Wettenstein 2025).
 *
 * Leaves are taken together here. A unit is a subtree: its key is the mask of the path above it and then the answers of its
 * own inner nodes, and its table row is the sum of its leaves' rows. A subtree of four leaves needs no more bytes than its
 * leaves' own tables (two siblings share all of their features), and is one addition instead of four.
 *
 * Where tables would be too large a leaf stands alone and its sum is made directly: over the distinct masks that reference
 * rows have there (tc_add_reference), or by quadrature (tc_path_leaf).
 *
 * A row against one reference row: A, the features the row passes and the reference fails; N, those it fails and the
 * reference passes. A leaf that any feature fails for both gives nothing. Otherwise its game pays `value` to coalitions
 * that hold all of A and none of N, whose Shapley values are (a-1)! n! / (a+n)! for each of A and -a! (n-1)! / (a+n)! for
 * each of N (interventional TreeSHAP, Lundberg et al. 2020).
 */
#ifndef TIERCEL_SHAP_KERNEL_H
#define TIERCEL_SHAP_KERNEL_H

#include "forest_kernel.h"

enum { TC_MAX_PATH = 64, TC_WEIGHTS = TC_MAX_PATH + 1, TC_SHAP_STACK = 24576, TC_SHAP_ROWS = 32 };
enum { TC_UNIT_TABLE = 0, TC_UNIT_LEAF = 1 };

#if defined(__GNUC__) || defined(__clang__)
#define TC_SOON(address) __builtin_prefetch(address)
#define TC_COUNT(mask) __builtin_popcountll(mask)
#define TC_LOWEST(mask) __builtin_ctzll(mask)
#else
#error "shap_kernel.h needs GCC or Clang"
#endif

/* An inner node above all units: where its children's masks go, counted within its tree, and its feature's bit. */
typedef struct { uint32_t node, yes, no, bit; } tc_top;

typedef struct {
    int64_t data;               /* first double of its table; of a leaf, its number in `leaves` */
    uint32_t node;              /* its first inner node; the others follow */
    uint32_t columns;           /* where its features begin */
    uint8_t prefix, inner, width, kind;     /* bits of the mask above it, inner nodes, features */
} tc_unit;

/* A leaf without a table. `at`: its distinct reference masks and their weights; or its features' shares of cover. */
typedef struct {
    int64_t at, sets;           /* sets: (width + 1) x words, which masks pass each feature, and all of them */
    int64_t leaf;               /* row of values */
    int32_t n, words;           /* distinct masks, 64-bit words of a set of them */
} tc_alone;

typedef struct { uint32_t node, feature, set; } tc_asked_set;

typedef struct {
    Py_ssize_t n_features, n_raw, n_nodes, n_steps, width, max_slots, max_units, n_sets;
    const tc_step* steps;
    const float* threshold;             /* per inner node, padded to whole words of answers */
    const uint32_t* column;             /* of [x, -x] */
    const tc_asked_set* asked_sets;     /* inner nodes that ask for membership */
    const tc_set* sets;
    const uint32_t* words;
    const tc_top* tops;
    const tc_unit* units;
    const tc_alone* leaves;
    const uint32_t* columns;
    const double* tables;
    const double* values;               /* n_leaves x width */
    const int64_t* tree_top;            /* n_trees + 1 */
    const int64_t* tree_unit;           /* n_trees + 1 */
    const int64_t* tree_node;           /* n_trees + 1 */
    const int64_t* tree_set;            /* n_trees + 1: into asked_sets */
    const int64_t* raw_tree;            /* n_raw x 2: first tree of an output, and the one after its last */
    const uint64_t* masks;              /* of references, where tc_alone.at says */
    const double* mask_weight;          /* how many references have it, of all */
    const uint64_t* mask_sets;
    const double* shares;
    const double* quadrature;           /* for k points from k * (k - 1): k nodes, then k weights */
    const double* weights;              /* TC_WEIGHTS x TC_WEIGHTS: (a-1)! n! / (a+n)! */
    int32_t by_path;                    /* path-dependent */
} tc_shap;

static inline size_t tc_answer_words(const tc_shap* s) { return (size_t)(s->n_nodes / 64 + 2); }

static inline void tc_expand_row(const tc_shap* s, const float* row, float* out) {
    Py_ssize_t n = s->n_features;
    memcpy(out, row, (size_t)n * sizeof *out);
    for (Py_ssize_t i = 0; i < s->n_steps; i++) tc_apply_step(&s->steps[i], out, n);
    for (Py_ssize_t j = 0; j < n; j++) out[n + j] = -out[j];
}

/* One bit per inner node: 1 where its test is not true. `first` and `last` are words. */
static inline void tc_answer_portable(const tc_shap* s, const float* row, size_t first, size_t last, uint64_t* answers) {
    for (size_t w = first; w < last; w++) {
        const float* threshold = s->threshold + 64 * w;
        const uint32_t* column = s->column + 64 * w;
        uint64_t word = 0;
        for (int i = 0; i < 64; i++) word |= (uint64_t)(!(row[column[i]] <= threshold[i])) << i;
        answers[w] = word;
    }
}

static inline void tc_answer(const tc_shap* s, const float* row, Py_ssize_t raw, uint64_t* answers) {
    int64_t begin = s->raw_tree[2 * raw], end = s->raw_tree[2 * raw + 1];
    size_t first = (size_t)s->tree_node[begin] / 64, last = ((size_t)s->tree_node[end] + 63) / 64;
    tc_answer_portable(s, row, first, last, answers);
    for (int64_t k = s->tree_set[begin]; k < s->tree_set[end]; k++) {
        const tc_asked_set* asked = &s->asked_sets[k];
        uint64_t bit = (uint64_t)1 << (asked->node & 63u);
        if (tc_is_member(&s->sets[asked->set], s->words, row[asked->feature])) answers[asked->node >> 6] &= ~bit;
        else answers[asked->node >> 6] |= bit;
    }
    answers[last] = 0;
}

/* `n` answers from node `at`; n < 64. */
static inline uint64_t tc_answers_of(const uint64_t* answers, uint32_t at, uint32_t n) {
    uint32_t shift = at & 63u;
    uint64_t low = answers[at >> 6] >> shift, high = (answers[(at >> 6) + 1] << 1) << (63u - shift);
    return (low | high) & (((uint64_t)1 << n) - 1);
}

/* What a leaf worth 1 gives to a row that fails `failed`: to each feature it passes, and to every one that it fails alike.
 * Over the distinct masks of reference rows, `words` words of set for each feature and one more for all of them. */
static inline double tc_add_references(const double* weights, uint64_t failed, const uint64_t* masks,
                                       const double* mask_weight, const uint64_t* sets, int32_t words, int width,
                                       double* passed) {
    int n = TC_COUNT(failed);
    double lost = 0.0;
    for (int32_t w = 0; w < words; w++) {
        uint64_t valid = sets[width * words + w], rest = failed;
        for (; rest; rest &= rest - 1) valid &= sets[TC_LOWEST(rest) * words + w];
        for (; valid; valid &= valid - 1) {
            int b = 64 * w + TC_LOWEST(valid);
            uint64_t gains = masks[b];
            int a = TC_COUNT(gains);
            double gain = mask_weight[b] * weights[a * TC_WEIGHTS + n];
            lost += mask_weight[b] * weights[n * TC_WEIGHTS + a];
            for (; gains; gains &= gains - 1) passed[TC_LOWEST(gains)] += gain;
        }
    }
    return -lost;
}

/* The same where absent features follow the training data, of which `share[j]` passes feature j. The Shapley value of a
 * product is the integral over t from 0 to 1 of (x_j - share_j) times the product over the others of t x_k + (1-t) share_k
 * (Owen 1972): a polynomial of degree width - 1, which (width + 1) / 2 Gauss-Legendre points integrate exactly. All factors
 * are positive, so it is stable at any depth. */
static inline double tc_path_leaf(const double* quadrature, uint64_t failed, const double* share, int width,
                                  double* passed) {
    int n_points = (width + 1) / 2;
    const double* at = quadrature + n_points * (n_points - 1);
    const double* weight = at + n_points;
    double lost = 0.0;
    for (int k = 0; k < n_points; k++) {
        double t = at[k], u = 1.0 - t, product = weight[k];
        for (int j = 0; j < width; j++) product *= (failed >> j & 1u) ? u * share[j] : t + u * share[j];
        for (int j = 0; j < width; j++)
            if (!(failed >> j & 1u)) passed[j] += product * (1.0 - share[j]) / (t + u * share[j]);
        lost += product / u;
    }
    return -lost;
}

static inline void tc_add_leaf(const tc_shap* s, const tc_unit* unit, uint64_t failed, Py_ssize_t raw, double* phi) {
    const tc_alone* leaf = &s->leaves[unit->data];
    const uint32_t* columns = s->columns + unit->columns;
    double value = s->values[leaf->leaf * s->width + (s->width > 1 ? raw : 0)];
    double passed[TC_MAX_PATH];
    for (int j = 0; j < unit->width; j++) passed[j] = 0.0;
    double lost = s->by_path ? tc_path_leaf(s->quadrature, failed, s->shares + leaf->at, unit->width, passed)
                             : tc_add_references(s->weights, failed, s->masks + leaf->at, s->mask_weight + leaf->at,
                                                 s->mask_sets + leaf->sets, leaf->words, unit->width, passed);
    for (int j = 0; j < unit->width; j++) phi[columns[j]] += value * ((failed >> j & 1u) ? lost : passed[j]);
}

/* The masks at the tree's units, from its root down; then where each unit's row is. */
static inline void tc_find_rows(const tc_shap* s, const uint64_t* answers, int64_t tree, Py_ssize_t raw, uint64_t* masks,
                                const double** rows) {
    const tc_top* top = s->tops + s->tree_top[tree];
    int64_t n_tops = s->tree_top[tree + 1] - s->tree_top[tree];
    const tc_unit* unit = s->units + s->tree_unit[tree];
    int64_t n_units = s->tree_unit[tree + 1] - s->tree_unit[tree];
    masks[0] = 0;
    for (int64_t k = 0; k < n_tops; k++, top++) {
        uint64_t mask = masks[k], no = answers[top->node >> 6] >> (top->node & 63u) & 1u;
        masks[top->yes] = mask | no << top->bit;
        masks[top->no] = mask | (no ^ 1u) << top->bit;
    }
    for (int64_t k = 0; k < n_units; k++, unit++) {
        uint64_t key = masks[n_tops + k];
        if (unit->kind != TC_UNIT_TABLE) continue;
        key |= tc_answers_of(answers, unit->node, unit->inner) << unit->prefix;
        uint64_t n_keys = (uint64_t)1 << (unit->prefix + unit->inner);
        rows[k] = s->tables + unit->data + (key + (s->width > 1 ? (uint64_t)raw * n_keys : 0)) * unit->width;
        TC_SOON(rows[k]);
        TC_SOON((const char*)(rows[k] + unit->width) - 1);
    }
}

static inline void tc_add_rows(const tc_shap* s, int64_t tree, Py_ssize_t raw, const uint64_t* masks,
                               const double* const* rows, double* phi) {
    int64_t n_tops = s->tree_top[tree + 1] - s->tree_top[tree];
    int64_t n_units = s->tree_unit[tree + 1] - s->tree_unit[tree];
    const tc_unit* unit = s->units + s->tree_unit[tree];
    for (int64_t k = 0; k < n_units; k++, unit++) {
        if (unit->kind == TC_UNIT_TABLE) {
            const uint32_t* columns = s->columns + unit->columns;
            const double* row = rows[k];
            for (int j = 0; j < unit->width; j++) phi[columns[j]] += row[j];
        } else {
            tc_add_leaf(s, unit, masks[n_tops + k], raw, phi);
        }
    }
}

/* Any number of rows, a block of them at a time so that a tree's tables stay near. 0, or 1 without memory. */
static inline int tc_explain_rows(const tc_shap* s, const float* rows, Py_ssize_t n_rows, Py_ssize_t stride,
                                  Py_ssize_t raw, double* phi) {
    _Alignas(64) char stack[TC_SHAP_STACK];
    size_t block = n_rows < TC_SHAP_ROWS ? (size_t)(n_rows > 0 ? n_rows : 1) : TC_SHAP_ROWS;
    size_t words = tc_answer_words(s), n_features = (size_t)s->n_features;
    size_t masks = (size_t)s->max_slots, found = (size_t)s->max_units;
    size_t bytes = 8 * (block * words + 2 * (masks + found)) + 8 * n_features;
    char* memory = bytes > sizeof stack ? (char*)malloc(bytes) : stack;
    if (memory == NULL) return 1;
    uint64_t* answers = (uint64_t*)memory;
    uint64_t* mask[2] = {answers + block * words, answers + block * words + masks};
    const double** row[2];
    row[0] = (const double**)(mask[1] + masks);
    row[1] = row[0] + found;
    float* expanded = (float*)(row[1] + found);
    int64_t begin = s->raw_tree[2 * raw], end = s->raw_tree[2 * raw + 1];
    memset(phi, 0, (size_t)n_rows * n_features * sizeof *phi);
    for (Py_ssize_t first = 0; first < n_rows; first += (Py_ssize_t)block) {
        Py_ssize_t n = n_rows - first < (Py_ssize_t)block ? n_rows - first : (Py_ssize_t)block;
        for (Py_ssize_t i = 0; i < n; i++) {
            tc_expand_row(s, rows + (first + i) * stride, expanded);
            tc_answer(s, expanded, raw, answers + (size_t)i * words);
        }
        /* While one (tree, row) is added the next one's table rows are on their way. */
        int64_t last_tree = -1;
        double* last_phi = NULL;
        int turn = 0;
        for (int64_t tree = begin; tree < end; tree++) {
            for (Py_ssize_t i = 0; i < n; i++, turn ^= 1) {
                tc_find_rows(s, answers + (size_t)i * words, tree, raw, mask[turn], row[turn]);
                if (last_tree >= 0) tc_add_rows(s, last_tree, raw, mask[turn ^ 1], row[turn ^ 1], last_phi);
                last_tree = tree;
                last_phi = phi + (size_t)(first + i) * n_features;
            }
        }
        if (last_tree >= 0) tc_add_rows(s, last_tree, raw, mask[turn ^ 1], row[turn ^ 1], last_phi);
    }
    if (memory != stack) free(memory);
    return 0;
}

/* ---- while loading ---- */

/* 1 where one inner node's test is not true for an expanded row. */
static inline int tc_is_no(const tc_set* sets, const uint32_t* words, const float* row, uint32_t column, float threshold,
                           int32_t set) {
    return set >= 0 ? !tc_is_member(&sets[set], words, row[column]) : !(row[column] <= threshold);
}

/* Distinct values of `of`, with the share of each: their number. */
static inline int32_t tc_distinct(const uint64_t* of, Py_ssize_t n, uint64_t* distinct, double* weight) {
    int32_t found = 0;
    for (Py_ssize_t i = 0; i < n; i++) {
        int32_t k = 0;
        while (k < found && distinct[k] != of[i]) k++;
        if (k == found) { distinct[k] = of[i]; weight[k] = 0.0; found++; }
        weight[k] += 1.0;
    }
    for (int32_t k = 0; k < found; k++) weight[k] /= (double)n;
    return found;
}

/* A leaf's table for value 1: 2^width rows. Only masks that share no feature with a reference's meet it. */
static inline void tc_leaf_table(const double* weights, const uint64_t* masks, const double* mask_weight, int32_t n,
                                 int width, double* table) {
    uint64_t all = width < 64 ? ((uint64_t)1 << width) - 1 : ~(uint64_t)0;
    memset(table, 0, sizeof(double) * (size_t)width << width);
    for (int32_t b = 0; b < n; b++) {
        int a = TC_COUNT(masks[b]);
        uint64_t free_bits = all & ~masks[b], failed = free_bits;
        for (;; failed = (failed - 1) & free_bits) {
            double* row = table + failed * (uint64_t)width;
            int k = TC_COUNT(failed);
            double gain = mask_weight[b] * weights[a * TC_WEIGHTS + k], lost = mask_weight[b] * weights[k * TC_WEIGHTS + a];
            for (uint64_t bits = masks[b]; bits; bits &= bits - 1) row[TC_LOWEST(bits)] += gain;
            for (uint64_t bits = failed; bits; bits &= bits - 1) row[TC_LOWEST(bits)] -= lost;
            if (!failed) break;
        }
    }
}

static inline void tc_path_table(const double* quadrature, const double* share, int width, double* table) {
    memset(table, 0, sizeof(double) * (size_t)width << width);
    for (uint64_t failed = 0; failed < (uint64_t)1 << width; failed++) {
        double* row = table + failed * (uint64_t)width;
        double lost = tc_path_leaf(quadrature, failed, share, width, row);
        for (int j = 0; j < width; j++) if (failed >> j & 1u) row[j] = lost;
    }
}

#endif
