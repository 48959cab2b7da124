"""/api/alerts: what is wrong, and what people say about it, refused in one line where it cannot be."""

from __future__ import annotations

import asyncio
import time

import httpx
import pytest
from tests.monitor.findings import START_US, finding, look

from tiercel.http.control import ControlPlane
from tiercel.monitor.alerts import AlertStore
from tiercel.monitor.watch_state import WatchState
from tiercel.settings import load_settings


@pytest.fixture
def store(tmp_path):
    (tmp_path / "tiercel.toml").write_text("")
    store = AlertStore(tmp_path / ".tiercel")
    store.update([look(finding(), finding("population:fraud:1"), n_confirm=1)], START_US)
    return store


@pytest.fixture
def ask(tmp_path, store):
    """Ask the admin port; returns (status, body)."""
    plane = ControlPlane(load_settings(tmp_path))

    def call(method, path, **options):
        async def asked():
            transport = httpx.ASGITransport(plane)
            async with httpx.AsyncClient(transport=transport, base_url="http://admin") as client:
                return await client.request(method, f"/api/alerts{path}", **options)

        reply = asyncio.run(asked())
        return reply.status_code, reply.json()

    return call


def test_the_list(ask, store, tmp_path):
    """Those that last, newest first; with `all` also those that are over; by class; and how the watch is doing."""
    state = WatchState(turns=3)
    with state.step("labels"):
        raise OSError(28, "No space left")
    state.save(tmp_path / ".tiercel")
    status, body = ask("GET", "")
    assert status == 200
    assert [each["id"] for each in body["alerts"]] == [2, 1]
    assert {"class", "pages", "state", "message", "command", "n", "effect", "features", "begin_us"} <= set(
        body["alerts"][0]
    )
    assert (body["open"], body["n_alerts"], body["watch"]["turns"]) == (2, 2, 3)
    assert body["watch"]["problems"] == ["labels: [Errno 28] No space left"]
    store.resolve(1, by="ann", now_us=START_US)
    assert [each["id"] for each in ask("GET", "")[1]["alerts"]] == [2]
    assert [each["id"] for each in ask("GET", "?all=1")[1]["alerts"]] == [2, 1]
    assert ask("GET", "?all=1&class=pipeline")[1]["alerts"][0]["id"] == 1
    assert (len(ask("GET", "?all=1&limit=1")[1]["alerts"]), ask("GET", "?all=1&limit=1")[1]["n_alerts"]) == (1, 2)


def test_one(ask):
    """One alert by its number, with its history."""
    status, body = ask("GET", "/1")
    assert (status, body["cause"], [event["what"] for event in body["history"]]) == (
        200,
        "pipeline:source:orders",
        ["opened"],
    )


def test_changes(ask, store):
    """Acknowledged, silenced for a time and resolved, each by whom and why."""
    status, body = ask("POST", "/1/acknowledge", json={"by": "ann", "note": "mine"})
    assert (status, body["state"]) == (200, "acknowledged")
    event = store.get(1).history[-1]
    assert (event.what, event.by, event.note) == ("acknowledged", "ann", "mine")
    status, body = ask("POST", "/1/silence", json={"for_s": 60})
    assert (status, body["state"]) == (200, "silenced")
    assert 50 < body["silenced_until_us"] / 1e6 - time.time() <= 60
    status, body = ask("POST", "/1/resolve", json={})
    assert (status, body["state"], body["history"][-1]["by"]) == (200, "resolved", "admin port")
    status, body = ask("POST", "/1/acknowledge", json={})
    assert (status, body["code"]) == (409, "alert_resolved")


@pytest.mark.parametrize(
    ("method", "path", "options", "status", "code"),
    [
        ("GET", "/7", {}, 404, "alert_not_found"),
        ("GET", "/x", {}, 400, "invalid_request"),
        ("GET", "/0", {}, 400, "invalid_request"),
        ("GET", "/99999999999999999999", {}, 400, "invalid_request"),
        ("GET", "?class=noise", {}, 400, "invalid_request"),
        ("GET", "?limit=0", {}, 400, "invalid_request"),
        ("POST", "/7/resolve", {"json": {}}, 404, "alert_not_found"),
        ("POST", "/1/silence", {"json": {}}, 400, "invalid_request"),
        ("POST", "/1/silence", {"json": {"for_s": -1}}, 400, "invalid_request"),
        ("POST", "/1/silence", {"json": {"for_s": True}}, 400, "invalid_request"),
        ("POST", "/1/silence", {"json": {"for_s": 1e12}}, 400, "invalid_request"),
        ("POST", "/1/resolve", {"json": {"who": "ann"}}, 400, "invalid_request"),
        ("POST", "/1/resolve", {"json": {"by": 3}}, 400, "invalid_request"),
        ("POST", "/1/resolve", {"json": []}, 400, "invalid_request"),
        (
            "POST",
            "/1/resolve",
            {"content": b"{", "headers": {"content-type": "application/json"}},
            400,
            "invalid_request",
        ),
        ("POST", "/1/resolve", {"json": {"note": "x" * 20_000}}, 413, "body_too_large"),
        ("POST", "/1/resolve", {}, 415, "unsupported_media_type"),
        (
            "POST",
            "/1/resolve",
            {"content": b"{}", "headers": {"content-type": "text/plain"}},
            415,
            "unsupported_media_type",
        ),
        ("POST", "/1", {"json": {}}, 405, "method_not_allowed"),
        ("GET", "/1/resolve", {}, 405, "method_not_allowed"),
    ],
)
def test_refusals(ask, store, method, path, options, status, code):
    """What cannot be meant is refused with a stable code, and changes nothing."""
    before = store.path.read_bytes()
    got, body = ask(method, path, **options)
    assert (got, body["code"]) == (status, code)
    assert store.path.read_bytes() == before


def test_damage_is_said(ask, store):
    """A damaged file is an error of the server with its name, not an empty list."""
    store.path.write_bytes(b"{}")
    status, body = ask("GET", "")
    assert (status, body["code"]) == (500, "alerts_damaged")
