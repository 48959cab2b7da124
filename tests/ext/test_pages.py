"""Rows are found in the pages of a sealed file exactly where liblmdb finds them, and damage is an error."""

from __future__ import annotations

import contextlib
import struct

import lmdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiercel._hot.reader import BaseFile, GroupReader

from tiercel.errors import BaseCorruptError
from tiercel.features.online import ReadStatus

FINGERPRINT, GROUP = 7, 3
#: Fingerprint, flags, one event time, validity, padding, one float32.
ROW = struct.Struct("<IIqB3xf")


def row_of(value, n_bytes=ROW.size):
    return ROW.pack(FINGERPRINT, 0, 0, 1, value).ljust(n_bytes, b"\0")


def write(path, rows, *, page_fill=None):
    """An LMDB file of stored keys and rows; `page_fill`: in order, as bases are written."""
    with lmdb.open(str(path), subdir=False, lock=False, map_size=1 << 28) as env, env.begin(write=True) as txn:
        for key in sorted(rows) if page_fill else rows:
            txn.put(key, rows[key], append=bool(page_fill))
    return str(path)


def readers(path, row_bytes=ROW.size):
    """One that searches pages itself, and one that asks liblmdb."""
    for own in (True, False):
        base = BaseFile(path, own_search=own)
        assert base.searches_pages == (own and base.n_rows > 0)
        yield GroupReader(
            base, group=GROUP, fingerprint=FINGERPRINT, row_bytes=row_bytes, bitmap_offset=16, ttls_us=[None],
            steps=[(0, 20, 0, 0, 0)],
        )  # fmt: skip


def found(reader, keys):
    """(statuses, values) of keys without their group."""
    out = np.zeros((len(keys), 1), np.float32)
    return reader.read_many(keys, 0, out), out[:, 0].tolist()


def assert_alike(path, keys, row_bytes=ROW.size):
    own, theirs = (found(reader, keys) for reader in readers(path, row_bytes))
    np.testing.assert_equal(own, theirs)
    return own


def number_key(value):
    return (value + 2**63).to_bytes(8, "big")


NUMBERS = st.one_of(
    st.lists(st.integers(0, 3000), min_size=1, max_size=600, unique=True),
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=300, unique=True),
    st.tuples(st.integers(-(10**12), 10**12), st.integers(1, 10**6), st.integers(1, 900)).map(
        lambda given: [given[0] + given[1] * i for i in range(given[2])]
    ),
    st.integers(2, 62).map(lambda most: [sign * 2**i for i in range(most) for sign in (1, -1)]),
)


@settings(max_examples=60, deadline=None)
@given(numbers=NUMBERS, n_bytes=st.sampled_from([ROW.size, 60, 700]), ordered=st.booleans(), others=st.booleans())
def test_numbers_are_found_as_liblmdb_finds_them(tmp_path_factory, numbers, n_bytes, ordered, others):
    """Dense, sparse, clustered and extreme ids, those beside them, and those of other groups, in small pages and in deep trees."""
    stored = {bytes([GROUP]) + number_key(n): row_of(float(i), n_bytes) for i, n in enumerate(numbers)}
    if others:
        stored |= {bytes([g]) + number_key(n): row_of(-1.0, n_bytes) for g in (0, 2, 4, 255) for n in numbers[:40]}
    path = write(tmp_path_factory.mktemp("pages") / "base", stored, page_fill=ordered)
    near = {min(max(n + d, -(2**63)), 2**63 - 1) for n in numbers for d in (-1, 0, 1)}
    asked = [number_key(n) for n in [*numbers, *near, 0, -(2**63), 2**63 - 1]]
    statuses, values = assert_alike(path, asked, n_bytes)
    assert set(statuses[: len(numbers)]) == {ReadStatus.OK}
    assert values[: len(numbers)] == [float(i) for i in range(len(numbers))]


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.binary(max_size=40), min_size=1, max_size=300, unique=True),
    asked=st.lists(st.binary(max_size=40), max_size=50),
    n_bytes=st.sampled_from([ROW.size, 5000]),
)
def test_texts_are_found_as_liblmdb_finds_them(tmp_path_factory, texts, asked, n_bytes):
    """Keys of any length, one the beginning of another, with rows in their page and on pages of their own."""
    stored = {bytes([GROUP]) + text: row_of(float(i), n_bytes) for i, text in enumerate(texts)}
    path = write(tmp_path_factory.mktemp("pages") / "base", stored)
    more = [text[:-1] for text in texts] + [text + b"\0" for text in texts]
    statuses, _ = assert_alike(path, [*texts, *more, *asked], n_bytes)
    assert set(statuses[: len(texts)]) == {ReadStatus.OK}


def test_a_tree_of_several_levels(tmp_path):
    """Fifty thousand rows: every one is found, and none between them."""
    numbers = range(0, 150_000, 3)
    stored = {bytes([GROUP]) + number_key(n): row_of(float(n), 300) for n in numbers}
    path = write(tmp_path / "base", stored, page_fill=True)
    statuses, values = assert_alike(path, [number_key(n) for n in range(150_000)], 300)
    assert [status == ReadStatus.OK for status in statuses] == [n % 3 == 0 for n in range(150_000)]
    assert values[::3] == [float(n) for n in numbers]


def test_an_empty_file_is_liblmdbs(tmp_path):
    """Where there is no page to look into, liblmdb says that there is nothing."""
    path = write(tmp_path / "base", {})
    statuses, _ = assert_alike(path, [number_key(1), b""])
    assert set(statuses) == {ReadStatus.MISSING}


@pytest.mark.parametrize(
    ("place", "damage"),
    [(128, b"\xfe" * 7), (94, b"\x09"), (16, b"\0\0\0\0")],
    ids=["root", "depth", "magic"],
)
def test_what_does_not_look_like_its_pages_is_left_to_liblmdb(tmp_path, place, damage):
    """A file whose head says something else than its pages is not searched here; opening it raises nothing but its own error."""
    path = write(tmp_path / "base", {bytes([GROUP]) + number_key(n): row_of(float(n)) for n in range(3000)})
    with (tmp_path / "base").open("r+b") as file:
        for meta in (0, 4096):
            file.seek(meta + place)
            file.write(damage)
    with contextlib.suppress(BaseCorruptError):
        assert not BaseFile(path).searches_pages


def test_a_root_that_is_no_branch_is_left_to_liblmdb(tmp_path):
    """A page of another kind than its level has is not looked into."""
    path = write(tmp_path / "base", {bytes([GROUP]) + number_key(n): row_of(float(n)) for n in range(3000)})
    head = (tmp_path / "base").read_bytes()[:8192]
    last = max((head[:4096], head[4096:]), key=lambda meta: struct.unpack_from("<Q", meta, 144)[0])
    (root,) = struct.unpack_from("<Q", last, 128)
    with (tmp_path / "base").open("r+b") as file:
        file.seek(4096 * root + 12)
        file.write(b"\x10\x00")  # no nodes
    assert not BaseFile(path).searches_pages


@pytest.mark.parametrize("seed", range(30))
def test_damaged_pages_are_an_error(tmp_path, seed):
    """Whatever stands in a page, a search ends with a row, without one or with an error, and reads nothing outside the file."""
    rng = np.random.default_rng(seed)
    stored = {bytes([GROUP]) + number_key(n): row_of(float(n), 300) for n in range(3000)}
    path = write(tmp_path / "base", stored, page_fill=True)
    reader = next(readers(path, 300))  # its root is known now; what changes behind it is seen through the map
    size = (tmp_path / "base").stat().st_size
    with (tmp_path / "base").open("r+b") as file:
        for page in range(2, size // 4096):
            at = page * 4096 + rng.integers(0, 64, 6)
            for place in at:
                file.seek(int(place))
                file.write(rng.integers(0, 256, 1, dtype=np.uint8).tobytes())
    statuses, _ = found(reader, [number_key(n) for n in range(-5, 3005)])
    assert set(statuses) <= {status.value for status in ReadStatus}
    assert ReadStatus.STORE_ERROR in set(statuses)
