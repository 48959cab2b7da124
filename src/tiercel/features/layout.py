"""The packed row of one entity within a service.

    u32 LE   first four bytes of the group's fingerprint
    u32 LE   flags, 0
    i64 LE   event time of each view, microseconds; NO_EVENT_US where the view has no row for the entity
    bits     validity, one per column in schema order, least significant bit first, padded to 8 bytes; 1 = present
    columns  widest first (8, 4, 1 bytes), schema order within a width; a string is its int32 dictionary code

All numbers are little-endian. A missing value's bytes are zero, so equal rows are equal bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from tiercel.errors import BaseCorruptError, DefinitionError, SchemaMismatchError
from tiercel.features.keys import MAX_ENTITY_KEY_BYTES
from tiercel.types import DType, GroupSchema

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa

#: Key + row that still share a 4 KiB leaf page; wider rows get whole pages of their own (one more page fault per read).
INLINE_ENTRY_BYTES = 2030
#: Widest row accepted. LMDB could hold more, but a vector of 8,000 float64 is no longer one entity's features.
MAX_ROW_BYTES = 65_536
#: The reader keeps one state per view on its stack.
MAX_VIEWS = 256

_HEADER_BYTES = 8
_NUMPY = {DType.FLOAT32: "<f4", DType.FLOAT64: "<f8", DType.INT64: "<i8", DType.BOOL: "u1", DType.STRING: "<i4"}
_STRUCT = {DType.FLOAT32: "f", DType.FLOAT64: "d", DType.INT64: "q", DType.BOOL: "?", DType.STRING: "i"}

Value = float | int | bool | str


@dataclass(frozen=True)
class UnpackedRow:
    """One row, typed: `values` in `GroupSchema.columns` order with None for missing, `event_us` by view."""

    event_us: tuple[int, ...]
    values: tuple[Value | None, ...]


@dataclass(frozen=True)
class RowLayout:
    """Where everything of a group stands in its packed row. Offsets are bytes from the start of the row."""

    group: GroupSchema
    offsets: tuple[int, ...]  # by column, schema order
    stored_order: tuple[int, ...]  # column indices as they lie in the row
    bitmap_offset: int
    bitmap_bytes: int
    row_bytes: int

    @classmethod
    def of(cls, group: GroupSchema) -> RowLayout:
        """The layout of `group`'s rows.

        Raises:
            DefinitionError: the row would be wider than `MAX_ROW_BYTES`, or has more than `MAX_VIEWS` views.
        """
        if len(group.views) > MAX_VIEWS:
            raise DefinitionError(
                f"Expected at most {MAX_VIEWS} feature views of entity '{group.entity}' in one service, got {len(group.views)}. "
                "Combine views that share a source"
            )
        bitmap_offset = _HEADER_BYTES + 8 * len(group.views)
        bitmap_bytes = -(-len(group.columns) // 64) * 8
        order = sorted(range(len(group.columns)), key=lambda i: -group.columns[i].dtype.width)
        offsets = [0] * len(group.columns)
        at = bitmap_offset + bitmap_bytes
        for i in order:
            offsets[i] = at
            at += group.columns[i].dtype.width
        if at > MAX_ROW_BYTES:
            widest = ", ".join(f"{group.columns[i].name} ({group.columns[i].dtype})" for i in order[:5])
            raise DefinitionError(
                f"Expected a row of at most {MAX_ROW_BYTES} bytes for entity '{group.entity}', got {at} "
                f"({len(group.columns)} columns; widest: {widest}). Split the service, or store float32 instead of float64"
            )
        return cls(group, tuple(offsets), tuple(order), bitmap_offset, bitmap_bytes, at)

    @cached_property
    def fingerprint(self) -> int:
        """First four bytes of the group's fingerprint, as the little-endian u32 that stands in every row."""
        return int.from_bytes(bytes.fromhex(self.group.fingerprint[:8]), "little")

    @property
    def max_row_bytes(self) -> int:
        """Widest row that shares a 4 KiB page even under the longest key; wider rows cost one more page fault."""
        return INLINE_ENTRY_BYTES - (MAX_ENTITY_KEY_BYTES + 1)

    @property
    def is_inline(self) -> bool:
        """Whether rows share pages for keys of any length."""
        return self.row_bytes <= self.max_row_bytes

    @cached_property
    def record(self) -> np.dtype[np.void]:
        """A row's bytes as fields: "fingerprint", "flags", an event time `v<j>` per view, "validity", a value `c<i>` per column."""
        views, columns = self.group.views, self.group.columns
        return np.dtype(
            {
                "names": [
                    "fingerprint",
                    *(f"v{j}" for j in range(len(views))),
                    "validity",
                    *(f"c{i}" for i in range(len(columns))),
                ],
                "formats": [
                    "<u4",
                    *("<i8" for _ in views),
                    ("u1", (self.bitmap_bytes,)),
                    *(_NUMPY[column.dtype] for column in columns),
                ],
                "offsets": [
                    0,
                    *(_HEADER_BYTES + 8 * j for j in range(len(views))),
                    self.bitmap_offset,
                    *self.offsets,
                ],
                "itemsize": self.row_bytes,
            }
        )

    @cached_property
    def _struct(self) -> struct.Struct:
        columns = "".join(_STRUCT[self.group.columns[i].dtype] for i in self.stored_order)
        return struct.Struct(f"<II{len(self.group.views)}q{self.bitmap_bytes}s{columns}")

    @cached_property
    def _cells(self) -> tuple[tuple[int, int, str | None], ...]:
        """(column index, validity bit, name if it is a string) as the columns lie in the row."""
        columns = self.group.columns
        return tuple(
            (i, 1 << i, columns[i].name if columns[i].dtype is DType.STRING else None) for i in self.stored_order
        )

    def pack(self, table: pa.Table, *, n_categories: Mapping[str, int]) -> np.ndarray:
        """The packed rows of `table`, in order: uint8, shape (n, row_bytes).

        Args:
            table: every column of the group (strings as int32 codes; null = missing) and one int64 column
                `__event_us_<j>` per view (null = the view has no row). Other columns are ignored.
            n_categories: size of each string column's dictionary; codes must lie below it.

        Raises:
            SourceError: a column is absent, of another type, or holds a code outside its dictionary.
        """
        # Only here: a worker packs no rows, and needs no Arrow in its memory.
        from tiercel.features.row_packing import pack_rows

        return pack_rows(self, table, n_categories=n_categories)

    def unpack(self, row: bytes, *, categories: Mapping[str, Sequence[str]]) -> UnpackedRow:
        """One row's typed values; strings are looked up in `categories`.

        Raises:
            BaseCorruptError: another width, or a string code outside its dictionary.
            SchemaMismatchError: the row was packed under another schema.
        """
        if len(row) != self.row_bytes:
            raise BaseCorruptError(
                f"Expected a row of {self.row_bytes} bytes for entity '{self.group.entity}', got {len(row)}"
            )
        fingerprint, _flags, *rest = self._struct.unpack(row)
        if fingerprint != self.fingerprint:
            raise SchemaMismatchError(
                f"Expected rows of schema {self.fingerprint:08x} for entity '{self.group.entity}', got {fingerprint:08x}. "
                "Materialize the service again"
            )
        n_views = len(self.group.views)
        validity = int.from_bytes(rest[n_views], "little")
        values: list[Value | None] = [None] * len(self.group.columns)
        for (i, bit, name), stored in zip(self._cells, rest[n_views + 1 :], strict=True):
            if not validity & bit:
                continue
            if name is None:
                values[i] = stored
                continue
            names = categories[name]
            if not 0 <= stored < len(names):
                raise BaseCorruptError(f"Expected a code of '{name}' in 0..{len(names) - 1}, got {stored}")
            values[i] = names[stored]
        return UnpackedRow(tuple(rest[:n_views]), tuple(values))
