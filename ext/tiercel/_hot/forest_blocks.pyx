"""Laying a forest out for many rows at once; see forest_blocks.pxd for the contract, forest_blocks.h for the method."""

import numpy as np

from libc.string cimport memset
from tiercel._hot.forest_kernel cimport (
    TC_MAX_VECTORS, TC_UNIT, TC_VECTOR, tc_blocks, tc_has_avx2, tc_membership, tc_op, tc_ranking,
)
from tiercel._hot.forest_ranks cimport ForestRanks
from tiercel._hot.forest_ranks import MAX_CUTS
from tiercel._hot.typedefs cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t

OP = np.dtype(
    [("column", np.uint16), ("first", np.uint16), ("second", np.uint16), ("to", np.uint16), ("bound", np.uint32)]
)
MEMBERSHIP = np.dtype([("feature", np.int32), ("set", np.int32), ("column", np.int32)])
if OP.itemsize != sizeof(tc_op) or MEMBERSHIP.itemsize != sizeof(tc_membership):
    raise ImportError("forest_blocks.h lays its structs out differently from forest_blocks.pyx; rebuild the core")

# Ranks of one byte: 0, 1 + (0 .. 254 thresholds below), and one above them all.
MAX_BYTE_CUTS, MAX_BYTE_LEAVES = 254, 256
# Trees are evaluated together until they have this many inner nodes: their vectors stay in the nearest cache.
GROUP_NODES = 256

MODES = ("auto", "never", "always", "always two_bytes", "always portable", "always two_bytes portable")

# Nanoseconds, from 100 x 31 and 500 x 127 leaves on Zen 3, where blocks overtake single rows at seven to eight rows;
# only their ratios matter. Either way the answers are the same.
NS_OP_AVX2, NS_OP = 1.5, 5.0                # one node, one vector
NS_LEAF = 0.4               # one row, one tree
NS_RANK, NS_MEMBER = 1.5, 2.5               # one row, one column
NS_CALL = 300.0             # scratch memory, constants


cdef class ForestBlocks:
    """A forest's nodes as vector operations and its thresholds as ranks.

    Args (arrays that ForestScorer has checked to be trees):
        ranks: their thresholds.
        n_sets: number of category sets.
        tree_start .. leaf: as in ForestScorer.
        tree_leaf: lowest leaf of each tree.
        row_ns: what one row takes otherwise.
        mode: one of MODES. "auto" does what should be fastest; the others are for tests and benchmarks.
    """

    def __cinit__(self, *args, **kwargs):
        memset(&self.blocks, 0, sizeof(tc_blocks))

    def __reduce__(self):
        raise TypeError("ForestBlocks is not pickled; it is part of a ForestScorer")

    def __init__(
        self, *, ForestRanks ranks, Py_ssize_t n_sets, tree_start, feature, left, right, missing_left, set_of, leaf,
        tree_leaf, double row_ns, str mode="auto",
    ):
        cdef tc_blocks* b = &self.blocks
        if self._arrays is not None:
            raise TypeError("ForestBlocks is immutable; it cannot be initialised twice")
        if mode not in MODES:
            raise ValueError(f"Expected one of {', '.join(MODES)}, got {mode!r}")
        self._arrays = arrays = {}
        if mode == "never":
            return
        inner = np.flatnonzero(leaf < 0)
        is_set = set_of[inner] >= 0
        plain_feature = feature[inner[~is_set]]

        tree_of = np.repeat(np.arange(len(tree_start) - 1, dtype=np.int32), np.diff(tree_start))
        node_leaf = np.where(leaf >= 0, leaf - tree_leaf[tree_of], -1).astype(np.int32)
        n_constants = int(node_leaf.max()) + 1
        cdef bint two_bytes = "two_bytes" in mode or ranks.most_cuts > MAX_BYTE_CUTS or n_constants > MAX_BYTE_LEAVES
        lanes, bias = (32, 32768) if two_bytes else (64, 128)

        # A column per feature and direction of missing values, and per feature and category set.
        direction = plain_feature.astype(np.int64) * 2 + missing_left[inner[~is_set]]
        directions, of_plain = np.unique(direction, return_inverse=True)
        membership = feature[inner[is_set]].astype(np.int64) * max(n_sets, 1) + set_of[inner[is_set]]
        members, of_set = np.unique(membership, return_inverse=True)
        n_columns = len(directions) + len(members)
        height = np.zeros(len(leaf), dtype=np.int32)
        _measure_trees(tree_start, node_leaf, left, right, height)
        n_inner = np.bincount(tree_of[inner], minlength=len(tree_start) - 1)
        if ranks.most_cuts > MAX_CUTS or max(n_columns, n_constants + max(int(n_inner.max()), GROUP_NODES)) > TC_MAX_VECTORS:
            return
        b.use_avx2 = "portable" not in mode and tc_has_avx2()
        min_rows = self._shortest(
            lanes, len(inner), len(tree_start) - 1, len(directions), len(members),
            row_ns,
        )
        if mode != "auto":
            min_rows = 1
        if min_rows > lanes:
            return

        column, bound = np.zeros(len(leaf), dtype=np.int32), np.ones(len(leaf), dtype=np.int64)
        column[inner[~is_set]], column[inner[is_set]] = of_plain, len(directions) + of_set
        bound[ranks.nodes] = ranks.places + 2
        bound -= bias
        bound &= 0xFFFF if two_bytes else 0xFF
        bound *= 0x00010001 if two_bytes else 0x01010101

        # Nodes in order: by group of trees, then the lowest first, so that children come before their parents.
        groups = np.zeros(len(n_inner), dtype=np.int32)
        _group_trees(n_inner.astype(np.int64), groups)
        group = groups[tree_of[inner]]
        order = np.argsort(group.astype(np.int64) * (int(height.max()) + 1) + height[inner], kind="stable")
        ops = np.zeros(len(inner), dtype=OP)
        cell = np.where(node_leaf >= 0, node_leaf, 0).astype(np.int32)
        cdef uint8_t[::1] ops_bytes = ops.view(np.uint8)
        n_groups = int(groups[len(groups) - 1]) + 1
        b.n_cells = self._write_ops(
            inner[order], group[order], left, right, node_leaf, column, bound, cell,
            <tc_op*>&ops_bytes[0] if len(inner) else NULL, n_constants,
        )
        arrays["ops"] = ops
        arrays["root"] = (cell[tree_start[: len(tree_start) - 1]] * (TC_VECTOR // TC_UNIT)).astype(np.uint16)
        arrays["group_op"] = np.searchsorted(group[order], np.arange(n_groups + 1)).astype(np.int64)
        arrays["group_tree"] = np.searchsorted(groups, np.arange(n_groups + 1)).astype(np.int32)
        memberships = np.zeros(len(members), dtype=MEMBERSHIP)
        memberships["feature"], memberships["set"] = members // max(n_sets, 1), members % max(n_sets, 1)
        memberships["column"] = len(directions) + np.arange(len(members))
        arrays["memberships"] = memberships
        self._keep_rankings(ranks, directions)

        cdef const int64_t[::1] group_op = arrays["group_op"]
        cdef const int32_t[::1] group_tree = arrays["group_tree"]
        cdef const uint16_t[::1] root = arrays["root"]
        cdef const uint8_t[::1] member_bytes = memberships.view(np.uint8)
        b.ops = <const tc_op*>&ops_bytes[0] if len(inner) else NULL
        b.group_op, b.group_tree, b.root = &group_op[0], &group_tree[0], &root[0]
        b.memberships = <const tc_membership*>&member_bytes[0] if len(members) else NULL
        b.n_columns, b.n_constants, b.n_groups = n_columns, n_constants, n_groups
        b.n_rankings, b.n_memberships = len(ranks.features), len(members)
        b.lanes, b.min_rows = lanes, min_rows

    def _shortest(self, lanes, n_inner, n_trees, n_plain, n_members, row_ns):
        """The number of rows from which a block is faster than one after another; lanes + 1: never."""
        op = NS_OP_AVX2 if self.blocks.use_avx2 else NS_OP
        for rows in range(1, lanes + 1):
            # The call's own cost is counted as the first block's: later ones are cheaper still.
            vector = NS_CALL + n_inner * op * (0.6 if 2 * rows <= lanes else 1.0) + n_plain * NS_RANK * lanes
            if vector + n_members * NS_MEMBER * lanes + rows * n_trees * NS_LEAF < rows * row_ns:
                return rows
        return lanes + 1

    cdef int _write_ops(
        self, const int64_t[::1] order, const int32_t[::1] group, const int32_t[::1] left, const int32_t[::1] right,
        const int32_t[::1] node_leaf, const int32_t[::1] column, const int64_t[::1] bound, int32_t[::1] cell,
        tc_op* ops, Py_ssize_t n_constants,
    ) except -1:
        """Give every inner node a vector, its child's if it can, and write its operation; the number of vectors."""
        free_array = np.empty(order.shape[0] + 1, dtype=np.int32)
        cdef int32_t[::1] unused = free_array
        cdef Py_ssize_t at, node, n_unused = 0, used = n_constants, most = n_constants
        cdef int32_t first, second, to, scale = TC_VECTOR // TC_UNIT
        for at in range(order.shape[0]):
            if at > 0 and group[at] != group[at - 1]:
                n_unused, used = 0, n_constants
            node = order[at]
            first, second = left[node], right[node]
            if node_leaf[first] < 0:
                to = cell[first]
                if node_leaf[second] < 0:
                    unused[n_unused] = cell[second]
                    n_unused += 1
            elif node_leaf[second] < 0:
                to = cell[second]
            elif n_unused > 0:
                n_unused -= 1
                to = unused[n_unused]
            else:
                to = <int32_t>used
                used += 1
                most = max(most, used)
            cell[node] = to
            ops[at].column, ops[at].to = <uint16_t>(column[node] * scale), <uint16_t>(to * scale)
            ops[at].first, ops[at].second = <uint16_t>(cell[first] * scale), <uint16_t>(cell[second] * scale)
            ops[at].bound = <uint32_t>bound[node]
        return <int>most

    def _keep_rankings(self, ForestRanks ranks, directions):
        """Tables that turn values into ranks, and the columns that these go to."""
        rankings, cuts, starts = ranks.tables()
        rankings = rankings.copy()
        for name, side in (("right", 0), ("left", 1)):
            columns = np.flatnonzero(directions % 2 == side)
            rankings[name][np.searchsorted(ranks.features, directions[columns] // 2)] = columns
        arrays = self._arrays
        arrays["cuts"], arrays["starts"], arrays["rankings"] = cuts, starts, rankings
        cdef const float[::1] cuts_view = cuts
        cdef const uint16_t[::1] starts_view = starts
        cdef const uint8_t[::1] rankings_bytes = rankings.view(np.uint8)
        self.blocks.cuts = &cuts_view[0] if len(cuts) else NULL
        self.blocks.starts = &starts_view[0] if len(starts) else NULL
        self.blocks.rankings = <const tc_ranking*>&rankings_bytes[0] if len(rankings) else NULL


cdef _measure_trees(
    const int32_t[::1] tree_start, const int32_t[::1] node_leaf, const int32_t[::1] left, const int32_t[::1] right,
    int32_t[::1] height,
):
    """Fill in how far each node is above its deepest leaf."""
    order_array = np.empty(height.shape[0], dtype=np.int32)
    cdef int32_t[::1] order = order_array
    cdef Py_ssize_t tree, head, tail, node
    for tree in range(tree_start.shape[0] - 1):
        order[0] = tree_start[tree]
        head, tail = 0, 1
        while head < tail:
            node = order[head]
            if node_leaf[node] < 0:
                order[tail], order[tail + 1] = left[node], right[node]
                tail += 2
            head += 1
        for head in range(tail - 1, -1, -1):
            node = order[head]
            if node_leaf[node] < 0:
                height[node] = 1 + max(height[left[node]], height[right[node]])


cdef _group_trees(const int64_t[::1] n_inner, int32_t[::1] groups):
    """Number neighbouring trees into groups of at most GROUP_NODES inner nodes, or of one tree."""
    cdef Py_ssize_t tree
    cdef int64_t size = n_inner[0], most = GROUP_NODES
    cdef int32_t number = 0
    for tree in range(1, n_inner.shape[0]):
        if size + n_inner[tree] > most:
            number += 1
            size = 0
        size += n_inner[tree]
        groups[tree] = number
