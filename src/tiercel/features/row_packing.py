"""Rows of a table into the bytes that a base holds; `layout` says what these are, and reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tiercel.errors import SourceError
from tiercel.types import NO_EVENT_US, DType

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tiercel.features.layout import RowLayout

_ARROW = {
    DType.FLOAT32: pa.float32(),
    DType.FLOAT64: pa.float64(),
    DType.INT64: pa.int64(),
    DType.BOOL: pa.bool_(),
    DType.STRING: pa.int32(),
}


def pack_rows(layout: RowLayout, table: pa.Table, *, n_categories: Mapping[str, int]) -> np.ndarray:
    """See `RowLayout.pack`."""
    n = table.num_rows
    rows = np.zeros(n, dtype=layout.record)
    rows["fingerprint"] = layout.fingerprint
    for j, view in enumerate(layout.group.views):
        times = _column(table, f"__event_us_{j}", pa.int64(), f"event time of view '{view.name}'")
        rows[f"v{j}"] = pc.fill_null(times, NO_EVENT_US).to_numpy(zero_copy_only=False)
    validity = rows["validity"]
    for i, column in enumerate(layout.group.columns):
        cells = _column(table, column.name, _ARROW[column.dtype], f"feature '{column.name}'")
        bit = np.uint8(1 << (i % 8))
        if column.dtype is DType.STRING:
            _check_codes(column.name, cells, n_categories[column.name])
        if cells.null_count:
            validity[:, i // 8] |= pc.is_valid(cells).to_numpy(zero_copy_only=False).astype(np.uint8) * bit
            cells = pc.fill_null(cells, False if column.dtype is DType.BOOL else 0)
        else:
            validity[:, i // 8] |= bit
        rows[f"c{i}"] = cells.to_numpy(zero_copy_only=False)
    return rows.view(np.uint8).reshape(n, layout.row_bytes)


def _check_codes(name: str, codes: pa.Array, n_categories: int) -> None:
    low, high = pc.min_max(codes).as_py().values()
    if low is not None and not 0 <= low <= high < n_categories:
        raise SourceError(
            f"Expected codes of '{name}' in 0..{n_categories - 1} ({n_categories} strings), got {low}..{high}"
        )


def _column(table: pa.Table, name: str, dtype: pa.DataType, what: str) -> pa.Array:
    index = table.schema.get_field_index(name)  # -1 also when the name is there twice
    if index < 0:
        raise SourceError(f"Expected one column '{name}' ({what}), got {', '.join(table.column_names)}")
    column = table.column(index)
    if column.type != dtype:
        raise SourceError(f"Expected {dtype} for {what}, got {column.type}")
    combined = column.combine_chunks()
    if isinstance(combined, pa.ChunkedArray):  # zero chunks stay chunked in some pyarrow versions
        combined = pa.concat_arrays(combined.chunks) if combined.num_chunks else pa.array([], dtype)
    return combined
