"""Tiers on the wire: who may stand in, what becomes a job, where a shadow scores, and who is refused for want of room."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from tiercel._hot.plan import ServingPlan

from tiercel.http.app import DataPlane
from tiercel.serving.routes import ModelRoutes, Routes
from tiercel.settings import ModelSettings, ServerSettings
from tiercel.types import Signature, Task

SIGNATURE = Signature(("x", "y"), Task.REGRESSION)
BODY = {"features": {"x": 1.0, "y": 2.0}}


class Scorer:
    """Sums a row, as slowly as it is told to, and notes in which threads."""

    n_outputs = 1

    def __init__(self, n_features, seconds=0.0):
        self.n_features, self.seconds, self.threads = n_features, seconds, set()

    def score(self, rows):
        self.threads.add(threading.current_thread().name)
        time.sleep(self.seconds)
        return rows.sum(axis=1, dtype=np.float64)[:, None]


def plan(name, version, *, signature=SIGNATURE, needs_us=(0, 10, 1), tier="realtime", seconds=0.0):
    scorer = Scorer(len(signature.features), seconds)
    return ServingPlan(name, version, signature, scorer, needs_us=needs_us, tier=tier, is_inline=tier == "realtime")


class Engine:
    """Fixed plans by model and alias, and some that are loaded only when a number asks for them."""

    watch_problems = ()

    def __init__(self, *models, later=()):
        by_name = {}
        for alias, each in models:
            by_name.setdefault(each.model, {})[alias] = each
        self.routes = Routes.build(
            {
                name: ModelRoutes(
                    {each.version: each for each in aliases.values()},
                    {alias: each.version for alias, each in aliases.items()},
                )
                for name, aliases in by_name.items()
            },
            {},
            (),
        )
        self.later = {f"{each.model}:{each.version}": each for each in later}

    def find_plan(self, reference):
        return self.routes.by_reference.get(reference)

    async def load_plan(self, reference):
        return self.later[reference]

    def profile_of(self, _name, _version):
        return None

    def kernel_of(self, _plan):
        return "forest"


class Jobs:
    """Takes every job, once its gate is open; notes what was done beside the loop."""

    def __init__(self):
        self.gate, self.n_submitting, self.beside_of = asyncio.Event(), 0, []
        self.gate.set()

    def routes(self):
        return []

    async def beside(self, work, *arguments):
        self.beside_of.append(work)
        return await asyncio.to_thread(work, *arguments)

    async def submit(self, plan, *_):
        self.n_submitting += 1
        await self.gate.wait()
        self.n_submitting -= 1
        return 202, {"job": f"{plan.model}:{plan.version}"}, []


def plane(engine, *declared, jobs=None):
    return DataPlane(engine, ServerSettings(), declared=declared, jobs=jobs or Jobs())


async def send(app, path, body=BODY, headers=None):
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
        return await client.post(path, json=body, headers=headers)


def post(app, path, body=BODY, headers=None):
    return asyncio.run(send(app, path, body, headers))


def test_a_slow_shadow_scores_beside_the_event_loop():
    """A shadow that takes long is scored in another thread: in the loop's it would hold up every request."""
    shadow = plan("m", 2, needs_us=(0, 300_000, 0), tier="near-realtime", seconds=0.2)
    app = plane(Engine(("champion", plan("m", 1)), ("trial", shadow)), ModelSettings("m", shadow="trial"))

    async def run():
        assert (await send(app, "/predict/m")).status_code == 200
        longest_s, until = 0.0, time.monotonic() + 5
        while not shadow.scorer.threads or longest_s == 0.0:
            assert time.monotonic() < until
            begun = time.monotonic()
            await asyncio.sleep(0.005)
            longest_s = max(longest_s, time.monotonic() - begun)
        return longest_s

    assert asyncio.run(run()) < 0.15
    assert threading.current_thread().name not in shadow.scorer.threads


@pytest.mark.parametrize(
    "stand_in",
    [
        Signature(("x", "y"), Task.BINARY, ("no", "yes")),  # its score would mean something else
        Signature(("x", "z"), Task.REGRESSION),  # nobody who asks the model sends z
    ],
)
def test_a_fallback_that_does_not_fit_is_passed_over(stand_in):
    """What `/readyz` calls a mistake answers nobody, and makes no error of a good question: the next rung answers."""
    engine = Engine(
        ("champion", plan("m", 1, needs_us=(0, 50_000, 0), tier="near-realtime")),
        ("champion", plan("simple", 1, signature=stand_in)),
    )
    app = plane(engine, ModelSettings("m", fallback="simple", default_score=0.25))
    reply = post(app, "/predict/m", {**BODY, "deadline_ms": 40})
    assert reply.status_code == 200
    assert (reply.json()["score"], reply.json()["degraded"]["by"]) == (0.25, "default")


def test_a_challenger_that_means_something_else_answers_nobody():
    """A challenger of another task is not in the rollout, whatever its weight."""
    other = plan("m", 2, signature=Signature(("x", "y"), Task.BINARY, ("no", "yes")))
    app = plane(Engine(("champion", plan("m", 1)), ("challenger", other)), ModelSettings("m", challenger_weight=1.0))
    assert post(app, "/predict/m").json()["version"] == 1


def test_a_batch_version_that_is_not_loaded_yet_makes_a_job():
    """Naming a batch version by its number gives a job the first time too, not only once it is loaded."""
    engine = Engine(("champion", plan("m", 1)), later=[plan("m", 2, tier="batch")])
    reply = post(plane(engine), "/predict/m:2")
    assert (reply.status_code, reply.json()) == (202, {"job": "m:2"})


@pytest.mark.parametrize("tier", ["realtime", "near-realtime"])
def test_a_faster_tier_than_batch_is_denied_in_numbers(tier):
    """Who asks for an answer now from a model that only has jobs is refused with what it takes, and no job is made."""
    engine = Engine(("champion", plan("m", 1, needs_us=(0, 2_000_000, 0), tier="batch")))
    reply = post(plane(engine), "/predict/m", {**BODY, "tier": tier})
    assert (reply.status_code, reply.json()["code"]) == (400, "tier_denied")
    assert "2000.000 ms" in reply.json()["error"]
    assert "/predict/m:1 without a tier" in reply.json()["error"]


def test_a_ready_answer_is_given_when_the_deadline_is_over():
    """The default costs nothing: it is given, and says why, where even that comes a moment too late."""
    app = plane(Engine(("champion", plan("m", 1))), ModelSettings("m", default_score=0.5))
    reply = post(app, "/predict/m", {**BODY, "deadline_ms": 0.001})
    assert (reply.status_code, reply.json()["score"]) == (200, 0.5)
    assert reply.json()["degraded"]["reason"] == "deadline"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/models/m:predict", {"instances": [[1.0, 2.0]]}),
        ("/invocations", {"instances": [[1.0, 2.0]]}),
    ],
)
def test_bodies_without_a_place_for_it_say_degraded_in_headers(path, body):
    """Nobody takes a default for a model's score: protocols whose body is scores only say it in a header, and the times."""
    engine = Engine(("champion", plan("m", 1, needs_us=(0, 50_000, 0), tier="near-realtime")))
    app = plane(engine, ModelSettings("m", default_score=0.25))
    reply = post(app, path, body, {"x-envoy-expected-rq-timeout-ms": "40"})
    assert reply.json() == {"predictions": [0.25]}
    assert reply.headers["x-tiercel-degraded"] == "default; reason=deadline; instead-of=m:1"
    assert 'desc="x-envoy-expected-rq-timeout-ms"' in reply.headers["server-timing"]
    assert reply.headers["x-tiercel-prediction-id"]


def test_the_open_inference_protocol_echoes_the_budget():
    """OIP's parameters name the smallest budget and whose it was."""
    body = {
        "inputs": [{"name": "features", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}],
        "parameters": {"timeout": 900_000},
    }
    reply = post(plane(Engine(("champion", plan("m", 1)))), "/v2/models/m/infer", body)
    told = reply.json()["parameters"]
    assert (told["budget_us"], told["budget_from"]) == (900_000, "timeout")


async def head_only(app, path, headers=()):
    """Status and code of a request whose body nobody may read."""
    sent = []

    async def receive():
        raise AssertionError("the body was read")

    async def keep(message):
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "",
        "scheme": "http", "http_version": "1.1", "server": ("test", 80), "client": None,
        "headers": [(b"content-type", b"application/json"), (b"content-length", b"40"), *headers],
    }  # fmt: skip
    await app(scope, receive, keep)
    return sent[0]["status"], json.loads(sent[1]["body"])


def test_a_full_tier_refuses_before_the_body_is_read():
    """The near-realtime tier holds so many requests; the next is refused by its head, in every protocol; realtime is not."""
    slow = plan("slow", 1, needs_us=(0, 50_000, 0), tier="near-realtime", seconds=0.3)
    app = plane(Engine(("champion", slow), ("champion", plan("quick", 1))))
    room = app._router._rooms._near

    async def run():
        assert app.limits  # what follows from the models is taken up now, so that it stays as this test sets it
        room.max_running = 2
        waiting = [asyncio.create_task(send(app, "/predict/slow")) for _ in range(2)]
        for _ in range(1000):
            await asyncio.sleep(0.001)
            if room.n_running == 2:
                break
        refused = [
            await head_only(app, "/predict/slow"),
            await head_only(app, "/v2/models/slow/infer"),
            await head_only(app, "/v1/models/slow:predict"),
            await head_only(app, "/invocations", [(b"x-tiercel-model", b"slow")]),
        ]
        quick = await send(app, "/predict/quick")
        answered = [reply.status_code for reply in await asyncio.gather(*waiting)]
        return refused, quick, answered

    refused, quick, answered = asyncio.run(run())
    assert [(status, body["code"]) for status, body in refused] == [(503, "overloaded")] * 4
    assert all(body["retry_after_ms"] >= 1 for _, body in refused)
    assert quick.status_code == 200
    assert answered == [200, 200]
    assert (room.n_running, room.n_bytes) == (0, 0)


def test_submissions_take_nobody_elses_room():
    """So many jobs are taken at once; the next is refused, by its head where its model has no other tier; realtime is not."""
    jobs = Jobs()
    models = plan("quick", 1), plan("heavy", 1, tier="batch")
    app = plane(Engine(*[("champion", each) for each in models]), jobs=jobs)
    room = app._router._rooms._batch

    async def run():
        jobs.gate.clear()
        asked = ("/predict/heavy", BODY), ("/predict/quick", {**BODY, "tier": "batch"})
        waiting = [asyncio.create_task(send(app, *each)) for each in asked * 5]
        for _ in range(1000):
            await asyncio.sleep(0.001)
            if jobs.n_submitting == 10:
                break
        held = room.n_running, jobs.n_submitting
        refused = [await head_only(app, "/predict/heavy"), await head_only(app, "/v2/models/heavy/infer")]
        reply = await send(app, "/predict/quick", {**BODY, "tier": "batch"})
        refused.append((reply.status_code, reply.json()))
        quick = await send(app, "/predict/quick")
        jobs.gate.set()
        return held, refused, quick, [reply.status_code for reply in await asyncio.gather(*waiting)]

    held, refused, quick, taken = asyncio.run(run())
    assert held == (10, 10)
    assert [(status, body["code"]) for status, body in refused] == [(503, "overloaded")] * 3
    assert all("the batch tier" in body["error"] and body["retry_after_ms"] >= 1 for _, body in refused)
    assert quick.status_code == 200
    assert taken == [202] * 10
    assert (room.n_running, room.n_bytes) == (0, 0)
    assert app._counters.get("refused_capacity") == 3


@pytest.mark.parametrize(
    ("model", "more", "status", "n_beside"),
    [
        ("heavy", {}, 202, 1),
        ("quick", {"tier": "batch"}, 202, 1),
        ("quick", {}, 200, 0),
        ("quick", {"entities": {}, "features": {"x": 1.0, "y": 2.0, "batch": 3.0}}, 400, 1),
    ],
)
def test_large_bodies_of_jobs_are_read_beside_the_loop(model, more, status, n_beside):
    """What asks for a job, or can only become one, does not keep the loop; a word in the wrong place changes no answer."""
    jobs = Jobs()
    models = plan("quick", 1), plan("heavy", 1, tier="batch")
    app = plane(Engine(*[("champion", each) for each in models]), jobs=jobs)
    padding = " " * (1 << 16)  # JSON allows it

    async def run(content):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
            return await client.post(f"/predict/{model}", content=content, headers={"content-type": "application/json"})

    body = json.dumps({**BODY, **more})
    assert asyncio.run(run(body + padding)).status_code == status
    assert len(jobs.beside_of) == n_beside
    jobs.beside_of.clear()
    assert asyncio.run(run(body)).status_code == status
    assert jobs.beside_of == []
    room = app._router._rooms._batch
    assert (room.n_running, room.n_bytes) == (0, 0)


def test_limits_follow_the_measured_models():
    """`/readyz` says what the measured cost of the models gives, not a knob."""
    engine = Engine(("champion", plan("slow", 1, needs_us=(0, 20_000, 0), tier="near-realtime")))
    engine.profile_of = lambda _name, _version: SimpleNamespace(
        curve=[(1, 20_000.0, 25_000.0), (100, 100_000.0, 120_000.0)], total=SimpleNamespace(p99_us=25_000.0)
    )

    async def run():
        app = plane(engine, ModelSettings("slow", deadline_ms=200))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
            return (await client.get("/readyz")).json()["limits"], app

    limits, app = asyncio.run(run())
    n_cores = app._router._rooms._n_cores
    assert limits[1].startswith(f"near-realtime: at most {400 * n_cores} requests")
    assert limits[0] == "realtime: no model is served in it"
