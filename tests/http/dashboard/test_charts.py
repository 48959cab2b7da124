"""Charts of what is no number: categories by name, the commonest first."""

from __future__ import annotations

import json
import math

from tiercel.http.dashboard.charts import mix
from tiercel.monitor.feature_drift import CategoryShare


def share(label, now, before):
    return CategoryShare(label, (), 1, now, before)


def test_a_mix_is_drawn_by_name():
    """A bar per category and side; the table has the same; markup in a name is text."""
    chart = mix(
        "c", "carrier", [share("'UA'", 0.25, 0.5), share("'<b>x</b>'", 0.75, 0.5)], beside="training", note="moved"
    )
    assert [(trace["name"], trace["y"]) for trace in chart.traces] == [("training", [50, 50]), ("now", [25, 75])]
    assert chart.traces[0]["x"] == ["'UA'", "'&lt;b>x&lt;/b>'"]
    assert chart.layout["xaxis"]["tickvals"] == chart.traces[0]["x"]
    assert (chart.columns, chart.rows[0]) == (["values", "training", "now"], ["'UA'", "50 %", "25 %"])
    json.loads(chart.json)


def test_a_mix_without_a_side_or_any():
    """Nothing to compare with: one colour. No values at all: no chart."""
    assert [trace["name"] for trace in mix("c", "t", [share("'UA'", 1.0, math.nan)], beside="training").traces] == [
        "now"
    ]
    assert mix("c", "t", [share("'UA'", math.nan, math.nan)], beside="training") is None
    assert mix("c", "t", [], beside="training") is None


def test_of_many_categories_some_are_named_below_the_axis():
    """As many names as there is room for, their beginnings where they are long."""
    shares = [share(f"'carrier number {i}'", 0.05, 0.05) for i in range(20)]
    axis = mix("c", "t", shares, beside="training").layout["xaxis"]
    assert len(axis["tickvals"]) == 4
    assert axis["ticktext"][0] == "'carrier …"
    axis = mix("c", "t", [share("'UA'", 0.2, 0.2)] * 20, beside="training").layout["xaxis"]
    assert len(axis["tickvals"]) == 7
