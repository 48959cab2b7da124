"""Columns that the prediction table must not show as they are: left out, or as salted hashes.

A hash is of a value's text under a salt that only this state directory has: equal values stay equal, so they can be counted
and joined, and nobody without the salt finds the value by trying all there are. The journal itself, which serving needs and
its own bound keeps short, has values as they were.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from typing import TYPE_CHECKING

import pyarrow as pa

from tiercel.monitor.durable import write_file

if TYPE_CHECKING:
    from pathlib import Path

    from tiercel.monitor.journal import PlanDeclaration
    from tiercel.monitor.prediction_columns import ColumnNames
    from tiercel.settings import MonitorSettings

_SALT_BYTES = 32
#: 80 bits: a billion different values share a hash with a chance of one in a million.
_HASH_BYTES = 10


def read_salt(path: Path) -> bytes:
    """The salt, made and durable when there is none. The caller holds the directory's lock.

    Raises:
        OSError: it cannot be read or written.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        write_file(path, secrets.token_bytes(_SALT_BYTES))
        return read_salt(path)
    with os.fdopen(descriptor, "rb") as stream:
        return stream.read(_SALT_BYTES)


def mask(
    table: pa.Table, plan: PlanDeclaration, names: ColumnNames, settings: MonitorSettings, salt: bytes
) -> pa.Table:
    """The table as it may be kept. Masks go by the names that keys and features have in the project."""
    originals = [*(name for name, _ in plan.join_keys), *plan.features]
    for original, name in zip(originals, (*names.keys, *names.features), strict=True):
        if original in settings.drop_columns:
            table = table.drop_columns([name])
        elif original in settings.hash_columns:
            table = table.set_column(table.column_names.index(name), name, _hashed(table.column(name), salt))
    return table


def unknown_masks(settings: MonitorSettings, known: set[str]) -> list[str]:
    """Masks that name no key and no feature of any model seen: misspelled, and then something is shown that should not be."""
    return sorted({*settings.hash_columns, *settings.drop_columns} - known)


def _hashed(column: pa.ChunkedArray, salt: bytes) -> pa.ChunkedArray:
    coded = column.combine_chunks().dictionary_encode()
    texts = coded.dictionary.cast(pa.string()).to_pylist()
    hashes = [
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), key=salt, digest_size=_HASH_BYTES).hexdigest()
        for text in texts
    ]
    return pa.chunked_array(
        [pa.DictionaryArray.from_arrays(coded.indices, pa.array(hashes, pa.string())).cast(pa.string())]
    )
