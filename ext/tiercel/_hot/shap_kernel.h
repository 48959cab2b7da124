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

#include "forest_blocks.h"

enum { TC_WALK_SUMS = 8192 };    /* sums that the rows of a block may have together: half a mebibyte */
enum { TC_MAX_PATH = 64, TC_WEIGHTS = TC_MAX_PATH + 1, TC_SHAP_STACK = 24576, TC_SHAP_ROWS = 32, TC_NARROW = 16, TC_NARROW_ROW = TC_NARROW + 1 };
enum { TC_UNIT_TABLE = 0, TC_UNIT_LEAVES = 1, TC_UNIT_LEAF = 2 };

#if defined(__GNUC__) || defined(__clang__)
#define TC_ALWAYS __attribute__((always_inline))
#define TC_SOON(address) __builtin_prefetch(address)
#define TC_COUNT(mask) __builtin_popcountll(mask)
#define TC_LOWEST(mask) __builtin_ctzll(mask)
#else
#error "shap_kernel.h needs GCC or Clang"
#endif

/* An inner node above all units: where its children's masks go, counted within its tree, and its feature's bit. */
typedef struct { uint32_t node, yes, no, bit; } tc_top;

/* A unit: a subtree with a table, or one without, or one leaf of too many features for the latter. What those without a
 * table need stands at `data` of `alone`, in words of eight bytes. Per leaf: its values, one per output, and then
 * - by path: the share of cover that passes each feature; such units are single leaves;
 * - against references: the distinct masks that they have there and how many have each (a byte). Masks are of 16 bits in
 *   units of up to TC_NARROW features, which begin with how many masks each leaf has (16 bits each); else of 64. */
typedef struct {
    int64_t data;               /* first double of its table, or first word in `alone` */
    uint32_t node;              /* with a table: its first inner node, the others follow */
    uint32_t columns;           /* where its features begin */
    uint8_t prefix, inner, width, kind;     /* bits of the mask above it; inner nodes, leaves, or masks; features */
} tc_unit;

typedef struct { uint32_t node, feature, set; } tc_asked_set;

/* Inner nodes and leaves, for walking whole trees by path. Places count within the tree, level by level: parents come
 * before children, and not just before, so that what one waits for was stored some time ago. */
typedef struct {
    double share;               /* of cover that passes the parent's feature from the root to here, never quite zero */
    uint32_t parent_side;       /* the parent's place and, in the lowest bit, the answer that leads here */
    uint32_t answer, column;    /* what this node asks: its place among all answers, and its feature */
    uint32_t before;            /* place of the nearest node above that this node's feature led to; 0: none */
} tc_branch;

typedef struct {
    double share;               /* as above, and may be zero */
    uint32_t parent_side;
    uint32_t leaf;              /* row of values */
} tc_tip;

/* One tree: its first branch is its root. */
typedef struct { int64_t branch, tip; int32_t n_branches, n_tips, n_points; } tc_walked;

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
    const uint32_t* columns;
    const double* tables;
    const uint64_t* alone;
    const tc_walked* walked;            /* n_trees; or NULL: no tree is walked. n_points is a multiple of eight */
    const tc_branch* branches;
    const tc_tip* tips;
    const double* values;               /* n_leaves x width, of walked trees */
    Py_ssize_t max_branches;            /* of one tree */
    const int64_t* tree_top;            /* n_trees + 1 */
    const int64_t* tree_unit;           /* n_trees + 1 */
    const int64_t* tree_node;           /* n_trees + 1 */
    const int64_t* tree_set;            /* n_trees + 1: into asked_sets */
    const int64_t* raw_tree;            /* n_raw x 2: first tree of an output, and the one after its last */
    const double* quadrature;           /* for k points from k * (k - 1): k nodes, then k weights */
    const double* weights;              /* TC_WEIGHTS x TC_WEIGHTS: (a-1)! n! / (a+n)! of one reference row among all */
    const double* narrow;               /* for n, a up to TC_NARROW: weights[a, n] and weights[n, a] */
    double counts[256];                 /* 0.0 to 255.0 */
    int32_t by_path;                    /* path-dependent */
    int32_t simd;                       /* see tc_shap_simd */
} tc_shap;

static inline size_t tc_answer_words(const tc_shap* s) { return (size_t)(s->n_nodes / 64 + 2); }

static inline void tc_expand_row(const tc_shap* s, const float* row, float* out) {
    Py_ssize_t n = s->n_features;
    memcpy(out, row, (size_t)n * sizeof *out);
    for (Py_ssize_t i = 0; i < s->n_steps; i++) tc_apply_step(&s->steps[i], out, n);
    for (Py_ssize_t j = 0; j < n; j++) out[n + j] = -out[j];
}

/* `n` answers from node `at`; n < 64. */
static inline uint64_t tc_answers_of(const uint64_t* answers, uint32_t at, uint32_t n) {
    uint32_t shift = at & 63u;
    uint64_t low = answers[at >> 6] >> shift, high = (answers[(at >> 6) + 1] << 1) << (63u - shift);
    return (low | high) & (((uint64_t)1 << n) - 1);
}

/* One leaf without a table. */
typedef struct { double value; const uint64_t* wide; const uint16_t* narrow; const uint8_t* counts; int n; } tc_lone;

/* The leaf of a TC_UNIT_LEAF. */
static inline tc_lone tc_single_leaf(const tc_shap* s, const tc_unit* unit, Py_ssize_t raw) {
    const uint64_t* data = s->alone + unit->data;
    tc_lone leaf = {((const double*)data)[s->width > 1 ? raw : 0], data + s->width, NULL, NULL, unit->inner};
    leaf.counts = (const uint8_t*)(leaf.wide + leaf.n);
    return leaf;
}

/* The next leaf of a TC_UNIT_LEAVES; `at` starts behind the numbers of masks. */
static inline tc_lone tc_next_leaf(const tc_shap* s, int n, Py_ssize_t raw, const uint64_t** at) {
    tc_lone leaf = {((const double*)*at)[s->width > 1 ? raw : 0], NULL, (const uint16_t*)(*at + s->width), NULL, n};
    leaf.counts = (const uint8_t*)(leaf.narrow + n);
    *at += s->width + (3 * n + 7) / 8;
    return leaf;
}

static inline int tc_slots(const tc_unit* unit) { return unit->kind == TC_UNIT_LEAVES ? unit->inner : 1; }

/* What a leaf worth 1 gives where absent features follow the training data, of which `share[j]` passes
 * feature j: to each feature that the row passes, and to those it fails, alike. The Shapley value of a
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

/* Likewise of two: half of what is given jointly, without the half; Shapley interaction values are the integral of
 * (x_i - share_i) (x_j - share_j) times the product over the others. */
static inline void tc_path_pairs(const double* quadrature, uint64_t failed, const double* share, int width,
                                 double (*both)[TC_MAX_PATH]) {
    int n_points = (width + 1) / 2;
    const double* at = quadrature + n_points * (n_points - 1);
    double ratio[TC_MAX_PATH];
    for (int k = 0; k < n_points; k++) {
        double t = at[k], u = 1.0 - t, product = at[n_points + k];
        for (int j = 0; j < width; j++) {
            int fails = (int)(failed >> j & 1u);
            double factor = t + u * share[j];
            product *= fails ? u * share[j] : factor;
            ratio[j] = fails ? -1.0 / u : (1.0 - share[j]) / factor;
        }
        for (int i = 0; i < width; i++)
            for (int j = 0; j < width; j++) both[i][j] += product * ratio[i] * ratio[j];
    }
}

/* What one leaf gives to each two of its features, half to either order, is added to pairs (n_features x n_features). */
static inline void tc_add_pairs(const tc_shap* s, const tc_lone* leaf, uint64_t failed, int width, const uint32_t* columns,
                                double* pairs) {
    double both[TC_MAX_PATH][TC_MAX_PATH], across[TC_MAX_PATH], lost = 0.0;
    int n = TC_COUNT(failed);
    for (int i = 0; i < width; i++) {
        across[i] = 0.0;
        for (int j = 0; j < width; j++) both[i][j] = 0.0;
    }
    if (s->by_path) tc_path_pairs(s->quadrature, failed, (const double*)leaf->wide, width, both);
    for (int b = 0; b < leaf->n; b++) {
        uint64_t gains = leaf->narrow != NULL ? leaf->narrow[b] : leaf->wide[b];
        if (gains & failed) continue;
        int a = TC_COUNT(gains);
        double count = (double)leaf->counts[b];
        if (n > 1) lost += count * s->weights[(n - 1) * TC_WEIGHTS + a];
        double cross = a > 0 && n > 0 ? count * s->weights[a * TC_WEIGHTS + n - 1] : 0.0;
        double joint = a > 1 ? count * s->weights[(a - 1) * TC_WEIGHTS + n] : 0.0;
        for (uint64_t first = gains; first; first &= first - 1) {
            int i = TC_LOWEST(first);
            across[i] -= cross;
            for (uint64_t second = gains; second; second &= second - 1) both[i][TC_LOWEST(second)] += joint;
        }
    }
    for (int i = 0; i < width; i++) {
        for (int j = 0; j < width; j++) {
            int i_failed = (int)(failed >> i & 1u), j_failed = (int)(failed >> j & 1u);
            double given = both[i][j];
            if (i == j) continue;
            if (!s->by_path && i_failed && j_failed) given = lost;
            else if (!s->by_path && (i_failed || j_failed)) given = across[i_failed ? j : i];
            pairs[(size_t)columns[i] * (size_t)s->n_features + columns[j]] += 0.5 * leaf->value * given;
        }
    }
}

/* The same of all leaves of a unit without a table: how many they are. */
static inline int tc_add_unit_pairs(const tc_shap* s, const tc_unit* unit, const uint64_t* failed, Py_ssize_t raw,
                                    double* pairs) {
    const uint32_t* columns = s->columns + unit->columns;
    if (unit->kind == TC_UNIT_LEAF) {
        tc_lone leaf = tc_single_leaf(s, unit, raw);
        tc_add_pairs(s, &leaf, failed[0], unit->width, columns, pairs);
        return 1;
    }
    const uint16_t* n = (const uint16_t*)(s->alone + unit->data);
    const uint64_t* at = s->alone + unit->data + (unit->inner + 3) / 4;
    for (int k = 0; k < unit->inner; k++) {
        tc_lone leaf = tc_next_leaf(s, n[k], raw, &at);
        tc_add_pairs(s, &leaf, failed[k], unit->width, columns, pairs);
    }
    return unit->inner;
}

/* Eight points of the quadrature; the compiler makes of it what the instruction set has. */
typedef double tc_eight __attribute__((vector_size(64)));

/* What a walk by path keeps of an inner node: the product of the factors down to here and the rest of the integrand, this
 * node's own factor inverted, what its feature was said to give there, and the sum of the leaves below.
 * PERF: side by side. In four arrays, which lie a multiple of 4 KiB and a bit apart, loads wait for stores to others. */
typedef struct { tc_eight product, inverse, said, below; } tc_walk_node;

typedef struct {
    uint64_t* answers;          /* rows x words */
    uint64_t* masks[2];
    const double** found[2];
    float* row;
    tc_eight* sums;             /* rows x features */
    tc_walk_node* walk;         /* max_branches */
    uint8_t* went;              /* 2 x max_branches */
} tc_scratch;

#define TC_FN(name) name##_any
#define TC_TARGET
#define TC_SIMD 0
#include "shap_rows.h"
#undef TC_FN
#undef TC_TARGET
#undef TC_SIMD

#if TC_HAVE_AVX2
#define TC_FN(name) name##_avx2
#define TC_TARGET __attribute__((target("avx2,bmi,popcnt")))
#define TC_SIMD 256
#include "shap_rows.h"
#undef TC_FN
#undef TC_TARGET
#undef TC_SIMD
#define TC_FN(name) name##_avx512
#define TC_TARGET __attribute__((target("avx512f,avx512bw,avx2,bmi,popcnt")))
#define TC_SIMD 512
#include "shap_rows.h"
#undef TC_FN
#undef TC_TARGET
#undef TC_SIMD
#endif

/* The widest vectors, in bits, that this processor has and shap_rows.h knows. */
static inline int tc_shap_simd(void) {
#if TC_HAVE_AVX2
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("bmi") || !__builtin_cpu_supports("popcnt") || !__builtin_cpu_supports("avx2")) return 0;
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") ? 512 : 256;
#else
    return 0;
#endif
}

static inline int tc_take_scratch(const tc_shap* s, size_t n_rows, void* stack, size_t stack_bytes, tc_scratch* out) {
    size_t words = tc_answer_words(s), masks = (size_t)s->max_slots, found = (size_t)s->max_units;
    size_t features = (size_t)s->n_features, nodes = (size_t)s->max_branches;
    size_t sums = s->walked != NULL ? n_rows * features : 0;
    size_t walk = sizeof(tc_eight) * sums + (sizeof(tc_walk_node) + 2) * nodes;
    size_t bytes = 8 * (n_rows * words + 2 * (masks + found) + features) + 64 + walk;
    char* memory = bytes > stack_bytes ? (char*)malloc(bytes) : (char*)stack;
    if (memory == NULL) return 1;
    out->answers = (uint64_t*)memory;
    out->masks[0] = out->answers + n_rows * words;
    out->masks[1] = out->masks[0] + masks;
    out->found[0] = (const double**)(out->masks[1] + masks);
    out->found[1] = out->found[0] + found;
    out->row = (float*)(out->found[1] + found);
    out->sums = (tc_eight*)(((uintptr_t)((double*)out->row + features) + 63u) & ~(uintptr_t)63u);
    out->walk = (tc_walk_node*)(out->sums + sums);
    out->went = (uint8_t*)(out->walk + nodes);
    return 0;
}

/* Any number of rows. 0, or 1 without memory. */
static inline int tc_explain_rows(const tc_shap* s, const float* rows, Py_ssize_t n_rows, Py_ssize_t stride,
                                  Py_ssize_t raw, double* phi) {
    _Alignas(64) char stack[TC_SHAP_STACK];
    tc_scratch scratch;
    if (n_rows < 1) return 0;
    Py_ssize_t most = TC_SHAP_ROWS;
    if (s->walked != NULL && most * s->n_features > TC_WALK_SUMS)
        most = s->n_features < TC_WALK_SUMS ? TC_WALK_SUMS / s->n_features : 1;
    if (tc_take_scratch(s, (size_t)(n_rows < most ? n_rows : most), stack, sizeof stack, &scratch)) return 1;
    memset(phi, 0, (size_t)n_rows * (size_t)s->n_features * sizeof *phi);
    for (Py_ssize_t first = 0; first < n_rows; first += most) {
        Py_ssize_t n = n_rows - first < most ? n_rows - first : most;
        const float* block = rows + first * stride;
        double* out = phi + first * s->n_features;
#if TC_HAVE_AVX2
        if (s->simd == 512) { tc_explain_block_avx512(s, &scratch, block, n, stride, raw, out); continue; }
        if (s->simd == 256) { tc_explain_block_avx2(s, &scratch, block, n, stride, raw, out); continue; }
#endif
        tc_explain_block_any(s, &scratch, block, n, stride, raw, out);
    }
    if ((char*)scratch.answers != stack) free(scratch.answers);
    return 0;
}

/* Interactions of every two features, of a forest without tables: n_rows x n_features x n_features, symmetric; the diagonal
 * is what is left of a feature's own attribution. */
static inline int tc_interact_rows(const tc_shap* s, const float* rows, Py_ssize_t n_rows, Py_ssize_t stride,
                                   Py_ssize_t raw, double* pairs, double* phi) {
    _Alignas(64) char stack[TC_SHAP_STACK];
    tc_scratch scratch;
    Py_ssize_t p = s->n_features;
    if (tc_explain_rows(s, rows, n_rows, stride, raw, phi)) return 1;
    if (tc_take_scratch(s, 1, stack, sizeof stack, &scratch)) return 1;
    memset(pairs, 0, (size_t)n_rows * (size_t)p * (size_t)p * sizeof *pairs);
    for (Py_ssize_t i = 0; i < n_rows; i++, pairs += p * p, phi += p) {
        tc_expand_row(s, rows + i * stride, scratch.row);
        tc_answer_any(s, scratch.row, raw, scratch.answers);
        for (int64_t tree = s->raw_tree[2 * raw]; tree < s->raw_tree[2 * raw + 1]; tree++) {
            tc_find_any(s, scratch.answers, tree, raw, scratch.masks[0], scratch.found[0]);
            const uint64_t* slot = scratch.masks[0] + (s->tree_top[tree + 1] - s->tree_top[tree]);
            for (int64_t k = s->tree_unit[tree]; k < s->tree_unit[tree + 1]; k++)
                slot += tc_add_unit_pairs(s, &s->units[k], slot, raw, pairs);
        }
        for (Py_ssize_t j = 0; j < p; j++) {
            double joint = 0.0;
            for (Py_ssize_t k = 0; k < p; k++) joint += pairs[j * p + k];
            pairs[j * p + j] = phi[j] - joint;
        }
    }
    if ((char*)scratch.answers != stack) free(scratch.answers);
    return 0;
}

/* ---- while loading ---- */

/* 1 where one inner node's test is not true for an expanded row. */
static inline int tc_is_no(const tc_set* sets, const uint32_t* words, const float* row, uint32_t column, float threshold,
                           int32_t set) {
    return set >= 0 ? !tc_is_member(&sets[set], words, row[column]) : !(row[column] <= threshold);
}

/* Distinct values of `of` and how often each comes: their number. */
static inline int32_t tc_distinct(const uint64_t* of, Py_ssize_t n, uint64_t* distinct, double* count) {
    int32_t found = 0;
    for (Py_ssize_t i = 0; i < n; i++) {
        int32_t k = 0;
        while (k < found && distinct[k] != of[i]) k++;
        if (k == found) { distinct[k] = of[i]; count[k] = 0.0; found++; }
        count[k] += 1.0;
    }
    return found;
}

/* A leaf's table for value 1: 2^width rows. Only masks that share no feature with a reference's meet it. */
static inline void tc_leaf_table(const double* weights, const uint64_t* masks, const double* count, int32_t n,
                                 int width, double* table) {
    uint64_t all = width < 64 ? ((uint64_t)1 << width) - 1 : ~(uint64_t)0;
    memset(table, 0, sizeof(double) * (size_t)width << width);
    for (int32_t b = 0; b < n; b++) {
        int a = TC_COUNT(masks[b]);
        uint64_t free_bits = all & ~masks[b], failed = free_bits;
        for (;; failed = (failed - 1) & free_bits) {
            double* row = table + failed * (uint64_t)width;
            int k = TC_COUNT(failed);
            double gain = count[b] * weights[a * TC_WEIGHTS + k], lost = count[b] * weights[k * TC_WEIGHTS + a];
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
