"""Row samples for the tests of whole rows."""

from __future__ import annotations

import functools

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


@functools.cache
def forest(n_features=4, n_trees=20):
    """A compiled forest whose leaves tell signs of the first two features' product, and the other features' sizes."""
    import lightgbm

    from tiercel.models.lightgbm_text import read_lightgbm

    rng = np.random.default_rng(99)
    rows = rng.normal(size=(4_000, n_features))
    target = 3 * np.sign(rows[:, 0] * rows[:, 1]) + rows[:, 2:].sum(axis=1)
    settings = {"num_leaves": 15, "verbosity": -1, "num_threads": 1, "deterministic": True, "force_row_wise": True}
    booster = lightgbm.train(settings, lightgbm.Dataset(rows, target), n_trees)
    return read_lightgbm(booster.model_to_string().encode()).body.compile()


def leaves_of(rows):
    """Leaves of rows in `forest()`."""
    return forest(rows.shape[1]).leaves(np.ascontiguousarray(rows, np.float32))
