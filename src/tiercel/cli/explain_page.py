"""`tiercel explain --global --html`: what moves a model as one page that needs no network and no server."""

from __future__ import annotations

from datetime import UTC, datetime
from html import escape
from typing import TYPE_CHECKING, Any

from tiercel.cli import page_parts
from tiercel.cli.durations import shown_moment
from tiercel.cli.performance_tables import shown
from tiercel.monitor.fairness import RATES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tiercel.cli.explain_global import GlobalReport
    from tiercel.explain.global_view import Dependence, GlobalView
    from tiercel.monitor.fairness import FairnessReport

#: Features in the bars; dependence plots that are open at first.
_N_BARS, _N_OPEN = 20, 4


def write_page(path: Path, report: GlobalReport) -> None:
    """Write the page, replacing a file of the name.

    Raises:
        MissingExtraError: plotly is not installed.
        click.FileError: the file cannot be written.
    """
    page_parts.write(path, render_page(report))


def render_page(report: GlobalReport) -> str:
    """The page's HTML.

    Raises:
        MissingExtraError: plotly is not installed.
    """
    plots: dict[str, Any] = {}
    views = report.compared.views
    made = datetime.now(tz=UTC).strftime("%Y-%m-%d %H:%M UTC")
    parts = [f"<h1>What moves {escape(report.model)}</h1><p>Made {made}.</p>", *map(_head, views)]
    parts += [f'<p class="missing">{escape(each)}</p>' for each in report.problems]
    parts.append(_importances("features", "Features by mean size of their contributions", views, plots))
    if any(view.reasons for view in views):
        parts.append(_importances("reasons", "Reasons", views, plots))
    parts += [_dependence(views, plots), *map(_interactions, views), _churn(report), _fairness(report.fairness)]
    title = f"What moves {escape(report.model)}"
    return page_parts.document(title, page_parts.STYLE + _STYLE, "".join(parts), plots, _SCRIPT)


def _head(view: GlobalView) -> str:
    of = "" if view.output is None else f" of {escape(view.output)}"
    when = (
        f"asked {shown_moment(view.begin_us)} to {shown_moment(view.end_us)} UTC"
        if view.end_us
        else "of the training set"
    )
    against = "" if view.reference is None else f", against reference {view.reference[:12]}"
    notes = "".join(f"<li>{escape(note)}</li>" for note in view.notes)
    return (
        f"<p><b>Version {view.version}</b>: {view.n_rows:,} of {view.n_available:,} rows {when}. {view.method.capitalize()} "
        f"{view.kind.replace('_', '-')} contributions to the {view.scale}{of}{against}; from {view.expected:.4g} they add up to "
        f"{view.mean_margin:.4g} on average.</p><ul>{notes}</ul>"
    )


def _importances(kind: str, title: str, views: Sequence[GlobalView], plots: dict[str, Any]) -> str:
    found = [view.features if kind == "features" else view.reasons for view in views]
    names = [each.name for each in found[0]]
    names += [each.name for others in found[1:] for each in others if each.name not in names]
    known = [{each.name: each for each in importances} for importances in found]
    texts = {each.name: each.text for importances in found for each in importances if each.text}
    shown_names = names[:_N_BARS]
    plots[kind] = {
        "kind": "bars",
        "names": [texts.get(name, name) for name in shown_names],
        "series": [
            {
                "name": f"version {view.version}",
                "sizes": [of[name].mean_abs if name in of else None for name in shown_names],
                "errors": [of[name].standard_error if name in of else None for name in shown_names],
            }
            for view, of in zip(views, known, strict=True)
        ],
    }
    heads = "".join(f"<th>version {view.version}</th><th>share</th><th>mean</th><th>direction</th>" for view in views)
    rows = []
    for name in names:
        cells = []
        for of in known:
            each = of.get(name)
            if each is None:
                cells.append('<td colspan="4">takes no such feature</td>')
                continue
            direction = "" if each.direction is None else f"{each.direction:+.2f}"
            cells.append(
                f"<td>{each.mean_abs:.4g}</td><td>{each.share:.1%}</td><td>{each.mean:+.3g}</td><td>{direction}</td>"
            )
        label = f"{escape(name)} <small>{escape(texts[name])}</small>" if name in texts else escape(name)
        rows.append(f'<tr><th scope="row">{label}</th>{"".join(cells)}</tr>')
    height = 60 + 24 * len(shown_names) * (1 if len(views) == 1 else 1.5)
    return (
        f'<section><h2>{title}</h2><div class="chart" id="{kind}" style="height:{height:.0f}px"></div>'
        f'<details><summary>The same as a table ({len(names)})</summary><div class="wide"><table><thead><tr><th>{kind[:-1]}</th>'
        f"{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div><p>Direction: rank correlation of a feature's values "
        f"with its contributions, from -1 (more of it lowers the score) to 1.</p></details></section>"
    )


def _dependence(views: Sequence[GlobalView], plots: dict[str, Any]) -> str:
    names = list(dict.fromkeys(each.feature for view in views for each in view.dependence))
    found = []
    for i, name in enumerate(names):
        key = f"dependence-{i}"
        of = [(view, next((d for d in view.dependence if d.feature == name), None)) for view in views]
        known = [(view, each) for view, each in of if each is not None]
        plots[key] = {"kind": "dependence", "feature": name, "series": [_curve(view, each) for view, each in known]}
        partners = {each.partner for _, each in known if each.partner is not None}
        with_whom = f", which depends on {escape(', '.join(sorted(partners)))}" if partners else ""
        found.append(
            f"<details{' open' if i < _N_OPEN else ''}><summary>{escape(name)}: what its value does to its contribution"
            f'{with_whom}</summary><div class="chart tall" id="{key}"></div>{_missing(known)}</details>'
        )
    return f'<section><h2>Dependence on values</h2><div class="pairs">{"".join(found)}</div></section>'


def _curve(view: GlobalView, each: Dependence) -> dict[str, Any]:
    bins = [one for one in each.bins if one.low is not None and one.high is not None]
    points = [(x, y, z) for x, y, z in each.points if x is not None]
    return {
        "name": f"version {view.version}",
        "x": [((one.low or 0.0) + (one.high or 0.0)) / 2 for one in bins],
        "mean": [one.mean for one in bins],
        "low": [one.tenth for one in bins],
        "high": [one.ninetieth for one in bins],
        "points": [[x for x, _, _ in points], [y for _, y, _ in points], [z for _, _, z in points]],
        "partner": each.partner,
    }


def _missing(known: Sequence[tuple[GlobalView, Dependence]]) -> str:
    told = [
        f"version {view.version} {one.mean:+.3g} in {one.n:,} rows"
        for view, each in known
        for one in each.bins
        if one.low is None
    ]
    return f"<p>Where it is missing: {'; '.join(told)}.</p>" if told else ""


def _interactions(view: GlobalView) -> str:
    if not view.interactions:
        return ""
    how = "mean size of what they do together, exact" if view.is_exact else "estimated from how contributions spread"
    rows = "".join(
        f'<tr><th scope="row">{escape(each.first)} and {escape(each.second)}</th><td>{each.strength:.4g}</td></tr>'
        for each in view.interactions
    )
    return (
        f'<section><h2>Features that act together in version {view.version}</h2><table class="narrow"><thead><tr><th>pair</th>'
        f"<th>strength ({how})</th></tr></thead><tbody>{rows}</tbody></table></section>"
    )


def _churn(report: GlobalReport) -> str:
    churn, note = report.compared.churn, report.compared.note
    if churn is None:
        return f"<p>{escape(note)}</p>" if note else ""
    rows = "".join(
        f'<tr><th scope="row">{escape(each.code)}</th><td>{each.n_gained:,}</td><td>{each.n_lost:,}</td></tr>'
        for each in churn.changes
    )
    return (
        f"<section><h2>Version {churn.challenger} instead of {churn.champion}</h2><p>{escape(churn.describe())}</p>"
        f'<table class="narrow"><thead><tr><th>reason</th><th>rows that gain it</th><th>rows that lose it</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></section>"
    )


def _fairness(report: FairnessReport | None) -> str:
    if report is None:
        return ""
    notes = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    head = f"<section><h2>Decisions by segment, at {report.threshold:g}</h2><ul>{notes}</ul>"
    if not report.groups:
        return f"{head}</section>"
    rates = "".join(f'<th title="{escape(what)}">{name.replace("_", " ")}</th>' for name, what in RATES.items())
    rows = []
    for each in report.groups:
        who = f"version {each.key.version}" + ("" if each.key.arm == "champion" else f" ({each.key.arm})")
        cells = "".join(
            f'<td class="{"drift" if name in each.differs else ""}">{escape(shown(rate) or "")}</td>'
            for name, rate in each.rates.items()
        )
        ratio = "too few" if each.is_small else "" if each.ratio is None else f"{each.ratio:.2f}"
        rows.append(
            f'<tr><th scope="row">{escape(str(each.key.segment))} = {escape(str(each.key.value))}</th><td>{who}</td>'
            f"<td>{each.tally.n_scored:,}</td>{cells}<td>{ratio}</td></tr>"
        )
    return (
        f'{head}<div class="wide"><table><thead><tr><th>segment</th><th>version</th><th>decided</th>{rates}'
        f"<th>selection by the highest</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div><p>Marked: rates that differ "
        f"from those of all others of the segment beyond chance, at {report.confidence:.4g} confidence for a segment as a whole. "
        f"Why groups differ is not said by any of this.</p></section>"
    )


_STYLE = """
.pairs { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: .6rem 1.5rem; }
.chart.tall { height: 320px; } table.narrow { width: auto; } small { opacity: .75; }
"""
_SCRIPT = """
const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const COLOURS = ['--now', '--warn'];
function layout(more) {
  return Object.assign({ margin: { l: 60, r: 10, t: 34, b: 50 }, paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)',
    font: { color: css('--ink') }, legend: { orientation: 'h', y: 1, yanchor: 'bottom' } }, more);
}
function bars(chart, plot) {
  const traces = plot.series.map((one, i) => ({ type: 'bar', orientation: 'h', name: one.name, y: plot.names, x: one.sizes,
    error_x: { type: 'data', array: one.errors, color: css('--ink'), thickness: 1, width: 2 },
    marker: { color: css(COLOURS[i]) }, hovertemplate: '%{y}: %{x:.3g}<extra>' + one.name + '</extra>' }));
  Plotly.newPlot(chart, traces, layout({ barmode: 'group', showlegend: traces.length > 1,
    yaxis: { type: 'category', autorange: 'reversed', automargin: true },
    xaxis: { rangemode: 'tozero', gridcolor: css('--line'), title: { text: 'mean size of contributions' } } }),
    { responsive: true, displayModeBar: false });
}
function dependence(chart, plot) {
  const traces = [];
  plot.series.forEach((one, i) => {
    const colour = css(COLOURS[i]);
    if (i === 0) traces.push({ type: 'scatter', mode: 'markers', name: 'rows', x: one.points[0], y: one.points[1],
      text: one.points[2].map(z => one.partner && z !== null ? one.partner + ' ' + z.toPrecision(4) : ''), showlegend: false,
      marker: one.partner ? { size: 4, opacity: .6, color: one.points[2], colorscale: 'Viridis', showscale: true,
        colorbar: { title: { text: one.partner }, thickness: 8 } } : { size: 4, opacity: .35, color: colour },
      hovertemplate: '%{x:.4g}: %{y:.3g} %{text}<extra></extra>' });
    traces.push({ type: 'scatter', mode: 'lines+markers', name: one.name, x: one.x, y: one.mean, marker: { size: 5 },
      line: { color: colour, width: 2 }, error_y: { type: 'data', symmetric: false, thickness: 1, width: 0, color: colour,
        array: one.high.map((high, k) => Math.max(0, high - one.mean[k])),
        arrayminus: one.low.map((low, k) => Math.max(0, one.mean[k] - low)) },
      hovertemplate: '%{x:.4g}: %{y:.3g} on average<extra>' + one.name + '</extra>' });
  });
  Plotly.newPlot(chart, traces, layout({ showlegend: plot.series.length > 1,
    xaxis: { title: { text: plot.feature }, gridcolor: css('--line'), zeroline: false },
    yaxis: { title: { text: 'contribution' }, gridcolor: css('--line'), zerolinecolor: css('--known') } }),
    { responsive: true, displayModeBar: false });
}
function draw(chart) {
  const plot = PLOTS[chart.id];
  if (!plot.series.some(one => (one.sizes || one.x).length)) { chart.textContent = 'Nothing to draw.'; chart.style.height = 'auto'; return; }
  (plot.kind === 'bars' ? bars : dependence)(chart, plot);
}
function drawAll() { document.querySelectorAll('section > .chart, details[open] .chart').forEach(draw); }
document.querySelectorAll('details').forEach(each => each.addEventListener('toggle', () => {
  const chart = each.querySelector('.chart'); if (each.open && chart) draw(chart); }));
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', drawAll);
drawAll();
"""
