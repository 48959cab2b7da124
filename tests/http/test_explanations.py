"""Explanations on the wire: with a prediction, over V1 and the Open Inference Protocol, and of what was answered before."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import replace
from types import SimpleNamespace

import httpx
import msgpack
import numpy as np
import pytest
from tests.http.test_tiers import Engine, Jobs
from tests.support.linear_plans import (
    FEATURES,
    WEIGHTS,
    LinearVersion,
    contributions,
    explanations_of,
    plan_of,
    signature_of,
)
from tiercel._hot.explained import Explanations
from tiercel._hot.reply import ReplyIds

from tiercel.http.app import DataPlane
from tiercel.http.native import NativeHttp
from tiercel.http.predict import make_ids
from tiercel.monitor.recording import Recorder
from tiercel.serving import explaining, recorded
from tiercel.serving.answers import Served
from tiercel.serving.deadline import Budget
from tiercel.serving.explain_request import ExplainRequest
from tiercel.settings import JournalSettings, ModelSettings, ServerSettings, Settings
from tiercel.types import Tier

ROW = {"a": 3.0, "b": 0.5, "c": 5.0}
MANY = {"a": [3.0, 1.0], "b": [0.5, None], "c": [5.0, 3.0]}
SETTINGS = ServerSettings(max_rows=100)


class Slow(LinearVersion):
    """An explainer in Python that waits until it may go on, and notes where it ran."""

    def __init__(self, signature, own):
        super().__init__(signature, None, own)
        self.began, self.gate, self.threads = threading.Event(), threading.Event(), []

    def attribute(self, rows, scores):
        self.threads.append(threading.current_thread().name)
        self.began.set()
        assert self.gate.wait(5)
        return super().attribute(rows, scores)


class Broken(LinearVersion):
    def attribute(self, rows, scores):
        raise RuntimeError("boom")


def slow_plan(cost_us=100.0, kind=Slow, **options):
    signature = signature_of()
    own = explanations_of(signature).explainer.compiled
    version = kind(signature, own) if kind is Slow else kind(signature, None, own)
    made = Explanations(3, 1, version, version.form_of(), cost_us=(0.0, cost_us))
    return plan_of(explanations=made, **options), version


def serve(plan, work, *, declared=(), others=(), ids=None, settings=SETTINGS, **options):
    """Run `work(client)` against a data plane of this champion."""

    async def run():
        engine = Engine(("champion", plan), *others)
        if ids is not None:
            options["native"] = NativeHttp(engine, settings, ids)
        plane = DataPlane(engine, settings, declared=declared, **options)
        transport = httpx.ASGITransport(app=plane)
        # A busy machine must not decide what is explained: where time is the point, the body says less.
        ample = {"x-request-timeout-seconds": "60"}
        async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=ample) as client:
            return await work(client)

    return asyncio.run(run())


def post(plan, path, body, **options):
    return serve(plan, lambda client: client.post(path, json=body), **options)


def predict(plan, body, **options):
    reply = post(plan, "/predict/line", body, **options)
    assert reply.status_code == 200, reply.text
    return reply.json()


@pytest.mark.parametrize("features", [ROW, MANY], ids=["one", "many"])
@pytest.mark.parametrize("mode", ["reasons", "full"])
def test_the_general_path_explains_as_the_compiled_one(features, mode):
    """Both paths say the same; the general path's reply names the stage in Server-Timing."""
    plan, body = plan_of(), {"features": features, "explain": mode}
    reply = post(plan, "/predict/line", body)
    compiled = json.loads(plan.answer(json.dumps(body).encode(), 0, 0, ReplyIds(9)))
    assert reply.json() | {"id": ""} == compiled | {"id": ""}
    assert ", explain;dur=" in reply.headers["server-timing"]
    assert ", explain" not in post(plan, "/predict/line", {"features": features}).headers["server-timing"]


def test_msgpack_is_explained_too():
    """The reply to a msgpack body has the same explanation."""
    body = {"features": ROW, "explain": "full"}

    def work(client):
        headers = {"content-type": "application/msgpack"}
        return client.post("/predict/line", content=msgpack.packb(body), headers=headers)

    told = msgpack.unpackb(serve(plan_of(), work).content)
    assert told["explanation"]["contributions"] == contributions(ROW.values())


@pytest.mark.parametrize("explain", ["why", 1, None, ["full"]], ids=repr)
def test_a_wrong_word_is_a_400(explain):
    """What cannot be asked for is refused, with a code of its own."""
    reply = post(plan_of(), "/predict/line", {"features": ROW, "explain": explain})
    assert (reply.status_code, reply.json()["code"]) == (400, "invalid_explain")


def test_a_default_has_no_reasons():
    """Where a default answers, no model did, and the reply says so instead of explaining one."""
    declared = [ModelSettings("line", default_score=0.5)]
    plan = plan_of(needs_us=(0, 50_000, 1))
    told = predict(plan, {"features": ROW, "explain": "reasons", "deadline_ms": 1}, declared=declared)
    assert (told["score"], told["degraded"]["by"]) == (0.5, "default")
    assert told["explanation"]["method"] == "none"
    assert "no model answered" in told["explanation"]["why"]


def test_a_fallback_explains_itself():
    """Who answered is who is explained: the fallback's contributions make the fallback's score."""
    declared = [ModelSettings("line", fallback="simple")]
    simple = plan_of(name="simple", explanations=explanations_of(signature_of()))
    slow = plan_of(needs_us=(0, 50_000, 1), explanations=Explanations(3, 1, why="this one is not asked"))
    body = {"features": ROW, "explain": "full", "deadline_ms": 9}
    told = predict(slow, body, declared=declared, others=[("champion", simple)])
    assert (told["model"], told["degraded"]["by"]) == ("simple", "fallback")
    explanation = told["explanation"]
    assert explanation["expected"] + sum(explanation["contributions"].values()) == pytest.approx(told["score"])


def test_an_explainer_that_fails_fails_nothing(caplog):
    """The score is answered, the reply says that there is no explanation, and the log has the reason, once."""
    plan, _ = slow_plan(kind=Broken)

    async def work(client):
        return [await client.post("/predict/line", json={"features": ROW, "explain": "full"}) for _ in range(2)]

    for reply in serve(plan, work):
        assert reply.status_code == 200
        assert reply.json()["explanation"] == {"method": "none", "why": explaining.FAILED}
        assert reply.json()["score"] == pytest.approx(float(WEIGHTS @ list(ROW.values())) + 0.125)
    assert caplog.text.count("RuntimeError: boom") == 1


def test_sampling_keeps_the_event_loop_free():
    """An explainer in Python runs in a thread of its own; meanwhile others are answered."""
    plan, version = slow_plan()

    async def work(client):
        explained = asyncio.create_task(
            client.post("/predict/line", json={"features": ROW, "explain": "full", "deadline_ms": 60_000})
        )
        assert await asyncio.to_thread(version.began.wait, 5)
        plain = await client.post("/predict/line", json={"features": ROW})
        assert not explained.done()
        version.gate.set()
        return plain, await explained

    plain, explained = serve(plan, work)
    assert plain.json()["score"] == explained.json()["score"]
    assert explained.json()["explanation"]["method"] == "sampled"
    assert version.threads[0].startswith("tiercel-explain")


def test_who_waits_for_the_thread_is_explained_later(tmp_path):
    """What is before it in the thread counts: where the two do not fit the deadline, the second is put off."""
    recorder = Recorder(tmp_path, 0, "0" * 16, JournalSettings())
    plan, version = slow_plan(cost_us=700_000.0, recorder=recorder.for_plan("line", 1, signature_of()))

    async def work(client):
        body = {"features": ROW, "explain": "full", "deadline_ms": 1000}
        first = asyncio.create_task(client.post("/predict/line", json=body))
        assert await asyncio.to_thread(version.began.wait, 5)
        second = await client.post("/predict/line", json=body)
        version.gate.set()
        return second.json(), (await first).json()

    second, first = serve(plan, work)
    recorder.close()
    assert first["explanation"]["method"] == "sampled"
    assert second["explanation"] == {"method": "later", "href": f"/predictions/{second['id']}/explanation"}


@pytest.mark.parametrize(
    ("cost_us", "n_rows", "deadline_us", "method"),
    [
        pytest.param(9_999, 1, None, "exact", id="within the tier's bound"),
        pytest.param(10_001, 1, None, "none", id="beyond it"),
        pytest.param(9_999, 4, None, "exact", id="the bound is each row's"),
        pytest.param(10_001, 1, 60_000_000, "exact", id="the request allows it"),
        pytest.param(2_501, 4, 10_001, "none", id="a deadline is the whole request's"),
        pytest.param(9_999, 100, None, "exact", id="most that nobody asked to hurry"),
        pytest.param(10_001, 100, None, "none", id="and no more"),
    ],
)
def test_the_budget_decides(monkeypatch, cost_us, n_rows, deadline_us, method):
    """Measured cost against what is left of the deadline, or of the tier's bound for each row, at most a second."""
    plan = plan_of(explanations=explanations_of(signature_of(), cost_us=(0.0, float(cost_us))))
    prepared = plan.prepare({}, {name: [value] * n_rows for name, value in ROW.items()}, 0)
    prepared.score()
    monkeypatch.setattr(explaining, "time", SimpleNamespace(monotonic_ns=lambda: prepared.read_ns))
    budget = Budget(prepared.read_ns, deadline_us, "deadline_ms")
    served = Served(prepared, budget.over(Tier.REALTIME))
    asyncio.run(explaining.Explaining().explain(served, ExplainRequest()))
    assert json.loads(prepared.explanation("1" * 17))["explanation"]["method"] == method


def test_jobs_are_not_explained():
    """Neither in the job nor later, for its scores have no ids: who asks for both is told to ask by the rows."""
    reply = post(plan_of(), "/predict/line", {"features": ROW, "explain": "full", "tier": "batch"}, jobs=Jobs())
    assert (reply.status_code, reply.json()["code"]) == (400, "invalid_explain")
    assert "scores have no ids" in reply.json()["error"]
    assert "a row in another tier" in reply.json()["error"]


# -- V1 ---------------------------------------------------------------------------------------------------------------

V1 = "/v1/models/line:explain"


@pytest.mark.parametrize("which", ["instances", "inputs"])
def test_v1_explains_each_instance(which):
    """`:explain` answers what `:predict` does, and beside it one explanation for each row."""
    rows = [{name: MANY[name][row] for name in FEATURES} for row in range(2)]
    body = {which: rows if which == "instances" else MANY}
    reply = post(plan_of(), V1, body).json()
    scores = "predictions" if which == "instances" else "outputs"
    assert reply[scores] == post(plan_of(), "/v1/models/line:predict", body).json()[scores]
    first, second = reply["explanations"]
    assert first["contributions"] == contributions(ROW.values())
    assert first["method"] == "exact"
    assert [reason["code"] for reason in first["reasons"]] == ["a", "b", "c"]
    assert second.get("reasons") is None  # its b is missing, and a linear model has no score without it


def test_v1_options():
    """The options "explain", "locale" and "k" are those of our own protocol; other fields and words are refused."""
    body = {"instances": [ROW]}
    told = post(plan_of(), V1, {**body, "explain": "reasons", "k": 2}).json()["explanations"][0]
    assert len(told["reasons"]) == 2
    assert "contributions" not in told
    for wrong, code in (
        ({"explain": "no"}, "invalid_explain"),
        ({"why": 1}, "unknown_field"),
        ({"k": 0}, "invalid_explain"),
    ):
        reply = post(plan_of(), V1, body | wrong)
        assert (reply.status_code, reply.json()["code"]) == (400, code)
    assert post(plan_of(), "/v1/models/line:predict", {**body, "explain": "full"}).json()["code"] == "unknown_field"


def test_v1_without_an_explainer():
    """Each row says that there is none."""
    plan = plan_of(explanations=Explanations(3, 1, why="none was made"))
    told = post(plan, V1, {"instances": [ROW, ROW]}).json()["explanations"]
    assert told == [{"method": "none", "why": "none was made"}] * 2


# -- the Open Inference Protocol --------------------------------------------------------------------------------------


def infer(parameters=None, **more):
    inputs = [{"name": name, "datatype": "FP64", "shape": [2], "data": MANY[name]} for name in ("a", "c")]
    inputs.append({"name": "b", "datatype": "FP64", "shape": [2], "data": [0.5, 0.5]})
    return {"inputs": inputs, "parameters": parameters or {}, **more}


def test_oip_has_an_output_more():
    """With the parameter a second tensor has one JSON object per row; without it there is none."""
    told = post(plan_of(), "/v2/models/line/infer", infer({"explain": "full"})).json()["outputs"]
    assert [output["name"] for output in told] == ["score", "explanation"]
    assert (told[1]["datatype"], told[1]["shape"]) == ("BYTES", [2])
    rows = [json.loads(text) for text in told[1]["data"]]
    assert rows[0]["contributions"] == contributions(ROW.values())
    assert [row["method"] for row in rows] == ["exact"] * 2
    plain = post(plan_of(), "/v2/models/line/infer", infer()).json()["outputs"]
    assert [output["name"] for output in plain] == ["score"]
    assert plain[0]["data"] == told[0]["data"]


def test_oip_binary():
    """Asked for as binary it is Triton's: a length of four bytes before each text, behind the scores."""
    request = infer(
        {"explain": "reasons", "k": 1},
        outputs=[
            {"name": "score", "parameters": {"binary_data": True}},
            {"name": "explanation", "parameters": {"binary_data": True}},
        ],
    )
    reply = post(plan_of(), "/v2/models/line/infer", request)
    at = int(reply.headers["inference-header-content-length"])
    head = json.loads(reply.content[:at])
    raw = reply.content[at + 16 :]
    assert head["outputs"][1]["parameters"]["binary_data_size"] == len(raw)
    size = int.from_bytes(raw[:4], "little")
    assert [each["code"] for each in json.loads(raw[4 : 4 + size])["reasons"]] == ["a"]


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        pytest.param(infer({"explain": "yes"}), "invalid_explain", id="another word"),
        pytest.param(infer({"k": 3}), "invalid_explain", id="k alone"),
        pytest.param(infer({"explain": "full", "k": 99}), "invalid_explain", id="k too large"),
        pytest.param(infer(outputs=[{"name": "explanation"}]), "invalid_explain", id="output without the parameter"),
        pytest.param(infer({"explain": "full"}, outputs=[{"name": "why"}]), "unknown_output", id="no such output"),
    ],
)
def test_oip_refusals(request_, code):
    """What cannot be asked for is refused with its code."""
    reply = post(plan_of(), "/v2/models/line/infer", request_)
    assert (reply.status_code, reply.json()["code"]) == (400, code)


@pytest.mark.parametrize("explain", ["reasons", "full"])
@pytest.mark.parametrize("path", [V1, "/v2/models/line/infer"], ids=["V1", "OIP"])
def test_what_would_keep_the_event_loop_is_refused(monkeypatch, path, explain):
    """More rows than may be told at once are refused before one is explained; as many as may be are explained."""
    each = explaining.REASONS_VALUES + {"reasons": 3, "full": 6}[explain]
    monkeypatch.setattr(explaining, "MOST_VALUES", 3 * each - 1)
    plan = plan_of()

    def ask(n_rows):
        if path == V1:
            return post(plan, path, {"instances": [ROW] * n_rows, "explain": explain})
        inputs = [{"name": k, "datatype": "FP64", "shape": [n_rows], "data": [v] * n_rows} for k, v in ROW.items()]
        return post(plan, path, {"inputs": inputs, "parameters": {"explain": explain}})

    assert ask(2).status_code == 200
    reply = ask(3)
    assert (reply.status_code, reply.json()["code"]) == (413, "explanation_too_large")
    what = {"reasons": "reasons", "full": "all 3 contributions"}[explain]
    assert reply.json()["error"].startswith(f"Expected at most 2 rows with {what} of each")
    assert post(plan, "/v1/models/line:predict", {"instances": [ROW] * 3}).status_code == 200


# -- what was answered before -----------------------------------------------------------------------------------------


@pytest.fixture
def past(tmp_path):
    """(a recorder of plans, options of a data plane that finds its records)."""
    ids = make_ids(SETTINGS)
    recorder = Recorder(tmp_path, 0, ids.prefix, JournalSettings())
    yield recorder.for_plan("line", 1, signature_of()), {"project": Settings(tmp_path, "tests", tmp_path), "ids": ids}
    recorder.close()


def explained_later(past, bodies, query=""):
    recorder, options = past
    plan = plan_of(recorder=recorder)

    async def work(client):
        replies = [(await client.post("/predict/line", json=body)).json() for body in bodies]
        found = [await client.get(f"/predictions/{reply['id']}/explanation{query}") for reply in replies]
        return list(zip(replies, found, strict=True))

    return serve(plan, work, **options)


@pytest.mark.parametrize("features", [ROW, MANY], ids=["one", "many"])
def test_an_earlier_prediction_is_explained_as_then(past, features):
    """Its explanation, recomputed from the record, is the one that its reply had."""
    [(then, now)] = explained_later(past, [{"features": features, "explain": "full"}])
    assert now.status_code == 200
    told = now.json()
    assert told.pop("explained_by")["settings"] == "unknown"  # the record of this plan binds nothing
    assert told == {name: then[name] for name in told}
    assert {"id", "model", "version", "explanation"} <= told.keys()


def test_who_did_not_ask_may_ask_later(past):
    """A prediction without an explanation has one afterwards; the query says how much of it."""
    [(then, now)] = explained_later(past, [{"features": ROW}], "?explain=reasons&k=2")
    assert (now.json()["score"], len(now.json()["reasons"])) == (then["score"], 2)
    assert "contributions" not in now.json()["explanation"]


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/predictions/0123456789abcdef77/explanation", 404, "receipt_not_found"),
        ("/predictions/ffffffffffffffff1/explanation", 404, "receipt_not_found"),
        ("/predictions/zz/explanation", 400, "invalid_request"),
        ("/predictions/0123456789abcdef1/explanation?explain=some", 400, "invalid_explain"),
        ("/predictions/0123456789abcdef1/explanation?k=x", 400, "invalid_explain"),
        ("/predictions/0123456789abcdef1/explanation?full=1", 400, "unknown_field"),
        ("/predictions/0123456789abcdef1/reasons", 404, "unknown_path"),
    ],
)
def test_what_cannot_be_found(past, path, status, code):
    """An id outside of the journal, what is no id, and a query that makes no sense: each is told apart."""
    _, options = past
    reply = serve(plan_of(), lambda client: client.get(path), **options)
    assert (reply.status_code, reply.json()["code"]) == (status, code)


@pytest.mark.parametrize(
    ("server", "status"),
    [
        pytest.param({}, 404, id="loopback"),
        pytest.param({"host": "0.0.0.0"}, 403, id="every interface"),
        pytest.param({"host": "models.example"}, 403, id="a name"),
        pytest.param({"host": "0.0.0.0", "explanations": True}, 404, id="every interface, as set"),
        pytest.param({"explanations": False}, 403, id="loopback behind a proxy, as set"),
    ],
)
def test_strangers_are_not_told_what_others_asked(past, server, status):
    """Ids can be guessed: a port that other machines reach explains nothing by id, before it looks, unless that is set."""
    settings = replace(SETTINGS, **server)
    path = "/predictions/ffffffffffffffff1/explanation"
    reply = serve(plan_of(), lambda client: client.get(path), settings=settings, **past[1])
    assert reply.status_code == status
    assert reply.json()["code"] == {404: "receipt_not_found", 403: "explanations_closed"}[status]


def test_where_a_closed_port_s_explanation_can_be_had(past):
    """A reply that put its explanation off names a path; on a closed port that path says where to ask for it instead."""
    recorder, options = past
    plan = plan_of(explanations=explanations_of(signature_of(), cost_us=(0.0, 20_000.0)), recorder=recorder)

    async def work(client):
        body = {"features": ROW, "explain": "full", "deadline_ms": 10}
        then = (await client.post("/predict/line", json=body)).json()
        return then, await client.get(then["explanation"]["href"])

    then, reply = serve(plan, work, settings=replace(SETTINGS, explanations=False), **options)
    assert then["explanation"]["method"] == "later"
    assert (reply.status_code, reply.json()["code"]) == (403, "explanations_closed")
    assert f"admin port, for /api{then['explanation']['href']}:" in reply.json()["error"]


def test_only_so_many_wait(past, monkeypatch):
    """One thread explains what was answered before; who comes when too many wait is told to come back."""
    _, options = past
    monkeypatch.setattr(recorded, "MOST_WAITING", 0)
    reply = serve(plan_of(), lambda client: client.get("/predictions/0123456789abcdef1/explanation"), **options)
    assert reply.status_code == 503
    assert "retry-after" in reply.headers


def test_a_recorded_default_has_no_reasons(past):
    """A default that was answered is no model's score, afterwards either."""
    recorder, options = past
    declared = [ModelSettings("line", default_score=0.5)]
    slow = plan_of(needs_us=(0, 50_000, 1), recorder=recorder)

    async def work(client):
        then = (await client.post("/predict/line", json={"features": ROW, "deadline_ms": 1})).json()
        return then, (await client.get(f"/predictions/{then['id']}/explanation")).json()

    then, now = serve(slow, work, declared=declared, **options)
    assert then["degraded"]["by"] == "default"
    assert now["score"] == 0.5
    assert "no model answered" in now["explanation"]["why"]


def test_stacks_of_rows_may_be_too_much():
    """What would take minutes is not begun: the reply says how long it would take."""
    plan = plan_of(explanations=explanations_of(signature_of(), cost_us=(0.0, 1e6)))
    rows = np.ones((100, 3), np.float32)
    scores = plan.scorer.score(rows)
    receipt = SimpleNamespace(
        features=FEATURES, rows=rows, scores=scores, is_many=True, degraded=None, id="0" * 17, bindings={}
    )
    told = recorded.explain_receipt(plan, [receipt], ExplainRequest(is_full=True))
    assert told["explanation"] == {"method": "none", "why": "explaining 100 rows would take 100 s"}
