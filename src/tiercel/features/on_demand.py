"""On-demand features of many rows: the columns of a training set, from exactly the inputs that serving would see.

Serving hands a compiled function float64 values: an Int64 rounded once, a Float32 as the float32 it is (a request's number
for a Float32 field is rounded to it first), a Bool as 0 or 1, what is missing as NaN. So does this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.types

from tiercel.errors import SourceError
from tiercel.features.transforms import compile_transforms
from tiercel.types import NOW_US, DType

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy.typing as npt

    from tiercel.types import ServiceSchema, TransformOutput

_ARROW = {DType.FLOAT32: pa.float32(), DType.FLOAT64: pa.float64(), DType.INT64: pa.int64(), DType.BOOL: pa.bool_()}


@dataclass(frozen=True)
class Outputs:
    """What a service's transforms compute, by name."""

    columns: dict[str, pa.ChunkedArray]  # of the declared types, null for NaN
    vectors: dict[str, npt.NDArray[np.float32]]


def compute_outputs(
    schema: ServiceSchema,
    columns: Mapping[str, pa.ChunkedArray],
    times_us: npt.NDArray[np.int64],
    cache_dir: Path | None,
) -> Outputs:
    """Run the service's transforms over columns; `times_us` is each row's `now_us`.

    Args:
        schema: of the service.
        columns: stored columns and request fields by name: typed, one value per row.
        times_us: int64 (n,).
        cache_dir: of compiled code.

    Raises:
        SourceError: an output that its declared type cannot hold; the message names the row.
    """
    found = Outputs({}, {})
    kinds = {field.name: field.dtype for field in schema.request_fields}
    for transform in compile_transforms(schema, cache_dir):
        inputs = np.empty((len(times_us), len(transform.schema.inputs)), dtype=np.float64)
        for place, name in enumerate(transform.schema.inputs):
            inputs[:, place] = times_us if name == NOW_US else _to_float64(columns[name], kinds.get(name))
        outputs = transform.apply(inputs)
        for place, output in enumerate(transform.schema.outputs):
            if output.name in schema.features:
                values = outputs[:, place]
                found.columns[output.name] = _typed(transform.schema.name, output, values)
                with np.errstate(over="ignore"):  # beyond float32 is infinity here as it is when serving
                    found.vectors[output.name] = values.astype(np.float32)
    return found


def to_float32(column: pa.ChunkedArray) -> npt.NDArray[np.float32]:
    """Numbers or booleans as the compiled reader casts them: straight to float32, NaN where null."""
    kind = column.type
    zero = pa.scalar(False if pa.types.is_boolean(kind) else 0, kind)
    # Through a typed zero: to_numpy would widen a nullable integer to float64 first and round twice.
    values = column.fill_null(zero).to_numpy()
    with np.errstate(over="ignore"):  # beyond float32 is infinity here as it is there
        vector = np.asarray(values).astype(np.float32)
    if column.null_count:
        vector[column.is_null().to_numpy()] = np.nan
    return vector


def _to_float64(column: pa.ChunkedArray, request_dtype: DType | None) -> npt.NDArray[np.float64]:
    """Each value as serving hands it to a compiled function."""
    if request_dtype is DType.FLOAT32 or pa.types.is_float32(column.type):
        return to_float32(column).astype(np.float64)
    zero = pa.scalar(False if pa.types.is_boolean(column.type) else 0, column.type)
    values = np.asarray(column.fill_null(zero).to_numpy()).astype(np.float64)
    if column.null_count:
        values[column.is_null().to_numpy()] = np.nan
    return values


def _typed(view: str, output: TransformOutput, values: npt.NDArray[np.float64]) -> pa.ChunkedArray:
    """The output in its declared type."""
    missing = np.isnan(values)
    if output.dtype is DType.INT64:
        fits = (np.trunc(values) == values) & (np.abs(values) < 2.0**63)
    elif output.dtype is DType.BOOL:
        fits = (values == 0.0) | (values == 1.0)
    else:
        fits = np.ones(len(values), dtype=np.bool_)
    wrong = np.flatnonzero(~(fits | missing))
    if len(wrong):
        row = int(wrong[0])
        raise SourceError(
            f"OnDemandFeatureView '{view}': output '{output.name}' is declared {output.dtype.value}, and for row {row} of the "
            f"labels the function returned {float(values[row])!r} ({len(wrong)} such rows). Round it in the function, or "
            "declare it float64."
        )
    with np.errstate(over="ignore"):
        exact = np.where(missing, 0.0, values).astype(_ARROW[output.dtype].to_pandas_dtype())
    return pa.chunked_array([pa.array(exact, mask=missing)])
