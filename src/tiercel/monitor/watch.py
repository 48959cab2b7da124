"""The watch: turn by turn, what was counted becomes windows, windows become reports, and reports alerts.

It runs in a process of its own beside the control process (see `tiercel.batch.watcher`), so neither a page nor a prediction
waits for it. A turn has steps; whatever one of them raises is contained, counted and shown, and the others go on.

Looks, and what each judges:

    interval   every `interval_s`          missing values, scores that are none: a broken feed shows within minutes
    window     every `window_s`            the same with more rows, answers that were stood in for, features that stand
                                           still, and the population
    day        every day                   the same, for models that are asked rarely
    bases      every `interval_s`          whether bases are still published
    outcomes   every `performance_window_s`    of predictions whose labels have come: concept and impact

What takes long (rows, labels, outcomes, reports that nobody is woken for) runs on a thread that stands aside: it computes
while nobody else on the core wants to. The turn waits for it; looks at counters and alerts are done before.

One budget of false alarms is divided among the looks at counters; each opens an alert only with the second in a row (of a
day, with the first). What was counted while the clock was set is not judged.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from tiercel.monitor.alert import AlertClass
from tiercel.monitor.alerts import AlertStore
from tiercel.monitor.bases import read_bases
from tiercel.monitor.causes import BaseAge, Judged, base_look, drift_look
from tiercel.monitor.concept_state import ConceptStore
from tiercel.monitor.drift import AGAINST, find_compared
from tiercel.monitor.drift_metrics import save_reports
from tiercel.monitor.labels import LabelStore
from tiercel.monitor.outcome_causes import OutcomeWindow, changes_of, newest_mature, outcome_look
from tiercel.monitor.outcomes import open_outcomes
from tiercel.monitor.predictions import PredictionTable
from tiercel.monitor.review import review
from tiercel.monitor.routing import Router
from tiercel.monitor.score_moves import with_moves
from tiercel.monitor.stuck import Stillness, find_stuck
from tiercel.monitor.thresholds import DISTRIBUTION_PART, FalseAlarmBudget, dispersion_of
from tiercel.monitor.watch_state import BaseState, OutcomeState, WatchState
from tiercel.monitor.windows import DAY_US, WindowStore
from tiercel.priority import stand_aside
from tiercel.settings import ValueSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from tiercel.monitor.alert import Finding, Look
    from tiercel.monitor.causes import Origin
    from tiercel.monitor.drift import DriftReport
    from tiercel.monitor.reference import Reference
    from tiercel.monitor.review import Review
    from tiercel.monitor.score_moves import Explained
    from tiercel.settings import Settings
    from tiercel.types import Task

__all__ = ["Versions", "Watch", "Watched"]

log = logging.getLogger("tiercel.monitor")

#: A wall clock that differs by more from one that cannot be set was set.
JUMP_US = 2_000_000
#: The journal becomes rows, labels are joined and outcomes judged this often; or each window, or each interval.
OUTCOMES_EVERY_S = 300.0
#: Windows that one of a version without a reference is compared with.
N_EARLIER = 24
#: Comparisons with earlier windows that wait for their turn, and the part of each interval that goes to them.
MAX_WAITING = 1000
COMPARING_PART = 0.1
#: Windows of outcomes that one is compared with.
N_BEFORE = 14
#: Comparisons of money that share a window's probability of a false alarm.
_N_COMPARISONS = 3


@dataclass(frozen=True, eq=False)
class Watched:
    """A version, as far as monitoring must know it.

    Attributes:
        model, version: registered name and number.
        task: what it predicts.
        reference: its training data; None where it has none.
        origins: feature -> what it is made of.
        value: what its predictions are for.
        explained: how its rows are explained; None where they cannot be. Slow where it is called first.
    """

    model: str
    version: int
    task: Task
    reference: Reference | None = None
    origins: Mapping[str, tuple[Origin, ...]] = field(default_factory=dict)
    value: ValueSettings = field(default_factory=ValueSettings)
    explained: Callable[[], Explained | None] = lambda: None


class Versions(Protocol):
    """Where the watch learns of versions; the registry is not monitoring's to read."""

    def served(self) -> Collection[tuple[str, int]]:
        """(model, version) of all that an alias points at which gets traffic. May raise `TiercelError`."""

    def find(self, model: str, version: int) -> Watched:
        """One version. May raise `TiercelError`."""


@dataclass(frozen=True)
class _Scale:
    """One kind of look at the counters."""

    name: str
    length_us: int
    n_confirm: int
    n_clear: int
    judges_population: bool


@dataclass(frozen=True)
class _Comparison:
    """A report that waits to be made."""

    model: str
    version: int
    against: str
    begin_us: int
    end_us: int
    budget: FalseAlarmBudget


class Watch:
    """Looks after a project.

    Args:
        settings: the project.
        versions: what there is to watch.
        router: tells people; None: made from the settings, and closed with the watch.

    Threads: one, and one of its own. Processes: one; a second would take turns with the first, but judge windows twice.
    """

    def __init__(self, settings: Settings, versions: Versions, router: Router | None = None) -> None:
        self._settings, self._monitor, self._versions = settings, settings.monitor, versions
        state_dir = self._state_dir = settings.state_dir
        self._windows = WindowStore(state_dir)
        self._table = PredictionTable(state_dir, settings.monitor)
        self._concept = ConceptStore(state_dir)
        self.alerts = AlertStore(
            state_dir, routed=settings.monitor.webhook_classes if settings.monitor.webhook_url else ()
        )
        self._router = Router(settings.monitor, self.alerts, project=settings.name) if router is None else router
        self._reports: dict[tuple[str, int, str], DriftReport] = {}
        self._saved: dict[tuple[str, int, str], DriftReport] = {}
        # Of a window that nobody got round to before the next, the oldest are left out.
        self._waiting: deque[_Comparison] = deque(maxlen=MAX_WAITING)
        self._served: Collection[tuple[str, int]] = ()
        self._knows_served = False
        self._last_us: int | None = None
        self._scales = _scales(settings)
        self._aside = ThreadPoolExecutor(1, "watch-aside", stand_aside)
        self._outcomes_every_us = _us(max(self._monitor.interval_s, min(self._monitor.window_s, OUTCOMES_EVERY_S)))
        self.state = WatchState.load(state_dir)

    def turn(self, now_us: int, elapsed_us: int) -> WatchState:
        """Do everything that is due.

        Args:
            now_us: the wall clock's time.
            elapsed_us: since the turn before, by a clock that cannot be set; 0 in the first turn.

        Returns:
            How it went. Nothing is raised but what ends the process.
        """
        state = self.state
        is_jump = self._is_jump(now_us, elapsed_us)
        looks: list[Look] = []
        live: set[tuple[str, int]] | None = None
        with state.step("windows"):
            self._windows.record(now_us, elapsed_us=None if self._last_us is None else elapsed_us)
        with state.step("versions"):
            self._served = self._versions.served()
            self._knows_served = True
        with state.step("bases"):
            looks.append(self._look_at_bases(now_us, elapsed_us))
        if is_jump:  # which windows the counts of this turn belong to is not known
            state.clock_jumps += 1
            state.looks.update(dict.fromkeys([scale.name for scale in self._scales], now_us))
        for scale in self._scales:
            begin_us = self._due(scale, now_us)
            if begin_us is None:
                continue
            state.looks[scale.name] = now_us
            with state.step(f"drift {scale.name}"):
                looks.append(self._look_at_counters(scale, begin_us, now_us))
            if scale.judges_population:
                with state.step("served"):
                    live = self._live(now_us)
        self._tell(looks, live, now_us)  # before what takes long
        if self._is_due("outcomes", self._outcomes_every_us, now_us):
            with state.step("predictions"):
                self._aside.submit(self._table.convert, now_us).result()
            with state.step("labels"):
                self._aside.submit(self._collect, now_us).result()
            self._tell(self._aside.submit(self._look_at_outcomes, now_us).result(), None, now_us)
        with state.step("reports"):
            self._aside.submit(self._compare).result()
        state.turns += 1
        state.last_turn_us = self._last_us = now_us
        state.webhook = self._router.status.to_json()
        with state.step("state"):
            state.save(self._state_dir)
        return state

    def _tell(self, looks: Sequence[Look], live: Collection[tuple[str, int]] | None, now_us: int) -> None:
        with self.state.step("alerts"):
            self._router.tell(self.alerts.update(looks, now_us, live=live, silent=self._silent(live, now_us)))
            self._router.offer(each for each in self.alerts.find_all(with_resolved=True) if each.unsent)

    def close(self) -> None:
        """Let go; what the webhook has not taken waits in the store."""
        self._aside.shutdown()
        self._router.close()

    # -- clocks

    def _is_jump(self, now_us: int, elapsed_us: int) -> bool:
        if self._last_us is None:
            return False
        return abs(now_us - self._last_us - elapsed_us) > JUMP_US + elapsed_us // 100

    def _due(self, scale: _Scale, now_us: int) -> int | None:
        """Begin of the window that is due; None: none is."""
        last_us = self.state.looks.get(scale.name)
        if last_us is None or last_us > now_us:  # the first one, or the clock was put back: a whole one comes next
            self.state.looks[scale.name] = now_us
            return None
        if now_us - last_us < scale.length_us * 0.99:
            return None
        # After a pause only the newest stretch is judged: what it took to start is nobody's usual traffic.
        is_first = self._last_us is None and now_us - last_us >= 2 * scale.length_us
        return now_us - scale.length_us if is_first else last_us

    def _is_due(self, name: str, every_us: int, now_us: int) -> bool:
        """Whether something that has a pace of its own is to be done; it is marked as done."""
        last_us = self.state.looks.get(name)
        if last_us is not None and 0 <= now_us - last_us < every_us:
            return False
        self.state.looks[name] = now_us
        return True

    # -- steps

    def _collect(self, now_us: int) -> None:
        store = LabelStore(self._state_dir)
        try:
            store.collect(self._monitor, now_us)
        finally:
            store.close()

    def _live(self, now_us: int) -> set[tuple[str, int]] | None:
        """Versions that are served, or were in the last window; None where that cannot be said."""
        if not self._knows_served:
            return None
        begin_us = now_us - 2 * _us(self._monitor.window_s)
        answered = {key for key in self._windows.versions() if self._windows.merged(*key, begin_us, now_us) is not None}
        return answered | set(self._served)

    def _silent(self, live: Collection[tuple[str, int]] | None, now_us: int) -> set[tuple[str, int]]:
        """Versions that answered nothing for so long that no window of outcomes is left to be judged."""
        if live is None:
            return set()
        since_us = now_us - (N_BEFORE + 1) * _us(self._monitor.performance_window_s)
        newest = {key: self._windows.latest(*key) for key in self._windows.versions()}
        answered = {key for key, window in newest.items() if window is not None and window.end_us > since_us}
        return {key for key in newest if key not in answered}

    def _look_at_bases(self, now_us: int, elapsed_us: int) -> Look:
        features_dir = self._settings.features_dir
        bases, n_unreadable = read_bases(features_dir)
        ages = []
        for base in bases:
            known = self.state.bases.get(base.service)
            if known is None:
                known = BaseState(base.base, base.published_us)
            elif (known.base, known.published_us) != (base.base, base.published_us):
                known = known.replaced_by(base.base, base.published_us)
            else:
                known.live_us += elapsed_us
            self.state.bases[base.service] = known
            ages.append(BaseAge(base, known.live_us, known.usual_us))
        every_us = _us(self._monitor.interval_s)
        return base_look(ages, n_unreadable, now_us, every_us=every_us, features_dir=str(features_dir))

    def _look_at_counters(self, scale: _Scale, begin_us: int, end_us: int) -> Look:
        per_quarter = self._monitor.false_alarms_per_quarter / len(self._scales)
        budget = FalseAlarmBudget(per_quarter, scale.length_us)
        judged: list[Judged] = []
        for model, version in self._windows.versions():
            window = self._windows.merged(model, version, begin_us, end_us)
            if window is None or not window.n_rows or window.n_clock_jumps:
                continue
            watched = self._find(model, version)
            reference = None if watched is None else watched.reference
            against = "training" if reference is not None else "previous"
            found = find_compared(
                self._windows, reference, model, version, begin_us=begin_us, end_us=end_us, against=against
            )
            if found is not None and reference is None:
                # One window before is not enough: once it is broken too, nothing differs from it.
                long_us = N_EARLIER * (end_us - begin_us)
                found = replace(found, beside=self._windows.merged(model, version, begin_us - long_us, begin_us))
            if found is None or found.beside is None:
                continue
            report = found.report(budget)
            stillness = Stillness()
            if scale.judges_population:
                # Half of what missing values have: that of being missing less often than usual wakes nobody.
                alpha = report.alpha * (1 - DISTRIBUTION_PART) / 2
                known = self._stood_still(f"{model}:{version}", 2 * begin_us - end_us, end_us)
                stillness = find_stuck(found.window, found.history, alpha, known=known, categories=found.categories)
                self._remember_still(f"{model}:{version}", stillness, end_us)
            judged.append(
                Judged(
                    report,
                    {} if watched is None else watched.origins,
                    found.history,
                    per_quarter,
                    knows_variation=scale.judges_population and dispersion_of(found.history) is not None,
                    stillness=stillness,
                    excused=self._stood_still(f"{model}:{version}", begin_us, end_us),
                )
            )
            if scale.judges_population or not self._reports:
                self._reports[model, version, against] = report
            if scale.judges_population:
                others = [each for each in AGAINST if each not in {"training", against}]
                self._waiting += [_Comparison(model, version, each, begin_us, end_us, budget) for each in others]
        look = drift_look(scale.name, judged, n_confirm=scale.n_confirm, n_clear=scale.n_clear)
        return replace(look, findings=tuple(self._with_moves(each, judged, end_us) for each in look.findings))

    def _with_moves(self, finding: Finding, judged: Sequence[Judged], now_us: int) -> Finding:
        """What a population that moved did to the score. Whatever goes wrong, the finding is told."""
        of = next(
            (
                each.report
                for each in judged
                if (each.report.model, each.report.version) == (finding.model, finding.version)
            ),
            None,
        )
        watched = None if of is None or finding.version is None else self._find(finding.model, finding.version)
        if of is None or watched is None or finding.alert_class is not AlertClass.POPULATION:
            return finding
        with self.state.step("attribution"):
            self._table.convert(now_us)
            finding = with_moves(finding, watched.explained, of.against, self._state_dir, self._monitor)
        return finding

    def _stood_still(self, name: str, since_us: int, now_us: int) -> list[str]:
        """Features of a version that stood still after a moment, in windows of any length."""
        known = self.state.stuck.get(name, {})
        return [feature for feature, at_us in known.items() if since_us < at_us <= now_us]

    def _remember_still(self, name: str, stillness: Stillness, now_us: int) -> None:
        known = self.state.stuck.pop(name, {}) | dict.fromkeys([each.name for each in stillness.stuck], now_us)
        # Of a time to come: the clock was put back.
        known = {feature: at_us for feature, at_us in known.items() if now_us - 2 * DAY_US < at_us <= now_us}
        if known:
            self.state.stuck[name] = known

    def _compare(self) -> None:
        """Reports that nobody is woken for: a few each turn, for their thresholds take long to find. Then all are saved."""
        until_s = time.monotonic() + self._monitor.interval_s * COMPARING_PART
        while self._waiting:
            one = self._waiting.popleft()
            watched = self._find(one.model, one.version)
            found = find_compared(
                self._windows, None if watched is None else watched.reference, one.model, one.version,
                begin_us=one.begin_us, end_us=one.end_us, against=one.against,
            )  # fmt: skip
            if found is not None and found.beside is not None:
                self._reports[one.model, one.version, one.against] = found.report(one.budget)
            if time.monotonic() >= until_s:
                break
        if self._reports != self._saved:
            save_reports(self._state_dir, self._reports.values())
            self._saved = dict(self._reports)

    def _look_at_outcomes(self, now_us: int) -> list[Look]:
        looks: list[Look] = []
        answered: dict[str, list[Watched]] = {}
        for model, version in sorted(self._served):
            watched = self._find(model, version)
            if watched is not None:
                answered.setdefault(model, []).append(watched)
        for model, versions in answered.items():
            with self.state.step(f"outcomes {model}"):
                looks += self._look_at_model(model, versions, now_us)
        return looks

    def _look_at_model(self, model: str, versions: list[Watched], now_us: int) -> Iterable[Look]:
        length_us = _us(self._monitor.performance_window_s)
        span_us = N_BEFORE * length_us
        alpha = FalseAlarmBudget(self._monitor.false_alarms_per_quarter, length_us).alpha * DISTRIBUTION_PART
        looks = []
        # One thread: whoever answers predictions needs the others.
        connection = open_outcomes(self._state_dir, self._monitor, model=model, threads=1)
        try:
            found = review(
                connection,
                model,
                versions[0].task,
                versions[0].value,
                as_of_us=now_us,
                span_us=span_us,
                window_us=length_us,
                confidence=1 - alpha / _N_COMPARISONS,
                store=self._concept,
                keep=True,
            )
        finally:
            connection.close()
        for watched in versions:
            for arm in ("champion", "challenger"):
                look = self._judge(found, watched, arm, length_us, span_us, now_us)
                if look is not None:
                    looks.append(look)
        return looks

    def _judge(
        self, found: Review, watched: Watched, arm: str, length_us: int, span_us: int, now_us: int
    ) -> Look | None:
        """The look at a version's newest window that is old enough, unless it was judged already."""
        begin_us = newest_mature(found, watched.version, arm, length_us, as_of_us=now_us)
        key = f"{watched.model}:{watched.version}:{arm}"
        known = self.state.outcomes.get(key)
        if begin_us is None or (known is not None and begin_us <= known.judged_us):
            return None
        bad_since_us = None if known is None else known.bad_since_us
        window = OutcomeWindow(watched.model, watched.version, arm, begin_us, length_us, bad_since_us, now_us, span_us)
        changes = [
            change
            for status in found.concept
            if (status.state.version, status.state.arm) == (watched.version, arm)
            for change in changes_of(status, begin_us)
        ]
        look = outcome_look(found, window, new_changes=changes)
        # Estimates are learned from bad days too and take long to come true again: where there is money, it decides.
        decides = {AlertClass.IMPACT} if found.value is not None else set(AlertClass)
        if not any(finding.alert_class in decides for finding in look.findings):
            bad_since_us = None
        elif bad_since_us is None:
            bad_since_us = begin_us
        elif begin_us - bad_since_us > span_us // 2:  # there would soon be nothing left to compare with
            bad_since_us = None
        self.state.outcomes[key] = OutcomeState(begin_us, bad_since_us)
        return look

    def _find(self, model: str, version: int) -> Watched | None:
        """A version; None, with the reason in the status, where it cannot be read."""
        found: Watched | None = None
        with self.state.step(f"reading {model}:{version}"):
            found = self._versions.find(model, version)
        if found is not None:  # a step by itself only while it fails
            del self.state.steps[f"reading {model}:{version}"]
        return found


def _scales(settings: Settings) -> list[_Scale]:
    """Looks at the counters, the shortest first. A window that is as short as the interval takes its place."""
    interval_us, window_us = _us(settings.monitor.interval_s), _us(settings.monitor.window_s)
    scales = [] if window_us <= interval_us else [_Scale("interval", interval_us, 2, 3, judges_population=False)]
    scales.append(_Scale("window", max(window_us, interval_us), 2, 2, judges_population=True))
    if window_us < DAY_US:
        scales.append(_Scale("day", DAY_US, 1, 1, judges_population=True))
    return scales


def _us(seconds: float) -> int:
    return round(seconds * 1e6)
