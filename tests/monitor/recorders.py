"""A small recorder, and rows for it; shared by the tests of monitoring."""

from __future__ import annotations

import numpy as np

from tiercel.monitor.recording import Recorder
from tiercel.settings import JournalSettings
from tiercel.types import DType, GroupSchema, KeyColumn, ServiceSchema, Signature, Task

PREFIX = "0123456789abcdef"
FEATURES = ("a", "b", "c")
SIGNATURE = Signature(FEATURES, Task.BINARY, ("no", "yes"))
SCHEMA = ServiceSchema(
    name="checkout",
    groups=(GroupSchema("customer", (KeyColumn("customer_id", DType.INT64), KeyColumn("shop", DType.STRING)), (), ()),),
    request_fields=(),
    features=FEATURES,
)
SMALL = JournalSettings(segment_bytes=1 << 21, max_bytes=1 << 30)


def make_recorder(state_dir, settings=SMALL, worker=0):
    return Recorder(state_dir, worker, PREFIX, settings)


def rows_of(n, seed=0):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, len(FEATURES))).astype(np.float32)
    rows[rng.random(rows.shape) < 0.1] = np.nan
    return rows, rng.random((n, 1))


def key_bytes(*keys):
    """As prediction.pxd says: per key uint16 length in native order, then the bytes of a last key part."""
    parts = []
    for key in keys:
        if key is None:
            parts.append(np.uint16(0xFFFF).tobytes())
            continue
        data = (key + (1 << 63)).to_bytes(8, "big") if isinstance(key, int) else key.encode()
        parts.append(np.uint16(len(data)).tobytes() + data)
    return b"".join(parts)
