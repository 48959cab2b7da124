"""Commands and what another process is converting: they wait for it, and say what they go on without."""

from __future__ import annotations

import json
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from tests.monitor.recorders import SIGNATURE, make_recorder
from tests.support.explained import explained_project

from tiercel.cli import demo_monitoring, freshness
from tiercel.cli.main import main
from tiercel.monitor.durable import locked, make_directory

QUESTION = ("sql", "SELECT count(*) AS n FROM predictions", "--json")
PREDICTIONS = "predictions of the last moments are not in this: another process is converting them"
LABELS = "labels of the last moments are not in this: another process is collecting them"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return explained_project(tmp_path_factory.mktemp("fresh") / "project")


@pytest.fixture
def held(directory):
    """Both locks, as the watch of a server holds one after the other."""
    names = "predictions", "labels"
    for name in names:
        make_directory(directory / ".tiercel" / name)
    first, second = (directory / ".tiercel" / name / ".lock" for name in names)
    with locked(first, waits=False) as one, locked(second, waits=False) as other:
        assert one
        assert other
        yield


def run(directory, *arguments):
    """(status, standard output, standard error) of a command."""
    result = CliRunner().invoke(main, [*arguments, "--project", str(directory)], catch_exceptions=False)
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize(
    ("arguments", "notes"),
    [
        (QUESTION, (PREDICTIONS, LABELS)),
        (("performance", "late", "--all-labels"), (PREDICTIONS, LABELS)),
        (("drift", "late"), (PREDICTIONS,)),
        (("drift", "late", "--test", "mmd"), (PREDICTIONS,)),
        (("explain", "late", "--global"), (PREDICTIONS,)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value[0], str) and len(value[0]) < 20 else "",
)
def test_what_is_not_in_an_answer_is_said_beside_it(directory, held, monkeypatch, arguments, notes):
    """The other process keeps its lock: the command answers from what there is, and says so where a program does not read."""
    monkeypatch.setattr(freshness, "PATIENCE_S", 0.05)
    status, output, error = run(directory, *arguments)
    assert status == 0, error
    assert [line for line in error.splitlines() if "of the last moments" in line] == [f"note: {note}" for note in notes]
    assert "of the last moments" not in output


def test_a_command_waits_for_the_other_process(tmp_path):
    """It lets go after a moment: everything answered until then is in the answer, and there is nothing to say."""
    (tmp_path / "tiercel.toml").write_text("[monitor]\nretention_days = 36500\n")
    recorder = make_recorder(tmp_path / ".tiercel")
    recorder.for_plan("late", 1, SIGNATURE).add(np.zeros((1, 3), np.float32), np.full((1, 1), 0.5), number=1)
    recorder.close()
    make_directory(tmp_path / ".tiercel" / "predictions")
    is_held, waited = threading.Event(), threading.Event()

    def convert():
        with locked(tmp_path / ".tiercel" / "predictions" / ".lock", waits=False):
            is_held.set()
            waited.wait(0.5)

    other = threading.Thread(target=convert)
    other.start()
    try:
        assert is_held.wait(10)
        status, output, error = run(tmp_path, *QUESTION)
    finally:
        waited.set()
        other.join()
    assert (status, json.loads(output), error) == (0, [{"n": 1}], "")


def test_the_demo_says_that_its_story_goes_on(capsys, monkeypatch):
    """Nothing of the run is in the table: what cannot be told has a line and is not left out."""
    found = SimpleNamespace(performance=SimpleNamespace(groups=()), value=None)
    monkeypatch.setattr(demo_monitoring, "_review", lambda *_: found)
    monkeypatch.setattr(demo_monitoring.console, "print", print)
    version = SimpleNamespace(name="late", version=1)
    demo_monitoring.tell_day(None, SimpleNamespace(take=lambda: None, version=version), version, 0)
    told = capsys.readouterr().out
    assert "Labels:    no prediction of this run is found in the prediction table yet" in told
    assert "tiercel performance late --all-labels" in told
