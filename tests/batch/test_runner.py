"""The runner: the synchronous path's very scores and errors, whoever kills it when; it ends when nobody needs it."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from tests.support import projects
from tests.support.jobs import NOW_US, question, scores, start_runner
from tiercel._hot.plan import ServingPlan

from tiercel import Project
from tiercel.batch import runner as runner_module
from tiercel.batch.runner import Runner, job_error
from tiercel.errors import EntityNotFoundError, RegistryUnavailableError, RequestError, TiercelError
from tiercel.serving import job_results
from tiercel.serving.engine import Engine
from tiercel.serving.job_question import CHUNK_ROWS, Chunk
from tiercel.serving.jobs import JobState, JobStore
from tiercel.serving.router import Question


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return projects.ready_project(tmp_path_factory.mktemp("template") / "project")


@pytest.fixture
def project(template, tmp_path):
    """A copy of a project with a champion, to change at will."""
    shutil.copytree(template, tmp_path / "project")
    with Project(tmp_path / "project") as opened:
        yield opened


@pytest.fixture
def store(project):
    return JobStore(project.settings.state_dir)


class Never:
    """Nobody says stop."""

    def wait(self, seconds):
        time.sleep(min(seconds, 0.01))
        return False


def run(project, *, stop=None, idle_s=0.0):
    """Run everything there is, here."""
    Runner(project.settings, JobStore(project.settings.state_dir), project.registry).run(stop or Never(), idle_s=idle_s)


def expected(project, asked, reference="fraud:1"):
    """What the synchronous path answers."""
    engine = Engine(project.settings, project.registry)
    engine.refresh()
    is_single, found, _, _ = engine.find_plan(reference).predict(asked.entities, asked.features, asked.now_us)
    return [found] if is_single else found


def submit(store, asked, version=1):
    return store.submit(asked, model="fraud", version=version)


@pytest.mark.parametrize("n_rows", [None, 1, CHUNK_ROWS, 2 * CHUNK_ROWS + 7])
def test_scores_are_the_synchronous_ones(project, store, n_rows):
    """Of one row and of many, over every border of slices: the same numbers to the last bit, in order."""
    asked = question(n_rows)
    job = submit(store, asked)
    run(project)
    status = store.status(job.id)
    assert (status.state, status.rows_done) == (JobState.DONE, n_rows or 1)
    assert scores(store, job.id) == expected(project, asked)
    assert status.results.oldest_age_us == NOW_US - int(projects.START.timestamp() * 1e6)
    customers = asked.entities["customer_id"] if n_rows else [0]
    assert status.results.missing["n_orders"] == sum(customer % 17 == 0 for customer in customers)


@pytest.mark.parametrize("n_looks", [0, 1, 2, 3])
def test_a_job_past_its_deadline_fails(project, store, monkeypatch, n_looks):
    """Wherever the time is over - before it is begun, between two slices, before it is published - it fails and says so."""
    due_us = time.time_ns() // 1000 + 60_000_000
    job = store.submit(question(2 * CHUNK_ROWS), model="fraud", version=1, due_us=due_us)
    assert store.status(job.id).job.due_us == due_us
    times_us = iter([due_us] * n_looks)
    monkeypatch.setattr(runner_module, "_now_us", lambda: next(times_us, due_us + 1))
    run(project)
    status = store.status(job.id)
    assert (status.state, status.error.code, status.error.row) == (JobState.FAILED, "deadline_exceeded", None)
    assert "Expected the job's results by" in status.error.error
    with pytest.raises(TiercelError, match="failed and has no results"):
        store.results(job.id)


def test_a_job_just_in_time_is_done(project, store, monkeypatch):
    """The last microsecond counts."""
    due_us = time.time_ns() // 1000 + 60_000_000
    job = store.submit(question(2 * CHUNK_ROWS), model="fraud", version=1, due_us=due_us)
    monkeypatch.setattr(runner_module, "_now_us", lambda: due_us)
    run(project)
    assert store.status(job.id).state is JobState.DONE


def test_the_version_is_the_one_that_was_promised(project, store):
    """A promotion between acceptance and run changes nothing: version 1 answers, which no alias needs to name."""
    asked = question(20)
    job = submit(store, asked)
    for seed in (1, 2):
        projects.train(project, seed=seed, alias="champion", colsample_bytree=0.5)
    wanted = expected(project, asked, "fraud@previous")
    run(project)
    assert scores(store, job.id) != wanted
    engine = Engine(project.settings, project.registry)
    engine.refresh()
    assert engine.find_plan("fraud:1") is None
    project.promote("fraud", 1)
    assert scores(store, job.id) == expected(project, asked)


@pytest.mark.parametrize(
    ("column", "value", "code", "place"),
    [
        pytest.param("customer_id", "seven", "wrong_type", "$.entities.customer_id[{row}]", id="a text for a number"),
        pytest.param("customer_id", 2**70, "not_finite", "$.entities.customer_id[{row}]", id="a key of too many bits"),
        pytest.param("customer_id", 10**6, "entity_not_found", "(row {row})", id="nobody"),
        pytest.param("amount", "[3]", "wrong_type", "$.features.amount[{row}]", id="a text that looks like an index"),
    ],
)
@pytest.mark.parametrize("row", [3, CHUNK_ROWS + 3])
def test_a_wrong_row_fails_the_job_as_it_fails_a_request(project, store, column, value, code, place, row):
    """The code, the row in the whole job and the text are those of the synchronous path."""
    asked = question(CHUNK_ROWS + 9)
    (asked.entities if column in asked.entities else asked.features)[column][row] = value
    job = submit(store, asked)
    after = submit(store, question(2))
    run(project)
    with pytest.raises(TiercelError) as refused:
        expected(project, asked)
    status = store.status(job.id)
    assert status.state is JobState.FAILED
    assert (status.error.code, status.error.row) == (refused.value.code, refused.value.row) == (code, row)
    assert status.error.error == str(refused.value)
    assert place.format(row=row) in status.error.error
    assert store.status(after.id).state is JobState.DONE


def test_rows_are_counted_from_the_start_of_the_job():
    """Only the place is rewritten, not what the caller sent; text that no reply can carry is escaped."""
    chunk = Chunk(2000, 10, {}, {})
    error = RequestError("Expected an integer at $.entities.a b[3], got '$.entities.x[3] \ud800'", code="x", row=3)
    told = job_error(error, chunk)
    assert told.error == "Expected an integer at $.entities.a b[2003], got '$.entities.x[3] \\ud800'"
    assert told.row == 2003
    assert job_error(EntityNotFoundError("none (row 3). Send", row=3), chunk).error == "none (row 2003). Send"
    assert job_error(RequestError("whole", code="x"), chunk).row is None


def test_a_version_that_cannot_be_loaded_fails_the_job(project, store):
    """Nobody waits for what will not come: the job says why."""
    job = submit(store, question(2), version=7)
    altered = submit(store, question(2))
    path = store.path / "open" / altered.id / "question.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    run(project)
    assert store.status(job.id).error.code == "version_not_found"
    assert store.status(altered.id).error.code == "job_storage"


def test_a_bug_fails_the_job_and_not_the_runner(project, store, monkeypatch, caplog):
    """An error that nobody foresaw ends one job; the log has it, the next job runs."""
    job, after = submit(store, question(2)), submit(store, question(2))
    real, calls = Runner._plan, []

    def plan(self, asked):
        calls.append(asked)
        if asked.id == job.id:
            raise ZeroDivisionError
        return real(self, asked)

    monkeypatch.setattr(Runner, "_plan", plan)
    run(project)
    assert len(calls) == 2
    assert store.status(job.id).error.code == "internal_error"
    assert store.status(after.id).state is JobState.DONE
    assert "ZeroDivisionError" in caplog.text


def test_a_model_that_raises_fails_its_job(project, store, monkeypatch, caplog):
    """The job's failure says what the synchronous path says, and which rows it was asked about; the log has all of it."""
    real = Runner._plan

    class Failing:
        def __init__(self, scorer):
            self.n_features, self.n_outputs = scorer.n_features, scorer.n_outputs

        def score(self, rows):
            raise IndexError("idx=5000\nin /usr/src/ort/gather.cc")

    def plan(self, asked):
        found = real(self, asked)
        return ServingPlan(found.model, found.version, found.signature, Failing(found.scorer), found.schema, found.base)

    monkeypatch.setattr(Runner, "_plan", plan)
    job = submit(store, question(3))
    run(project)
    error = store.status(job.id).error
    assert error.code == "scoring_failed"
    assert "model 'fraud' version 1, got an error of what runs it (row 0): IndexError: idx=5000 in ..." in error.error
    assert error.row == 0
    assert "gather.cc" in caplog.text


def test_what_may_pass_is_waited_for(project, store, monkeypatch):
    """A full disk, or a registry that is away, delays a job and says so; others go on, and it is done in the end."""
    job, after = submit(store, question(3)), submit(store, question(2))
    monkeypatch.setattr(runner_module, "FIRST_DELAY_S", 0.05)
    real_plan, real_write, seen = Runner._plan, job_results.write_all, []

    def plan(self, asked):
        if asked.id == job.id and len(seen) == 0:
            seen.append("registry")
            raise RegistryUnavailableError("away")
        return real_plan(self, asked)

    def write_all(descriptor, data):
        if data.count(b",") == 2 and len(seen) == 1:
            seen.append(store.status(job.id).error)
            seen.append(store.status(after.id).state)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real_write(descriptor, data)

    monkeypatch.setattr(Runner, "_plan", plan)
    monkeypatch.setattr(job_results, "write_all", write_all)
    run(project)
    assert seen == ["registry", None, JobState.DONE]
    assert [store.status(each.id).state for each in (job, after)] == [JobState.DONE] * 2
    assert scores(store, job.id) == expected(project, question(3))


def test_cancelling_stops_a_running_job(project, store):
    """A job that is cancelled while it runs ends before its rows do, and leaves no results."""
    job = submit(store, question(20 * CHUNK_ROWS))

    class CancelInTheMiddle(Never):
        n_waits = 0

        def wait(self, seconds):
            self.n_waits += 1
            if self.n_waits == 5:
                JobStore(project.settings.state_dir).cancel(job.id)
            return super().wait(seconds)

    stop = CancelInTheMiddle()
    run(project, stop=stop)
    assert stop.n_waits < 12
    assert store.status(job.id).state is JobState.CANCELLED
    assert not list(store.path.glob("*/*/*results*"))
    assert store.claim_next() is None


def test_a_stopped_runner_gives_its_job_back(project, store):
    """Told to end in the middle, it leaves a job that waits, without a try used up; the next runner answers all of it."""
    asked = question(5 * CHUNK_ROWS)
    job = submit(store, asked)

    class StopInTheMiddle(Never):
        n_waits = 0

        def wait(self, seconds):
            self.n_waits += 1
            return self.n_waits >= 4

    run(project, stop=StopInTheMiddle())
    assert store.status(job.id).state is JobState.WAITING
    assert store._shelf.attempt(store.path / "open" / job.id).n_begun == 0
    run(project)
    assert scores(store, job.id) == expected(project, asked)


def test_how_long_jobs_take_is_measured(project, store):
    """After some jobs the predicted wait is of the size of what they took."""
    submit(store, question(3 * CHUNK_ROWS))
    run(project)
    for _ in range(10):
        submit(store, question(3 * CHUNK_ROWS))
    begun_s = time.perf_counter()
    predicted_s = store.wait_us(store.list_jobs()[0]) / 1e6
    run(project)
    assert predicted_s < 60 * (time.perf_counter() - begun_s)
    last = submit(store, question(1))
    assert 0 < store.wait_us(store.status(last.id)) < 2_000_000


def until(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)
    return value


@contextlib.contextmanager
def ended(*processes):
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stdin.close()


linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@linux
def test_killed_at_any_moment_every_job_ends_once(project, store):
    """After four SIGKILLs at random moments each acknowledged job is done, was decided once, and has the right scores."""
    chance = random.Random(5)
    asked = [question(chance.choice([1, 2500, 25_000, 25_000]), first=i) for i in range(24)]
    jobs = [submit(store, each) for each in asked]
    decided, n_interrupted = {}, 0
    for _ in range(4):
        open_before = len(store.open_jobs())
        process = start_runner(project.settings)
        with ended(process):
            until(lambda n=open_before, p=process: len(store.open_jobs()) < n or p.poll() is not None)
            time.sleep(chance.random() * 0.05)
            process.kill()
            process.wait()
        n_interrupted += any(store._shelf.attempt(store.path / "open" / job.id).n_begun for job in store.open_jobs())
        for job in jobs:
            outcome = store.path / "finished" / job.id / "outcome.json"
            with contextlib.suppress(FileNotFoundError):
                assert decided.setdefault(job.id, outcome.read_bytes()) == outcome.read_bytes()
    assert n_interrupted
    assert len(decided) < len(jobs)
    run(project)
    for job, each in zip(jobs, asked, strict=True):
        assert store.status(job.id).state is JobState.DONE
        assert scores(store, job.id) == expected(project, each)
        if job.id in decided:
            assert (store.path / "finished" / job.id / "outcome.json").read_bytes() == decided[job.id]
    assert list((store.path / "open").iterdir()) == []


@linux
def test_two_runners_share_the_work(project, store):
    """Two processes on one store run every job, and none of them twice."""
    jobs = [submit(store, question(40, first=i)) for i in range(12)]
    logs = [(store.path / f"runner-{i}.log").open("w+b") for i in range(2)]
    processes = [start_runner(project.settings, stderr=log) for log in logs]
    with ended(*processes):
        until(lambda: not list((store.path / "open").iterdir()))
    told = b"".join((log.flush(), log.seek(0), log.read())[2] for log in logs).decode()
    for log in logs:
        log.close()
    for i, job in enumerate(jobs):
        assert told.count(f"job {job.id}: done") == 1
        assert scores(store, job.id) == expected(project, question(40, first=i))


@linux
def test_a_runner_process_stands_back_and_ends_when_told(project, store):
    """It has niceness 10, is first in line when memory is short, ignores Ctrl-C, and ends on SIGTERM with status 0."""
    job = submit(store, question(3))
    process = start_runner(project.settings)
    with ended(process):
        until(lambda: store.status(job.id).state is JobState.DONE)
        assert os.getpriority(os.PRIO_PROCESS, process.pid) == 10
        assert Path(f"/proc/{process.pid}/oom_score_adj").read_text().strip() == "500"
        process.send_signal(signal.SIGINT)
        later = submit(store, question(3))
        until(lambda: store.status(later.id).state is JobState.DONE)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


@linux
def test_a_runner_does_not_outlive_its_parent(project, store):
    """When whoever started it is gone, it gives its job back and ends."""
    job = submit(store, question(3))
    process = start_runner(project.settings)
    with ended(process):
        until(lambda: store.status(job.id).state is JobState.DONE)
        process.stdin.close()
        assert process.wait(10) == 0


def test_without_work_it_ends(project, store):
    """An idle runner ends by itself; one that has work in time does not."""
    begun_s = time.monotonic()
    thread = threading.Thread(target=run, args=(project,), kwargs={"idle_s": 0.4})
    thread.start()
    time.sleep(0.2)
    job = submit(store, Question({"customer_id": 1, "shop": "a", "country": "nl"}, {"amount": 0.1}, NOW_US))
    thread.join(20)
    assert not thread.is_alive()
    assert time.monotonic() - begun_s > 0.55
    assert store.status(job.id).state is JobState.DONE
