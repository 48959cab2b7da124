"""The section that says what moves a model: of real attributions, made beside the event loop and kept."""

from __future__ import annotations

import json
import re
import threading
import time
from types import SimpleNamespace

import pytest
from tests.http.dashboard.conftest import Admin
from tests.support.explained import POLICY, explained_project

from tiercel.explain.global_view import Importance
from tiercel.http.dashboard import moves
from tiercel.monitor.predictions import PredictionTable
from tiercel.monitor.score_shift import FeatureShift
from tiercel.registry import Registry
from tiercel.settings import load_settings

TOML = """
[models.late.value.segments]
size = "CASE WHEN c > 0 THEN 'large' ELSE 'small' END"
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A champion whose `b` moved, asked 300 times; the table is as the watch leaves it."""
    directory = explained_project(tmp_path_factory.mktemp("moves") / "project", toml=TOML, policy=POLICY)
    settings = load_settings(directory)
    PredictionTable(settings.state_dir, settings.monitor).convert()
    return directory


@pytest.fixture(scope="module")
def page(directory):
    """The model's page once the section is there."""
    pytest.importorskip("jinja2")
    admin = Admin(directory)
    assert "Being computed" in admin.get("/models/late").text
    yield admin.wait_for("/models/late", 'data-chart="importance"', timeout_s=60)
    admin.close()


def chart(page, chart_id):
    (text,) = re.findall(rf'data-of="{chart_id}">(.*?)</script>', page)
    return json.loads(text)["traces"][0]


def test_features_and_reasons_have_bars(page):
    """Mean sizes, the largest first, of features and of the policy's reasons by their texts."""
    bars = chart(page, "importance")
    assert bars["x"] == sorted(bars["x"], reverse=True)
    assert set(bars["text"]) == {"a", "b", "c"}
    assert set(chart(page, "reasons")["text"]) == {"a and b together", "c is high"}
    assert "exact interventional attributions" in page


def test_the_bridge_leads_from_the_mean_before_to_the_mean_now(page):
    """A step per feature, which add up; the sentence and the list name the one that moved."""
    bridge = chart(page, "shift")
    assert bridge["text"][0] == "before"
    assert bridge["text"][-1] == "now"
    assert bridge["text"][1] == "b"
    assert bridge["measure"] == ["absolute", "relative", "relative", "relative", "total"]
    assert "The mean margin rose: +" in page
    assert '<li><b class="name">b</b> +' in page


@pytest.mark.parametrize(
    ("start", "parts", "note"),
    [
        pytest.param(-2.0, (0.03, -0.01), "the axis does not begin at 0", id="far from 0"),
        pytest.param(-0.01, (0.03, -0.01), "", id="across 0"),
        pytest.param(5.0, (0.0, 0.0), "the axis does not begin at 0", id="nothing moved"),
    ],
)
def test_the_bridge_s_steps_fill_its_height(start, parts, note):
    """The axis reaches from the lowest level between two steps to the highest, with a little room, and says so."""
    features = [FeatureShift(name, part, 0.001, 0, 0, None, None, "") for name, part in zip("ab", parts, strict=True)]
    shift = SimpleNamespace(features=features, reference_margin=start, shift=sum(parts), scale="margin", meaning="")
    bridge = moves.build(moves.Moves(None, shift, None)).bridge
    low, high = bridge.layout["yaxis"]["range"]
    levels = [start, start + parts[0], start + sum(parts)]
    assert low < min(levels) <= max(levels) < high
    assert high - low <= 1.3 * (max(levels) - min(levels)) or max(levels) == min(levels)
    assert bridge.note == note


def test_sentences_have_two_lines_in_bars():
    """Reasons that begin alike are told apart by their second line; what does not fit two goes, and nothing is markup."""
    said = ["The airline's flights are leaving <b>this</b> airport late.", "word " * 30, "Short."]
    bars = [Importance(f"R{i}", text, 1.0, 0.1, 0.3, 0.5, None) for i, text in enumerate(said)]
    view = SimpleNamespace(
        features=[], reasons=bars, notes=(), output=None, source="predictions", scale="margin", n_rows=9, method="exact",
        kind="linear",
    )  # fmt: skip
    names = moves.build(moves.Moves(view, None, None)).reasons.layout["yaxis"]["ticktext"]
    assert names[0] == "The airline's flights are<br>leaving &lt;b&gt;this&lt;/b&gt; airport \u2026"
    assert (names[1].count("<br>"), names[1][-1], names[2]) == (1, "\u2026", "Short.")


def test_decisions_by_segment_are_told(page):
    """Selection rates of the declared segment with what differs, and why there are no error rates."""
    assert "size = large" in page
    assert "selection rate" in page
    assert "there are no error rates yet" in page


def test_effects_and_thresholds_stand_on_one_line(page):
    """The two numbers are in a cell that does not wrap."""
    assert '<td class="effect">' in page


def test_it_is_made_off_the_event_loop_and_kept(directory, monkeypatch):
    """Another thread makes it, once for two looks; the page waits for none of it."""
    pytest.importorskip("jinja2")
    threads = []

    def find(*args, **kwargs):
        threads.append(threading.current_thread().name)
        time.sleep(0.3)
        return moves.Moves(None, None, None, ("nobody explains this",))

    admin = Admin(directory)
    try:
        admin.wait_for("/models/late", 'data-chart="importance"', timeout_s=60)  # what pages are made of is loaded then
        monkeypatch.setattr("tiercel.http.dashboard.pages.find_moves", find)
        begun = time.monotonic()
        assert "Being computed" in admin.get("/models/late?window=6h").text
        assert time.monotonic() - begun < 10
        assert "nobody explains this" in admin.wait_for("/models/late?window=6h", "nobody explains this", timeout_s=60)
        admin.get("/models/late?window=6h")
    finally:
        admin.close()
    assert len(threads) == 1
    assert threads[0].startswith("dashboard-slow")


def test_a_version_that_cannot_be_explained_is_said(directory):
    """The problem in words, and the decisions by segment all the same."""
    with Registry.for_state(directory / ".tiercel") as registry:
        number = registry.register("late", {"model.txt": b"1"}, registry.get("late", 1).facts).version
        found = moves.find_moves(
            load_settings(directory), registry.get("late", number), length_us=3_600_000_000, against="training"
        )
    assert (found.view, found.shift) == (None, None)
    assert "Expected golden" in found.problems[0]
    section = moves.build(found)
    assert (section.importance, section.bridge, section.parts) == (None, None, ())
    assert section.notes == list(found.problems)
