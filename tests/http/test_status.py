"""What an error's reply says about coming back, and to whom it says what."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import httpx
import numpy as np
import pytest
from starlette.applications import Starlette

from tiercel.errors import CapacityError, DeadlineError
from tiercel.http.exchange import Endpoint, Host
from tiercel.http.jobs import JobEndpoints
from tiercel.http.predict import PredictEndpoint
from tiercel.http.status import body_of, headers_of, request_id_of
from tiercel.monitor.counting import WorkerCounters
from tiercel.settings import ServerSettings, load_settings

WAIT_US = 20_000_000
FULL = CapacityError("full", predicted_wait_us=WAIT_US)


@dataclass
class FullStore:
    """Refuses whatever it is asked."""

    def status(self, _job_id):
        raise FULL


class FullRouter:
    """Has no room for anybody."""

    def enter(self, _reference, _n_bytes):
        raise FULL


def predict_app(_tmp_path):
    return PredictEndpoint(None, ServerSettings(), router=FullRouter())


def protocol_app(_tmp_path):
    async def refuse(_exchange):
        raise FULL

    return Endpoint(Host(None, FullRouter(), ServerSettings(), WorkerCounters()), refuse)


def jobs_app(tmp_path):
    (tmp_path / "tiercel.toml").write_text("")
    return Starlette(routes=JobEndpoints(load_settings(tmp_path), store=FullStore()).routes())


def refusals(app, n, headers=None):
    """What `n` clients are told who are refused in one instant: [(seconds, milliseconds)]."""

    async def run():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
            return [await client.get("/jobs/1", headers=headers) for _ in range(n)]

    replies = asyncio.run(run())
    assert {reply.status_code for reply in replies} == {503}
    assert all(len(reply.headers.get_list("retry-after")) == 1 for reply in replies)
    return [(int(reply.headers["retry-after"]), reply.json()["retry_after_ms"]) for reply in replies]


@pytest.mark.parametrize("make_app", [predict_app, protocol_app, jobs_app])
def test_those_refused_together_are_told_different_times(make_app, tmp_path):
    """Two hundred clients without an id of their own, refused in one instant, are spread over one to two waits."""
    told = refusals(make_app(tmp_path), 200)
    counts, _ = np.histogram([ms for _, ms in told], bins=5, range=(20_000, 40_001))
    assert counts.min() >= 15
    assert {seconds for seconds, _ in told} >= set(range(21, 40))
    assert all(abs(seconds - ms / 1000) <= 1 for seconds, ms in told)  # header and body of one reply agree


@pytest.mark.parametrize("make_app", [predict_app, protocol_app, jobs_app])
def test_a_request_with_an_id_is_always_told_the_same(make_app, tmp_path):
    """`x-request-id` decides where it is sent: the same request to the same time, others to others."""
    app = make_app(tmp_path)
    first, second = (refusals(app, 5, {"x-request-id": each}) for each in ("a4f1", "a4f2"))
    assert len(set(first)) == len(set(second)) == 1
    assert first[0] != second[0]


def test_an_empty_request_id_is_none():
    """A header without anything in it tells nobody apart."""
    headers = [(b"x-request-id", b"")]
    assert request_id_of(headers) != request_id_of(headers)
    assert request_id_of([(b"accept", b"*/*"), (b"x-request-id", b"\xe9")]) == "\xe9"


def test_only_want_of_room_is_told_to_come_back():
    """Too little time is no reason to ask the same again later."""
    late = DeadlineError("late", budget_us=1, needed_us=2)
    assert headers_of(late, "1") == []
    assert "retry_after_ms" not in body_of(late, "1")
