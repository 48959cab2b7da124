"""The supervisor's decisions, with a clock and processes of the test's own: back-off, first start, rolls, stops."""

from __future__ import annotations

import signal

import pytest

from tiercel.errors import DefinitionError
from tiercel.serving.supervisor import (
    HOPELESS_AFTER,
    KILL_AFTER_S,
    RETIRE,
    STEADY_S,
    STOP,
    Supervisor,
    describe_status,
)

GRACE_S = 30.0


class FakeChild:
    def __init__(self, name, pid):
        self.name, self.pid = name, pid
        self.orders, self.told, self.signals = [], [], []

    def send(self, message):
        (self.orders if "order" in message else self.told).append(message)

    def kill(self, signum):
        self.signals.append(signum)


class World:
    """A supervisor whose clock and processes are moved by hand."""

    def __init__(self, n_workers=2, *, with_control=False, reload=lambda: None):
        self.now = 100.0
        self.started = []  # (when, child)
        self.serving, self.n_closed = [], 0
        self.supervisor = Supervisor(
            self.spawn,
            n_workers=n_workers,
            with_control=with_control,
            grace_s=GRACE_S,
            on_serving=self.serving.append,
            on_closed=self.close,
            on_reload=reload,
            clock=lambda: self.now,
            wall_clock=lambda: self.now,
        )
        self.supervisor.start()

    def spawn(self, name):
        child = FakeChild(name, 1000 + len(self.started))
        self.started.append((self.now, child))
        return child

    def close(self):
        self.n_closed += 1

    def last(self, name):
        return next(child for _, child in reversed(self.started) if child.name == name)

    def ready(self, child):
        self.supervisor.on_message(child, {"event": "ready"})

    def all_ready(self):
        for _, child in list(self.started):
            self.ready(child)
        return self

    def wait(self):
        """Sleep until something is due, as the loop does; returns how long."""
        before, self.now = self.now, self.supervisor.due_s
        self.supervisor.tick()
        return self.now - before

    def states(self, name):
        return [state["state"] for state in self.supervisor.states() if state["name"] == name]


def test_serving_is_announced_once_when_all_are_ready():
    """The line that says "Serving" waits for every worker and for the control process, and comes once."""
    world = World(2, with_control=True)
    world.ready(world.last("worker-1"))
    world.ready(world.last("worker-2"))
    assert world.serving == []
    world.ready(world.last("control"))
    assert world.serving == [2]
    world.supervisor.on_exit(world.last("worker-1"), -9)
    world.wait()
    world.ready(world.last("worker-1"))
    assert world.serving == [2]


def test_the_first_worker_that_is_ready_speaks_for_all():
    """What it has to say is kept for the line that says "Serving"; nobody after it, and not the control process, changes it."""
    world = World(2, with_control=True)
    for name, told in (("control", ["c"]), ("worker-2", ["limits"]), ("worker-1", ["others"])):
        world.supervisor.on_message(world.last(name), {"event": "ready", "told": told})
    assert world.supervisor.told == ["limits"]


def test_a_crash_loop_backs_off_and_leaves_the_others_alone():
    """A worker that keeps dying is started after 0.1, 0.2, 0.4 ... and at most 5 s; nobody else is touched."""
    world = World(2).all_ready()
    waits = []
    for _ in range(9):
        world.supervisor.on_exit(world.last("worker-1"), 1)
        assert world.states("worker-1") == ["backoff"]
        waits.append(world.wait())
    assert waits == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, 5])
    assert [child.name for _, child in world.started].count("worker-2") == 1
    assert world.last("worker-2").orders == world.last("worker-2").signals == []


def test_a_long_life_forgives():
    """A worker that served a while before it died is started again at once, however often it died before."""
    world = World(1).all_ready()
    for _ in range(5):
        world.supervisor.on_exit(world.last("worker-1"), -11)
        last = world.wait()
        world.ready(world.last("worker-1"))
    assert last > 1
    world.now += STEADY_S
    world.supervisor.on_exit(world.last("worker-1"), -11)
    assert world.wait() == pytest.approx(0.1)


def test_nothing_is_due_while_everybody_serves():
    """A healthy supervisor sleeps without a timeout: it costs no CPU."""
    assert World(3, with_control=True).all_ready().supervisor.due_s is None


def test_what_a_worker_says_of_its_failure_is_the_reason():
    """When no worker can start and one said why, the supervisor stops at once with that text and code."""
    world = World(2)
    for name in ("worker-1", "worker-2"):
        child = world.last(name)
        world.supervisor.on_message(child, {"event": "failed", "error": "no such database", "code": "registry_down"})
        world.supervisor.on_exit(child, 1)
    assert world.supervisor.is_done
    assert (str(world.supervisor.failure), world.supervisor.failure.code) == ("no such database", "registry_down")
    assert world.serving == []


def test_crashes_at_the_first_start_are_tried_a_few_times():
    """Workers that die without a word are started again a few times; then the supervisor ends and says so."""
    world = World(1)
    for _ in range(HOPELESS_AFTER - 1):
        world.supervisor.on_exit(world.last("worker-1"), -11)
        assert not world.supervisor.is_done
        world.wait()
    world.supervisor.on_exit(world.last("worker-1"), -11)
    assert world.supervisor.is_done
    assert "SIGSEGV" in str(world.supervisor.failure)


def test_one_good_worker_is_enough_to_serve():
    """If one worker serves and another cannot start, serving begins and the other is tried for ever."""
    world = World(2)
    world.ready(world.last("worker-2"))
    for _ in range(HOPELESS_AFTER):
        world.supervisor.on_exit(world.last("worker-1"), 1)
        world.wait()
    assert world.serving == [1]
    assert not world.supervisor.is_done
    world.supervisor.on_exit(world.last("worker-1"), 1)
    assert world.wait() > 0


def test_a_stop_drains_workers_and_then_the_control_process():
    """SIGTERM orders workers to stop; the port closes when none accepts; the control process goes last."""
    world = World(2, with_control=True).all_ready()
    first, second, control = (world.last(name) for name in ("worker-1", "worker-2", "control"))
    world.supervisor.on_signal(signal.SIGTERM)
    assert first.orders == second.orders == [STOP]
    assert control.orders == []
    world.supervisor.on_message(first, {"event": "closed"})
    assert world.n_closed == 0
    world.supervisor.on_message(second, {"event": "closed"})
    assert world.n_closed == 1
    world.supervisor.on_exit(first, 0)
    world.supervisor.on_exit(second, 0)
    assert control.orders == [STOP]
    assert not world.supervisor.is_done
    world.supervisor.on_exit(control, 0)
    assert world.supervisor.is_done
    assert world.n_closed == 1
    assert world.supervisor.failure is None


def test_a_worker_that_dies_while_stopping_is_not_started_again():
    """A death during the drain ends its slot, and the port closes with the last worker."""
    world = World(2).all_ready()
    world.supervisor.on_signal(signal.SIGINT)
    world.supervisor.on_exit(world.last("worker-1"), -9)
    world.supervisor.on_exit(world.last("worker-2"), 0)
    assert world.supervisor.is_done
    assert len(world.started) == 2
    assert world.n_closed == 1


def test_a_worker_in_backoff_is_not_started_by_a_stop():
    """Stopping cancels what waits to be started."""
    world = World(1).all_ready()
    world.supervisor.on_exit(world.last("worker-1"), -9)
    world.supervisor.on_signal(signal.SIGTERM)
    assert world.supervisor.is_done
    assert world.supervisor.due_s is None


def test_the_same_signal_at_once_is_one_wish_and_a_later_one_forces():
    """Ctrl-C and the parent's SIGTERM together drain; a signal a second later kills."""
    world = World(1).all_ready()
    child = world.last("worker-1")
    world.supervisor.on_signal(signal.SIGINT)
    world.supervisor.on_signal(signal.SIGTERM)
    assert child.signals == []
    world.now += 1.5
    world.supervisor.on_signal(signal.SIGTERM)
    assert child.signals == [signal.SIGKILL]
    assert world.supervisor.was_forced


def test_who_does_not_end_is_killed():
    """A worker still there some time after the grace is killed, once."""
    world = World(1).all_ready()
    world.supervisor.on_signal(signal.SIGTERM)
    assert world.wait() == pytest.approx(GRACE_S + KILL_AFTER_S)
    assert world.last("worker-1").signals == [signal.SIGKILL]
    assert world.supervisor.due_s is None


def test_a_roll_replaces_one_process_at_a_time():
    """SIGHUP starts a successor; only when it serves is the one before retired, and only when that is gone is the next."""
    world = World(2, with_control=True).all_ready()
    before = [child for _, child in world.started]
    world.supervisor.on_signal(signal.SIGHUP)
    for i, old in enumerate(before):
        assert len(world.started) == 3 + i + 1
        new = world.started[-1][1]
        assert new.name == old.name
        assert old.orders == []
        world.ready(new)
        assert old.orders == [RETIRE]
        world.supervisor.on_exit(old, 0)
    assert len(world.started) == 6
    assert {state["state"] for state in world.supervisor.states()} == {"ready"}
    assert {state["restarts"] for state in world.supervisor.states()} == {0}


def test_a_successor_that_cannot_start_ends_the_roll():
    """When the new process dies before it serves, the old ones stay."""
    world = World(2).all_ready()
    world.supervisor.on_signal(signal.SIGHUP)
    world.supervisor.on_exit(world.started[-1][1], 1)
    assert len(world.started) == 3
    assert world.states("worker-1") == world.states("worker-2") == ["ready"]
    assert all(child.orders == [] for _, child in world.started)


def test_a_death_during_its_roll_leaves_the_successor():
    """If the old process dies while its successor starts, the successor takes the place and the roll goes on."""
    world = World(2).all_ready()
    old = world.last("worker-1")
    world.supervisor.on_signal(signal.SIGHUP)
    successor = world.last("worker-1")
    world.supervisor.on_exit(old, -9)
    assert world.supervisor.due_s is None
    world.ready(successor)
    assert world.states("worker-1") == ["ready"]
    assert world.started[-1][1].name == "worker-2"


def test_both_dead_during_a_roll_are_started_again():
    """If old and new both die, the slot is started again after its back-off."""
    world = World(1).all_ready()
    old = world.last("worker-1")
    world.supervisor.on_signal(signal.SIGHUP)
    world.supervisor.on_exit(old, -9)
    world.supervisor.on_exit(world.last("worker-1"), 1)
    assert world.wait() == pytest.approx(0.1)
    world.ready(world.last("worker-1"))
    assert world.states("worker-1") == ["ready"]


def test_a_stop_during_a_roll_ends_both():
    """SIGTERM while a successor starts: the one that serves drains, the one that does not is ended."""
    world = World(1).all_ready()
    old = world.last("worker-1")
    world.supervisor.on_signal(signal.SIGHUP)
    successor = world.last("worker-1")
    world.supervisor.on_signal(signal.SIGTERM)
    assert (old.orders, old.signals) == ([STOP], [])
    assert (successor.orders, successor.signals) == ([STOP], [signal.SIGTERM])
    world.supervisor.on_exit(successor, -15)
    world.supervisor.on_exit(old, 0)
    assert world.supervisor.is_done


def test_wrong_settings_do_not_roll():
    """A tiercel.toml that cannot be read leaves every process alone."""

    def refuse():
        raise DefinitionError("expected TOML")

    world = World(1, reload=refuse).all_ready()
    world.supervisor.on_signal(signal.SIGHUP)
    assert len(world.started) == 1


def test_the_control_process_is_told_of_every_change():
    """What the admin port shows is the last thing the supervisor said: pids, states, restarts, last exits."""
    world = World(1, with_control=True).all_ready()
    control = world.last("control")
    world.supervisor.on_exit(world.last("worker-1"), -9)
    worker = control.told[-1]["processes"][0]
    assert (worker["name"], worker["state"], worker["pid"]) == ("worker-1", "backoff", None)
    assert worker["last_exit"] == "signal SIGKILL"
    world.wait()
    worker = control.told[-1]["processes"][0]
    assert (worker["state"], worker["restarts"], worker["started_at"]) == ("starting", 1, world.now)


def test_the_control_process_hears_when_workers_serve():
    """What watches predictions begins then, and not beside workers that start, or never do."""
    world = World(2, with_control=True)
    control = world.last("control")
    world.ready(control)
    world.ready(world.last("worker-1"))
    assert control.told
    assert not any(message["has_served"] for message in control.told)
    world.ready(world.last("worker-2"))
    assert control.told[-1]["has_served"]


@pytest.mark.parametrize(("status", "text"), [(0, "status 0"), (-9, "signal SIGKILL"), (-200, "signal 200")])
def test_statuses_in_words(status, text):
    """An exit status says what a person would say."""
    assert describe_status(status) == text
