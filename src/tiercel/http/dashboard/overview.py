"""The first page: every model in a line, those that want attention first."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tiercel.http.dashboard import links, words
from tiercel.http.dashboard.shelf import Failed, Pending
from tiercel.http.dashboard.spark import Spark, spark
from tiercel.types import Tier

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tiercel.http.dashboard.alert_source import AlertRow
    from tiercel.http.dashboard.judged import Judged
    from tiercel.http.dashboard.readings import Live, ModelFacts
    from tiercel.monitor.traffic import Traffic
    from tiercel.settings import Settings

#: Stretches of time a reader may choose, in microseconds.
WINDOWS = {"1h": 3_600_000_000, "6h": 21_600_000_000, "24h": 86_400_000_000, "7d": 604_800_000_000}
SORTS = ("attention", "name", "traffic")
N_STEPS = 30
#: From good to bad; "none": nothing to say.
STATES = ("none", "good", "warn", "bad")
ALARMS = ("drift", "missing")


@dataclass(frozen=True)
class Latency:
    """Quantiles of the total time beside the promise, in microseconds; NaN: nothing was answered."""

    p50_us: float
    p99_us: float
    p999_us: float
    bound_us: float | None

    @property
    def state(self) -> str:
        """Bad: one request in a hundred is late; warn: one in a thousand."""
        if math.isnan(self.p99_us):
            return "none"
        if self.bound_us is None:
            return "good"
        return "bad" if self.p99_us > self.bound_us else "warn" if self.p999_us > self.bound_us else "good"

    def at(self, value_us: float) -> float:
        """Where a time stands on a bar that ends at one and a quarter of the bound, 0 to 1; logarithmic below it.

        From a thousandth of the bound on: 10 us and 10 ms are both to be seen.
        """
        if self.bound_us is None or math.isnan(value_us):
            return 0.0
        return min(1.0, max(0.0, (3 + math.log10(max(value_us, 1e-9) / self.bound_us)) / 3 * 0.8))


@dataclass(frozen=True)
class Drift:
    """What the newest drift report says, in a cell."""

    state: str = "none"
    verdict: str = ""
    names: tuple[str, ...] = ()
    n_more: int = 0
    end_us: int | None = None
    n_rows: int = 0


@dataclass(frozen=True)
class Figure:
    """A figure in a cell: title, value, what qualifies it; or why there is none."""

    title: str = ""
    value: str = ""
    detail: str = ""
    reason: str = ""
    is_pending: bool = False


@dataclass(frozen=True)
class ModelRow:
    """A model's line. `why`: what wants attention, in words, gravest first."""

    name: str
    link: str
    champion: int | None
    challenger: int | None
    task: str
    tier: str
    is_tier_seen: bool
    rate: float | None
    n_requests: int
    spark: Spark
    latency: Latency
    degraded: float
    drift: Drift
    figure: Figure
    money: Figure
    alerts: Sequence[AlertRow]
    state: str
    why: Sequence[str]


@dataclass(frozen=True)
class Overview:
    """The page.

    Attributes:
        rows: in the order asked for.
        window, sort: as asked for.
        problems: what could not be read, in words.
        n_alerts: open ones; None: they cannot be read.
        watched_us: when somebody last looked for alerts; 0: never.
    """

    rows: Sequence[ModelRow]
    window: str
    sort: str
    rate: float | None
    n_requests: int
    n_attention: int
    n_alerts: int | None
    n_paging: int
    slowest: ModelRow | None
    problems: Sequence[str] = ()
    n_workers: int = 0
    watched_us: int = 0


@dataclass(frozen=True)
class Sources:
    """What an overview is made of."""

    settings: Settings
    models: Sequence[ModelFacts]
    traffic: Mapping[tuple[str, int], Traffic]
    live: Live
    drift: Mapping[tuple[str, int, str], Mapping[str, Any]]
    judged: Mapping[str, Judged | Pending | Failed | None]
    alerts: Sequence[AlertRow] | None
    problems: Sequence[str] = field(default_factory=tuple)
    watched_us: int = 0


def build(sources: Sources, *, window: str, sort: str) -> Overview:
    """The page of what was read; what was asked for is one of `WINDOWS` and `SORTS`."""
    rows = [_row(sources, model) for model in sources.models]
    if sort == "attention":
        rows.sort(key=lambda row: (-STATES.index(row.state), row.name))
    elif sort == "traffic":
        rows.sort(key=lambda row: (-(row.rate or 0.0), -row.n_requests, row.name))
    alerts = sources.alerts
    measured = [row for row in rows if row.latency.bound_us and not math.isnan(row.latency.p999_us)]
    rates = [row.rate for row in rows if row.rate is not None]
    return Overview(
        rows=rows,
        window=window,
        sort=sort,
        rate=sum(rates) if rates else None,
        n_requests=sum(row.n_requests for row in rows),
        n_attention=sum(row.state in {"warn", "bad"} for row in rows),
        n_alerts=None if alerts is None else sum(alert.is_open for alert in alerts),
        n_paging=0 if alerts is None else sum(alert.is_open and alert.is_paging for alert in alerts),
        slowest=max(measured, key=lambda row: row.latency.p999_us / (row.latency.bound_us or 1), default=None),
        problems=sources.problems,
        n_workers=sources.live.totals.n_live,
        watched_us=sources.watched_us,
    )


def tier_of(model: ModelFacts, seen: set[str]) -> tuple[str, bool]:
    """The tier a model answers in, and whether it was seen to; else what was asked for, or nothing."""
    for tier in (Tier.BATCH, Tier.NEAR_REALTIME, Tier.REALTIME):  # the slowest promise that is made
        if tier.value in seen:
            return tier.value, True
    champion = model.champion
    return (champion.facts.tier or "" if champion is not None else ""), False


def bound_us(settings: Settings, name: str, tier: str) -> float | None:
    """The promise a model's answers are held to: its own deadline, or its tier's."""
    own = settings.model(name).deadline_ms
    if own is not None:
        return own * 1000
    return Tier(tier).budget_us if tier else None


def drift_cell(report: Mapping[str, Any] | None) -> Drift:
    """A report as JSON, in a cell."""
    if report is None:
        return Drift()
    judged = [*report["features"], *report["scores"]]
    alarms = [each for each in judged if each["verdict"] in ALARMS]
    alarms.sort(key=lambda each: -_strength(each))
    known = {"end_us": report["end_us"], "n_rows": report["n_counted"]}
    if alarms:
        names = tuple(str(each["name"]) for each in alarms[:2])
        worst = "drift" if any(each["verdict"] == "drift" for each in alarms) else "missing"
        return Drift("warn", worst, names, len(alarms) - len(names), **known)
    verdict = str(report.get("verdict", ""))
    return Drift("good" if verdict == "stable" else "none", verdict, **known)


def figures(model: ModelFacts, judged: Judged | Pending | Failed | None) -> tuple[Figure, Figure]:
    """The headline of how well a model does, and of what it was worth."""
    if isinstance(judged, Pending):
        waiting = Figure(reason="being computed", is_pending=True)
        return waiting, waiting
    if isinstance(judged, Failed):
        return Figure(reason=judged.reason), Figure(reason=judged.reason)
    champion = model.champion
    if judged is None or champion is None:
        return Figure(reason="no predictions recorded"), Figure(reason="no predictions recorded")
    group, headline = judged.of(champion.version), judged.headline(champion.version)
    if headline is None:
        told = "no predictions in this time" if group is None else "no single figure for this kind of model"
        figure = Figure(reason=told)
    elif headline[1].value is None:
        figure = Figure(headline[0], reason=headline[1].reason)
    else:
        coverage = group.coverage.value if group is not None else None
        detail = f"{words.share(coverage)} labelled" if coverage is not None else ""
        figure = Figure(headline[0], words.number(headline[1].value), detail)
    worth = judged.worth(champion.version)
    if judged.value_problem:
        return figure, Figure(reason=judged.value_problem)
    if judged.value is None:
        return figure, Figure(reason="not declared")
    if worth is None or worth.total.value is None:
        return figure, Figure(reason="no outcomes yet" if worth is None else worth.total.reason)
    each = worth.per_prediction.value
    return figure, Figure(
        "",
        words.money(worth.total.value, judged.value.unit),
        f"{words.number(each)} per answer" if each is not None else "",
    )


def _row(sources: Sources, model: ModelFacts) -> ModelRow:
    traffic = [one for (name, _), one in sources.traffic.items() if name == model.name]
    own = [(version, one) for (name, version), one in sources.traffic.items() if name == model.name]
    champion = model.champion
    main = next((one for version, one in own if champion is not None and version == champion.version), None)
    main = main or max(traffic, key=lambda one: one.n_requests, default=None)
    tier, is_seen = tier_of(model, set() if main is None else main.tiers)
    bound = bound_us(sources.settings, model.name, tier)
    quantiles = (math.nan, math.nan, math.nan) if main is None else main.quantiles_us()
    latency = Latency(*quantiles, bound)
    n_requests = sum(one.n_requests for one in traffic)
    rates = sources.live.rates
    rate = None if rates is None else sum(n for (name, _), n in rates.items() if name == model.name)
    if rate is None and traffic:
        rate = sum(one.rate for one in traffic)
    degraded = sum(one.n_degraded for one in traffic) / n_requests if n_requests else 0.0
    report = None if champion is None else sources.drift.get((model.name, champion.version, "training"))
    drift = drift_cell(report)
    figure, money = figures(model, sources.judged.get(model.name))
    alerts = [alert for alert in sources.alerts or () if alert.is_open and alert.model == model.name]
    state, why = _judge(model, latency, degraded, drift, alerts)
    return ModelRow(
        name=model.name,
        link=links.model(model.name),
        champion=None if champion is None else champion.version,
        challenger=None if model.challenger is None else model.challenger.version,
        task="" if champion is None else champion.facts.signature.task.value,
        tier=tier,
        is_tier_seen=is_seen,
        rate=rate,
        n_requests=n_requests,
        spark=spark([int(sum(one.steps[i] for one in traffic)) for i in range(N_STEPS)] if traffic else []),
        latency=latency,
        degraded=degraded,
        drift=drift,
        figure=figure,
        money=money,
        alerts=alerts,
        state=state if n_requests or state in {"warn", "bad"} else "none",
        why=why,
    )


def _judge(
    model: ModelFacts, latency: Latency, degraded: float, drift: Drift, alerts: Sequence[AlertRow]
) -> tuple[str, list[str]]:
    """The state of a line and the reasons for it, gravest first."""
    bad, warn = [], []
    paging = sum(alert.is_paging for alert in alerts)
    if paging:
        bad.append(words.plural(paging, "paging alert"))
    if len(alerts) > paging:
        warn.append(words.plural(len(alerts) - paging, "alert"))
    if latency.state == "bad":
        bad.append(f"p99 is over {words.time_of(latency.bound_us)}")
    elif latency.state == "warn":
        warn.append(f"p99.9 is over {words.time_of(latency.bound_us)}")
    if degraded >= 0.01:
        warn.append(f"{words.share(degraded)} answered by a stand-in")
    if drift.state == "warn":
        warn.append("drift" if drift.verdict == "drift" else "missing values")
    if model.champion is None:
        warn.append("no champion")
    return "bad" if bad else "warn" if warn else "good", [*bad, *warn]


def _strength(each: Mapping[str, Any]) -> float:
    effect, threshold = each.get("effect"), each.get("threshold")
    return float(effect) / float(threshold) if effect is not None and threshold else 1.0
