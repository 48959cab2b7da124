"""A failing challenger is taken out, tried again carefully, and forgiven; the clock is the test's."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tiercel.serving.guard import Guard, State

S = 1_000_000_000


class Clock:
    def __init__(self):
        self.now_ns = 5 * S

    def __call__(self):
        return self.now_ns


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def guard(clock):
    return Guard("fraud", max_failures=3, window_ns=10 * S, pause_ns=30 * S, max_pause_ns=100 * S, clock_ns=clock)


def fail(guard, n=1, version=4):
    for _ in range(n):
        guard.settle(guard.admit(version), "scores are not finite")


def test_a_few_failures_are_forgiven(guard):
    """Below the limit everybody is still admitted, and nothing is reported."""
    fail(guard, 2)
    assert guard.admit(4) is not None
    assert (guard.state, guard.problem) == (State.CLOSED, None)


def test_the_last_failure_opens(guard):
    """At the limit the version is out, and `/readyz` can say which, why, and until when."""
    fail(guard, 3)
    assert guard.admit(4) is None
    assert guard.state is State.OPEN
    assert "model fraud: challenger version 4 is out after 3 failures" in guard.problem
    assert "scores are not finite. It is tried again in 30 s" in guard.problem


@pytest.mark.parametrize(("elapsed_ns", "state"), [(10 * S, State.OPEN), (10 * S + 1, State.CLOSED)])
def test_the_window_is_inclusive(guard, clock, elapsed_ns, state):
    """Failures count if first and last are at most a window apart; older ones are forgotten."""
    fail(guard, 2)
    clock.now_ns += elapsed_ns
    fail(guard)
    assert guard.state is state


def test_successes_between_do_not_hide_failures(guard):
    """Five failures in a minute are too many however many requests succeeded."""
    for _ in range(3):
        fail(guard)
        if guard.state is State.CLOSED:
            guard.settle(guard.admit(4))
    assert guard.state is State.OPEN


@pytest.mark.parametrize(("elapsed_ns", "is_admitted"), [(30 * S - 1, False), (30 * S, True)])
def test_one_probe_after_the_pause(guard, clock, elapsed_ns, is_admitted):
    """When the pause is over one request is let through, and only one."""
    fail(guard, 3)
    clock.now_ns += elapsed_ns
    assert (guard.admit(4) is not None) is is_admitted
    assert guard.admit(4) is None


def test_a_good_probe_closes(guard, clock):
    """A probe that succeeds restores everything, past failures and pauses included."""
    fail(guard, 3)
    clock.now_ns += 30 * S
    guard.settle(guard.admit(4))
    assert (guard.state, guard.problem) == (State.CLOSED, None)
    fail(guard, 2)
    assert guard.state is State.CLOSED
    fail(guard)
    assert "again in 30 s" in guard.problem


def test_each_bad_probe_doubles_the_pause(guard, clock):
    """A version that stays broken is tried less and less often, but always again."""
    fail(guard, 3)
    for pause_s in (30, 60, 100, 100):
        assert f"again in {pause_s} s" in guard.problem
        clock.now_ns += pause_s * S
        fail(guard)


def test_a_lost_probe_is_not_the_last(guard, clock):
    """A probe whose client left is never settled; after another pause the next request tries, and the first is void."""
    fail(guard, 3)
    clock.now_ns += 30 * S
    lost = guard.admit(4)
    assert "being tried again" in guard.problem
    clock.now_ns += 30 * S
    assert guard.admit(4) is not None
    guard.settle(lost)
    assert guard.state is State.PROBING


def test_late_outcomes_do_not_count(guard, clock):
    """What was begun before the circuit opened neither closes it nor lengthens the pause."""
    early, other = guard.admit(4), guard.admit(4)
    fail(guard, 3)
    guard.settle(early)
    assert guard.state is State.OPEN
    clock.now_ns += 30 * S
    probe = guard.admit(4)
    guard.settle(other, "late")
    assert guard.state is State.PROBING
    guard.settle(probe)
    assert guard.state is State.CLOSED


def test_another_version_starts_anew(guard):
    """A new challenger is not punished for the one before; that one's outcomes do not count for it."""
    fail(guard, 2)
    old = guard.admit(4)
    assert guard.admit(5) is not None
    guard.settle(old, "late")
    fail(guard, 2, version=5)
    assert guard.state is State.CLOSED
    fail(guard, 1, version=5)
    assert guard.state is State.OPEN
    assert guard.admit(6) is not None


class GuardMachine(RuleBasedStateMachine):
    """Any order of requests, outcomes, versions and time."""

    def __init__(self):
        super().__init__()
        self.clock = Clock()
        self.guard = Guard(
            "m", max_failures=3, window_ns=10 * S, pause_ns=30 * S, max_pause_ns=100 * S, clock_ns=self.clock
        )
        self.version = 1
        self.tickets = []
        self.opened_ns = None

    @rule(ns=st.sampled_from([1, S, 10 * S, 29 * S, 30 * S, 100 * S]))
    def wait(self, ns):
        self.clock.now_ns += ns

    @rule()
    def ask(self):
        before = self.guard.state
        ticket = self.guard.admit(self.version)
        if before is State.CLOSED:
            assert ticket is not None
        if ticket is not None:
            self.tickets.append(ticket)
            if before is not State.CLOSED and self.guard.state is not State.CLOSED:
                assert self.clock.now_ns - self.opened_ns >= 30 * S
                assert self.guard.state is State.PROBING
                self.opened_ns = self.clock.now_ns

    @precondition(lambda self: self.tickets)
    @rule(data=st.data(), failure=st.sampled_from([None, "broken"]))
    def settle(self, data, failure):
        ticket = self.tickets.pop(data.draw(st.integers(0, len(self.tickets) - 1)))
        before = self.guard.state
        self.guard.settle(ticket, failure)
        if self.guard.state is State.OPEN and before is not State.OPEN:
            assert failure is not None
            self.opened_ns = self.clock.now_ns
        if before is State.OPEN:
            assert self.guard.state is State.OPEN
        if before is State.PROBING and self.guard.state is State.CLOSED:
            assert failure is None

    @rule()
    def change_version(self):
        self.version += 1
        assert self.guard.admit(self.version) is not None
        assert self.guard.state is State.CLOSED

    @invariant()
    def what_is_out_has_a_reason(self):
        assert (self.guard.problem is None) is (self.guard.state is State.CLOSED)

    @rule()
    def always_tried_again(self):
        self.clock.now_ns += 100 * S
        self.tickets.append(self.guard.admit(self.version))
        assert self.tickets[-1] is not None
        self.opened_ns = self.clock.now_ns


GuardMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestGuardMachine = GuardMachine.TestCase
