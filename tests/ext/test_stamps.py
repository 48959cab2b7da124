"""How long bytes waited in their socket, by the kernel's stamps: exact, asked for seldom, and doubted when the clock is set."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiercel._hot.stamps import Stamps

MS = 1_000_000
SECOND = 1000 * MS
HARDLY, QUIET = MS, 250_000
SOME = st.integers(0, 10 * SECOND)


class Clocks:
    """A monotonic clock and one on the wall, as the machine has them now; moved by hand."""

    def __init__(self):
        self.now, self.wall = time.monotonic_ns(), time.time_ns()

    def pass_(self, ns, slewed=0):
        self.now += ns
        self.wall += ns + slewed

    def read(self, stamps, waited=None, *, came=None):
        """What was stamped so long ago, or at that moment; 0: the kernel did not say."""
        came = self.wall - waited if came is None else came
        return stamps.waited_ns(came, self.now, self.wall, self.now)


@given(st.lists(st.tuples(SOME, SOME), max_size=20))
def test_what_the_kernel_stamped_is_what_was_waited(each):
    """Whatever passes between reads, and a stamp from a moment to come is no wait."""
    clocks, stamps = Clocks(), Stamps()
    for passed, waited in each:
        clocks.pass_(passed)
        assert clocks.read(stamps, waited) == waited
    assert clocks.read(stamps, -5) == 0


def test_nobody_is_asked_for_a_while_after_one_who_hardly_waited():
    """While one waited longer, everybody is asked."""
    clocks, stamps = Clocks(), Stamps()
    assert stamps.asks(clocks.now)
    clocks.read(stamps, HARDLY)
    assert not stamps.asks(clocks.now)
    clocks.pass_(QUIET - 1)
    assert not stamps.asks(clocks.now)
    clocks.pass_(1)
    assert stamps.asks(clocks.now)
    clocks.read(stamps, HARDLY + 1)
    assert stamps.asks(clocks.now)


def test_a_kernel_that_does_not_stamp_is_not_asked_all_the_time():
    clocks, stamps = Clocks(), Stamps()
    assert clocks.read(stamps, came=0) == -1
    assert not stamps.asks(clocks.now)


@pytest.mark.parametrize("step", [-3600 * SECOND, -2 * MS, 2 * MS, 3600 * SECOND])
def test_a_clock_that_was_set_is_not_believed_until_all_is_read_that_was_stamped_before(step):
    """Not the first read after it, nor those of a minute; nobody then counts as having waited for hours, or for nothing."""
    clocks, stamps = Clocks(), Stamps()
    clocks.pass_(SECOND)
    assert clocks.read(stamps, MS) == MS
    came = clocks.wall
    clocks.pass_(MS // 2)
    clocks.wall += step
    assert clocks.read(stamps, came=came) == -1
    clocks.pass_(59 * SECOND)
    assert clocks.read(stamps, came=came) == -1
    clocks.pass_(2 * SECOND)
    assert clocks.read(stamps, MS) == MS


@given(st.lists(st.tuples(st.integers(0, 3600 * SECOND), st.floats(-0.0005, 0.0005)), max_size=20))
def test_a_clock_that_is_slewed_is_believed(each):
    """By half a part in a thousand, which is as much as a kernel slews, over hours without a request."""
    clocks, stamps = Clocks(), Stamps()
    for passed, rate in each:
        clocks.pass_(passed, int(passed * rate))
        assert clocks.read(stamps, 7 * MS) == 7 * MS


@given(st.lists(st.tuples(SOME, SOME, SOME), max_size=20))
def test_stalls_between_looks_at_clocks_are_no_setting(each):
    """However long the machine stood still before and after the wall clock was read."""
    clocks, stamps = Clocks(), Stamps()
    for passed, before, after in each:
        clocks.pass_(passed)
        begun = clocks.now
        clocks.pass_(before)
        wall = clocks.wall
        clocks.pass_(after)
        assert stamps.waited_ns(wall - 7 * MS, begun, wall, clocks.now) == 7 * MS


@given(st.lists(st.tuples(SOME, SOME), max_size=5), st.sampled_from([-1, 1]))
def test_a_setting_is_seen_after_stalls_too(each, sign):
    """What was learned of the clocks in stalls does not hide it."""
    clocks, stamps = Clocks(), Stamps()
    for before, after in each:
        begun = clocks.now
        clocks.pass_(before)
        wall = clocks.wall
        clocks.pass_(after)
        stamps.waited_ns(wall, begun, wall, clocks.now)
    clocks.wall += sign * 2 * MS
    assert clocks.read(stamps, MS) == -1
