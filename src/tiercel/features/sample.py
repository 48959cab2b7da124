"""Entities that a published base holds, to ask about when something is measured."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import lmdb

from tiercel.features.keys import decode_key
from tiercel.features.manifest import read_manifest

if TYPE_CHECKING:
    from pathlib import Path

    from tiercel.features.keys import KeyValue

_DIGITS = 16  # leading bytes of a key that place it between the first and the last of its group


def sample_entities(directory: Path, n_rows: int) -> list[dict[str, KeyValue | None]]:
    """Join keys of up to `n_rows` rows spread over the current base of the service directory `directory`.

    Each entity is drawn by itself; where two entities share a join key, the one with more keys decides it; one without
    rows has null keys, which name no entity. Call it before the base is opened for reading in this process: LMDB forbids to
    open one file twice at a time.

    Raises:
        NotMaterializedError, BaseCorruptError: there is no base.
        StoreError, lmdb.Error: it cannot be read.
    """
    manifest = read_manifest(directory)
    groups = manifest.schema.groups
    drawn: list[list[tuple[KeyValue, ...]]] = []
    # SAFETY: read-only and without a lock file: a sealed base never changes, and this process opens it nowhere else now.
    with (
        lmdb.open(
            os.fspath(directory / manifest.base_name), subdir=False, readonly=True, lock=False, create=False
        ) as env,
        env.begin() as transaction,
        transaction.cursor() as cursor,
    ):
        for index, group in enumerate(groups):
            drawn.append([decode_key(group.keys, key) for key in _spread(cursor, index, n_rows)])
    order = sorted(range(len(groups)), key=lambda index: -len(groups[index].keys))
    rows: list[dict[str, KeyValue | None]] = []
    for row in range(max(map(len, drawn), default=0)):
        keys: dict[str, KeyValue | None] = {}
        for index in order:
            columns, found = groups[index].keys, drawn[index]
            values = found[row % len(found)] if found else (None,) * len(columns)
            for column, value in zip(columns, values, strict=True):
                keys.setdefault(column.name, value)
        rows.append(keys)
    return rows


def _spread(cursor: Any, index: int, n_rows: int) -> list[bytes]:
    """Up to `n_rows` entity keys of a group, at even distances between its first and its last."""
    prefix = bytes([index])
    if not cursor.set_range(prefix) or not cursor.key().startswith(prefix):
        return []
    first = cursor.key()[1:]
    found = cursor.set_range(bytes([index + 1])) if index < 255 else False
    if not (cursor.prev() if found else cursor.last()):
        return [first]
    low, high = (int.from_bytes(key[:_DIGITS].ljust(_DIGITS, b"\0"), "big") for key in (first, bytes(cursor.key())[1:]))
    keys: dict[bytes, None] = {first: None}
    for step in range(1, n_rows):
        point = low + (high - low) * step // n_rows
        if cursor.set_range(prefix + point.to_bytes(_DIGITS, "big")) and cursor.key().startswith(prefix):
            keys[bytes(cursor.key())[1:]] = None
    # Texts leave most of that distance empty, so several points fall on one key. Those that follow it make up for them.
    n_next = -(-n_rows // len(keys)) if len(keys) < n_rows else 1
    for key in list(keys):
        cursor.set_key(prefix + key)
        for _ in range(n_next - 1):
            if not cursor.next() or not cursor.key().startswith(prefix):
                break
            keys[bytes(cursor.key())[1:]] = None
    return list(keys)[:n_rows]
