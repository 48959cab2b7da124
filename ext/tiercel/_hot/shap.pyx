"""Exact attributions of tree ensembles; see shap.pxd for the contract and shap_kernel.h for the method."""

import math

import numpy as np

from libc.stdlib cimport free, malloc
from libc.string cimport memset
from tiercel._hot.explainer cimport EXPLAIN_NO_MEMORY, EXPLAIN_OK, Explainer, ExplainStatus
from tiercel._hot.forest_kernel cimport TC_STEP_KINDS, tc_set, tc_step
from tiercel._hot.shap_kernel cimport (
    TC_MAX_PATH, TC_UNIT_LEAF, TC_UNIT_TABLE, TC_WEIGHTS, tc_alone, tc_asked_set, tc_distinct, tc_expand_row, tc_explain_rows, tc_is_no,
    tc_leaf_table, tc_path_table, tc_top, tc_unit,
)
from tiercel._hot.typedefs cimport feature_t, int32_t, int64_t, uint8_t, uint32_t, uint64_t

#: Memory for the tables of one model. Leaves with the shortest paths get theirs first; the rest are summed directly.
TABLE_BYTES = 64 << 20
#: Different features on one path: the bits of a mask.
MAX_PATH_FEATURES = TC_MAX_PATH

# Subtrees are joined to one unit while its table is no larger than its parts' or than this.
MERGE_BYTES = 4096
# A leaf's own table has at most this many bits, a unit's key at most that many.
cdef enum:
    MAX_TABLE_BITS = 14
    MAX_KEY_BITS = 18
    MAX_DEPTH = 4096

TOP = np.dtype([("node", np.uint32), ("yes", np.uint32), ("no", np.uint32), ("bit", np.uint32)])
UNIT = np.dtype(
    [("data", np.int64), ("node", np.uint32), ("columns", np.uint32), ("prefix", np.uint8), ("inner", np.uint8),
     ("width", np.uint8), ("kind", np.uint8)],
    align=True,
)
ALONE = np.dtype([("at", np.int64), ("sets", np.int64), ("leaf", np.int64), ("n", np.int32), ("words", np.int32)])
ASKED_SET = np.dtype([("node", np.uint32), ("feature", np.uint32), ("set", np.uint32)])
SET = np.dtype(
    [("start", np.uint32), ("n_bits", np.int32), ("equal", np.float32), ("missing_first", np.uint8),
     ("floor_negative", np.uint8)],
    align=True,
)
if (TOP.itemsize != sizeof(tc_top) or UNIT.itemsize != sizeof(tc_unit) or ALONE.itemsize != sizeof(tc_alone)
        or ASKED_SET.itemsize != sizeof(tc_asked_set) or SET.itemsize != sizeof(tc_set)):
    raise ImportError("shap_kernel.h lays its structs out differently from shap.pyx; rebuild the compiled core")


def _shapley_weights():
    """(a-1)! n! / (a+n)! for a, n of up to TC_MAX_PATH features."""
    weights = np.zeros((TC_WEIGHTS, TC_WEIGHTS))
    for a in range(1, TC_WEIGHTS):
        for n in range(TC_WEIGHTS):
            weights[a, n] = 1 / (a * math.comb(a + n, n))
    return weights


def _quadrature():
    """Gauss-Legendre nodes and weights on [0, 1], for 1 to (TC_MAX_PATH + 1) / 2 points one after another."""
    parts = []
    for points in range(1, (TC_MAX_PATH + 1) // 2 + 1):
        at, weight = np.polynomial.legendre.leggauss(points)
        parts += [(at + 1) / 2, weight / 2]
    return np.concatenate(parts)


SHAPLEY_WEIGHTS, QUADRATURE = _shapley_weights(), _quadrature()


cdef class _Layout:
    """What is known of the trees while they are laid out: a walk over each, three times."""

    # The forest, its tests as forest_kernel.h asks them: `yes` is where a true one leads.
    cdef const int32_t[::1] yes, no, set_of, feature
    cdef const uint32_t[::1] column
    cdef const float[::1] cut
    cdef const int64_t[::1] leaf
    cdef const double[:, ::1] values
    cdef const double[::1] cover
    cdef const tc_set* sets
    cdef const uint32_t* words
    cdef const float[:, ::1] reference         # expanded; no rows: path-dependent
    cdef Py_ssize_t n_references, merge_bytes, n_outputs
    # By node: whether a leaf has a table; inner nodes of the unit that begins here, or -1; its features; its bytes.
    cdef uint8_t[::1] has_table
    cdef int32_t[::1] unit_inner, unit_width
    cdef int64_t[::1] unit_bytes
    cdef uint8_t[::1] path_length              # different features above a leaf
    # Of the path to the node that is being looked at.
    cdef uint32_t path[TC_MAX_PATH]
    cdef double share[TC_MAX_PATH + 1]
    # What is made.
    cdef float[::1] out_threshold
    cdef uint32_t[::1] out_column, out_columns
    cdef tc_asked_set* out_sets
    cdef tc_top* out_tops
    cdef tc_unit* out_units
    cdef tc_alone* out_alone
    cdef double[::1] out_tables, reached
    cdef Py_ssize_t n_nodes, n_columns, n_asked, n_tops, n_units, n_alone, n_table, first_top, first_unit
    cdef uint64_t[:, ::1] masks                # by node of the tree, of every reference row
    cdef Py_ssize_t begin                      # first node of the tree
    cdef double[::1] leaf_table
    cdef uint64_t[::1] distinct
    cdef double[::1] distinct_weight
    cdef list kept_masks, kept_weights, kept_sets, kept_shares
    cdef Py_ssize_t n_kept, n_kept_sets
    cdef const double* weights
    cdef const double* quadrature
    # Of the unit that is being filled: its features, and the edges to the leaf (inner node, answer, bit of the path).
    cdef uint32_t unit_columns[256]
    cdef int edge_inner[256], edge_answer[256], edge_bit[256]
    cdef int edge_count, unit_n_columns, unit_n_inner

    cdef int find(self, uint32_t feature, int length) noexcept nogil:
        """Bit of a feature on the path; its length when it is new."""
        cdef int k
        for k in range(length):
            if self.path[k] == feature:
                return k
        return length

    cdef int measure(self, Py_ssize_t node, int length, int depth, Py_ssize_t tree) except -1:
        """First walk: how many different features stand above each leaf."""
        cdef int bit
        if self.leaf[node] >= 0:
            self.path_length[node] = <uint8_t>length
            return 0
        if depth >= MAX_DEPTH:
            raise ValueError(f"Expected trees of at most {MAX_DEPTH} levels, got more in tree {tree}")
        bit = self.find(<uint32_t>self.feature[node], length)
        if bit == TC_MAX_PATH:
            raise ValueError(
                f"Expected at most {TC_MAX_PATH} different features on a path from the root to a leaf, got more in tree "
                f"{tree}"
            )
        self.path[bit] = <uint32_t>self.feature[node]
        self.measure(self.yes[node], max(length, bit + 1), depth + 1, tree)
        self.measure(self.no[node], max(length, bit + 1), depth + 1, tree)
        return 0

    cdef int add_features(self, Py_ssize_t node, int length, int count) noexcept nogil:
        """Features of a subtree that are not on the path of `length`, into unit_columns after `count` others."""
        cdef int k
        cdef uint32_t feature
        if self.leaf[node] >= 0:
            return count
        feature = <uint32_t>self.feature[node]
        if self.find(feature, length) == length:
            for k in range(count):
                if self.unit_columns[k] == feature:
                    break
            else:
                self.unit_columns[count] = feature
                count += 1
        count = self.add_features(self.yes[node], length, count)
        return self.add_features(self.no[node], length, count)

    cdef int join(self, Py_ssize_t node, int length) noexcept nogil:
        """Second walk: the units. Inner nodes of the unit that this subtree is, or -1."""
        cdef int bit, below, first, second, inner, width
        cdef int64_t size
        cdef Py_ssize_t yes, no
        self.unit_inner[node] = -1
        if self.leaf[node] >= 0:
            self.unit_width[node] = length
            if self.has_table[node]:
                self.unit_inner[node] = 0
                self.unit_bytes[node] = ((<int64_t>1) << length) * length * <int64_t>sizeof(double)
            return self.unit_inner[node]
        yes, no = self.yes[node], self.no[node]
        bit = self.find(<uint32_t>self.feature[node], length)
        self.path[bit] = <uint32_t>self.feature[node]
        below = max(length, bit + 1)
        first = self.join(yes, below)
        second = self.join(no, below)
        if first < 0 or second < 0 or length + first + second + 1 > MAX_KEY_BITS:
            return -1
        inner = first + second + 1
        width = length + self.add_features(node, length, 0)
        size = ((<int64_t>1) << (length + inner)) * width * <int64_t>sizeof(double)
        if size > max(self.unit_bytes[yes] + self.unit_bytes[no], self.merge_bytes):
            return -1
        self.unit_inner[node], self.unit_width[node], self.unit_bytes[node] = inner, width, size
        return inner

    cdef tuple count(self, starts):
        """(doubles of all tables for one output, features of all units)."""
        cdef Py_ssize_t tree, node, total = 0, columns = 0
        stack = []
        for tree in range(len(starts) - 1):
            stack.append(int(starts[tree]))
            while stack:
                node = stack.pop()
                if self.unit_inner[node] >= 0:
                    total += self.unit_bytes[node] // <int64_t>sizeof(double)
                if self.unit_inner[node] >= 0 or self.leaf[node] >= 0:
                    columns += self.unit_width[node]
                else:
                    stack += [self.yes[node], self.no[node]]
        return total, columns

    cdef int place_node(self, Py_ssize_t node) noexcept nogil:
        """An inner node's place among the answers."""
        cdef Py_ssize_t at = self.n_nodes
        self.out_threshold[at], self.out_column[at] = self.cut[node], self.column[node]
        if self.set_of[node] >= 0:
            self.out_sets[self.n_asked].node = <uint32_t>at
            self.out_sets[self.n_asked].feature = <uint32_t>self.feature[node]
            self.out_sets[self.n_asked].set = <uint32_t>self.set_of[node]
            self.n_asked += 1
        self.n_nodes += 1
        return 0

    cdef int follow(self, Py_ssize_t node, int bit) noexcept nogil:
        """Masks of the reference rows at both children."""
        cdef Py_ssize_t b
        cdef Py_ssize_t yes = self.yes[node] - self.begin, no = self.no[node] - self.begin
        cdef uint64_t mask, answer
        for b in range(self.n_references):
            answer = <uint64_t>tc_is_no(
                self.sets, self.words, &self.reference[b, 0], self.column[node], self.cut[node], self.set_of[node]
            )
            mask = self.masks[node - self.begin, b]
            self.masks[yes, b] = mask | answer << bit
            self.masks[no, b] = mask | (answer ^ 1) << bit
        return 0

    cdef double part(self, Py_ssize_t node, Py_ssize_t child) noexcept nogil:
        """Which part of a node's cover a child has."""
        return self.cover[child] / self.cover[node] if self.cover[node] > 0 else 0.0

    cdef int place(self, Py_ssize_t node, int length) except -1:
        """Third walk: nodes above the units, then the units, of the tree that is being placed."""
        cdef int bit, below, slot
        cdef Py_ssize_t top, child, side
        cdef double before
        if self.unit_inner[node] >= 0 or self.leaf[node] >= 0:
            return self.place_unit(node, length)
        top = self.n_tops
        self.n_tops += 1
        bit = self.find(<uint32_t>self.feature[node], length)
        below = max(length, bit + 1)
        self.out_tops[top].node, self.out_tops[top].bit = <uint32_t>self.n_nodes, <uint32_t>bit
        self.place_node(node)
        self.follow(node, bit)
        before = self.share[bit] if bit < length else 1.0
        for side in range(2):
            child = self.no[node] if side else self.yes[node]
            self.path[bit] = <uint32_t>self.feature[node]
            self.share[bit] = before * self.part(node, child) if self.cover.shape[0] else 1.0
            # Units are counted after all of the tree's tops; the final places are made when those are known.
            if self.unit_inner[child] >= 0 or self.leaf[child] >= 0:
                slot = <int>(-1 - (self.n_units - self.first_unit))
            else:
                slot = <int>(self.n_tops - self.first_top)
            if side:
                self.out_tops[top].no = <uint32_t>slot
            else:
                self.out_tops[top].yes = <uint32_t>slot
            self.place(child, below)
        self.share[bit] = before
        return 0

    cdef int place_unit(self, Py_ssize_t node, int length) except -1:
        cdef tc_unit* unit = &self.out_units[self.n_units]
        cdef int k
        cdef Py_ssize_t size
        unit.node, unit.columns, unit.prefix = <uint32_t>self.n_nodes, <uint32_t>self.n_columns, <uint8_t>length
        unit.width = <uint8_t>self.unit_width[node]
        for k in range(length):
            self.unit_columns[k] = self.path[k]
        self.n_units += 1
        if self.unit_inner[node] < 0:
            unit.kind, unit.inner, unit.data = TC_UNIT_LEAF, 0, self.n_alone
            self.unit_n_columns = length
            self.keep_leaf(node, length)
        else:
            unit.kind, unit.inner, unit.data = TC_UNIT_TABLE, <uint8_t>self.unit_inner[node], self.n_table
            self.unit_n_columns, self.unit_n_inner, self.edge_count = length, 0, 0
            self.fill(node, length, unit)
            size = ((<Py_ssize_t>1) << (unit.prefix + unit.inner)) * unit.width
            self.n_table += size * self.n_outputs
        for k in range(self.unit_n_columns):
            self.out_columns[self.n_columns + k] = self.unit_columns[k]
        self.n_columns += self.unit_n_columns
        return 0

    cdef int fill(self, Py_ssize_t node, int length, tc_unit* unit) except -1:
        """Add the leaves of a unit to its table, placing its inner nodes on the way."""
        cdef int bit, below, inner, k
        cdef Py_ssize_t child, side
        cdef double before
        if self.leaf[node] >= 0:
            return self.fill_leaf(node, length, unit)
        inner = self.unit_n_inner
        self.unit_n_inner += 1
        self.place_node(node)
        bit = self.find(<uint32_t>self.feature[node], length)
        below = max(length, bit + 1)
        self.follow(node, bit)
        for k in range(self.unit_n_columns):
            if self.unit_columns[k] == <uint32_t>self.feature[node]:
                break
        else:
            self.unit_columns[self.unit_n_columns] = <uint32_t>self.feature[node]
            self.unit_n_columns += 1
        before = self.share[bit] if bit < length else 1.0
        for side in range(2):
            child = self.no[node] if side else self.yes[node]
            self.path[bit] = <uint32_t>self.feature[node]
            self.share[bit] = before * self.part(node, child) if self.cover.shape[0] else 1.0
            k = self.edge_count
            self.edge_inner[k], self.edge_answer[k], self.edge_bit[k] = inner, <int>side, bit
            self.edge_count += 1
            self.fill(child, below, unit)
            self.edge_count -= 1
        self.share[bit] = before
        return 0

    cdef int expect(self, Py_ssize_t node, int length, int32_t n) noexcept nogil:
        """How often a leaf is reached when nothing is known of a row; its distinct masks are known."""
        cdef double reached = 0.0
        cdef int k
        if self.cover.shape[0]:
            reached = 1.0
            for k in range(length):
                reached *= self.share[k]
        else:
            for k in range(n):
                if self.distinct[k] == 0:
                    reached += self.distinct_weight[k]
        self.reached[self.leaf[node]] = reached
        return 0

    cdef int fill_leaf(self, Py_ssize_t node, int length, tc_unit* unit) except -1:
        cdef int32_t n = 0
        cdef int k, column
        cdef int place[TC_MAX_PATH]
        cdef uint64_t key, failed, answers, n_keys = (<uint64_t>1) << (unit.prefix + unit.inner)
        cdef Py_ssize_t raw
        cdef double value
        cdef double* row
        cdef double* table
        if self.cover.shape[0]:
            tc_path_table(self.quadrature, self.share, length, &self.leaf_table[0])
        else:
            n = tc_distinct(
                &self.masks[node - self.begin, 0], self.n_references, &self.distinct[0], &self.distinct_weight[0]
            )
            tc_leaf_table(self.weights, &self.distinct[0], &self.distinct_weight[0], n, length, &self.leaf_table[0])
        self.expect(node, length, n)
        for k in range(length):
            for column in range(self.unit_n_columns):
                if self.unit_columns[column] == self.path[k]:
                    place[k] = column
        for key in range(n_keys):
            failed = key & (((<uint64_t>1) << unit.prefix) - 1)
            answers = key >> unit.prefix
            for k in range(self.edge_count):
                if (answers >> self.edge_inner[k] & 1) != <uint64_t>self.edge_answer[k]:
                    failed |= (<uint64_t>1) << self.edge_bit[k]
            row = &self.leaf_table[0] + failed * <uint64_t>length
            for raw in range(self.n_outputs):
                value = self.values[self.leaf[node], raw]
                table = &self.out_tables[0] + unit.data + (raw * n_keys + key) * unit.width
                for k in range(length):
                    table[place[k]] += value * row[k]
        return 0

    cdef int keep_leaf(self, Py_ssize_t node, int length) except -1:
        """What tc_add_leaf needs of a leaf without a table."""
        cdef tc_alone* kept = &self.out_alone[self.n_alone]
        cdef int32_t n = 0, words, k, j
        cdef uint64_t[:, ::1] sets
        self.n_alone += 1
        kept.at, kept.sets, kept.leaf = self.n_kept, self.n_kept_sets, self.leaf[node]
        if self.cover.shape[0]:
            self.kept_shares.append([self.share[k] for k in range(length)])
            self.n_kept += length
        else:
            n = tc_distinct(
                &self.masks[node - self.begin, 0], self.n_references, &self.distinct[0], &self.distinct_weight[0]
            )
            words = (n + 63) // 64
            kept.n, kept.words = n, words
            found = np.zeros((length + 1, words), dtype=np.uint64)
            sets = found
            for k in range(n):
                sets[length, k // 64] |= (<uint64_t>1) << (k % 64)
                for j in range(length):
                    if not (self.distinct[k] >> j & 1):
                        sets[j, k // 64] |= (<uint64_t>1) << (k % 64)
            self.kept_masks.append(np.array(self.distinct[:n]))
            self.kept_weights.append(np.array(self.distinct_weight[:n]))
            self.kept_sets.append(found.reshape(-1))
            self.n_kept += n
            self.n_kept_sets += found.size
        self.expect(node, length, n)
        return 0


def _check_trees(starts, inner, left, right):
    """Every node but the roots is the child of one inner node of its own tree.

    Raises:
        ValueError: it is not so; a walk might not end.
    """
    tree = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    parents = np.concatenate([np.flatnonzero(inner), np.flatnonzero(inner)])
    children = np.concatenate([left[inner], right[inner]]).astype(np.int64)
    if len(children) and not (0 <= children.min() and children.max() < len(inner)):
        raise ValueError(f"Expected children below {len(inner)}, got {children.min()}..{children.max()}")
    count = np.bincount(children, minlength=len(inner))
    count[starts[:-1]] += 1
    if np.any(count != 1) or np.any(tree[parents] != tree[children]):
        raise ValueError("Expected trees, but a node has two parents, none, or one in another tree")


cdef class ForestExplainer(Explainer):
    """Exact Shapley values of a forest's margins, over float32 rows.

    Args (arrays are copied into the explainer's own layout):
        n_features, tree_start, feature, threshold, left, right, missing_left, set_of, leaf, tree_raw, n_raw, set_words,
            set_start, set_equal, floor_negative, steps: as for ForestScorer; steps must be of one feature each.
        values: float64, shape (n_leaves, 1) with `tree_raw`, or (n_leaves, n_raw); the margin is their sum and the base.
        base: float64, shape (n_raw,).
        reference: float32, shape (n, n_features), not yet prepared by `steps`: interventional, absent features are as in
            these rows, which weigh alike.
        cover: float64 per node, how much of the training data came there: path-dependent. One of the two.
        table_bytes: bound on the tables; 0 for none. Those of leaves are counted, and joining adds little to them.
        merge_bytes: subtrees are joined to one unit up to a table of this size, and where joining costs no memory.
    Raises:
        ValueError: arrays that do not describe trees, or a path of more than MAX_PATH_FEATURES different features.
    """

    def __cinit__(self, *args, **kwargs):
        self._steps = NULL
        memset(&self._shap, 0, sizeof(self._shap))

    def __dealloc__(self):
        free(self._steps)

    def __reduce__(self):
        raise TypeError("ForestExplainer is not pickled; make it from its model and reference")

    def __init__(
        self, *, Py_ssize_t n_features, Py_ssize_t n_raw, tree_start, feature, threshold, left, right, missing_left,
        set_of, leaf, values, tree_raw, base, set_words, set_start, set_equal, bint floor_negative, list steps,
        reference=None, cover=None, Py_ssize_t table_bytes=TABLE_BYTES, Py_ssize_t merge_bytes=MERGE_BYTES,
    ):
        if self._arrays is not None:
            raise TypeError("ForestExplainer is immutable; it cannot be initialised twice")
        if (reference is None) == (cover is None):
            raise ValueError("Expected reference rows or the cover of nodes, and not both")
        starts = np.ascontiguousarray(tree_start, dtype=np.int64)
        values = np.array(values, dtype=np.float64, order="C")
        leaf = np.ascontiguousarray(leaf, dtype=np.int64)
        inner = leaf < 0
        n_trees, n_nodes = len(starts) - 1, len(leaf)
        if n_features < 1 or n_raw < 1 or n_trees < 1 or n_nodes >= 2**30 or len(values) <= leaf.max():
            raise ValueError(f"Expected features, outputs, trees and leaf values, got {n_features}, {n_raw}, {n_trees}")
        if starts[0] != 0 or starts[n_trees] != n_nodes or np.any(np.diff(starts) < 1):
            raise ValueError(f"Expected tree starts that rise from 0 to {n_nodes}")
        if values.ndim != 2 or values.shape[1] not in (1, n_raw) or len(base) != n_raw or len(tree_raw) != n_trees:
            raise ValueError(f"Expected leaf values of shape (n, 1) or (n, {n_raw}), got {values.shape}")
        if np.min(tree_raw) < 0 or np.max(tree_raw) >= n_raw:
            raise ValueError(f"Expected {n_trees} output numbers below {n_raw} in tree_raw")
        left, right = np.ascontiguousarray(left, np.int32), np.ascontiguousarray(right, np.int32)
        feature = np.ascontiguousarray(feature, np.int32)
        if np.any(feature[inner] < 0) or np.any(feature[inner] >= n_features):
            raise ValueError(f"Expected features below {n_features}, got {feature[inner].max()}")
        _check_trees(starts, inner, left, right)
        self._arrays = {"values": values}
        self.n_features, self.n_raw, self.n_trees = n_features, n_raw, n_trees
        self.method = "interventional" if cover is None else "path_dependent"
        self._take_sets(set_words, set_start, set_equal, floor_negative, set_of, missing_left)
        self._take_steps(steps)

        cdef _Layout layout = _Layout()
        self._ask(layout, feature, threshold, left, right, missing_left, set_of)
        layout.leaf, layout.values = leaf, values
        layout.feature, layout.set_of = feature, np.ascontiguousarray(set_of, np.int32)
        layout.sets, layout.words = self._shap.sets, self._shap.words
        layout.merge_bytes, layout.n_outputs = merge_bytes, values.shape[1]
        if cover is None:
            reference = np.ascontiguousarray(reference, dtype=np.float32)
            if reference.ndim != 2 or reference.shape[1] != n_features or not len(reference):
                raise ValueError(f"Expected reference rows of {n_features} features, got shape {reference.shape}")
            layout.reference, layout.cover = self._expanded(reference), np.zeros(0)
            layout.n_references = len(reference)
        else:
            layout.cover = np.ascontiguousarray(cover, dtype=np.float64)
            if len(cover) != n_nodes or not np.all(np.isfinite(cover)) or np.any(np.asarray(cover) < 0):
                raise ValueError(f"Expected {n_nodes} covers that are no less than zero")
            layout.reference, layout.n_references = np.zeros((0, 2 * n_features), np.float32), 0
        self._lay_out(layout, starts, np.asarray(tree_raw), inner, table_bytes)

        expected = np.asarray(base, dtype=np.float64).copy()
        reached = np.asarray(layout.reached)
        tree = np.repeat(np.arange(n_trees), np.diff(starts))[~inner]
        if values.shape[1] == 1:
            np.add.at(expected, np.asarray(tree_raw)[tree], reached[leaf[~inner]] * values[leaf[~inner], 0])
        else:
            expected += reached[leaf[~inner]] @ values[leaf[~inner]]
        self._arrays["expected"] = expected
        cdef const double[::1] expected_view = expected
        self._expected = &expected_view[0]

    def _take_sets(self, words, start, equal, floor_negative, set_of, missing_left):
        start = np.ascontiguousarray(start, dtype=np.int64)
        n_sets = len(start) - 1
        if start[0] != 0 or start[n_sets] != len(words) or np.any(np.diff(start) < 0) or len(equal) != n_sets:
            raise ValueError(f"Expected set starts that rise from 0 to {len(words)}, and {n_sets} values in set_equal")
        set_of, missing_left = np.asarray(set_of), np.asarray(missing_left, dtype=np.uint8)
        deciding = set_of >= 0
        if np.any(set_of >= n_sets):
            raise ValueError(f"Expected category sets below {n_sets}, got {np.max(set_of)}")
        sets = np.zeros(n_sets + 1, dtype=SET)  # one more, so that there is a first
        sets["start"][:n_sets], sets["n_bits"][:n_sets] = start[:n_sets], np.diff(start) * 32
        sets["equal"][:n_sets], sets["floor_negative"] = equal, floor_negative
        sets["n_bits"][:n_sets][~np.isnan(sets["equal"][:n_sets])] = -1
        sets["missing_first"][set_of[deciding]] = missing_left[deciding]
        if np.any(sets["missing_first"][set_of[deciding]] != missing_left[deciding]):
            raise ValueError("Nodes that share a category set must agree on missing values")
        self._arrays["sets"], self._arrays["words"] = sets, np.append(np.asarray(words, np.uint32), np.uint32(0))
        cdef const uint8_t[::1] sets_view = sets.view(np.uint8)
        cdef const uint32_t[::1] words_view = self._arrays["words"]
        self._shap.sets, self._shap.words = <const tc_set*>&sets_view[0], &words_view[0]

    def _take_steps(self, list steps):
        cdef const float[::1] a
        cdef const float[::1] b
        cdef Py_ssize_t i
        if steps:
            self._steps = <tc_step*>malloc(len(steps) * sizeof(tc_step))
            if self._steps == NULL:
                raise MemoryError
        for i, (kind, first, second) in enumerate(steps):
            kept = (np.array(first, dtype=np.float32), np.array(second, dtype=np.float32))
            if not (0 <= kind < TC_STEP_KINDS) or any(array.shape != (self.n_features,) for array in kept):
                raise ValueError(f"Expected step {i} to be known and to hold {self.n_features} values")
            self._arrays[f"step{i}"] = kept
            a, b = kept
            self._steps[i].kind, self._steps[i].a, self._steps[i].b = kind, &a[0], &b[0]
        self._shap.steps, self._shap.n_steps, self._shap.n_features = self._steps, len(steps), self.n_features

    def _ask(self, _Layout layout, feature, threshold, left, right, missing_left, set_of):
        """Every test as `row[column] <= cut` over [x, -x], which missing values fail; see forest_kernel.h."""
        swapped = (np.asarray(missing_left) != 0) & (np.asarray(set_of) < 0)
        cut = np.array(threshold, dtype=np.float32)
        with np.errstate(all="ignore"):
            above = -np.nextafter(cut, np.float32(np.inf))
        above[np.isnan(cut)] = np.inf
        above[cut == np.inf] = np.nan
        layout.cut = np.where(swapped, above, cut).astype(np.float32)
        layout.column = np.where(swapped, feature + self.n_features, feature).astype(np.uint32)
        layout.yes, layout.no = np.where(swapped, right, left), np.where(swapped, left, right)

    def _expanded(self, const float[:, ::1] rows):
        """Rows as the kernel sees them: prepared, then beside their negatives."""
        result = np.empty((rows.shape[0], 2 * self.n_features), dtype=np.float32)
        cdef float[:, ::1] out = result
        cdef Py_ssize_t i
        for i in range(rows.shape[0]):
            tc_expand_row(&self._shap, &rows[i, 0], &out[i, 0])
        return result

    def _lay_out(self, _Layout layout, starts, tree_raw, inner, Py_ssize_t table_bytes):
        cdef Py_ssize_t n_nodes = len(inner), n_outputs = layout.n_outputs, tree, at, k, n_tops
        n_inner, n_leaves = int(inner.sum()), len(inner) - int(inner.sum())
        sizes = np.diff(starts)
        layout.path_length, layout.has_table = np.zeros(n_nodes, np.uint8), np.zeros(n_nodes, np.uint8)
        layout.unit_inner, layout.unit_width = np.full(n_nodes, -1, np.int32), np.zeros(n_nodes, np.int32)
        layout.unit_bytes = np.zeros(n_nodes, np.int64)
        for tree in range(self.n_trees):
            layout.measure(starts[tree], 0, 0, tree)
        # The shortest paths first: their tables are the smallest, and most reference rows meet a row there.
        leaf_nodes = np.flatnonzero(~inner)
        length = np.asarray(layout.path_length)[leaf_nodes].astype(np.int64)
        self.longest = length.max()
        order = np.argsort(length, kind="stable")
        bytes_of = (length << np.minimum(length, 40))[order] * 8 * n_outputs
        # Siblings' tables are joined to one of half their size.
        fits = (np.cumsum(bytes_of // 2) <= table_bytes) & (length[order] <= MAX_TABLE_BITS) & (table_bytes > 0)
        np.asarray(layout.has_table)[leaf_nodes[order[fits]]] = 1
        for tree in range(self.n_trees):
            layout.join(starts[tree], 0)

        raw_of = tree_raw if n_outputs == 1 else np.zeros(self.n_trees, np.int64)
        trees = np.argsort(raw_of, kind="stable")
        total, n_columns = layout.count(starts)
        self.table_bytes = total * n_outputs * 8
        words = n_inner // 64 + 2
        made = {
            "threshold": np.full(64 * words, np.nan, np.float32), "column": np.zeros(64 * words, np.uint32),
            "asked": np.zeros(n_inner + 1, ASKED_SET), "tops": np.zeros(n_inner + 1, TOP),
            "units": np.zeros(n_leaves, UNIT), "alone": np.zeros(n_leaves, ALONE),
            "columns": np.zeros(n_columns + 1, np.uint32), "tables": np.zeros(total * n_outputs + 1),
        }
        cdef uint8_t[::1] asked = made["asked"].view(np.uint8), tops = made["tops"].view(np.uint8)
        cdef uint8_t[::1] units = made["units"].view(np.uint8), alone = made["alone"].view(np.uint8)
        layout.out_threshold, layout.out_column = made["threshold"], made["column"]
        layout.out_columns, layout.out_tables = made["columns"], made["tables"]
        layout.out_sets, layout.out_tops = <tc_asked_set*>&asked[0], <tc_top*>&tops[0]
        layout.out_units, layout.out_alone = <tc_unit*>&units[0], <tc_alone*>&alone[0]
        layout.reached = np.zeros(len(self._arrays["values"]))
        n_references = max(1, layout.n_references)
        layout.masks = np.zeros((sizes.max(), n_references), np.uint64)
        tabled = length[order[fits]].max() if np.any(fits) else 0
        layout.leaf_table = np.zeros((max(1, tabled) << tabled))
        layout.distinct, layout.distinct_weight = np.zeros(n_references, np.uint64), np.zeros(n_references)
        layout.kept_masks, layout.kept_weights, layout.kept_sets, layout.kept_shares = [], [], [], []
        made["weights"], made["quadrature"] = SHAPLEY_WEIGHTS, QUADRATURE
        cdef const double[:, ::1] weights = SHAPLEY_WEIGHTS
        cdef const double[::1] quadrature = QUADRATURE
        layout.weights, layout.quadrature = &weights[0, 0], &quadrature[0]
        tree_top, tree_unit, tree_node, tree_set = (np.zeros(self.n_trees + 1, np.int64) for _ in range(4))
        for at, number in enumerate(trees):
            layout.begin = starts[number]
            layout.first_top, layout.first_unit = layout.n_tops, layout.n_units
            np.asarray(layout.masks)[0] = 0
            layout.place(layout.begin, 0)
            n_tops = layout.n_tops - layout.first_top
            for k in range(layout.first_top, layout.n_tops):
                if <int32_t>layout.out_tops[k].yes < 0:
                    layout.out_tops[k].yes = <uint32_t>(n_tops - 1 - <int32_t>layout.out_tops[k].yes)
                if <int32_t>layout.out_tops[k].no < 0:
                    layout.out_tops[k].no = <uint32_t>(n_tops - 1 - <int32_t>layout.out_tops[k].no)
            tree_top[at + 1], tree_unit[at + 1] = layout.n_tops, layout.n_units
            tree_node[at + 1], tree_set[at + 1] = layout.n_nodes, layout.n_asked
        if n_outputs == 1:
            raw_tree = np.searchsorted(raw_of[trees], np.arange(self.n_raw + 1)).astype(np.int64)
            raw_tree = np.stack([raw_tree[:-1], raw_tree[1:]], axis=1)
        else:
            raw_tree = np.tile(np.array([0, self.n_trees], np.int64), (self.n_raw, 1))
        for name, parts, dtype in (("masks", layout.kept_masks, np.uint64), ("mask_weight", layout.kept_weights, np.float64),
                                   ("mask_sets", layout.kept_sets, np.uint64), ("shares", layout.kept_shares, np.float64)):
            made[name] = np.concatenate([*parts, np.zeros(1)]).astype(dtype) if not parts else np.concatenate(
                [*(np.asarray(part, dtype) for part in parts), np.zeros(1, dtype)]
            )
        made |= {"tree_top": tree_top, "tree_unit": tree_unit, "tree_node": tree_node, "tree_set": tree_set,
                 "raw_tree": np.ascontiguousarray(raw_tree)}
        for name in ("units", "alone", "asked", "tops"):
            count = {"units": layout.n_units, "alone": layout.n_alone, "asked": layout.n_asked, "tops": layout.n_tops}[name]
            made[name] = made[name][: max(1, count)].copy()
        self._arrays |= made
        self.n_units, self.n_alone = layout.n_units, layout.n_alone
        self._point(np.diff(tree_top) + np.diff(tree_unit), np.diff(tree_unit), n_outputs, n_inner, layout.cover.shape[0] > 0)

    def _point(self, slots, units, Py_ssize_t width, Py_ssize_t n_nodes, bint by_path):
        """Let the kernel's structure point into the arrays."""
        arrays = self._arrays
        cdef const float[::1] threshold = arrays["threshold"]
        cdef const uint32_t[::1] column = arrays["column"]
        cdef const uint32_t[::1] columns = arrays["columns"]
        cdef const uint8_t[::1] asked = arrays["asked"].view(np.uint8)
        cdef const uint8_t[::1] tops = arrays["tops"].view(np.uint8)
        cdef const uint8_t[::1] unit = arrays["units"].view(np.uint8)
        cdef const uint8_t[::1] alone = arrays["alone"].view(np.uint8)
        cdef const double[::1] tables = arrays["tables"]
        cdef const double[:, ::1] values = arrays["values"]
        cdef const int64_t[::1] tree_top = arrays["tree_top"]
        cdef const int64_t[::1] tree_unit = arrays["tree_unit"]
        cdef const int64_t[::1] tree_node = arrays["tree_node"]
        cdef const int64_t[::1] tree_set = arrays["tree_set"]
        cdef const int64_t[:, ::1] raw_tree = arrays["raw_tree"]
        cdef const uint64_t[::1] masks = arrays["masks"]
        cdef const double[::1] mask_weight = arrays["mask_weight"]
        cdef const uint64_t[::1] mask_sets = arrays["mask_sets"]
        cdef const double[::1] shares = arrays["shares"]
        cdef const double[::1] quadrature = arrays["quadrature"]
        cdef const double[:, ::1] weights = arrays["weights"]
        s = &self._shap
        s.n_raw, s.n_nodes, s.width = self.n_raw, n_nodes, width
        s.max_slots, s.max_units = max(1, slots.max()), units.max()
        s.threshold, s.column, s.columns = &threshold[0], &column[0], &columns[0]
        s.asked_sets, s.tops = <const tc_asked_set*>&asked[0], <const tc_top*>&tops[0]
        s.units, s.leaves = <const tc_unit*>&unit[0], <const tc_alone*>&alone[0]
        s.tables, s.values = &tables[0], &values[0, 0]
        s.tree_top, s.tree_unit, s.tree_node, s.tree_set = &tree_top[0], &tree_unit[0], &tree_node[0], &tree_set[0]
        s.raw_tree = &raw_tree[0, 0]
        s.masks, s.mask_weight, s.mask_sets, s.shares = &masks[0], &mask_weight[0], &mask_sets[0], &shares[0]
        s.quadrature, s.weights, s.by_path = &quadrature[0], &weights[0, 0], by_path

    cdef double expected(self, Py_ssize_t raw) noexcept nogil:
        return self._expected[raw]

    cdef ExplainStatus explain_row(self, const feature_t* row, Py_ssize_t raw, double* phi) noexcept nogil:
        return self.explain_rows(row, 1, self.n_features, raw, phi)

    cdef ExplainStatus explain_rows(
        self, const feature_t* rows, Py_ssize_t n_rows, Py_ssize_t stride, Py_ssize_t raw, double* phi
    ) noexcept nogil:
        if tc_explain_rows(&self._shap, rows, n_rows, stride, raw, phi) != 0:
            return EXPLAIN_NO_MEMORY
        return EXPLAIN_OK
