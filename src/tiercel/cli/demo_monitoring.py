"""What monitoring has to say in `tiercel demo`: of the replayed day in a few lines, and of two months by cause."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.markup import escape

from tiercel.batch.watched_versions import feature_origins
from tiercel.cli.console import console, print_table
from tiercel.cli.performance import connect_outcomes
from tiercel.cli.performance_tables import label, shown
from tiercel.insight.references import reference_of
from tiercel.monitor.alerts import AlertClass, AlertStore
from tiercel.monitor.business import value_report
from tiercel.monitor.causes import Judged, drift_look
from tiercel.monitor.cohorts import Cohort
from tiercel.monitor.drift import FalseAlarmBudget, drift_report
from tiercel.monitor.drift_words import WORDS
from tiercel.monitor.performance import performance_report
from tiercel.monitor.review import review
from tiercel.monitor.thresholds import dispersion_of
from tiercel.monitor.watch_state import WatchState
from tiercel.monitor.windows import DAY_US, WindowStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from tiercel.monitor.alerts import Alert, Finding
    from tiercel.monitor.causes import Origin
    from tiercel.monitor.drift import DriftReport
    from tiercel.monitor.intervals import Estimate
    from tiercel.monitor.reference import Reference
    from tiercel.monitor.review import Review
    from tiercel.monitor.window import Window
    from tiercel.project import Project
    from tiercel.registry import ModelVersion

#: Earlier days that a day of the season is compared with, to know how much days differ.
HISTORY_DAYS = 24
_METRICS = ("auc", "log_loss", "calibration_gap")


class Counted:
    """What a version answered since the last look, as a window.

    Args:
        project: whose.
        version: which.
    """

    def __init__(self, project: Project, version: ModelVersion) -> None:
        self._store = WindowStore(project.settings.state_dir)
        self.version = version
        self.reference: Reference | None = reference_of(
            version, project.registry.load_artifacts(version), project.settings
        )
        catalog = project.catalog
        service = version.facts.service
        self.origins: dict[str, tuple[Origin, ...]] = (
            {} if service is None else feature_origins(catalog, catalog.service(service))
        )
        self._last_us = self._record()

    def take(self) -> Window | None:
        """The window since the last one was taken, or since this was made; None: nothing was answered."""
        begin_us, self._last_us = self._last_us, self._record()
        return self._store.merged(self.version.name, self.version.version, begin_us, self._last_us)

    def _record(self) -> int:
        now_us = time.time_ns() // 1000
        self._store.record(now_us)
        return now_us


def tell_day(project: Project, champion: Counted, challenger: ModelVersion, since_us: int) -> None:
    """Drift, performance and money of what was just replayed."""
    window = champion.take()
    console.print("\n[bold]What monitoring says[/]")
    if window is not None:
        _tell_drift("Input:     ", drift_report(champion.reference, window))
    found = _review(project, champion.version, since_us)
    groups = {group.key.version: group for group in found.performance.groups}
    money = {} if found.value is None else {group.key.version: group for group in found.value.groups}
    versions = [each for each in (champion.version, challenger) if each.version in groups]
    if not versions:  # the rest of the story cannot be told, and who reads it must know that there is one
        console.print(
            "Labels:    no prediction of this run is found in the prediction table yet. `tiercel performance "
            f"{escape(champion.version.name)} --all-labels` says how good they were once they are."
        )
        return
    first = groups[versions[0].version].counts
    console.print(
        f"Labels:    {first.n_labelled:,} of {first.n_cohort:,} predictions have one; it came when the aircraft did."
    )
    if (worth := money.get(versions[0].version)) is not None and found.value is not None:
        told, silent = worth.always_positive, worth.always_negative
        others = "" if told is None or silent is None else (
            f"; told of every flight it had been {_plain(told.value)}, told of none {_plain(silent.value)}"
        )  # fmt: skip
        console.print(
            f"Money:     {worth.realized:,.0f} {found.value.unit}, {_plain(worth.per_prediction.value)} per flight{others}."
        )
    unit = "" if found.value is None else found.value.unit
    rows = [[label(name), *(shown(groups[v.version].metrics.get(name)) for v in versions)] for name in _METRICS]
    if money:
        rows.append([f"{unit} per flight", *(shown(money[v.version].per_prediction) for v in versions)])
    print_table("\nRealized, with 95 % intervals", ["", *(f"{v.facts.tags['role']}" for v in versions)], rows)


def _review(project: Project, version: ModelVersion, since_us: int) -> Review:
    as_of_us = time.time_ns() // 1000
    with connect_outcomes(project, version.name) as connection:
        return review(
            connection,
            version.name,
            version.facts.signature.task,
            project.settings.model(version.name).value,
            as_of_us=as_of_us,
            span_us=as_of_us - since_us,
            all_labels=True,
            with_estimates=False,
        )


def _tell_drift(what: str, report: DriftReport, n: int = 4) -> None:
    """How many features differ from what they are compared with, and those that do most, each with its reason."""
    moved = [each for each in report.alarms if each.kind == "feature"]
    beside = {"training": "training", "previous": "November"}[report.against]
    ending = ", most:" if moved else "."
    console.print(f"{what}{len(moved)} of {len(report.features)} features differ from {beside}{ending}")
    for each in moved[:n]:
        reason = each.reason.replace(WORDS["previous"], "November")
        console.print(f"           [bold]{escape(each.name)}[/]: {escape(reason)}")


def _plain(value: float | None) -> str:
    return "unknown" if value is None or not math.isfinite(value) else f"{value:,.0f}"


@dataclass
class SeasonWatch:
    """Looks at each day of the season as the watch looks at a day, on days of the replay instead of the clock's.

    Args:
        champion: what answers.
        per_quarter: budget of false alarms.

    Attributes:
        windows: of the days so far, with their first moment.
        findings: of each day.
    """

    champion: Counted
    per_quarter: float = 1.0
    windows: list[tuple[datetime, Window]] = field(default_factory=list)
    findings: list[tuple[datetime, Finding]] = field(default_factory=list)
    n_judged: int = 0

    def see(self, day: datetime) -> None:
        """Look at the day that was just played."""
        window = self.champion.take()
        if window is None:
            return
        history = [each for _, each in self.windows[-HISTORY_DAYS:]]
        knows_variation = dispersion_of(history) is not None
        budget = FalseAlarmBudget(self.per_quarter, DAY_US)
        report = drift_report(self.champion.reference, window, budget=budget, history=history)
        judged = Judged(report, self.champion.origins, history, self.per_quarter, knows_variation)
        self.findings += [(day, finding) for finding in drift_look("day", [judged]).findings]
        self.n_judged += knows_variation
        self.windows.append((day, window))

    def total(self, month: int) -> Window | None:
        """Everything answered about flights of a month."""
        found: Window | None = None
        for day, window in self.windows:
            if day.month == month:
                found = window if found is None else found + window
        return found

    def days_of(self, alert_class: AlertClass) -> list[tuple[datetime, Finding]]:
        """Days with a finding of a class."""
        return [(day, finding) for day, finding in self.findings if finding.alert_class is alert_class]


def tell_season(project: Project, watched: SeasonWatch, *, n_late: dict[int, tuple[int, int]]) -> None:
    """November beside December: labels, performance, money, inputs; and what of it has which cause.

    Args:
        project: whose.
        watched: after the last day.
        n_late: month -> (late flights, flights asked about).
    """
    november, december = watched.total(11), watched.total(12)
    columns, rows = [""], [["flights asked about"], ["late"]]
    groups = []
    for month, name, window in ((11, "November", november), (12, "December", december)):
        if window is None:
            continue
        columns.append(name)
        n, of = n_late[month]
        rows[0].append(f"{of:,}")
        rows[1].append(f"{n / max(1, of):.1%}")
        groups.append(_realized(project, watched.champion.version, window))
    rows += [[label(metric), *(str(shown(group[metric])) for group in groups)] for metric in _METRICS]
    if all("money" in group for group in groups):
        unit = project.settings.model(watched.champion.version.name).value.unit
        rows.append([f"{unit} per flight", *(str(shown(group["money"])) for group in groups)])
    print_table("\nThe champion, month by month, with 95 % intervals", columns, rows)
    reference = watched.champion.reference
    if november is not None:
        console.print()
        _tell_drift("November:  ", drift_report(reference, november))
        console.print("           Only two hours of each day are played, so minute_of_day must differ.")
    if november is not None and december is not None:
        categories = None if reference is None else reference.categories
        _tell_drift("December:  ", drift_report(november, december, against="previous", categories=categories), n=6)
    console.print(
        f"\nBy cause, one look per day beside training ({watched.n_judged} days were judged for a population; those before "
        f"taught how much days differ):"
    )
    for alert_class in (AlertClass.POPULATION, AlertClass.PIPELINE):
        found = watched.days_of(alert_class)
        if not found:
            console.print(f"  {alert_class}: on no day")
            continue
        days = sorted({day for day, _ in found})
        console.print(
            f"  {alert_class}: on {len(days)} day{'' if len(days) == 1 else 's'}, first {days[0]:%b %d}, last {days[-1]:%b %d}\n"
            f"           {escape(found[-1][1].message)}"
        )


def _realized(project: Project, version: ModelVersion, window: Window) -> dict[str, Estimate]:
    """Metrics and money of the predictions that a window counted."""
    as_of_us = time.time_ns() // 1000
    cohort = Cohort(None, window.begin_us, window.end_us, None)
    task, settings = version.facts.signature.task, project.settings.model(version.name).value
    with connect_outcomes(project, version.name) as connection:
        report = performance_report(
            connection, version.name, task, cohort, as_of_us=as_of_us, version=version.version, settings=settings
        )
        value = value_report(
            connection, version.name, task, cohort, settings, as_of_us=as_of_us, version=version.version
        )
    found = {name: report.groups[0].metrics[name] for name in _METRICS}
    return found if value is None else {**found, "money": value.groups[0].per_prediction}


def wait_for_alert(
    project: Project, since_us: int, keep_asking: Callable[[], None], timeout_s: float = 60.0
) -> Alert | None:
    """The pipeline alert that the server's watch opens, or finds again; None: there is none in time.

    Args:
        project: whose.
        since_us: what was found before does not count.
        keep_asking: called again and again meanwhile, for the watch looks at what is asked.
        timeout_s: how long at most.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        for alert in AlertStore(project.settings.state_dir).find_all():
            if alert.finding.alert_class is AlertClass.PIPELINE and alert.updated_us >= since_us:
                return alert
        keep_asking()
    return None


def tell_alerts(project: Project) -> None:
    """Alerts that the server's watch has opened so far."""
    found = AlertStore(project.settings.state_dir).find_all()
    turns = WatchState.load(project.settings.state_dir).turns
    if not found:
        console.print(f"\nAlerts: none; the server has looked {turns} times.")
    for alert in found:
        console.print(f"\nAlert {alert.id} ({alert.finding.alert_class}): {escape(alert.finding.message)}")
