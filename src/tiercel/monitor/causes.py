"""From what a look at the counters shows to its causes: at most one finding for each, however many features show it.

A feed that breaks shows in every feature made of it, in every model that reads them, and in the scores. It is one cause,
named by the feed. What is explained by a broken feed is not also a population that moved. Missing values tell the two apart:
the feature store says which values it had none for, so a share of them that grew beyond chance is a pipeline's matter, and
values that are there but distributed otherwise are the population's - unless a feature stands still: see `stuck`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tiercel.monitor.alert import AlertClass, Finding, Look, TopFeature
from tiercel.monitor.drift_words import WORDS
from tiercel.monitor.stuck import Stillness
from tiercel.monitor.thresholds import DISTRIBUTION_PART, share_noise

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from tiercel.monitor.bases import LiveBase
    from tiercel.monitor.drift import DriftReport, FeatureDrift
    from tiercel.monitor.stuck import Stuck
    from tiercel.monitor.window import Window

__all__ = ["Judged", "Origin", "base_look", "drift_look"]

#: A share of missing or stood-in answers that grew by less wakes nobody, however certain it is.
LEAST_GROWTH = 0.05
#: Fewer rows, or requests, wake nobody: ten rows of one request are about as good as one.
LEAST_ROWS, LEAST_REQUESTS = 100, 10
#: Features that a finding names.
MAX_FEATURES = 5
_REQUEST = "request"


@dataclass(frozen=True)
class Origin:
    """What a feature is made of.

    Attributes:
        key: what breaks as one: "source:orders", "view:customer_orders" of several sources, or "request".
        label: the same in words.
        view: of the feature, for words; "" where there is none.
    """

    key: str
    label: str
    view: str = ""


@dataclass(frozen=True, eq=False)
class Judged:
    """One version's report, with what its causes are found by.

    Attributes:
        report: the comparison.
        origins: feature -> what it is made of; several for one that is computed from others.
        history: earlier windows of the same length. Without them it is not known how much windows vary (an hour has only
            one hour of the day), and a population is not judged.
        per_quarter: the budget the report was made with, for the command that shows it again.
        stillness: features that stand still in the window, and those that vary.
        excused: features that stood still in a part of the window: not a population that moved either.
    """

    report: DriftReport
    origins: Mapping[str, tuple[Origin, ...]] = field(default_factory=dict)
    history: Sequence[Window] = ()
    per_quarter: float = 1.0
    knows_variation: bool = True
    stillness: Stillness = field(default_factory=Stillness)
    excused: Collection[str] = ()

    @property
    def name(self) -> str:
        """Of the version, as commands take it."""
        return f"{self.report.model}:{self.report.version}"

    @property
    def is_enough(self) -> bool:
        """Whether there was traffic enough to wake somebody for what it shows."""
        return self.report.n_rows >= LEAST_ROWS and self.report.n_requests >= LEAST_REQUESTS

    @property
    def command(self) -> str:
        """What shows the report again."""
        report = self.report
        seconds = max(1, math.ceil((report.end_us - report.begin_us) / 1e6))
        end = datetime.fromtimestamp(report.end_us / 1e6, tz=UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")
        return (
            f"tiercel drift {self.name} --window {seconds}s --end {end} --against {report.against} "
            f"--false-alarms {self.per_quarter:.4g}"
        )


@dataclass
class _Broken:
    """One origin's missing features, over all versions of a look."""

    origin: Origin
    found: dict[str, tuple[float, float, FeatureDrift, Judged]] = field(default_factory=dict)
    models: set[str] = field(default_factory=set)


def drift_look(name: str, judged: Sequence[Judged], *, n_confirm: int = 2, n_clear: int = 3) -> Look:
    """The causes that the reports of one look show.

    Args:
        name: of the look.
        judged: a report per version.
        n_confirm: see `Look`.
        n_clear: see `Look`.
    """
    findings: list[Finding] = []
    limits: dict[str, dict[str, float]] = {}
    broken: dict[str, _Broken] = {}
    for each in judged:
        _note_missing(each, broken, limits)
    findings += [_broken_finding(each) for each in broken.values()]
    still: dict[str, _Still] = {}
    for each in judged:
        _note_stuck(each, broken, still, limits)
    findings += [_stuck_finding(each) for each in still.values()]
    for each in judged:
        stuck = {*each.excused, *(one.name for one in each.stillness.stuck)}
        is_broken = [
            f.name for f in each.report.features if f.name in stuck or _origin_of(each, f.name, broken) is not None
        ]
        for part in (_scores(each, is_explained=bool(is_broken)), _stood_in(each), _population(each, is_broken)):
            finding, cause, of_cause = part
            if of_cause:
                limits[cause] = of_cause
            if finding is not None:
                findings.append(finding)
    return Look(name, tuple(findings), limits, n_confirm, n_clear)


# -- pipeline


def _note_missing(judged: Judged, broken: dict[str, _Broken], limits: dict[str, dict[str, float]]) -> None:
    """Collect features that are missing more often than chance explains, by what they are made of."""
    late = []
    if not judged.is_enough:
        return
    for feature in judged.report.features:
        growth, limit = _growth(feature)
        origins = _origins(judged, feature.name)
        if math.isfinite(growth):
            for origin in origins:
                known = limits.setdefault(_pipeline_cause(judged, origin), {})
                known[feature.name] = min(limit, known.get(feature.name, math.inf))
        if growth >= limit:
            if len(origins) == 1:
                _add_broken(broken, judged, origins[0], feature, growth, limit)
            else:
                late.append((feature, growth, limit))
    # What is computed from several sources belongs to one of those that are broken by themselves.
    for feature, growth, limit in late:
        origins = _origins(judged, feature.name)
        origin = next((o for o in origins if _pipeline_cause(judged, o) in broken), origins[0])
        _add_broken(broken, judged, origin, feature, growth, limit)


def _add_broken(
    broken: dict[str, _Broken], judged: Judged, origin: Origin, feature: FeatureDrift, growth: float, limit: float
) -> None:
    entry = broken.setdefault(_pipeline_cause(judged, origin), _Broken(origin))
    entry.models.add(judged.name)
    key = feature.name
    if key not in entry.found or growth > entry.found[key][0]:
        entry.found[key] = growth, limit, feature, judged


def _broken_finding(broken: _Broken) -> Finding:
    ranked = sorted(broken.found.values(), key=lambda each: -each[0])
    growth, limit, first, judged = ranked[0]
    report = judged.report
    views = sorted({o.view for *_, f, j in ranked for o in _origins(j, f.name) if o.view})
    where = f" (view {', '.join(views)})" if views and broken.origin.key.startswith("source:") else ""
    n_all = sum(broken.origin in _origins(judged, each.name) for each in report.features)
    n_own = sum(each[3] is judged for each in ranked)
    message = (
        f"{n_own} of {n_all} features of {broken.origin.label}{where} are missing more often: {first.name} in "
        f"{first.missing_share:.1%} of {first.n_rows + first.n_missing:,} rows, {first.reference_missing_share:.1%} in "
        f"{WORDS[report.against]}. It concerns {', '.join(sorted(broken.models))}."
    )
    return Finding(
        cause=_pipeline_cause(judged, broken.origin),
        alert_class=AlertClass.PIPELINE,
        model=report.model,
        version=report.version,
        subject=broken.origin.label,
        begin_us=report.begin_us,
        end_us=report.end_us,
        n=first.n_rows + first.n_missing,
        effect=growth,
        effect_name="growth of the share of missing values",
        threshold=limit,
        features=tuple(TopFeature(f.name, g, f.reason) for g, _, f, _ in ranked[:MAX_FEATURES]),
        message=message,
        command=judged.command,
    )


@dataclass
class _Still:
    """One origin's features that stand still, over all versions of a look, with whom each was found in."""

    origin: Origin
    found: list[tuple[Stuck, Judged]] = field(default_factory=list)


def _note_stuck(
    judged: Judged, broken: Collection[str], still: dict[str, _Still], limits: dict[str, dict[str, float]]
) -> None:
    """Collect features that stand still, by what they are made of; what is missing explains them where it does."""
    if not judged.is_enough:
        return
    for name in judged.stillness.varied:
        for origin in _origins(judged, name):
            limits.setdefault(_stuck_cause(judged, origin), {})[name] = 1.0
    for stuck in judged.stillness.stuck:
        origins = _origins(judged, stuck.name)
        if any(_pipeline_cause(judged, origin) in broken for origin in origins):
            continue
        origin = next((o for o in origins if _stuck_cause(judged, o) in still), origins[0])
        still.setdefault(_stuck_cause(judged, origin), _Still(origin)).found.append((stuck, judged))


def _stuck_finding(still: _Still) -> Finding:
    ranked = sorted(still.found, key=lambda each: each[0].p_value)
    stuck, judged = ranked[0]
    report = judged.report
    models = sorted({each.name for _, each in ranked})
    names = list(dict.fromkeys(each.name for each, _ in ranked))
    n_all = sum(still.origin in _origins(judged, each.name) for each in report.features)
    message = (
        f"{len(names)} of {n_all} features of {still.origin.label} stand still: {stuck.name} is {stuck.where} in all of "
        f"{stuck.n:,} rows; {stuck.usual}. It concerns {', '.join(models)}."
    )
    shown = {each.name: each for each, _ in reversed(ranked)}
    return Finding(
        cause=_stuck_cause(judged, still.origin),
        alert_class=AlertClass.PIPELINE,
        model=report.model,
        version=report.version,
        subject=still.origin.label,
        begin_us=report.begin_us,
        end_us=report.end_us,
        n=stuck.n,
        effect=1.0,
        effect_name="share of the values at one place",
        threshold=1.0,
        features=tuple(TopFeature(name, 1.0, shown[name].reason) for name in names[:MAX_FEATURES]),
        message=message,
        command=judged.command,
    )


def _scores(judged: Judged, *, is_explained: bool) -> tuple[Finding | None, str, dict[str, float]]:
    """Scores that are no numbers, unless a broken feed explains them."""
    report = judged.report
    cause = f"{AlertClass.PIPELINE}:scores:{judged.name}"
    if not report.scores or is_explained or not judged.is_enough:
        return None, cause, {}
    growth, limit, worst = max(((*_growth(each), each) for each in report.scores), key=lambda each: each[0] - each[1])
    limits = {each.name: _growth(each)[1] for each in report.scores if math.isfinite(_growth(each)[0])}
    if not growth >= limit:
        return None, cause, limits
    message = (
        f"{judged.name} gives scores that are no numbers, in {worst.missing_share:.1%} of {report.n_counted:,} rows."
    )
    return _finding(judged, cause, AlertClass.PIPELINE, "scores", worst, growth, limit, message), cause, limits


def _stood_in(judged: Judged) -> tuple[Finding | None, str, dict[str, float]]:
    """Answers that a last score or a default gave: more than in earlier windows."""
    report, history = judged.report, judged.history
    cause = f"{AlertClass.PIPELINE}:degraded:{judged.name}"
    seen, of = sum(each.n_degraded for each in history), sum(each.n_rows for each in history)
    if not judged.is_enough or not of:
        return None, cause, {}
    alpha = report.alpha * (1 - DISTRIBUTION_PART) / 2
    _, high, _ = share_noise(report.n_rows, report.n_degraded, seen, of, alpha)
    share, known = report.n_degraded / report.n_rows, seen / of
    limit = max(high - known, LEAST_GROWTH)
    if share - known < limit:
        return None, cause, {"": limit}
    message = (
        f"{share:.1%} of {report.n_rows:,} answers of {judged.name} were a last score or a default, {known:.1%} in the "
        f"windows before: the model did not answer in time, or could not."
    )
    finding = Finding(
        cause, AlertClass.PIPELINE, report.model, report.version, "answers", report.begin_us, report.end_us,
        report.n_rows, share - known, "growth of the share of stood-in answers", limit, (), message, judged.command,
    )  # fmt: skip
    return finding, cause, {"": limit}


# -- population


def _population(judged: Judged, broken: Collection[str]) -> tuple[Finding | None, str, dict[str, float]]:
    """Values that are there and distributed otherwise. What a broken feed explains does not count, scores included."""
    report = judged.report
    cause = f"{AlertClass.POPULATION}:{judged.name}"
    if not judged.knows_variation:
        return None, cause, {}
    own = [each for each in report.features if each.name not in broken]
    own += () if broken else report.scores
    limits = {each.name: each.threshold for each in own if math.isfinite(each.threshold)}
    moved = sorted((each for each in own if each.effect >= each.threshold and each.threshold <= 1), key=_rank)
    if not moved:
        return None, cause, limits
    first = moved[0]
    n_features = sum(each.kind == "feature" for each in moved)
    what = f"{n_features} of {len(report.features)} features" if n_features else "Scores, and no feature,"
    has_score = n_features and n_features < len(moved)
    message = (
        f"{what}{' and the score' if has_score else ''} of {judged.name} are distributed otherwise than in "
        f"{WORDS[report.against]}, first {', '.join(each.name for each in moved[:MAX_FEATURES])}. {first.name}: {first.reason}."
    )
    finding = _finding(
        judged, cause, AlertClass.POPULATION, "inputs" if n_features else "scores", first, first.effect, first.threshold,
        message, moved[:MAX_FEATURES],
    )  # fmt: skip
    return finding, cause, limits


def _finding(
    judged: Judged,
    cause: str,
    alert_class: AlertClass,
    subject: str,
    first: FeatureDrift,
    effect: float,
    limit: float,
    message: str,
    shown: Iterable[FeatureDrift] = (),
) -> Finding:
    report = judged.report
    is_missing = alert_class is AlertClass.PIPELINE
    return Finding(
        cause=cause,
        alert_class=alert_class,
        model=report.model,
        version=report.version,
        subject=subject,
        begin_us=report.begin_us,
        end_us=report.end_us,
        n=first.n_rows + first.n_missing,
        effect=effect,
        effect_name="growth of the share of missing values" if is_missing else "Jensen-Shannon distance",
        threshold=limit,
        features=tuple(TopFeature(f.name, f.effect, f.reason) for f in shown)
        or (TopFeature(first.name, effect, first.reason),),
        message=message,
        command=judged.command,
    )


# -- bases


@dataclass(frozen=True)
class BaseAge:
    """How long the watch has seen a base live, and how long those before it were.

    Attributes:
        base: the live one.
        live_us: by a clock that cannot be set.
        usual_us: the longest that a base before it was live; None while too few are known.
    """

    base: LiveBase
    live_us: int
    usual_us: int | None


#: A base that is live for so many times the usual is stale.
STALE_TIMES = 2.0


def base_look(ages: Iterable[BaseAge], n_unreadable: int, now_us: int, *, every_us: int, features_dir: str) -> Look:
    """Bases that are not published as often as they were, and MANIFESTs that cannot be read.

    Args:
        ages: of the services' bases.
        n_unreadable: services whose MANIFEST is damaged.
        now_us: the time.
        every_us: since the look before.
        features_dir: where bases are, for the command that shows them.
    """
    findings: list[Finding] = []
    limits: dict[str, dict[str, float]] = {}
    for age in ages:
        if age.usual_us is None:
            continue
        cause = f"{AlertClass.PIPELINE}:base:{age.base.service}"
        limits[cause] = {"": STALE_TIMES}
        times = age.live_us / max(1, age.usual_us)
        if times < STALE_TIMES:
            continue
        hours, usual = age.live_us / 3.6e9, age.usual_us / 3.6e9
        message = (
            f"Service {age.base.service} still reads {age.base.base}, live for {hours:.3g} h; those before it were replaced "
            f"within {usual:.3g} h. Its features grow old: run tiercel materialize."
        )
        findings.append(
            Finding(
                cause,
                AlertClass.PIPELINE,
                "",
                None,
                f"base of {age.base.service}",
                now_us - age.live_us,
                now_us,
                1,
                times,
                "age in usual ages",
                STALE_TIMES,
                (),
                message,
                f"cat {features_dir}/{age.base.service}/MANIFEST",
            )
        )
    cause = f"{AlertClass.PIPELINE}:manifests"
    limits[cause] = {"": 1.0}
    if n_unreadable:
        message = (
            f"{n_unreadable} services have a MANIFEST that cannot be read: workers keep the base they have, and none can be "
            f"started. Materialize the service again."
        )
        findings.append(
            Finding(
                cause,
                AlertClass.PIPELINE,
                "",
                None,
                "MANIFEST of a service",
                now_us - every_us,
                now_us,
                n_unreadable,
                float(n_unreadable),
                "MANIFESTs that cannot be read",
                1.0,
                (),
                message,
                f"cat {features_dir}/*/MANIFEST",
            )
        )
    return Look("bases", tuple(findings), limits)


# -- helpers


def _growth(feature: FeatureDrift) -> tuple[float, float]:
    """By how much the share of missing values grew, and from where on that is one. NaN and 2 where it is not known."""
    growth = feature.missing_share - feature.reference_missing_share
    if not math.isfinite(growth) or not math.isfinite(feature.missing_high):
        return math.nan, 2.0
    return growth, max(feature.missing_high - feature.reference_missing_share, LEAST_GROWTH)


def _origins(judged: Judged, feature: str) -> tuple[Origin, ...]:
    return judged.origins.get(feature) or (Origin(_REQUEST, "the request"),)


def _origin_of(judged: Judged, feature: str, broken: Mapping[str, _Broken]) -> Origin | None:
    """What explains whatever a feature shows."""
    return next((o for o in _origins(judged, feature) if _pipeline_cause(judged, o) in broken), None)


def _pipeline_cause(judged: Judged, origin: Origin) -> str:
    """A source is the same for all that read it; what callers send is each model's own matter."""
    owner = f":{judged.report.model}" if origin.key == _REQUEST else ""
    return f"{AlertClass.PIPELINE}:{origin.key}{owner}"


def _stuck_cause(judged: Judged, origin: Origin) -> str:
    """Another cause than missing values of the same source: one may begin while the other lasts."""
    return f"{_pipeline_cause(judged, origin)}:stuck"


def _rank(feature: FeatureDrift) -> tuple[bool, float]:
    return feature.kind == "score", -feature.strength
