"""Entity keys as bytes whose order is the order of the values.

    INT64   8 bytes big-endian, sign bit flipped
    STRING  UTF-8; every string but the last column is preceded by its length (u16, big-endian)

A stored key is one byte, the group's index in the service, and then the entity key. LMDB takes keys of at most 511 bytes.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tiercel.errors import RequestError, SourceError
from tiercel.types import DType, KeyColumn

if TYPE_CHECKING:
    from collections.abc import Sequence

#: liblmdb's compile-time default (`MDB_MAXKEYSIZE`), less the group byte.
MAX_ENTITY_KEY_BYTES = 510
#: The group index is one byte.
MAX_GROUPS = 256

_SIGN = 1 << 63
_U64 = struct.Struct(">Q")
_U16 = struct.Struct(">H")

KeyValue = int | str


def encode_key(keys: Sequence[KeyColumn], values: Sequence[KeyValue]) -> bytes:
    """The entity key of one entity, without the group byte.

    Args:
        keys: the join key columns, in schema order.
        values: one value per column.

    Raises:
        RequestError: `wrong_length`, `wrong_type`, `not_finite` (outside int64) or `key_too_long`.
    """
    if len(values) != len(keys):
        names = ", ".join(key.name for key in keys)
        raise RequestError(f"Expected {len(keys)} key values ({names}), got {len(values)}", code="wrong_length")
    last = len(keys) - 1
    parts: list[bytes] = []
    for i, (key, value) in enumerate(zip(keys, values, strict=True)):
        if key.dtype is DType.INT64:
            parts.append(_encode_int(key, value))
            continue
        text = _encode_text(key, value)
        if i != last:
            parts.append(_U16.pack(len(text)))
        parts.append(text)
    encoded = b"".join(parts)
    if len(encoded) > MAX_ENTITY_KEY_BYTES:
        names = ", ".join(key.name for key in keys)
        raise RequestError(
            f"Expected an entity key ({names}) of at most {MAX_ENTITY_KEY_BYTES} bytes, got {len(encoded)}",
            code="key_too_long",
        )
    return encoded


def _encode_int(key: KeyColumn, value: object) -> bytes:
    # bool is an int to Python; to a caller it is a mistake.
    if type(value) is not int:
        raise RequestError(f"Expected an integer for key '{key.name}', got {type(value).__name__}", code="wrong_type")
    if not -_SIGN <= value < _SIGN:
        raise RequestError(
            f"Expected a 64-bit integer for key '{key.name}', got one of {value.bit_length()} bits", code="not_finite"
        )
    return _U64.pack(value + _SIGN)


def _encode_text(key: KeyColumn, value: object) -> bytes:
    if not isinstance(value, str):
        raise RequestError(f"Expected a string for key '{key.name}', got {type(value).__name__}", code="wrong_type")
    try:
        text = value.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"Expected text for key '{key.name}', got a lone surrogate at {error.start}", code="wrong_type"
        ) from error
    if len(text) > MAX_ENTITY_KEY_BYTES:
        raise RequestError(
            f"Expected key '{key.name}' of at most {MAX_ENTITY_KEY_BYTES} bytes, got {len(text)}", code="key_too_long"
        )
    return text


def encode_keys(keys: Sequence[KeyColumn], columns: Sequence[Sequence[KeyValue | None]]) -> list[bytes | None]:
    """The entity keys of n entities; a null in any key column means "no such entity" and gives None.

    Args:
        keys: the join key columns, in schema order.
        columns: one sequence of n values per key column.

    Raises:
        RequestError: as `encode_key`, with the index of the bad row.
    """
    encoded: list[bytes | None] = []
    single_int = len(keys) == 1 and keys[0].dtype is DType.INT64
    pack, sign = _U64.pack, _SIGN
    for row, values in enumerate(zip(*columns, strict=True)):
        # PERF: one integer, the commonest key, without the general path: 0.25 us against 1.6 us.
        if single_int and type(value := values[0]) is int and -sign <= value < sign:
            encoded.append(pack(value + sign))
            continue
        given = [value for value in values if value is not None]
        if len(given) < len(keys):
            encoded.append(None)
            continue
        try:
            encoded.append(encode_key(keys, given))
        except RequestError as error:
            raise RequestError(f"{error} (row {row})", code=error.code, row=row) from None
    return encoded


def decode_key(keys: Sequence[KeyColumn], encoded: bytes) -> tuple[KeyValue, ...]:
    """Inverse of `encode_key`.

    Raises:
        ValueError: the bytes are not a key of these columns.
    """
    values: list[KeyValue] = []
    at, last = 0, len(keys) - 1
    for i, key in enumerate(keys):
        if key.dtype is DType.INT64:
            size = 8
        elif i == last:
            size = len(encoded) - at
        else:
            if at + 2 > len(encoded):
                raise ValueError(f"Key ends at byte {len(encoded)}, inside the length of '{key.name}'")
            (size,) = _U16.unpack_from(encoded, at)
            at += 2
        if at + size > len(encoded):
            raise ValueError(f"Key ends at byte {len(encoded)}, inside '{key.name}'")
        part = encoded[at : at + size]
        at += size
        values.append(_U64.unpack(part)[0] - _SIGN if key.dtype is DType.INT64 else part.decode())
    if at != len(encoded):
        raise ValueError(f"Key has {len(encoded) - at} bytes after its last column")
    return tuple(values)


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
            flipped = column.to_numpy(zero_copy_only=False).view(np.uint64) ^ np.uint64(_SIGN)
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
