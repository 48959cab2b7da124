"""Facts about a training file that tiercel did not make itself."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tiercel.errors import SourceError
from tiercel.types import TrainingSnapshot

if TYPE_CHECKING:
    from pathlib import Path


def snapshot_of_parquet(path: Path, timestamp_field: str) -> TrainingSnapshot:
    """Row count, time range and digest of a Parquet file; the range is absent when it has no such timestamp column.

    Raises:
        SourceError: not a Parquet file.
    """
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        metadata = pq.read_metadata(path)
        start_us = end_us = None
        schema = pq.read_schema(path)
        if timestamp_field in schema.names and pa.types.is_timestamp(schema.field(timestamp_field).type):
            column = pq.read_table(path, columns=[timestamp_field]).column(0)
            bounds = pc.min_max(column.cast(pa.timestamp("us"), safe=False).cast(pa.int64())).as_py()
            start_us, end_us = bounds["min"], bounds["max"]
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"Training data {path}: expected a Parquet file: {error}") from error
    return TrainingSnapshot(str(path), metadata.num_rows, digest, start_us, end_us)
