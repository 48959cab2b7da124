"""`tiercel predict`: what it says of an answer besides its score, over a real server."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from tests.support import projects

from tiercel import Project
from tiercel.cli.main import main

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
