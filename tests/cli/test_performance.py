"""`tiercel performance`: what a person reads, what a program reads, and one clear line when something is wrong."""

from __future__ import annotations

import importlib
import json
from html.parser import HTMLParser

import numpy as np
import pytest
from click.testing import CliRunner
from tests.monitor.outcome_tables import DAY_US, HOUR_US, START_US, make_outcomes, where

from tiercel.cli import performance_page
from tiercel.cli.durations import Duration, shown_duration, shown_moment
from tiercel.cli.main import main
from tiercel.registry import Registry, VersionFacts
from tiercel.types import Signature, Task, TrainingSnapshot

NOW = "2026-01-11T00:00:00"  # ten days after START_US
N = 12_000

SETTINGS = """
[models.late.value]
threshold = 0.4
unit = "EUR"
true_positive = 20.0
false_positive = -5.0
true_negative = 1.0
false_negative = -100.0
[models.late.value.segments]
haul = "CASE WHEN distance > 1000 THEN 'long' ELSE 'short' END"
[models.late.value.metrics]
mean_distance = "avg(distance)"
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A project with two versions of a binary model and one of a regression model."""
    directory = tmp_path_factory.mktemp("performance")
    (directory / "tiercel.toml").write_text(SETTINGS)
    snapshot = TrainingSnapshot("flights.parquet", 1000, "ab" * 32)
    with Registry.for_state(directory / ".tiercel") as registry:
        for name, task, n in (("late", Task.BINARY, 2), ("minutes", Task.REGRESSION, 1), ("late2", Task.BINARY, 1)):
            signature = Signature(("distance",), task, ("no", "yes") if task is Task.BINARY else ())
            for i in range(n):
                facts = VersionFacts(snapshot=snapshot, signature=signature, author="ann", engine="forest")
                registry.register(name, {"model": b"%d %s" % (i, name.encode())}, facts)
    return directory


@pytest.fixture
def outcomes(monkeypatch):
    """Ten days of answers in place of the prediction table; labels take some two hours."""
    rng = np.random.default_rng(0)
    scores = rng.beta(2, 3, N)
    columns = {
        "score": scores,
        "label": (rng.random(N) < scores).astype(float),
        "time": START_US + np.arange(N) * (10 * DAY_US // N),
        "delay_us": rng.exponential(HOUR_US, N).astype(np.int64),
        "distance": rng.uniform(0, 2000, N),
        "version": np.where(np.arange(N) % 4 == 0, 2, 1),
        "arm": where(np.arange(N) % 4 == 0, "challenger", "champion"),
    }

    module = importlib.import_module("tiercel.cli.performance")
    monkeypatch.setattr(module, "connect_outcomes", lambda _, __: make_outcomes(N, **columns))
    return columns


@pytest.fixture
def run(directory, outcomes):
    """Run the command; returns (status, output)."""

    def invoke(*arguments):
        result = CliRunner().invoke(
            main, ["performance", *arguments], env={"TIERCEL_PROJECT": str(directory), "COLUMNS": "250"}
        )
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output

    return invoke


def cells(output, title):
    """The first line that begins with a title, split where two spaces are."""
    line = next(line for line in output.splitlines() if line.strip().startswith(title))
    return [part.strip() for part in line.split("  ") if part.strip()]


def test_a_person_reads_figures_with_intervals(run):
    """Versions stand side by side with counts, coverage, figures, intervals, money; then windows and segments."""
    status, output = run("late", "--as-of", NOW)
    assert status == 0, output
    assert "late, binary, as known at 2026-01-11 00:00 UTC" in output
    assert "95% within" in output
    assert cells(output, "version 1")[:2] == ["version 1", "version 2 (challenger)"]
    auc = cells(output, "AUC")
    assert auc[1].startswith("0.7")
    assert auc[1].endswith("]")
    assert cells(output, "labelled")[1].endswith("%)")
    assert cells(output, "EUR per answer")[0] == "EUR per answer"
    assert "version 2 (challenger) over version 1:" in output
    assert "mean_distance" in output
    assert "haul = long" in output
    assert "2026-01-05 00:00" in output


def test_programs_read_the_same(run, outcomes):
    """--json holds cohort, delay, groups, windows, segments, money and notes, as plain JSON."""
    status, output = run("late", "--as-of", NOW, "--since", "3d", "--window", "12h", "--json")
    found = json.loads(output)
    assert (status, found["model"], found["task"], found["confidence"]) == (0, "late", "binary", 0.95)
    assert 2 * 3600 < found["cohort"]["maturity_s"] < 4 * 3600
    assert [(g["version"], g["arm"]) for g in found["groups"]] == [(1, "champion"), (2, "challenger")]
    figures = found["groups"][0]["metrics"]
    assert figures["auc"]["low"] < figures["auc"]["value"] < figures["auc"]["high"]
    assert {"log_loss", "brier", "f1", "mean_distance"} <= set(figures)
    assert len({w["begin_us"] for w in found["windows"]}) == 7
    assert found["value"]["groups"][0]["per_prediction"]["value"] < 0
    assert found["value"]["comparisons"][0]["challenger"]["version"] == 2
    counts = found["groups"][0]["counts"]
    assert counts["n_predictions"] == counts["n_fresh"] + counts["n_cohort"]


def test_estimates_stand_beside_what_was_realized(run):
    """Windows too young for labels are estimated, older ones compared, and it is said whether estimates hold."""
    output = run("late", "--as-of", NOW)[1]
    assert "AUC estimated" in output
    assert "not yet" in output
    assert "AUC of version 1 (champion): " in output
    assert "they hold." in output
    found = json.loads(run("late", "--as-of", NOW, "--json")[1])["estimates"]
    last = [w for w in found["windows"] if w["version"] == 1][-1]
    assert last["realized"] is None
    assert last["estimated"]["auc"]["low"] < last["estimated"]["auc"]["value"]
    assert all(audit["holds"] for audit in found["audits"])
    assert json.loads(run("late", "--as-of", NOW, "--no-estimates", "--json")[1])["estimates"] is None


def test_one_version_can_be_asked(run):
    """NAME:VERSION shows that version alone."""
    found = json.loads(run("late:2", "--as-of", NOW, "--json")[1])
    assert [g["version"] for g in found["groups"]] == [2]


def test_the_cohort_can_be_chosen(run):
    """--maturity and --all-labels decide who is judged; both at once are refused."""
    aged = json.loads(run("late", "--as-of", NOW, "--maturity", "1d", "--json")[1])
    assert aged["cohort"]["maturity_s"] == 86_400
    every = json.loads(run("late", "--as-of", NOW, "--all-labels", "--json")[1])
    assert every["cohort"]["maturity_s"] is None
    assert sum(g["counts"]["n_fresh"] for g in every["groups"]) == 0
    status, output = run("late", "--maturity", "1d", "--all-labels")
    assert (status, "either --maturity or --all-labels" in output) == (2, True)


def test_nothing_in_this_time_is_said(run):
    """A week without predictions says so and when the newest was, with status 0."""
    status, output = run("late", "--as-of", "2027-01-01")
    assert status == 0
    assert "No predictions in this time. The newest before it is of 2026-01-1" in output
    assert "No predictions in this time." in run("late2")[1]


def test_a_regression_model_has_errors(run, outcomes):
    """A regression model is measured by its errors."""
    outcomes["model"] = "minutes"
    found = json.loads(run("minutes", "--as-of", NOW, "--json")[1])
    assert set(found["groups"][0]["metrics"]) == {"mae", "rmse", "bias", "r2"}
    assert found["value"] is None


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["nobody"], "nobody", "model_not_found"),
        (["late:9"], "9", "version_not_found"),
        (["late", "--as-of", NOW, "--window", "1s"], "at most 1000 windows", "outcomes_unreadable"),
    ],
)
def test_what_cannot_be_told_is_one_clear_line(run, arguments, message, code):
    """A model that does not exist and windows without end are one line with a code, and status 1."""
    status, output = run(*arguments)
    assert status == 1
    assert message in output
    assert f"({code})" in output


@pytest.mark.parametrize("text", ["0s", "-1d", "7", "d", "1y", "1e9d", "99999999w"])
def test_lengths_of_time_that_are_none_are_refused(run, text):
    """A length of time has a unit, is positive, and is not longer than a century."""
    status, output = run("late", "--since", text)
    assert status == 2
    assert "such as 90s, 15min, 36h or 7d" in output


def test_moments_that_are_none_are_refused(run):
    """A moment is ISO 8601."""
    status, output = run("late", "--as-of", "yesterday")
    assert (status, "such as 2026-03-01" in output) == (2, True)


def test_lengths_of_time_are_read_and_shown():
    """Texts become microseconds and back, in the unit that says enough."""
    read = Duration()
    assert [read.convert(text, None, None) for text in ("1.5h", "90s", "250 ms", "2W", "15min", "15m")] == [
        5_400_000_000, 90_000_000, 250_000, 1_209_600_000_000, 900_000_000, 900_000_000,
    ]  # fmt: skip
    assert [shown_duration(us) for us in (250_000, 90_000_000, 300_000_000, 5_400_000_000, 7 * DAY_US)] == [
        "250 ms", "90 s", "5 min", "90 min", "7 d",
    ]  # fmt: skip
    assert shown_moment(START_US) == "2026-01-01 00:00"
    assert shown_moment(2**62) == f"{2**62} us"


class Structure(HTMLParser):
    """Which elements a page has, and whether it is well nested."""

    VOID = frozenset({"meta"})

    def __init__(self):
        super().__init__()
        self.open, self.found, self.fetched = [], [], []

    def handle_starttag(self, tag, attrs):
        self.found.append(tag)
        self.fetched += [value for name, value in attrs if name in {"src", "href"}]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_a_page_stands_by_itself(run, tmp_path, outcomes):
    """--html writes one well-formed page that fetches nothing, with plots and tables."""
    path = tmp_path / "page.html"
    outcomes["is_shadow"] = (np.arange(N) % 8 == 0).tolist()
    status, output = run("late", "--as-of", NOW, "--html", str(path))
    assert (status, f"Wrote {path}" in output) == (0, True)
    structure = Structure()
    text = path.read_text()
    structure.feed(text)
    assert structure.open == []
    assert structure.fetched == []
    assert structure.found.count("svg") >= 10
    assert structure.found.count("table") >= 4
    assert "script" not in structure.found
    assert "nan" not in text.lower().replace("finance", "")
    assert "estimated before labels" in text
    assert "version 2 (shadow)" in text


def test_a_page_that_cannot_be_written_is_said(run, tmp_path):
    """A directory that is not there is named, with status 1."""
    status, output = run("late", "--as-of", NOW, "--html", str(tmp_path / "no" / "page.html"))
    assert (status, "cannot be written" in output) == (1, True)


def test_texts_on_a_page_are_escaped(run, tmp_path, directory):
    """Names and values of segments are text, whatever they contain."""
    text = performance_page._table(["<b>"], [["<script>", None]])
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert performance_page._figure("a'\"<", "", "").count("&lt;") == 2


def test_changes_of_meaning_are_shown(run, outcomes, directory):
    """A change that a trusted detector found stands in the table with its time; looking keeps no file."""
    rng = np.random.default_rng(1)
    flipped = np.arange(N) > N // 2
    outcomes["label"] = np.where(flipped, rng.random(N) < 0.5, outcomes["label"]).astype(float)
    output = run("late", "--as-of", NOW)[1]
    assert "Changes of what scores mean" in output
    assert "2026-01-06" in output[output.index("Changes of what") :]
    found = json.loads(run("late", "--as-of", NOW, "--json")[1])
    assert any(alarm["is_trusted"] for status in found["concept"] for alarm in status["alarms"])
    assert "THEY DO NOT HOLD" in output
    assert not (directory / ".tiercel" / "concept").exists()
