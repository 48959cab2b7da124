"""Strict models outlive kill -9: whatever a client was told is in the journal, and replays."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import threading
import time

import httpx
import pytest
from tests.support import projects

from tiercel.monitor.journal import read_journal
from tiercel.project import Project
from tiercel.serving.receipts import find_receipt
from tiercel.serving.replaying import Replayer

CONFIG = '[project]\nname = "shop"\n[control]\nenabled = false\n[models.fraud.explain]\naudit = "strict"\n'
KILLS = 5


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = projects.ready_project(tmp_path_factory.mktemp("strict") / "project")
    (directory / "tiercel.toml").write_text(CONFIG)
    return directory


def ask_on(url, told, stop, *, chunked):
    """Ask until the server is gone, or the next one has taken over; every id that came back is told."""
    number = 0
    with httpx.Client(base_url=url) as client:
        while not stop.is_set():
            number += 1
            body = {
                "entities": {"customer_id": number % projects.N_CUSTOMERS, "shop": "a", "country": "nl"},
                "features": {"amount": number / 1000},
            }
            content = json.dumps(body).encode()
            try:
                reply = client.post(
                    "/predict/fraud",
                    content=iter([content]) if chunked else content,
                    headers={"content-type": "application/json"},
                )
            except httpx.HTTPError:
                return
            if reply.status_code != 200:
                return
            told.append(reply.json()["id"])


def test_nothing_acknowledged_is_missing_after_kill_9(directory):
    """Killed at random moments under load on both paths, a strict worker leaves a record of every reply that was read."""
    seed = random.SystemRandom().randrange(1 << 32)
    chance = random.Random(seed)
    told, killed = [], set()
    with projects.running_server(directory) as (url, process):
        for _ in range(KILLS):
            deadline, stop = time.monotonic() + 30, threading.Event()
            while not (workers := projects.workers(process.pid)) or killed & set(workers.values()):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            before = len(told)
            threads = [
                threading.Thread(target=ask_on, args=(url, told, stop), kwargs={"chunked": i % 2 == 1})
                for i in range(6)
            ]
            for thread in threads:
                thread.start()
            while len(told) < before + 20:
                assert time.monotonic() < deadline
                time.sleep(0.005)
            time.sleep(chance.random() * 0.05)
            for pid in workers.values():
                os.kill(pid, signal.SIGKILL)
            killed |= set(workers.values())
            stop.set()  # for who had not connected yet, and would go on with the next worker
            for thread in threads:
                thread.join(30)
    recorded = {record.id for record in read_journal(directory / ".tiercel" / "journal")}
    assert len(told) >= 20 * KILLS
    assert set(told) <= recorded, f"seed {seed}"
    with Project(directory) as project:
        replayer = Replayer(project.settings, project.registry)
        for prediction_id in chance.sample(told, 10):
            assert replayer.replay(find_receipt(project.settings, prediction_id)).verdict == "equal"


def test_what_is_answered_after_the_journal_was_removed_is_recorded(directory):
    """With its journal removed under it, a strict server refuses until it has another one; what it answers then is found."""
    statuses, told = [], []
    body = {"entities": {"customer_id": 1, "shop": "a", "country": "nl"}, "features": {"amount": 0.5}}
    with projects.running_server(directory) as (url, _), httpx.Client(base_url=url) as client:
        assert client.post("/predict/fraud", json=body).status_code == 200
        time.sleep(0.3)  # the next segment is ready, and will be lost too
        # At once: file by file, the server would make another one meanwhile.
        shutil.rmtree((directory / ".tiercel" / "journal").rename(directory / "removed"))
        deadline = time.monotonic() + 30
        while len(told) < 20:
            assert time.monotonic() < deadline
            reply = client.post("/predict/fraud", json=body)
            statuses.append(reply.status_code)
            if reply.status_code == 200:
                told.append(reply.json()["id"])
            else:
                assert reply.json()["code"] == "audit_unavailable"
                time.sleep(0.02)
        assert client.get("/readyz").json()["problems"] == []
    assert set(statuses) <= {200, 503}
    assert set(told) <= {record.id for record in read_journal(directory / ".tiercel" / "journal")}
