"""Row samples for the tests of whole rows."""

from __future__ import annotations

import numpy as np

from tiercel.monitor.exchanges import Units
from tiercel.monitor.row_samples import RowSample

HOUR_US = 3_600_000_000


def sample(values, requests=None, *, begin_us=HOUR_US):
    """Rows as `draw_rows` gives them; a request each unless told otherwise."""
    values = np.asarray(values, np.float64)
    requests = np.arange(len(values)) if requests is None else np.asarray(requests)
    return RowSample(values, requests, begin_us, begin_us + HOUR_US, len(values))


def correlated(n, correlation, rng, n_features=4):
    """Standard normal features; the first two have this correlation, so only it can tell two such samples apart."""
    rows = rng.normal(size=(n, n_features))
    rows[:, 1] = correlation * rows[:, 0] + np.sqrt(1 - correlation**2) * rows[:, 1]
    return rows


def clustered(n_requests, size, rng, n_features=3):
    """Requests of `size` rows that are all but equal; returns rows and their requests."""
    rows = np.repeat(rng.normal(size=(n_requests, n_features)), size, axis=0)
    return rows + rng.normal(0, 0.01, rows.shape), np.repeat(np.arange(n_requests), size)


def units(n_beside, n_window):
    """A request per row."""
    return Units.of(np.arange(n_beside), np.arange(n_window))
