"""Exact attributions of tree ensembles; see shap.pxd for the contract and shap_kernel.h for the method."""

import math

import numpy as np

from libc.string cimport memset
from tiercel._hot.explainer cimport EXPLAIN_NO_MEMORY, EXPLAIN_OK, Explainer, ExplainStatus
from tiercel._hot.forest_kernel cimport tc_set
from tiercel._hot.shap_kernel cimport (
    TC_MAX_PATH, TC_NARROW, TC_WEIGHTS, tc_asked_set, tc_branch, tc_expand_row, tc_explain_rows, tc_interact_rows,
    tc_shap_simd, tc_tip, tc_top, tc_unit, tc_walked,
)
from tiercel._hot.shap_layout cimport Layout
from tiercel._hot.steps cimport Steps
from tiercel._hot.typedefs cimport feature_t, int32_t, int64_t, uint8_t, uint32_t, uint64_t

#: Memory for the tables of one model. Leaves with the shortest paths get theirs first; the rest are summed directly.
TABLE_BYTES = 64 << 20
#: Reference rows: a leaf counts those with the same mask in a byte.
MAX_REFERENCES = 255
#: Different features on one path: the bits of a mask.
MAX_PATH_FEATURES = TC_MAX_PATH

# Subtrees are joined to one unit while its table is no larger than its parts' or than this.
MERGE_BYTES = 4096
# A leaf's own table has at most this many bits.
cdef enum:
    MAX_TABLE_BITS = 14

TOP = np.dtype([("node", np.uint32), ("yes", np.uint32), ("no", np.uint32), ("bit", np.uint32)])
UNIT = np.dtype(
    [("data", np.int64), ("node", np.uint32), ("columns", np.uint32), ("prefix", np.uint8), ("inner", np.uint8),
     ("width", np.uint8), ("kind", np.uint8)],
    align=True,
)
BRANCH = np.dtype(
    [("share", np.float64), ("parent_side", np.uint32), ("answer", np.uint32), ("column", np.uint32),
     ("before", np.uint32)],
    align=True,
)
TIP = np.dtype([("share", np.float64), ("parent_side", np.uint32), ("leaf", np.uint32)], align=True)
WALKED = np.dtype(
    [("branch", np.int64), ("tip", np.int64), ("n_branches", np.int32), ("n_tips", np.int32), ("n_points", np.int32)],
    align=True,
)
ASKED_SET = np.dtype([("node", np.uint32), ("feature", np.uint32), ("set", np.uint32)])
SET = np.dtype(
    [("start", np.uint32), ("n_bits", np.int32), ("equal", np.float32), ("missing_first", np.uint8),
     ("floor_negative", np.uint8)],
    align=True,
)
if (BRANCH.itemsize != sizeof(tc_branch) or TIP.itemsize != sizeof(tc_tip)
        or WALKED.itemsize != sizeof(tc_walked) or TOP.itemsize != sizeof(tc_top) or UNIT.itemsize != sizeof(tc_unit)
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
        table_bytes: bound on the tables; 0 for none.
        vector_bits: use vectors of at most so many bits (for tests; the answers are the same).
        merge_bytes: subtrees are joined to one unit up to a table of this size, and where joining costs no memory.
    Raises:
        ValueError: arrays that do not describe trees, or a path of more than MAX_PATH_FEATURES different features.
    """

    def __cinit__(self, *args, **kwargs):
        memset(&self._shap, 0, sizeof(self._shap))

    def __reduce__(self):
        raise TypeError("ForestExplainer is not pickled; make it from its model and reference")

    def __init__(
        self, *, Py_ssize_t n_features, Py_ssize_t n_raw, tree_start, feature, threshold, left, right, missing_left,
        set_of, leaf, values, tree_raw, base, set_words, set_start, set_equal, bint floor_negative, list steps,
        reference=None, cover=None, Py_ssize_t table_bytes=TABLE_BYTES, Py_ssize_t merge_bytes=MERGE_BYTES,
        int vector_bits=512,
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
        self._steps = Steps(steps, n_features)
        self._shap.steps, self._shap.n_steps, self._shap.n_features = self._steps.each, self._steps.n, n_features

        cdef Layout layout = Layout()
        self._ask(layout, feature, threshold, left, right, missing_left, set_of)
        layout.leaf, layout.values = leaf, values
        layout.feature, layout.set_of = feature, np.ascontiguousarray(set_of, np.int32)
        layout.sets, layout.words = self._shap.sets, self._shap.words
        layout.merge_bytes, layout.n_outputs = merge_bytes, values.shape[1]
        if cover is None:
            reference = np.ascontiguousarray(reference, dtype=np.float32)
            if reference.ndim != 2 or reference.shape[1] != n_features or not 1 <= len(reference) <= MAX_REFERENCES:
                raise ValueError(
                    f"Expected 1 to {MAX_REFERENCES} reference rows of {n_features} features, got shape {reference.shape}"
                )
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
        self._shap.simd = next(bits for bits in (512, 256, 0) if bits <= min(vector_bits, tc_shap_simd()))
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

    def _ask(self, Layout layout, feature, threshold, left, right, missing_left, set_of):
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

    def _lay_out(self, Layout layout, starts, tree_raw, inner, Py_ssize_t table_bytes):
        cdef Py_ssize_t n_nodes = len(inner), n_outputs = layout.n_outputs, tree, at, k, n_tops
        n_inner, n_leaves = int(inner.sum()), len(inner) - int(inner.sum())
        sizes = np.diff(starts)
        layout.path_length, layout.has_table = np.zeros(n_nodes, np.uint8), np.zeros(n_nodes, np.uint8)
        layout.unit_inner, layout.unit_width = np.full(n_nodes, -1, np.int32), np.zeros(n_nodes, np.int32)
        layout.unit_leaves = np.zeros(n_nodes, np.int32)
        layout.unit_bytes = np.zeros(n_nodes, np.int64)
        for tree in range(self.n_trees):
            layout.measure(starts[tree], 0, 0, tree)
        # The shortest paths first: their tables are the smallest, and most reference rows meet a row there.
        leaf_nodes = np.flatnonzero(~inner)
        length = np.asarray(layout.path_length)[leaf_nodes].astype(np.int64)
        self.longest = length.max()
        order = np.argsort(length, kind="stable")
        so_far = np.cumsum((length << np.minimum(length, 40))[order] * 8 * n_outputs)
        walks = layout.cover.shape[0] > 0 and (so_far[-1] > 2 * table_bytes or self.longest > MAX_TABLE_BITS)
        # By path it is all or nothing: a walk goes through whole trees.
        room, total = 0 if walks else 2 * table_bytes, table_bytes + 1  # joining siblings halves what they need
        while total > table_bytes and room > 0:
            fits = (so_far <= room) & (length[order] <= MAX_TABLE_BITS)
            np.asarray(layout.has_table)[leaf_nodes] = 0
            np.asarray(layout.has_table)[leaf_nodes[order[fits]]] = 1
            for tree in range(self.n_trees):
                layout.join(starts[tree], 0)
            doubles, n_columns = layout.count(starts)
            total = doubles * n_outputs * 8
            room = min(room * table_bytes // max(total, 1), room * 15 // 16)
        walks = walks or (layout.cover.shape[0] > 0 and total > table_bytes)
        if total > table_bytes:
            fits = np.zeros(len(leaf_nodes), bool)
            np.asarray(layout.has_table)[leaf_nodes] = 0
            for tree in range(self.n_trees):
                layout.join(starts[tree], 0)
            total, n_columns = 0, layout.count(starts)[1]
        self.table_bytes = total
        raw_of = tree_raw if n_outputs == 1 else np.zeros(self.n_trees, np.int64)
        trees = np.argsort(raw_of, kind="stable")
        words = n_inner // 64 + 2
        made = {
            "threshold": np.full(64 * words, np.nan, np.float32), "column": np.zeros(64 * words, np.uint32),
            "asked": np.zeros(n_inner + 1, ASKED_SET), "tops": np.zeros(n_inner + 1, TOP),
            "units": np.zeros(n_leaves, UNIT),
            "columns": np.zeros(n_columns + 1, np.uint32),
            # PERF: every row looks somewhere else into the tables. For empty(), unlike zeros(), NumPy asks for huge pages.
            "tables": np.empty(total // 8 + 1),
        }
        made["tables"].fill(0)
        cdef uint8_t[::1] asked = made["asked"].view(np.uint8), tops = made["tops"].view(np.uint8)
        cdef uint8_t[::1] units = made["units"].view(np.uint8)
        layout.out_threshold, layout.out_column = made["threshold"], made["column"]
        layout.out_columns, layout.out_tables = made["columns"], made["tables"]
        layout.out_sets, layout.out_tops = <tc_asked_set*>&asked[0], <tc_top*>&tops[0]
        layout.out_units, layout.alone = <tc_unit*>&units[0], np.zeros(64, np.uint64)
        layout.place_of = np.zeros(n_nodes, np.uint32)
        layout.reached = np.zeros(len(self._arrays["values"]))
        n_references = max(1, layout.n_references)
        layout.masks = np.zeros((sizes.max(), n_references), np.uint64)
        tabled = length[order[fits]].max() if np.any(fits) else 0
        layout.leaf_table = np.zeros((max(1, tabled) << tabled))
        layout.distinct, layout.distinct_count = np.zeros(n_references, np.uint64), np.zeros(n_references)
        made["weights"], made["quadrature"] = SHAPLEY_WEIGHTS / n_references, QUADRATURE
        corner = made["weights"][: TC_NARROW + 1, : TC_NARROW + 1]
        made["narrow"] = np.ascontiguousarray(np.stack([corner.T, corner], axis=2))
        cdef const double[:, ::1] weights = made["weights"]
        cdef const double[::1] quadrature = QUADRATURE
        layout.weights, layout.quadrature = &weights[0, 0], &quadrature[0]
        tree_top, tree_unit, tree_node, tree_set = (np.zeros(self.n_trees + 1, np.int64) for _ in range(4))
        slots = np.zeros(self.n_trees, np.int64)
        for at, number in enumerate(trees):
            layout.begin = starts[number]
            layout.first_top, layout.first_slot = layout.n_tops, layout.n_slots
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
            slots[at] = n_tops + layout.n_slots - layout.first_slot
        if n_outputs == 1:
            raw_tree = np.searchsorted(raw_of[trees], np.arange(self.n_raw + 1)).astype(np.int64)
            raw_tree = np.stack([raw_tree[:-1], raw_tree[1:]], axis=1)
        else:
            raw_tree = np.tile(np.array([0, self.n_trees], np.int64), (self.n_raw, 1))
        made |= {"tree_top": tree_top, "tree_unit": tree_unit, "tree_node": tree_node, "tree_set": tree_set,
                 "raw_tree": np.ascontiguousarray(raw_tree)}
        if walks:
            self._lay_walks(layout, made, starts, trees, inner)
        counts = {"units": layout.n_units, "asked": layout.n_asked, "tops": layout.n_tops}
        made |= {name: made[name][: max(1, count)].copy() for name, count in counts.items()}
        made["alone"] = layout.alone[: layout.n_alone + 16].copy()  # vectors read beyond the last leaf's masks
        self._arrays |= made
        self.n_units, self.n_alone, self.alone_bytes = layout.n_units, layout.n_leaves_alone, made["alone"].nbytes
        self._point(slots, np.diff(tree_unit), n_outputs, n_inner, layout.cover.shape[0] > 0)

    def _lay_walks(self, Layout layout, made, starts, trees, inner):
        """Whole trees, for tc_walk."""
        n_inner = np.add.reduceat(inner, starts[:-1], dtype=np.int64)[trees]
        made["branches"], made["tips"] = np.zeros(n_inner.sum() + 1, BRANCH), np.zeros(len(inner), TIP)
        made["walked"] = walked = np.zeros(self.n_trees, WALKED)
        longest = np.maximum.reduceat(np.asarray(layout.path_length), starts[:-1]).astype(np.int64)[trees]
        # So many points integrate the longest path of a tree exactly.
        walked["n_points"] = 8 * np.maximum(1, -(-((longest + 1) // 2) // 8))
        walked["n_branches"] = n_inner
        walked["branch"] = np.cumsum(n_inner) - n_inner
        cdef uint8_t[::1] branches = made["branches"].view(np.uint8), tips = made["tips"].view(np.uint8)
        cdef const uint8_t[::1] walked_view = walked.view(np.uint8)
        cdef const double[:, ::1] values = self._arrays["values"]
        layout.out_branches, layout.out_tips = <tc_branch*>&branches[0], <tc_tip*>&tips[0]
        layout.walk_place = np.zeros(len(inner), np.uint32)
        for at, number in enumerate(trees):
            walked["tip"][at] = layout.n_tips
            layout.first_branch = walked["branch"][at]
            if layout.number_walk(starts[number]):
                layout.place_walk(starts[number], 0)
            walked["n_tips"][at] = layout.n_tips - walked["tip"][at]
        self._shap.branches, self._shap.tips = <const tc_branch*>&branches[0], <const tc_tip*>&tips[0]
        self._shap.walked, self._shap.values = <const tc_walked*>&walked_view[0], &values[0, 0]
        self._shap.max_branches = n_inner.max()

    def _point(self, slots, units, Py_ssize_t width, Py_ssize_t n_nodes, bint by_path):
        """Let the kernel's structure point into the arrays."""
        arrays = self._arrays
        cdef const float[::1] threshold = arrays["threshold"]
        cdef const uint32_t[::1] column = arrays["column"]
        cdef const uint32_t[::1] columns = arrays["columns"]
        cdef const uint8_t[::1] asked = arrays["asked"].view(np.uint8)
        cdef const uint8_t[::1] tops = arrays["tops"].view(np.uint8)
        cdef const uint8_t[::1] unit = arrays["units"].view(np.uint8)
        cdef const uint64_t[::1] alone = arrays["alone"]
        cdef const double[::1] tables = arrays["tables"]
        cdef const int64_t[::1] tree_top = arrays["tree_top"]
        cdef const int64_t[::1] tree_unit = arrays["tree_unit"]
        cdef const int64_t[::1] tree_node = arrays["tree_node"]
        cdef const int64_t[::1] tree_set = arrays["tree_set"]
        cdef const int64_t[:, ::1] raw_tree = arrays["raw_tree"]
        cdef const double[::1] quadrature = arrays["quadrature"]
        cdef const double[:, ::1] weights = arrays["weights"]
        cdef const double[:, :, ::1] narrow = arrays["narrow"]
        cdef int count
        s = &self._shap
        for count in range(256):
            s.counts[count] = count
        s.narrow = &narrow[0, 0, 0]
        s.n_raw, s.n_nodes, s.width = self.n_raw, n_nodes, width
        s.max_slots, s.max_units = max(1, slots.max()), units.max()
        s.threshold, s.column, s.columns = &threshold[0], &column[0], &columns[0]
        s.asked_sets, s.tops = <const tc_asked_set*>&asked[0], <const tc_top*>&tops[0]
        s.units, s.alone, s.tables = <const tc_unit*>&unit[0], &alone[0], &tables[0]
        s.tree_top, s.tree_unit, s.tree_node, s.tree_set = &tree_top[0], &tree_unit[0], &tree_node[0], &tree_set[0]
        s.raw_tree = &raw_tree[0, 0]
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

    def interact(self, const feature_t[:, ::1] rows not None, Py_ssize_t raw=0):
        """(interaction values of every two features: float64, (n, n_features, n_features); attributions: (n, n_features)).

        A pair's joint effect is given half to (i, j) and half to (j, i); the rest of a feature's attribution is on the
        diagonal, so that each row adds up to the feature's attribution. Needs an explainer made with `table_bytes=0`.

        Raises:
            ValueError: another number of columns, no such margin, or an explainer with tables.
            MemoryError: no room for scratch space.
        Threads: safe; the GIL is released.
        """
        self._check(rows.shape[1], raw)
        if self.table_bytes:
            raise ValueError("Expected an explainer without tables (table_bytes=0): tables have no pairs in them")
        cdef Py_ssize_t n_rows = rows.shape[0]
        result = np.empty((n_rows, self.n_features, self.n_features), dtype=np.float64)
        attributions = np.empty((n_rows, self.n_features), dtype=np.float64)
        cdef double[:, :, ::1] pairs = result
        cdef double[:, ::1] phi = attributions
        cdef int status = 0
        if n_rows > 0:
            with nogil:
                status = tc_interact_rows(
                    &self._shap, &rows[0, 0], n_rows, rows.shape[1], raw, &pairs[0, 0, 0], &phi[0, 0]
                )
        if status != 0:
            raise MemoryError("No memory for explanation scratch space")
        return result, attributions
