"""The compiled path in a real server process: it is what answers, as the general path would, and nothing gets lost."""

from __future__ import annotations

import json
import signal
import socket
import threading

import httpx
import msgpack
import pytest
from tests.support import projects

from tiercel import Client, Project

ENTITIES = {"customer_id": 5, "shop": "a", "country": "nl"}
BODIES = {
    "one row": {"entities": ENTITIES, "features": {"amount": 0.5}},
    "no such customer": {"entities": {**ENTITIES, "customer_id": 10**9}, "features": {"amount": 0.5}},
    "null amount": {"entities": ENTITIES, "features": {"amount": None}},
    "unknown field": {"entities": ENTITIES, "features": {"amount": 0.5}, "colour": "red"},
    "unknown feature": {"entities": ENTITIES, "features": {"amount": 0.5, "colour": 1}},
    "wrong type": {"entities": ENTITIES, "features": {"amount": "much"}},
    "many rows": {"entities": {**ENTITIES, "customer_id": [1, 2, 17]}, "features": {"amount": [0.1, 0.2, 0.3]}},
    "different lengths": {"entities": {**ENTITIES, "customer_id": [1, 2]}, "features": {"amount": [0.1]}},
    "no rows": {"entities": {**ENTITIES, "customer_id": []}, "features": {"amount": 1}},
    "stored value given": {"entities": ENTITIES, "features": {"amount": 0.5, "n_orders": 7, "plan": "pro"}},
    "given moment": {"entities": ENTITIES, "features": {"amount": 0.5}, "now": "2026-02-01T00:00:00Z"},
    "a list": [1, 2],
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    directory = projects.ready_project(tmp_path_factory.mktemp("native") / "project")
    with projects.running_server(directory) as (url, process):
        yield url, process, directory


def counts(url):
    return httpx.get(f"{url}/readyz").json()["fast_path"]


def ask(client, body, kind, *, chunked):
    """(status, content type, reply without its id) of one prediction; `chunked` sends it the general way."""
    content = json.dumps(body).encode() if kind == "application/json" else msgpack.packb(body)
    reply = client.post(
        "/predict/fraud", content=iter([content]) if chunked else content, headers={"content-type": kind}
    )
    assert ("transfer-encoding" in reply.request.headers) == chunked
    data = reply.json() if kind == "application/json" else msgpack.unpackb(reply.content)
    data.pop("id", None)
    if isinstance(data.get("features"), dict) and "now" not in body:
        data["features"].pop("oldest_age_ms")  # counted from each request's own moment
    return reply.status_code, reply.headers["content-type"], data


@pytest.mark.parametrize("kind", ["application/json", "application/msgpack"])
@pytest.mark.parametrize("name", BODIES)
def test_both_paths_give_the_same_reply(server, name, kind):
    """The same body gets the same status, type and reply on either path, whether it is a prediction or an error."""
    with httpx.Client(base_url=server[0]) as client:
        assert ask(client, BODIES[name], kind, chunked=False) == ask(client, BODIES[name], kind, chunked=True)


@pytest.mark.parametrize("wire", ["json", "msgpack"])
def test_the_fast_path_answers_the_client(server, wire):
    """What tiercel's own client sends has the fast path's shape: the counter rises with every prediction."""
    url = server[0]
    with Client(url, format=wire) as client:
        before = counts(url)
        for customer in range(50):
            client.predict("fraud", entities={**ENTITIES, "customer_id": customer}, features={"amount": 0.5})
        after = counts(url)
    assert after["answered"] - before["answered"] == 50
    assert after["handed_on"] - before["handed_on"] == 1  # the second look at /readyz


def test_swaps_lose_nothing_on_the_fast_path(tmp_path):
    """While champions and bases change, pipelining connections get every answer, each wholly of one version."""
    directory = projects.ready_project(tmp_path / "project")
    with projects.running_server(directory) as (url, _), Project(directory) as project:
        host, port = url.removeprefix("http://").split(":")
        stop, replies, failures = threading.Event(), [], []

        def load():
            try:
                with socket.create_connection((host, int(port)), timeout=10) as connection:
                    stream = connection.makefile("rb")
                    while not stop.is_set():
                        connection.sendall(REQUEST * 8)
                        replies.extend(read_reply(stream) for _ in range(8))
            except Exception as error:
                failures.append(error)

        threads = [threading.Thread(target=load) for _ in range(2)]
        second, _, _ = projects.train(project, seed=1, colsample_bytree=0.5)
        for thread in threads:
            thread.start()
        for turn in range(4):
            wanted = (second.version, 1)[turn % 2]
            project.promote("fraud", wanted)
            if turn == 2:
                projects.write_project(directory, seed=turn, shift=1.0)
                base = project.materialize()[0].base_name
                while httpx.get(f"{url}/readyz").json()["services"]["checkout"] != base:
                    assert not failures
            while replies[-1:] == [] or json.loads(replies[-1][1])["version"] != wanted:
                assert not failures
        answered = counts(url)["answered"]
        stop.set()
        for thread in threads:
            thread.join(20)
    assert failures == []
    assert {status for status, _ in replies} == {200}
    versions = {}
    for _, body in replies:
        reply = json.loads(body)
        versions.setdefault(reply["version"], set()).add(reply["score"])
    assert set(versions) == {1, second.version}
    assert all(len(scores) <= 2 for scores in versions.values())  # one a base
    assert answered > 0.9 * len(replies)


CONTENT = json.dumps(BODIES["one row"]).encode()
REQUEST = (
    b"POST /predict/fraud HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    % len(CONTENT)
) + CONTENT


def read_reply(stream):
    status = int(stream.readline().split()[1])
    length = 0
    while (line := stream.readline()) not in {b"\r\n", b""}:
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    return status, stream.read(length)


def test_sigterm_drains_the_fast_path(tmp_path):
    """SIGTERM while requests stream in: each one sent before the close is answered or was never read; status 0."""
    directory = projects.ready_project(tmp_path / "project")
    with projects.running_server(directory) as (url, process):
        host, port = url.removeprefix("http://").split(":")
        connections = [socket.create_connection((host, int(port)), timeout=10) for _ in range(10)]
        streams = [connection.makefile("rb") for connection in connections]
        for connection, stream in zip(connections, streams, strict=True):
            connection.sendall(REQUEST)
            assert read_reply(stream)[0] == 200
        for connection in connections:
            connection.sendall(REQUEST + REQUEST[:-7])
        for stream in streams:
            assert read_reply(stream)[0] == 200  # so the half of the next one has been read too
        process.send_signal(signal.SIGTERM)
        for connection in connections:
            connection.sendall(REQUEST[-7:])
        for stream in streams:
            assert read_reply(stream)[0] == 200
            assert stream.read() == b""
        assert process.wait(20) == 0
        for stream, connection in zip(streams, connections, strict=True):
            stream.close()
            connection.close()
