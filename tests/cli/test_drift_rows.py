"""`tiercel drift --test`: whole rows of the prediction table, for a person and for a program."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from tests.monitor.recorders import FEATURES, SIGNATURE, make_recorder
from tests.monitor.samples import HOUR_US, correlated

from tiercel.cli.main import main
from tiercel.registry import Registry, VersionFacts
from tiercel.types import TrainingSnapshot

NOW_US = 20_000 * 86_400_000_000
END = "2024-10-04T00:00:00"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A project whose champion answered 300 requests in each of two hours, and `a` and `b` have parted ways in between."""
    directory = tmp_path_factory.mktemp("drift")
    (directory / "tiercel.toml").write_text("[monitor]\nretention_days = 36500\n")
    facts = VersionFacts(
        snapshot=TrainingSnapshot("rows", 1, "0" * 64), signature=SIGNATURE, author="a", engine="forest",
        engine_reason="", parity={},
    )  # fmt: skip
    with Registry.for_state(directory / ".tiercel") as registry:
        registry.register("late", {"model.txt": b"1"}, facts)
        registry.register("late", {"model.txt": b"2"}, facts)
        registry.promote("late", 1, actor="a")
    recorder = make_recorder(directory / ".tiercel")
    plan = recorder.for_plan("late", 1, SIGNATURE)
    rng = np.random.default_rng(0)
    for hour, correlation in ((2, 0.9), (1, -0.9)):
        rows = correlated(300, correlation, rng, len(FEATURES)).astype(np.float32)
        for i, row in enumerate(rows):
            at_us = NOW_US - hour * HOUR_US + i * 10_000_000
            plan.add(row[None], np.full((1, 1), 0.5), number=1_000 * hour + i, received_us=at_us)
    recorder.close()
    return directory


@pytest.fixture(autouse=True)
def stood_back(monkeypatch):
    """Notes that the command lets serving go first, without the process of the tests doing so."""
    called = []
    monkeypatch.setattr("tiercel.priority.stand_back", lambda: called.append(True))
    return called


@pytest.fixture
def drift(directory):
    """Run the command; returns (status, output)."""

    def invoke(*arguments):
        result = CliRunner().invoke(main, ["drift", *arguments], env={"TIERCEL_PROJECT": str(directory)})
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output

    return invoke


@pytest.mark.parametrize(("test", "statistic"), [("classifier", "AUC 0."), ("mmd", "MMD^2 0.")])
def test_a_person_reads_what_it_means(drift, test, statistic):
    """Verdict, one sentence, both stretches with n, effect, p, the features on top, and the command that repeats it."""
    status, output = drift("late", "--test", test, "--end", END)
    assert status == 0, output
    lines = [line.strip() for line in output.strip().splitlines()]
    assert lines[0].startswith("late version 1 against the period before,")
    assert lines[0].endswith(": drift")
    assert "chiefly by" in lines[1]
    assert "window: 2024-10-03 23:00 to 2024-10-04 00:00 UTC, 300 rows of 300 requests" in lines
    assert "compared with: 2024-10-03 22:00 to 2024-10-03 23:00 UTC, 300 rows of 300 requests" in lines
    (figures,) = [line for line in lines if line.startswith(statistic)]
    assert ", p = 0.00" in figures
    head = next(i for i, line in enumerate(lines) if line.startswith("feature "))
    assert {lines[head + 1].split()[0], lines[head + 2].split()[0]} == {"a", "b"}
    assert "correlation with" in lines[head + 1]
    assert f"again: tiercel drift late:1 --test {test} --against previous --window 3600s" in output


def test_a_program_gets_every_figure_and_the_command_repeats_it(drift):
    """--json has the report; the command in it gives the same figures."""
    status, output = drift("late", "--test", "mmd", "--end", END, "--rows", "200", "--seed", "5", "--json")
    report = json.loads(output)
    assert (status, report["verdict"], report["n_rows"], report["n_available"]) == (0, "drift", 200, 300)
    assert report["effect"] == report["statistic"] > report["chance_limit"]
    assert (report["most_rows"], report["seed"], report["p_value"]) == (200, 5, 1 / 1000)
    _, again = drift(*shlex.split(report["command"])[2:], "--json")
    assert json.loads(again) == report


def test_nothing_served_is_said(drift):
    """An empty window, an empty comparison, and a version that never answered: one sentence each, status 0."""
    for arguments, words in (
        (("late", "--end", "2020-01-01"), "no prediction with features was served in the window"),
        (("late", "--end", END, "--against", "last-week"), "was served in the same time last week"),
        (("late:2", "--end", END), "no prediction with features was served in the window"),
    ):
        status, output = drift(*arguments, "--test", "mmd")
        assert (status, words in output) == (0, True), output


def test_before_anything_was_served(tmp_path, directory):
    """A project without a prediction table says that nothing was served."""
    (tmp_path / "tiercel.toml").write_text("")
    with Registry.for_state(directory / ".tiercel") as registry:
        facts = registry.get("late", 1).facts
    with Registry.for_state(tmp_path / ".tiercel") as registry:
        registry.register("late", {"model.txt": b"1"}, facts)
    result = CliRunner().invoke(main, ["drift", "late:1", "--test", "classifier", "--project", str(tmp_path)])
    assert (result.exit_code, "too few rows" in result.output) == (0, True), result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--test", "mmd"), "Name the MODEL"),
        (("late", "--test", "mmd", "--html", "x.html"), "--html"),
        (("late", "--test", "mmd", "--false-alarms", "2"), "--false-alarms"),
        (("late", "--rows", "200"), "are of --test"),
        (("late", "--test", "mmd", "--rows", "5"), "--rows"),
        (("late", "--test", "anova"), "--test"),
    ],
)
def test_options_that_do_not_go_together_are_refused(drift, arguments, words):
    """Usage and status 2, with what to do."""
    status, output = drift(*arguments)
    assert (status, words in output) == (2, True), output


def test_without_lightgbm_the_install_command_is_said(drift, monkeypatch):
    """The classifier needs an extra; the error names it, and MMD as what does not."""
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    status, output = drift("late", "--test", "classifier", "--end", END)
    assert (status, 'pip install "tiercel[lightgbm]"' in output, "missing_extra" in output) == (1, True, True)


def test_leaves_and_training_rows_need_their_files(drift, directory):
    """A version without a training set, and one without trees, are told what to do instead."""
    status, output = drift("late:1", "--test", "mmd", "--against", "training", "--end", END)
    assert (status, "Register it again with its training set" in output) == (1, True), output
    with Registry.for_state(directory / ".tiercel") as registry:
        facts = replace(registry.get("late", 1).facts, engine="linear")
        number = registry.register("late", {"model.txt": b"4"}, facts).version
    status, output = drift(f"late:{number}", "--test", "leaves", "--end", END)
    assert (status, "expected a forest" in output, "--test classifier or mmd" in output) == (1, True, True), output


def test_leaves_of_a_served_forest_against_training(tmp_path):
    """A registered forest: its own leaves, its own training rows; the printed command repeats the figures."""
    import lightgbm

    from tiercel.models import prepare
    from tiercel.monitor.training_rows import TRAINING_ROWS_FILE, TrainingRows

    (tmp_path / "tiercel.toml").write_text("[monitor]\nretention_days = 36500\n")
    rng = np.random.default_rng(1)
    rows = correlated(2_000, 0.9, rng, 3).astype(np.float32)
    model = lightgbm.LGBMClassifier(n_estimators=10, num_leaves=15, n_jobs=1, verbosity=-1)
    prepared = prepare(model.fit(rows, rows[:, 0] * rows[:, 1] > 0.5), feature_names=FEATURES)
    files = {**prepared.artifacts, TRAINING_ROWS_FILE: TrainingRows.draw(rows, FEATURES, most=400).to_bytes()}
    facts = VersionFacts(
        snapshot=TrainingSnapshot("rows", 1, "0" * 64), signature=prepared.signature, author="a", engine="forest"
    )
    with Registry.for_state(tmp_path / ".tiercel") as registry:
        registry.register("late", files, facts)
    recorder = make_recorder(tmp_path / ".tiercel")
    plan = recorder.for_plan("late", 1, prepared.signature)
    for i, row in enumerate(correlated(300, -0.9, rng, 3).astype(np.float32)):
        plan.add(row[None], np.full((1, 1), 0.5), number=i, received_us=NOW_US - HOUR_US + i * 10_000_000)
    recorder.close()

    def drift(*arguments):
        command = ["drift", *arguments, "--project", str(tmp_path)]
        return CliRunner().invoke(main, command, catch_exceptions=False).output

    output = drift("late:1", "--test", "leaves", "--against", "training", "--end", END)
    assert "late version 1 against training, leaf occupancy: drift" in output
    assert "Rows end in other leaves of the model's trees than in training, chiefly by" in output
    assert "compared with: training set, 400 rows\n" in output
    assert "chi-square distance lost" in output
    found = json.loads(drift("late:1", "--test", "leaves", "--against", "training", "--end", END, "--json"))
    assert (found["verdict"], found["measure"], found["n_reference_available"]) == ("drift", "chi2", 2_000)
    assert 0 < found["effect"] < found["statistic"] < 1
    assert json.loads(drift(*shlex.split(found["command"])[2:], "--json")) == found
    assert (
        json.loads(drift("late:1", "--test", "classifier", "--against", "training", "--end", END, "--json"))["p_value"]
        < 0.02
    )


def test_it_stands_back(drift, stood_back):
    """The command lets serving go first."""
    drift("late", "--test", "mmd", "--end", END)
    assert stood_back == [True]
