"""A small project on disk, made in a second: two entities, request features, a trained forest, a running server."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tiercel import Project

START = datetime(2026, 1, 1, tzinfo=UTC)
N_CUSTOMERS = 200
FEATURES_PY = """
from tiercel import (
    Entity, FeatureService, FeatureView, Field, Float32, Int64, ParquetSource, RequestSource, String
)

customer = Entity("customer", join_keys=["customer_id"], value_type=Int64)
shop = Entity("shop", join_keys=["shop", "country"])
orders = ParquetSource("orders", path="data/orders.parquet", timestamp_field="ordered_at")
shops = ParquetSource("shops", path="data/shops.parquet")

customer_orders = FeatureView(
    "customer_orders", entities=[customer], source=orders,
    schema=[Field("n_orders", Int64), Field("mean_amount", Float32), Field("plan", String)],
)
shop_facts = FeatureView("shop_facts", entities=[shop], source=shops, schema=[Field("staff", Int64)])
basket = RequestSource("basket", schema=[Field("amount", Float32)])
checkout = FeatureService("checkout", features=[customer_orders, basket, shop_facts])
"""


def write_project(directory, *, seed=0, shift=0.0):
    """The project's files; `shift` moves every customer's values, so that a new base can be told from the old."""
    (directory / "data").mkdir(parents=True, exist_ok=True)
    (directory / "tiercel.toml").write_text('[project]\nname = "shop"\n')
    (directory / "features.py").write_text(FEATURES_PY)
    rng = np.random.default_rng(seed)
    orders = pa.table(
        {
            "customer_id": pa.array(np.arange(N_CUSTOMERS)),
            "n_orders": pa.array([None if i % 17 == 0 else i for i in range(N_CUSTOMERS)], pa.int64()),
            "mean_amount": pa.array((rng.random(N_CUSTOMERS) + shift).astype(np.float32)),
            "plan": pa.array([("free", "pro", None)[(i + int(shift > 0)) % 3] for i in range(N_CUSTOMERS)]),
            "ordered_at": pa.array([START] * N_CUSTOMERS, pa.timestamp("us", "UTC")),
        }
    )
    pq.write_table(orders, directory / "data" / "orders.parquet")
    shops = pa.table({"shop": ["a", "b"], "country": ["nl", "de"], "staff": pa.array([3, 5], pa.int64())})
    pq.write_table(shops, directory / "data" / "shops.parquet")
    return directory


def labels(n=600, seed=1):
    """Label rows for the service, with what a model can learn from."""
    rng = np.random.default_rng(seed)
    amount = rng.random(n).astype(np.float32)
    customer = rng.integers(0, N_CUSTOMERS, n)
    pick = rng.integers(0, 2, n)
    return pa.table(
        {
            "customer_id": customer,
            "shop": [("a", "b")[i] for i in pick],
            "country": [("nl", "de")[i] for i in pick],
            "amount": amount,
            "event_timestamp": pa.array([START + timedelta(days=1)] * n, pa.timestamp("us", "UTC")),
            "label": ((amount + (customer % 3) / 3 + 0.2 * rng.random(n)) > 0.9).astype(np.int64),
        }
    )


def train(project, *, seed=0, alias=None, measure=False, **options):
    """Register a LightGBM classifier trained on `labels()`; returns (version, model, training set).

    Measuring takes most of a second, which the many tests that only need some version do not have.
    """
    import lightgbm

    training_set = project.get_historical_features(labels(), "checkout", label_columns=["label"])
    model = lightgbm.LGBMClassifier(n_estimators=8, num_leaves=7, random_state=seed, verbose=-1, n_jobs=1, **options)
    model.fit(training_set.X, training_set.label())
    version = project.register(
        model, name="fraud", training_set=training_set, alias=alias, metrics={"auc": 0.5}, measure=measure
    )
    return version, model, training_set


def ready_project(directory):
    """Applied, materialized, with a champion."""
    with Project(write_project(directory)) as project:
        project.apply()
        project.materialize()
        train(project, alias="champion")
    return directory


@contextlib.contextmanager
def running_server(directory, *, env=None):
    """`tiercel serve` on a free port; yields (url, process) and ends it with SIGTERM. `process.admin_url` is its admin port."""
    command = [sys.executable, "-m", "tiercel", "serve", "--project", str(directory), "--port", "0"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **(env or {})}
    )
    try:
        line = process.stdout.readline()
        found = re.search(r"http://\S+:\d+", line)
        if found is None:
            raise AssertionError(f"the server did not start: {line!r} {process.stderr.read()}")
        process.admin_url = (re.findall(r"http://\S+:\d+", line)[1:] or [None])[0]
        yield found[0], process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def children(pid):
    """Pids of a process's children (Linux)."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def workers(pid):
    """Pids of a server's workers, by name (Linux)."""
    found = {}
    for child in children(pid):
        with contextlib.suppress(OSError):
            arguments = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            if b"tiercel.http.worker" in arguments and b"control" not in arguments:
                found[arguments[-3].decode()] = child
    return found
