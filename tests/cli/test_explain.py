"""`tiercel explain`, over a real server and from its journal; and what the server says of it on both its ports."""

from __future__ import annotations

import json
import re

import httpx
import pytest
from click.testing import CliRunner
from tests.support import projects

from tiercel.cli.main import main
from tiercel.client import Client

QUESTION = {"entities": {"customer_id": 17, "shop": "a", "country": "nl"}, "features": {"amount": 0.5}}
ARGUMENTS = [
    "--entity", "customer_id=17", "--entity", "shop=a", "--entity", "country=nl", "--feature", "amount=0.5"
]  # fmt: skip


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return projects.ready_project(tmp_path_factory.mktemp("explain") / "project")


@pytest.fixture
def run(directory):
    """Run a command on the project; returns (status, output)."""

    def invoke(*arguments):
        result = CliRunner().invoke(main, [*arguments], env={"TIERCEL_PROJECT": str(directory), "COLUMNS": "200"})
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output

    return invoke


@pytest.fixture(scope="module")
def asked(directory):
    """(what `tiercel explain` printed, the same as JSON, what the ports say of that prediction, its client's view)."""
    with projects.running_server(directory) as (url, process):
        environment = {"TIERCEL_PROJECT": str(directory), "COLUMNS": "200"}
        arguments = ["explain", "fraud", "--url", url, *ARGUMENTS]
        shown = CliRunner().invoke(main, arguments, env=environment)
        made = CliRunner().invoke(main, [*arguments, "--json"], env=environment)
        assert (shown.exit_code, made.exit_code) == (0, 0), shown.output + made.output
        told = json.loads(made.output)
        ports = [
            httpx.get(f"{base}/predictions/{told['id']}/explanation", timeout=20)
            for base in (url, f"{process.admin_url}/api")
        ]
        with Client(url) as client:
            for _ in range(50):  # on a busy machine there may be no time left of the tier's 10 ms
                fast = client.predict("fraud", **QUESTION, explain="full")
                if fast.explanation.method == "exact":
                    break
            again = client.explanation(fast)
    return shown.output, told, ports, (fast, again)


def test_a_new_prediction_is_explained(asked):
    """People see the reasons and the largest contributions; programs all of them, and they make the margin."""
    shown, told, _, _ = asked
    assert re.search(r"fraud version 1: 0\.\d+", shown)
    assert "exact interventional contributions to the margin" in shown
    assert "Reasons" in shown
    assert "Contributions" in shown
    explanation = told["explanation"]
    assert explanation["method"] == "exact"
    assert "amount" in explanation["contributions"]
    assert len(explanation["reasons"]) <= 4


def test_both_ports_know_it_afterwards(asked):
    """The data port and the admin port recompute from the record what the reply said."""
    _, told, ports, _ = asked
    for reply in ports:
        assert reply.status_code == 200, reply.text
        assert reply.json()["explanation"]["contributions"] == told["explanation"]["contributions"]
        assert reply.json()["score"] == told["score"]


def test_the_compiled_path_says_the_same(asked):
    """A prediction in the same call, its record, and the command line's: one explanation of one question."""
    _, told, _, (fast, again) = asked
    assert fast.explanation == again
    assert fast.explanation.contributions == told["explanation"]["contributions"]
    assert "explain" in fast.timing_ms


def test_an_earlier_prediction_is_explained_without_a_server(run, asked):
    """The journal and the registry are enough; `tiercel why` still shows the five stages of the same prediction."""
    told = asked[1]
    status, output = run("explain", told["id"], "--json")
    assert status == 0, output
    now = json.loads(output)
    assert now["explanation"]["contributions"] == told["explanation"]["contributions"]
    status, output = run("explain", told["id"], "-k", "1")
    assert status == 0
    assert "Reasons" in output
    status, output = run("why", told["id"], "--json")
    assert status == 0, output
    assert {stage["stage"] for stage in json.loads(output)["stages"]} >= {"parse", "read", "compute", "score", "reply"}


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["explain", "ffffffffffffffff1"], 1, "(receipt_not_found)"),
        (["explain", "fraud", "--url", "http://127.0.0.1:9", *ARGUMENTS], 1, "(connection_failed)"),
        (["explain", "fraud", "-k", "0", *ARGUMENTS], 2, "-k"),
        (["explain", "ffffffffffffffff1", "--locale", "?"], 1, "(invalid_explain)"),
    ],
)
def test_what_goes_wrong_is_one_line(run, arguments, status, said):
    """An id that nobody recorded, a server that is not there, options that are none."""
    found, output = run(*arguments)
    assert found == status
    assert said in output
