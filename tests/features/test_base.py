"""Writing a base: what it refuses, what it leaves behind, and being killed at any line."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import lmdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from tests.features.stores import CATEGORIES, simple_store, stores, table_of
from tests.reference.row import Entity, reference_key, reference_row

from tiercel.errors import SourceError, StoreError
from tiercel.features import base
from tiercel.features.base import write_base
from tiercel.features.manifest import read_manifest
from tiercel.features.online import OnlineBase
from tiercel.types import Column, DType, GroupSchema, KeyColumn, ServiceSchema, ViewSchema


def publish(directory, store, tables=None, categories=None):
    return write_base(
        directory,
        store.schema,
        store.tables if tables is None else tables,
        categories=store.categories if categories is None else categories,
        as_of_us=7,
        catalog="c",
    )


def stored(directory) -> dict[bytes, bytes]:
    """Every key and row of the current base, read by py-lmdb from a copy (one process opens a file once)."""
    manifest = read_manifest(directory)
    copy = directory / "copy.mdb"
    shutil.copy(directory / manifest.base_name, copy)
    copy.chmod(0o644)
    with lmdb.open(str(copy), subdir=False, readonly=True, lock=False) as env, env.begin() as txn:
        rows = dict(txn.cursor())
    copy.unlink()
    return rows


@settings(max_examples=25, deadline=None)
@given(stores())
def test_the_file_holds_the_reference_rows(tmp_path_factory, store):
    """A base holds exactly one reference row per entity, in key order, and the manifest counts them."""
    directory = tmp_path_factory.mktemp("svc")
    manifest = publish(directory, store)
    rows = stored(directory)
    expected = {
        bytes([g]) + reference_key(group.keys, key): (group, entity)
        for g, (group, entities) in enumerate(zip(store.schema.groups, store.groups, strict=True))
        for key, entity in entities.items()
    }
    assert list(rows) == sorted(expected)
    assert manifest.group_rows == tuple(len(entities) for entities in store.groups)
    for key, (group, entity) in expected.items():
        if not any(isinstance(v, float) and math.isnan(v) for v in entity.values):  # NaN payloads may differ
            assert rows[key] == reference_row(group, entity, store.categories)


def test_row_order_does_not_matter(tmp_path):
    """Two tables with the same rows in another order have one content digest; another value gives another."""
    store = simple_store(1000)
    table = store.tables[0]
    shuffled = pa.concat_tables([table.slice(500), table.slice(0, 500)])
    one, two = publish(tmp_path / "a", store), publish(tmp_path / "b", store, [shuffled])
    other = publish(tmp_path / "c", simple_store(1000, offset=0.5))
    assert one.content_digest == two.content_digest
    assert one.sha256 == two.sha256
    assert one.content_digest != other.content_digest


def test_rows_wider_than_a_page_are_stored(tmp_path):
    """Rows on overflow pages are written, verified and read like any other."""
    columns = tuple(Column(f"c{i}", DType.FLOAT64, 0) for i in range(2_000))
    group = GroupSchema("e", (KeyColumn("id", DType.INT64),), (ViewSchema("v", None, ""),), columns)
    schema = ServiceSchema("svc", (group,), (), tuple(column.name for column in columns))
    rows = {(i,): Entity(tuple(float(i + c) for c in range(2_000)), (0,)) for i in range(50)}
    write_base(tmp_path, schema, [table_of(group, rows)], categories={}, as_of_us=0, catalog="")
    values = OnlineBase.open(tmp_path).read_vectors({"id": [49, 3]}, 0).values
    assert values[0, 1_999] == 49 + 1_999
    assert values[1, 0] == 3


def test_progress_counts_every_row_twice(tmp_path):
    """Progress rises to its total: each row loaded and verified."""
    store, seen = simple_store(300), []
    write_base(
        tmp_path, store.schema, store.tables, categories=store.categories, as_of_us=0, catalog="",
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen == sorted(seen)
    assert seen[-1] == (600, 600)


@pytest.mark.parametrize(
    ("change", "categories", "said"),
    [
        pytest.param(
            lambda t: [pa.concat_tables([t, t.slice(3, 1)])], None, r"1 duplicates \(first: id=3\)", id="duplicate"
        ),
        pytest.param(
            lambda t: [t.set_column(0, "id", pa.array([0, 1, None, 3, 4]))], None, "first: row 2", id="null key"
        ),
        pytest.param(lambda t: [t.drop_columns(["x"])], None, "column 'x'", id="absent column"),
        pytest.param(lambda t: [], None, "one table per group", id="absent table"),
        pytest.param(lambda t: [t], {}, "dictionary for string feature 's'", id="absent dictionary"),
        pytest.param(lambda t: [t], {"s": ["a", "a", "b", "c"]}, "1 repeats", id="repeated string"),
        pytest.param(
            lambda t: [t.set_column(t.column_names.index("s"), "s", pa.array([0, 1, 2, 3, 9], pa.int32()))],
            None,
            r"0\.\.3 \(4 strings\), got 0\.\.9",
            id="code outside",
        ),
    ],
)
def test_a_refused_table_changes_nothing(tmp_path, change, categories, said):
    """A table that does not fit is refused by name; the published base stays and no file is left."""
    store = simple_store()
    publish(tmp_path, store)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(SourceError, match=said):
        publish(tmp_path, store, change(store.tables[0]), categories)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_codes_never_change_their_meaning(tmp_path):
    """A base whose dictionary is not the published one continued is refused: models have learned its codes."""
    store = simple_store()
    publish(tmp_path, store, None, {"s": ["a", "b", "c", "d"]})
    publish(tmp_path, store, None, {"s": ["a", "b", "c", "d", "e"]})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for categories in (["b", "a", "c", "d", "e"], ["a", "b", "c", "d"], ["a", "b", "c", "d", "f"]):
        with pytest.raises(StoreError, match="registered models would read other values"):
            publish(tmp_path, store, None, {"s": categories})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_only_kept_bases_stay(tmp_path):
    """After many publishes the current base and two older ones are on disk, each with its dictionaries."""
    for offset in range(5):
        publish(tmp_path, simple_store(offset=offset))
    names = sorted(path.name for path in tmp_path.iterdir())
    bases = [name for n in (3, 4, 5) for name in (f"base-00000{n}.categories.json", f"base-00000{n}.mdb")]
    assert names == sorted([".lock", "MANIFEST", *bases])


def test_a_damaged_manifest_is_healed_by_publishing(tmp_path):
    """Publishing over a damaged MANIFEST works, takes a new number and does not delete what it might have named."""
    publish(tmp_path, simple_store())
    (tmp_path / "MANIFEST").write_bytes(b"{")
    manifest = publish(tmp_path, simple_store(offset=1))
    assert manifest.sequence == 2
    assert manifest.previous == ()
    assert OnlineBase.open(tmp_path).read_vectors({"id": [0]}, 0).values[0, 0] == 1


@pytest.mark.parametrize("spoil", [lambda path: path.write_bytes(b""), lambda path: path.unlink()])
def test_bases_of_a_lost_manifest_stay_for_one_publish(tmp_path, spoil):
    """Without a readable MANIFEST the newest bases stay as files, their numbers are not given again; the next run goes on."""
    bases = {}
    for offset in range(3):
        manifest = publish(tmp_path, simple_store(offset=offset))
        bases[manifest.base_name] = (tmp_path / manifest.base_name).read_bytes()
    saved = (tmp_path / "MANIFEST").read_bytes()
    spoil(tmp_path / "MANIFEST")
    with pytest.raises(SourceError):
        publish(tmp_path, simple_store(), [])
    with pytest.raises(SourceError, match="duplicates"):
        publish(tmp_path, simple_store(), [pa.concat_tables(2 * simple_store().tables)])
    assert {path.name: path.read_bytes() for path in tmp_path.glob("base-*.mdb")} == bases  # a refusal removes nothing
    manifest = publish(tmp_path, simple_store(offset=9))
    assert (manifest.sequence, manifest.previous) == (4, ())
    kept = {f"base-00000{n}.mdb" for n in (2, 3)}
    assert {path.name for path in tmp_path.glob("base-*.mdb")} == {*kept, "base-000004.mdb"}
    assert all((tmp_path / name).read_bytes() == bases[name] for name in kept)
    fourth = (tmp_path / "MANIFEST").read_bytes()
    (tmp_path / "MANIFEST").write_bytes(saved)  # from a backup
    assert OnlineBase.open(tmp_path).read_vectors({"id": [0]}, 0).values[0, 0] == 2
    (tmp_path / "MANIFEST").write_bytes(fourth)
    assert publish(tmp_path, simple_store(offset=10)).sequence == 5
    assert {path.name for path in tmp_path.glob("base-*.mdb")} == {"base-000004.mdb", "base-000005.mdb"}


def test_a_failed_first_run_leaves_nothing(tmp_path, monkeypatch):
    """Where nothing was ever published, what a failed run wrote is removed although no MANIFEST says what to keep."""

    def fail(directory, manifest):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(base, "publish_manifest", fail)
    with pytest.raises(StoreError, match="No space left"):
        publish(tmp_path, simple_store())
    assert {path.name for path in tmp_path.iterdir()} == {".lock"}


def test_a_number_of_which_one_file_is_left_is_not_given_again(tmp_path):
    """Dictionaries alone, beside a lost MANIFEST and a lost base, still say that their number was taken."""
    manifest = publish(tmp_path, simple_store())
    (tmp_path / "MANIFEST").unlink()
    (tmp_path / manifest.base_name).unlink()
    assert publish(tmp_path, simple_store(offset=1)).sequence == 2


def test_a_file_that_differs_from_what_was_loaded_is_not_published(tmp_path, monkeypatch):
    """Verification compares what is in the file with what was meant to be: a row changed on the way stops the publish."""
    publish(tmp_path, simple_store())
    load = base._load

    def load_and_alter(path, groups, tick):
        digest = load(path, groups, tick)
        with lmdb.open(str(path), subdir=False, lock=False) as env, env.begin(write=True) as txn:
            key, row = next(iter(txn.cursor()))
            txn.put(key, row[:-1] + bytes([row[-1] ^ 1]))
        return digest

    monkeypatch.setattr(base, "_load", load_and_alter)
    with pytest.raises(StoreError, match="Expected content"):
        publish(tmp_path, simple_store(offset=1))
    assert OnlineBase.open(tmp_path).read_vectors({"id": [0]}, 0).values[0, 0] == 0


def test_a_full_disk_is_a_store_error(tmp_path, monkeypatch):
    """An I/O error while writing leaves the old base current and no partial file."""
    publish(tmp_path, simple_store())

    def fail(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(base, "_seal", fail)
    with pytest.raises(StoreError, match="No space left"):
        publish(tmp_path, simple_store(offset=1))
    assert sorted(path.name for path in tmp_path.glob("base-*")) == ["base-000001.categories.json", "base-000001.mdb"]


def test_concurrent_writers_take_turns(tmp_path):
    """Writers in several threads all succeed, each with its own number, and the last one published is current."""
    manifests, errors = [], []

    def write(offset):
        try:
            manifests.append(publish(tmp_path, simple_store(50, offset=offset)))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sorted(m.sequence for m in manifests) == [1, 2, 3, 4]
    assert read_manifest(tmp_path).sequence == 4


# Runs write_base in forked children and kills each with SIGKILL at another executed line of the writer's own modules.
KILLER = """
import json, os, signal, shutil, sys
from pathlib import Path
from tests.features.stores import simple_store
from tiercel.features.base import write_base
import tiercel.features.manifest, tiercel.features.base

directory, points = Path(sys.argv[1]), int(sys.argv[2])
files = {tiercel.features.base.__file__, tiercel.features.manifest.__file__}

def run(target, fatal):
    count = 0
    def trace(frame, event, arg):
        nonlocal count
        if frame.f_code.co_filename not in files:
            return None
        if event == "line":
            count += 1
            if count == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace
    store = simple_store(20, offset=100.0)
    sys.settrace(trace)
    write_base(target, store.schema, store.tables, categories=store.categories, as_of_us=8, catalog="d")
    sys.settrace(None)
    return count

def fork(target, fatal):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write, str(run(target, fatal)).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    _, status = os.waitpid(pid, 0)
    return said, os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0

def fresh(name):
    return shutil.copytree(directory / "seed", directory / name)

total = int(fork(fresh("counted"), -1)[0])
killed = []
for point in sorted({max(1, total * i // points) for i in range(1, points + 1)} | set(range(total - 9, total + 1))):
    _, by = fork(fresh(f"killed-{point}"), point)
    killed.append(by)
print(json.dumps(killed))
"""


def test_killed_anywhere_the_old_base_stays_current(tmp_path):
    """SIGKILL at any line: readers get a whole base, old or new, and the next run publishes and cleans up."""
    publish(tmp_path / "seed", simple_store(20))
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(tmp_path), "14"],
        capture_output=True,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)) == {9}
    seen = set()
    for directory in sorted(tmp_path.glob("killed-*")):
        opened = OnlineBase.open(directory)
        values = opened.read_vectors({"id": list(range(20))}, 0).values[:, 0]
        offset = float(values[0])
        seen.add((opened.manifest.sequence, offset))
        assert values.tolist() == [i + offset for i in range(20)]
        manifest = publish(directory, simple_store(20, offset=200.0))
        assert {path.name for path in directory.iterdir()} == {".lock", "MANIFEST", *manifest.file_names}
    assert seen == {(1, 0.0), (2, 100.0)}


def test_category_names_are_stored_as_text(tmp_path):
    """Dictionaries survive with empty and non-ASCII strings."""
    publish(tmp_path, simple_store())
    assert OnlineBase.open(tmp_path).categories == {"s": tuple(CATEGORIES)}
