"""What is said of a model before its labels come, whether that came true, and whether scores still mean what they meant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tiercel.http.dashboard import charts, words
from tiercel.types import Task

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tiercel.http.dashboard.judged import Judged
    from tiercel.monitor.concept_state import ConceptState
    from tiercel.monitor.estimation import Audit, WindowEstimate

#: Figures that are drawn or listed of estimates: (name, title), the first of which is drawn.
SHOWN: Final = (("auc", "AUC"), ("log_loss", "log loss"), ("value_per_prediction", "value per answer"))
#: Changes that are listed, the newest.
N_CHANGES: Final = 8


@dataclass(frozen=True)
class AuditLine:
    """How estimates of one figure compared with what was realized; see `tiercel.monitor.estimation.Audit`."""

    who: str
    title: str
    n_inside: int
    n_windows: int
    mean_gap: float
    holds: bool


@dataclass(frozen=True)
class ChangeLine:
    """A change that a trusted detector found; `of` is which stream of errors, `size` the means before and after, in words."""

    time_us: int
    who: str
    of: str
    detector: str
    size: str


@dataclass(frozen=True)
class StreamLine:
    """One stream of errors: of whom, how many predictions were looked at, until when, and whether what is usual is known."""

    who: str
    n_rows: int
    until_us: int | None
    is_warm: bool
    n_changes: int


@dataclass(frozen=True)
class Outlook:
    """Of a page.

    Attributes:
        chart: estimates and what was realized, over the windows.
        audits: per figure and arm.
        notes: what a reader must know of estimates.
        problem: why there are none.
        streams: what detectors look at.
        changes: what trusted ones found, the newest first.
        n_doubtful: what the others found, of which no alert comes.
    """

    chart: charts.Chart | None = None
    audits: Sequence[AuditLine] = ()
    notes: Sequence[str] = ()
    problem: str = ""
    streams: Sequence[StreamLine] = ()
    changes: Sequence[ChangeLine] = ()
    n_doubtful: int = 0


def build(judged: Judged, version: int) -> Outlook:
    """The outlook of one version. Pure."""
    estimates = judged.estimates
    windows = [] if estimates is None else [each for each in estimates.windows if each.key.version == version]
    states = [each for each in judged.concept if each.version == version]
    changes = [line for state in states for line in _changes(state)]
    changes.sort(key=lambda line: -line.time_us)
    return Outlook(
        chart=_chart(windows),
        audits=[] if estimates is None else _audits(estimates.audits, version),
        notes=[] if estimates is None or judged.performance.task is not Task.BINARY else estimates.notes,
        problem=judged.estimates_problem or _absence(judged, windows),
        streams=[
            StreamLine(
                _who(state.arm),
                state.n_rows,
                state.until_us if state.n_rows else None,
                state.scale is not None,
                sum(alarm.is_trusted for alarm in state.alarms),
            )
            for state in states
        ],
        changes=changes[:N_CHANGES],
        n_doubtful=sum(not alarm.is_trusted for state in states for alarm in state.alarms),
    )


def _absence(judged: Judged, windows: Sequence[WindowEstimate]) -> str:
    task = judged.performance.task
    if task is not Task.BINARY:
        return f"Estimates before labels are made of probabilities of two classes; this is a {task.value} model."
    if not any(each.estimated for each in windows):
        return next(
            (f"{each.reason}." for each in reversed(windows) if each.reason), "There are no windows to estimate yet."
        )
    return ""


def _audits(audits: Sequence[Audit], version: int) -> list[AuditLine]:
    titles = dict(SHOWN)
    return [
        AuditLine(_who(a.arm), titles[a.metric], a.n_inside, a.n_windows, a.mean_gap, a.holds)
        for a in audits
        if a.version == version and a.metric in titles
    ]


def _changes(state: ConceptState) -> list[ChangeLine]:
    return [
        ChangeLine(
            alarm.time_us,
            _who(state.arm),
            alarm.stream,
            alarm.detector.replace("_", " "),
            ""
            if alarm.before is None or alarm.after is None
            else f"{words.number(alarm.before)} to {words.number(alarm.after)}",
        )
        for alarm in state.alarms
        if alarm.is_trusted
    ]


def _chart(windows: Sequence[WindowEstimate]) -> charts.Chart | None:
    """The champion's estimates as a band, and beside it what came."""
    own = [each for each in windows if each.key.arm == "champion" and each.estimated]
    name, title = next(((n, t) for n, t in SHOWN if any(_is_known(e.estimated.get(n)) for e in own)), SHOWN[0])
    own = [each for each in own if _is_known(each.estimated.get(name))]
    if not own:
        return None
    said = [each.estimated[name] for each in own]
    came = [None if each.realized is None else each.realized.get(name) for each in own]
    x = [words.moment_s(each.key.begin_us) for each in own]
    low = [e.value if e.low is None else e.low for e in said]
    high = [e.value if e.high is None else e.high for e in said]
    edge: dict[str, Any] = {"type": "scatter", "mode": "lines", "x": x, "hoverinfo": "skip", "showlegend": False}
    traces: list[dict[str, Any]] = [
        {**edge, "y": charts.plain(low), "line": {"width": 0, "color": "--c3"}},
        {**edge, "y": charts.plain(high), "line": {"width": 0, "color": "--c3"}, "fill": "tonexty", "fillcolor": "--c3-soft"},
        {
            "type": "scatter", "mode": "lines+markers", "name": "estimated before labels", "x": x,
            "y": charts.plain([e.value for e in said]),
            "line": {"color": "--c3", "width": 1.75, "dash": "dot"}, "marker": {"size": 5, "color": "--c3"},
        },
        {
            "type": "scatter", "mode": "markers", "name": "realized", "x": x,
            "y": charts.plain([None if e is None else e.value for e in came]), "marker": {"size": 8, "color": "--c1"},
        },
    ]  # fmt: skip
    rows = [
        [
            words.moment(each.key.begin_us), words.count(each.n), words.number(estimate.value), words.interval(estimate),
            "not yet" if realized is None else words.number(realized.value),
        ]
        for each, estimate, realized in zip(own, said, came, strict=True)
    ]  # fmt: skip
    layout = {"xaxis": {"type": "date"}, "yaxis": {"title": {"text": title}}}
    columns = ["window (UTC)", "rows", f"{title} estimated", "interval", "realized"]
    return charts.Chart("estimates", f"{title}, estimated and realized", traces, layout, columns, rows[::-1])


def _is_known(estimate: Any) -> bool:
    return estimate is not None and estimate.value is not None


def _who(arm: str) -> str:
    return "" if arm == "champion" else arm
