"""A model's page: how fast, on what, how well, for how much, who answers, and how it came to that."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tiercel.http.dashboard import charts, outlook, words
from tiercel.http.dashboard.judged import HEADLINE, ROLES, Judged
from tiercel.http.dashboard.moves import Moves, MovesSection
from tiercel.http.dashboard.moves import build as build_moves
from tiercel.http.dashboard.outlook import Outlook
from tiercel.http.dashboard.overview import Drift, Latency, bound_us, drift_cell
from tiercel.http.dashboard.shelf import Failed, Pending
from tiercel.monitor.counting import MAGNITUDE_BOUNDS, STAGES
from tiercel.monitor.drift import find_compared
from tiercel.monitor.drift_words import WORDS
from tiercel.monitor.metrics import quantiles_us
from tiercel.monitor.reference import MISSING
from tiercel.monitor.traffic import SHOWN_QUANTILES
from tiercel.types import Tier

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tiercel.http.dashboard.alert_source import AlertRow
    from tiercel.http.dashboard.readings import Live, ModelFacts, Readings
    from tiercel.monitor.business import GroupValue
    from tiercel.monitor.drift import Compared, DriftReport, FeatureDrift
    from tiercel.monitor.intervals import Estimate
    from tiercel.monitor.performance import GroupPerformance, PerformanceReport
    from tiercel.monitor.windows import Window
    from tiercel.registry import Event, ModelVersion
    from tiercel.settings import Settings

#: Stretches of time a reader may choose: length and steps of charts, in microseconds.
WINDOWS = {
    "1h": (3_600_000_000, 60_000_000),
    "6h": (21_600_000_000, 300_000_000),
    "24h": (86_400_000_000, 1_800_000_000),
    "7d": (604_800_000_000, 14_400_000_000),
}
#: Distributions that are drawn; the others are a click away.
N_DRAWN = 6
#: Events of the ledger that are shown.
N_EVENTS = 50
_TOTAL = STAGES.index("total")
#: What a stage does, for people.
STAGE_WORDS = {
    "parse": "read the request",
    "read": "look up stored features",
    "compute": "compute on-demand features",
    "score": "run the model",
    "reply": "write the answer",
    "total": "from socket to socket",
}


@dataclass(frozen=True)
class Asked:
    """What the address asks for; all checked against what there is."""

    version: int
    window: str
    against: str
    span: str
    feature: str


@dataclass(frozen=True)
class Stage:
    """Time in one stage, in microseconds, and its share of the median request."""

    name: str
    words: str
    p50_us: float
    p99_us: float
    p999_us: float
    share: float


@dataclass(frozen=True)
class Served:
    """What one version answered in the window.

    Attributes:
        steps: the window in steps, for charts.
        whole: all of it; None: nothing.
        compared: what drift was judged from; None: nothing was ever counted and there is no reference.
        report: of it.
        problem: why there is no reference, where that is one.
    """

    steps: Sequence[Window]
    whole: Window | None
    compared: Compared | None
    report: DriftReport | None
    problem: str = ""


@dataclass(frozen=True)
class Arm:
    """One version in one role: what it answered, how well, and what that was worth."""

    version: int
    arm: str
    group: GroupPerformance
    worth: GroupValue | None
    headline: Estimate | None


@dataclass(frozen=True)
class HistoryLine:
    """One event of the ledger, in words."""

    time_us: int
    actor: str
    what: str
    reason: str
    is_promotion: bool


@dataclass(frozen=True)
class ModelPage:
    """The page. Charts are None where there is nothing to draw."""

    model: ModelFacts
    version: ModelVersion
    versions: Sequence[int]
    asked: Asked
    tier: str
    latency: Latency
    rate: float | None
    n_requests: int
    n_shadow: int
    degraded: float
    missing: float
    oldest_age_s: float | None
    window: Window | None
    traffic_chart: charts.Chart | None
    latency_chart: charts.Chart | None
    stages: Sequence[Stage]
    drift: Drift
    report: DriftReport | None
    against_words: str
    judged: Sequence[FeatureDrift]
    distributions: Sequence[charts.Chart]
    problem: str
    performance: PerformanceReport | None
    performance_note: str
    is_pending: bool
    performance_chart: charts.Chart | None
    calibration_chart: charts.Chart | None
    metric_title: str
    arms: Sequence[Arm]
    unit: str
    comparisons: Sequence[tuple[str, Estimate]]
    value_note: str
    outlook: Outlook
    history: Sequence[HistoryLine]
    n_events: int
    alerts: Sequence[AlertRow]
    moves: MovesSection | None
    moves_note: str
    service: str | None
    hyperparameters: Sequence[tuple[str, str]]
    training_metrics: Sequence[tuple[str, str]]


def read_served(readings: Readings, version: ModelVersion, asked: Asked, now_us: int) -> Served:
    """Read and compare the windows of a version. Waits for files."""
    length_us, step_us = WINDOWS[asked.window]
    end_us = now_us // step_us * step_us + step_us  # the step that is not over yet is shown as it grows
    begin_us = end_us - length_us
    steps = readings.windows.series(version.name, version.version, begin_us, end_us, step_us)
    # The newest steps may not be recorded yet: that is not a stretch without traffic.
    while steps and not steps[-1].n_requests and steps[-1].end_us > now_us - 2 * step_us:
        steps.pop()
    problem, reference = "", None
    try:
        reference = readings.reference(version)
    except Exception as error:  # noqa: BLE001 - the rest of the page is still worth showing
        problem = str(error)
    compared = find_compared(
        readings.windows,
        reference,
        version.name,
        version.version,
        begin_us=now_us - length_us,
        end_us=now_us,
        against=asked.against,
        or_latest=True,
    )
    report = None if compared is None else compared.report()
    whole = compared.window if compared is not None and compared.window.n_requests else None
    return Served(steps, whole, compared, report, problem)


def build(
    settings: Settings,
    model: ModelFacts,
    version: ModelVersion,
    asked: Asked,
    served: Served,
    live: Live,
    judged: Judged | Pending | Failed | None,
    history: Sequence[Event],
    alerts: Sequence[AlertRow],
    n_versions: int,
    moves: Moves | Pending | Failed,
) -> ModelPage:
    """The page of what was read. Pure."""
    whole = served.whole
    tier = (
        max(whole.tiers, key=lambda each: Tier(each).budget_us or math.inf) if whole is not None and whole.tiers else ""
    ) or (version.facts.tier or "")
    bound = bound_us(settings, model.name, tier)
    total = (math.nan,) * 3 if whole is None else tuple(quantiles_us(whole.durations[_TOTAL], SHOWN_QUANTILES))
    n_requests = 0 if whole is None else whole.n_requests - whole.n_shadow
    rates = live.rates or {}
    rate = rates.get((model.name, version.version))
    if rate is None and whole is not None:
        rate = n_requests / max(1e-6, (whole.end_us - whole.begin_us) / 1e6)
    n_values = 0 if whole is None else whole.n_counted * len(whole.features)
    has_steps = sum(step.n_requests > 0 for step in served.steps) >= 2
    report = served.report
    shown = sorted(
        () if report is None else (*report.features, *report.scores),
        key=lambda each: (not each.is_alarm, -each.strength),
    )
    performance = judged.performance if isinstance(judged, Judged) else None
    metric, title = HEADLINE.get(version.facts.signature.task, ("", ""))
    arms = _arms(judged, metric) if isinstance(judged, Judged) else []
    lines = [line for line in map(_line, history[::-1]) if line is not None]
    return ModelPage(
        model=model,
        version=version,
        versions=range(1, n_versions + 1),
        asked=asked,
        tier=tier,
        latency=Latency(total[0], total[1], total[2], bound),
        rate=rate,
        n_requests=n_requests,
        n_shadow=0 if whole is None else whole.n_shadow,
        degraded=0.0 if whole is None or not whole.n_rows else whole.n_degraded / whole.n_rows,
        missing=float(whole.feature_counts[:, MISSING].sum()) / n_values
        if whole is not None and n_values
        else math.nan,
        oldest_age_s=None if whole is None or not whole.ages[: len(MAGNITUDE_BOUNDS)].any() else _age_s(whole),
        window=whole,
        traffic_chart=charts.traffic(served.steps, WINDOWS[asked.window][1]) if has_steps else None,
        latency_chart=charts.latency(served.steps, bound) if has_steps else None,
        stages=[] if whole is None else _stages(whole),
        drift=Drift() if report is None else drift_cell(report.to_json()),
        report=report,
        against_words=WORDS[asked.against],
        judged=shown,
        distributions=_distributions(served, shown, asked),
        problem=served.problem,
        performance=performance,
        performance_note=_why_not(judged),
        is_pending=isinstance(judged, Pending),
        performance_chart=_performance_chart(judged, metric, title),
        calibration_chart=_calibration(judged, version.version),
        metric_title=title,
        arms=arms,
        unit="" if not isinstance(judged, Judged) or judged.value is None else judged.value.unit,
        comparisons=_comparisons(judged),
        value_note=judged.value_problem if isinstance(judged, Judged) else "",
        outlook=outlook.build(judged, version.version) if isinstance(judged, Judged) else Outlook(),
        history=lines[:N_EVENTS],
        n_events=len(lines),
        alerts=alerts,
        moves=build_moves(moves) if isinstance(moves, Moves) else None,
        moves_note=_why_not(moves),
        service=version.facts.service,
        hyperparameters=[(str(name), _json(value)) for name, value in sorted(version.facts.hyperparameters.items())],
        training_metrics=[(name, words.number(value)) for name, value in sorted(version.facts.metrics.items())],
    )


def _stages(window: Window) -> list[Stage]:
    found = [quantiles_us(cells, SHOWN_QUANTILES) for cells in window.durations]
    middle = sum(p50 for name, (p50, *_) in zip(STAGES, found, strict=True) if name != "total" and not math.isnan(p50))
    return [
        Stage(
            name, STAGE_WORDS.get(name, name), p50, p99, p999, p50 / middle if middle > 0 and name != "total" else 0.0
        )
        for name, (p50, p99, p999) in zip(STAGES, found, strict=True)
    ]


def _distributions(served: Served, shown: Sequence[FeatureDrift], asked: Asked) -> list[charts.Chart]:
    """The one that was asked for, or the scores and what drifted most."""
    compared = served.compared
    if compared is None or not compared.window.n_counted:
        return []
    window, beside = compared.window, compared.beside
    if beside is not None and not window.has_edges_of(beside):
        beside = None
    if asked.feature:
        chosen = [each for each in shown if each.name == asked.feature]
    else:
        scores = [each for each in shown if each.kind == "score"][:2]
        chosen = [*scores, *(each for each in shown if each.kind == "feature")][:N_DRAWN]
    found = []
    for each in chosen:
        is_score = each.kind == "score"
        if is_score:
            place = next((i for i in range(len(window.score_counts)) if each.name in {"score", f"score[{i}]"}), 0)
        else:
            place = window.features.index(each.name)
        edges, now, before = (
            (window.score_edges, window.score_counts, None if beside is None else beside.score_counts)
            if is_score
            else (window.feature_edges, window.feature_counts, None if beside is None else beside.feature_counts)
        )
        if each.categories is not None:
            mixed = charts.mix(
                f"dist-{each.kind}-{place}", each.name, each.categories, beside=WORDS[asked.against], note=each.reason
            )
            found += [] if mixed is None else [mixed]
            continue
        chart = charts.distribution(
            f"dist-{each.kind}-{place}",
            each.name,
            edges[place],
            now[place],
            None if before is None else before[place],
            beside=WORDS[asked.against],
            note=each.reason,
        )
        if chart is not None:
            found.append(chart)
    return found


def _arms(judged: Judged, metric: str) -> list[Arm]:
    return [
        Arm(
            group.key.version,
            group.key.arm,
            group,
            judged.worth(group.key.version, group.key.arm),
            group.metrics.get(metric),
        )
        for group in judged.performance.groups
    ]


def _performance_chart(judged: Judged | Pending | Failed | None, metric: str, title: str) -> charts.Chart | None:
    if not isinstance(judged, Judged) or not metric:
        return None
    windows = judged.performance.windows
    arms = sorted(
        {(w.key.version, w.key.arm) for w in windows if w.counts.n_used}, key=lambda key: (ROLES.index(key[1]), -key[0])
    )
    return charts.performance(windows, metric, title, arms[:4]) if arms else None


def _calibration(judged: Judged | Pending | Failed | None, version: int) -> charts.Chart | None:
    group = judged.of(version) if isinstance(judged, Judged) else None
    return charts.calibration(group) if group is not None and group.calibration else None


def _comparisons(judged: Judged | Pending | Failed | None) -> list[tuple[str, Estimate]]:
    if not isinstance(judged, Judged) or judged.value is None:
        return []
    found = [
        (f"version {each.challenger.version} over version {each.champion.version}", each.per_prediction)
        for each in judged.value.comparisons
    ]
    champion = next((g for g in judged.value.groups if g.key.arm == "champion" and g.n_known), None)
    if champion is not None:
        for answer, each in (("yes", champion.always_positive), ("no", champion.always_negative)):
            if each is not None:
                found.append((f"had the answer always been {answer}", each))
    return found


def _why_not(made: object) -> str:
    if isinstance(made, Pending):
        return "Being computed; it appears here when it is there."
    if isinstance(made, Failed):
        return made.reason
    return ""


def _line(event: Event) -> HistoryLine | None:
    """An event in words; None for what nobody looks for here."""
    version, alias = event.version, event.alias
    if event.action == "alias.set":
        if alias == "previous":
            return None  # it follows from the promotion beside it
        moved = f", was version {event.from_version}" if event.from_version is not None else ""
        what = f"{alias} is version {event.to_version}{moved}"
    elif event.action == "alias.removed":
        what = f"{alias} is nobody, was version {event.from_version}"
    elif event.action == "version.created":
        what = f"version {version} registered"
    elif event.action == "model.created":
        return None
    else:
        what = f"{event.action} on version {version}"
    is_promotion = event.action == "alias.set" and alias == "champion"
    return HistoryLine(event.ts_us, event.actor, what, event.reason, is_promotion)


def _age_s(window: Window) -> float:
    """The median age of the oldest stored value of a request; the cells are of milliseconds."""
    return quantiles_us(window.ages, (0.5,))[0]  # ms / 1000 as ns / 1000 are us


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
