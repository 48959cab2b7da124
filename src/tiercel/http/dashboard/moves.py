"""What moves a model, what moved its score, and whom it decides for: made on the slow thread when somebody looks, and kept.

Rows are sampled and bounded by what explaining them takes, as measured; the explainer is let go when its figures are there.
"""

from __future__ import annotations

import html
import textwrap
import time
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from tiercel.http.dashboard import words
from tiercel.http.dashboard.charts import Chart

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tiercel.explain.global_view import GlobalView, Importance
    from tiercel.monitor.fairness import FairnessReport, GroupFairness
    from tiercel.monitor.score_shift import FeatureShift, ScoreShift
    from tiercel.registry import ModelVersion
    from tiercel.settings import Settings

#: Rows that are explained, and what that may take; behind a page it is shorter than in a command.
MOST_ROWS: Final = 1_000
WITHIN_US: Final = 1_500_000.0
#: Features in the bars.
N_BARS: Final = 12
_WEEK_US: Final = 7 * 86_400_000_000


@dataclass(frozen=True)
class Moves:
    """What there is to say; what cannot be said is None, and `problems` say why."""

    view: GlobalView | None
    shift: ScoreShift | None
    fairness: FairnessReport | None
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class MovesSection:
    """The section of a model's page.

    Attributes:
        importance, reasons, bridge: charts; None where there is nothing to draw.
        said: what the bars are of, in a sentence.
        meaning: what moved the score, in a sentence; "" where that is not known.
        parts: features that moved it, the largest part first.
        groups: decisions by segment.
        notes: of what could not be said.
        group_notes: likewise of the groups.
    """

    importance: Chart | None
    reasons: Chart | None
    bridge: Chart | None
    said: str
    meaning: str
    parts: Sequence[FeatureShift]
    groups: Sequence[GroupFairness]
    threshold: float
    notes: Sequence[str]
    group_notes: Sequence[str]


def find_moves(
    settings: Settings, version: ModelVersion, *, length_us: int, against: str, now_us: int | None = None
) -> Moves:
    """Look at a version. Takes seconds: never on the event loop.

    Args:
        settings: the project.
        version: which.
        length_us: of the window whose score is compared.
        against: "training", "previous" or "last-week".
        now_us: its end; None: now.
    """
    # With them come model formats and a database, which the page that first asks for this need not wait for.
    from tiercel.errors import TiercelError
    from tiercel.insight.global_views import find_global_views
    from tiercel.insight.shifts import find_score_shift
    from tiercel.insight.versions import open_version
    from tiercel.registry import Registry

    now_us = time.time_ns() // 1000 if now_us is None else now_us
    problems: list[str] = []
    view, shift, fairness = None, None, None
    with Registry.for_state(settings.state_dir, url=settings.registry_url) as registry:
        try:
            # One thread: what is behind a page must not take a second core from who answers requests.
            opened = open_version(settings, registry, version)
            view = find_global_views(
                settings, opened, begin_us=now_us - _WEEK_US, end_us=now_us, most_rows=MOST_ROWS, within_us=WITHIN_US,
                threads=1, exactly=False,
            ).views[0]  # fmt: skip
            shift = find_score_shift(
                settings, opened, begin_us=now_us - length_us, end_us=now_us, against=against, most_rows=MOST_ROWS,
                within_us=WITHIN_US, threads=1,
            )  # fmt: skip
        except TiercelError as error:
            problems.append(str(error))
    try:
        fairness = _fairness(settings, version, now_us)
    except TiercelError as error:
        problems.append(str(error))
    return Moves(view, shift, fairness, tuple(problems))


def _fairness(settings: Settings, version: ModelVersion, now_us: int) -> FairnessReport | None:
    from tiercel.monitor.fairness import fairness_report
    from tiercel.monitor.outcomes import open_outcomes
    from tiercel.monitor.performance import choose_cohort

    value, task = settings.model(version.name).value, version.facts.signature.task
    if not value.segments:
        return None  # said on the page of performance, where segments are declared
    maturity_us = None if value.label_maturity_s is None else round(value.label_maturity_s * 1e6)
    with open_outcomes(settings.state_dir, settings.monitor, model=version.name, threads=1) as connection:
        cohort, _ = choose_cohort(
            connection,
            version.name,
            task,
            as_of_us=now_us,
            version=version.version,
            maturity_us=maturity_us,
            span_us=_WEEK_US,
        )
        return fairness_report(connection, version.name, task, cohort, value, as_of_us=now_us, version=version.version)


def build(moves: Moves) -> MovesSection:
    """The section of what was found. Pure."""
    view, shift, fairness = moves.view, moves.shift, moves.fairness
    notes = [*moves.problems, *(() if view is None else view.notes)]
    return MovesSection(
        importance=None if view is None else _bars("importance", "Features", view.features, view),
        reasons=None if view is None or not view.reasons else _bars("reasons", "Reasons", view.reasons, view),
        bridge=None if shift is None or not shift.features else _bridge(shift),
        said="" if view is None else _said(view),
        meaning="" if shift is None else shift.meaning,
        parts=() if shift is None else [each for each in shift.features if each.is_certain][:N_BARS],
        groups=() if fairness is None else fairness.of_any_arm,
        threshold=0.0 if fairness is None else fairness.threshold,
        notes=notes,
        group_notes=() if fairness is None else fairness.notes,
    )


def _said(view: GlobalView) -> str:
    of = "" if view.output is None else f" of {view.output}"
    rows = "rows asked in the last week" if view.source == "predictions" else "rows of the training set"
    return (
        f"Mean size of each feature's contribution to the {view.scale}{of}, over {view.n_rows:,} {rows}: {view.method} "
        f"{view.kind.replace('_', '-')} attributions."
    )


def _bars(chart_id: str, title: str, importances: Sequence[Importance], view: GlobalView) -> Chart:
    shown = importances[:N_BARS]
    names = [_lines(each.text) if each.text else _short(each.name, 32) for each in shown]
    trace = {
        "type": "bar", "orientation": "h", "name": "mean size", "y": list(range(len(shown))),
        "x": [float(f"{each.mean_abs:.4g}") for each in shown], "text": names, "textposition": "none",
        "marker": {"color": "--c1"}, "hovertemplate": "%{text}: %{x:.3g}<extra></extra>",
        "error_x": {
            "type": "data", "array": [float(f"{each.standard_error:.3g}") for each in shown], "thickness": 1, "width": 2,
            "color": "--muted",
        },
    }  # fmt: skip
    layout = {
        "showlegend": False, "hovermode": "closest", "margin": {"l": 8, "r": 12, "t": 6, "b": 30},
        "xaxis": {"rangemode": "tozero"},
        "yaxis": {
            "tickvals": list(range(len(shown))), "ticktext": names, "autorange": "reversed", "automargin": True,
            "fixedrange": True,
        },
    }  # fmt: skip
    rows = [
        [
            each.text or each.name,
            words.number(each.mean_abs),
            words.share(each.share),
            words.signed(each.mean),
            words.signed(each.direction),
        ]
        for each in importances
    ]
    note = f"{len(importances) - len(shown)} more are in the table" if len(importances) > len(shown) else ""
    columns = [title[:-1].lower(), f"mean size on the {view.scale}", "share", "mean", "more of it (rank correlation)"]
    return Chart(chart_id, title, [trace], layout, columns, rows, note=note)


def _bridge(shift: ScoreShift) -> Chart:
    """From the mean before to the mean now, a step for each feature."""
    named = shift.features[: N_BARS - 3]
    start, total = shift.reference_margin or 0.0, shift.shift or 0.0
    rest = total - sum(each.shift for each in named)
    low, high = _reach([start, start + total, *(start + s for s in accumulate(each.shift for each in named))])
    steps = [(each.name, each.shift) for each in named]
    steps += [("all others", rest)] if len(shift.features) > len(named) else []
    names = ["before", *(_short(name) for name, _ in steps), "now"]
    trace = {
        "type": "waterfall", "name": "mean", "x": list(range(len(names))), "text": names, "textposition": "none",
        "y": [float(f"{value:.5g}") for value in (start, *(size for _, size in steps), 0.0)],
        "measure": ["absolute", *("relative" for _ in steps), "total"],
        "increasing": {"marker": {"color": "--c1"}}, "decreasing": {"marker": {"color": "--c2"}},
        "totals": {"marker": {"color": "--muted"}}, "connector": {"line": {"color": "--edge", "width": 1}},
        "hovertemplate": "%{text}: %{delta:+.3g}<extra></extra>",
    }  # fmt: skip
    layout = {
        "showlegend": False,
        "hovermode": "closest",
        "xaxis": {"tickvals": list(range(len(names))), "ticktext": names, "automargin": True},
        "yaxis": {"title": {"text": f"mean {'margin' if shift.scale == 'margin' else 'score'}"}, "range": [low, high]},
    }
    rows = [
        [
            each.name,
            words.signed(each.shift),
            words.number(each.standard_error),
            words.signed(each.reference_mean),
            words.signed(each.mean),
        ]
        for each in shift.features
    ]
    columns = ["feature", "moved it by", "standard error", "part before", "part now"]
    note = "" if low <= 0.0 <= high else "the axis does not begin at 0"
    return Chart("shift", "What moved the mean score", [trace], layout, columns, rows, note=note)


def _reach(levels: Sequence[float]) -> tuple[float, float]:
    """The ends of an axis on which the steps between these levels fill the height: means are far from 0, steps are small."""
    lowest, highest = min(levels), max(levels)
    room = 0.12 * (highest - lowest) or 0.1 * abs(highest) or 1.0
    return float(f"{lowest - room:.6g}"), float(f"{highest + room:.6g}")


def _lines(text: str) -> str:
    """A sentence in two lines at most: of its first words alone, sentences look alike."""
    lines = textwrap.wrap(text, 30, max_lines=2, placeholder=" \u2026")
    return "<br>".join(html.escape(line, quote=False) for line in lines)


def _short(name: str, most: int = 26) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}\u2026"
