"""Opening a published base safely, reading it, and following MANIFEST."""

from __future__ import annotations

import gc
import math
import resource
import shutil
import sys
import threading
import weakref

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.features.stores import INT64, Store, simple_store, stores
from tests.reference.row import reference_status

from tiercel.errors import BaseCorruptError, RequestError, SchemaMismatchError
from tiercel.features import online
from tiercel.features.base import write_base
from tiercel.features.manifest import read_manifest
from tiercel.features.online import OnlineBase
from tiercel.types import Column, DType, GroupSchema, KeyColumn, RequestField, ServiceSchema, ValueStatus, ViewSchema


def publish(directory, store=None):
    store = store or simple_store()
    return write_base(directory, store.schema, store.tables, categories=store.categories, as_of_us=0, catalog="")


@settings(max_examples=30, deadline=None)
@given(store=stores(), data=st.data())
def test_typed_values_and_vectors_agree_with_the_reference(tmp_path_factory, store, data):
    """Typed values come back exact, with the statuses, ages and event times of the vectors read beside them."""
    directory = tmp_path_factory.mktemp("svc")
    publish(directory, store)
    opened = OnlineBase.open(directory, expected_fingerprint=store.schema.fingerprint)
    now_us = data.draw(INT64)
    n = 5
    picks = [[data.draw(st.sampled_from([None, *rows])) for _ in range(n)] for rows in store.groups]
    entities = {
        key.name: [None if pick is None else pick[i] for pick in picks[g]]
        for g, group in enumerate(store.schema.groups)
        for i, key in enumerate(group.keys)
    }
    typed, batch = opened.read_values(entities, now_us), opened.read_vectors(entities, now_us)
    assert batch.features == store.schema.features
    for g, group in enumerate(store.schema.groups):
        assert batch.found[:, g].tolist() == [pick is not None for pick in picks[g]]
        for c, column in enumerate(group.columns):
            slot = batch.features.index(column.name)
            for i, pick in enumerate(picks[g]):
                entity = None if pick is None else store.groups[g][pick]
                got, status = typed[column.name][i], reference_status(group, entity, c, now_us)
                assert got.status == batch.statuses[i, slot] == status
                expected = entity.values[c] if status is ValueStatus.PRESENT else None
                is_nan = isinstance(expected, float) and math.isnan(expected)
                assert math.isnan(got.value) if is_nan else got.value == expected
                event = None if entity is None else entity.event_us[column.view]
                assert got.event_us == event
                assert got.age_us == (None if event is None else now_us - event)
                assert np.isnan(batch.values[i, slot]) == (expected is None or is_nan)


def test_exact_values_where_float32_would_round(tmp_path):
    """int64 values beyond float32's and float64's precision come back exactly."""
    publish(tmp_path)
    values = OnlineBase.open(tmp_path).read_values({"id": [1]}, 0)
    assert values["big"][0].value == 2**62 + 1
    assert values["s"][0].value == "JFK"


def test_features_keep_the_service_order(tmp_path):
    """Vectors follow the service's feature order, skip what comes with the request, and pick single columns of a group."""
    group = GroupSchema(
        "e",
        (KeyColumn("id", DType.INT64),),
        (ViewSchema("v", None, ""),),
        (Column("a", DType.FLOAT32, 0), Column("unused", DType.FLOAT32, 0), Column("b", DType.FLOAT32, 0)),
    )
    schema = ServiceSchema("svc", (group,), (RequestField("asked", DType.FLOAT32),), ("b", "asked", "a"))
    table = {"id": [1], "a": [1.0], "unused": [2.0], "b": [3.0], "__event_us_0": [0]}
    types = pa.schema(
        [
            ("id", pa.int64()),
            ("a", pa.float32()),
            ("unused", pa.float32()),
            ("b", pa.float32()),
            ("__event_us_0", pa.int64()),
        ]
    )
    write_base(tmp_path, schema, [pa.table(table, types)], categories={}, as_of_us=0, catalog="")
    batch = OnlineBase.open(tmp_path).read_vectors({"id": [1]}, 0)
    assert batch.features == ("b", "a")
    assert batch.values.tolist() == [[3.0, 1.0]]


@pytest.mark.parametrize(
    ("entities", "code", "row"),
    [
        pytest.param({}, "missing_entity_key", None, id="no keys"),
        pytest.param({"id": [1], "name": ["x"]}, "unknown_entity_key", None, id="unknown key"),
        pytest.param({"id": [1, "2"]}, "wrong_type", 1, id="wrong type"),
        pytest.param({"id": [True]}, "wrong_type", 0, id="bool"),
        pytest.param({"id": [1, 2, 2**63]}, "not_finite", 2, id="too large"),
    ],
)
def test_bad_entities_are_refused_by_row(tmp_path, entities, code, row):
    """Bad keys raise a stable code with the index of the bad row."""
    publish(tmp_path)
    with pytest.raises(RequestError) as caught:
        OnlineBase.open(tmp_path).read_vectors(entities, 0)
    assert (caught.value.code, caught.value.row) == (code, row)


def test_key_lists_of_different_lengths(tmp_path):
    """All keys of a service must have one length."""
    group = GroupSchema(
        "route",
        (KeyColumn("o", DType.STRING), KeyColumn("d", DType.STRING)),
        (ViewSchema("v", None, ""),),
        (Column("x", DType.FLOAT32, 0),),
    )
    publish(tmp_path, Store(ServiceSchema("svc", (group,), (), ("x",)), ({},)))
    with pytest.raises(RequestError) as caught:
        OnlineBase.open(tmp_path).read_vectors({"o": ["a"], "d": ["b", "c"]}, 0)
    assert caught.value.code == "wrong_length"


def test_a_flipped_bit_anywhere_is_refused(tmp_path):
    """One flipped bit, at places all over the base, is found before LMDB opens the file."""
    manifest = publish(tmp_path, simple_store(200))
    path = tmp_path / manifest.base_name
    content = bytearray(path.read_bytes())
    path.chmod(0o644)
    for at in range(0, len(content), 997):
        content[at] ^= 1 << at % 8
        path.write_bytes(content)
        with pytest.raises(BaseCorruptError, match="sha256"):
            OnlineBase.open(tmp_path)
        content[at] ^= 1 << at % 8
    path.write_bytes(content)
    assert OnlineBase.open(tmp_path).read_vectors({"id": [7]}, 0).values[0, 0] == 7


@pytest.mark.parametrize(
    "change", [lambda b: b[:-1], lambda b: b[:4096], lambda b: b"", lambda b: b + b"\0", lambda b: b * 2]
)
def test_another_size_is_refused_even_unverified(tmp_path, change):
    """A truncated or extended base is refused by its size, with and without hashing."""
    manifest = publish(tmp_path)
    path = tmp_path / manifest.base_name
    path.chmod(0o644)
    path.write_bytes(change(path.read_bytes()))
    for verify in (True, False):
        with pytest.raises(BaseCorruptError, match="bytes"):
            OnlineBase.open(tmp_path, verify=verify)


def test_a_foreign_base_is_refused(tmp_path):
    """A valid base of another publish under the current name is refused."""
    publish(tmp_path / "a", simple_store(offset=1))
    publish(tmp_path / "b", simple_store(offset=2))
    (tmp_path / "a" / "base-000001.mdb").unlink()
    shutil.copy(tmp_path / "b" / "base-000001.mdb", tmp_path / "a" / "base-000001.mdb")
    with pytest.raises(BaseCorruptError, match="sha256"):
        OnlineBase.open(tmp_path / "a")


@pytest.mark.parametrize("name", ["base_name", "categories_name"])
def test_a_missing_file_is_refused(tmp_path, name):
    """A file that MANIFEST names and that is gone is a corrupt base, not a traceback about a path."""
    manifest = publish(tmp_path)
    (tmp_path / getattr(manifest, name)).unlink()
    with pytest.raises(BaseCorruptError, match="no such file"):
        OnlineBase.open(tmp_path)


def test_altered_categories_are_refused(tmp_path):
    """Reordered dictionaries would change what codes mean; their digest is checked."""
    manifest = publish(tmp_path)
    path = tmp_path / manifest.categories_name
    path.write_text(path.read_text().replace("JFK", "JFX"))
    with pytest.raises(BaseCorruptError, match="sha256"):
        OnlineBase.open(tmp_path)


def test_another_schema_is_refused(tmp_path):
    """A base of another schema than the caller was built for does not open."""
    publish(tmp_path)
    with pytest.raises(SchemaMismatchError, match="schema 0000"):
        OnlineBase.open(tmp_path, expected_fingerprint="0" * 64)


def test_a_base_removed_between_manifest_and_open_is_retried(tmp_path, monkeypatch):
    """When publishing removes a base just after its MANIFEST was read, opening goes on with the new one."""
    publish(tmp_path)
    stale = read_manifest(tmp_path)
    for offset in range(3):
        publish(tmp_path, simple_store(offset=offset))
    assert not (tmp_path / stale.base_name).exists()
    answers = iter([stale])
    monkeypatch.setattr(online, "read_manifest", lambda directory: next(answers, None) or read_manifest(directory))
    assert OnlineBase.open(tmp_path).manifest.sequence == 4


def truncate(directory, manifest):
    path = directory / manifest.base_name
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:4096])


def test_the_newest_intact_older_base_opens(tmp_path):
    """Of the older bases that are kept, the newest that is what MANIFEST says; a bit flipped in one passes it over."""
    oldest, _, current = (publish(tmp_path, simple_store(offset=offset)) for offset in range(3))
    truncate(tmp_path, current)
    assert OnlineBase.open_older(tmp_path).manifest.sequence == 2
    middle = tmp_path / current.previous[0].base_name
    middle.chmod(0o644)
    middle.write_bytes(bytes([*middle.read_bytes()[:-1], 1]))
    assert OnlineBase.open_older(tmp_path).manifest.sequence == 1
    (tmp_path / oldest.categories_name).unlink()
    assert OnlineBase.open_older(tmp_path) is None


def test_an_older_base_of_another_schema_does_not_open(tmp_path):
    """Whoever asks for the newest older base expects the current one's schema."""
    publish(tmp_path, simple_store())
    publish(tmp_path, simple_store(ttl_us=5))
    assert OnlineBase.open_older(tmp_path) is None


def test_one_map_per_file_and_process(tmp_path):
    """Two bases opened on one file share its map; it goes with the last of them."""
    publish(tmp_path)
    one, two = OnlineBase.open(tmp_path), OnlineBase.open(tmp_path)
    assert one._file is two._file
    file = weakref.ref(one._file)
    del one
    assert two.read_vectors({"id": [2]}, 0).values[0, 0] == 2
    del two
    gc.collect()
    assert file() is None


def test_readers_keep_their_base_through_publishes(tmp_path):
    """Threads that read an old base while newer ones are published see only its values, to the end."""
    publish(tmp_path, simple_store(100))
    opened = OnlineBase.open(tmp_path)
    stop, wrong = threading.Event(), []

    def read():
        while not stop.is_set():
            if opened.read_vectors({"id": list(range(100))}, 0).values[:, 0].tolist() != list(range(100)):
                wrong.append(1)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for offset in range(1, 5):
        publish(tmp_path, simple_store(100, offset=offset))
        assert OnlineBase.open(tmp_path).read_vectors({"id": [0]}, 0).values[0, 0] == offset
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert not (tmp_path / opened.manifest.base_name).exists()


def test_concurrent_opens_share_and_agree(tmp_path):
    """Opening one base from several threads at once gives working bases over one map."""
    publish(tmp_path, simple_store(100))
    start, opened, errors = threading.Barrier(6), [], []

    def open_and_read():
        start.wait()
        try:
            base = OnlineBase.open(tmp_path)
            assert base.read_vectors({"id": [42]}, 0).values[0, 0] == 42
            opened.append(base)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=open_and_read) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len({id(base._file) for base in opened}) == 1


def test_unknown_columns_and_slots_are_refused(tmp_path):
    """A reader is made of columns the group has, one slot each."""
    publish(tmp_path)
    opened = OnlineBase.open(tmp_path)
    for columns, slots in ((["nope"], [0]), (["x", "s"], [0]), (["x", "s"], [1, 1]), (["x"], [-1])):
        with pytest.raises(ValueError):
            opened.group_reader(0, columns, slots)


def test_private_memory_does_not_grow_with_reads(tmp_path):
    """Reading every row many times allocates nothing that stays."""
    publish(tmp_path, simple_store(2_000))
    reader = OnlineBase.open(tmp_path).group_reader(0, ["x"], [0])
    keys = [(i + 2**63).to_bytes(8, "big") for i in range(2_000)]
    out = np.empty((2_000, 1), np.float32)
    reader.read_many(keys, 0, out)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(500):
        reader.read_many(keys, 0, out)
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit_bytes < 4 << 20
