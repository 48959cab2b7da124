"""Merkle trees: RFC 6962's published roots, the recursive definition, and proofs that hold for their leaf alone."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiercel.explain.merkle import (
    RootBuilder,
    inclusion_path,
    leaf_hash,
    node_hash,
    root_from_path,
    root_of,
    sized_root,
)

LEAVES = st.lists(st.binary(max_size=8), min_size=1, max_size=70)
#: Inputs and roots of the certificate-transparency project's own test of this tree.
KNOWN = [bytes.fromhex(each) for each in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657",
                                          "606162636465666768696a6b6c6d6e6f")]  # fmt: skip
KNOWN_ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def recursive_root(leaves):
    """The definition, word for word."""
    if len(leaves) == 1:
        return leaf_hash(leaves[0])
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    return node_hash(recursive_root(leaves[:k]), recursive_root(leaves[k:]))


@pytest.mark.parametrize("n", range(1, 9))
def test_known_roots(n):
    """Eight trees of known leaves have the roots that other implementations give."""
    assert root_of(map(leaf_hash, KNOWN[:n])).hex() == KNOWN_ROOTS[n - 1]


def test_the_empty_tree():
    """Of nothing the root is the hash of nothing."""
    assert RootBuilder().root() == hashlib.sha256(b"").digest()


@given(leaves=LEAVES)
def test_a_root_built_leaf_by_leaf_is_the_definition_s(leaves):
    """After each leaf the builder's root is that of the definition."""
    builder = RootBuilder()
    for n, leaf in enumerate(leaves, 1):
        builder.add(leaf_hash(leaf))
        assert builder.root() == recursive_root(leaves[:n])


@given(leaves=LEAVES, data=st.data())
def test_a_path_leads_from_its_leaf_to_the_root_and_from_no_other(leaves, data):
    """Every leaf's path gives the root; another leaf, place, size or path does not."""
    hashes = [leaf_hash(b"%d " % i + leaf) for i, leaf in enumerate(leaves)]
    n, index = len(leaves), data.draw(st.integers(0, len(leaves) - 1))
    path = inclusion_path(lambda first, end: hashes[first:end], index, n)
    root = root_of(hashes)
    assert root_from_path(hashes[index], index, n, path) == root
    assert len(path) <= max(1, (n - 1).bit_length())
    assert root_from_path(leaf_hash(b"other"), index, n, path) != root
    assert root_from_path(hashes[index], index, n, [*path, root]) is None
    if n > 1:
        other = data.draw(st.integers(0, n - 1).filter(lambda i: i != index))
        assert root_from_path(hashes[index], other, n, path) != root
        assert root_from_path(hashes[index], index, n, path[:-1]) != root
        changed = list(path)
        changed[data.draw(st.integers(0, len(path) - 1))] = leaf_hash(b"other")
        assert root_from_path(hashes[index], index, n, changed) != root


@pytest.mark.parametrize(("index", "n"), [(-1, 3), (3, 3), (0, 0)])
def test_a_leaf_that_is_not_there_has_no_path(index, n):
    """Places outside of the tree are refused, and lead nowhere."""
    with pytest.raises(ValueError, match="Expected a leaf"):
        inclusion_path(lambda first, end: [], index, n)
    assert root_from_path(leaf_hash(b""), index, n, []) is None


def test_a_sized_root_is_of_one_tree_of_one_size():
    """It is the hash of a prefix of its own, the size and the root; another size has another."""
    root = root_of(map(leaf_hash, KNOWN))
    assert sized_root(8, root) == hashlib.sha256(b"\2" + bytes(7) + b"\x08" + root).digest()
    assert len({sized_root(n, root) for n in range(40)}) == 40
