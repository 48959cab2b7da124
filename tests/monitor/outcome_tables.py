"""Tables `outcomes` as the prediction table gives them, for tests of what is computed from them."""

from __future__ import annotations

import duckdb
import numpy as np
import pyarrow as pa

SECOND_US, HOUR_US, DAY_US = 1_000_000, 3_600_000_000, 86_400_000_000
START_US = 1_767_225_600_000_000  # 2026-01-01


def make_outcomes(n=1000, *, connection=None, **columns):
    """A connection with the table `outcomes`, of labelled predictions of version 1 unless columns say otherwise.

    Columns are arrays of length n, or one value for all rows; `delay_us` gives label_time, and further names are features.
    """
    rng = np.random.default_rng(n)
    score = columns.get("score", rng.random(n))
    given = {
        "id": [f"{i:016x}" for i in range(n)], "row": 0, "model": "late", "version": 1, "arm": "champion",
        "tier": "realtime", "time": START_US + np.arange(n) * SECOND_US, "score": score,
        "label": (rng.random(n) < np.nan_to_num(np.array(spread(score, n), float), nan=0.5)).astype(float),
        "value": None, "degraded": None, "is_shadow": False, "delay_us": 60 * SECOND_US, **columns,
    }  # fmt: skip
    delay = spread(given.pop("delay_us"), n)
    times = spread(given["time"], n)
    given.setdefault(
        "label_time", [None if t is None or d is None else int(t) + int(d) for t, d in zip(times, delay, strict=True)]
    )
    types = {
        "id": pa.string(), "row": pa.int32(), "model": pa.string(), "version": pa.int64(), "arm": pa.string(),
        "tier": pa.string(), "time": pa.timestamp("us"), "score": pa.float64(), "label": pa.float64(),
        "label_time": pa.timestamp("us"), "value": pa.float64(), "degraded": pa.string(), "is_shadow": pa.bool_(),
    }  # fmt: skip
    table = pa.table({name: pa.array(spread(v, n), types.get(name)) for name, v in given.items()})
    connection = connection or duckdb.connect()
    connection.register("given", table)
    connection.execute("CREATE OR REPLACE TABLE outcomes AS SELECT * FROM given")
    return connection


def spread(value, n):
    """One value per row, as a list of Python values."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    return list(value) if isinstance(value, list | tuple) else [value] * n


def where(condition, yes, no=None):
    """A column that may hold nulls."""
    n = len(condition)
    return [a if c else b for c, a, b in zip(condition, spread(yes, n), spread(no, n), strict=True)]
