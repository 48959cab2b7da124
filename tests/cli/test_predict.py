"""`tiercel predict`: what it says of an answer besides its score, over a real server."""

from __future__ import annotations

import json
import re
import time

import httpx
import pytest
from click.testing import CliRunner
from tests.support import projects

from tiercel import Project
from tiercel.cli.main import main
from tiercel.client import Client
from tiercel.errors import BadRequestError, JobAcceptedError
from tiercel.serving.jobs import JobStore

ARGUMENTS = [
    "--entity", "customer_id=18", "--entity", "shop=a", "--entity", "country=nl", "--feature", "amount=0.5"
]  # fmt: skip


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A project with a champion and a challenger."""
    directory = projects.ready_project(tmp_path_factory.mktemp("predict") / "project")
    with Project(directory) as project:
        projects.train(project, seed=1, alias="challenger")
    return directory


def ask(directory, settings):
    """(printed, as JSON) of a prediction from a server with these settings."""
    (directory / "tiercel.toml").write_text(settings)
    with projects.running_server(directory) as (url, _):
        results = [
            CliRunner().invoke(main, ["predict", "fraud", "--url", url, *ARGUMENTS, *more], env={"COLUMNS": "200"})
            for more in ([], ["--json"])
        ]
    assert [result.exit_code for result in results] == [0, 0], results[0].output
    return results[0].output, json.loads(results[1].output)


def test_a_stand_ins_answer_says_so(directory):
    """Nobody takes a declared default for the model's score: who answered, instead of whom and why stands below it."""
    output, told = ask(directory, "[models.fraud]\ndefault_score = 0.75\ndeadline_ms = 0.001\n")
    assert output.startswith("fraud version 1: 0.75\n  answered by default instead of fraud:1, because: deadline\n"), (
        output
    )
    assert told["degraded"] == {"by": "default", "instead_of": "fraud:1", "reason": "deadline", "age_ms": None}
    assert (told["score"], told["arm"]) == (0.75, None)
    kept = CliRunner().invoke(main, ["why", told["id"], "--json"], env={"TIERCEL_PROJECT": str(directory)})
    assert json.loads(kept.output)["instead_of"] == told["degraded"]["instead_of"]


def test_a_challengers_answer_says_so(directory):
    """In a challenger's share its version and its arm are told."""
    output, told = ask(directory, "[models.fraud]\nchallenger_weight = 1.0\n")
    assert output.startswith("fraud version 2: ")
    assert output.endswith("\n  in the challenger's share\n")
    assert (told["version"], told["arm"], told["degraded"]) == (2, "challenger", None)


def test_a_job_is_named_and_its_results_are_found(directory):
    """A model of the batch tier: one job for each question, with its id and where to look; the client fetches its results."""
    with Project(directory) as project:
        version = register_for_jobs(project)
    model = f"fraud:{version}"
    (directory / "tiercel.toml").write_text("")
    store = JobStore(directory / ".tiercel")
    with projects.running_server(directory) as (url, _), Client(url) as client:
        shown = CliRunner().invoke(main, ["predict", model, "--url", url, *ARGUMENTS], env={"COLUMNS": "200"})
        assert shown.exit_code == 0, shown.output
        (job,) = store.list_jobs(10)
        assert f"{model}: no score yet, the server took it as batch job {job.job.id}\n" in shown.output
        assert f"tiercel jobs show {job.job.id}" in shown.output
        results_url = re.search(r"curl (\S+)", shown.output)[1]
        told = json.loads(CliRunner().invoke(main, ["predict", model, "--url", url, *ARGUMENTS, "--json"]).output)
        assert (told["status"], told["results"]) == (f"{url}/jobs/{told['job']}", f"{url}/jobs/{told['job']}/results")
        entities = {"customer_id": [18, 19], "shop": "a", "country": "nl"}
        with pytest.raises(JobAcceptedError) as caught:
            client.predict(model, entities=entities, features={"amount": 0.5})
        many = soon(lambda: client.results(caught.value))
        one = client.results(told["job"])  # jobs are done in their order
        assert len(store.list_jobs(10)) == 3
        assert httpx.get(results_url).json()["score"] == one.score
    assert (many.id, many.tier, len(many)) == (caught.value.job_id, "batch", 2)
    assert many.scores[0] == one.score


def register_for_jobs(project):
    """The number of a new version of the batch tier."""
    _, model, training_set = projects.train(project, seed=2)
    version = project.register(model, name="fraud", training_set=training_set, tier="batch", measure=False, reuse=False)
    return version.version


def soon(results):
    """What a job comes to, within a minute."""
    give_up_s = time.monotonic() + 60
    while True:
        try:
            return results()
        except BadRequestError as error:
            if error.code != "job_not_finished" or time.monotonic() > give_up_s:
                raise
            time.sleep(0.1)
