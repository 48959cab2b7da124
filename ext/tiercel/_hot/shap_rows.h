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

/* The sums of up to sixteen features, in registers. `halves` is how many of eight there are. */
typedef struct {
#if TC_SIMD == 512
    __m512d half[2];
#elif TC_SIMD == 256
    __m256d part[4];
#else
    double each[TC_NARROW];
#endif
} TC_FN(tc_sums);

/* sums[j] += value for every bit j of `chosen`. */
TC_TARGET static inline TC_ALWAYS void TC_FN(tc_add_to)(TC_FN(tc_sums)* sums, uint64_t chosen, double value,
                                                        const int halves) {
#if TC_SIMD == 512
    __m512d each = _mm512_set1_pd(value);
    for (int k = 0; k < halves; k++, chosen >>= 8)
        sums->half[k] = _mm512_mask_add_pd(sums->half[k], (__mmask8)chosen, sums->half[k], each);
#elif TC_SIMD == 256
    const __m256i bits = _mm256_set_epi64x(8, 4, 2, 1);
    __m256d each = _mm256_set1_pd(value);
    for (int k = 0; k < 2 * halves; k++, chosen >>= 4) {
        __m256i found = _mm256_and_si256(_mm256_set1_epi64x((int64_t)chosen), bits);
        __m256d added = _mm256_and_pd(_mm256_castsi256_pd(_mm256_cmpeq_epi64(found, bits)), each);
        sums->part[k] = _mm256_add_pd(sums->part[k], added);
    }
#else
    (void)halves;
    for (; chosen; chosen &= chosen - 1) sums->each[TC_LOWEST(chosen)] += value;
#endif
}

/* total[j] += value * sums[j]. */
TC_TARGET static inline TC_ALWAYS void TC_FN(tc_add_all)(TC_FN(tc_sums)* total, const TC_FN(tc_sums)* sums, double value,
                                                         const int halves) {
#if TC_SIMD == 512
    for (int k = 0; k < halves; k++)
        total->half[k] = _mm512_add_pd(total->half[k], _mm512_mul_pd(_mm512_set1_pd(value), sums->half[k]));
#elif TC_SIMD == 256
    for (int k = 0; k < 2 * halves; k++)
        total->part[k] = _mm256_add_pd(total->part[k], _mm256_mul_pd(_mm256_set1_pd(value), sums->part[k]));
#else
    for (int j = 0; j < 8 * halves; j++) total->each[j] += value * sums->each[j];
#endif
}

/* Leaves without tables: each gives to the features that the row passes and a reference fails, and takes from those that
 * the row fails; over the distinct masks of references that fail none of the latter. */
TC_TARGET static inline TC_ALWAYS void TC_FN(tc_add_halves)(const tc_shap* s, const tc_unit* unit, const uint64_t* failed,
                                                            Py_ssize_t raw, double* phi, const int halves) {
    const uint32_t* columns = s->columns + unit->columns;
    const uint16_t* n_masks = (const uint16_t*)(s->alone + unit->data);
    const uint64_t* at = s->alone + unit->data + (unit->inner + 3) / 4;
    _Alignas(64) double out[TC_NARROW];
    TC_FN(tc_sums) total;
    memset(&total, 0, sizeof total);
    for (int k = 0; k < unit->inner; k++) {
        tc_lone leaf = tc_next_leaf(s, n_masks[k], raw, &at);
        TC_FN(tc_sums) sums;
        const double* weights = s->narrow + (size_t)TC_COUNT(failed[k]) * (2 * TC_NARROW_ROW);
        double lost = 0.0;
        memset(&sums, 0, sizeof sums);
#if TC_SIMD
        uint64_t any = 0;
        for (int first = 0; first < leaf.n; first += 64) {
            uint64_t valid = TC_FN(tc_disjoint)(leaf.narrow + first, failed[k]);
            if (leaf.n - first < 64) valid &= ((uint64_t)1 << (leaf.n - first)) - 1;
            for (any |= valid; valid; valid &= valid - 1) {
                int b = first + TC_LOWEST(valid);
                uint64_t gains = leaf.narrow[b];
#else
        uint64_t any = 1;
        {
            for (int b = 0; b < leaf.n; b++) {
                uint64_t gains = leaf.narrow[b];
                if (gains & failed[k]) continue;
#endif
                const double* weight = weights + 2 * TC_COUNT(gains);
                double count = s->counts[leaf.counts[b]];
                lost += count * weight[1];
                TC_FN(tc_add_to)(&sums, gains, count * weight[0], halves);
            }
        }
        if (!any) continue;
        TC_FN(tc_add_to)(&sums, failed[k], -lost, halves);
        TC_FN(tc_add_all)(&total, &sums, leaf.value, halves);
    }
    memcpy(out, &total, sizeof out);
    for (int j = 0; j < unit->width; j++) phi[columns[j]] += out[j];
}

TC_TARGET static void TC_FN(tc_add_leaves)(const tc_shap* s, const tc_unit* unit, const uint64_t* failed, Py_ssize_t raw,
                                           double* phi) {
    if (unit->width <= 8) TC_FN(tc_add_halves)(s, unit, failed, raw, phi, 1);
    else TC_FN(tc_add_halves)(s, unit, failed, raw, phi, 2);
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

/* A whole tree by path, for each of the quadrature's points at once (Linear TreeSHAP, Yu et al. 2022, in the nodes instead of
 * the coefficients of its polynomials: what tc_path_leaf multiplies for each leaf is multiplied once for each node here).
 * Down: the product of the factors of all features above. Up: the sum of the leaves' values times products. A node that
 * feature j led to then gives j the sum of its leaves times (x_j - share) / factor, and takes what the node above said.
 *
 * PERF: no branches: which way a row goes cannot be predicted, and there would be two for each node. A leaf's factor is
 *   never divided by, so leaves keep nothing: they are a list of their own, after all nodes above them. */
TC_TARGET static void TC_FN(tc_walk)(const tc_shap* s, const tc_scratch* scratch, const uint64_t* answers, int64_t tree,
                                     Py_ssize_t raw, tc_eight* sums) {
    const tc_walked* walked = &s->walked[tree];
    const tc_branch* branches = s->branches + walked->branch;
    const tc_tip* tips = s->tips + walked->tip;
    const double* values = s->values + (s->width > 1 ? raw : 0);
    Py_ssize_t n = walked->n_branches, width = s->width, points = walked->n_points;
    uint8_t *went = scratch->went, *passed = went + s->max_branches;
    tc_walk_node* at = scratch->walk;
    if (n == 0) return;
    for (Py_ssize_t i = 0; i < n; i++) went[i] = (uint8_t)(answers[branches[i].answer >> 6] >> (branches[i].answer & 63u) & 1u);
    /* The root stands in for "not asked before". */
    passed[0] = 1;
    for (Py_ssize_t i = 1; i < n; i++) {
        uint32_t parent = branches[i].parent_side >> 1;
        passed[i] = passed[branches[parent].before] & (uint8_t)(went[parent] == (branches[i].parent_side & 1u));
    }
    for (Py_ssize_t first = 0; first < points; first += 8) {
        tc_eight t, u, none;
        memcpy(&t, s->quadrature + points * (points - 1) + first, sizeof t);
        memcpy(&at[0].product, s->quadrature + points * points + first, sizeof t);
        u = 1.0 - t;
        none = t - t;
        at[0].below = at[0].said = none;
        at[0].inverse = none + 1.0;
        for (Py_ssize_t i = 1; i < n; i++) {
            double share = branches[i].share, is = (double)passed[i];
            uint32_t parent = branches[i].parent_side >> 1;
            tc_eight factor = t * is + u * share, reciprocal = 1.0 / factor;
            at[i].inverse = reciprocal;
            at[i].said = reciprocal * (is - share);
            at[i].product = at[parent].product * (factor * at[branches[parent].before].inverse);
            at[i].below = none;
        }
        for (Py_ssize_t k = 0; k < walked->n_tips; k++) {
            uint32_t parent = tips[k].parent_side >> 1, before = branches[parent].before;
            double share = tips[k].share;
            double is = (double)(passed[before] & (uint8_t)(went[parent] == (tips[k].parent_side & 1u)));
            tc_eight worth = at[parent].product * at[before].inverse * values[tips[k].leaf * width];
            at[parent].below += worth * (t * is + u * share);
            sums[branches[parent].column] += worth * (is - share);
        }
        for (Py_ssize_t i = n - 1; i > 0; i--) {
            uint32_t parent = branches[i].parent_side >> 1;
            tc_eight sum = at[i].below;
            at[parent].below += sum;
            sums[branches[parent].column] += sum * at[i].said;
            sums[branches[i].column] -= sum * at[branches[i].before].said;
        }
    }
}

/* A block of rows, one tree after another so that its nodes stay near. */
TC_TARGET static void TC_FN(tc_walk_trees)(const tc_shap* s, const tc_scratch* scratch, Py_ssize_t n_rows, Py_ssize_t raw,
                                           double* phi) {
    size_t words = tc_answer_words(s);
    memset(scratch->sums, 0, sizeof(tc_eight) * (size_t)(n_rows * s->n_features));
    for (int64_t tree = s->raw_tree[2 * raw]; tree < s->raw_tree[2 * raw + 1]; tree++)
        for (Py_ssize_t i = 0; i < n_rows; i++)
            TC_FN(tc_walk)(s, scratch, scratch->answers + (size_t)i * words, tree, raw, scratch->sums + i * s->n_features);
    for (Py_ssize_t j = 0; j < n_rows * s->n_features; j++)
        for (int k = 0; k < 8; k++) phi[j] += scratch->sums[j][k];
}

/* A block of rows, one tree after another so that its tables stay near. `s` has its scratch memory. */
TC_TARGET static void TC_FN(tc_explain_block)(const tc_shap* s, const tc_scratch* scratch, const float* rows,
                                              Py_ssize_t n_rows, Py_ssize_t stride, Py_ssize_t raw, double* phi) {
    size_t words = tc_answer_words(s);
    for (Py_ssize_t i = 0; i < n_rows; i++) {
        tc_expand_row(s, rows + i * stride, scratch->row);
        TC_FN(tc_answer)(s, scratch->row, raw, scratch->answers + (size_t)i * words);
    }
    if (s->walked != NULL) {
        TC_FN(tc_walk_trees)(s, scratch, n_rows, raw, phi);
        return;
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
