"""`tiercel drift --html`: reports as one page that needs no network and no server; plots by plotly's JavaScript, inline."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from html import escape
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tiercel.cli import page_parts
from tiercel.monitor.distances import is_discrete, shares
from tiercel.monitor.drift_words import WORDS, name_bins
from tiercel.monitor.thresholds import value_bins

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tiercel.monitor.drift import Compared, DriftReport, FeatureDrift
    from tiercel.monitor.feature_drift import CategoryShare
    from tiercel.monitor.score_shift import ScoreShift

NO_SHIFTS: Final[Mapping[tuple[str, int], ScoreShift]] = MappingProxyType({})
#: Features whose parts in a move of the score are drawn.
_N_PARTS = 12
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


def write_page(
    path: Path,
    compared: Sequence[Compared],
    reports: Sequence[DriftReport],
    shifts: Mapping[tuple[str, int], ScoreShift] = NO_SHIFTS,
) -> None:
    """Write the page, replacing a file of the name.

    Args:
        path: of the page.
        compared: what each report was made of.
        reports: as many.
        shifts: (model, version) -> what moved its mean score, where that was asked for.

    Raises:
        MissingExtraError: plotly is not installed.
        click.FileError: the file cannot be written.
    """
    page_parts.write(path, render_page(compared, reports, shifts))


def render_page(
    compared: Sequence[Compared],
    reports: Sequence[DriftReport],
    shifts: Mapping[tuple[str, int], ScoreShift] = NO_SHIFTS,
) -> str:
    """The page's HTML.

    Raises:
        MissingExtraError: plotly is not installed.
    """
    plots: dict[str, Any] = {}
    sections = [
        _section(i, *pair, plots, shifts.get((pair[1].model, pair[1].version)))
        for i, pair in enumerate(zip(compared, reports, strict=True))
    ]
    made = datetime.now(tz=UTC).strftime("%Y-%m-%d %H:%M UTC")
    body = f"<h1>Drift</h1><p>Made {made}.</p>{''.join(sections) or '<p>No model is served.</p>'}"
    return page_parts.document("tiercel drift", page_parts.STYLE, body, plots, _SCRIPT)


def _section(
    number: int, compared: Compared, report: DriftReport, plots: dict[str, Any], shift: ScoreShift | None
) -> str:
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
        f"<ul>{notes}</ul>{'' if shift is None else _shift(number, shift, plots)}"
        f'<div class="wide"><table><thead><tr><th>feature</th><th>verdict</th>{head}<th>why</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def _shift(number: int, shift: ScoreShift, plots: dict[str, Any]) -> str:
    """What moved the mean score: a sentence, and a bridge from the mean before to the mean now."""
    head = f"<h3>What moved the score</h3><p>{escape(shift.meaning)}</p>"
    if shift.shift is None or shift.reference_margin is None:
        return head
    key = f"{number}-shift"
    named = shift.features[:_N_PARTS]
    rest = shift.shift - sum(each.shift for each in named)
    plots[key] = {
        "from": [WORDS[shift.against], shift.reference_margin],
        "parts": [
            *([each.name, each.shift] for each in named),
            *([["the others", rest]] if len(shift.features) > len(named) else []),
        ],
        "to": "now",
    }
    rows = "".join(
        f'<tr><th scope="row">{escape(each.name)}</th><td>{each.shift:+.4g}</td><td>{each.standard_error:.2g}</td>'
        f"<td>{each.reference_mean:+.4g}</td><td>{each.mean:+.4g}</td><td>{escape(each.change)}</td></tr>"
        for each in named
    )
    of = "margin" if shift.scale == "margin" else "score"
    return (
        f'{head}<div class="chart" id="{key}"></div><div class="wide"><table><thead><tr><th>feature</th>'
        f"<th>moved the mean {of} by</th><th>standard error</th><th>mean part before</th><th>now</th><th>its values</th></tr>"
        f"</thead><tbody>{rows}</tbody></table></div><h3>Distributions</h3>"
    )


def _plot(compared: Compared, each: FeatureDrift, i: int, beside: str) -> dict[str, Any]:
    """Shares by bin, of what it is compared with and now; bins that are empty in both at the ends are left out."""
    if each.categories is not None:
        return _mix(each.categories, beside)
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


def _mix(categories: Sequence[CategoryShare], beside: str) -> dict[str, Any]:
    """Shares of categories, the commonest first."""
    sides = [(beside, [each.reference_share for each in categories]), ("now", [each.share for each in categories])]
    series = [{"name": name, "shares": values} for name, values in sides if values and math.isfinite(values[0])]
    # Plotly takes some of HTML for its own.
    return {"bins": [escape(each.label, quote=False) for each in categories], "series": series}


def _cell(name: str, value: float) -> str:
    if math.isnan(value):
        return ""
    if name.endswith("_share"):
        return f"{100 * value:.3g} %"
    if name == "p_value" and value < 0.001:
        return "&lt;1e-9" if value < 1e-9 else f"{value:.0e}"
    return f"{value:.3f}"


_SCRIPT = """
const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
function draw(chart) {
  const plot = PLOTS[chart.id];
  if (plot.parts) { bridge(chart, plot); return; }
  if (!plot.series.length) { chart.textContent = 'No values to draw.'; chart.style.height = 'auto'; return; }
  const colours = plot.series.length > 1 ? ['--known', '--now'] : ['--now'];
  const traces = plot.series.map((one, i) => ({ type: 'bar', name: one.name, x: plot.bins, y: one.shares,
    marker: { color: css(colours[i]) }, hovertemplate: '%{x}: %{y:.1%}<extra>' + one.name + '</extra>' }));
  Plotly.newPlot(chart, traces, { barmode: 'group', margin: { l: 50, r: 10, t: 10, b: 70 }, paper_bgcolor: 'rgba(0,0,0,0)',
    plot_bgcolor: 'rgba(0,0,0,0)', font: { color: css('--ink') }, xaxis: { type: 'category', automargin: true },
    yaxis: { tickformat: '.0%', rangemode: 'tozero', gridcolor: css('--line') }, legend: { orientation: 'h', y: 1.15 } },
    { responsive: true, displayModeBar: false });
}
function bridge(chart, plot) {
  const [name, start] = plot.from, names = plot.parts.map(part => part[0]), sizes = plot.parts.map(part => part[1]);
  Plotly.newPlot(chart, [{ type: 'waterfall', x: [name, ...names, plot.to], y: [start, ...sizes, 0],
    measure: ['absolute', ...names.map(() => 'relative'), 'total'], increasing: { marker: { color: css('--now') } },
    decreasing: { marker: { color: css('--warn') } }, totals: { marker: { color: css('--known') } },
    connector: { line: { color: css('--line') } }, hovertemplate: '%{x}: %{delta:+.3g}<extra></extra>' }],
    { margin: { l: 50, r: 10, t: 10, b: 90 }, paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)',
      font: { color: css('--ink') }, xaxis: { type: 'category', automargin: true }, yaxis: { gridcolor: css('--line') },
      showlegend: false }, { responsive: true, displayModeBar: false });
}
function drawAll() { document.querySelectorAll('details[open] .chart, section > .chart').forEach(draw); }
document.querySelectorAll('details').forEach(each => each.addEventListener('toggle', () => {
  if (each.open) draw(each.querySelector('.chart')); }));
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', drawAll);
drawAll();
"""
