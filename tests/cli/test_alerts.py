"""`tiercel alerts`: what is wrong and what is done about it, with or without a server."""

from __future__ import annotations

import json
import time

import pytest
from click.testing import CliRunner
from tests.monitor.findings import START_US, finding, look

from tiercel.cli.main import main
from tiercel.monitor.alerts import AlertStore
from tiercel.monitor.watch_state import WatchState


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "tiercel.toml").write_text("")
    return tmp_path


@pytest.fixture
def store(directory):
    return AlertStore(directory / ".tiercel")


@pytest.fixture
def run(directory):
    """Run a command on the project; returns (status, output, errors)."""

    def invoke(*arguments):
        result = CliRunner().invoke(main, [*arguments], env={"TIERCEL_PROJECT": str(directory), "COLUMNS": "300"})
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout, result.stderr

    return invoke


def open_two(store):
    store.update([look(finding(), finding("population:fraud:1"), n_confirm=1)], START_US)


def test_no_alerts(run, directory):
    """A project without alerts says so, and that nobody watched yet; it is not given any directories."""
    status, output, errors = run("alerts")
    assert (status, output) == (0, "Alerts: none\n")
    assert "nothing was watched yet" in errors
    assert not (directory / ".tiercel").exists()


def test_the_list(run, store, directory):
    """Each alert's number, state, class and sentence, newest first; the watch's problems beside it."""
    open_two(store)
    state = WatchState(turns=1)
    with state.step("labels"):
        raise OSError(28, "No space left")
    state.save(directory / ".tiercel")
    status, output, errors = run("alerts")
    assert status == 0
    lines = output.splitlines()
    assert [line.split()[:3] for line in lines[2:4]] == [["2", "open", "population"], ["1", "open", "pipeline"]]
    assert "fraud:1, source orders" in output
    assert "Features of source orders are missing." in output
    assert "note: watching, labels: [Errno 28] No space left" in errors
    found = json.loads(run("alerts", "--class", "pipeline", "--json")[1])
    assert [each["id"] for each in found["alerts"]] == [1]
    assert found["watch"]["problems"] == ["labels: [Errno 28] No space left"]


def test_one_alert_says_everything(run, store):
    """Class, window, rows, effect beside its limit, what shows it, the command, and its history."""
    open_two(store)
    status, output, _ = run("alerts", "show", "1")
    assert status == 0
    for text in ("pipeline (wakes somebody)", "500", "0.4; from 0.1 on it is one", "n_orders", "tiercel drift fraud:1"):
        assert text in output
    assert "opened watch" in output
    assert json.loads(run("alerts", "show", "1", "--json")[1])["cause"] == "pipeline:source:orders"


def test_people_say_what_they_do(run, store):
    """Acknowledged with a note, silenced for a time, resolved; by the login name unless somebody else is named."""
    open_two(store)
    assert run("alerts", "ack", "1", "--note", "mine", "--by", "ann")[1] == "Alert 1 is acknowledged.\n"
    assert store.get(1).history[-1].by == "ann"
    status, output, _ = run("alerts", "silence", "1", "--for", "2h")
    assert status == 0
    assert output.startswith("Alert 1 is silenced until ")
    assert 7190 < store.get(1).silenced_until_us / 1e6 - time.time() <= 7200
    assert json.loads(run("alerts", "resolve", "2", "--json")[1])["state"] == "resolved"
    assert store.get(2).history[-1].by
    assert "resolved" in run("alerts", "--all")[1]
    assert "resolved" not in run("alerts")[1]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["show", "9"], 1, "alert_not_found"),
        (["ack", "9"], 1, "alert_not_found"),
        (["ack", "x"], 2, "not a valid integer"),
        (["silence", "1", "--for", "soon"], 2, "expected a length of time"),
        (["resolve", "2"], 1, "alert_resolved"),
    ],
)
def test_mistakes(run, store, arguments, status, message):
    """One line says what is wrong, with its code."""
    open_two(store)
    store.resolve(2, by="ann", now_us=START_US)
    got, _, errors = run("alerts", *arguments)
    assert (got, message in errors) == (status, True), errors


def test_the_project_may_stand_before_or_behind(directory, store):
    """`--project` is taken wherever it stands."""
    open_two(store)
    for arguments in (
        ["alerts", "--project", str(directory), "ack", "1"],
        ["alerts", "ack", "1", "--project", str(directory)],
    ):
        result = CliRunner().invoke(main, arguments)
        assert (result.exit_code, result.stdout) == (0, "Alert 1 is acknowledged.\n")


def test_damage_is_said(run, store):
    """A damaged file is one line of error."""
    open_two(store)
    store.path.write_bytes(b"{}")
    status, _, errors = run("alerts")
    assert (status, "alerts_damaged" in errors) == (1, True)
