"""Deadlines on the wire: both paths refuse alike, before the work is begun, and say which deadline counted."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
from tests.http.test_app import BODY, FixedEngine, post
from tiercel._hot.plan import ServingPlan

from tiercel.http.app import DataPlane
from tiercel.serving.routes import ModelRoutes, Routes
from tiercel.settings import ServerSettings


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    engine = FixedEngine(tmp_path_factory.mktemp("features"))
    quick = engine.routes.by_reference["late"]
    slow = ServingPlan(
        "slow", 1, quick.signature, _Scorer(quick.n_features), quick.schema, quick.base, needs_us=(1_000, 4_000, 1_000)
    )
    far = ServingPlan(
        "far", 1, quick.signature, _Scorer(quick.n_features), quick.schema, quick.base, needs_us=(9_000, 3_000, 0)
    )
    more = {plan.model: ModelRoutes({1: plan}, {"champion": 1}) for plan in (slow, far)}
    engine.routes = Routes.build({**engine.routes.models, **more}, engine.routes.services, ())
    engine.profile_of = lambda _name, _version: SimpleNamespace(
        curve=((1, 5_000.0, 5_000.0), (64, 68_000.0, 68_000.0)), total=SimpleNamespace(p99_us=6_000.0)
    )
    return DataPlane(engine, ServerSettings())


class _Scorer:
    n_outputs = 1

    def __init__(self, n_features):
        self.n_features = n_features

    def score(self, rows):
        return rows[:, :1].astype(float) * 0.0


@pytest.mark.parametrize(
    ("body", "headers", "status", "source"),
    [
        ({}, {}, 200, None),
        ({"deadline_ms": 1000}, {}, 200, "deadline_ms"),
        ({"deadline_ms": 5.9}, {}, 504, None),
        ({}, {"x-request-timeout-seconds": "0.005"}, 504, None),
        ({}, {"X-Envoy-Expected-Rq-Timeout-Ms": "900"}, 200, "x-envoy-expected-rq-timeout-ms"),
        ({"deadline_ms": 500}, {"x-envoy-expected-rq-timeout-ms": "900"}, 200, "deadline_ms"),
        ({"deadline_ms": 900}, {"x-envoy-expected-rq-timeout-ms": "2"}, 504, None),
        ({"deadline_ms": 0}, {}, 400, None),
        ({"deadline_ms": "soon"}, {}, 400, None),
        ({"deadline_ms": None}, {}, 400, None),
        ({"deadline_ms": 500}, {"x-request-timeout-seconds": "-1"}, 400, None),
        ({"deadline_ms": 1e12}, {}, 400, None),
        ({"deadline_ms": 10**400}, {}, 400, None),
    ],
)
def test_a_deadline_is_kept_or_refused(app, body, headers, status, source):
    """The tightest deadline decides, by the measured cost; the reply names it; a refusal has numbers and a stable code."""
    reply = post(app, "/predict/slow", {**BODY, **body}, headers=headers)
    assert reply.status_code == status
    if status == 504:
        assert reply.json()["code"] == "deadline_exceeded"
        assert re.search(r"Expected 6\.000 ms .* got \d+\.\d+ ms", reply.json()["error"])
    if status == 400:
        assert reply.json()["code"] == "invalid_deadline"
    if status == 200:
        named = re.findall(r'desc="([^"]+)"', reply.headers["server-timing"])
        assert named == ([] if source is None else [source])


def test_many_rows_without_a_deadline_have_the_time_they_need(app):
    """The realtime tier's bound is about one row: 25 measured milliseconds of many rows are answered when nobody asked."""
    many = {name: {key: [value] * 20 for key, value in BODY[name].items()} for name in ("entities", "features")}
    reply = post(app, "/predict/slow", many)
    assert (reply.status_code, len(reply.json()["scores"])) == (200, 20)
    counted = {name: app._counters.get(f"near_realtime_{name}") for name in ("requests", "batches", "rows")}
    assert (counted["requests"], counted["rows"]) == (1, 20)
    assert counted["batches"] >= 1
    assert post(app, "/predict/slow", {**many, "deadline_ms": 20}).status_code == 504


def test_what_is_slow_to_read_and_quick_to_score_is_scored_at_once(app):
    """Only scoring decides about the queue, on both paths: what was read here is scored here."""
    before = app._counters.get("near_realtime_requests")
    assert post(app, "/predict/far", BODY).status_code == 200
    assert app._counters.get("near_realtime_requests") == before


def test_stage_times_come_back(app):
    """Every reply says how long each stage took, in milliseconds."""
    reply = post(app, "/predict/late", BODY)
    assert re.fullmatch(
        r"parse;dur=\d+\.\d{3}, read;dur=\d+\.\d{3}, compute;dur=\d+\.\d{3}, score;dur=\d+\.\d{3}, reply;dur=\d+\.\d{3}",
        reply.headers["server-timing"],
    )


def test_an_unknown_tier_is_refused(app):
    """`tier` is one of three."""
    reply = post(app, "/predict/late", {**BODY, "tier": "soon"})
    assert (reply.status_code, reply.json()["code"]) == (400, "wrong_type")
    assert "near-realtime" in reply.json()["error"]
