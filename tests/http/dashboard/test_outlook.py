"""What a model's page says before labels come, and of what scores mean."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import jinja2
import pytest
from tests.http.dashboard.test_pages import Text

from tiercel.http.dashboard import charts, outlook, pages, words
from tiercel.http.dashboard.judged import Judged
from tiercel.monitor.cohorts import Cohort, GroupKey
from tiercel.monitor.concept_state import Alarm, ConceptState
from tiercel.monitor.estimation import EstimationReport, WindowEstimate
from tiercel.monitor.intervals import Estimate
from tiercel.monitor.label_delay import DelayCurve
from tiercel.monitor.multiclass import Confusion
from tiercel.monitor.performance import PerformanceReport
from tiercel.types import Task

HOUR_US = 3_600_000_000
TEMPLATES = Path(outlook.__file__).parent / "templates"


def judged(task=Task.BINARY, windows=(), concept=(), **options):
    report = PerformanceReport(
        "late", task, 0, Cohort(), DelayCurve.of({}, {}, 0), [], [], [], confidence=0.95, notes=[]
    )  # fmt: skip
    return Judged(report, None, "", EstimationReport("late", list(windows), [], []), concept=concept, **options)


def window(number, *, version=2, arm="champion", realized=0.7, **options):
    key = GroupKey(version, arm, begin_us=number * HOUR_US)
    came = None if realized is None else {"auc": Estimate(realized, 0.6, 0.8, 100)}
    return WindowEstimate(key, 100, 5000, "isotonic", {"auc": Estimate(0.72, 0.65, 0.79, 100)}, came, **options)


def test_estimates_are_drawn_beside_what_came():
    """The champion's windows of this version: a band, its middle, and what was realized; nothing where labels are to come."""
    found = outlook.build(
        judged(windows=[window(1), window(2, realized=None), window(3, version=1), window(4, arm="shadow")]), 2
    )
    low, high, said, came = found.chart.traces
    assert (low["y"], high["y"], said["y"], came["y"]) == ([0.65] * 2, [0.79] * 2, [0.72] * 2, [0.7, None])
    assert [row[-1] for row in found.chart.rows] == ["not yet", "0.700"]
    assert found.problem == ""


def test_it_is_said_why_there_are_no_estimates():
    """A model of numbers, too little to learn from, no windows, and an error each have a sentence."""
    assert outlook.build(judged(Task.REGRESSION), 2).problem.endswith("this is a regression model.")
    few = WindowEstimate(GroupKey(2, "champion", begin_us=0), 10, 0, "", {}, None, "too few labels")
    assert outlook.build(judged(windows=[few]), 2).problem == "too few labels."
    assert outlook.build(judged(), 2).problem == "There are no windows to estimate yet."
    assert outlook.build(judged(estimates_problem="no such column"), 2).problem == "no such column"


def test_only_changes_that_can_be_relied_on_are_listed():
    """Trusted alarms of this version, the newest first; the others are counted."""
    state = ConceptState(2, "champion", HOUR_US, "binary 0.5", n_rows=900)
    state.alarms = [
        Alarm("errors", "adwin", 1, 600, 0.2, 0.3),
        Alarm("errors", "eddm", 2, 700, None, None),
        Alarm("calibration", "page_hinkley", 3, 800, None, None),
    ]
    other = ConceptState(1, "champion", HOUR_US, "binary 0.5")
    found = outlook.build(judged(concept=(state, other)), 2)
    assert [(each.time_us, each.detector, each.size) for each in found.changes] == [
        (3, "page hinkley", ""),
        (1, "adwin", "0.200 to 0.300"),
    ]
    assert found.n_doubtful == 1
    assert [(each.n_rows, each.is_warm, each.n_changes) for each in found.streams] == [(900, False, 2)]


def test_a_models_page_shows_both(admin):
    """The chart with its table, whether estimates held, and the changes that were found, on the page itself."""
    page = admin.wait_for("/models/late", "What scores mean")
    chart = json.loads(re.search(r'data-chart="estimates".*?<script[^>]*>(.*?)</script>', page, re.DOTALL).group(1))
    assert [trace.get("name") for trace in chart["traces"][2:]] == ["estimated before labels", "realized"]
    assert len(chart["traces"][2]["y"]) > 20
    text = str(Text(page))
    assert re.search(r"AUC hold \d+ of \d+ windows", text)
    assert re.search(r"\d changes in 3,000 labelled predictions", text)
    assert "errors adwin 0." in text
    assert "this is a regression model" in str(Text(admin.wait_for("/models/arrival-minutes", "Before labels come")))


def test_a_table_of_labels_and_decisions_is_whole():
    """A row per class that came, its counts per class decided and the share that was right; names are escaped."""
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True)
    environment.filters["wrapped"] = pages.wrapped
    macros = environment.get_template("macros.html").make_module({"words": words})
    found = Text(str(macros.confusion(Confusion(("a", "<b>", "c"), ((8, 2, 0), (1, 3, 0), (0, 0, 0))))))
    assert found.wrong == []
    assert str(found).endswith("Came a <b> c Right a 8 2 0 80 % <b> 1 3 0 75 % c 0 0 0 \u2013")


@pytest.mark.parametrize("n_windows", [1, 2])
def test_a_single_window_has_a_day_of_axis(n_windows):
    """Of one moment there is an axis of a day, and bars of both arms that stand side by side on it; of two, the library's."""
    found = [
        SimpleNamespace(
            key=GroupKey(version, "champion", 86_400_000_000 * (1 + place)), metrics={"auc": Estimate(0.8)},
            coverage=Estimate(0.5), counts=SimpleNamespace(n_labelled=5, n_cohort=10),
        )
        for place in range(n_windows)
        for version in (1, 2)
    ]  # fmt: skip
    chart = charts.performance(found, "auc", "AUC", [(1, "champion"), (2, "champion")])
    bars = [trace for trace in chart.traces if trace["type"] == "bar"]
    if n_windows == 2:
        assert "range" not in chart.layout["xaxis"]
        assert all("width" not in bar for bar in bars)
        return
    assert chart.layout["xaxis"]["range"] == ["1970-01-01 12:00:00", "1970-01-02 12:00:00"]
    assert chart.layout["xaxis"]["ticktext"] == ["1970-01-02 00:00"]
    (left, right), day_ms = bars, 86_400_000
    assert (
        -day_ms / 2
        < left["offset"]
        < left["offset"] + left["width"]
        == right["offset"]
        < right["offset"] + right["width"]
    )
    assert right["offset"] + right["width"] < day_ms / 2
