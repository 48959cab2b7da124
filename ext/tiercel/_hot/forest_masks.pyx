"""Laying a forest out for one row at a time; see forest_masks.pxd for the contract, forest_masks.h for the method."""

import numpy as np

from libc.string cimport memset
from tiercel._hot.forest_kernel cimport (
    TC_LINE, TC_MASK_COLUMNS, TC_MASK_FEATURES, TC_MASK_LINES, tc_has_avx2, tc_masks, tc_membership, tc_ranking,
)
from tiercel._hot.forest_ranks cimport ForestRanks
from tiercel._hot.typedefs cimport int32_t, int64_t, uint8_t, uint16_t, uint64_t

from tiercel._hot.forest_blocks import MEMBERSHIP
from tiercel._hot.forest_ranks import MAX_CUTS

MODES = ("auto", "never", "always", "always portable")
MAX_LEAVES = 64                 # of a tree: bits of the longest mask
# PERF: Zen 4, 1 MiB of L2, same run, against walking: 3.7 times as fast with 100 x 31 leaves (1.7 MiB), 3.7 with 500 x 31
#   (12 MiB), 2.1 with 1,000 x 31 (24 MiB), 1.6 with 500 x 64 (24 MiB): and one model should not take that much memory.
MAX_TABLE_BYTES = 12 << 20

# Nanoseconds; only their ratios matter. Either way the answers are the same.
NS_WALK_LEVEL = 1.4             # one level of one tree (walks are shared by eight trees)
NS_COLUMN, NS_LINE, NS_TREE = 3.0, 0.7, 1.5     # placing one value, and-ing one line, adding one tree's leaf


cdef class ForestMasks:
    """A forest's nodes as masks of the leaves that they rule out.

    Args (arrays that ForestScorer has checked to be trees):
        ranks: their thresholds.
        n_features, n_sets: columns of a row, and category sets.
        tree_start .. leaf: as in ForestScorer.
        tree_leaf: lowest leaf of each tree.
        mode: one of MODES. "auto" does what should be fastest; the others are for tests and benchmarks, "always" as far as
            masks can be made: of trees of up to MAX_LEAVES leaves, and no table longer than MAX_TABLE_BYTES.
    """

    def __cinit__(self, *args, **kwargs):
        memset(&self.masks, 0, sizeof(tc_masks))

    def __reduce__(self):
        raise TypeError("ForestMasks is not pickled; it is part of a ForestScorer")

    def __init__(
        self, *, ForestRanks ranks, Py_ssize_t n_features, Py_ssize_t n_sets, tree_start, feature, threshold, left, right,
        missing_left, set_of, leaf, tree_leaf, str mode="auto",
    ):
        cdef tc_masks* m = &self.masks
        if self._arrays is not None:
            raise TypeError("ForestMasks is immutable; it cannot be initialised twice")
        if mode not in MODES:
            raise ValueError(f"Expected one of {', '.join(MODES)}, got {mode!r}")
        self._arrays = arrays = {}
        cdef Py_ssize_t n_trees = len(tree_start) - 1
        tree_of = np.repeat(np.arange(n_trees, dtype=np.int64), np.diff(tree_start))
        node_leaf = np.where(leaf >= 0, leaf - tree_leaf[tree_of], -1)
        first, ruled_out, level = (np.zeros(len(leaf), dtype=np.int32) for _ in range(3))
        _number_leaves(tree_start, leaf, left, right, first, ruled_out, level)
        is_leaf = leaf >= 0
        n_leaves = np.bincount(tree_of[is_leaf], minlength=n_trees)
        self.row_ns = NS_WALK_LEVEL * float(np.sum(np.bincount(tree_of[is_leaf], level[is_leaf]) / n_leaves))

        inner = np.flatnonzero(~is_leaf)
        sets = inner[set_of[inner] >= 0]
        membership, of_set = np.unique(
            feature[sets].astype(np.int64) * max(n_sets, 1) + set_of[sets], return_inverse=True
        )
        n_columns = len(ranks.features) + len(membership)
        mask_bytes = 4 if n_leaves.max() <= 32 else 8
        n_lines = -(-n_trees * mask_bytes // TC_LINE)
        # Of each feature: every rank, and missing.
        rank_row = np.cumsum(np.append(0, np.diff(ranks.cut_start) + 2))
        set_row = rank_row[len(ranks.features)] + 2 * np.arange(len(membership) + 1)
        n_rows = int(set_row[len(membership)])
        by_masks = n_columns * NS_COLUMN + n_columns * n_lines * NS_LINE + n_trees * NS_TREE
        if (
            mode == "never" or n_columns == 0 or n_columns > TC_MASK_COLUMNS or n_lines > TC_MASK_LINES
            or n_leaves.max() > MAX_LEAVES or node_leaf.max() > 255 or n_features > TC_MASK_FEATURES
            or ranks.most_cuts > MAX_CUTS or n_rows * n_lines * TC_LINE > MAX_TABLE_BYTES
            or (mode == "auto" and by_masks > self.row_ns)
        ):
            return
        self.row_ns = by_masks

        word = np.uint32 if mask_bytes == 4 else np.uint64
        held = np.zeros((n_rows + 1) * n_lines * TC_LINE, dtype=np.uint8)
        at = -held.ctypes.data % TC_LINE
        table = held[at : at + n_rows * n_lines * TC_LINE].view(word).reshape(n_rows, -1)
        table[:] = ~word(0)
        # What a failing node leaves: all but the `ruled_out` leaves from `first` on.
        one = np.uint64(1)
        n_out, begin = ruled_out.astype(np.uint64), first.astype(np.uint64)
        kept = (~(((one << n_out) - one) << begin)).astype(word)
        column = np.searchsorted(ranks.features, feature)       # of nodes without a set
        cut = ranks.nodes
        # A threshold is exceeded from the rank after its place on, by that of every greater one too.
        np.bitwise_and.at(table, (rank_row[column[cut]] + ranks.places + 1, tree_of[cut]), kept[cut])
        for k in range(len(ranks.features)):
            values = table[rank_row[k] : rank_row[k + 1] - 1]
            np.bitwise_and.accumulate(values, axis=0, out=values)
        plain = inner[set_of[inner] < 0]
        astray = plain[missing_left[plain] == 0]
        np.bitwise_and.at(table, (rank_row[column[astray] + 1] - 1, tree_of[astray]), kept[astray])
        for node in plain[np.isnan(threshold[plain])]:          # nothing is at most NaN
            table[rank_row[column[node]] : rank_row[column[node] + 1] - 1, tree_of[node]] &= kept[node]
        np.bitwise_and.at(table, (set_row[of_set] + 1, tree_of[sets]), kept[sets])
        self._keep(ranks, table, rank_row, set_row)

        places = np.zeros((n_trees, 8 * mask_bytes), dtype=np.uint8)
        places[tree_of[is_leaf], first[is_leaf]] = node_leaf[is_leaf]
        memberships = np.zeros(len(membership), dtype=MEMBERSHIP)
        memberships["feature"], memberships["set"] = membership // max(n_sets, 1), membership % max(n_sets, 1)
        memberships["column"] = set_row[: len(membership)]
        arrays["held"], arrays["leaf"], arrays["memberships"] = held, places, memberships
        cdef const uint8_t[:, ::1] leaf_view = places
        cdef const uint8_t[::1] member_bytes = memberships.view(np.uint8)
        m.leaf = &leaf_view[0, 0]
        m.memberships = <const tc_membership*>&member_bytes[0] if len(membership) else NULL
        m.n_rankings, m.n_memberships, m.row_bytes = len(ranks.features), len(membership), n_lines * TC_LINE
        m.use_avx2 = "portable" not in mode and tc_has_avx2()
        m.mask_bytes = mask_bytes

    def _keep(self, ForestRanks ranks, table, rank_row, set_row):
        """Point at the table, and at what finds its rows."""
        rankings, cuts, starts = ranks.tables()
        rankings = rankings.copy()
        rankings["right"] = rank_row[: len(ranks.features)]
        arrays = self._arrays
        arrays["table"], arrays["cuts"], arrays["starts"], arrays["rankings"] = table, cuts, starts, rankings
        cdef const uint8_t[:, ::1] table_view = table.view(np.uint8)
        cdef const float[::1] cuts_view = cuts
        cdef const uint16_t[::1] starts_view = starts
        cdef const uint8_t[::1] rankings_bytes = rankings.view(np.uint8)
        self.masks.table = &table_view[0, 0]
        self.masks.cuts = &cuts_view[0] if len(cuts) else NULL
        self.masks.starts = &starts_view[0] if len(starts) else NULL
        self.masks.rankings = <const tc_ranking*>&rankings_bytes[0] if len(rankings) else NULL


cdef _number_leaves(
    const int32_t[::1] tree_start, const int64_t[::1] leaf, const int32_t[::1] left, const int32_t[::1] right,
    int32_t[::1] first, int32_t[::1] ruled_out, int32_t[::1] level,
):
    """Fill in each node's first leaf, counted from the left, how many are below its first child, and its level."""
    order_array, count_array = np.empty(leaf.shape[0], dtype=np.int32), np.ones(leaf.shape[0], dtype=np.int32)
    cdef int32_t[::1] order = order_array, count = count_array
    cdef Py_ssize_t tree, head, tail, node
    for tree in range(tree_start.shape[0] - 1):
        order[0] = tree_start[tree]
        head, tail = 0, 1
        while head < tail:
            node = order[head]
            if leaf[node] < 0:
                order[tail], order[tail + 1] = left[node], right[node]
                level[left[node]], level[right[node]] = level[node] + 1, level[node] + 1
                tail += 2
            head += 1
        for head in range(tail - 1, -1, -1):
            node = order[head]
            if leaf[node] < 0:
                count[node] = count[left[node]] + count[right[node]]
                ruled_out[node] = count[left[node]]
        for head in range(tail):
            node = order[head]
            if leaf[node] < 0:
                first[left[node]], first[right[node]] = first[node], first[node] + ruled_out[node]
