"""The tiers in a real server: a slowed champion, a rollout, a shadow, a queue and jobs, from the client's side."""

from __future__ import annotations

import itertools
import json
import signal
import socket
import threading
import time
from types import SimpleNamespace

import httpx
import lightgbm
import msgpack
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.e2e.test_native import read_reply
from tests.support import projects

from tiercel.models.profile import CostProfile, ProfileStore, Quantiles, this_host
from tiercel.monitor.journal import read_journal
from tiercel.project import Project

TOML = """
[project]
name = "shop"
[control]
port = 0
[models.slow]
fallback = "small:1"
[models.split]
challenger_weight = 0.5
[models.watched]
shadow = "next"
[models.misspelt]
fallback = "smal"
"""
ENTITIES = {"customer_id": 5, "shop": "a", "country": "nl"}
BODY = {"entities": ENTITIES, "features": {"amount": 0.5}}
QUICK, MIDDLING, SLUGGISH, SLOW = (
    150.0,
    12_000.0,
    45_000.0,
    300_000.0,
)  # microseconds of one prediction, as the profiles have it


def profile(total_us, score_us):
    """A cost that nobody measured: each test says how slow its model is."""
    return CostProfile(
        host=this_host(),
        measured_us=time.time_ns() // 1000,
        n_samples=1000,
        read=Quantiles(5.0, 10.0, 20.0),
        score=Quantiles(score_us / 2, score_us, score_us),
        total=Quantiles(total_us / 2, total_us, total_us),
        curve=((1, score_us / 2, score_us), (512, 4 * score_us, 5 * score_us)),
        load_ms=1.0,
        memory_mb=1.0,
    )


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Versions of one training set under several names, each with a profile that fits its part."""
    directory = projects.write_project(tmp_path_factory.mktemp("tiers") / "project")
    (directory / "tiercel.toml").write_text(TOML)
    with Project(directory) as project:
        project.apply()
        project.materialize()
        training_set = project.get_historical_features(projects.labels(), "checkout", label_columns=["label"])
        store = ProfileStore(project.settings.state_dir)

        seeds = itertools.count(1)  # of different files: a profile is of a file, whatever it is registered as

        def add(name, total_us, *, alias="champion", trees=8, seed=None, n_jobs=1, score=0.9):
            seed = next(seeds) if seed is None else seed
            options = {"n_estimators": trees, "num_leaves": 7, "random_state": seed, "verbose": -1, "n_jobs": n_jobs}
            model = lightgbm.LGBMClassifier(colsample_bytree=0.5, min_child_samples=1, **options)
            model.fit(training_set.X, training_set.label())
            version = project.register(model, name=name, training_set=training_set, alias=alias, measure=False)
            store.put(version.manifest_digest, profile(total_us, score * total_us))

        add("slow", SLUGGISH)
        add("small", QUICK, alias=None)
        add("small", QUICK)
        for name, alias in (("split", "challenger"), ("watched", "next")):
            add(name, QUICK)
            add(name, QUICK, alias=alias)
        add("misspelt", QUICK)
        add("queued", MIDDLING, trees=300, score=0.1)
        add("heavy", SLOW, seed=0)
        add("twin", QUICK, seed=0, n_jobs=2)  # the same trees in another file
    return directory


@pytest.fixture(scope="module")
def server(directory):
    with projects.running_server(directory) as (url, process), httpx.Client(base_url=url, timeout=30) as client:
        yield SimpleNamespace(url=url, process=process, client=client, directory=directory)


def ask(server, model, body, kind="application/json", *, chunked=False):
    content = json.dumps(body).encode() if kind == "application/json" else msgpack.packb(body)
    content = iter([content]) if chunked else content
    reply = server.client.post(f"/predict/{model}", content=content, headers={"content-type": kind})
    reply.data = reply.json() if kind == "application/json" else msgpack.unpackb(reply.content)
    return reply


def metric(server, name, **labels):
    text = httpx.get(f"{server.process.admin_url}/metrics").text
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def records(server):
    return {record.id: record for record in read_journal(server.directory / ".tiercel" / "journal")}


def soon(condition):
    """What `condition` gives once it is something."""
    give_up_s = time.monotonic() + 10
    while not (found := condition()):
        assert time.monotonic() < give_up_s
        time.sleep(0.02)
    return found


@pytest.mark.parametrize("chunked", [False, True], ids=["fast path", "general path"])
@pytest.mark.parametrize("kind", ["application/json", "application/msgpack"])
def test_a_slow_champion_is_replaced_up_front(server, kind, chunked):
    """With less time than the champion's measured cost the fallback, a version by number, answers and says so."""
    before = metric(server, "tiercel_degraded_total")
    own = ask(server, "small:1", BODY).data
    reply = ask(server, "slow", {**BODY, "deadline_ms": 8}, kind, chunked=chunked)
    assert reply.status_code == 200
    assert reply.data["degraded"] == {"by": "fallback", "instead_of": "slow:1", "reason": "deadline"}
    assert (reply.data["model"], reply.data["version"], reply.data["score"]) == ("small", 1, own["score"])
    record = records(server)[reply.data["id"]]
    assert (record.plan.model, record.degraded, record.degrade_reason) == ("small", "fallback", "deadline")
    assert metric(server, "tiercel_degraded_total") == before + 1
    in_time = ask(server, "slow", {**BODY, "deadline_ms": 5000}, kind, chunked=chunked)
    assert (in_time.data["model"], in_time.data.get("degraded")) == ("slow", None)
    assert in_time.data["tier"] == "near-realtime"


def test_too_little_time_for_all_is_refused_with_numbers(server):
    """Even the fallback needs some time: less is 504, with what was given and what it takes."""
    reply = ask(server, "slow", {**BODY, "deadline_ms": 0.05})
    assert (reply.status_code, reply.data["code"]) == (504, "deadline_exceeded")
    assert reply.data["budget_ms"] == 0.05
    assert 0.1 < reply.data["needed_ms"] < 1


def test_no_time_out_under_load(server):
    """Four connections of tight requests for the slowed champion: each is answered, by its stand-in."""
    replies, failures = [], []

    def load():
        try:
            with httpx.Client(base_url=server.url, timeout=30) as client:
                for _ in range(60):
                    reply = client.post("/predict/slow", json={**BODY, "deadline_ms": 40})
                    replies.append((reply.status_code, reply.json().get("degraded", {}).get("by")))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failures == []
    assert set(replies) == {(200, "fallback")}
    assert len(replies) == 240


def test_arms_are_sticky_and_recorded(server):
    """About half of the customers get the challenger, always the same ones; reply, version and journal agree."""
    turns = [
        [ask(server, "split", {**BODY, "entities": {**ENTITIES, "customer_id": i}}).data for i in range(60)]
        for _ in range(2)
    ]
    arms = [[reply.get("arm", "champion") for reply in turn] for turn in turns]
    assert arms[0] == arms[1]
    assert 10 <= arms[0].count("challenger") <= 50
    found = records(server)
    for reply, arm in zip(turns[0], arms[0], strict=True):
        assert reply["version"] == (2 if arm == "challenger" else 1)
        assert found[reply["id"]].arm == arm


def test_shadows_are_recorded_beside_the_answers(server):
    """Every answer of the champion is followed by a flagged record of the shadow, whose score nobody was sent."""
    answers = [ask(server, "watched", {**BODY, "features": {"amount": i / 10}}).data for i in range(10)]
    assert {answer["version"] for answer in answers} == {1}
    soon(lambda: metric(server, "tiercel_shadow_total", outcome="scored") == 10)
    found = [record for record in records(server).values() if record.plan.model == "watched"]
    shadows = [record for record in found if record.is_shadow]
    assert ([record.plan.version for record in shadows], len(found)) == ([2] * 10, 20)
    amounts = [np.float32(i / 10) for i in range(10)]
    assert sorted(record.rows[0, record.plan.features.index("amount")] for record in shadows) == amounts


@pytest.mark.parametrize(("model", "more"), [("heavy", {}), ("small", {"tier": "batch"})])
def test_jobs_give_the_same_scores(server, model, more):
    """A model whose only tier is batch, and any model when asked, answers 202; the results are those of the scorer."""
    body = {
        "entities": {**ENTITIES, "customer_id": list(range(50))},
        "features": {"amount": [i / 50 for i in range(50)]},
    }
    accepted = ask(server, model, {**body, **more})
    assert accepted.status_code == 202
    where = accepted.headers["location"]
    soon(lambda: server.client.get(where).json()["state"] == "done")
    scores = server.client.get(f"{where}/results").json()["scores"]
    twin = {"heavy": "twin", "small": "small"}[model]  # of the same trees
    assert scores == ask(server, twin, body).data["scores"]


def test_an_answer_now_from_a_batch_model_is_refused(server):
    """Who asks a batch model for a faster tier hears that there is none."""
    reply = ask(server, "heavy", {**BODY, "tier": "realtime"})
    assert (reply.status_code, reply.data["code"]) == (400, "tier_denied")


def test_many_rows_are_answered_whatever_they_take(server):
    """Thousands of rows without a deadline are no failure of a realtime model, nor of one with a queue."""
    body = {"entities": {**ENTITIES, "customer_id": [i % 200 for i in range(8000)]}, "features": {"amount": 0.5}}
    for model in ("small", "queued"):
        reply = ask(server, model, body)
        assert reply.status_code == 200, reply.text[:300]
        assert len(reply.data["scores"]) == 8000


def test_mistakes_are_named(server):
    """/readyz says what is declared in vain, and nothing of what works."""
    ready = server.client.get("/readyz").json()
    assert [problem.partition(". Registered")[0] for problem in ready["problems"]] == [
        "[models.misspelt] fallback: expected a registered model, got 'smal'"
    ]


def request_of(body, model):
    content = json.dumps(body).encode()
    head = f"POST /predict/{model} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def test_clients_that_leave_are_not_waited_for(server):
    """Connections that close behind their request take it out of the queue; whoever stays is answered."""
    host, port = server.url.removeprefix("http://").split(":")
    many = {"entities": {**ENTITIES, "customer_id": [i % 200 for i in range(8000)]}, "features": {"amount": 0.5}}

    def leave():
        with socket.create_connection((host, int(port)), timeout=10) as busy:
            busy.sendall(request_of(many, "queued"))
            for _ in range(10):
                with socket.create_connection((host, int(port)), timeout=10) as leaving:
                    leaving.sendall(request_of({**BODY, "tier": "near-realtime"}, "queued"))
            with busy.makefile("rb") as stream:
                assert read_reply(stream)[0] == 200
        return metric(server, "tiercel_errors_total", code="client_disconnected")

    soon(leave)
    assert ask(server, "queued", BODY).status_code == 200


def test_a_stop_answers_what_waits(directory):
    """SIGTERM while the queue is full of work: everything that was sent before is answered, and the status is 0."""
    with projects.running_server(directory) as (url, process):
        host, port = url.removeprefix("http://").split(":")
        connections = [socket.create_connection((host, int(port)), timeout=10) for _ in range(12)]
        streams = [connection.makefile("rb") for connection in connections]
        rows = {"entities": {**ENTITIES, "customer_id": [i % 200 for i in range(500)]}, "features": {"amount": 0.5}}
        for connection, stream in zip(connections, streams, strict=True):
            connection.sendall(request_of(BODY, "queued"))
            assert read_reply(stream)[0] == 200
        for connection in connections:
            connection.sendall(request_of({**rows, "deadline_ms": 20_000}, "queued"))
        process.send_signal(signal.SIGTERM)
        for connection, stream in zip(connections, streams, strict=True):
            status, content = read_reply(stream)
            assert (status, len(json.loads(content)["scores"])) == (200, 500)
            assert stream.read() == b""
            stream.close()
            connection.close()
        assert process.wait(20) == 0
