"""From trees to units and tables; see shap_kernel.h for what they are and shap_layout.pxd for who owns what."""

import numpy as np

from tiercel._hot.shap_kernel cimport (
    TC_MAX_PATH, TC_NARROW, TC_UNIT_LEAF, TC_UNIT_LEAVES, TC_UNIT_TABLE, tc_branch, tc_distinct, tc_is_no, tc_leaf_table,
    tc_path_table, tc_tip, tc_unit,
)
from tiercel._hot.typedefs cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

# A unit's key has at most that many bits.
cdef enum:
    MAX_KEY_BITS = 18
    MAX_DEPTH = 4096
    # Leaves of a unit without a table.
    MAX_LEAVES = 32
    # Masks are read 64 at a time: so many words beyond the last leaf's.
    SLACK_WORDS = 16

cdef double LEAST_SHARE = 1e-150


cdef class Layout:
    """What is known of the trees while they are laid out: a walk over each, three times."""

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
        cdef int bit, below, first, second, inner, width, leaves
        cdef int64_t size
        cdef Py_ssize_t yes, no
        self.unit_inner[node], self.unit_leaves[node] = -1, 0
        if self.leaf[node] >= 0:
            self.unit_width[node], self.unit_leaves[node] = length, 1
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
        if first < 0 and second < 0 and not self.cover.shape[0] and self.unit_leaves[yes] and self.unit_leaves[no]:
            leaves = self.unit_leaves[yes] + self.unit_leaves[no]
            if leaves <= MAX_LEAVES and below <= TC_NARROW:
                width = length + self.add_features(node, length, 0)
                if width <= TC_NARROW:
                    self.unit_leaves[node], self.unit_width[node] = leaves, width
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
                if self.is_unit(node):
                    columns += self.unit_width[node]
                else:
                    stack += [self.yes[node], self.no[node]]
        return total, columns

    cdef bint is_unit(self, Py_ssize_t node) noexcept nogil:
        return self.unit_inner[node] >= 0 or self.unit_leaves[node] > 0

    cdef int place_node(self, Py_ssize_t node) noexcept nogil:
        """An inner node's place among the answers."""
        cdef Py_ssize_t at = self.n_nodes
        self.place_of[node] = <uint32_t>at
        self.out_threshold[at], self.out_column[at] = self.cut[node], self.column[node]
        if self.set_of[node] >= 0:
            self.out_sets[self.n_asked].node = <uint32_t>at
            self.out_sets[self.n_asked].feature = <uint32_t>self.feature[node]
            self.out_sets[self.n_asked].set = <uint32_t>self.set_of[node]
            self.n_asked = self.n_asked + 1
        self.n_nodes = self.n_nodes + 1
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
        cdef int bit, below
        cdef Py_ssize_t top, child, side
        cdef double before
        if self.is_unit(node):
            return self.place_unit(node, length)
        bit = self.find(<uint32_t>self.feature[node], length)
        below = max(length, bit + 1)
        top = self.place_top(node, bit)
        before = self.share[bit] if bit < length else 1.0
        for side in range(2):
            child = self.no[node] if side else self.yes[node]
            self.path[bit] = <uint32_t>self.feature[node]
            self.share[bit] = before * self.part(node, child) if self.cover.shape[0] else 1.0
            self.lead(top, <int>side, child)
            self.place(child, below)
        self.share[bit] = before
        return 0

    cdef Py_ssize_t place_top(self, Py_ssize_t node, int bit) noexcept nogil:
        """An inner node that hands masks on, before its children: its number."""
        cdef Py_ssize_t top = self.n_tops
        self.n_tops = self.n_tops + 1
        self.out_tops[top].node, self.out_tops[top].bit = <uint32_t>self.n_nodes, <uint32_t>bit
        self.place_node(node)
        self.follow(node, bit)
        return top

    cdef int lead(self, Py_ssize_t top, int side, Py_ssize_t child) noexcept nogil:
        """Where the mask of the child that is placed next goes: to a top, or a slot, counted backwards from -1.

        Slots come after all of the tree's tops; the final places are made when those are known.
        """
        cdef int place = <int>(self.n_tops - self.first_top)
        if self.leaf[child] >= 0 or self.unit_inner[child] >= 0:
            place = <int>(-1 - (self.n_slots - self.first_slot))
        if side:
            self.out_tops[top].no = <uint32_t>place
        else:
            self.out_tops[top].yes = <uint32_t>place
        return 0

    cdef int place_leaves(self, Py_ssize_t node, tc_unit* unit) except -1:
        """Inner nodes and leaves of a unit without a table; bits of its masks are its features' places."""
        cdef int bit
        cdef Py_ssize_t top, child, side
        if self.leaf[node] >= 0:
            self.n_slots += 1
            return self.keep_leaf(node, self.unit_width[node], unit)
        for bit in range(self.unit_n_columns):
            if self.unit_columns[bit] == <uint32_t>self.feature[node]:
                break
        else:
            bit = self.unit_n_columns
            self.unit_columns[bit] = <uint32_t>self.feature[node]
            self.unit_n_columns += 1
        top = self.place_top(node, bit)
        for side in range(2):
            child = self.no[node] if side else self.yes[node]
            self.lead(top, <int>side, child)
            self.place_leaves(child, unit)
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
        self.unit_n_columns = length
        if self.unit_inner[node] >= 0:
            unit.kind, unit.inner, unit.data = TC_UNIT_TABLE, <uint8_t>self.unit_inner[node], self.n_table
            self.unit_n_inner, self.edge_count = 0, 0
            self.n_slots += 1
            self.fill(node, length, unit)
            size = ((<Py_ssize_t>1) << (unit.prefix + unit.inner)) * unit.width
            self.n_table += size * self.n_outputs
        elif self.cover.shape[0] or length > TC_NARROW:
            unit.kind, unit.data = TC_UNIT_LEAF, self.n_alone
            self.n_slots += 1
            self.keep_leaf(node, length, unit)
        else:
            unit.kind, unit.inner, unit.data = TC_UNIT_LEAVES, <uint8_t>self.unit_leaves[node], self.n_alone
            self.make_room((unit.inner + 3) // 4)
            self.n_alone += (unit.inner + 3) // 4
            self.first_leaf = self.n_leaves_alone
            self.place_leaves(node, unit)
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
                    reached += self.distinct_count[k] / <double>self.n_references
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
            n = self.find_distinct(node)
            tc_leaf_table(self.weights, &self.distinct[0], &self.distinct_count[0], n, length, &self.leaf_table[0])
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

    cdef int make_room(self, Py_ssize_t words) except -1:
        if self.n_alone + words + SLACK_WORDS > len(self.alone):
            grown = np.zeros(2 * len(self.alone) + words + SLACK_WORDS, dtype=np.uint64)
            grown[: self.n_alone] = self.alone[: self.n_alone]
            self.alone = grown
        return 0

    cdef int keep_leaf(self, Py_ssize_t node, int length, tc_unit* unit) except -1:
        """What shap_rows.h needs of a leaf without a table; see tc_unit."""
        cdef int32_t n = 0, k
        cdef bint narrow = unit.kind == TC_UNIT_LEAVES
        cdef Py_ssize_t size, n_values = self.values.shape[1], at = self.n_alone
        cdef uint64_t[::1] out
        cdef uint64_t* masks
        cdef uint8_t* counts
        if not self.cover.shape[0]:
            n = self.find_distinct(node)
        size = n_values + (length if self.cover.shape[0] else (n * (3 if narrow else 9) + 7) // 8)
        self.make_room(size)
        out = self.alone
        for k in range(n_values):
            (<double*>&out[at])[k] = self.values[self.leaf[node], k]
        masks = &out[at + n_values]
        counts = <uint8_t*>masks + n * (2 if narrow else 8)
        if narrow:
            (<uint16_t*>&out[unit.data])[self.n_leaves_alone - self.first_leaf] = <uint16_t>n
        else:
            unit.inner = <uint8_t>n
        for k in range(length if self.cover.shape[0] else 0):
            (<double*>masks)[k] = self.share[k]
        for k in range(n):
            if narrow:
                (<uint16_t*>masks)[k] = <uint16_t>self.distinct[k]
            else:
                masks[k] = self.distinct[k]
            counts[k] = <uint8_t>self.distinct_count[k]
        self.n_alone += size
        self.n_leaves_alone += 1
        self.expect(node, length, n)
        return 0

    cdef int32_t find_distinct(self, Py_ssize_t node) noexcept nogil:
        """The distinct masks of reference rows at a leaf, and how many rows have each."""
        return tc_distinct(
            &self.masks[node - self.begin, 0], self.n_references, &self.distinct[0], &self.distinct_count[0]
        )

    cdef Py_ssize_t number_walk(self, Py_ssize_t root) except -1:
        """Give a tree's inner nodes their places, level by level: how many they are."""
        cdef Py_ssize_t head = 0, node, child
        order = [root] if self.leaf[root] < 0 else []
        while head < len(order):
            node = order[head]
            self.walk_place[node] = <uint32_t>head
            for child in (self.yes[node], self.no[node]):
                if self.leaf[child] < 0:
                    order.append(child)
            head += 1
        return head

    cdef int place_walk(self, Py_ssize_t node, int length) except -1:
        """A numbered inner node, and what is below it, for walking the tree by path."""
        cdef int bit = self.find(<uint32_t>self.feature[node], length), below = max(length, bit + 1)
        cdef uint32_t before = self.asked[bit] if bit < length else 0, place = self.walk_place[node], side
        cdef double share = self.share[bit] if bit < length else 1.0
        cdef Py_ssize_t child
        cdef tc_branch* branch = &self.out_branches[self.first_branch + place]
        cdef tc_tip* tip
        branch.answer, branch.column, branch.before = self.place_of[node], <uint32_t>self.feature[node], before
        for side in range(2):
            child = self.no[node] if side else self.yes[node]
            self.path[bit], self.share[bit] = <uint32_t>self.feature[node], share * self.part(node, child)
            if self.leaf[child] >= 0:
                tip = &self.out_tips[self.n_tips]
                self.n_tips += 1
                tip.share, tip.parent_side, tip.leaf = self.share[bit], 2 * place + side, <uint32_t>self.leaf[child]
            else:
                self.asked[bit] = self.walk_place[child]
                branch = &self.out_branches[self.first_branch + self.asked[bit]]
                # Never zero: where no training data came, the factors above and below cancel, and what is left is nothing.
                branch.share, branch.parent_side = max(self.share[bit], LEAST_SHARE), 2 * place + side
                self.place_walk(child, below)
            self.share[bit], self.asked[bit] = share, before
        return 0
