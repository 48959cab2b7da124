/* shap_rows.h - explaining rows: the part of shap_kernel.h that is compiled for each instruction set.
 *
 * Included with TC_FN(name), TC_TARGET and TC_SIMD (0, 256 or 512) set. Whatever the set, the same numbers are added in
 * the same order, so the attributions are equal bit for bit on every machine.
 */

/* One bit per inner node, 1 where its test is not true, for words [first, last). */
TC_TARGET static void TC_FN(tc_compare)(const tc_shap* s, const float* row, size_t first, size_t last,
                                        uint64_t* answers) {
    for (size_t w = first; w < last; w++) {
        const float* threshold = s->threshold + 64 * w;
        const uint32_t* column = s->column + 64 * w;
        uint64_t word = 0;
#if TC_SIMD == 512
        for (int i = 0; i < 64; i += 16) {
            __m512 x = _mm512_i32gather_ps(_mm512_loadu_si512(column + i), row, 4);
            word |= (uint64_t)_mm512_cmp_ps_mask(x, _mm512_loadu_ps(threshold + i), _CMP_NLE_UQ) << i;
        }
#elif TC_SIMD == 256
        for (int i = 0; i < 64; i += 8) {
            __m256 x = _mm256_i32gather_ps(row, _mm256_loadu_si256((const __m256i*)(column + i)), 4);
            __m256 no = _mm256_cmp_ps(x, _mm256_loadu_ps(threshold + i), _CMP_NLE_UQ);
            word |= (uint64_t)(uint32_t)_mm256_movemask_ps(no) << i;
        }
#else
        for (int i = 0; i < 64; i++) word |= (uint64_t)(!(row[column[i]] <= threshold[i])) << i;
#endif
        answers[w] = word;
    }
}

TC_TARGET static void TC_FN(tc_answer)(const tc_shap* s, const float* row, Py_ssize_t raw, uint64_t* answers) {
    int64_t begin = s->raw_tree[2 * raw], end = s->raw_tree[2 * raw + 1];
    size_t first = (size_t)s->tree_node[begin] / 64, last = ((size_t)s->tree_node[end] + 63) / 64;
    TC_FN(tc_compare)(s, row, first, last, answers);
    for (int64_t k = s->tree_set[begin]; k < s->tree_set[end]; k++) {
        const tc_asked_set* asked = &s->asked_sets[k];
        uint64_t bit = (uint64_t)1 << (asked->node & 63u);
        if (tc_is_member(&s->sets[asked->set], s->words, row[asked->feature])) answers[asked->node >> 6] &= ~bit;
        else answers[asked->node >> 6] |= bit;
    }
    answers[last] = 0;
}

#if TC_SIMD
/* Which of 64 masks of 16 bits share no bit with `failed`. */
TC_TARGET static inline uint64_t TC_FN(tc_disjoint)(const uint16_t* masks, uint64_t failed) {
#if TC_SIMD == 512
    __m512i asked = _mm512_set1_epi16((int16_t)failed);
    uint64_t low = _mm512_testn_epi16_mask(_mm512_loadu_si512(masks), asked);
    return low | (uint64_t)_mm512_testn_epi16_mask(_mm512_loadu_si512(masks + 32), asked) << 32;
#else
    __m256i asked = _mm256_set1_epi16((int16_t)failed), none = _mm256_setzero_si256();
    uint64_t found = 0;
    for (int i = 0; i < 64; i += 32) {
        __m256i low = _mm256_and_si256(_mm256_loadu_si256((const __m256i*)(masks + i)), asked);
        __m256i high = _mm256_and_si256(_mm256_loadu_si256((const __m256i*)(masks + i + 16)), asked);
        __m256i both = _mm256_packs_epi16(_mm256_cmpeq_epi16(low, none), _mm256_cmpeq_epi16(high, none));
        both = _mm256_permute4x64_epi64(both, 0xD8);
        found |= (uint64_t)(uint32_t)_mm256_movemask_epi8(both) << i;
    }
    return found;
#endif
}

#endif

/* The sums of up to sixteen features: kept in registers while a unit's leaves are added. */
typedef struct {
#if TC_SIMD == 512
    __m512d low, high;
#elif TC_SIMD == 256
    __m256d part[4];
#else
    double each[TC_NARROW];
#endif
} TC_FN(tc_sums);

/* sums[j] += value for every bit j of `chosen`. */
TC_TARGET static inline void TC_FN(tc_add_to)(TC_FN(tc_sums)* sums, uint64_t chosen, double value) {
#if TC_SIMD == 512
    __m512d each = _mm512_set1_pd(value);
    sums->low = _mm512_mask_add_pd(sums->low, (__mmask8)chosen, sums->low, each);
    sums->high = _mm512_mask_add_pd(sums->high, (__mmask8)(chosen >> 8), sums->high, each);
#elif TC_SIMD == 256
    const __m256i bits = _mm256_set_epi64x(8, 4, 2, 1);
    __m256d each = _mm256_set1_pd(value);
    for (int k = 0; k < 4; k++, chosen >>= 4) {
        __m256i found = _mm256_and_si256(_mm256_set1_epi64x((int64_t)chosen), bits);
        __m256d added = _mm256_and_pd(_mm256_castsi256_pd(_mm256_cmpeq_epi64(found, bits)), each);
        sums->part[k] = _mm256_add_pd(sums->part[k], added);
    }
#else
    for (; chosen; chosen &= chosen - 1) sums->each[TC_LOWEST(chosen)] += value;
#endif
}

/* Leaves without tables: each gives to the features that the row passes and a reference fails, and takes from those that
 * the row fails; over the distinct masks of references that fail none of the latter. */
TC_TARGET static inline void TC_FN(tc_add_leaves)(const tc_shap* s, const tc_unit* unit, const uint64_t* failed,
                                                  Py_ssize_t raw, double* phi) {
    const uint32_t* columns = s->columns + unit->columns;
    const uint16_t* n_masks = (const uint16_t*)(s->alone + unit->data);
    const uint64_t* at = s->alone + unit->data + (unit->inner + 3) / 4;
    _Alignas(64) double out[TC_NARROW];
    TC_FN(tc_sums) sums;
    memset(&sums, 0, sizeof sums);
    for (int k = 0; k < unit->inner; k++) {
        tc_lone leaf = tc_next_leaf(s, n_masks[k], raw, &at);
        int n = TC_COUNT(failed[k]);
        const double* when_failed = s->weights + n * TC_WEIGHTS;
        const double* when_passed = s->weights + n;
        double lost = 0.0;
#if TC_SIMD
        for (int first = 0; first < leaf.n; first += 64) {
            uint64_t valid = TC_FN(tc_disjoint)(leaf.narrow + first, failed[k]);
            if (leaf.n - first < 64) valid &= ((uint64_t)1 << (leaf.n - first)) - 1;
            for (; valid; valid &= valid - 1) {
                int b = first + TC_LOWEST(valid);
                uint64_t gains = leaf.narrow[b];
#else
        {
            for (int b = 0; b < leaf.n; b++) {
                uint64_t gains = leaf.narrow[b];
                if (gains & failed[k]) continue;
#endif
                int a = TC_COUNT(gains);
                double value = leaf.value * (double)leaf.counts[b];
                lost += value * when_failed[a];
                TC_FN(tc_add_to)(&sums, gains, value * when_passed[a * TC_WEIGHTS]);
            }
        }
        TC_FN(tc_add_to)(&sums, failed[k], -lost);
    }
    memcpy(out, &sums, sizeof out);
    for (int j = 0; j < unit->width; j++) phi[columns[j]] += out[j];
}

/* A single leaf of many features, or one explained by path. */
TC_TARGET static inline void TC_FN(tc_add_leaf)(const tc_shap* s, const tc_unit* unit, uint64_t failed, Py_ssize_t raw,
                                                double* phi) {
    const uint32_t* columns = s->columns + unit->columns;
    tc_lone leaf = tc_single_leaf(s, unit, raw);
    double passed[TC_MAX_PATH], lost = 0.0;
    int n = TC_COUNT(failed), width = unit->width;
    for (int j = 0; j < width; j++) passed[j] = 0.0;
    if (s->by_path) lost = tc_path_leaf(s->quadrature, failed, (const double*)leaf.wide, width, passed);
    for (int b = 0; b < leaf.n; b++) {
        uint64_t gains = leaf.wide[b];
        if (gains & failed) continue;
        int a = TC_COUNT(gains);
        double count = (double)leaf.counts[b], gain = count * s->weights[a * TC_WEIGHTS + n];
        lost -= count * s->weights[n * TC_WEIGHTS + a];
        for (; gains; gains &= gains - 1) passed[TC_LOWEST(gains)] += gain;
    }
    for (int j = 0; j < width; j++) phi[columns[j]] += leaf.value * ((failed >> j & 1u) ? lost : passed[j]);
}

/* The masks at the tree's units, from its root down; then where each unit's row is. */
TC_TARGET static inline void TC_FN(tc_find)(const tc_shap* s, const uint64_t* answers, int64_t tree, Py_ssize_t raw,
                                            uint64_t* masks, const double** rows) {
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
    const uint64_t* slot = masks + n_tops;
    for (int64_t k = 0; k < n_units; k++, slot += tc_slots(unit), unit++) {
        uint64_t key = *slot;
        if (unit->kind != TC_UNIT_TABLE) {
            const char* data = (const char*)(s->alone + unit->data);
            TC_SOON(data);
            TC_SOON(data + 64);
            continue;
        }
        key |= tc_answers_of(answers, unit->node, unit->inner) << unit->prefix;
        uint64_t n_keys = (uint64_t)1 << (unit->prefix + unit->inner);
        rows[k] = s->tables + unit->data + (key + (s->width > 1 ? (uint64_t)raw * n_keys : 0)) * unit->width;
        TC_SOON(rows[k]);
        TC_SOON((const char*)(rows[k] + unit->width) - 1);
    }
}

TC_TARGET static inline void TC_FN(tc_add)(const tc_shap* s, int64_t tree, Py_ssize_t raw, const uint64_t* masks,
                                           const double* const* rows, double* phi) {
    int64_t n_tops = s->tree_top[tree + 1] - s->tree_top[tree];
    int64_t n_units = s->tree_unit[tree + 1] - s->tree_unit[tree];
    const tc_unit* unit = s->units + s->tree_unit[tree];
    const uint64_t* slot = masks + n_tops;
    for (int64_t k = 0; k < n_units; k++, slot += tc_slots(unit), unit++) {
        if (unit->kind == TC_UNIT_TABLE) {
            const uint32_t* columns = s->columns + unit->columns;
            const double* row = rows[k];
            for (int j = 0; j < unit->width; j++) phi[columns[j]] += row[j];
        } else if (unit->kind == TC_UNIT_LEAVES) {
            TC_FN(tc_add_leaves)(s, unit, slot, raw, phi);
        } else {
            TC_FN(tc_add_leaf)(s, unit, *slot, raw, phi);
        }
    }
}

/* A block of rows, one tree after another so that its tables stay near. `s` has its scratch memory. */
TC_TARGET static void TC_FN(tc_explain_block)(const tc_shap* s, const tc_scratch* scratch, const float* rows,
                                              Py_ssize_t n_rows, Py_ssize_t stride, Py_ssize_t raw, double* phi) {
    size_t words = tc_answer_words(s);
    for (Py_ssize_t i = 0; i < n_rows; i++) {
        tc_expand_row(s, rows + i * stride, scratch->row);
        TC_FN(tc_answer)(s, scratch->row, raw, scratch->answers + (size_t)i * words);
    }
    /* While one (tree, row) is added the next one's table rows are on their way. */
    int64_t last = -1;
    double* last_phi = NULL;
    int turn = 0;
    for (int64_t tree = s->raw_tree[2 * raw]; tree < s->raw_tree[2 * raw + 1]; tree++) {
        for (Py_ssize_t i = 0; i < n_rows; i++, turn ^= 1) {
            TC_FN(tc_find)(s, scratch->answers + (size_t)i * words, tree, raw, scratch->masks[turn], scratch->found[turn]);
            if (last >= 0) TC_FN(tc_add)(s, last, raw, scratch->masks[turn ^ 1], scratch->found[turn ^ 1], last_phi);
            last = tree;
            last_phi = phi + i * s->n_features;
        }
    }
    if (last >= 0) TC_FN(tc_add)(s, last, raw, scratch->masks[turn ^ 1], scratch->found[turn ^ 1], last_phi);
}
