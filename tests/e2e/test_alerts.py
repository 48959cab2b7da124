"""A running server that watches itself: what breaks, moves and recovers shows as what it is, and only what must wakes somebody."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.monitor.test_routing import Receiver
from tests.support import projects

from tiercel import Project

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

SETTINGS = """
[project]
name = "shop"
[server]
workers = 2
[control]
port = 0
[journal]
segment_bytes = 2097152
[monitor]
interval_s = 0.4
window_s = 1.2
webhook_url = "{url}"
webhook_secret_env = "HOOK_KEY"
"""
ROWS = 30


class Traffic:
    """Requests of thirty rows each without a pause worth mentioning, by customers from `first` on."""

    def __init__(self, url):
        self.url, self.first, self.n_rows, self.failed = url, 0, 0, []
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.run)

    def run(self):
        rng = np.random.default_rng(7)
        with httpx.Client(base_url=self.url, timeout=20) as client:
            while not self.stopping.wait(0.02):
                pick = rng.integers(0, 2, ROWS)
                body = {
                    "entities": {
                        "customer_id": rng.integers(self.first, projects.N_CUSTOMERS, ROWS).tolist(),
                        "shop": ["ab"[i] for i in pick],
                        "country": [("nl", "de")[i] for i in pick],
                    },
                    "features": {"amount": rng.random(ROWS).tolist()},
                }
                try:
                    reply = client.post("/predict/fraud", json=body)
                except httpx.TransportError:  # the worker was killed
                    continue
                if reply.status_code == 200:
                    self.n_rows += ROWS
                else:
                    self.failed.append(reply.text)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        self.thread.join(30)


def until(condition, what, seconds=60.0):
    """Poll; returns the first true value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited in vain: {what()}"
        time.sleep(0.05)
    return value


def break_feed(directory):
    """Half of the customers' orders come without values."""
    path = directory / "data" / "orders.parquet"
    table = pq.read_table(path)
    for name in ("n_orders", "mean_amount", "plan"):
        column = table[name].to_pylist()
        at = table.schema.get_field_index(name)
        broken = pa.array([None if i % 2 else value for i, value in enumerate(column)], table.schema.field(at).type)
        table = table.set_column(at, table.schema.field(at), broken)
    pq.write_table(table, path)


def materialize(directory):
    with Project(directory) as project:
        project.materialize()


def watchers(pid):
    """Pids of watching processes below a server."""
    found = []
    for child in projects.children(pid):
        for grandchild in projects.children(child):
            with contextlib.suppress(OSError):
                if b"tiercel.batch.watcher" in Path(f"/proc/{grandchild}/cmdline").read_bytes():
                    found.append(grandchild)
    return found


@pytest.fixture
def receiver():
    receiver = Receiver()
    yield receiver
    receiver.close()


def test_what_breaks_pages_and_what_moves_does_not(tmp_path, receiver):
    """A broken feed is one pipeline alert that is sent; other customers are a population alert that is not; both end."""
    directory = projects.ready_project(tmp_path / "project")
    (directory / "tiercel.toml").write_text(SETTINGS.format(url=receiver.url))
    whole = (directory / "data" / "orders.parquet").read_bytes()
    with projects.running_server(directory, env={"HOOK_KEY": "k"}) as (url, process), httpx.Client() as admin:

        def look(query=""):
            return admin.get(f"{process.admin_url}/api/alerts{query}").json()

        def find(alert_class, state="open"):
            found = [
                each for each in look("?all=1")["alerts"] if each["class"] == alert_class and each["state"] == state
            ]
            return found[0] if found else None

        def everything():
            return json.dumps([look("?all=1"), traffic.n_rows, traffic.failed[:3]], indent=1)

        with Traffic(url) as traffic:
            # Long enough for it to be known how much windows vary; a worker and the watch are killed on the way.
            until(lambda: look()["watch"]["turns"] >= 3, everything)
            os.kill(next(iter(projects.workers(process.pid).values())), signal.SIGKILL)
            (watcher,) = watchers(process.pid)
            os.kill(watcher, signal.SIGKILL)
            until(lambda: look()["watch"]["steps"].get("drift window", {"runs": 0})["runs"] >= 10, everything)
            assert look("?all=1")["alerts"] == [], everything()
            assert look()["watch"]["problems"] == []

            break_feed(directory)
            materialize(directory)
            alert = until(lambda: find("pipeline"), everything)
            assert (alert["cause"], alert["pages"]) == ("pipeline:source:orders", True)
            assert {each["name"] for each in alert["features"]} == {"n_orders", "mean_amount", "plan"}
            assert "3 of 3 features of source orders (view customer_orders)" in alert["message"]
            assert 0.3 < alert["effect"] < 0.7
            assert alert["n"] >= 100
            assert find("population") is None, everything()

            (directory / "data" / "orders.parquet").write_bytes(whole)
            materialize(directory)
            until(lambda: find("pipeline", "resolved"), everything)
            assert find("population") is None, everything()

            traffic.first = 150
            alert = until(lambda: find("population"), everything)
            assert (alert["cause"], alert["pages"], alert["model"]) == ("population:fraud:1", False, "fraud")
            assert "n_orders" in [each["name"] for each in alert["features"]]
            silenced = admin.post(
                f"{process.admin_url}/api/alerts/{alert['id']}/silence", json={"for_s": 3600, "by": "ann"}
            ).json()
            assert silenced["state"] == "silenced"

            traffic.first = 0
            until(lambda: find("population", "resolved"), everything)
        assert traffic.failed == []
        assert traffic.n_rows > 1000
        metrics = admin.get(f"{process.admin_url}/metrics").text
        assert 'tiercel_alerts{class="pipeline",model="fraud",state="open"} 0.0' in metrics
        assert "tiercel_watch_turns_total" in metrics
        until(lambda: len(receiver.requests) == 2, lambda: receiver.requests)
    sent = [json.loads(body) for _, _, body in receiver.requests]
    assert [(each["event"], each["class"]) for each in sent] == [("opened", "pipeline"), ("resolved", "pipeline")]
