"""The watch: what breaks is found in a few turns, what only looks like it never is, and no step takes the others with it."""

from __future__ import annotations

import logging
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from tests.monitor.outcome_tables import make_outcomes
from tests.monitor.recorders import FEATURES, SIGNATURE, make_recorder
from tests.monitor.test_windows import NO_JOURNAL

from tiercel.errors import RegistryUnavailableError
from tiercel.features.manifest import MANIFEST_NAME
from tiercel.monitor import watch
from tiercel.monitor.alert import AlertState
from tiercel.monitor.causes import Origin
from tiercel.monitor.drift_metrics import load_reports
from tiercel.monitor.reference import Reference
from tiercel.monitor.watch import Watch, Watched
from tiercel.monitor.watch_state import LEAST_GAPS, WatchState
from tiercel.monitor.windows import DAY_US, HOUR_US, WindowStore
from tiercel.settings import MonitorSettings, Settings, ValueSettings
from tiercel.types import Task

START_US = 1_800_000_000_000_000 // HOUR_US * HOUR_US
MINUTE_US = 60_000_000
ORIGINS = {"a": (Origin("source:orders", "source orders", "customer_orders"),)}


def rows(n, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, len(FEATURES))).astype(np.float32), rng.random((n, 1))


REFERENCE = Reference.build(*rows(20_000, seed=99), FEATURES)


class World:
    """A state directory with a worker, a watch and a clock. One feature, `a`, is of a feed."""

    def __init__(self, state_dir, **monitor):
        self.state_dir, self.now_us, self.n = state_dir, START_US, 0
        self.settings = Settings(
            state_dir, "shop", state_dir, monitor=MonitorSettings(**{"window_s": 600.0, **monitor})
        )
        self.versions = SimpleNamespace(served=lambda: {("late", 1)}, find=self.find)
        self.start_worker()
        self.start_watch()

    def find(self, model, version):
        return Watched(model, version, Task.BINARY, REFERENCE, ORIGINS)

    def start_worker(self):
        self.worker = make_recorder(self.state_dir, NO_JOURNAL, worker=self.n)
        self.plan = self.worker.for_plan("late", 1, SIGNATURE, reference=REFERENCE)

    def start_watch(self):
        self.watch = Watch(self.settings, self.versions)

    def answer(self, n, *, change=None):
        X, scores = rows(n, seed=self.n)
        if change is not None:
            change(X)
        self.n += 1
        for i in range(n):
            self.plan.add(X[i : i + 1], scores[i : i + 1])

    def turn(self, n=300, *, change=None, minutes=1, jump_us=0):
        self.answer(n, change=change)
        self.now_us += minutes * MINUTE_US + jump_us
        return self.watch.turn(self.now_us, minutes * MINUTE_US)

    @property
    def alerts(self):
        return self.watch.alerts.find_all(with_resolved=True)

    @property
    def causes(self):
        return [(alert.finding.cause, alert.state.value) for alert in self.alerts]


def broken(X):
    X[: len(X) // 2, 0] = np.nan


def moved(X):
    X[:, 1] += 1


@pytest.fixture(autouse=True)
def one_comparison_a_turn(monkeypatch):
    """Thresholds of windows beside earlier ones take long to find."""
    monkeypatch.setattr(watch, "COMPARING_PART", 0.0)


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_a_broken_feed_is_found_in_two_minutes_and_over_in_three(world):
    """The second interval in a row opens a pipeline alert; three whole ones close it; population is not blamed."""
    for _ in range(3):
        world.turn()
    world.turn(change=broken)
    assert world.causes == []
    world.turn(change=broken)
    assert world.causes == [("pipeline:source:orders", "open")]
    (alert,) = world.alerts
    assert (alert.finding.model, alert.finding.n, alert.look) == ("late", 300, "interval")
    assert alert.finding.end_us == world.now_us
    for _ in range(2):
        world.turn()
    assert world.causes == [("pipeline:source:orders", "open")]
    world.turn()
    assert world.causes == [("pipeline:source:orders", "resolved")]
    for _ in range(20):  # windows that hold the broken minutes are judged meanwhile
        world.turn()
    assert world.causes == [("pipeline:source:orders", "resolved")]


def test_a_population_that_moved_is_found_once_windows_are_known(world):
    """After eight windows as ever, the second that is otherwise opens a population alert, and two as ever close it."""
    for _ in range(8):
        world.turn(minutes=10)
    assert world.causes == []
    world.turn(minutes=10, change=moved)
    assert world.causes == []
    world.turn(minutes=10, change=moved)
    assert world.causes == [("population:late:1", "open")]
    for _ in range(2):
        world.turn(minutes=10)
    assert world.causes == [("population:late:1", "resolved")]
    assert {report["against"] for report in load_reports(world.state_dir)} == {"training", "previous"}


def test_a_population_is_not_judged_before_windows_are_known(world):
    """From its first window on the traffic is not training's: without knowing how much windows vary that is no alert."""
    for _ in range(6):
        world.turn(minutes=10, change=moved)
    assert world.causes == []


def test_little_traffic_never_pages(world):
    """Nothing, and then a few rows with half of the values missing, minute after minute: nobody is woken."""
    for _ in range(5):
        world.turn(0)
    for _ in range(30):
        world.turn(3, change=lambda X: X.fill(np.nan))
    assert world.causes == []


def test_an_empty_window_closes_nothing(world):
    """Traffic that ended with the feed broken leaves the alert open; so do rows too few to tell."""
    for _ in range(3):
        world.turn(change=broken)
    for _ in range(30):
        world.turn(0)
    for _ in range(5):
        world.turn(5)
    assert world.causes == [("pipeline:source:orders", "open")]


def test_an_alert_ends_when_traffic_does(world):
    """After an hour of looks that could not tell, it is over and says so; broken still when traffic is back, it is found."""
    for _ in range(3):
        world.turn(change=broken)
    for _ in range(61):
        world.turn(0)
    assert world.causes == [("pipeline:source:orders", "resolved")]
    assert "too little traffic" in world.alerts[0].history[-1].note
    for _ in range(2):
        world.turn(change=broken)
    assert world.causes[0] == ("pipeline:source:orders", "open")


def stuck(X):
    X[:, 0] = 0.25


def test_a_feature_that_stands_still_is_a_pipeline_and_no_population(world):
    """A feed that repeats itself pages with the second window, lasts for as long as it does, and moves no population."""
    for _ in range(8):
        world.turn(minutes=10)
    world.turn(minutes=10, change=lambda X: stuck(X[150:]))  # it breaks in the middle of a window
    world.turn(minutes=10, change=stuck)
    world.turn(minutes=10, change=stuck)
    cause = "pipeline:source:orders:stuck"
    assert world.causes == [(cause, "open")]
    (alert,) = world.alerts
    assert (alert.finding.n, [each.name for each in alert.finding.features]) == (300, ["a"])
    assert alert.finding.message.startswith("1 of 1 features of source orders stand still: a is 0.")
    world.start_watch()
    for _ in range(30):  # its history is nothing but standing still by then
        world.turn(minutes=10, change=stuck)
    assert world.causes == [(cause, "open")]
    for _ in range(3):
        world.turn(minutes=10)
    assert world.causes == [(cause, "resolved")]


def test_part_of_a_day_that_stood_still_moves_no_population(world):
    """The day that holds half a day of a stuck feed is no population that moved, though its values are others."""
    for n_turns, change in ((8 * 4, None), (2, stuck), (6, None)):
        for _ in range(n_turns):
            world.turn(100, minutes=360, change=change)
    assert {cause for cause, _ in world.causes} == {"pipeline:source:orders:stuck"}


@pytest.mark.parametrize("jump_us", [-90 * DAY_US, -HOUR_US, HOUR_US, 90 * DAY_US])
def test_a_clock_jump_never_pages(world, jump_us):
    """Set forward or back, with bases and traffic as ever: no alert, the jump is counted, and the watch goes on."""
    publish(world, 1)
    for _ in range(12):
        world.turn()
    state = world.turn(jump_us=jump_us)
    assert state.clock_jumps == 1
    for _ in range(12):
        state = world.turn()
    assert (world.causes, state.problems) == ([], [])
    for _ in range(2):
        world.turn(change=broken)
    assert world.causes == [("pipeline:source:orders", "open")]


def test_a_restart_of_workers_never_pages(world):
    """A worker that ends, killed or not, and one that begins change no share."""
    for i in range(8):
        if i % 2:
            world.worker.close()
            world.start_worker()
        world.turn()
    assert world.causes == []
    assert WindowStore(world.state_dir).merged("late", 1, 0, 2**62).n_requests == 8 * 300


def test_a_restart_of_the_watch_forgets_nothing(world):
    """What was suspected before counts after, what is open stays open and acknowledged, and a long pause is not judged."""
    world.turn()
    world.turn(change=broken)
    world.start_watch()
    world.turn(change=broken)
    assert world.causes == [("pipeline:source:orders", "open")]
    world.watch.alerts.acknowledge(1, by="ann", now_us=world.now_us)
    world.start_watch()
    world.turn(change=broken)
    (alert,) = world.alerts
    assert (alert.id, alert.state) == (1, AlertState.ACKNOWLEDGED)
    world.start_watch()
    state = world.turn(3000, minutes=600)
    assert (state.turns, world.causes) == (5, [("pipeline:source:orders", "acknowledged")])


def test_a_turn_slower_than_its_interval_misses_nothing(world):
    """Turns that take five intervals look at all that was answered meanwhile."""
    world.turn(minutes=5)
    world.turn(minutes=5, change=broken)
    world.turn(minutes=5, change=broken)
    assert world.causes == [("pipeline:source:orders", "open")]


def test_a_step_that_fails_is_contained_counted_and_shown(world, monkeypatch, caplog):
    """A table that cannot be written stops no alert; it is said once, counted each time, and gone when it works again."""

    def full(*_args, **_options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(world.watch._table, "convert", full)
        for _ in range(11):
            state = world.turn(minutes=5, change=broken)
    assert state.steps["predictions"].failures == state.steps["predictions"].runs > 3
    assert state.problems == ["predictions: [Errno 28] No space left on device"]
    assert caplog.text.count("No space left on device") == 1
    assert world.causes == [("pipeline:source:orders", "open")]
    state = world.turn(minutes=10)
    assert state.problems == []


def test_even_a_bug_is_contained(world, monkeypatch, caplog):
    """An error that nobody foresaw is logged with its traceback, and the next turn comes."""
    caplog.set_level(logging.ERROR)
    monkeypatch.setattr(world.watch, "_look_at_bases", lambda *_: 1 / 0)
    world.turn()
    state = world.turn()
    assert state.problems == ["bases: division by zero"]
    assert caplog.records[0].exc_info is not None
    assert state.turns == 2


def test_a_registry_that_is_away_ends_no_alert(world):
    """Who is served is not known: alerts stay as they are, and traffic is still judged by what was read before."""
    world.turn()
    for _ in range(2):
        world.turn(change=broken)

    def away(*_):
        raise RegistryUnavailableError("the database is away")

    world.versions.served = away
    for _ in range(12):
        state = world.turn(change=broken)
    assert state.problems == ["versions: the database is away"]
    assert world.causes == [("pipeline:source:orders", "open")]


def test_a_version_that_cannot_be_read_is_judged_by_its_past(world):
    """Without a reference its windows are compared with those before: a feed that breaks still shows."""

    def gone(*_):
        raise RegistryUnavailableError("no such version")

    world.versions.find = gone
    for _ in range(6):
        state = world.turn()
    assert state.problems == ["reading late:1: no such version"]
    for _ in range(2):
        world.turn(change=broken)
    assert world.causes == [("pipeline:request:late", "open")]


def test_alerts_of_a_version_that_is_gone_end(world):
    """No alias points at it and nobody asks it any more: its alerts are over."""
    world.turn()
    for _ in range(2):
        world.turn(change=broken)
    world.versions.served = lambda: {("late", 2)}
    for _ in range(32):
        world.turn(0)
    assert world.causes == [("pipeline:source:orders", "resolved")]
    assert world.alerts[0].history[-1].note == "the version is no longer served"


def publish(world, number, *, service="checkout", damaged=False):
    directory = world.settings.features_dir / service
    directory.mkdir(parents=True, exist_ok=True)
    text = f'{{"base": "base-{number:06d}.mdb", "published_us": {world.now_us}, "as_of_us": {world.now_us}}}'
    (directory / MANIFEST_NAME).write_text("{" if damaged else text)


def test_a_base_that_is_not_replaced_any_more_is_found(world):
    """Published every ten minutes and then not: after twice that it is stale, and over with the next publication."""
    for number in range(LEAST_GAPS + 1):
        publish(world, number)
        for _ in range(10):
            world.turn(0)
    for _ in range(9):
        world.turn(0)
    assert world.causes == []
    for _ in range(3):
        world.turn(0)
    assert world.causes == [("pipeline:base:checkout", "open")]
    assert world.alerts[0].finding.message.startswith("Service checkout still reads base-000004.mdb")
    publish(world, 99)
    for _ in range(4):
        world.turn(0)
    assert world.causes == [("pipeline:base:checkout", "resolved")]


def test_a_base_published_once_is_never_stale(world):
    """Without a pace there is nothing to be late for."""
    publish(world, 1)
    for _ in range(12):
        world.turn(0, minutes=300)
    assert world.causes == []


def test_a_damaged_manifest_is_found(world):
    """A MANIFEST that cannot be read in two looks in a row is a pipeline alert until it can."""
    publish(world, 1, damaged=True)
    world.turn(0)
    world.turn(0)
    assert world.causes == [("pipeline:manifests", "open")]
    publish(world, 2)
    for _ in range(3):
        world.turn(0)
    assert world.causes == [("pipeline:manifests", "resolved")]


def outcomes(n_days, bad=()):
    """Days of a thousand answers each; labels of bad days contradict the scores."""
    rng = np.random.default_rng(3)
    day = np.repeat(np.arange(n_days), 1000)
    scores = rng.beta(2, 2, len(day))
    labels = (rng.random(len(day)) < scores).astype(float)
    labels = np.where(np.isin(day, bad), 1 - labels, labels)
    times = DAY_US * (START_US // DAY_US) + day * DAY_US + rng.integers(0, DAY_US, len(day))
    return make_outcomes(len(day), score=scores, label=labels, time=times, delay_us=1_000_000)


def test_lost_money_pages_and_lying_scores_do_not(world, monkeypatch):
    """Each mature day is judged once, a bad one beside the good ones before it; money is over with the first good day.

    Concept is not yet: what scores mean has changed again, and estimates were learned from the bad days too.
    """
    value = ValueSettings(
        true_positive=10, false_positive=-10, true_negative=10, false_negative=-10, label_maturity_s=60.0
    )
    world.versions.find = lambda *_: Watched("late", 1, Task.BINARY, REFERENCE, ORIGINS, value)
    begin_us = DAY_US * (START_US // DAY_US)
    story = [(8, ()), (8, ()), (9, (8,)), (9, (8,)), (10, (8, 9)), (11, (8, 9))]
    found = []
    for n_days, bad in story:
        monkeypatch.setattr(watch, "open_outcomes", lambda *_, n=n_days, b=bad, **__: outcomes(n, b))
        jump_us = begin_us + n_days * DAY_US + HOUR_US - world.now_us
        minutes = jump_us // MINUTE_US if jump_us > 0 else 10
        state = world.turn(0, minutes=minutes)
        assert state.problems == []
        found.append((dict(world.causes), state.outcomes["late:1:champion"].bad_since_us))
    impact, concept = "impact:late:1:champion", "concept:late:1:champion"
    both, over = {impact: "open", concept: "open"}, {impact: "resolved", concept: "open"}
    day_8_us = begin_us + 8 * DAY_US
    assert found == [({}, None), ({}, None), *[(both, day_8_us)] * 3, (over, None)]
    alerts = {alert.finding.cause: alert for alert in world.alerts}
    assert (alerts[impact].pages, alerts[concept].pages) == (True, False)
    assert alerts[impact].n_found == 2


def test_the_state_survives_damage(world):
    """A state file that is cut short is begun anew, and says nothing false meanwhile."""
    for _ in range(3):
        world.turn()
    path = world.state_dir / "alerts" / "watch.json"
    saved = WatchState.load(world.state_dir)
    assert (saved.looks, saved.turns) == (world.watch.state.looks, 3)
    assert saved.steps["windows"] == world.watch.state.steps["windows"]
    path.write_bytes(path.read_bytes()[:50])
    world.start_watch()
    for _ in range(3):
        world.turn()
    assert (world.watch.state.turns, world.causes) == (3, [])


def test_null_traffic_for_days(tmp_path):
    """A day and more of a population that never moves, judged each half hour, hour and day: no alert."""
    world = World(tmp_path, window_s=3600.0, interval_s=1800.0)
    for _ in range(52):
        world.turn(120, minutes=30)
    assert world.causes == []


def test_scales_are_distinct(tmp_path):
    """A window as short as the interval takes its place; one of a day or more leaves the day out."""
    names = {
        (60.0, 3600.0): ["interval", "window", "day"],
        (60.0, 60.0): ["window", "day"],
        (60.0, 86_400.0): ["interval", "window"],
    }
    for (interval_s, window_s), expected in names.items():
        world = World(tmp_path / f"{window_s}", interval_s=interval_s, window_s=window_s)
        assert [scale.name for scale in world.watch._scales] == expected
    assert replace(world.settings.monitor).enabled
