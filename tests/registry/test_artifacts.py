from __future__ import annotations

import hashlib
import os
import stat
import time
from dataclasses import replace

import pytest

from tiercel.errors import ArtifactCorruptError, RegistryUnavailableError
from tiercel.registry import Registry
from tiercel.registry.artifacts import ArtifactStore

CONTENT = b"tree model " * 100


@pytest.fixture
def stored(tmp_path):
    """A store with one file, the file's manifest entry, and its path."""
    store = ArtifactStore(tmp_path / "artifacts")
    file = store.put("model.txt", CONTENT)
    return store, file, tmp_path / "artifacts" / file.sha256[:2] / file.sha256


def overwrite(path, content):
    path.chmod(0o644)
    path.write_bytes(content)


def test_files_are_named_by_their_content(stored):
    """The path follows from the sha256 alone, the file is read-only, and nothing unfinished is left."""
    store, file, path = stored
    assert file.sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert file.size == len(CONTENT)
    assert path.read_bytes() == CONTENT == store.load(file, "late 1")
    assert stat.S_IMODE(path.stat().st_mode) & 0o222 == 0
    assert list((path.parent.parent / "incoming").iterdir()) == []


def test_equal_content_is_stored_once(stored):
    """The same bytes under another name are not written again."""
    store, file, path = stored
    before = path.stat()
    again = store.put("copy.txt", CONTENT)
    assert (again.sha256, again.name) == (file.sha256, "copy.txt")
    assert path.stat().st_ino == before.st_ino


def test_storing_again_heals_a_damaged_file(stored):
    """Registering the same bytes again replaces a copy that was damaged."""
    store, file, path = stored
    overwrite(path, b"x" * len(CONTENT))
    store.put("model.txt", CONTENT)
    assert store.load(file, "late 1") == CONTENT


@pytest.mark.parametrize("kept", [0, 1, len(CONTENT) - 1])
def test_a_truncated_file_is_refused(stored, kept):
    """Any prefix is refused, with both sizes."""
    store, file, path = stored
    overwrite(path, CONTENT[:kept])
    with pytest.raises(
        ArtifactCorruptError, match=rf"'model.txt' of late 1.*expected {len(CONTENT)} bytes, got {kept}"
    ):
        store.load(file, "late 1")


@pytest.mark.parametrize("position", [0, 500, len(CONTENT) - 1])
def test_one_flipped_bit_is_refused(stored, position):
    """A single changed bit is refused, with both digests."""
    store, file, path = stored
    damaged = bytearray(CONTENT)
    damaged[position] ^= 1
    overwrite(path, damaged)
    got = hashlib.sha256(damaged).hexdigest()
    with pytest.raises(ArtifactCorruptError, match=f"expected sha256 {file.sha256}, got {got}") as caught:
        store.load(file, "late 1")
    assert caught.value.code == "artifact_corrupt"


def test_a_longer_file_is_refused_unread(stored):
    """A foreign file of any size is refused by its size: a sparse terabyte is not read."""
    store, file, path = stored
    path.chmod(0o644)
    with path.open("ab") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(ArtifactCorruptError, match="expected 1100 bytes, got 1099511627776"):
        store.load(file, "late 1")


def test_a_missing_file_is_refused(stored):
    """No file is ArtifactCorruptError too: the version cannot be served."""
    store, file, path = stored
    path.unlink()
    with pytest.raises(ArtifactCorruptError, match="No such file"):
        store.load(file, "late 1")


@pytest.mark.parametrize("kind", ["symlink", "directory", "fifo"])
def test_what_is_not_a_regular_file_is_refused(stored, tmp_path, kind):
    """Links are not followed, and a pipe does not block the reader."""
    store, file, path = stored
    path.unlink()
    if kind == "symlink":
        (tmp_path / "elsewhere").write_bytes(CONTENT)
        path.symlink_to(tmp_path / "elsewhere")
    elif kind == "directory":
        path.mkdir()
    else:
        os.mkfifo(path)
    with pytest.raises(ArtifactCorruptError):
        store.load(file, "late 1")


def test_an_unusable_directory_is_reported(tmp_path):
    """A file where the directory should be is RegistryUnavailableError, with the path."""
    (tmp_path / "artifacts").write_bytes(b"")
    with pytest.raises(RegistryUnavailableError, match="artifacts"):
        ArtifactStore(tmp_path / "artifacts").put("m", b"x")


def test_only_old_leftovers_are_removed(stored, tmp_path):
    """Unfinished files of yesterday are deleted, those of a process at work are not."""
    store, _, _ = stored
    old, new = (tmp_path / "artifacts" / "incoming" / name for name in ("1-old", "2-new"))
    for path in (old, new):
        path.write_bytes(b"half")
    yesterday = time.time() - 2 * 24 * 3600
    os.utime(old, (yesterday, yesterday))
    store.remove_leftovers()
    assert not old.exists()
    assert new.exists()


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    """A full disk leaves neither a half file under the final name nor an unfinished one."""
    store = ArtifactStore(tmp_path / "artifacts")

    def no_space(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    (tmp_path / "artifacts" / "incoming").mkdir(parents=True)
    with pytest.raises(RegistryUnavailableError, match="No space left"):
        store.put("m", b"x")
    assert [path for path in (tmp_path / "artifacts").rglob("*") if path.is_file()] == []


def test_an_altered_manifest_is_refused(tmp_path, make_facts):
    """A version whose file list does not have the recorded digest is not loaded, even if all files exist."""
    with Registry.for_state(tmp_path) as registry:
        first = registry.register("late", {"m": b"1"}, make_facts())
        second = registry.register("late", {"m": b"2"}, make_facts())
        with pytest.raises(ArtifactCorruptError, match="Manifest of 'late' version 1"):
            registry.load_artifacts(replace(first, files=second.files))
