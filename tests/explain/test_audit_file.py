"""Audit exports: whatever is done to them is noticed, and the line is named as long as it can be."""

from __future__ import annotations

import json
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tiercel.errors import ReceiptCorruptError, ReceiptError, ReceiptNotFoundError
from tiercel.explain.audit_file import (
    leaves_path,
    manifest_path,
    prove,
    verify_export,
    verify_proof,
    write_export,
)
from tiercel.explain.merkle import leaf_hash, root_of


def lines_of(n):
    return [
        json.dumps({"id": f"id{i}", "score": i / 7}, sort_keys=True, separators=(",", ":")).encode() for i in range(n)
    ]


@pytest.fixture
def export(tmp_path):
    """An export of 20 lines: (path, root)."""
    path = tmp_path / "audit.jsonl"
    return path, write_export(path, lines_of(20), {"model": "late"})["root"]


@pytest.mark.parametrize("n", [0, 1, 2, 3, 8, 100])
def test_an_export_verifies_and_every_line_can_be_proved(tmp_path, n):
    """Of any length: the export is found unchanged, and each line's proof stands for itself."""
    path = tmp_path / "audit.jsonl"
    manifest = write_export(path, iter(lines_of(n)), {"since_us": 5})
    assert (manifest["n_receipts"], manifest["since_us"]) == (n, 5)
    assert verify_export(path, root=manifest["root"]).n_receipts == n
    for i in range(n):
        proof = json.loads(json.dumps(prove(path, f"id{i}")))
        assert verify_proof(proof, root=manifest["root"]).id == f"id{i}"
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted(
        each.name for each in (path, leaves_path(path), manifest_path(path))
    )


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 1 << 20), bit=st.integers(0, 7))
def test_any_changed_bit_of_a_line_is_noticed_and_its_line_named(export, tmp_path, at, bit):
    """Whatever bit of the lines is changed, verification fails and names the line (or the first of two that became one)."""
    path, root = export
    data = bytearray(path.read_bytes())
    at %= len(data)
    number = data[:at].count(b"\n") + 1
    data[at] ^= 1 << bit
    edited = tmp_path / "edited.jsonl"
    edited.write_bytes(data)
    shutil.copy(leaves_path(path), leaves_path(edited))
    shutil.copy(manifest_path(path), manifest_path(edited))
    with pytest.raises(ReceiptCorruptError, match=f"line {number}\\b"):
        verify_export(edited, root=root)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        pytest.param(lambda lines: lines[:7] + lines[8:], "line 8: .* added or removed", id="a line removed"),
        pytest.param(
            lambda lines: [*lines[:7], b"{}", *lines[7:]], "line 8: .* no receipt any more", id="a line added"
        ),
        pytest.param(lambda lines: [lines[1], lines[0], *lines[2:]], "line 1: .* prediction id1", id="two swapped"),
        pytest.param(lambda lines: lines[:-1], "20 receipts, got 19: .* at its end", id="the last removed"),
        pytest.param(lambda lines: [*lines, lines[0]], "added at its end", id="one added at the end"),
        pytest.param(lambda lines: [], "20 receipts, got 0", id="all removed"),
    ],
)
def test_lines_that_came_and_went_are_told(export, edit, message):
    """Removed, added and swapped lines are noticed where they are."""
    path, _ = export
    path.write_bytes(b"".join(line + b"\n" for line in edit(path.read_bytes().splitlines())))
    with pytest.raises(ReceiptCorruptError, match=message):
        verify_export(path)


def test_whoever_edits_all_files_is_found_by_the_noted_root(export):
    """A line with its leaf changed is noticed by the manifest's root; with the manifest too, by the root noted elsewhere."""
    path, root = export
    line = path.read_bytes().splitlines()[4]
    forged = line.replace(b"id4", b"idX")
    path.write_bytes(path.read_bytes().replace(line, forged))
    leaves = leaves_path(path).read_bytes()
    leaves_path(path).write_bytes(leaves.replace(leaf_hash(line), leaf_hash(forged)))
    with pytest.raises(ReceiptCorruptError, match="was edited too"):
        verify_export(path)
    write_export(path, path.read_bytes().splitlines(), {})
    assert verify_export(path).n_receipts == 20
    with pytest.raises(ReceiptCorruptError, match="which was given"):
        verify_export(path, root=root)


def test_a_damaged_file_of_leaves_is_told_from_damaged_lines(export):
    """Where only the leaves were changed the lines are said to be whole."""
    path, _ = export
    leaves_path(path).write_bytes(b"x" * 33)
    with pytest.raises(ReceiptCorruptError, match=r"lines of .* are as they were exported"):
        verify_export(path)
    leaves_path(path).unlink()
    with pytest.raises(ReceiptCorruptError, match="Expected a part of an export"):
        verify_export(path)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"format": "tiercel-audit-1", "tree": "rfc6962-sha256"}'])
def test_a_manifest_that_is_none_is_refused(export, content):
    """Another file in the manifest's place, or none, is said to be none."""
    path, _ = export
    manifest_path(path).write_bytes(content)
    with pytest.raises(ReceiptCorruptError, match="manifest"):
        verify_export(path)
    manifest_path(path).unlink()
    with pytest.raises(ReceiptCorruptError, match="manifest"):
        verify_export(path)


def test_a_proof_that_was_edited_is_refused(export):
    """Whichever part of a proof is changed, it proves nothing."""
    path, _ = export
    proof = prove(path, "id7")
    for change in (
        {"receipt": proof["receipt"].replace("1.0", "1.5")},
        {"index": 6},
        {"index": 7.0},
        {"n_receipts": 1 << 30},
        {"n_receipts": 1 << 70},
        {"n_receipts": 20.5},
        {"n_receipts": "20"},
        {"path": proof["path"][1:]},
        {"path": ["zz"]},
        {"root": "0" * 64},
        {"id": "id8"},
        {"format": "another"},
    ):
        with pytest.raises(ReceiptCorruptError, match="Expected"):
            verify_proof({**proof, **change}, root=None)
    with pytest.raises(ReceiptCorruptError, match="which was given"):
        verify_proof(proof, root="1" * 64)
    with pytest.raises(ReceiptNotFoundError, match="20 of others"):
        prove(path, "id99")


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 9, 20])
def test_a_proof_binds_how_many_receipts_there_are(tmp_path, n):
    """No other count than the exported one verifies, also where the leaf's path is the same in trees of both sizes."""
    path = tmp_path / "audit.jsonl"
    root = write_export(path, lines_of(n), {})["root"]
    proof = prove(path, "id0")
    assert verify_proof(proof, root=root).n_receipts == n
    for other in range(1, 40):
        if other != n:
            with pytest.raises(ReceiptCorruptError, match="was edited"):
                verify_proof({**proof, "n_receipts": other}, root=root)


def test_an_export_of_format_1_is_still_read(tmp_path):
    """What was noted of an earlier export verifies it; a proof of a line of it says nothing of how many there are."""
    lines, path = lines_of(20), tmp_path / "audit.jsonl"
    root = root_of(map(leaf_hash, lines)).hex()
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    leaves_path(path).write_bytes(b"".join(map(leaf_hash, lines)))
    manifest = {"format": "tiercel-audit-1", "tree": "rfc6962-sha256", "n_receipts": 20, "root": root}
    manifest_path(path).write_text(json.dumps(manifest))
    assert verify_export(path, root=root).n_receipts == 20
    proof = prove(path, "id7")
    assert proof["format"] == "tiercel-audit-proof-1"
    assert verify_proof(proof, root=root).n_receipts is None
    for mixed in ({"format": "tiercel-audit-proof-2"}, {"tree": "rfc6962-sha256-sized"}):
        with pytest.raises(ReceiptCorruptError, match="another format"):
            verify_proof({**proof, **mixed})
    manifest_path(path).write_text(json.dumps({**manifest, "n_receipts": 19}))
    with pytest.raises(ReceiptCorruptError):
        verify_export(path)


def test_a_failed_export_leaves_nothing_and_replaces_nothing(export, tmp_path):
    """When lines cannot be read, or the disk refuses, what was there stays and nothing is left behind."""
    path, root = export

    def broken():
        yield b"{}"
        raise ReceiptCorruptError("damaged")

    with pytest.raises(ReceiptCorruptError, match="damaged"):
        write_export(path, broken(), {})
    assert verify_export(path, root=root).n_receipts == 20
    assert len(list(tmp_path.iterdir())) == 3
    with pytest.raises(ReceiptError, match="Expected room"):
        write_export(tmp_path / "missing" / "audit.jsonl", [], {})
