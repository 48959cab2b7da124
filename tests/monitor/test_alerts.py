"""Alerts: one per cause, opened and closed by looks in a row, changed by people, kept through whatever ends the process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
from tests.monitor.findings import MINUTE_US, START_US, finding, look

from tiercel.errors import AlertFileError, AlertNotFoundError, AlertStateError, MonitorStorageError
from tiercel.monitor import alert_book
from tiercel.monitor.alert import Alert, AlertClass, AlertState, Finding, TopFeature
from tiercel.monitor.alerts import AlertStore

CAUSE = "pipeline:source:orders"
ROUTED = ("pipeline", "impact")


@pytest.fixture
def store(tmp_path):
    return AlertStore(tmp_path, routed=ROUTED)


class Turns:
    """Looks a minute apart."""

    def __init__(self, store):
        self.store, self.now_us = store, START_US

    def __call__(self, *looks, minutes=1, **options):
        self.now_us += minutes * MINUTE_US
        return self.store.update(looks, self.now_us, **options)

    def broken(self, **changes):
        return self(look(finding(end_us=self.now_us + MINUTE_US, **changes)))

    def fine(self, limit=0.1):
        return self(look(limit=limit))


@pytest.fixture
def turns(store):
    return Turns(store)


def opened(turns):
    turns.broken()
    (alert,) = turns.broken()
    return alert


def events(alert):
    return [event.what for event in alert.history]


def test_one_look_is_not_enough(turns, store):
    """A cause opens its alert with the second look in a row that finds it, and that one alert is kept up to date."""
    assert turns.broken() == []
    assert store.find_all() == []
    (alert,) = turns.broken(effect=0.5)
    assert (alert.id, alert.state, events(alert), alert.unsent) == (1, AlertState.OPEN, ["opened"], ("opened",))
    assert turns.broken(effect=0.7) == []
    (alert,) = store.find_all()
    assert (alert.finding.effect, alert.n_found, alert.opened_us) == (0.7, 3, START_US + 2 * MINUTE_US)


def test_a_look_that_would_have_found_it_breaks_the_row(turns, store):
    """Found, not found, found is no alert; a look at too few rows in between breaks no row."""
    turns.broken()
    turns.fine()
    turns.broken()
    assert store.find_all() == []
    turns.fine(limit=2.0)
    turns.broken()
    assert len(store.find_all()) == 1


def test_looks_far_apart_are_not_in_a_row(turns, store):
    """What was found before a long time without any look does not count towards an alert."""
    turns.broken()
    turns(minutes=alert_book.STALE_LENGTHS + 1)
    turns.broken()
    assert store.find_all() == []


def test_it_is_over_when_looks_in_a_row_would_have_found_it(turns, store):
    """Looks at too little traffic close nothing, and one that finds it again begins the count anew."""
    opened(turns)
    for _ in range(5):
        turns.fine(limit=0.9)
    turns.fine()
    turns.fine()
    turns.broken()
    turns.fine()
    assert turns.fine() == []
    (alert,) = turns.fine()
    assert (alert.state, events(alert)) == (AlertState.RESOLVED, ["opened", "resolved"])
    assert alert.resolved_us == turns.now_us
    assert store.find_all() == []
    assert store.find_all(with_resolved=True) == [alert]


def test_what_comes_back_is_the_same_alert_and_must_stay_away_longer(turns, store):
    """A flapping feed has one alert, and each return doubles how long it must be gone."""
    opened(turns)
    for _ in range(3):
        turns.fine()
    turns.broken()
    (alert,) = turns.broken()
    assert (alert.id, events(alert)[-1], alert.n_reopened) == (1, "reopened", 1)
    for _ in range(5):
        turns.fine()
    assert store.get(1).state is AlertState.OPEN
    turns.fine()
    assert store.get(1).state is AlertState.RESOLVED


def test_what_comes_back_much_later_is_another_alert(turns, store):
    """A day after it was over, the same cause has an alert of its own."""
    opened(turns)
    for _ in range(3):
        turns.fine()
    turns(minutes=alert_book.REOPEN_LENGTHS)
    opened(turns)
    assert [alert.id for alert in store.find_all(with_resolved=True)] == [2, 1]


def test_a_longer_window_adds_nothing_to_what_a_shorter_one_found(turns, store):
    """An hour that holds broken minutes is neither a second alert nor, once they are over, a new one."""
    opened(turns)
    hour = finding(end_us=turns.now_us, length_us=60 * MINUTE_US, effect=0.2)
    turns(look(hour, name="window"))
    turns(look(hour, name="window"))
    assert [alert.look for alert in store.find_all()] == ["interval"]
    for _ in range(3):
        turns.fine()
    hour = replace(hour, end_us=turns.now_us)
    turns(look(hour, name="window"))
    turns(look(hour, name="window"))
    assert store.find_all() == []


def test_a_shorter_window_takes_over(turns, store):
    """What an hour found and a minute finds too is over as soon as minutes say so."""
    hour = finding(end_us=START_US, length_us=60 * MINUTE_US)
    turns(look(hour, name="window", n_confirm=1))
    assert [alert.look for alert in store.find_all()] == ["window"]
    turns.broken()
    for _ in range(3):
        turns.fine()
    assert store.find_all() == []


def test_causes_are_apart(turns, store):
    """Two causes are two alerts, the newest first; a look at one says nothing of the other."""
    other = finding("population:fraud:1")
    turns(look(finding(), other, n_confirm=1))
    assert [alert.finding.cause for alert in store.find_all()] == ["population:fraud:1", CAUSE]
    for _ in range(3):
        turns.fine()
    assert [alert.finding.cause for alert in store.find_all()] == ["population:fraud:1"]


def test_only_routed_classes_wait_to_be_sent(turns, store):
    """Population and concept are kept and shown; the webhook hears neither of their beginning nor of their end."""
    turns(look(finding("population:fraud:1"), sees=("population:fraud:1",), n_confirm=1))
    (alert,) = store.find_all()
    assert not alert.pages
    for _ in range(3):
        turns(look(sees=("population:fraud:1",)))
    (alert,) = store.find_all(with_resolved=True)
    assert (alert.state, alert.unsent) == (AlertState.RESOLVED, ())


def test_acknowledged_is_not_sent_again_and_resolves(turns, store):
    """Somebody knows: what was not sent yet is not sent, and it still ends by itself."""
    opened(turns)
    alert = store.acknowledge(1, by="ann", note="looking\x1b[31m", now_us=turns.now_us)
    assert (alert.state, alert.unsent, alert.history[-1].by) == (AlertState.ACKNOWLEDGED, (), "ann")
    assert alert.history[-1].note == "looking [31m"
    turns.broken()
    assert store.get(1).state is AlertState.ACKNOWLEDGED
    for _ in range(3):
        turns.fine()
    assert store.get(1).state is AlertState.RESOLVED


def test_a_silence_ends(turns, store):
    """While it lasts nothing is sent; then what still lasts is open again, and is sent."""
    opened(turns)
    store.mark_sent(1, "opened", turns.now_us)
    store.silence(1, turns.now_us + 3 * MINUTE_US, by="ann", now_us=turns.now_us)
    turns.broken()
    turns.broken()
    assert (store.get(1).state, store.get(1).unsent) == (AlertState.SILENCED, ())
    (alert,) = turns.broken()
    assert (alert.state, alert.unsent, events(alert)[-1]) == (AlertState.OPEN, ("unsilenced",), "unsilenced")
    assert alert.silenced_until_us is None


def test_a_silence_outlives_the_alert(turns, store):
    """What ends and comes back within the silence comes back silenced."""
    opened(turns)
    store.silence(1, turns.now_us + 60 * MINUTE_US, by="ann", now_us=turns.now_us)
    for _ in range(3):
        turns.fine()
    turns.broken()
    (alert,) = turns.broken()
    assert (alert.state, alert.unsent) == (AlertState.SILENCED, ())


def test_a_clock_put_back_does_not_lengthen_a_silence(turns, store):
    """A silence of an hour ends an hour after the clock was put back by a year, at the latest."""
    opened(turns)
    store.silence(1, turns.now_us + 60 * MINUTE_US, by="ann", now_us=turns.now_us)
    turns.now_us -= 365 * 24 * 60 * MINUTE_US
    turns()
    turns(minutes=61)
    assert store.get(1).state is AlertState.OPEN


def test_who_heard_the_beginning_hears_the_end(turns, store):
    """An alert that was sent and then silenced still says that it is over; one that nobody heard of does not."""
    opened(turns)
    store.mark_sent(1, "opened", turns.now_us)
    store.silence(1, turns.now_us + 60 * MINUTE_US, by="ann", now_us=turns.now_us)
    assert store.resolve(1, by="ann", now_us=turns.now_us).unsent == ("resolved",)
    turns(look(finding("impact:fraud"), n_confirm=1))
    store.acknowledge(2, by="ann", now_us=turns.now_us)
    assert store.resolve(2, by="ann", now_us=turns.now_us).unsent == ()


def test_resolved_by_hand_opens_again_while_it_lasts(turns, store):
    """Calling it over does not make it so."""
    opened(turns)
    store.resolve(1, by="ann", note="fixed", now_us=turns.now_us)
    assert turns.broken() == []
    (alert,) = turns.broken()
    assert (alert.id, events(alert)) == (1, ["opened", "resolved", "reopened"])


def test_what_is_over_cannot_be_changed(turns, store):
    """Acknowledging, silencing and resolving an alert that is over, or none, is refused with a code."""
    opened(turns)
    store.resolve(1, by="ann", now_us=turns.now_us)
    for action in (
        lambda: store.acknowledge(1, by="b", now_us=0),
        lambda: store.silence(1, 1, by="b", now_us=0),
        lambda: store.resolve(1, by="b", now_us=0),
    ):
        with pytest.raises(AlertStateError, match="Alert 1 is resolved"):
            action()
    with pytest.raises(AlertNotFoundError, match="No alert 7"):
        store.get(7)


def test_alerts_of_versions_that_are_gone_end(turns, store):
    """A version that nobody serves any more will never be found fine; one that is known to be served goes on."""
    opened(turns)
    turns(live={("fraud", 1)})
    assert len(store.find_all()) == 1
    (alert,) = turns(live={("fraud", 2)})
    assert (alert.state, alert.history[-1].note) == (AlertState.RESOLVED, "the version is no longer served")


def test_an_alert_that_no_look_can_tell_of_ends_and_says_why(turns, store):
    """Traffic stops: it is said that looks cannot tell, after an hour of them it is over, and webhooks hear of it."""
    opened(turns)
    store.mark_sent(1, "opened", turns.now_us)
    for _ in range(40):
        turns(look(sees=()), look(sees=(), name="window"))
    assert store.get(1).n_untold == 40  # looks of another length are not its own
    turns.broken()
    assert store.get(1).n_untold == 0
    for i in range(60):
        assert (store.get(1).state, store.get(1).n_untold) == (AlertState.OPEN, i)
        turns(look(sees=()))
    alert = store.get(1)
    assert (alert.state, alert.history[-1].what) == (AlertState.RESOLVED, "resolved")
    assert alert.history[-1].note == "too little traffic for long to tell whether it lasts"
    assert alert.unsent[-1:] == ("resolved",)


def test_unsent_events_leave_one_by_one(turns, store):
    """Each event waits until the webhook took it or was given up, and the history says which."""
    opened(turns)
    store.resolve(1, by="ann", now_us=turns.now_us)
    assert store.get(1).unsent == ("opened", "resolved")
    store.mark_sent(1, "opened", turns.now_us)
    store.mark_sent(1, "resolved", turns.now_us, failure="refused 12 times")
    store.mark_sent(1, "resolved", turns.now_us)
    store.mark_sent(9, "opened", turns.now_us)
    alert = store.get(1)
    assert alert.unsent == ()
    assert events(alert)[2:] == ["sent", "not_sent"]
    assert alert.history[-1].note == "refused 12 times"


def test_old_alerts_are_dropped(turns, store, monkeypatch):
    """The newest resolved alerts are kept, and all that last; numbers are not given twice."""
    monkeypatch.setattr(alert_book, "MAX_RESOLVED", 2)
    for i in range(4):
        turns(look(finding(f"concept:{i}"), n_confirm=1))
        store.resolve(i + 1, by="ann", now_us=turns.now_us)
    turns(look(finding("concept:4"), n_confirm=1))
    assert [alert.id for alert in store.find_all(with_resolved=True)] == [5, 4, 3]


def test_alerts_of_versions_that_nobody_asks_end(turns, store):
    """Of outcomes there are no looks without answers: a version that is silent for long has its alerts ended."""
    turns(look(finding("impact:fraud"), n_confirm=1))
    turns(silent={("fraud", 2)})
    assert store.get(1).state is AlertState.OPEN
    turns(silent={("fraud", 1)})
    assert store.get(1).state is AlertState.RESOLVED


def test_alerts_of_an_older_file_are_read(turns, store):
    """A file that does not say how many looks could not tell is as good: none."""
    alert = opened(turns)
    data = alert.to_json()
    del data["n_untold"]
    assert Alert.from_json(data) == alert


def test_an_alert_is_the_same_after_its_file(turns, store, tmp_path):
    """Everything survives the file: alerts, suspicions, silences and the next number."""
    opened(turns)
    store.silence(1, turns.now_us + 60 * MINUTE_US, by="ann", now_us=turns.now_us)
    turns(look(finding("impact:fraud"), sees=("impact:fraud",)))
    again = AlertStore(tmp_path, routed=ROUTED)
    assert again.find_all() == store.find_all()
    (alert,) = Turns(again)(look(finding("impact:fraud")))
    assert alert.id == 2
    assert Alert.from_json(json.loads(json.dumps(alert.to_json()))) == alert
    assert (again.path.stat().st_mode & 0o777, again.path.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_a_damaged_file_is_put_aside(turns, store):
    """People are told; the watch puts it aside and goes on."""
    opened(turns)
    whole = store.path.read_bytes()
    for damaged in (whole[:-1], b"", b"{}\n{}", whole.replace(b"orders", b"errors")):
        store.path.write_bytes(damaged)
        with pytest.raises(AlertFileError, match="expected alerts as tiercel writes them"):
            store.find_all()
        with pytest.raises(AlertFileError):
            store.resolve(1, by="ann", now_us=0)
        assert store.path.read_bytes() == damaged
    turns.broken()
    (alert,) = turns.broken()
    assert alert.id == 1
    assert store.path.with_name("alerts.json.damaged").exists()


def test_a_full_disk_changes_nothing(turns, store, monkeypatch):
    """An alert that cannot be written is not opened; the next look that can opens it."""
    turns.broken()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(MonitorStorageError, match="No space left"):
            turns.broken()
        assert store.find_all() == []
    turns.broken()
    assert len(store.find_all()) == 1


def test_people_and_the_watch_at_once(turns, store, tmp_path):
    """Changes take turns: nothing anybody said is lost to what was found at the same time."""
    causes = [f"impact:{i}" for i in range(8)]
    turns(look(*(finding(cause) for cause in causes), n_confirm=1))

    def acknowledge(alert_id):
        AlertStore(tmp_path).acknowledge(alert_id, by="ann", now_us=START_US)

    threads = [threading.Thread(target=acknowledge, args=(i + 1,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for _ in range(4):
        turns(look(*(finding(cause) for cause in causes)))
    for thread in threads:
        thread.join()
    assert {alert.state for alert in store.find_all()} == {AlertState.ACKNOWLEDGED}


KILLED = """
import sys
from pathlib import Path
from tests.monitor.findings import START_US, finding, look
from tiercel.monitor.alerts import AlertStore
store = AlertStore(Path(sys.argv[1]), routed=("pipeline",))
for i in range(1_000_000):
    store.update([look(finding(f"pipeline:{i}"), n_confirm=1)], START_US + i)
    print(i, flush=True)
"""


def test_kill_nine_loses_nothing_that_was_said(tmp_path):
    """Alerts that `update` returned from are there after a kill at any moment, and the file is whole."""
    for wait_s in (0.0, 0.02, 0.05):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(3):
            said = int(process.stdout.readline())
        time.sleep(wait_s)
        process.send_signal(signal.SIGKILL)
        said = max([said, *map(int, process.communicate()[0].split())])
        found = AlertStore(tmp_path).find_all(with_resolved=True)
        assert {f"pipeline:{i}" for i in range(said + 1)} <= {alert.finding.cause for alert in found}


def test_nothing_there(tmp_path):
    """A project without alerts has none, and reading makes no files."""
    assert AlertStore(tmp_path / "state").find_all(with_resolved=True) == []
    assert not (tmp_path / "state").exists()


def test_classes_that_page():
    """Only a broken pipeline and a missed purpose wake somebody."""
    assert [each.value for each in AlertClass if each.pages] == ["pipeline", "impact"]


def test_what_shows_it_decides_whether_a_look_would_have():
    """The limit of the very feature counts where it is known; otherwise that of the cause as a whole."""
    broken = finding(features=(TopFeature("a", 0.4, ""), TopFeature("b", 0.3, "")))
    one = look()
    assert replace(one, limits={CAUSE: {"a": 0.5, "b": 0.35, "c": 0.0}}).would_have_found(broken)
    assert not replace(one, limits={CAUSE: {"a": 0.5, "c": 0.0}}).would_have_found(broken)
    assert replace(one, limits={CAUSE: {"": 0.4}}).would_have_found(broken)
    assert not replace(one, limits={}).would_have_found(broken)
    assert Finding.from_json(json.loads(json.dumps(broken.to_json()))) == broken
