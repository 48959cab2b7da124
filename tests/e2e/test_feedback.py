"""A running server's feedback: accepted labels outlive kill -9, and predictions, labels and counts add up afterwards."""

from __future__ import annotations

import json
import os
import signal

import httpx
import pytest
from click.testing import CliRunner
from tests.support import projects

from tiercel.cli.main import main
from tiercel.client import Client
from tiercel.monitor.directories import worker_directories
from tiercel.monitor.labels import LabelStore
from tiercel.settings import MonitorSettings

ENTITIES = {"customer_id": 5, "shop": "a", "country": "nl"}


@pytest.fixture
def directory(tmp_path):
    directory = projects.ready_project(tmp_path / "project")
    (directory / "tiercel.toml").write_text('[project]\nname = "shop"\n[control]\nport = 0\n')
    return directory


def ask(directory, query):
    result = CliRunner().invoke(main, ["sql", query, "--json", "--project", str(directory)])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_predictions_and_their_labels_meet(directory):
    """What the server answered and was told is in `tiercel sql` while it runs, joined; a stop loses none of it."""
    with projects.running_server(directory) as (url, _), Client(url) as client:
        for n in range(20):
            reply = client.predict("fraud", entities=ENTITIES, features={"amount": float(n)})
            if n % 2:
                assert client.feedback(reply, n % 4 == 1, value=n).accepted == 1
        many = client.predict("fraud", entities=ENTITIES, features={"amount": [1.0, 2.0, 3.0]})
        assert client.feedback(many, [1, 0, 1]).accepted == 3
        running = ask(directory, "SELECT count(*) AS n, count(label) AS labelled, sum(value) AS money FROM outcomes")
        assert running == [{"n": 23, "labelled": 13, "money": 100.0}]
        for _ in range(5):
            last = client.predict("fraud", entities=ENTITIES, features={"amount": 1.0})
        client.feedback(last, 1)
    assert ask(directory, "SELECT count(*) AS n, count(label) AS labelled FROM outcomes") == [{"n": 28, "labelled": 14}]
    rows = ask(directory, 'SELECT amount, label FROM outcomes WHERE request_rows = 3 ORDER BY "row"')
    assert rows == [{"amount": 1.0, "label": 1.0}, {"amount": 2.0, "label": 0.0}, {"amount": 3.0, "label": 1.0}]


def test_accepted_labels_outlive_a_kill(directory):
    """A worker killed right after its reply has on disk what it accepted."""
    with projects.running_server(directory) as (url, _), httpx.Client(base_url=url) as client:
        ids = []
        for n in range(5):
            reply = client.post("/predict/fraud", json={"entities": ENTITIES, "features": {"amount": n}}).json()
            assert client.post("/feedback", json={"id": reply["id"], "label": 1}).status_code == 200
            ids.append(reply["id"])
        (worker,) = worker_directories(directory / ".tiercel" / "labels" / "incoming")
        os.kill(int(worker.name.split("-")[2]), signal.SIGKILL)
        store = LabelStore(directory / ".tiercel")
        assert store.collect(MonitorSettings(), waits=True) == 5
    assert [row["id"] for row in ask(directory, "SELECT id FROM outcomes WHERE label = 1 ORDER BY time")] == ids
