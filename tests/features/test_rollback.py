"""Going back to an older base: step by step, to one that is named, and never to one that is damaged."""

from __future__ import annotations

import errno
import os

import pytest
from tests.features.stores import simple_store

from tiercel.errors import BaseCorruptError, BaseNotKeptError, NotMaterializedError, StoreError
from tiercel.features.base import write_base
from tiercel.features.manifest import read_manifest
from tiercel.features.online import OnlineBase
from tiercel.features.rollback import rollback


def publish(directory, **kwargs):
    store = simple_store(**kwargs)
    return write_base(directory, store.schema, store.tables, categories=store.categories, as_of_us=7, catalog="c")


def flip_byte(path):
    """One bit is wrong, in the middle of the file; its size stays."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)


def test_rollback_goes_back_step_by_step(tmp_path):
    """Each rollback serves the base before; when none is kept it says so; the next publish takes a fresh number."""
    for offset in (1.0, 2.0, 3.0, 4.0):
        publish(tmp_path, offset=offset)
    for expected in (3.0, 2.0):
        manifest = rollback(tmp_path)
        assert read_manifest(tmp_path) == manifest
        assert OnlineBase.open(tmp_path).read_vectors({"id": [0]}, 0).values[0, 0] == expected
    with pytest.raises(NotMaterializedError, match="older base"):
        rollback(tmp_path)
    assert publish(tmp_path, offset=5.0).sequence == 5
    assert OnlineBase.open(tmp_path).read_vectors({"id": [0]}, 0).values[0, 0] == 5.0


DAMAGES = {
    "gone": lambda path: path.unlink(),
    "cut short": lambda path: (path.chmod(0o644), os.truncate(path, path.stat().st_size - 1)),
    "one bit": flip_byte,
}


@pytest.mark.parametrize("file", ["base_name", "categories_name"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_base_is_not_gone_back_to(tmp_path, damage, file):
    """The error names the damaged file and how to go on to the next intact one; that works."""
    for offset in (1.0, 2.0, 3.0):
        current = publish(tmp_path, offset=offset)
    damaged = tmp_path / getattr(current.previous[0], file)
    damage(damaged)
    with pytest.raises(BaseCorruptError) as caught:
        rollback(tmp_path)
    assert str(damaged) in str(caught.value)
    assert f"{current.base_name} stays current" in str(caught.value)
    assert str(caught.value).endswith(
        "as of 1970-01-01 00:00:00 UTC. Run: tiercel rollback-base svc --to base-000001.mdb"
    )
    assert read_manifest(tmp_path) == current
    manifest = rollback(tmp_path, to="base-000001.mdb")
    assert (manifest.sequence, manifest.previous) == (1, ())
    assert OnlineBase.open(tmp_path).read_vectors({"id": [0]}, 0).values[0, 0] == 1.0
    assert publish(tmp_path).sequence == 4


def test_a_full_disk_leaves_the_current_base(tmp_path, monkeypatch):
    """What cannot be written is an error of the store, with the file; nothing has changed."""
    for _ in range(2):
        current = publish(tmp_path)

    def full(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")  # as a write or fsync raises it: without a name

    monkeypatch.setattr("tiercel.features.manifest.os.pwrite", full)
    monkeypatch.setattr("tiercel.features.manifest.os.fsync", full)
    with pytest.raises(
        StoreError, match=r"MANIFEST cannot be written: No space left on device\. base-000002\.mdb stays current"
    ):
        rollback(tmp_path)
    assert read_manifest(tmp_path) == current


def test_no_older_base_is_intact(tmp_path):
    """Then the error says what else there is to do."""
    publish(tmp_path)
    current = publish(tmp_path)
    flip_byte(tmp_path / current.previous[0].base_name)
    with pytest.raises(BaseCorruptError, match=r"no other one that is kept is intact.*tiercel materialize$"):
        rollback(tmp_path)
    assert read_manifest(tmp_path) == current


@pytest.mark.parametrize("to", ["base-000002.mdb", "base-000009.mdb", "../svc", ""])
def test_back_to_what_is_not_kept(tmp_path, to):
    """Only what MANIFEST names as older can be named; the error says which those are."""
    for _ in range(2):
        publish(tmp_path)
    with pytest.raises(BaseNotKeptError, match=r"kept \(base-000001.mdb\)"):
        rollback(tmp_path, to=to)
