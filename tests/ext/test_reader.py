"""The compiled reader against the reference, and what it does with rows it must not trust."""

from __future__ import annotations

import itertools
import threading
from dataclasses import dataclass, replace
from pathlib import Path

import lmdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.features.stores import INT64, TIMES, Store, simple_store, stores
from tests.reference.row import Entity, reference_float, reference_key, reference_row, reference_status
from tiercel._hot.reader import BaseFile, GroupReader
from tiercel._hot.walk import BaseWalk

from tiercel.errors import BaseCorruptError
from tiercel.features.base import write_base
from tiercel.features.keys import encode_key
from tiercel.features.layout import RowLayout
from tiercel.features.online import OnlineBase, ReadStatus
from tiercel.types import NO_EVENT_US, Column, DType, GroupSchema, KeyColumn, ServiceSchema, ValueStatus, ViewSchema


def open_store(directory, store: Store) -> OnlineBase:
    write_base(directory, store.schema, store.tables, categories=store.categories, as_of_us=0, catalog="")
    return OnlineBase.open(directory)


@settings(max_examples=40, deadline=None)
@given(store=stores(), data=st.data())
def test_reads_equal_the_reference(tmp_path_factory, store, data):
    """Values, statuses and event times are the reference's for random schemas, projections, slots, keys and times."""
    opened = open_store(tmp_path_factory.mktemp("svc"), store)
    now_us = data.draw(INT64)
    for g, (group, rows) in enumerate(zip(store.schema.groups, store.groups, strict=True)):
        columns = data.draw(st.lists(st.sampled_from(range(len(group.columns))), unique=True))
        slots = data.draw(st.permutations(range(len(columns) + 2)))[: len(columns)]
        reader = opened.group_reader(g, [group.columns[c].name for c in columns], slots)
        keys = [*rows, None, *list(rows)[:2]]
        encoded = [None if key is None else encode_key(group.keys, key) for key in keys]
        width = len(columns) + 2
        out = np.full((len(keys), width), 7.0, np.float32)
        status = np.full((len(keys), len(columns)), 99, np.uint8)
        event_us = np.zeros((len(keys), len(group.views)), np.int64)
        results = reader.read_many(encoded, now_us, out, status, event_us)
        expected = np.full((len(keys), width), 7.0, np.float32)
        for i, key in enumerate(keys):
            entity = None if key is None else rows[key]
            assert results[i] == (ReadStatus.MISSING if entity is None else ReadStatus.OK)
            events = [None] * len(group.views) if entity is None else entity.event_us
            assert event_us[i].tolist() == [NO_EVENT_US if event is None else event for event in events]
            for c, column in enumerate(columns):
                known = reference_status(group, entity, column, now_us)
                assert status[i, c] == known
                dtype, names = group.columns[column].dtype, store.categories.get(group.columns[column].name)
                is_present = known is ValueStatus.PRESENT
                expected[i, slots[c]] = reference_float(dtype, entity.values[column], names) if is_present else np.nan
            one = np.full(width, 7.0, np.float32)
            assert reader.read_one(encoded[i], now_us, one) == results[i]
            np.testing.assert_array_equal(one, expected[i])
        np.testing.assert_array_equal(out, expected)


@dataclass
class RawBase:
    """A file whose rows are put in by hand, for what `write_base` would never write."""

    path: str
    group: GroupSchema

    def put(self, rows: dict[bytes, bytes]) -> None:
        with lmdb.open(self.path, subdir=False, lock=False, map_size=1 << 24) as env, env.begin(write=True) as txn:
            for key, row in rows.items():
                txn.put(key, row)

    def reader(self, columns=None) -> GroupReader:
        layout = RowLayout.of(self.group)
        names = range(len(self.group.columns)) if columns is None else columns
        return GroupReader(
            BaseFile(self.path),
            group=0,
            fingerprint=layout.fingerprint,
            row_bytes=layout.row_bytes,
            bitmap_offset=layout.bitmap_offset,
            ttls_us=[view.ttl_us for view in self.group.views],
            steps=[
                (
                    {DType.FLOAT32: 0, DType.INT64: 2, DType.STRING: 4}[self.group.columns[c].dtype],
                    layout.offsets[c],
                    c,
                    0,
                    c,
                )
                for c in names
            ],
        )


@pytest.fixture
def raw(tmp_path):
    return RawBase(str(tmp_path / "raw.mdb"), simple_store().schema.groups[0])


def valid_row() -> bytes:
    store = simple_store()
    return reference_row(store.schema.groups[0], store.groups[0][(1,)], store.categories)


def id_key(i: int) -> bytes:
    return reference_key((KeyColumn("id", DType.INT64),), (i,))


def test_truncated_row_is_wrong_width(raw):
    """A row cut at any byte, or one byte too long, is reported, its outputs are missing, and nothing past it is read."""
    row = valid_row()
    raw.put({b"\0" + id_key(kept): (row + b"\0")[:kept] for kept in range(len(row) + 2)})
    reader = raw.reader()
    for kept in range(len(row) + 2):
        out, status = np.zeros((1, 3), np.float32), np.zeros((1, 3), np.uint8)
        expected = ReadStatus.OK if kept == len(row) else ReadStatus.WRONG_WIDTH
        assert reader.read_many([id_key(kept)], 0, out, status)[0] == expected
        if expected is not ReadStatus.OK:
            assert np.isnan(out).all()
            assert (status == ValueStatus.NOT_FOUND).all()


def test_a_foreign_fingerprint_is_wrong_schema(raw):
    """Any other first four bytes mean another schema; the row's values are not given."""
    row = valid_row()
    altered = {i: bytes(b ^ (1 << i % 8) if at == i // 8 else b for at, b in enumerate(row)) for i in range(32)}
    raw.put({b"\0" + id_key(i): changed for i, changed in altered.items()})
    out = np.zeros((32, 3), np.float32)
    results = raw.reader().read_many([id_key(i) for i in range(32)], 0, out)
    assert set(results) == {ReadStatus.WRONG_SCHEMA}
    assert np.isnan(out).all()


@pytest.mark.parametrize(
    ("ttl_us", "event_us", "now_us", "expected"),
    [
        pytest.param(10, 100, 110, ValueStatus.PRESENT, id="exactly at ttl"),
        pytest.param(10, 100, 111, ValueStatus.OUTSIDE_TTL, id="one microsecond past"),
        pytest.param(10, 100, 99, ValueStatus.PRESENT, id="event in the future"),
        pytest.param(0, 100, 100, ValueStatus.PRESENT, id="zero ttl, same instant"),
        pytest.param(0, 100, 101, ValueStatus.OUTSIDE_TTL, id="zero ttl, one later"),
        pytest.param(None, -(2**63) + 1, 2**63 - 1, ValueStatus.PRESENT, id="no ttl, as old as can be"),
        pytest.param(10, -(2**63) + 1, 2**63 - 1, ValueStatus.OUTSIDE_TTL, id="age beyond int64"),
        pytest.param(2**62, 2**63 - 1, -(2**63), ValueStatus.PRESENT, id="negative age beyond int64"),
        pytest.param(10, -(2**63) + 1, -(2**63) + 5, ValueStatus.PRESENT, id="cutoff below int64"),
        pytest.param(10, None, 0, ValueStatus.NOT_FOUND, id="no event"),
    ],
)
def test_ttl_edges(tmp_path, ttl_us, event_us, now_us, expected):
    """A value is stale when its age exceeds the ttl, by the caller's clock, without overflow at the ends of int64."""
    store = simple_store(1, ttl_us=ttl_us, event_us=event_us)
    opened = open_store(tmp_path, store)
    batch = opened.read_vectors({"id": [0]}, now_us)
    assert batch.statuses[0, 0] == expected
    assert np.isnan(batch.values[0, 0]) == (expected is not ValueStatus.PRESENT)
    value = opened.read_values({"id": [0]}, now_us)["x"][0]
    assert value.status is expected
    assert (value.value is None) == (expected is not ValueStatus.PRESENT)
    assert value.age_us == (None if event_us is None else now_us - event_us)


@settings(max_examples=200)
@given(ttl=st.integers(0, 2**63 - 2), event=TIMES, now=INT64)
def test_ttl_is_exact_everywhere(ttl_base, ttl, event, now):
    """The compiled comparison is the mathematical one for any ttl, event and time."""
    layout, path_of = ttl_base
    reader = GroupReader(
        BaseFile(path_of(event)),
        group=0,
        fingerprint=layout.fingerprint,
        row_bytes=layout.row_bytes,
        bitmap_offset=layout.bitmap_offset,
        ttls_us=[ttl],
        steps=[(0, layout.offsets[0], 0, 0, 0)],
    )
    status = np.zeros((1, 1), np.uint8)
    reader.read_many([id_key(0)], now, np.zeros((1, 1), np.float32), status)
    assert status[0, 0] == (ValueStatus.OUTSIDE_TTL if now - event > ttl else ValueStatus.PRESENT)


@pytest.fixture(scope="module")
def ttl_base(tmp_path_factory):
    """The layout of a small group, and a way to get a file with one row of a given event time."""
    directory = tmp_path_factory.mktemp("ttl")
    store = simple_store(1)
    group = store.schema.groups[0]
    numbers = itertools.count()

    def path_of(event_us):
        entity = replace(store.groups[0][(0,)], event_us=(event_us,))
        base = RawBase(str(directory / f"{next(numbers)}.mdb"), group)
        base.put({b"\0" + id_key(0): reference_row(group, entity, store.categories)})
        return base.path

    return RowLayout.of(group), path_of


def test_keys_longer_than_any_stored_are_missing(raw):
    """A key beyond LMDB's limit is simply not there; it overruns no buffer."""
    raw.put({b"\0" + id_key(1): valid_row()})
    out = np.zeros((3, 3), np.float32)
    assert set(raw.reader().read_many([b"x" * 510, b"x" * 511, b"x" * 100_000], 0, out)) == {ReadStatus.MISSING}


def test_empty_base_and_empty_read(tmp_path):
    """A base without rows opens and finds nothing; a read of no keys gives nothing."""
    opened = open_store(tmp_path, simple_store(0))
    assert opened.read_vectors({"id": [1]}, 0).found.tolist() == [[False]]
    assert opened.read_vectors({"id": []}, 0).values.shape == (0, 3)


def test_buffers_are_checked_before_anything_is_written(tmp_path):
    """Outputs of another shape, type or layout are refused; keys must be bytes."""
    reader = open_store(tmp_path, simple_store()).group_reader(0, ["x", "s"], [0, 3])
    key = id_key(1)
    with pytest.raises(ValueError, match="at least 4 aligned float32"):
        reader.read_one(key, 0, np.zeros(3, np.float32))
    read_only = np.zeros(4, np.float32)
    read_only.flags.writeable = False
    unaligned = np.frombuffer(bytearray(33), np.uint8)[1:].view(np.float32)
    for bad in (read_only, np.zeros(8, np.float32)[::2], np.zeros(8, np.float64), bytearray(64), unaligned):
        with pytest.raises((ValueError, BufferError)):
            reader.read_one(key, 0, bad)
    for out in (np.zeros((1, 3), np.float32), np.zeros((2, 4), np.float32), np.zeros((1, 4), np.float64)):
        with pytest.raises(ValueError):
            reader.read_many([key], 0, out)
    out = np.zeros((1, 4), np.float32)
    with pytest.raises(ValueError, match="status"):
        reader.read_many([key], 0, out, np.zeros((1, 3), np.uint8))
    with pytest.raises(ValueError, match="event_us"):
        reader.read_many([key], 0, out, None, np.zeros((1, 2), np.int64))
    for bad_key in ("text", 1, bytearray(key)):
        with pytest.raises(TypeError, match="bytes or None"):
            reader.read_many([bad_key], 0, out)
    assert out.tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize(
    "step",
    [(5, 16, 0, 0, 0), (-1, 16, 0, 0, 0), (0, -1, 0, 0, 0), (0, 61, 0, 0, 0), (1, 57, 0, 0, 0), (0, 24, 400, 0, 0),
     (0, 24, -1, 0, 0), (0, 24, 0, 1, 0), (0, 24, 0, -1, 0), (0, 24, 0, 0, -1)],
)  # fmt: skip
def test_programs_outside_the_row_are_refused(raw, step):
    """A step that would read or write outside its row, bitmap, views or slots does not become a reader."""
    raw.put({b"\0": b""})
    base = BaseFile(raw.path)
    with pytest.raises(ValueError):
        GroupReader(base, group=0, fingerprint=0, row_bytes=64, bitmap_offset=16, ttls_us=[None], steps=[step])


def test_repeated_slots_are_refused(raw):
    """Two columns cannot share an output."""
    raw.put({b"\0": b""})
    steps = [(0, 24, 0, 0, 1), (0, 28, 1, 0, 1)]
    with pytest.raises(ValueError, match="slot 1"):
        GroupReader(
            BaseFile(raw.path), group=0, fingerprint=0, row_bytes=64, bitmap_offset=16, ttls_us=[None], steps=steps
        )


def test_not_an_lmdb_file(tmp_path):
    """Files LMDB cannot open are corrupt bases, whatever their size."""
    for n in (0, 1, 4096, 100_000):
        path = tmp_path / f"{n}.mdb"
        path.write_bytes(b"\xab" * n)
        with pytest.raises(BaseCorruptError):
            BaseFile(str(path))
    with pytest.raises(FileNotFoundError):
        BaseFile(str(tmp_path / "absent.mdb"))


class Sink:
    def update(self, data):
        pass


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        pytest.param({b"\1" + bytes(8): b"row"}, "group below 1, got 1", id="unknown group"),
        pytest.param({b"\0" + bytes(8): b"row"}, "expected 40 bytes, got 3", id="width"),
        pytest.param({b"\0" + bytes(8): bytes(40)}, "expected schema", id="schema"),
        pytest.param({b"\0" + bytes(7): None}, "does not decode", id="short key"),
        pytest.param({b"\0" + bytes(9): None}, "does not decode", id="long key"),
    ],
)
def test_walk_refuses_what_the_reader_would(raw, rows, said):
    """Verification visits every row and names the first that is wrong."""
    row = valid_row()
    layout = RowLayout.of(raw.group)
    assert layout.row_bytes == len(row) == 40
    raw.put({key: row if value is None else value for key, value in rows.items()})
    walk = BaseWalk(BaseFile(raw.path), [layout.fingerprint], [layout.row_bytes], [[False]])
    with pytest.raises(BaseCorruptError, match=said):
        walk.fill(Sink(), Sink())


def test_walk_checks_text_keys(raw):
    """String keys must be UTF-8 and their lengths must fit."""
    layout = RowLayout.of(raw.group)
    for number, key in enumerate((b"\0\0\5abcd", b"\0\0", b"\0\0\1\xffab", b"\0\0\1a\xff")):
        raw.path = f"{raw.path}{number}"
        raw.put({key: valid_row()})
        walk = BaseWalk(BaseFile(raw.path), [layout.fingerprint], [layout.row_bytes], [[True, True]])
        with pytest.raises(BaseCorruptError, match="does not decode"):
            walk.fill(Sink(), Sink())


def test_concurrent_reads_from_one_reader(tmp_path):
    """Threads that share one reader (and so one transaction) all get the right answers."""
    n = 5_000
    store = simple_store(n)
    reader = open_store(tmp_path, store).group_reader(0, ["x"], [0])
    keys = [id_key(i) for i in range(n)]
    wrong, start = [], threading.Barrier(4)

    def read(seed):
        rng = np.random.default_rng(seed)
        start.wait()
        for _ in range(40):
            order = rng.integers(0, n, 1_000)
            out = np.empty((1_000, 1), np.float32)
            results = reader.read_many([keys[i] for i in order], 0, out)
            if set(results) != {ReadStatus.OK} or not np.array_equal(out[:, 0], order.astype(np.float32)):
                wrong.append(seed)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_reader_outlives_its_base_and_file(tmp_path):
    """A reader keeps the map alive after the base object is gone and the file unlinked."""
    opened = open_store(tmp_path, simple_store())
    reader = opened.group_reader(0, ["x"], [0])
    path = tmp_path / opened.manifest.base_name
    del opened
    path.unlink()
    out = np.zeros(1, np.float32)
    assert reader.read_one(id_key(3), 0, out) == ReadStatus.OK
    assert out[0] == 3


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="needs a list of open files")
def test_opening_many_times_leaks_no_descriptor(tmp_path):
    """Opening and dropping a base, also one that is refused, leaves no file open."""
    open_store(tmp_path, simple_store())
    bad = tmp_path / "bad.mdb"
    bad.write_bytes(b"\0" * 8192)

    def open_once():
        OnlineBase.open(tmp_path).read_vectors({"id": [1]}, 0)
        with pytest.raises(BaseCorruptError):
            BaseFile(str(bad))

    open_once()
    before = len(list(Path("/dev/fd").iterdir()))
    for _ in range(50):
        open_once()
    assert len(list(Path("/dev/fd").iterdir())) == before


def test_wide_views(tmp_path):
    """The largest number of views a row may have is read correctly."""
    views = tuple(ViewSchema(f"v{j}", j, "") for j in range(256))
    columns = tuple(Column(f"c{j}", DType.FLOAT32, j) for j in range(256))
    group = GroupSchema("e", (KeyColumn("id", DType.INT64),), views, columns)
    entity = Entity(tuple(map(float, range(256))), (0,) * 256)
    store = Store(ServiceSchema("svc", (group,), (), tuple(c.name for c in columns)), ({(0,): entity},))
    batch = open_store(tmp_path, store).read_vectors({"id": [0]}, 100)
    assert batch.statuses[0].tolist() == [ValueStatus.OUTSIDE_TTL] * 100 + [ValueStatus.PRESENT] * 156
