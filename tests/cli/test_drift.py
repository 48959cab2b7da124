"""`tiercel drift`: what changed, by how much, and whether chance explains it."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from tests.monitor.recorders import FEATURES, SIGNATURE, make_recorder

from tiercel.cli.drift_page import render_page
from tiercel.cli.main import main
from tiercel.monitor.drift import Compared
from tiercel.monitor.reference import REFERENCE_FILE, Reference
from tiercel.monitor.windows import WindowStore, empty_window
from tiercel.registry import Registry, VersionFacts
from tiercel.settings import JournalSettings
from tiercel.types import TrainingSnapshot


def population(n, seed):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 3)).astype(np.float32), rng.random((n, 1))


@pytest.fixture
def directory(tmp_path):
    """A project whose champion answered 400 rows: `b` moved, `c` misses a third. A version 2 has no reference."""
    (tmp_path / "tiercel.toml").write_text("")
    reference = Reference.build(*population(20_000, 0), FEATURES)
    facts = VersionFacts(
        snapshot=TrainingSnapshot("rows", 1, "0" * 64), signature=SIGNATURE, author="a", engine="forest",
        engine_reason="", parity={},
    )  # fmt: skip
    with Registry.for_state(tmp_path / ".tiercel") as registry:
        registry.register("late", {"model.txt": b"1", REFERENCE_FILE: reference.to_bytes()}, facts)
        registry.register("late", {"model.txt": b"2"}, facts)
        registry.promote("late", 1, actor="a")
    recorder = make_recorder(tmp_path / ".tiercel", JournalSettings(enabled=False))
    X, scores = population(400, 1)
    X[:, 1] += 3
    X[::3, 2] = np.nan
    recorder.for_plan("late", 1, SIGNATURE, reference=reference).add(X, scores)
    recorder.close()
    return tmp_path


@pytest.fixture
def drift(directory):
    """Run the command; returns (status, output)."""

    def invoke(*arguments):
        result = CliRunner().invoke(main, ["drift", *arguments], env={"TIERCEL_PROJECT": str(directory)})
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output

    return invoke


def line_of(output, name):
    (line,) = [line for line in output.splitlines() if line.startswith(f"{name} ")]
    return line.split()


def test_what_changed_stands_on_top_with_its_reason(drift):
    """The table has effect, threshold, chance, missing share, verdict and why, what changed first; a sentence sums it up."""
    status, output = drift()
    assert status == 0
    assert "late version 1 against training: drift in b; a changed share of missing values in c" in output
    assert "1 request, 400 rows in the histograms, compared with 20,000" in output
    lines = output.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("feature "))
    assert lines[first].split() == ["feature", "effect", "threshold", "p", "missing", "verdict", "why"]
    assert {lines[first + 1].split()[0], lines[first + 2].split()[0]} == {"b", "c"}
    assert line_of(output, "b")[2:5:2] in (["js", "<1e-9"], ["ks", "<1e-9"])
    assert "of the values are" in " ".join(line_of(output, "b"))
    assert "0 % -> 33.5 %" in " ".join(line_of(output, "c"))
    assert "No further from training than chance puts it" in " ".join(line_of(output, "a"))
    assert "stable" in line_of(output, "score")


def test_programs_get_every_number(drift):
    """--json has all distances, shares, limits, notes and verdicts, without NaN."""
    status, output = drift("late@champion", "--json", "--no-score-shift")
    (report,) = json.loads(output)["reports"]
    assert (status, report["model"], report["version"], report["verdict"]) == (0, "late", 1, "drift")
    b = report["features"][1]
    assert (b["name"], b["verdict"]) == ("b", "drift")
    assert b["effect"] > b["threshold"] >= 0.1
    assert {"psi", "kolmogorov_smirnov", "wasserstein", "chi_square", "cramers_v", "out_of_range_share"} <= set(b)
    assert report["n_rows"] == 400
    assert json.loads(output)["problems"] == []


def test_a_version_without_a_reference_is_compared_with_the_past_only(drift):
    """No reference: it is said what to do. Nothing in the period before: likewise."""
    _, output = drift("late:2")
    assert "late version 2: nothing was counted, and it has no reference" in output
    _, output = drift("late", "--against", "previous")
    assert "not comparable" in output
    assert "Nothing was counted in the period before." in output


def test_an_empty_window_is_no_verdict(drift):
    """A window in which nothing was served says so, and nothing is called stable or drifted."""
    status, output = drift("late", "--end", "2020-01-01T00:00:00")
    assert status == 0
    assert "late version 1 against training: too few rows" in output
    assert "The window is empty: no prediction was served in it." in output
    assert "stable" not in output


def test_each_look_adds_what_came_since(drift, directory):
    """The command records what was counted since the last record; a second look at once adds nothing."""
    drift()
    drift()
    store = WindowStore(directory / ".tiercel")
    assert store.merged("late", 1, 0, time.time_ns()).n_rows == 400


def test_a_disk_that_refuses_is_a_note(drift, directory, monkeypatch):
    """Where the new window cannot be written, what was recorded before is shown, and it is said."""
    drift()

    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("tiercel.monitor.windows.write_baseline", full)
    status, output = drift("late")
    assert status == 0
    assert "No space left on device" in output
    assert "drift in b" in output


def test_a_damaged_reference_is_a_note(drift, directory):
    """A reference that is not one is said; the version is shown as not comparable."""
    with Registry.for_state(directory / ".tiercel") as registry:
        facts = registry.get("late", 1).facts
        registry.register("late", {"model.txt": b"3", REFERENCE_FILE: b"none"}, facts)
        registry.promote("late", 3, actor="a")
    status, output = drift("late@champion", "--against", "training")
    assert status == 0
    assert "late version 3 has no usable reference" in output


def test_no_model_is_said(tmp_path):
    """A project without models is told what to do."""
    (tmp_path / "tiercel.toml").write_text("")
    result = CliRunner().invoke(main, ["drift", "--project", str(tmp_path)])
    assert (result.exit_code, "No model has a champion" in result.output) == (0, True)


@pytest.mark.parametrize(
    "arguments",
    [("--window", "0h"), ("--window", "1y"), ("--end", "yesterday"), ("--against", "nothing"), ("--false-alarms", "0")],
)
def test_options_that_mean_nothing_are_refused(drift, arguments):
    """A stretch, a time, a comparison or a budget that is none ends with the usage and status 2."""
    status, output = drift(*arguments)
    assert (status, "Usage:" in output) == (2, True)


def test_an_unknown_model_is_one_clear_line(drift):
    """A model that is not there ends with status 1 and its stable code."""
    status, output = drift("nobody")
    assert (status, "model_not_found" in output) == (1, True)


def plotly_wheel(directory):
    """A stand-in for plotly's wheel: the page needs nothing but this file of it."""
    script = directory / "wheel" / "plotly" / "package_data" / "plotly.min.js"
    script.parent.mkdir(parents=True)
    (directory / "wheel" / "plotly" / "__init__.py").write_text("raise ImportError('plotly is not to be imported')")
    script.write_text("/* plotly */ const Plotly = {};")
    return script.parent.parent.parent


def test_the_page_stands_alone(drift, tmp_path, monkeypatch):
    """--html writes one page with every feature, its verdict and reason and both histograms; it loads nothing from anywhere."""
    wheel = plotly_wheel(tmp_path)
    monkeypatch.setattr("importlib.resources.files", lambda _: wheel / "plotly")
    status, output = drift("late", "--html", str(tmp_path / "report.html"))
    page = (tmp_path / "report.html").read_text()
    assert (status, "Report with plots" in output) == (0, True)
    assert "/* plotly */" in page
    assert page.count('<div class="chart"') == 4
    assert "late version 1 against training" in page
    assert "No further from training than chance puts it" in page
    for elsewhere in ("http://", "https://", "src=", "@import"):
        assert elsewhere not in page
    plots = json.loads(page.split("const PLOTS = ")[1].split(";\nconst css")[0])
    b = plots["0-feature-1"]
    assert [series["name"] for series in b["series"]] == ["training", "now"]
    assert all(sum(series["shares"]) == pytest.approx(1) for series in b["series"])
    assert b["bins"][-1].startswith("above")


@pytest.fixture
def mixed(directory):
    """A version 3 whose `b` is a category, of which another part is asked about than in training, and one is new."""
    rng = np.random.default_rng(3)
    X, scores = population(5_000, 0)
    X[:, 1] = rng.choice(4, 5_000, p=[0.1, 0.6, 0.2, 0.1])
    reference = Reference.build(X, scores, FEATURES, {"b": ("red", "green", "blue", "gray")})
    with Registry.for_state(directory / ".tiercel") as registry:
        facts = registry.get("late", 1).facts
        registry.register("late", {"model.txt": b"3", REFERENCE_FILE: reference.to_bytes()}, facts)
    recorder = make_recorder(directory / ".tiercel", JournalSettings(enabled=False), worker=1)
    X, scores = population(1_000, 1)
    X[:, 1] = rng.choice(5, 1_000, p=[0.5, 0.2, 0.1, 0.1, 0.1])
    recorder.for_plan("late", 3, SIGNATURE, reference=reference).add(X, scores)
    recorder.close()


@pytest.mark.usefixtures("mixed")
def test_a_category_is_told_by_its_names(drift, tmp_path, monkeypatch):
    """Text, JSON and page speak of categories: no code, no order of codes, no median of them."""
    _, output = drift("late:3", "--no-score-shift")
    (line,) = [line for line in output.splitlines() if line.startswith("b ")]
    assert line.split()[2] == "js"
    told = " ".join(output.split())  # a long reason goes on in the next line
    assert "are 'red' (" in told
    assert " or more" not in told
    _, output = drift("late:3", "--no-score-shift", "--json")
    (report,) = json.loads(output)["reports"]
    b = next(each for each in report["features"] if each["name"] == "b")
    assert "'red'" in b["reason"]
    assert "new categories" in b["reason"]
    assert (b["median"], b["reference_median"], b["kolmogorov_smirnov"]) == (None, None, None)
    labels = ["'green'", "'blue'", "'gray'", "'red'", "new categories"]
    assert sorted(each["label"] for each in b["categories"]) == sorted(labels)
    assert b["new_category_share"] == pytest.approx(0.1, abs=0.03)
    monkeypatch.setattr("importlib.resources.files", lambda _: plotly_wheel(tmp_path) / "plotly")
    drift("late:3", "--no-score-shift", "--html", str(tmp_path / "report.html"))
    page = (tmp_path / "report.html").read_text()
    plot = json.loads(page.split("const PLOTS = ")[1].split(";\nconst css")[0])["0-feature-1"]
    assert plot["bins"] == [each["label"] for each in b["categories"]]
    assert [sum(series["shares"]) for series in plot["series"]] == pytest.approx([1, 1])


def test_a_name_cannot_end_the_script(tmp_path, monkeypatch):
    """A feature named like a tag is text in the page, in its table and in its data."""
    monkeypatch.setattr("importlib.resources.files", lambda _: plotly_wheel(tmp_path) / "plotly")
    name = "</script><script>alert(1)</script>"
    X, scores = population(2_000, 0)
    reference = Reference.build(X, scores, ("a", name, "c"))
    counts = {"feature_counts": reference.feature_counts, "score_counts": reference.score_counts}
    window = replace(empty_window("late", 1, reference, 0, 1), n_requests=2_000, n_rows=2_000, **counts)
    compared = Compared(window, reference, (), "training")
    page = render_page([compared], [compared.report()])
    assert "alert(1)</script>" not in page
    assert page.count("<script>") == page.count("</script>") == 2
    assert "&lt;/script&gt;" in page


def test_without_plotly_the_install_command_is_said(drift, tmp_path, monkeypatch):
    """The page needs an extra; the error names it, and nothing is written."""

    def absent(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr("importlib.resources.files", absent)
    status, output = drift("late", "--html", str(tmp_path / "report.html"))
    assert (status, 'pip install "tiercel[dashboard]"' in output) == (1, True)
    assert not (tmp_path / "report.html").exists()


def test_a_page_that_cannot_be_written_is_said(drift, tmp_path, monkeypatch):
    """A directory that does not exist is an error that names the file."""
    monkeypatch.setattr("importlib.resources.files", lambda _: plotly_wheel(tmp_path) / "plotly")
    status, output = drift("late", "--html", str(tmp_path / "nowhere" / "report.html"))
    assert (status, "report.html" in output) == (1, True)
