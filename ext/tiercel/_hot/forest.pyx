"""Compiled tree ensembles; see forest.pxd for the contract and forest_kernel.h for how a tree is walked."""

import time

import numpy as np

from libc.math cimport INFINITY, nextafterf
from libc.string cimport memcpy, memset
from tiercel._hot.forest_blocks cimport ForestBlocks
from tiercel._hot.forest_masks cimport ForestMasks
from tiercel._hot.forest_ranks cimport ForestRanks
from tiercel._hot.forest_kernel cimport (
    TC_CHUNK_TREES, TC_LANES, TC_LEAF_BITS, TC_LEAF_MASK, TC_MAX, TC_NO_SET, TC_POST_KINDS, TC_STACK_RAW,
    TC_SUM, tc_forest, tc_leaf_numbers, tc_node, tc_score_rows, tc_set, tc_wide_node,
)
from tiercel._hot.scorer cimport SCORE_NO_MEMORY, SCORE_OK, Scorer, ScoreStatus
from tiercel._hot.steps cimport Steps
from tiercel._hot.typedefs cimport feature_t, int32_t, int64_t, score_t, uint8_t, uint16_t, uint32_t

cdef extern from "<math.h>" nogil:
    float NAN

NODE = np.dtype([("threshold", np.float32), ("feature", np.uint16), ("delta", np.int16)])
WIDE_NODE = np.dtype([("threshold", np.float32), ("feature", np.uint32), ("delta", np.int32), ("set", np.uint32)])
SET = np.dtype(
    [("start", np.uint32), ("n_bits", np.int32), ("equal", np.float32), ("missing_first", np.uint8),
     ("floor_negative", np.uint8)],
    align=True,
)
if NODE.itemsize != sizeof(tc_node) or WIDE_NODE.itemsize != sizeof(tc_wide_node) or SET.itemsize != sizeof(tc_set):
    raise ImportError("forest_kernel.h lays its structs out differently from forest.pyx; rebuild the compiled core")

cdef extern from "<math.h>" nogil:
    float logf(float x)


def log_float32(float x):
    """The C library's logf, as XGBoost uses it; NumPy's own float32 logarithm can differ in the last place."""
    return logf(x)


# Bits of one category set; larger ones cannot be told apart in float32 anyway.
MAX_SET_BITS = 1 << 24
# A path longer than this is refused: no library grows such trees, and it would cost every row that long a walk.
MAX_DEPTH = 4096


cdef class ForestScorer(Scorer):
    """A forest over float32 rows.

    Args (arrays are copied into the scorer's own layout):
        n_features: columns of a row.
        tree_start: first node of each tree, plus the number of nodes; a tree's root is its first node.
        feature: per node; ignored in leaves.
        threshold: float32; `x <= threshold` goes left. NaN: never.
        left, right: child positions within the same array; -1 in leaves.
        missing_left: 1 where NaN goes left.
        set_of: category set that decides instead of the threshold, or -1; members go left.
        leaf: row of `values`, or -1 for inner nodes.
        values: float64, shape (n_leaves, 1) with `tree_raw`, or (n_leaves, n_raw).
        tree_raw: per tree, the raw output it adds to.
        base, base_first: starting value of every raw output, or a value added at the end.
        single_precision: add in float32.
        divisor: of averages; 0 for none.
        post, post_scale, normalize: TC_* kind of transforms.h, its factor, and whether outputs are divided by their sum.
        pick: the one output to keep, or -1 for all.
        set_words, set_start: category sets; set s is the bits of words[set_start[s]:set_start[s + 1]].
        set_equal: NaN, or the one value that is a member.
        floor_negative: whether -0.5 is category 0 (LightGBM).
        steps: (TC_* kind, a, b) applied to each row first.
        wide: use 16-byte nodes even where 8 would do.
        blocks: how many rows are scored; one of forest_blocks.MODES.
        masks: how one row is; one of forest_masks.MODES.
    Raises:
        ValueError: arrays that do not describe trees (a cycle, a child outside its tree, an index out of range).
    """

    def __cinit__(self, *args, **kwargs):
        memset(&self._forest, 0, sizeof(tc_forest))

    def __reduce__(self):
        raise TypeError("ForestScorer is not pickled; load it from its artifacts")

    def __init__(
        self, *, Py_ssize_t n_features, tree_start, feature, threshold, left, right, missing_left, set_of, leaf, values,
        tree_raw, Py_ssize_t n_raw, base, bint base_first, bint single_precision, double divisor, int aggregate,
        int post, double post_scale, bint normalize, int pick, set_words, set_start, set_equal, bint floor_negative,
        list steps, bint wide=False, str blocks="auto", str masks="auto",
    ):
        if self._arrays is not None:
            raise TypeError("ForestScorer is immutable; it cannot be initialised twice")
        cdef Py_ssize_t n_trees = len(tree_start) - 1
        cdef Py_ssize_t n_nodes = len(feature)
        cdef Py_ssize_t n_sets = len(set_start) - 1
        values = np.ascontiguousarray(values, dtype=np.float64)
        if n_features < 1 or n_raw < 1 or n_trees < 1:
            raise ValueError(f"Expected features, outputs and trees, got {n_features}, {n_raw} and {n_trees}")
        for name, array in (("threshold", threshold), ("left", left), ("right", right), ("leaf", leaf),
                            ("missing_left", missing_left), ("set_of", set_of)):
            if len(array) != n_nodes:
                raise ValueError(f"Expected {n_nodes} values in {name}, got {len(array)}")
        if values.ndim != 2 or values.shape[1] not in (1, n_raw) or len(values) < 1:
            raise ValueError(f"Expected leaf values of shape (n, 1) or (n, {n_raw}), got {values.shape}")
        if len(tree_raw) != n_trees or np.min(tree_raw) < 0 or np.max(tree_raw) >= n_raw:
            raise ValueError(f"Expected {n_trees} output numbers below {n_raw} in tree_raw")
        if len(base) != n_raw:
            raise ValueError(f"Expected {n_raw} base values, got {len(base)}")
        if not (-1 <= pick < n_raw) or (pick >= 0 and n_raw > TC_STACK_RAW):
            raise ValueError(f"Expected pick below {min(n_raw, TC_STACK_RAW)}, got {pick}")
        if not (0 <= post < TC_POST_KINDS) or not (TC_SUM <= aggregate <= TC_MAX):
            raise ValueError(f"Unknown transform {post} or aggregate {aggregate}")
        if aggregate != TC_SUM and n_raw > 1 and values.shape[1] == 1:
            raise ValueError("MIN and MAX over several outputs need a value per output in every leaf")

        starts = np.ascontiguousarray(tree_start, dtype=np.int64)
        if starts[0] != 0 or starts[n_trees] != n_nodes or np.any(np.diff(starts) < 1) or n_nodes >= 2**30:
            raise ValueError(f"Expected tree starts that rise from 0 to {n_nodes}")
        set_starts = np.ascontiguousarray(set_start, dtype=np.int64)
        if set_starts[0] != 0 or set_starts[n_sets] != len(set_words) or np.any(np.diff(set_starts) < 0):
            raise ValueError(f"Expected set starts that rise from 0 to {len(set_words)}")
        if n_sets and (np.max(np.diff(set_starts)) * 32 > MAX_SET_BITS or len(set_words) >= 2**31):
            raise ValueError(f"Expected category sets of at most {MAX_SET_BITS} categories")
        if len(set_equal) != n_sets:
            raise ValueError(f"Expected {n_sets} values in set_equal, got {len(set_equal)}")

        arrays = {"tree_raw": np.array(tree_raw, dtype=np.int32), "base": np.array(base, dtype=np.float64)}
        arrays["values"] = values.astype(np.float32) if single_precision else values.copy()
        arrays["words"] = np.array(set_words, dtype=np.uint32)
        sets = np.zeros(n_sets, dtype=SET)
        sets["start"], sets["n_bits"] = set_starts[:n_sets], np.diff(set_starts) * 32
        sets["equal"], sets["floor_negative"] = set_equal, floor_negative
        sets["n_bits"][~np.isnan(sets["equal"])] = -1
        arrays["sets"] = sets
        set_of = np.ascontiguousarray(set_of, dtype=np.int32)
        missing_left = np.ascontiguousarray(missing_left, dtype=np.uint8)
        deciding = set_of >= 0
        if np.any(set_of >= n_sets):
            raise ValueError(f"Expected category sets below {n_sets}, got {np.max(set_of)}")
        sets["missing_first"][set_of[deciding]] = missing_left[deciding]
        if np.any(sets["missing_first"][set_of[deciding]] != missing_left[deciding]):
            raise ValueError("Nodes that share a category set must agree on missing values")

        self._arrays = arrays
        self.n_features, self.n_outputs = n_features, (1 if pick >= 0 else n_raw)
        self.n_trees, self.n_nodes, self.n_leaves = n_trees, n_nodes, len(values)
        cdef bint compact = not wide and not np.any(deciding) and 2 * n_features <= 65535
        cdef const int32_t[::1] tree_start_view = starts.astype(np.int32)
        cdef const int32_t[::1] feature_view = np.ascontiguousarray(feature, dtype=np.int32)
        cdef const float[::1] threshold_view = np.ascontiguousarray(threshold, dtype=np.float32)
        cdef const int32_t[::1] left_view = np.ascontiguousarray(left, dtype=np.int32)
        cdef const int32_t[::1] right_view = np.ascontiguousarray(right, dtype=np.int32)
        cdef const int64_t[::1] leaf_view = np.ascontiguousarray(leaf, dtype=np.int64)
        cdef const uint8_t[::1] missing_view = missing_left
        cdef const int32_t[::1] set_of_view = set_of
        cdef Py_ssize_t n_values = len(values)
        if compact and self._lay_out(
            tree_start_view, feature_view, threshold_view, left_view, right_view, missing_view, set_of_view, leaf_view,
            n_values, True,
        ) == 1:
            compact = False
        if not compact:
            self._lay_out(
                tree_start_view, feature_view, threshold_view, left_view, right_view, missing_view, set_of_view,
                leaf_view, n_values, False,
            )
        self.is_compact = compact
        trees = {
            "n_sets": n_sets, "tree_start": np.asarray(tree_start_view), "feature": np.asarray(feature_view),
            "left": np.asarray(left_view), "right": np.asarray(right_view), "missing_left": missing_left,
            "set_of": set_of, "leaf": np.asarray(leaf_view), "tree_leaf": arrays["tree_leaf"],
        }
        cuts = np.asarray(threshold_view)
        plain = np.flatnonzero((trees["leaf"] < 0) & ~deciding)
        ranks = ForestRanks(feature=trees["feature"], threshold=cuts, plain=plain)
        self._masks = ForestMasks(ranks=ranks, n_features=n_features, threshold=cuts, mode=masks, **trees)
        self._blocks = ForestBlocks(ranks=ranks, row_ns=self._masks.row_ns, mode=blocks, **trees)
        self._group_trees()
        self._steps = Steps(steps, n_features)
        self._forest.steps, self._forest.n_steps = self._steps.each, self._steps.n

        cdef tc_forest* f = &self._forest
        cdef const double[::1] base_view = arrays["base"]
        cdef const int32_t[::1] raw_view = arrays["tree_raw"]
        cdef const uint32_t[::1] words_view = arrays["words"]
        cdef const uint8_t[::1] sets_view = sets.view(np.uint8)
        cdef const float[:, ::1] f32_view
        cdef const double[:, ::1] f64_view
        f.n_features, f.n_raw, f.n_trees, f.width = n_features, n_raw, n_trees, values.shape[1]
        f.base, f.tree_raw = &base_view[0], &raw_view[0]
        f.words = &words_view[0] if len(set_words) else NULL
        f.sets = <const tc_set*>&sets_view[0] if n_sets else NULL
        if single_precision:
            f32_view = arrays["values"]
            f.values_f32 = &f32_view[0, 0]
        else:
            f64_view = arrays["values"]
            f.values = &f64_view[0, 0]
        f.divisor, f.aggregate, f.base_first = divisor, aggregate, base_first
        f.post, f.post_scale, f.normalize, f.pick = post, post_scale, normalize, pick

    cdef int _lay_out(
        self, const int32_t[::1] tree_start, const int32_t[::1] feature, const float[::1] threshold,
        const int32_t[::1] left, const int32_t[::1] right, const uint8_t[::1] missing_left,
        const int32_t[::1] set_of, const int64_t[::1] leaf, Py_ssize_t n_values, bint compact,
    ) except -1:
        """Place every tree level by level, siblings side by side; 1 when a tree does not fit compact nodes."""
        cdef Py_ssize_t n_trees = tree_start.shape[0] - 1
        cdef Py_ssize_t n_nodes = feature.shape[0]
        # A tree of one leaf gets a root above it, so that every walk starts on an inner node or a self-loop.
        placed = np.zeros(n_nodes, dtype=NODE if compact else WIDE_NODE)
        starts, depths = np.empty(n_trees, dtype=np.int32), np.zeros(n_trees, dtype=np.int32)
        has_sets, first_leaf = np.zeros(n_trees, dtype=np.uint8), np.zeros(n_trees, dtype=np.int64)
        leaf_counts = np.zeros(n_trees, dtype=np.int64)
        order_array, level_array = np.empty(n_nodes, dtype=np.int32), np.empty(n_nodes, dtype=np.int32)
        seen_array = np.zeros(n_nodes, dtype=np.uint8)
        cdef int32_t[::1] order = order_array, level = level_array, start_of = starts, depth_of = depths
        cdef uint8_t[::1] seen = seen_array, sets_in = has_sets
        cdef int64_t[::1] leaf_of = first_leaf, count_of = leaf_counts
        cdef uint8_t[::1] raw = placed.view(np.uint8)
        cdef tc_node* nodes = <tc_node*>&raw[0]
        cdef tc_wide_node* wide = <tc_wide_node*>&raw[0]
        cdef Py_ssize_t tree, begin, end, head, tail, node, first, second, child, longest = 0
        cdef int64_t lowest, highest, delta
        cdef uint32_t bits, column, members
        cdef float cut
        for tree in range(n_trees):
            begin, end = tree_start[tree], tree_start[tree + 1]
            lowest, highest = n_values, -1
            order[begin], level[begin], seen[begin] = <int32_t>begin, 0, 1
            head, tail = begin, begin + 1
            while head < tail:
                node = order[head]
                if leaf[node] >= 0:
                    if leaf[node] >= n_values:
                        raise ValueError(f"Expected leaves below {n_values}, got {leaf[node]} at node {node}")
                    lowest, highest = min(lowest, leaf[node]), max(highest, leaf[node])
                    if level[head] > depth_of[tree]:
                        depth_of[tree] = level[head]
                else:
                    if not (0 <= feature[node] < self.n_features):
                        raise ValueError(
                            f"Expected features below {self.n_features}, got {feature[node]} at node {node - begin} of "
                            f"tree {tree}"
                        )
                    if level[head] >= MAX_DEPTH:
                        raise ValueError(f"Expected trees of at most {MAX_DEPTH} levels, got more in tree {tree}")
                    # The first child is where a true test leads; see forest_kernel.h for the negated copy.
                    first, second = left[node], right[node]
                    if missing_left[node] and set_of[node] < 0:
                        first, second = second, first
                    for child in (first, second):
                        if child < begin or child >= end or seen[child]:
                            raise ValueError(
                                f"Expected tree {tree} to be a tree, but child {child - begin} of its node "
                                f"{node - begin} is outside it or has two parents"
                            )
                        seen[child] = 1
                        order[tail], level[tail] = <int32_t>child, level[head] + 1
                        tail += 1
                head += 1
            if tail != end:
                raise ValueError(f"Expected every node of tree {tree} below its root, {end - tail} are not")
            if highest - lowest >= TC_LEAF_MASK:
                raise ValueError(f"Expected at most {TC_LEAF_MASK} leaves in tree {tree}")
            start_of[tree], leaf_of[tree], count_of[tree] = <int32_t>begin, lowest, highest - lowest + 1
            longest = max(longest, depth_of[tree])
            # Children were appended in the order their parents were taken: the next unplaced pair is this node's.
            tail = begin + 1
            for head in range(begin, end):
                node = order[head]
                members = TC_NO_SET
                if leaf[node] >= 0:
                    bits = TC_LEAF_BITS | <uint32_t>(leaf[node] - lowest)
                    memcpy(&cut, &bits, sizeof(float))
                    column, delta = 0, -1
                else:
                    delta = tail - head
                    tail += 2
                    column, cut = <uint32_t>feature[node], threshold[node]
                    if set_of[node] >= 0:
                        members = <uint32_t>set_of[node]
                        sets_in[tree] = 1
                    elif missing_left[node]:
                        column += <uint32_t>self.n_features
                        # "x <= cut or NaN" is "not (-x <= -next(cut))"; the ends have no next.
                        if cut != cut:
                            cut = INFINITY
                        elif cut == INFINITY:
                            cut = NAN
                        else:
                            cut = -nextafterf(cut, INFINITY)
                if compact:
                    if delta > 32767:
                        return 1
                    nodes[head].threshold, nodes[head].feature = cut, <uint16_t>column
                    nodes[head].delta = <int>delta
                else:
                    wide[head].threshold, wide[head].feature = cut, column
                    wide[head].delta, wide[head].set = <int32_t>delta, members
        self.depth = longest
        arrays = self._arrays
        arrays["nodes"], arrays["tree_start"], arrays["tree_depth"] = placed, starts, depths
        arrays["tree_has_sets"], arrays["tree_leaf"], arrays["leaf_counts"] = has_sets, first_leaf, leaf_counts
        self._forest.nodes = nodes if compact else NULL
        self._forest.wide_nodes = NULL if compact else wide
        self._forest.tree_start, self._forest.tree_depth = &start_of[0], &depth_of[0]
        self._forest.tree_has_sets, self._forest.tree_leaf = &sets_in[0], &leaf_of[0]
        return 0

    def _group_trees(self):
        """Which trees walk together: within a chunk, trees of like depth, those with category sets last."""
        depths, has_sets = self._arrays["tree_depth"], self._arrays["tree_has_sets"]
        lanes, lane_depths, chunk_groups = [], [], [0]
        for first in range(0, self.n_trees, TC_CHUNK_TREES):
            last = min(first + TC_CHUNK_TREES, self.n_trees)
            trees = np.arange(first, last, dtype=np.int32)
            plain = trees[has_sets[first:last] == 0]
            plain = plain[np.argsort(depths[plain], kind="stable")]
            for members, is_plain in ((plain, True), (trees[has_sets[first:last] == 1], False)):
                for at in range(0, len(members), TC_LANES):
                    group = members[at : at + TC_LANES]
                    lanes.append(np.append(group, np.repeat(group[len(group) - 1 :], TC_LANES - len(group))))
                    lane_depths.append(int(depths[group].max()) if is_plain else -1)
            chunk_groups.append(len(lane_depths))
        arrays = self._arrays
        arrays["lanes"] = np.concatenate(lanes).astype(np.int32)
        arrays["lane_depth"] = np.array(lane_depths, dtype=np.int32)
        arrays["chunk_group"] = np.array(chunk_groups, dtype=np.int32)
        cdef const int32_t[::1] lanes_view = arrays["lanes"]
        cdef const int32_t[::1] depth_view = arrays["lane_depth"]
        cdef const int32_t[::1] chunk_view = arrays["chunk_group"]
        self._forest.lanes, self._forest.lane_depth = &lanes_view[0], &depth_view[0]
        self._forest.chunk_group = &chunk_view[0]

    @property
    def block_lanes(self):
        """Rows evaluated at once in a batch; 0 where rows are scored one by one."""
        return self._blocks.blocks.lanes

    @property
    def mask_bytes(self):
        """Bytes of a tree's mask where one row is scored by masks; 0 where it is walked."""
        return self._masks.masks.mask_bytes

    @property
    def block_rows(self):
        """The shortest batch that is not scored row by row."""
        return self._blocks.blocks.min_rows

    cdef ScoreStatus score_rows(
        self, const feature_t* rows, Py_ssize_t n_rows, Py_ssize_t stride, score_t* out
    ) noexcept nogil:
        if tc_score_rows(&self._forest, &self._blocks.blocks, &self._masks.masks, rows, n_rows, stride, out, self.n_outputs) != 0:
            return SCORE_NO_MEMORY
        return SCORE_OK

    def leaves(self, const feature_t[:, ::1] rows not None):
        """The leaf that each row reaches in each tree: int32 (n, n_trees), numbered within the tree.

        Numbers are the source library's own where it numbers leaves (LightGBM's `pred_leaf`); `leaf_counts` says how many
        each tree has. The GIL is released.

        Raises:
            ValueError: rows of another number of features.
            MemoryError: there is no room for the result or for one block of rows.
        """
        if rows.shape[1] != self.n_features:
            raise ValueError(f"Expected rows of {self.n_features} features, got {rows.shape[1]}")
        result = np.empty((rows.shape[0], self.n_trees), dtype=np.int32)
        if not rows.shape[0]:
            return result
        cdef int32_t[:, ::1] out = result
        cdef int status
        with nogil:
            status = tc_leaf_numbers(&self._forest, &rows[0, 0], rows.shape[0], self.n_features, &out[0, 0])
        if status != 0:
            raise MemoryError
        return result

    @property
    def leaf_counts(self):
        """Leaves of each tree: int64 (n_trees,); `leaves` gives numbers below these."""
        return self._arrays["leaf_counts"].copy()

    def time_one_row(self, const feature_t[:, ::1] rows not None, Py_ssize_t repeats):
        """Score `rows` one at a time from compiled code, `repeats` times over: (scores, seconds per row).

        For benchmarks: cycling over many different rows keeps branch predictors and caches honest.
        """
        if rows.shape[1] != self.n_features or rows.shape[0] < 1 or repeats < 1:
            raise ValueError(f"Expected rows of {self.n_features} features and repeats, got {rows.shape[1]}, {repeats}")
        result = np.empty((rows.shape[0], self.n_outputs), dtype=np.float64)
        cdef score_t[:, ::1] out = result
        cdef Py_ssize_t i, repeat, n_rows = rows.shape[0], n_features = self.n_features
        begin = time.perf_counter_ns()
        with nogil:
            for repeat in range(repeats):
                for i in range(n_rows):
                    self.score_rows(&rows[i, 0], 1, n_features, &out[i, 0])
        return result, (time.perf_counter_ns() - begin) / 1e9 / (n_rows * repeats)
