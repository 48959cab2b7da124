"""`POST /feedback` on the wire: both formats, one event or many, every refusal, and what is on disk afterwards."""

from __future__ import annotations

import asyncio
import json
import os

import httpx
import msgpack
import pytest
from starlette.applications import Starlette
from starlette.routing import Route
from tests.monitor.recorders import PREFIX

from tiercel.http.feedback import FeedbackEndpoint
from tiercel.monitor import feedback_writer
from tiercel.monitor.counting import WorkerCounters
from tiercel.monitor.label_log import log_paths, read_frames
from tiercel.settings import ServerSettings, Settings

ONE = {"id": PREFIX + "1", "label": 1}


class World:
    """An endpoint over a state directory, and what it left there."""

    def __init__(self, directory):
        server = ServerSettings(max_rows=50, max_body_bytes=20_000, body_timeout_s=0.2)
        settings = Settings(project_dir=directory, name="x", state_dir=directory, server=server)
        self.counters = WorkerCounters()
        self.endpoint = FeedbackEndpoint(settings, self.counters, worker=3)
        self.app = Starlette(routes=[Route("/feedback", self.endpoint, methods=["POST"])])
        self.directory = directory

    def post(self, *bodies, kind="application/json", headers=None):
        """The replies to bodies sent at once."""

        async def exchange():
            transport = httpx.ASGITransport(app=self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await asyncio.gather(*(self._send(client, body, kind, headers or {}) for body in bodies))

        replies = asyncio.run(exchange())
        return replies[0] if len(bodies) == 1 else replies

    @staticmethod
    async def _send(client, body, kind, headers):
        content = (
            body if isinstance(body, bytes) else json.dumps(body) if kind.endswith("json") else msgpack.packb(body)
        )
        return await client.post("/feedback", content=content, headers={"content-type": kind, **headers})

    def events(self):
        paths = log_paths(self.directory / "labels" / "incoming")
        return [event for path in paths for frame, _ in read_frames(path) for event in frame.events]


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    yield world
    world.endpoint.close()


@pytest.mark.parametrize("kind", ["application/json", "application/msgpack"])
def test_one_event_or_many(world, kind):
    """Either shape, in either format, is on disk when the reply comes, which is in the format of the request."""
    more = [
        {"id": f"{PREFIX}{n:x}", "row": n, "label": "late", "value": 0.5, "time": 1_700_000_000_000_000}
        for n in range(2, 6)
    ]
    for body, n in ((ONE, 1), ({"events": more}, 4)):
        reply = world.post(body, kind=kind)
        assert reply.status_code == 200
        assert reply.headers["content-type"] == kind
        assert (reply.json() if kind.endswith("json") else msgpack.unpackb(reply.content)) == {
            "accepted": n,
            "refused": 0,
        }
    events = world.events()
    assert [event.row for event in events] == [None, 2, 3, 4, 5]
    assert events[1][2:] == (None, "late", 0.5, 1_700_000_000_000_000)
    assert world.counters.get("replies_2xx") == 2


def test_bad_events_are_refused_by_themselves(world):
    """The others are accepted; the reply counts both, says what was wrong with which, and notes what was odd."""
    events = [{"id": "x", "label": 1}, ONE, {"id": PREFIX + "2"}, {**ONE, "time": 5}]
    reply = world.post({"events": events})
    assert reply.status_code == 200
    body = reply.json()
    assert (body["accepted"], body["refused"], body["notes"]) == (2, 2, {"time_replaced": 1})
    assert [(each["event"], each["code"]) for each in body["problems"]] == [(0, "invalid_id"), (2, "invalid_label")]
    assert len(world.events()) == 2


def test_when_nothing_is_accepted_it_is_an_error(world):
    """Then the first event's error is the reply's, with its code, counted; and the rest is said as well."""
    for body in ({"id": "\ud800", "label": 1}, {"events": [{"id": "x", "label": 1}, {}]}):
        reply = world.post(body)
        assert reply.status_code == 400
        assert reply.json()["code"] == "invalid_id"
        assert reply.json()["error"].startswith("Expected the id of a reply")
        assert reply.json()["accepted"] == 0
    assert world.events() == []
    assert world.counters.get("replies_4xx") == 2


@pytest.mark.parametrize(
    ("body", "kind", "status", "code"),
    [
        (b"{", "application/json", 400, "malformed_json"),
        (b'{"id": NaN}', "application/json", 400, "malformed_json"),
        (b'{"id": "a", "id": "b"}', "application/json", 400, "duplicate_key"),
        (b"\xc1", "application/msgpack", 400, "malformed_msgpack"),
        ([ONE], "application/json", 400, "wrong_type"),
        ({"events": {}}, "application/json", 400, "wrong_type"),
        ({"events": []}, "application/json", 400, "invalid_request"),
        ({"events": [ONE], "id": 1}, "application/json", 400, "unknown_field"),
        ({"events": [ONE] * 51}, "application/json", 413, "too_many_rows"),
        ({"events": [ONE] * 51}, "application/msgpack", 413, "too_many_rows"),
        (b" " * 20_001, "application/json", 413, "body_too_large"),
        (b"id,label", "text/csv", 415, "unsupported_media_type"),
    ],
)
def test_what_is_no_feedback_is_refused(world, body, kind, status, code):
    """Each mistake about the whole body has its status and code, and leaves nothing behind."""
    reply = world.post(body, kind=kind)
    assert (
        reply.status_code,
        (msgpack.unpackb(reply.content) if kind.endswith("msgpack") else reply.json())["code"],
    ) == (status, code)
    assert list(world.directory.iterdir()) == []


def test_a_full_disk_is_said(world, monkeypatch):
    """503 with a stable code, so that the sender tries again; afterwards it works."""

    def refuse(_descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", refuse)
        reply = world.post(ONE)
    assert (reply.status_code, reply.json()["code"]) == (503, "monitor_storage")
    assert "No space left" in reply.json()["error"]
    assert world.post(ONE).status_code == 200


def test_too_much_at_once_is_told_to_come_back(world, monkeypatch):
    """503 `overloaded` with Retry-After; nothing that was refused is on disk."""
    monkeypatch.setattr(feedback_writer, "MAX_WAITING", 0)
    reply = world.post(ONE)
    assert (reply.status_code, reply.json()["code"]) == (503, "overloaded")
    assert int(reply.headers["retry-after"]) >= 1
    monkeypatch.setattr(feedback_writer, "MAX_WAITING", 10)
    assert world.post(ONE).status_code == 200
    assert len(world.events()) == 1


def test_many_at_once_are_each_answered(world):
    """Concurrent requests each get the reply to their own events."""
    replies = world.post(*({"events": [{"id": f"{PREFIX}{n:x}", "label": 1}] * n} for n in range(1, 40)))
    assert [reply.json()["accepted"] for reply in replies] == list(range(1, 40))
    assert len(world.events()) == sum(range(1, 40))


def test_a_stopping_worker_takes_nothing_more(world):
    """After the end a request is refused as one to send again."""
    world.endpoint.close()
    assert world.post(ONE).status_code == 503
