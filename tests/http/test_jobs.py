"""The batch tier over HTTP: accepted with an id, asked by id, streamed in three formats, run by the control process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sys
import time
from dataclasses import replace
from datetime import datetime

import httpx
import msgpack
import pyarrow as pa
import pytest
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route
from tests.support import projects
from tests.support.jobs import NOW_US, question

from tiercel import Project
from tiercel.batch.runner import Runner
from tiercel.errors import (
    CapacityError,
    DeadlineError,
    EntityNotFoundError,
    JobsDisabledError,
    JobStorageError,
    RequestError,
)
from tiercel.http import job_runner, payload
from tiercel.http.control import ControlPlane
from tiercel.http.job_replies import ARROW
from tiercel.http.job_runner import JobRunner
from tiercel.http.jobs import JobEndpoints, accepted_type, retry_after
from tiercel.http.request import parse_predict
from tiercel.monitor.counting import WorkerCounters
from tiercel.serving.deadline import Deadline
from tiercel.serving.engine import Engine
from tiercel.serving.job_question import CHUNK_ROWS
from tiercel.serving.jobs import JobLimits, JobStore
from tiercel.serving.router import Question
from tiercel.settings import ControlSettings


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    directory = projects.ready_project(tmp_path_factory.mktemp("template") / "project")
    (directory / "tiercel.toml").write_text('[project]\nname = "shop"\n[control]\nport = 0\n')
    return directory


@pytest.fixture
def project(template, tmp_path):
    shutil.copytree(template, tmp_path / "project")
    with Project(tmp_path / "project") as opened:
        yield opened


@pytest.fixture
def plan(project):
    engine = Engine(project.settings, project.registry)
    engine.refresh()
    return engine.find_plan("fraud")


class Client:
    """A data plane of the jobs' endpoints, with a prediction's path that sends everything to the batch tier."""

    def __init__(self, settings, plan, **options):
        self.counters = WorkerCounters()
        self.endpoints = JobEndpoints(settings, self.counters, **options)
        self.plan = plan

        async def predict(request):
            asked = parse_predict(payload.decode(await request.body(), payload.JSON, 10**6), 10**6)
            status, body, headers = await self.endpoints.submit(
                self.plan, Question(asked.entities, asked.features, asked.now_us)
            )
            response = Response(json.dumps(body), status)
            response.raw_headers.extend(headers)
            return response

        self.app = Starlette(routes=[Route("/predict/fraud", predict, methods=["POST"]), *self.endpoints.routes()])

    def send(self, method, path, **options):
        async def exchange():
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app=self.app), base_url="http://test") as client:
                return await client.request(method, path, **options)

        return asyncio.run(exchange())

    def submit(self, asked):
        """Returns the id."""
        body = {"entities": asked.entities, "features": asked.features, "now": asked.now_us}
        reply = self.send("POST", "/predict/fraud", content=json.dumps(body))
        assert reply.status_code == 202, reply.text
        return reply.json()["job"]


@pytest.fixture
def client(project, plan):
    return Client(project.settings, plan)


class Never:
    def wait(self, seconds):
        time.sleep(min(seconds, 0.01))
        return False


def run(project):
    Runner(project.settings, JobStore(project.settings.state_dir), project.registry).run(Never(), idle_s=0)


def test_accepted_with_an_id(client):
    """202 names the job, where it is asked about, and when; it waits, then."""
    asked = question(3)
    body = {"entities": asked.entities, "features": asked.features, "now": NOW_US}
    reply = client.send("POST", "/predict/fraud", content=json.dumps(body))
    job_id = reply.json()["job"]
    assert reply.status_code == 202
    assert reply.json() == {"job": job_id, "status": f"/jobs/{job_id}", "results": f"/jobs/{job_id}/results"}
    assert reply.headers["location"] == f"/jobs/{job_id}"
    assert 1 <= int(reply.headers["retry-after"]) <= 3600
    status = client.send("GET", reply.headers["location"])
    assert status.status_code == 200
    assert int(status.headers["retry-after"]) >= 1
    data = status.json()
    assert data.pop("created").endswith("+00:00")
    assert data == {
        "id": job_id,
        "state": "waiting",
        "model": "fraud",
        "version": 1,
        "rows": 3,
        "rows_done": 0,
        "due": None,
        "started": None,
        "finished": None,
        "error": None,
    }
    early = client.send("GET", f"/jobs/{job_id}/results")
    assert (early.status_code, early.json()["code"]) == (409, "job_not_finished")
    assert int(early.headers["retry-after"]) >= 1


@pytest.mark.parametrize("n_rows", [None, 1, 2 * CHUNK_ROWS + 5])
def test_results_are_the_synchronous_ones(project, plan, client, n_rows):
    """In every format, for one row and for many, the scores are those of the synchronous path to the last bit."""
    asked = question(n_rows)
    job_id = client.submit(asked)
    run(project)
    is_single, expected, age_us, missing = plan.predict(asked.entities, asked.features, asked.now_us)
    head = {
        "id": job_id,
        "model": "fraud",
        "version": 1,
        "tier": "batch",
        "features": {
            "oldest_age_ms": age_us / 1000,
            "missing": [name for name, _ in missing] if is_single else dict(missing),
        },
    }
    name = "score" if is_single else "scores"
    path = f"/jobs/{job_id}/results"
    as_json = client.send("GET", path)
    assert as_json.headers["content-type"] == "application/json"
    assert as_json.json() == {**head, name: expected}
    assert int(as_json.headers["content-length"]) == len(as_json.content)
    as_msgpack = client.send("GET", path, headers={"accept": "application/msgpack"})
    assert as_msgpack.headers["content-type"] == "application/msgpack"
    assert msgpack.unpackb(as_msgpack.content) == {**head, name: expected}
    as_arrow = client.send("GET", path, headers={"accept": ARROW})
    assert as_arrow.headers["content-type"] == ARROW
    with pa.ipc.open_stream(as_arrow.content) as stream:
        table = stream.read_all()
    assert table["score"].to_pylist() == ([expected] if is_single else expected)
    assert json.loads(table.schema.metadata[b"tiercel.version"]) == 1
    status = client.send("GET", f"/jobs/{job_id}")
    assert (status.json()["state"], status.json()["rows_done"]) == ("done", n_rows or 1)
    assert "retry-after" not in status.headers


def test_scores_of_several_classes(project, client):
    """A multiclass row is a list of one number per class in every format."""
    store = JobStore(project.settings.state_dir)
    for asked, found in ((question(2), [[0.1, 0.2, 0.7], [1.0, 0.0, 0.0]]), (question(), [[0.1, 0.2, 0.7]])):
        job = store.submit(asked, model="kind", version=4, classes=("x", "y", "z"))
        with store.claim_next() as claim, claim.results() as results:
            results.write(found)
            claim.finish(results, None, {})
        path = f"/jobs/{job.id}/results"
        name, value = ("score", found[0]) if job.is_single else ("scores", found)
        assert client.send("GET", path).json()[name] == value
        assert (
            msgpack.unpackb(client.send("GET", path, headers={"accept": "application/x-msgpack"}).content)[name]
            == value
        )
        with pa.ipc.open_stream(client.send("GET", path, headers={"accept": ARROW}).content) as stream:
            table = stream.read_all()
        assert table["score"].to_pylist() == found
        assert json.loads(table.schema.metadata[b"tiercel.classes"]) == ["x", "y", "z"]


def test_large_results_stream(project, client):
    """A large result is sent in pieces and never held whole: a worker takes a few pieces' memory for it."""
    import tracemalloc

    store = JobStore(project.settings.state_dir)
    asked = Question({}, {"x": list(range(1000)) * 300}, 0)
    job = store.submit(asked, model="m", version=1)
    with store.claim_next() as claim, claim.results() as results:
        for chunk in claim.chunks():
            results.write([at / 7 for at in range(chunk.n_rows)])
        claim.finish(results, None, {})

    async def read():
        n_bytes, parts = 0, 0

        async def send(message):
            nonlocal n_bytes, parts
            n_bytes += len(message.get("body", b""))
            parts += 1

        async def receive():
            await asyncio.sleep(30)

        scope = {"type": "http", "method": "GET", "path": f"/jobs/{job.id}/results", "headers": [], "query_string": b""}
        await client.app({**scope, "root_path": "", "http_version": "1.1"}, receive, send)
        return n_bytes, parts

    asyncio.run(read())
    tracemalloc.start()
    n_bytes, parts = asyncio.run(read())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert n_bytes > 5_000_000
    assert parts > 15
    assert peak < 2_000_000


def test_ids_that_are_none(client):
    """Unknown, malformed and escaped ids are 404 in the body of every error, whatever is done to them."""
    for text in ("06611bfe8a204f-538a1ceed9951ea7", "x", "..", "%2e%2e%2fsecret", "a%00b", "x" * 3000):
        for method, path in (("GET", f"/jobs/{text}"), ("DELETE", f"/jobs/{text}"), ("GET", f"/jobs/{text}/results")):
            reply = client.send(method, path)
            assert reply.status_code == 404
            if ".." not in text and "%2f" not in text:  # these never get as far as an endpoint
                assert reply.json()["code"] == "job_not_found"
    as_msgpack = client.send("GET", "/jobs/x", headers={"accept": "application/msgpack"})
    assert msgpack.unpackb(as_msgpack.content)["code"] == "job_not_found"


def test_replies_are_counted(client, monkeypatch):
    """Every reply is in the worker's counters, refusals and failures by their code."""
    counted = []
    counters = type("Counters", (), {"count_reply": lambda _, status, code: counted.append((status, code))})()
    monkeypatch.setattr(client.endpoints, "_counters", counters)
    job_id = client.submit(question(1))
    client.send("GET", f"/jobs/{job_id}")
    client.send("GET", f"/jobs/{job_id}/results")
    client.send("DELETE", "/jobs/x")
    monkeypatch.setattr(client.endpoints._store, "cancel", lambda _id: 1 / 0)
    reply = client.send("DELETE", f"/jobs/{job_id}")
    assert (reply.status_code, reply.json()["code"]) == (500, "internal_error")
    assert counted == [(200, None), (409, "job_not_finished"), (404, "job_not_found"), (500, "internal_error")]


def test_damaged_results_break_off(project, client):
    """A reply whose results turn out to be altered never ends as if it were whole."""
    job_id = client.submit(question(3))
    run(project)
    path = project.settings.state_dir / "jobs" / "finished" / job_id / "results.jsonl"
    content = bytearray(path.read_bytes())
    content[3] = ord("1") if content[3] != ord("1") else ord("2")
    path.write_bytes(content)
    with pytest.raises(JobStorageError, match="altered"):
        client.send("GET", f"/jobs/{job_id}/results")
    path.write_bytes(content[:-1])
    reply = client.send("GET", f"/jobs/{job_id}/results")
    assert (reply.status_code, reply.json()["code"]) == (503, "job_storage")


def test_cancelling(project, client):
    """DELETE ends a job for good; its results are 409, and cancelling what is done is too."""
    job_id = client.submit(question(3))
    reply = client.send("DELETE", f"/jobs/{job_id}")
    assert (reply.status_code, reply.json()["state"]) == (200, "cancelled")
    results = client.send("GET", f"/jobs/{job_id}/results")
    assert (results.status_code, results.json()["code"]) == (409, "job_cancelled")
    done = client.submit(question(3))
    run(project)
    reply = client.send("DELETE", f"/jobs/{done}")
    assert (reply.status_code, reply.json()["code"]) == (409, "job_finished")


def test_a_failed_job_says_why(project, client):
    """A row that nobody could score is in the status with its index and code, and instead of the results."""
    asked = question(CHUNK_ROWS + 2)
    asked.entities["customer_id"][CHUNK_ROWS] = 10**9
    job_id = client.submit(asked)
    run(project)
    error = client.send("GET", f"/jobs/{job_id}").json()["error"]
    assert (error["code"], error["row"]) == ("entity_not_found", CHUNK_ROWS)
    results = client.send("GET", f"/jobs/{job_id}/results")
    assert (results.status_code, results.json()["code"]) == (409, "job_failed")
    assert "entity_not_found" in results.json()["error"]


def test_what_the_first_row_shows_is_refused_at_once(client, plan):
    """A question that does not fit the model is no job: the caller learns it as in every other tier."""
    for asked, kind, code in (
        (Question({"customer_id": [1]}, {"amount": [1.0]}, 0), RequestError, "missing_entity_key"),
        (Question({"customer_id": 10**9, "shop": "a", "country": "nl"}, {"amount": 1.0}, 0), EntityNotFoundError, None),
        (Question({}, {"unknown": [1.0]}, 0), RequestError, "unknown_feature"),
        (Question({"customer_id": [1, 2]}, {"amount": [1.0]}, 0), RequestError, "wrong_length"),
        (Question({"customer_id": 1}, {"amount": float("nan")}, 0), RequestError, "not_finite"),
    ):
        with pytest.raises(kind) as refused:
            asyncio.run(client.endpoints.submit(plan, asked))
        assert code is None or refused.value.code == code
    assert JobStore(client.endpoints._store.path.parent).list_jobs() == []


def test_without_a_control_process_jobs_are_refused(project, plan):
    """Nothing would run them, so none is accepted, and the error says which setting to change."""
    settings = replace(project.settings, control=ControlSettings(enabled=False))
    with pytest.raises(JobsDisabledError, match=r"control\.enabled = true") as refused:
        asyncio.run(Client(settings, plan).endpoints.submit(plan, question(1)))
    assert refused.value.code == "jobs_disabled"
    assert not (project.settings.state_dir / "jobs").exists()


def test_a_job_with_a_deadline(project, plan):
    """Its status says when it is due; done by then it is like any other."""
    client = Client(project.settings, plan)
    now_ns = time.monotonic_ns()
    _, told, _ = asyncio.run(
        client.endpoints.submit(plan, question(3), None, Deadline(now_ns, 600_000_000, "deadline_ms"))
    )
    status = client.send("GET", told["status"]).json()
    created, due = (datetime.fromisoformat(status[name]) for name in ("created", "due"))
    assert 590 < (due - created).total_seconds() <= 600
    run(project)
    assert client.send("GET", told["status"]).json()["state"] == "done"


@pytest.mark.parametrize(
    ("reply_us", "results_us", "said"),
    [
        (1, None, "0.000 ms: what is left of 0.001 ms from x-request-timeout-seconds"),
        (None, 1000, r"Expected 20\d\.\d+ ms for a batch job of 3 rows behind 0 others, as measured, got 0\.\d+ ms"),
    ],
)
def test_a_job_nobody_waits_for_is_not_accepted(project, plan, reply_us, results_us, said):
    """Where the client is gone before the 202, or the results would be late as measured, nothing is left behind."""
    client = Client(project.settings, plan)
    now_ns = time.monotonic_ns()
    reply = None if reply_us is None else Deadline(now_ns, reply_us, "x-request-timeout-seconds")
    results = None if results_us is None else Deadline(now_ns, results_us, "deadline_ms")
    with pytest.raises(DeadlineError, match=said) as refused:
        asyncio.run(client.endpoints.submit(plan, question(3), reply, results))
    assert "Nothing was accepted" in str(refused.value)
    assert "stand-in" not in str(refused.value)  # nobody stands in for a job
    assert JobStore(project.settings.state_dir).open_jobs() == []


def test_a_full_store_says_when_to_come_back(project, plan):
    """The refusal carries the wait, of which Retry-After is made."""
    store = JobStore(project.settings.state_dir, JobLimits(max_open=1))
    client = Client(project.settings, plan, store=store)
    client.submit(question(1))
    with pytest.raises(CapacityError) as refused:
        asyncio.run(client.endpoints.submit(plan, question(1)))
    assert refused.value.predicted_wait_us > 0


def test_retry_after_is_within_reason():
    """Whole seconds, rounded up, never none and never forever."""
    assert [retry_after(us)[1] for us in (0, 1, 1_000_001, 10**15)] == [b"1", b"1", b"2", b"3600"]


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", payload.JSON),
        ("*/*", payload.JSON),
        ("text/html", payload.JSON),
        ("application/x-msgpack", payload.MSGPACK),
        ("application/json;q=0.5, application/msgpack", payload.MSGPACK),
        ("application/json, application/msgpack;q=0.9", payload.JSON),
        (f"text/html, {ARROW};q=0.1", ARROW),
        ("application/msgpack;q=nonsense", payload.JSON),
        ("application/msgpack;q=0", payload.JSON),
    ],
)
def test_accept(accept, expected):
    """The best that both know; JSON where there is none."""
    assert accepted_type(accept, (payload.JSON, payload.MSGPACK, ARROW)) == expected


async def until(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.01)
    return value


@contextlib.asynccontextmanager
async def control(plane):
    """A control plane with its background work; yields a client."""
    async with (
        plane._starlette.router.lifespan_context(plane._starlette),
        httpx.AsyncClient(transport=httpx.ASGITransport(app=plane), base_url="http://test") as client,
    ):
        yield client


def test_the_control_plane_runs_jobs(project, monkeypatch):
    """A runner is started when a job waits, again when it is killed, and is gone when the plane is."""
    monkeypatch.setattr(job_runner, "POLL_S", 0.02)
    store = JobStore(project.settings.state_dir)
    plane = ControlPlane(project.settings)

    async def story():
        async with control(plane) as client:
            assert (await client.get("/api/jobs")).json() == {
                "jobs": [],
                "open": 0,
                "removed": {"n_old": 0, "n_for_room": 0, "n_bytes": 0},
            }
            await asyncio.sleep(0.1)
            assert plane._runner.pid is None
            first = store.submit(question(3), model="fraud", version=1)
            await until(lambda: store.status(first.id).finished_us)
            killed = plane._runner._kept.process
            killed.kill()
            second = store.submit(question(3), model="fraud", version=1)
            await until(lambda: store.status(second.id).finished_us)
            assert plane._runner.pid != killed.pid
            listed = (await client.get("/api/jobs?limit=1")).json()
            assert [job["id"] for job in listed["jobs"]] == [second.id]
            assert (await client.get(f"/api/jobs/{first.id}")).json()["state"] == "done"
            assert (await client.post(f"/api/jobs/{first.id}/cancel")).json()["code"] == "job_finished"
            assert (await client.get("/api/jobs/x")).status_code == 404
            assert (await client.get("/api/jobs?limit=0")).json()["code"] == "invalid_request"
            return plane._runner._kept.process

    process = asyncio.run(story())
    assert process.returncode is not None
    assert plane._runner.pid is None


def test_cancelling_from_the_control_plane(project):
    """POST cancels what waits."""
    store = JobStore(project.settings.state_dir)
    plane = ControlPlane(project.settings)
    job = store.submit(question(1), model="fraud", version=1)

    async def story():
        transport = httpx.ASGITransport(app=plane)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:  # without a runner
            return await client.post(f"/api/jobs/{job.id}/cancel")

    reply = asyncio.run(story())
    assert (reply.status_code, reply.json()["state"]) == (200, "cancelled")


def test_a_runner_that_dies_is_started_ever_later(project, monkeypatch, caplog):
    """A runner that cannot start costs a few attempts, not a busy loop; one that would not end is killed."""
    monkeypatch.setattr(job_runner, "POLL_S", 0.01)
    monkeypatch.setattr(job_runner, "STOP_GRACE_S", 0.2)
    store = JobStore(project.settings.state_dir)
    store.submit(question(1), model="fraud", version=1)

    async def kept(command, seconds):
        runner = JobRunner(project.settings, store, command)
        task = asyncio.create_task(runner.keep())
        await asyncio.sleep(seconds)
        process = runner._kept.process
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return process

    asyncio.run(kept(["/bin/false"], 0.6))
    assert 2 <= caplog.text.count("ended with status 1") <= 4
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    process = asyncio.run(kept([sys.executable, "-S", "-c", stubborn], 0.4))
    assert process.returncode == -9


@pytest.mark.skipif(sys.platform != "linux", reason="the served part reads /proc")
def test_results_survive_a_restart(template, tmp_path):
    """A real server's control process runs what is submitted; after SIGTERM and a new start the results are there."""
    directory = tmp_path / "project"
    shutil.copytree(template, directory)
    with Project(directory) as project:
        store = JobStore(project.settings.state_dir)
    with projects.running_server(directory) as (_, process):
        job = store.submit(question(3), model="fraud", version=1)
        deadline = time.monotonic() + 20
        while httpx.get(f"{process.admin_url}/api/jobs/{job.id}").json()["state"] != "done":
            assert time.monotonic() < deadline
            time.sleep(0.05)
    waiting = store.submit(question(2), model="fraud", version=1)
    with projects.running_server(directory) as (_, process):
        listed = httpx.get(f"{process.admin_url}/api/jobs").json()["jobs"]
        assert {entry["id"] for entry in listed} == {job.id, waiting.id}
        while httpx.get(f"{process.admin_url}/api/jobs/{waiting.id}").json()["state"] != "done":
            assert time.monotonic() < deadline + 20
            time.sleep(0.05)
    status, reader = JobStore(store.path.parent).results(job.id)
    assert len(json.loads(b"".join(reader))) == status.job.n_rows == 3
    reader.close()
