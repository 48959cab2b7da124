"""The dashboard for Grafana asks for metrics that there are."""

from __future__ import annotations

import json
import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

import tiercel.http.dashboard
from tiercel.monitor.metrics import render_metrics

FILE = Path(tiercel.http.dashboard.__file__).parent / "grafana.json"


def queries(dashboard):
    yield from (target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ()))
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]["query"]


def test_every_metric_and_label_exists(seeded, admin):
    """Each name in the file is of a sample in /metrics, and each label it is chosen or grouped by is one that sample has."""
    labels: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(render_metrics(seeded / ".tiercel").decode()):
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
        if not family.samples:  # a metric that has counted nothing yet
            labels.setdefault(family.name + ("_total" if family.type == "counter" else ""), set())
    dashboard = json.loads(FILE.read_text())
    assert admin.get("/grafana.json").json() == dashboard
    named = set()
    for query in queries(dashboard):
        for name, chosen in re.findall(r"\b(tiercel_\w+)(?:\{([^}]*)\})?", query):
            assert name in labels, name
            named.add(name)
            if labels[name]:
                assert set(re.findall(r"(\w+)(?:=|!=)", chosen)) <= labels[name], query
        for grouped in re.findall(r"by \(([^)]*)\)", query):
            known = set().union(*(labels[name] for name in re.findall(r"\btiercel_\w+", query)))
            assert not known or set(grouped.split(", ")) <= known, query
    assert len(named) > 15


def test_panels_do_not_overlap():
    """Each panel has a place of its own, a title, and an id of its own."""
    panels = json.loads(FILE.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = set()
    for panel in panels:
        place = panel["gridPos"]
        own = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert panel["title"]
        assert place["x"] + place["w"] <= 24
        assert not own & cells, panel["title"]
        cells |= own
