"""MANIFEST: round trip, damage, and the writer lock."""

from __future__ import annotations

import json
import os

import pytest
from tests.features.stores import simple_store

from tiercel.errors import BaseCorruptError, NotMaterializedError, StoreError
from tiercel.features.base import write_base
from tiercel.features.manifest import Manifest, publish_manifest, read_manifest, writer_lock
from tiercel.features.online import ManifestWatcher, OnlineBase
from tiercel.features.rollback import rollback


def publish(directory, **kwargs):
    store = simple_store(**kwargs)
    return write_base(directory, store.schema, store.tables, categories=store.categories, as_of_us=7, catalog="c")


def test_manifest_round_trips(tmp_path):
    """What was written is what is read, kept bases included."""
    publish(tmp_path / "svc")
    manifest = publish(tmp_path / "svc")
    assert len(manifest.previous) == 1
    assert read_manifest(tmp_path / "svc") == manifest
    assert Manifest.from_json(json.loads(json.dumps(manifest.to_json()))) == manifest


def test_nothing_published(tmp_path):
    """An absent directory and an empty one both say what to run."""
    for directory in (tmp_path, tmp_path / "absent"):
        with pytest.raises(NotMaterializedError, match="tiercel materialize"):
            read_manifest(directory)
        with pytest.raises(NotMaterializedError):
            OnlineBase.open(directory)
    with pytest.raises(NotMaterializedError):
        rollback(tmp_path / "absent")


def test_a_manifest_cut_anywhere_is_corrupt(tmp_path):
    """No prefix of a MANIFEST is taken for one."""
    publish(tmp_path)
    path = tmp_path / "MANIFEST"
    content = path.read_bytes()
    for kept in range(0, len(content), 7):
        path.write_bytes(content[:kept])
        with pytest.raises(BaseCorruptError, match="not a valid manifest"):
            read_manifest(tmp_path)


@pytest.mark.parametrize("field", ["sha256", "n_rows", "as_of_us", "sequence", "base", "schema", "format"])
def test_an_edited_manifest_is_corrupt(tmp_path, field):
    """Any edited field is caught by the checksum."""
    publish(tmp_path)
    path = tmp_path / "MANIFEST"
    data = json.loads(path.read_text())
    data[field] = "../../etc/passwd"
    path.write_text(json.dumps(data))
    with pytest.raises(BaseCorruptError):
        read_manifest(tmp_path)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"checksum": 1}'])
def test_a_foreign_manifest_is_corrupt(tmp_path, content):
    """Whatever else lies under the name MANIFEST is refused with one error class."""
    (tmp_path / "MANIFEST").write_bytes(content)
    with pytest.raises(BaseCorruptError):
        read_manifest(tmp_path)


def test_watcher_notices_each_replacement_once(tmp_path):
    """A publish or rollback is reported by the next call and by that call only; an absent file is no change."""
    watcher = ManifestWatcher(tmp_path)
    assert not watcher.changed()
    publish(tmp_path)
    assert watcher.changed()
    assert not watcher.changed()
    publish(tmp_path)
    assert watcher.changed()
    rollback(tmp_path)
    assert watcher.changed()
    publish_manifest(tmp_path, read_manifest(tmp_path))  # equal content, another file
    assert watcher.changed()
    (tmp_path / "MANIFEST").unlink()
    assert not watcher.changed()


def test_the_lock_names_its_holder(tmp_path):
    """A second writer fails after its timeout and says who holds the lock; afterwards the lock is free."""
    with writer_lock(tmp_path, timeout_s=0), pytest.raises(StoreError, match=f"process {os.getpid()} has held"):
        write_without_waiting(tmp_path)
    with writer_lock(tmp_path, timeout_s=0):
        pass


def write_without_waiting(directory):
    store = simple_store(1)
    write_base(
        directory, store.schema, store.tables, categories=store.categories, as_of_us=0, catalog="", lock_timeout_s=0
    )
