"""Merkle trees as RFC 6962 has them (section 2.1; the same in RFC 9162): one hash for a list, and short proofs about it.

A leaf's hash is sha256(0x00 || leaf), a node's sha256(0x01 || left || right); of n leaves the left subtree holds the largest
power of two below n. The two prefixes keep a node from being passed off as a leaf.

A root alone does not say how many leaves it is of: a leaf's path is the same in trees of many sizes. There the size is
signed beside the root; here, where one hash is noted, `sized_root` binds both.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

HASH_BYTES = 32


def leaf_hash(leaf: bytes) -> bytes:
    """Of one entry."""
    return hashlib.sha256(b"\0" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Of two subtrees."""
    return hashlib.sha256(b"\1" + left + right).digest()


def sized_root(n_leaves: int, root: bytes) -> bytes:
    """Of a tree and its size: sha256(0x02 || n as 8 bytes, the highest first || root). The prefix is no leaf's and no node's."""
    return hashlib.sha256(b"\2" + n_leaves.to_bytes(8, "big") + root).digest()


class RootBuilder:
    """The root of leaves that come one by one. Memory: one hash for each power of two."""

    def __init__(self) -> None:
        self._subtrees: list[tuple[int, bytes]] = []  # (leaves, root), each larger than the next
        self.n_leaves = 0

    def add(self, leaf: bytes) -> None:
        """Append a leaf's hash."""
        size = 1
        while self._subtrees and self._subtrees[-1][0] == size:
            leaf = node_hash(self._subtrees.pop()[1], leaf)
            size *= 2
        self._subtrees.append((size, leaf))
        self.n_leaves += 1

    def root(self) -> bytes:
        """Of all so far; of none, the hash of nothing."""
        if not self._subtrees:
            return hashlib.sha256().digest()
        found = self._subtrees[-1][1]
        for _, left in reversed(self._subtrees[:-1]):
            found = node_hash(left, found)
        return found


def root_of(leaves: Iterable[bytes]) -> bytes:
    """The root of leaves' hashes."""
    builder = RootBuilder()
    for leaf in leaves:
        builder.add(leaf)
    return builder.root()


def inclusion_path(read: Callable[[int, int], Iterable[bytes]], index: int, n_leaves: int) -> list[bytes]:
    """The audit path of a leaf, from its sibling up: what takes its hash to the root. Reads each leaf once.

    Args:
        read: gives the hashes of leaves [first, end).
        index: of the leaf.
        n_leaves: of the tree.

    Raises:
        ValueError: there is no such leaf.
    """
    if not 0 <= index < n_leaves:
        raise ValueError(f"Expected a leaf among {n_leaves}, got {index}")
    path: list[bytes] = []
    first, end = 0, n_leaves
    while end - first > 1:
        middle = first + (1 << (end - first - 1).bit_length() - 1)
        if index < middle:
            path.append(root_of(read(middle, end)))
            end = middle
        else:
            path.append(root_of(read(first, middle)))
            first = middle
    return path[::-1]


def root_from_path(leaf: bytes, index: int, n_leaves: int, path: Sequence[bytes]) -> bytes | None:
    """The root that a leaf's hash and its audit path lead to (RFC 9162, 2.1.3.2); None: no path of such a tree."""
    if not 0 <= index < n_leaves:
        return None
    at, last, found = index, n_leaves - 1, leaf
    for sibling in path:
        if last == 0:
            return None
        if at & 1 or at == last:
            found = node_hash(sibling, found)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            found = node_hash(found, sibling)
        at, last = at >> 1, last >> 1
    return found if last == 0 else None
