"""A real server process over a real port: answers, hot swaps under load, graceful stop, hostile peers."""

from __future__ import annotations

import concurrent.futures
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest
from tests.support import projects

from tiercel import AsyncClient, Client, Project
from tiercel.errors import BadRequestError, ServerNotFoundError

ENTITIES = {"customer_id": 5, "shop": "a", "country": "nl"}
FEATURES = {"amount": 0.5}
BODY = json.dumps({"entities": ENTITIES, "features": FEATURES}).encode()


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return projects.ready_project(tmp_path_factory.mktemp("template") / "project")


@pytest.fixture(scope="module")
def shared(template, tmp_path_factory):
    """One server for the tests that change nothing."""
    directory = tmp_path_factory.mktemp("shared") / "project"
    shutil.copytree(template, directory)
    with projects.running_server(directory) as (url, process):
        yield url, process, directory


@pytest.fixture
def directory(template, tmp_path):
    """A project to change at will."""
    shutil.copytree(template, tmp_path / "project")
    return tmp_path / "project"


def wait_until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@pytest.mark.parametrize("wire", ["json", "msgpack"])
def test_client_gets_the_model_answer(shared, wire):
    """What the client receives is what the training library says of the same vector."""
    import numpy as np

    url, _, directory = shared
    with Project(directory) as project:
        version, model, training_set = projects.train(project)
        assert version.reused
    rows = training_set.to_arrow().slice(0, 50).to_pandas()
    with Client(url, format=wire) as client:
        predictions = client.predict(
            "fraud",
            entities={key: rows[key].tolist() for key in ENTITIES},
            features={"amount": rows["amount"].tolist()},
        )
        one = client.predict("fraud", entities=ENTITIES, features=FEATURES)
    expected = model.predict_proba(np.asarray(training_set.X[:50]))[:, 1]
    np.testing.assert_allclose(predictions.scores, expected, rtol=1e-12)
    assert (one.model, one.version, one.tier) == ("fraud", 1, "realtime")


def test_async_client(shared):
    """The asynchronous client gets the same answers, many at a time."""
    import asyncio

    async def ask():
        async with AsyncClient(shared[0]) as client:
            return await asyncio.gather(
                *(
                    client.predict("fraud", entities={**ENTITIES, "customer_id": i}, features=FEATURES)
                    for i in range(50)
                )
            )

    replies = asyncio.run(ask())
    with Client(shared[0]) as client:
        for i, reply in enumerate(replies):
            again = client.predict("fraud", entities={**ENTITIES, "customer_id": i}, features=FEATURES)
            assert reply.score == again.score


def test_features_over_http(shared):
    """Stored features come back typed, with text as text."""
    with Client(shared[0]) as client:
        rows = client.features("checkout", {"customer_id": [1, 17], "shop": "a", "country": "nl"})
    first, second = rows.to_dicts()
    assert (first["n_orders"], first["plan"], first["staff"]) == (1, "pro", 3)
    assert second["n_orders"] is None


def test_errors_are_typed(shared):
    """The client raises what the server refused, with its code and row."""
    with Client(shared[0]) as client:
        with pytest.raises(ServerNotFoundError) as caught:
            client.predict("none", entities=ENTITIES, features=FEATURES)
        assert caught.value.code == "model_not_found"
        with pytest.raises(ServerNotFoundError) as caught:
            client.predict("fraud", entities={**ENTITIES, "customer_id": [1, 10**9]}, features=FEATURES)
        assert (caught.value.code, caught.value.row) == ("entity_not_found", 1)
        with pytest.raises(BadRequestError) as caught:
            client.predict("fraud", entities=ENTITIES, features={"amount": "much"})
        assert caught.value.code == "wrong_type"
        with pytest.raises(ServerNotFoundError) as caught:
            client.predict("fraud", version=99, entities=ENTITIES, features=FEATURES)
        assert caught.value.code == "version_not_found"


class Load:
    """Threads that keep asking until told to stop; every answer is kept, every failure too."""

    def __init__(self, url, n_threads=4):
        self.url, self.stop, self.replies, self.failures = url, threading.Event(), [], []
        self.pool = concurrent.futures.ThreadPoolExecutor(n_threads)
        self.tasks = [self.pool.submit(self.run) for _ in range(n_threads)]

    def run(self):
        with Client(self.url) as client:
            while not self.stop.is_set():
                try:
                    reply = client.predict("fraud", entities=ENTITIES, features=FEATURES)
                    self.replies.append((reply.version, reply.score))
                except Exception as error:
                    self.failures.append(error)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop.set()
        for task in self.tasks:
            task.result(30)
        self.pool.shutdown()


def test_swaps_under_load_lose_nothing(directory):
    """New champions and new bases go live while requests are answered; each answer is wholly the old or the new one."""
    with projects.running_server(directory) as (url, _), Client(url) as probe, Project(directory) as project:
        known = set()

        def now():
            reply = probe.predict("fraud", entities=ENTITIES, features=FEATURES)
            known.add((reply.version, reply.score))
            return reply

        first = now()
        challenger, _, _ = projects.train(project, seed=1, colsample_bytree=0.5)
        with Load(url) as load:
            wait_until(lambda: len(load.replies) > 20)
            for turn in range(4):
                target = (challenger.version, first.version)[turn % 2]
                project.promote("fraud", target)
                wait_until(lambda target=target: now().version == target)
                projects.write_project(directory, seed=turn, shift=float(turn % 2 == 0))
                base = project.materialize()[0].base_name
                wait_until(lambda base=base: httpx.get(f"{url}/readyz").json()["services"]["checkout"] == base)
                now()
        assert load.failures == []
        assert set(load.replies) <= known
        assert len({version for version, _ in load.replies}) == 2
        assert len(known) >= 4


def test_sigterm_answers_what_it_accepted(directory):
    """Requests in flight when SIGTERM comes are answered; afterwards the port is closed and the status is 0."""
    with projects.running_server(directory) as (url, process):
        host, port = url.removeprefix("http://").split(":")
        connections = [socket.create_connection((host, int(port)), timeout=10) for _ in range(20)]
        head = b"POST /predict/fraud HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        for connection in connections:
            connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY[:-1])
        time.sleep(0.3)  # the heads must have been read: a connection without a request may be closed at once
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        for connection in connections:
            connection.sendall(BODY[-1:])
        for connection in connections:
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
            connection.close()
        assert process.wait(20) == 0
        with pytest.raises(OSError, match="refused"):
            socket.create_connection((host, int(port)), timeout=1)


def test_hostile_peers_do_not_stop_the_others(shared):
    """Half-sent requests, garbage and sudden closes leave the next request answered."""
    url, process, _ = shared
    host, port = url.removeprefix("http://").split(":")
    for junk in (
        b"",
        b"GARBAGE\r\n\r\n",
        b"POST /predict/fraud HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
        b"\x00" * 500,
    ):
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(junk)
    with Client(url) as client:
        assert client.predict("fraud", entities=ENTITIES, features=FEATURES).version == 1
    assert process.poll() is None


def test_memory_does_not_grow_with_requests(shared):
    """Thousands of answered and refused requests leave the server's memory where it was."""
    from pathlib import Path

    url, process, _ = shared
    if not Path("/proc/self/status").exists():
        pytest.skip("reads /proc")
    status = Path(f"/proc/{projects.workers(process.pid)['worker-1']}/status")

    def resident_kb():
        return int(next(line for line in status.read_text().splitlines() if line.startswith("VmRSS")).split()[1])

    def ask(n):
        with httpx.Client(base_url=url) as client:
            for i in range(n):
                headers = {"content-type": "application/json"}
                assert client.post("/predict/fraud", content=BODY, headers=headers).status_code == 200
                if i % 4 == 0:
                    assert client.post("/predict/fraud", content=b"{", headers=headers).status_code == 400

    ask(500)
    before = resident_kb()
    ask(3000)
    assert resident_kb() - before < 4096


def test_a_taken_port_is_said_so(shared):
    """A second server on the same port ends with one readable line."""
    url, _, directory = shared
    port = url.rpartition(":")[2]
    command = [sys.executable, "-m", "tiercel", "serve", "--project", str(directory), "--port", port]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1
    assert f"Cannot listen on 127.0.0.1:{port}" in result.stderr
    assert "Traceback" not in result.stderr
