"""`tiercel drift --html`: reports as one page that needs no network and no server; plots by plotly's JavaScript, inline."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from html import escape
from importlib import resources
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from tiercel.errors import MissingExtraError
from tiercel.monitor.distances import is_discrete, shares
from tiercel.monitor.drift_words import WORDS, name_bins
from tiercel.monitor.thresholds import value_bins

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tiercel.monitor.drift import Compared, DriftReport, FeatureDrift

#: So many plots are open at first: those of the strongest alarms.
_N_OPEN = 6
_COLUMNS = (
    ("effect", "effect", "the larger, measured by its threshold, of Jensen-Shannon (js) and Kolmogorov-Smirnov (ks)"),
    ("threshold", "threshold", "the effect from which it is drift, for this many rows"),
    ("p_value", "p", "probability of such an effect by chance"),
    ("jensen_shannon", "JS", "Jensen-Shannon distance to base 2"),
    ("psi", "PSI", "population stability index"),
    ("kolmogorov_smirnov", "KS", "largest difference of the distribution functions, at the bins' edges"),
    ("wasserstein_sd", "Wasserstein", "in standard deviations of what it is compared with"),
    ("missing_share", "missing", "share of rows without a value"),
    ("out_of_range_share", "out of range", "share of values outside of the training range"),
)


def write_page(path: Path, compared: Sequence[Compared], reports: Sequence[DriftReport]) -> None:
    """Write the page, replacing a file of the name.

    Args:
        path: of the page.
        compared: what each report was made of.
        reports: as many.

    Raises:
        MissingExtraError: plotly is not installed.
        click.FileError: the file cannot be written.
    """
    page = render_page(compared, reports)
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise click.FileError(str(path), error.strerror or str(error)) from error


def render_page(compared: Sequence[Compared], reports: Sequence[DriftReport]) -> str:
    """The page's HTML.

    Raises:
        MissingExtraError: plotly is not installed.
    """
    plots: dict[str, Any] = {}
    sections = [_section(i, *pair, plots) for i, pair in enumerate(zip(compared, reports, strict=True))]
    # A name may hold anything: nothing in a script may end it.
    data = json.dumps(plots, allow_nan=False).replace("<", "\\u003c")
    made = datetime.now(tz=UTC).strftime("%Y-%m-%d %H:%M UTC")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>tiercel drift</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head><body>'
        f"<h1>Drift</h1><p>Made {made}.</p>{''.join(sections) or '<p>No model is served.</p>'}"
        f"<script>{_plotly()}</script><script>const PLOTS = {data};{_SCRIPT}</script></body></html>"
    )


def _plotly() -> str:
    """Plotly's JavaScript from its wheel; plotly itself is not imported."""
    try:
        return (resources.files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
    except (ModuleNotFoundError, FileNotFoundError):
        raise MissingExtraError(package="plotly", extra="dashboard", purpose="A report with plots") from None


def _section(number: int, compared: Compared, report: DriftReport, plots: dict[str, Any]) -> str:
    everything = sorted((*report.features, *report.scores), key=lambda each: (not each.is_alarm, -each.strength))
    # Where each is in the window's arrays.
    places = {
        ("feature" if i < len(report.features) else "score", each.name): i
        if i < len(report.features)
        else i - len(report.features)
        for i, each in enumerate((*report.features, *report.scores))
    }
    begin, end = (
        datetime.fromtimestamp(at / 1e6, tz=UTC).strftime("%Y-%m-%d %H:%M:%S")
        for at in (report.begin_us, report.end_us)
    )
    head = "".join(f'<th title="{escape(text)}">{escape(name)}</th>' for _, name, text in _COLUMNS)
    rows = []
    shown = {id(each) for each in report.alarms[:_N_OPEN]}
    for each in everything:
        key = f"{number}-{each.kind}-{places[each.kind, each.name]}"
        plots[key] = _plot(compared, each, places[each.kind, each.name], WORDS[report.against])
        cells = "".join(f"<td>{_cell(name, getattr(each, name))}</td>" for name, _, _ in _COLUMNS)
        rows.append(
            f'<tr><th scope="row">{escape(each.name)}</th><td class="{each.verdict.name.lower()}">{each.verdict}</td>{cells}'
            f"<td>{escape(each.reason)}</td></tr>"
            f'<tr class="plot"><td colspan="{len(_COLUMNS) + 3}"><details{" open" if id(each) in shown else ""}>'
            f"<summary>{escape(each.name)}: {escape(WORDS[report.against])} and now</summary>"
            f'<div class="chart" id="{key}"></div></details></td></tr>'
        )
    notes = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    return (
        f"<section><h2>{escape(report.model)} version {report.version} against {escape(WORDS[report.against])}: "
        f'<span class="{report.verdict.name.lower()}">{report.verdict}</span></h2>'
        f"<p>{begin} to {end} UTC. {report.n_requests:,} requests, {report.n_counted:,} rows in the histograms, compared with "
        f"{report.n_reference:,}. By chance {100 * report.alpha:.2g} % of such windows would show anything at all.</p>"
        f'<ul>{notes}</ul><div class="wide"><table><thead><tr><th>feature</th><th>verdict</th>{head}<th>why</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def _plot(compared: Compared, each: FeatureDrift, i: int, beside: str) -> dict[str, Any]:
    """Shares by bin, of what it is compared with and now; bins that are empty in both at the ends are left out."""
    window = compared.window
    of_scores = each.kind == "score"
    edges = window.score_edges[i] if of_scores else window.feature_edges[i]
    now = value_bins(window.score_counts[i] if of_scores else window.feature_counts[i])
    known = np.zeros_like(now)
    if compared.beside is not None:
        known = value_bins(compared.beside.score_counts[i] if of_scores else compared.beside.feature_counts[i])
    finite = edges[np.isfinite(edges)].astype(np.float64)
    if not len(finite):
        return {"bins": [], "series": []}
    discrete = bool(is_discrete(edges[None])[0])
    for bins in (now, known):  # +inf and the bins behind the last edge are one
        bins[len(finite)] = bins[len(finite) :].sum()
    used = [b for b in range(len(finite) + 1) if 0 < b < len(finite) or now[b] or known[b]]
    if discrete:  # behind the largest value nothing but the next number lies before the last edge
        used = [b for b in used if b < len(finite) or now[b] or known[b]]
    series = []
    for name, bins in ((beside, known), ("now", now)):
        values = shares(bins[: len(finite) + 1])
        if math.isfinite(values[0]):
            series.append({"name": name, "shares": [float(values[b]) for b in used]})
    return {"bins": [name_bins(finite, b, b, discrete) for b in used], "series": series}


def _cell(name: str, value: float) -> str:
    if math.isnan(value):
        return ""
    if name.endswith("_share"):
        return f"{100 * value:.3g} %"
    if name == "p_value" and value < 0.001:
        return "&lt;1e-9" if value < 1e-9 else f"{value:.0e}"
    return f"{value:.3f}"


_STYLE = """
:root { color-scheme: light dark; --ink: #1d2733; --paper: #ffffff; --line: #d7dde4; --known: #8a97a6; --now: #0b6bcb;
  --bad: #b3261e; --warn: #8a5a00; --good: #1b6e3c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e9ef; --paper: #14191f; --line: #36404b; --known: #7d8a99;
  --now: #5eb0ff; --bad: #ff8f86; --warn: #f0bb55; --good: #77d49a; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto; max-width: 82rem;
  padding: 0 1rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .6rem; border-top: 1px solid var(--line); vertical-align: top; }
tr.plot td { border-top: 0; padding-top: 0; } summary { cursor: pointer; } .chart { height: 260px; }
.drift { color: var(--bad); font-weight: 600; } .missing { color: var(--warn); font-weight: 600; }
.stable { color: var(--good); } .too_few, .not_comparable { opacity: .7; }
"""
_SCRIPT = """
const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
function draw(chart) {
  const plot = PLOTS[chart.id];
  if (!plot.series.length) { chart.textContent = 'No values to draw.'; chart.style.height = 'auto'; return; }
  const colours = plot.series.length > 1 ? ['--known', '--now'] : ['--now'];
  const traces = plot.series.map((one, i) => ({ type: 'bar', name: one.name, x: plot.bins, y: one.shares,
    marker: { color: css(colours[i]) }, hovertemplate: '%{x}: %{y:.1%}<extra>' + one.name + '</extra>' }));
  Plotly.newPlot(chart, traces, { barmode: 'group', margin: { l: 50, r: 10, t: 10, b: 70 }, paper_bgcolor: 'rgba(0,0,0,0)',
    plot_bgcolor: 'rgba(0,0,0,0)', font: { color: css('--ink') }, xaxis: { type: 'category', automargin: true },
    yaxis: { tickformat: '.0%', rangemode: 'tozero', gridcolor: css('--line') }, legend: { orientation: 'h', y: 1.15 } },
    { responsive: true, displayModeBar: false });
}
function drawAll() { document.querySelectorAll('details[open] .chart').forEach(draw); }
document.querySelectorAll('details').forEach(each => each.addEventListener('toggle', () => {
  if (each.open) draw(each.querySelector('.chart')); }));
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', drawAll);
drawAll();
"""
