"""Stored keys of whole tables; the bytes are those of `keys.encode_key`, which says what they are.

Apart from `keys`, because a worker encodes single keys only and needs no Arrow for that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tiercel.errors import SourceError
from tiercel.features.keys import MAX_ENTITY_KEY_BYTES, SIGN
from tiercel.types import DType, KeyColumn

if TYPE_CHECKING:
    from collections.abc import Sequence


def encode_key_columns(keys: Sequence[KeyColumn], table: pa.Table, *, group: int) -> pa.Array:
    """Stored keys (group byte included) of every row of `table`, in row order, as a large_binary array.

    Args:
        keys: the join key columns; `table` has a column of each name, int64 or string, without nulls.
        table: n rows.
        group: the group's index in its service, below `MAX_GROUPS`.

    Raises:
        SourceError: a column is absent, of another type, holds nulls or invalid UTF-8, or a key is too long.
    """
    n = table.num_rows
    parts = [_constant_bytes(bytes([group]), n)]
    for i, key in enumerate(keys):
        column = _key_column(key, table)
        if key.dtype is DType.INT64:
            flipped = column.to_numpy(zero_copy_only=False).view(np.uint64) ^ np.uint64(SIGN)
            parts.append(_fixed_bytes(flipped.astype(">u8").view(np.uint8).reshape(n, 8)))
            continue
        text = column.cast(pa.large_binary())
        if i != len(keys) - 1:
            lengths = pc.binary_length(text).to_numpy(zero_copy_only=False)
            _refuse_long(key.name, lengths, MAX_ENTITY_KEY_BYTES, column)
            parts.append(_fixed_bytes(lengths.astype(">u2").view(np.uint8).reshape(n, 2)))
        parts.append(text)
    separator = pa.scalar(b"", pa.large_binary())
    stored = pc.binary_join_element_wise(*parts, separator) if len(parts) > 1 else parts[0]
    lengths = pc.binary_length(stored).to_numpy(zero_copy_only=False)
    _refuse_long(", ".join(key.name for key in keys), lengths, MAX_ENTITY_KEY_BYTES + 1, None)
    return stored


def _key_column(key: KeyColumn, table: pa.Table) -> pa.Array:
    if key.name not in table.column_names:
        raise SourceError(f"Expected key column '{key.name}', got columns {', '.join(table.column_names)}")
    column = table[key.name].combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # zero chunks stay chunked in some pyarrow versions
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    if not (column.type == pa.int64() if key.dtype is DType.INT64 else is_text):
        raise SourceError(f"Expected {key.dtype} for key column '{key.name}', got {column.type}")
    if column.null_count:
        first = int(np.argmax(pc.is_null(column).to_numpy(zero_copy_only=False)))
        raise SourceError(
            f"Expected no nulls in key column '{key.name}', got {column.null_count} of {len(column)} rows (first: row {first}). "
            "Filter them in the view's SQL"
        )
    if is_text:
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as error:
            raise SourceError(f"Key column '{key.name}' is not valid UTF-8: {error}") from error
    return column


def _refuse_long(name: str, lengths: np.ndarray, limit: int, column: pa.Array | None) -> None:
    if len(lengths) == 0 or int(lengths.max()) <= limit:
        return
    row = int(np.argmax(lengths > limit))
    shown = "" if column is None else f" ({column[row].as_py()[:40]!r}...)"
    raise SourceError(
        f"Expected keys ({name}) of at most {MAX_ENTITY_KEY_BYTES} bytes, got {int(lengths[row])} in row {row}{shown}. "
        "Use a shorter key, such as a hash computed in the view's SQL"
    )


def _fixed_bytes(cells: np.ndarray) -> pa.Array:
    """uint8 (n, width) as n binary values."""
    n, width = cells.shape
    offsets = np.arange(n + 1, dtype=np.int64) * width
    data = np.ascontiguousarray(cells)
    return pa.Array.from_buffers(pa.large_binary(), n, [None, pa.py_buffer(offsets), pa.py_buffer(data)])


def _constant_bytes(value: bytes, n: int) -> pa.Array:
    return _fixed_bytes(np.tile(np.frombuffer(value, dtype=np.uint8), (n, 1)))
