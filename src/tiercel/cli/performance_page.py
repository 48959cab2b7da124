"""The report of `tiercel performance --html` as one page: no script, nothing fetched, figures drawn as SVG."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Final

from tiercel.cli.durations import shown_moment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from tiercel.cli.performance_tables import Shown
    from tiercel.monitor.business import ValueReport
    from tiercel.monitor.classification import CalibrationBin
    from tiercel.monitor.estimation import EstimationReport
    from tiercel.monitor.intervals import Estimate
    from tiercel.monitor.performance import PerformanceReport

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 560, 220, 64, 28, 12
_STYLE: Final = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5d6876; --line: #d5dbe2; --back: #ffffff; --mark: #1769aa;
  --other: #b3541e; --third: #5b7f2b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --soft: #9aa5b3; --line: #38414d; --back: #14181e;
  --mark: #6cb2eb; --other: #f0a06a; --third: #a5cf6b; } }
body { margin: 0 auto; padding: 1.5rem; max-width: 75rem; background: var(--back); color: var(--ink);
  font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p.said, figcaption { color: var(--soft); margin: .2rem 0; }
.plots { display: flex; flex-wrap: wrap; gap: 1rem; } figure { margin: 0; flex: 1 1 26rem; min-width: 0; max-width: 36rem; }
svg { width: 100%; height: auto; } svg text { fill: var(--soft); font: 11px system-ui, sans-serif; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
.axis { stroke: var(--line); } ul { padding-left: 1.1rem; }
"""
_COLOURS: Final = ("var(--mark)", "var(--other)", "var(--third)", "var(--soft)")


@dataclass(frozen=True)
class _Series:
    """A line with a band: (x, estimate) where the figure exists."""

    name: str
    points: list[tuple[float, Estimate]]
    is_dashed: bool = False


def page(
    report: PerformanceReport,
    value: ValueReport | None,
    estimates: EstimationReport | None,
    *,
    tables: Sequence[Shown],
    said: Sequence[str],
    notes: Sequence[str],
    label: Callable[[str], str],
) -> str:
    """The page's HTML.

    Args:
        report: windows and calibration are drawn from it.
        value: money by window; None: no such plot.
        estimates: drawn beside what was realized; None: none are.
        tables: as a terminal shows them.
        said: lines below the title.
        notes: what a reader must know.
        label: a metric's name as people read it.
    """
    title = f"{report.model}: performance as known at {shown_moment(report.as_of_us)} UTC"
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>{escape(title)}</title><style>{_STYLE}</style><h1>{escape(title)}</h1>",
        *(f"<p class=said>{escape(line)}</p>" for line in said),
    ]
    if notes:
        parts.append("<h2>Read this first</h2><ul>" + "".join(f"<li>{escape(note)}</li>" for note in notes) + "</ul>")
    plots = list(_plots(report, value, estimates, label))
    if plots:
        parts.append(f"<h2>Over time</h2><div class=plots>{''.join(plots)}</div>")
    curves = [
        _curve(f"Calibration of version {group.key.version} ({group.key.arm})", group.calibration)
        for group in report.groups
        if group.calibration
    ]
    if curves:
        parts.append(f"<h2>Calibration</h2><div class=plots>{''.join(curves)}</div>")
    for table in tables:
        below = "".join(f"<p class=said>{escape(sentence)}</p>" for sentence in table.sentences)
        parts.append(f"<h2>{escape(table.title)}</h2>{_table(table.columns, table.rows)}{below}")
    return "".join(parts) + "</html>\n"


def _plots(
    report: PerformanceReport,
    value: ValueReport | None,
    estimates: EstimationReport | None,
    label: Callable[[str], str],
) -> Iterable[str]:
    who = list(dict.fromkeys((group.key.version, group.key.arm) for group in report.windows))
    names = list(dict.fromkeys(name for group in report.windows for name in group.metrics))
    for name in names:
        series = [
            _Series(
                f"version {version} ({arm})",
                [
                    (float(g.key.begin_us or 0), g.metrics[name])
                    for g in report.windows
                    if (g.key.version, g.key.arm) == (version, arm) and name in g.metrics
                ],
            )
            for version, arm in who
        ]
        if estimates is not None:
            series += [
                _Series(
                    f"version {version} ({arm})",
                    [
                        (float(w.key.begin_us or 0), w.estimated[name])
                        for w in estimates.windows
                        if (w.key.version, w.key.arm) == (version, arm)
                        and name in w.estimated
                        and (w.key.begin_us or 0) >= (report.cohort.begin_us or 0)
                    ],
                    is_dashed=True,
                )
                for version, arm in who
            ]
        yield from _plot(label(name), series)
    if value is not None:
        series = [
            _Series(
                f"version {version} ({arm})",
                [
                    (float(g.key.begin_us or 0), g.per_prediction)
                    for g in value.windows
                    if (g.key.version, g.key.arm) == (version, arm)
                ],
            )
            for version, arm in who
        ]
        yield from _plot(f"{value.unit or 'value'} per answer", series)
    series = [
        _Series(
            f"version {version} ({arm})",
            [
                (float(g.key.begin_us or 0), g.coverage)
                for g in report.windows
                if (g.key.version, g.key.arm) == (version, arm)
            ],
        )
        for version, arm in who
    ]
    yield from _plot("share of judged predictions with a label", series)


def _plot(title: str, series: Sequence[_Series]) -> Iterable[str]:
    """A figure of lines with bands; nothing when there is nothing to draw."""
    drawn = [_Series(s.name, [p for p in s.points if p[1].value is not None], s.is_dashed) for s in series]
    drawn = [each for each in drawn if each.points]
    numbers = [
        end
        for s in drawn
        for _, e in s.points
        for end in (e.value, e.low, e.high)
        if end is not None and math.isfinite(end)
    ]
    if not numbers:
        return
    left, right = min(p[0] for s in drawn for p in s.points), max(p[0] for s in drawn for p in s.points)
    low, high = min(numbers), max(numbers)
    margin = (high - low) * 0.06 or abs(high) * 0.05 or 1.0
    low, high = low - margin, high + margin

    def x(at: float) -> float:
        share = 0.5 if right == left else (at - left) / (right - left)
        return _LEFT + 8 + share * (_WIDTH - _LEFT - 24)

    def y(at: float) -> float:
        return _HEIGHT - _BOTTOM - (min(max(at, low), high) - low) / (high - low) * (_HEIGHT - _BOTTOM - _TOP)

    inside = [_axes(low, high, y), _at_bottom(x(left), shown_moment(int(left)), "start")]
    if right > left:
        inside.append(_at_bottom(x(right), shown_moment(int(right)), "end"))
    names = list(dict.fromkeys(each.name for each in drawn))
    inside += [_line(each, _colour(names, each.name), x, y) for each in drawn]
    legend = ", ".join(f"<span style='color:{_colour(names, name)}'>{escape(name)}</span>" for name in names)
    if any(each.is_dashed for each in drawn):
        legend += "; dashed: estimated before labels"
    yield _figure(title, "".join(inside), legend)


def _colour(names: list[str], name: str) -> str:
    return _COLOURS[names.index(name) % len(_COLOURS)]


def _line(series: _Series, colour: str, x: Callable[[float], float], y: Callable[[float], float]) -> str:
    points = series.points
    banded = [(at, e.low, e.high) for at, e in points if e.low is not None and e.high is not None]
    there = [f"{x(at):.1f},{y(high):.1f}" for at, _, high in banded]
    back = [f"{x(at):.1f},{y(low):.1f}" for at, low, _ in reversed(banded)]
    dash = " stroke-dasharray='5 4'" if series.is_dashed else ""
    band = (
        f"<polygon points='{' '.join(there + back)}' fill='{colour}' opacity='{0.08 if series.is_dashed else 0.16}'/>"
    )
    line = " ".join(f"{x(at):.1f},{y(e.value or 0.0):.1f}" for at, e in points)
    dots = "".join(
        f"<circle cx='{x(at):.1f}' cy='{y(e.value or 0.0):.1f}' r='2.5' fill='{colour}'>"
        f"<title>{escape(series.name)}, {shown_moment(int(at))}: {e.value:.4g}</title></circle>"
        for at, e in points
    )
    return f"{band}<polyline points='{line}' fill='none' stroke='{colour}' stroke-width='1.6'{dash}/>{dots}"


def _curve(title: str, bins: Sequence[CalibrationBin]) -> str:
    """Predicted against seen rates, with the diagonal of a calibrated model."""
    top = max([each.rate.high or 0.0 for each in bins] + [each.mean_score for each in bins] + [1e-9])

    def x(at: float) -> float:
        return _LEFT + 8 + at / top * (_WIDTH - _LEFT - 24)

    def y(at: float) -> float:
        return _HEIGHT - _BOTTOM - at / top * (_HEIGHT - _BOTTOM - _TOP)

    inside = [_axes(0.0, top, y), _at_bottom(x(0), "score 0", "start"), _at_bottom(x(top), f"{top:.3g}", "end")]
    inside.append(f"<line class=axis x1='{x(0):.1f}' y1='{y(0):.1f}' x2='{x(top):.1f}' y2='{y(top):.1f}'/>")
    for each in bins:
        at, rate = x(each.mean_score), each.rate
        low, high, value = rate.low or 0.0, rate.high or 0.0, rate.value or 0.0
        inside.append(
            f"<line x1='{at:.1f}' x2='{at:.1f}' y1='{y(low):.1f}' y2='{y(high):.1f}' stroke='var(--mark)'/>"
            f"<circle cx='{at:.1f}' cy='{y(value):.1f}' r='3' fill='var(--mark)'>"
            f"<title>{rate.n:,} predictions of {each.mean_score:.3g}: {value:.3g} positive</title></circle>"
        )
    return _figure(
        title, "".join(inside), "share of positive labels by mean score, with intervals; on the line is right"
    )


def _axes(low: float, high: float, y: Callable[[float], float]) -> str:
    lines = []
    for i in range(5):
        at = low + (high - low) * i / 4
        lines.append(f"<line class=axis x1='{_LEFT}' x2='{_WIDTH - 8}' y1='{y(at):.1f}' y2='{y(at):.1f}'/>")
        lines.append(f"<text x='{_LEFT - 6}' y='{y(at) + 4:.1f}' text-anchor='end'>{at:.3g}</text>")
    return "".join(lines)


def _at_bottom(x: float, text: str, anchor: str) -> str:
    return f"<text x='{x:.1f}' y='{_HEIGHT - 8}' text-anchor='{anchor}'>{escape(text)}</text>"


def _figure(title: str, inside: str, caption: str) -> str:
    """`inside` and `caption` are HTML."""
    return (
        f"<figure><strong>{escape(title)}</strong><svg viewBox='0 0 {_WIDTH} {_HEIGHT}' role=img "
        f"aria-label='{escape(title, quote=True)}'>{inside}</svg><figcaption>{caption}</figcaption></figure>"
    )


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    head = "".join(f"<th scope=col>{escape(column)}</th>" for column in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape('' if cell is None else str(cell))}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
