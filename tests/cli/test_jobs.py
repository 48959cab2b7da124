"""`tiercel jobs`: what there is, how far it is, and an end to it, with or without a server."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from tests.support.jobs import question

from tiercel.cli.jobs import age
from tiercel.cli.main import main
from tiercel.serving.job_records import JobError
from tiercel.serving.jobs import JobStore


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "tiercel.toml").write_text("")
    return tmp_path


@pytest.fixture
def store(directory):
    return JobStore(directory / ".tiercel")


@pytest.fixture
def run(directory):
    """Run a command on the project; returns (status, output)."""

    def invoke(*arguments, env=None):
        result = CliRunner().invoke(
            main, [*arguments], env=env or {"TIERCEL_PROJECT": str(directory), "COLUMNS": "200"}
        )
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output

    return invoke


def submit(store):
    return store.submit(question(1500), model="fraud", version=3)


def test_no_jobs(run, directory):
    """A project without jobs says so, and is not given any directories."""
    assert run("jobs") == (0, "Jobs: none\n")
    assert run("jobs", "--json") == (0, "[]\n")
    assert not (directory / ".tiercel").exists()


def test_the_list_is_newest_first(run, store):
    """Each job's id, state, model, rows and age; the error's code of one that failed."""
    failed, waiting = submit(store), submit(store)
    with store.claim_next() as claim:
        claim.fail(JobError("wrong_type", "Expected a number", 7))
    status, output = run("jobs")
    assert status == 0
    newest, oldest = output.splitlines()[-2:]
    assert newest.split()[:6] == [waiting.id, "waiting", "fraud:3", "0", "of", "1,500"]
    assert oldest.split()[:3] == [failed.id, "failed", "fraud:3"]
    assert oldest.endswith("wrong_type")
    assert [job["id"] for job in json.loads(run("jobs", "--json", "--limit", "1")[1])] == [waiting.id]


def test_one_job(run, store):
    """`show` says why a job failed, and at which row."""
    job = submit(store)
    with store.claim_next() as claim:
        claim.fail(JobError("wrong_type", "Expected a number", 7))
    _, output = run("jobs", "show", job.id)
    for text in ("failed", "wrong_type", "Expected a number", "7", "1500"):
        assert text in output
    assert json.loads(run("jobs", "show", job.id, "--json")[1])["error"]["row"] == 7


def test_cancelling(run, store):
    """`cancel` ends a job; what is no job, or is finished, is one clear line and status 1."""
    job = submit(store)
    assert run("jobs", "cancel", job.id) == (0, f"Job {job.id} is cancelled.\n")
    assert store.status(job.id).state == "cancelled"
    for arguments, code in ((("show", "../../etc"), "job_not_found"), (("cancel", "x"), "job_not_found")):
        status, output = run("jobs", *arguments)
        assert status == 1
        assert code in output
    done = submit(store)
    with store.claim_next() as claim:
        claim.fail(JobError("a", "b"))
    status, output = run("jobs", "cancel", done.id, "--json")
    assert (status, "job_finished" in output) == (1, True)


def test_the_project_may_be_said_on_either_side(run, store, directory, monkeypatch, tmp_path_factory):
    """`tiercel jobs --project P show ID` and `tiercel jobs show ID --project P` are the same."""
    job = submit(store)
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    monkeypatch.delenv("TIERCEL_PROJECT", raising=False)
    for arguments in (
        ("jobs", "--project", str(directory), "show", job.id),
        ("jobs", "show", job.id, "--project", str(directory)),
    ):
        assert run(*arguments, env={"COLUMNS": "200"})[0] == 0


def test_ages():
    """The largest unit that fits."""
    assert [age(seconds) for seconds in (-5, 59.9, 60, 3599, 3600, 86_399, 200_000)] == [
        "0 s", "59 s", "1 min", "59 min", "1 h", "23 h", "2 d",
    ]  # fmt: skip
