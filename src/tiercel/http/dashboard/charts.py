"""Charts as the page's script draws them: traces and layout in plotly's terms, colours by the name of a style variable.

Every chart comes with the same numbers as a table, for those who do not see it, and for where scripts do not run.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from tiercel.http.dashboard import words
from tiercel.monitor.counting import STAGES
from tiercel.monitor.distances import is_discrete
from tiercel.monitor.metrics import quantiles_us
from tiercel.monitor.thresholds import value_bins
from tiercel.monitor.traffic import SHOWN_QUANTILES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tiercel.monitor.feature_drift import CategoryShare
    from tiercel.monitor.performance import GroupPerformance
    from tiercel.monitor.windows import Window

_DAY_US = 86_400_000_000
_TOTAL = STAGES.index("total")
_TICK_CHARS, _AXIS_CHARS = 10, 44  # of a category's name below an axis, and of all of them
_NUMBER = 6  # significant digits that a chart is given


@dataclass(frozen=True)
class Chart:
    """One chart.

    Attributes:
        id: of its element; the same from one look to the next.
        title, note: of the figure.
        traces, layout: plotly's, without colours of their own.
        columns, rows: the same as a table, in words.
    """

    id: str
    title: str
    traces: Sequence[dict[str, Any]]
    layout: dict[str, Any]
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    is_small: bool = False

    @property
    def json(self) -> str:
        """The chart for a script element: nothing in it ends the element or begins a comment."""
        text = json.dumps({"traces": self.traces, "layout": self.layout}, separators=(",", ":"), allow_nan=False)
        return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


@dataclass(frozen=True)
class Line:
    """A series over time."""

    name: str
    values: Sequence[float]
    color: str
    dash: str = "solid"
    extra: dict[str, Any] = field(default_factory=dict)


def over_time(chart_id: str, title: str, times_us: Sequence[int], lines: Sequence[Line], **options: Any) -> Chart:
    """Lines over time (UTC). Options: `unit` of values, `is_log`, `shape` of what a value is in words, `note`."""
    x = [words.moment_s(us) for us in times_us]
    shown = options.get("shape", words.number)
    traces = [
        {
            "type": "scatter", "mode": "lines", "name": line.name, "x": x, "y": plain(line.values),
            "line": {"color": line.color, "width": 1.75, "dash": line.dash}, "connectgaps": False, **line.extra,
        }
        for line in lines
    ]  # fmt: skip
    axis: dict[str, Any] = {"title": {"text": options.get("unit", "")}, "rangemode": "tozero"}
    if options.get("is_log"):
        axis = {"title": {"text": options.get("unit", "")}, "type": "log", "dtick": 1}
    rows = [
        [words.moment(us), *(shown(line.values[i]) for line in lines)]
        for i, us in enumerate(times_us)
        if any(math.isfinite(line.values[i]) for line in lines)
    ]
    return Chart(
        chart_id, title, traces, {"yaxis": axis, "xaxis": {"type": "date"}},
        ["time (UTC)", *(line.name for line in lines)], rows[::-1], note=options.get("note", ""),
    )  # fmt: skip


def traffic(windows: Sequence[Window], step_us: int) -> Chart:
    """Requests per second in each step, and those a stand-in answered."""
    # A window may be shorter than its step, and the first ever recorded is longer: it holds everything before it.
    seconds = [max(step_us, w.end_us - w.begin_us) / 1e6 for w in windows]
    answered = [(w.n_requests - w.n_shadow) / s for w, s in zip(windows, seconds, strict=True)]
    lines = [Line("answered", answered, "--c1", extra={"fill": "tozeroy", "fillcolor": "--c1-soft"})]
    if any(w.n_shadow for w in windows):
        shadows = [w.n_shadow / s for w, s in zip(windows, seconds, strict=True)]
        lines.append(Line("scored as shadow", shadows, "--c3", "dot"))
    if any(w.n_degraded for w in windows):
        degraded = [w.n_degraded / s for w, s in zip(windows, seconds, strict=True)]
        lines.append(Line("rows of a stand-in", degraded, "--c2"))
    return over_time("traffic", "Traffic", [w.begin_us for w in windows], lines, unit="per second", shape=words.rate)


def latency(windows: Sequence[Window], bound_us: float | None) -> Chart:
    """p50, p99 and p99.9 of the total time in each step, beside the promise; in ms."""
    found = [quantiles_us(w.durations[_TOTAL], SHOWN_QUANTILES) for w in windows]
    lines = [
        Line(name, [each[i] / 1000 for each in found], color)
        for i, (name, color) in enumerate((("p50", "--c1"), ("p99", "--c4"), ("p99.9", "--c2")))
    ]
    if bound_us is not None and windows:
        lines.append(Line("promise", [bound_us / 1000] * len(windows), "--muted", "dash"))
    return over_time(
        "latency", "Latency", [w.begin_us for w in windows], lines,
        unit="ms", is_log=True, shape=lambda ms: words.time_of(ms * 1000),
    )  # fmt: skip


def distribution(
    chart_id: str,
    title: str,
    edges: NDArray[Any],
    now: NDArray[np.uint64],
    before: NDArray[np.uint64] | None,
    *,
    beside: str,
    note: str = "",
) -> Chart | None:
    """Shares of present values by bin, now and before; None where there are no bins to show.

    Args:
        chart_id: see `Chart`.
        title: likewise.
        edges: (24,) of one feature or score.
        now: uint64 (28,) counts.
        before: likewise; None: nothing to compare with.
        beside: what `before` is.
        note: see `Chart`.
    """
    finite = edges[np.isfinite(edges)].astype(np.float64)
    bins = value_bins(now[None])[0]
    if not len(finite):
        return None
    has_values = bool(is_discrete(edges[None])[0])
    labels, used = bin_labels(finite, has_values=has_values), len(finite) + 1
    series = [("now", bins, "--c1")]
    if before is not None:
        series.insert(0, (beside, value_bins(before[None])[0], "--c5"))
    # The outermost bins are of values never seen in training; shown where there are any.
    kept = [i for i in range(used) if 0 < i < used - 1 or any(counts[i] for _, counts, _ in series)]
    traces, columns = [], []
    for name, counts, color in series:
        total = counts.sum()
        shares = [float(counts[i] / total) if total else 0.0 for i in kept]
        columns.append([words.share(value) for value in shares])
        traces.append(
            {
                "type": "bar", "name": name, "x": [labels[i] for i in kept], "y": plain([100 * s for s in shares]),
                "marker": {"color": color, "line": {"width": 0}},
            }
        )  # fmt: skip
    layout = {
        "barmode": "group", "bargap": 0.15, "bargroupgap": 0, "yaxis": {"title": {"text": "% of values"}, "rangemode": "tozero"},
        "xaxis": {"type": "category", "tickangle": 0, "tickmode": "array", **_few_ticks(labels, kept, finite, has_values=has_values)},
    }  # fmt: skip
    rows = [[labels[i], *(column[at] for column in columns)] for at, i in enumerate(kept)]
    return Chart(
        chart_id, title, traces, layout, ["values", *(name for name, _, _ in series)], rows, note=note, is_small=True
    )


def mix(chart_id: str, title: str, categories: Sequence[CategoryShare], *, beside: str, note: str = "") -> Chart | None:
    """Shares of categories, now and before, the commonest first; None where there are none.

    Args:
        chart_id: see `Chart`.
        title: likewise.
        categories: of the report.
        beside: what it compares with.
        note: see `Chart`.
    """
    known = [
        (beside, [each.reference_share for each in categories], "--c5"),
        ("now", [each.share for each in categories], "--c1"),
    ]
    series = [one for one in known if one[1] and not math.isnan(one[1][0])]
    if not series:
        return None
    labels = [each.label for each in categories]
    keys = [_drawn(label) for label in labels]
    traces = [
        {
            "type": "bar", "name": name, "x": keys, "y": plain([100 * share for share in shares]),
            "marker": {"color": color, "line": {"width": 0}},
        }
        for name, shares, color in series
    ]  # fmt: skip
    # Names are as long as they are: below the axis only beginnings, and of many only some.
    most = _AXIS_CHARS // (1 + min(_TICK_CHARS, max(map(len, labels))))
    shown = labels[:: -(-len(labels) // most)]
    texts = [_drawn(label if len(label) <= _TICK_CHARS else f"{label[: _TICK_CHARS - 1]}…") for label in shown]
    layout = {
        "barmode": "group", "bargap": 0.15, "bargroupgap": 0, "yaxis": {"title": {"text": "% of values"}, "rangemode": "tozero"},
        "xaxis": {"type": "category", "tickangle": 0, "tickmode": "array", "tickvals": [_drawn(label) for label in shown], "ticktext": texts},
    }  # fmt: skip
    rows = [[label, *(words.share(shares[i]) for _, shares, _ in series)] for i, label in enumerate(labels)]
    return Chart(
        chart_id, title, traces, layout, ["values", *(name for name, _, _ in series)], rows, note=note, is_small=True
    )


def _drawn(text: str) -> str:
    """Text of anybody's, as plotly shows it: it takes some of HTML for its own."""
    return text.replace("&", "&amp;").replace("<", "&lt;")


def bin_labels(finite: NDArray[np.float64], *, has_values: bool) -> list[str]:
    """A name for each bin of ascending finite edges: one more than there are edges.

    Args:
        finite: the edges.
        has_values: a bin is one value, the edge below it.
    """
    texts = [f"{edge:.4g}" for edge in finite]
    if has_values:
        return [f"<{texts[0]}", *texts[:-1], f">{texts[-2] if len(texts) > 1 else texts[-1]}"]
    inner = [f"{low} to {high}" for low, high in pairwise(texts)]
    return [f"<{texts[0]}", *inner, f"≥{texts[-1]}"]


def _few_ticks(
    labels: Sequence[str], kept: Sequence[int], finite: NDArray[np.float64], *, has_values: bool
) -> dict[str, Any]:
    """Some bins' names below the axis: all where they are values and few, else where about each fifth begins."""
    if has_values and len(kept) <= 8:
        return {"tickvals": [labels[i] for i in kept], "ticktext": [labels[i] for i in kept]}
    places = sorted({kept[round(at)] for at in np.linspace(0, len(kept) - 1, 5)}) if kept else []
    return {
        "tickvals": [labels[i] for i in places],
        "ticktext": [f"{finite[min(max(i - 1, 0), len(finite) - 1)]:.3g}" for i in places],
    }


def performance(windows: Sequence[GroupPerformance], metric: str, title: str, arms: Sequence[tuple[int, str]]) -> Chart:
    """A figure per window with its interval, a line per version and arm, and the share of labels below."""
    traces: list[dict[str, Any]] = []
    rows: list[list[str]] = []
    for place, (version, arm) in enumerate(arms):
        of_arm = [w for w in windows if (w.key.version, w.key.arm) == (version, arm)]
        name = f"version {version}" + ("" if arm == "champion" else f" ({arm})")
        color = f"--c{1 + place % 5}"
        found = [(w, w.metrics.get(metric)) for w in of_arm]
        known = [(w, m) for w, m in found if m is not None and m.value is not None]
        x = [words.moment_s(w.key.begin_us) for w, _ in known]
        up = [max(0.0, (m.high if m.high is not None else m.value) - m.value) for _, m in known if m.value is not None]
        down = [max(0.0, m.value - (m.low if m.low is not None else m.value)) for _, m in known if m.value is not None]
        traces.append(
            {
                "type": "scatter", "mode": "lines+markers", "name": name, "x": x, "y": plain([m.value for _, m in known]),
                "line": {"color": color, "width": 1.75}, "marker": {"size": 6, "color": color},
                "error_y": {"type": "data", "array": plain(up), "arrayminus": plain(down), "symmetric": False,
                            "color": color, "thickness": 1, "width": 0},
            }
        )  # fmt: skip
        traces.append(
            {
                "type": "bar", "name": f"labelled, {name}", "showlegend": False, "yaxis": "y2",
                "x": [words.moment_s(w.key.begin_us) for w in of_arm],
                "y": plain([100 * (w.coverage.value or 0.0) for w in of_arm]),
                "marker": {"color": color, "opacity": 0.5, "line": {"width": 0}},
            }
        )  # fmt: skip
        rows += [
            [
                words.moment(w.key.begin_us), name, words.number(None if m is None else m.value), words.interval(m),
                f"{w.counts.n_labelled:,} of {w.counts.n_cohort:,}", words.share(w.coverage.value),
            ]
            for w, m in found
        ]  # fmt: skip
    layout: dict[str, Any] = {
        "xaxis": {"type": "date", "anchor": "y2"}, "yaxis": {"title": {"text": title}, "domain": [0.34, 1]},
        "yaxis2": {"title": {"text": "% labelled"}, "domain": [0, 0.24], "range": [0, 100], "nticks": 3}, "barmode": "group",
    }  # fmt: skip
    begins_us = {begin_us for w in windows if (begin_us := w.key.begin_us) is not None}
    if len(begins_us) == 1:
        _spread(traces, layout, *begins_us)
    rows.sort(key=lambda row: (row[0], row[1]), reverse=True)
    columns = ["window (UTC)", "arm", title, "interval", "labelled", "coverage"]
    return Chart("performance", f"{title} and label coverage", traces, layout, columns, rows)


def _spread(traces: Sequence[dict[str, Any]], layout: dict[str, Any], begin_us: int) -> None:
    """Give a single window's bars a width and its axis a day: of one moment the library makes an axis of microseconds."""
    bars = [trace for trace in traces if trace["type"] == "bar"]
    width_ms = 0.5 * _DAY_US / 1000 / len(bars)
    for place, bar in enumerate(bars):
        bar |= {"width": width_ms, "offset": (place - len(bars) / 2) * width_ms}
    ends = [words.moment_s(begin_us + side * _DAY_US // 2) for side in (-1, 1)]
    layout["xaxis"] |= {"range": ends, "tickvals": [words.moment_s(begin_us)], "ticktext": [words.moment(begin_us)]}


def calibration(group: GroupPerformance, chart_id: str = "calibration") -> Chart:
    """Scores beside how often it came true."""
    bins = [each for each in group.calibration if each.rate.n]
    traces: list[dict[str, Any]] = [
        {
            "type": "scatter", "mode": "lines", "name": "exact", "x": [0, 1], "y": [0, 1],
            "line": {"color": "--muted", "width": 1, "dash": "dash"}, "hoverinfo": "skip",
        },
        {
            "type": "scatter", "mode": "lines+markers", "name": "observed", "x": plain([b.mean_score for b in bins]),
            "y": plain([b.rate.value for b in bins]), "line": {"color": "--c1", "width": 1.75}, "marker": {"size": 6, "color": "--c1"},
            "error_y": {
                "type": "data", "symmetric": False, "color": "--c1", "thickness": 1, "width": 0,
                "array": plain([max(0.0, (b.rate.high or 0) - (b.rate.value or 0)) for b in bins]),
                "arrayminus": plain([max(0.0, (b.rate.value or 0) - (b.rate.low or 0)) for b in bins]),
            },
        },
    ]  # fmt: skip
    layout = {
        "xaxis": {"title": {"text": "mean score"}, "range": [0, 1]},
        "yaxis": {"title": {"text": "share that came true"}, "range": [0, 1]},
    }
    rows = [
        [words.number(b.mean_score), words.number(b.rate.value), words.interval(b.rate), f"{b.rate.n:,}"] for b in bins
    ]
    return Chart(
        chart_id, "Calibration", traces, layout, ["mean score", "came true", "interval", "rows"], rows, is_small=True
    )


def plain(values: Sequence[float | None]) -> list[float | None]:
    """JSON numbers of few digits; null where there is none."""
    return [None if value is None or not math.isfinite(value) else float(f"{value:.{_NUMBER}g}") for value in values]
