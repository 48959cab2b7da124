"""An audit export: receipts as lines of a file, and what proves that they are those that were exported.

    FILE                receipts, one line each
    FILE.leaves         32 bytes per line: its hash as a leaf
    FILE.manifest.json  how many, the root over their number and the leaves (`merkle.py`), what was asked for, the ledger's head

The root is what matters: noted elsewhere (printed, signed, in another system), it pins every line and how many there are. The
leaves say which line was edited, and make a proof about one line without the others. Everything is checked from these files
alone.

Exports of format 1 had the Merkle root itself as their root. They verify as they did, for their lines are there to be
counted; a proof of one line of them does not say of how many it is one.

Both ways memory is bounded by the longest line.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tiercel.errors import ReceiptCorruptError, ReceiptError, ReceiptNotFoundError
from tiercel.explain.merkle import (
    HASH_BYTES,
    RootBuilder,
    inclusion_path,
    leaf_hash,
    root_from_path,
    root_of,
    sized_root,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path
    from typing import BinaryIO

EXPORT_FORMAT = "tiercel-audit-2"
PROOF_FORMAT = "tiercel-audit-proof-2"
TREE = "rfc6962-sha256-sized"
#: Format and tree of exports and proofs of before, whose roots do not bind how many receipts there are.
EXPORT_FORMAT_1 = "tiercel-audit-1"
PROOF_FORMAT_1 = "tiercel-audit-proof-1"
TREE_1 = "rfc6962-sha256"
#: No receipt is longer: a record of the journal, its request and its numbers as text.
MAX_LINE_BYTES = 64 << 20
#: Nor are there more: a root binds their number in 8 bytes.
MAX_RECEIPTS = (1 << 63) - 1
_READ_LEAVES = 1 << 15


@dataclass(frozen=True)
class Verified:
    """What was checked: lines and root in hex; `id` of a proof's receipt. No `n_receipts`: a proof that does not bind them."""

    n_receipts: int | None
    root: str
    id: str | None = None


def leaves_path(path: Path) -> Path:
    """Where the hashes of an export's lines are."""
    return path.with_name(f"{path.name}.leaves")


def manifest_path(path: Path) -> Path:
    """Where an export's manifest is."""
    return path.with_name(f"{path.name}.manifest.json")


def write_export(path: Path, lines: Iterable[bytes], about: Mapping[str, Any]) -> dict[str, Any]:
    """Write an export; returns its manifest. Until all of it is written nothing has its name.

    Args:
        path: of the lines; the other two files stand beside it. What is there is replaced.
        lines: of `Receipt.to_line`.
        about: what was asked for, and whatever else the manifest is to say.

    Raises:
        ReceiptError: the disk refuses (`receipt_error`). Whatever `lines` raises; then nothing is written.
    """
    files = (path, leaves_path(path), manifest_path(path))
    unfinished = [each.with_name(f".{each.name}.part") for each in files]
    builder = RootBuilder()
    try:
        with unfinished[0].open("wb") as out, unfinished[1].open("wb") as leaves:
            for line in lines:
                out.write(line + b"\n")
                leaf = leaf_hash(line)
                leaves.write(leaf)
                builder.add(leaf)
            for stream in (out, leaves):
                stream.flush()
                os.fsync(stream.fileno())
        manifest = {
            "format": EXPORT_FORMAT,
            "tree": TREE,
            "n_receipts": builder.n_leaves,
            "root": _rooted(TREE, builder.n_leaves, builder.root()),
            **about,
        }
        with unfinished[2].open("wb") as out:
            out.write(json.dumps(manifest, indent=1, sort_keys=True).encode() + b"\n")
            out.flush()
            os.fsync(out.fileno())
        for made, named in zip(unfinished, files, strict=True):
            made.replace(named)
    except OSError as error:
        raise ReceiptError(f"Expected room for an export at {path}, got: {error}") from error
    finally:
        for made in unfinished:
            with contextlib.suppress(OSError):
                made.unlink(missing_ok=True)
    return manifest


def verify_export(path: Path, *, root: str | None = None) -> Verified:
    """Check an export, from its files alone.

    Args:
        path: of the lines.
        root: in hex, as it was noted elsewhere; None: the manifest's is believed.

    Raises:
        ReceiptCorruptError: which line was edited, or what else does not fit.
    """
    manifest = _read_manifest(path)
    n_expected, expected, tree = manifest["n_receipts"], manifest["root"], manifest["tree"]
    if root is not None and root.lower() != expected:
        raise ReceiptCorruptError(
            f"{manifest_path(path)}: expected the root {root}, which was given, got {expected}: another export, or the "
            f"manifest was edited"
        )
    leaves_fit = _root_of_leaves(path, tree) == (n_expected, expected)
    builder = RootBuilder()
    with _opened(path) as lines, _opened(leaves_path(path)) as leaves:
        for number, line in enumerate(_lines(path, lines), 1):
            leaf = leaf_hash(line)
            builder.add(leaf)
            if leaves_fit and leaf != leaves.read(HASH_BYTES):
                raise ReceiptCorruptError(_edited(path, number, n_expected, line))
    got = _rooted(tree, builder.n_leaves, builder.root())
    if builder.n_leaves == n_expected and got == expected:
        if not leaves_fit:
            raise ReceiptCorruptError(
                f"{leaves_path(path)}: expected the hashes of {n_expected} lines, got others. The lines of {path} are as "
                f"they were exported; this file can be made again from them"
            )
        return Verified(n_expected, expected)
    if builder.n_leaves != n_expected:
        raise ReceiptCorruptError(
            f"{path}: expected {n_expected} receipts, got {builder.n_leaves}: lines were added or removed"
            + (" at its end" if leaves_fit else "")
        )
    raise ReceiptCorruptError(
        f"{path}: expected the root {expected}, got {got}. {leaves_path(path).name} was edited too, so which "
        f"line it is cannot be told"
    )


def prove(path: Path, prediction_id: str) -> dict[str, Any]:
    """What proves to somebody who has the root alone that a receipt is in an export; see `verify_proof`.

    Of a large request, which has several receipts, the first.

    Raises:
        ReceiptNotFoundError: the export has no receipt of this prediction.
        ReceiptCorruptError: its files do not fit one another.
    """
    manifest = _read_manifest(path)
    wanted = f'"id":{json.dumps(prediction_id)}'.encode()
    with _opened(path) as lines:
        # Cheap before exact: other fields may hold the text too.
        found = next(
            (each for each in enumerate(_lines(path, lines)) if wanted in each[1] and _id_of(each[1]) == prediction_id),
            None,
        )
    n_leaves = manifest["n_receipts"]
    if found is None:
        raise ReceiptNotFoundError(
            f"Expected a receipt of prediction {prediction_id} in {path}, got {n_leaves} of others"
        )
    index, line = found
    if index >= n_leaves:
        raise ReceiptCorruptError(f"{path}: expected {n_leaves} receipts, got more: lines were added")
    with _opened(leaves_path(path)) as leaves:
        siblings = inclusion_path(lambda first, end: _read_leaves(leaves, first, end), index, n_leaves)
    proof = {
        "format": PROOF_FORMAT if manifest["tree"] == TREE else PROOF_FORMAT_1,
        "tree": manifest["tree"],
        "id": prediction_id,
        "index": index,
        "n_receipts": n_leaves,
        "path": [each.hex() for each in siblings],
        "root": manifest["root"],
        "receipt": line.decode("utf-8", "replace"),
    }
    verify_proof(proof)
    return proof


def verify_proof(proof: Mapping[str, Any], *, root: str | None = None) -> Verified:
    """Check that a proof's receipt leads to its root, and that the root is of as many receipts as the proof says.

    Args:
        proof: of `prove`.
        root: in hex, as it was noted elsewhere; None: the proof's own is believed.

    Raises:
        ReceiptCorruptError: it does not.
    """
    try:
        line, wanted = str(proof["receipt"]).encode(), str(proof["root"])
        path = [bytes.fromhex(each) for each in proof["path"]]
        index, n_leaves, named, tree = proof["index"], proof["n_receipts"], str(proof["id"]), proof["tree"]
        if type(index) is not int or type(n_leaves) is not int or not 0 <= index < n_leaves <= MAX_RECEIPTS:
            raise ValueError(f"place {index!r} of {n_leaves!r}")  # noqa: TRY301 - one handler for everything
        if (proof["format"], tree) not in {(PROOF_FORMAT, TREE), (PROOF_FORMAT_1, TREE_1)}:
            raise ValueError("another format")  # noqa: TRY301 - one handler for everything
    except (KeyError, TypeError, ValueError) as error:
        raise ReceiptCorruptError(f"Expected a proof of format {PROOF_FORMAT}, got: {error!r}") from error
    if root is not None and root.lower() != wanted:
        raise ReceiptCorruptError(f"Expected a proof for the root {root}, which was given, got one for {wanted}")
    found = root_from_path(leaf_hash(line), index, n_leaves, path)
    got = "nowhere" if found is None else _rooted(tree, n_leaves, found)
    if got != wanted or _id_of(line) != named:
        raise ReceiptCorruptError(
            f"Expected a path from the receipt of prediction {named} to the root {wanted}, got one to "
            f"{got}: the receipt or the proof was edited"
        )
    return Verified(n_leaves if tree == TREE else None, wanted, named)


def _rooted(tree: str, n_leaves: int, root: bytes) -> str:
    """What is noted of a tree, in hex."""
    return (sized_root(n_leaves, root) if tree == TREE else root).hex()


def _read_manifest(path: Path) -> dict[str, Any]:
    place = manifest_path(path)
    try:
        manifest = json.loads(place.read_bytes())
        if (manifest["format"], manifest["tree"]) not in {(EXPORT_FORMAT, TREE), (EXPORT_FORMAT_1, TREE_1)}:
            raise ValueError("another format")  # noqa: TRY301 - one handler for everything
        n, root = manifest["n_receipts"], manifest["root"]
        if type(n) is not int or n < 0 or len(bytes.fromhex(root)) != HASH_BYTES:
            raise ValueError("no number of receipts, or no root")  # noqa: TRY301
    except OSError as error:
        raise ReceiptCorruptError(f"Expected the manifest of an export at {place}, got: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ReceiptCorruptError(f"{place}: expected the manifest of an export, got: {error!r}") from error
    found: dict[str, Any] = manifest
    return found


def _root_of_leaves(path: Path, tree: str) -> tuple[int, str]:
    with _opened(leaves_path(path)) as leaves:
        n_bytes = os.fstat(leaves.fileno()).st_size
        n_leaves = n_bytes // HASH_BYTES
        root = root_of(_read_leaves(leaves, 0, n_leaves))
    return (n_leaves if n_bytes % HASH_BYTES == 0 else -1), _rooted(tree, n_leaves, root)


def _read_leaves(leaves: BinaryIO, first: int, end: int) -> Iterator[bytes]:
    for start in range(first, end, _READ_LEAVES):
        leaves.seek(start * HASH_BYTES)
        n = min(_READ_LEAVES, end - start)
        block = leaves.read(n * HASH_BYTES)
        if len(block) < n * HASH_BYTES:
            raise ReceiptCorruptError(f"{leaves.name}: expected {end} hashes, got fewer: it was cut short")
        for at in range(0, len(block), HASH_BYTES):
            yield block[at : at + HASH_BYTES]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        stream = path.open("rb")
    except OSError as error:
        raise ReceiptCorruptError(f"Expected a part of an export at {path}, got: {error.strerror}") from error
    with stream:
        yield stream


def _lines(path: Path, stream: BinaryIO) -> Iterator[bytes]:
    number = 0
    while line := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise ReceiptCorruptError(
                f"{path}, line {number}: expected a receipt, got more than {MAX_LINE_BYTES} bytes"
            )
        if not line.endswith(b"\n"):
            raise ReceiptCorruptError(f"{path}, line {number}: expected a whole line, got one that was cut short")
        yield line[:-1]


def _edited(path: Path, number: int, n_expected: int, line: bytes) -> str:
    if number > n_expected:
        return f"{path}: expected {n_expected} receipts, got more: lines were added at its end"
    named = _id_of(line)
    what = "it is no receipt any more" if named is None else f"it says that it is of prediction {named}"
    return f"{path}, line {number}: this line was edited, or lines before it were added or removed ({what})"


def _id_of(line: bytes) -> str | None:
    with contextlib.suppress(ValueError, TypeError, AttributeError, RecursionError):
        named = json.loads(line).get("id")
        return named if isinstance(named, str) else None
    return None
