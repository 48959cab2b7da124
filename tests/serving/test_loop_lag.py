"""What a request waited before it was read is known from how late a timer runs."""

from __future__ import annotations

import pytest

from tiercel.serving.loop_lag import LoopLag


class FakeLoop:
    """A loop's clock and its timers, which run when told."""

    def __init__(self):
        self.now_ns = 7_000_000_000
        self.timers = []

    def call_later(self, delay_s, call):
        self.timers.append((delay_s, call))

    def run_timer(self):
        self.timers.pop(0)[1]()


@pytest.fixture
def loop():
    return FakeLoop()


@pytest.fixture
def lag(loop):
    return LoopLag(lambda: loop.now_ns, period_us=2000)


def test_at_rest_nothing_is_behind(lag, loop):
    """Without traffic there is no timer and no lag, however long that lasts."""
    loop.now_ns += 10**12
    assert (lag.lag_us(), lag.is_armed) == (0, False)


@pytest.mark.parametrize(("elapsed_us", "lag_us"), [(0, 0), (2000, 0), (2001, 1), (9000, 7000)])
def test_an_overdue_timer_shows_while_the_turn_lasts(lag, loop, elapsed_us, lag_us):
    """Within a long turn the lag grows with it: nothing has to run for it to be seen."""
    lag.arm()
    loop.now_ns += 1000 * elapsed_us
    assert lag.lag_us() == lag_us


def test_the_last_turn_counts_until_the_next_look(lag, loop):
    """What was read after a long turn may have waited for all of it, and for its place in this one."""
    lag.arm()
    loop.now_ns += 8_000_000
    lag.run(again=True)
    assert lag.lag_us() == 6000
    loop.now_ns += 3_000_000
    assert lag.lag_us() == 7000
    lag.run(again=True)
    assert lag.lag_us() == 1000
    loop.now_ns += 2_000_000
    lag.run(again=True)
    assert lag.lag_us() == 0


def test_the_timer_runs_with_the_traffic(lag, loop):
    """The first request starts it, every period with a request keeps it, the first without stops it."""
    requests = []
    seen = [0]

    def is_active():
        before, seen[0] = seen[0], len(requests)
        return seen[0] > before

    lag.wake()
    assert loop.timers == []  # nobody drives it yet
    lag.watch(loop, is_active)
    for _ in range(3):
        requests.append(1)
        lag.wake()
    assert [delay_s for delay_s, _ in loop.timers] == [0.002]
    loop.now_ns += 5_000_000
    loop.run_timer()
    assert (len(loop.timers), lag.lag_us()) == (1, 3000)
    loop.now_ns += 5_000_000
    loop.run_timer()
    assert (loop.timers, lag.lag_us(), lag.is_armed) == ([], 0, False)
    requests.append(1)
    lag.wake()
    assert len(loop.timers) == 1
