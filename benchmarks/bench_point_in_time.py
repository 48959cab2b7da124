"""Point-in-time join: label rows with the newest of many feature rows, against plain DuckDB, pandas and polars.

Everyone reads the same Parquet files and makes one float32 matrix in label order; matrices are compared before times
are printed. `tiercel` is a whole `get_historical_features`, with and without the view computed before. Plain DuckDB is
its floor: the bare ASOF join of a file without duplicates or late rows, with nothing checked, no ttl and no digest.

    python -m benchmarks point_in_time [--smoke] [--labels 1000000] [--rows 10000000] [--keys 100000]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.machine import describe
from tiercel.features.apply import apply
from tiercel.features.compute import compute_views
from tiercel.features.sources import ComputeLimits
from tiercel.features.training import get_historical_features

COLUMNS = [f"f{index}" for index in range(5)]
SPAN_US = 30 * 86_400_000_000
PROJECT = f"""
from tiercel import *
source = ParquetSource("events", "events.parquet", timestamp_field="ts")
view = FeatureView("v", [Entity("id", value_type=Int64)], [Field(n, Float32) for n in {COLUMNS!r}], source=source)
service = FeatureService("s", [view])
"""


def write_workload(directory: Path, n_labels: int, n_rows: int, n_keys: int) -> None:
    """Random events and labels over 30 days; event times are unique per key, so every contender has one right answer."""
    random = np.random.default_rng(7)
    keys = random.integers(0, n_keys, n_rows)
    # Even microseconds for events, odd for labels: no label shares its time with an event.
    times = random.permutation(SPAN_US // 2 // n_rows * np.arange(n_rows)) * 2
    events = {"id": pa.array(keys), "ts": _timestamps(times)}
    events |= {name: pa.array(random.normal(size=n_rows).astype(np.float32)) for name in COLUMNS}
    pq.write_table(pa.table(events), directory / "events.parquet")
    labels = {
        "id": pa.array(random.integers(0, n_keys, n_labels)),
        "event_timestamp": _timestamps(random.integers(0, SPAN_US // 2, n_labels) * 2 + 1),
    }
    pq.write_table(pa.table(labels), directory / "labels.parquet")
    (directory / "features.py").write_text(PROJECT)


def run_duckdb(directory: Path, threads: int) -> np.ndarray:
    connection = duckdb.connect(config={"threads": threads})
    columns = ", ".join(f"e.{name}" for name in COLUMNS)
    table = connection.sql(
        f"SELECT {columns} FROM (SELECT *, row_number() OVER () AS i FROM '{directory}/labels.parquet') l "
        f"ASOF LEFT JOIN '{directory}/events.parquet' e ON l.id = e.id AND l.event_timestamp >= e.ts ORDER BY l.i"
    ).to_arrow_table()
    return _matrix(table)


def run_pandas(directory: Path, threads: int) -> np.ndarray:
    import pandas as pd

    labels = pq.read_table(directory / "labels.parquet").to_pandas().reset_index().sort_values("event_timestamp")
    events = pq.read_table(directory / "events.parquet").to_pandas().sort_values("ts")
    joined = pd.merge_asof(labels, events, left_on="event_timestamp", right_on="ts", by="id").sort_values("index")
    return joined[COLUMNS].to_numpy(dtype=np.float32)


def run_polars(directory: Path, threads: int) -> np.ndarray:
    import polars as pl

    labels = pl.read_parquet(directory / "labels.parquet").with_row_index("i").sort("event_timestamp")
    events = pl.read_parquet(directory / "events.parquet").sort("ts")
    joined = labels.join_asof(events, left_on="event_timestamp", right_on="ts", by="id").sort("i")
    return joined.select(COLUMNS).to_numpy().astype(np.float32)


def _timestamps(times: np.ndarray) -> pa.Array:
    return pa.array(times, pa.int64()).cast(pa.timestamp("us", tz="UTC"))


def _matrix(table: pa.Table) -> np.ndarray:
    columns = [table.column(name).to_numpy() for name in COLUMNS]
    return np.column_stack([np.asarray(column, dtype=np.float32) for column in columns])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--labels", type=int, default=1_000_000)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)
    if options.smoke:
        options.labels, options.rows, options.keys, options.repeat = 20_000, 100_000, 1_000, 1
    print(describe("duckdb", "pyarrow", "pandas", "polars"))
    print(
        f"{options.labels:,} labels x {options.rows:,} rows of {len(COLUMNS)} float32, {options.keys:,} keys, {options.threads} threads"
    )
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        write_workload(directory, options.labels, options.rows, options.keys)
        state, limits = directory / ".tiercel", ComputeLimits(memory="8GB", threads=options.threads)
        catalog = apply(directory, state).catalog
        start = time.perf_counter()
        compute_views(catalog, state, limits=limits)
        print(f"computing the view once (types, duplicates, sort, digest): {time.perf_counter() - start:.2f} s")

        def run_tiercel(directory: Path, threads: int) -> np.ndarray:
            return get_historical_features(catalog, state, directory / "labels.parquet", "s", limits=limits).X

        contenders = {"tiercel": run_tiercel, "duckdb ASOF": run_duckdb}
        contenders |= {name: run for name, run in (("pandas merge_asof", run_pandas), ("polars join_asof", run_polars))
                       if find_spec(name.split()[0])}  # fmt: skip
        expected, seconds = None, {name: [] for name in contenders}
        for _ in range(options.repeat):  # interleaved, so that a noisy minute hits everyone
            for name, run in contenders.items():
                start = time.perf_counter()
                answer = run(directory, options.threads)
                seconds[name].append(time.perf_counter() - start)
                expected = answer if expected is None else expected
                np.testing.assert_array_equal(answer, expected, err_msg=f"{name} answers differently")
    print("all answers equal")
    for name, taken in seconds.items():
        median = statistics.median(taken)
        print(
            f"{name:20s} median {median:7.2f} s   min {min(taken):7.2f}   max {max(taken):7.2f}   {options.labels / median:12,.0f} labels/s"
        )


if __name__ == "__main__":
    main()
