"""What is not realtime gets what realtime leaves, in turns that are short, and hears at once when that is not enough."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiercel.errors import CapacityError
from tiercel.serving.loop_share import MIN_SHARE, RESERVE, LoopShare

MS_NS = 1_000_000


class World:
    """A share over a clock, a CPU clock and timers of the test's."""

    def __init__(self, turn_us=10_000, cost_us=1000):
        self.now_ns = self.cpu_ns = 0
        self.timers = []
        self.share = LoopShare(
            turn_us, cost_us, lambda: self.now_ns, lambda: self.cpu_ns, lambda s, call: self.timers.append((s, call))
        )

    def work(self, ms, *, charged=True):
        self.now_ns += int(ms * MS_NS)
        self.cpu_ns += int(ms * MS_NS)
        if charged:
            self.share.spend(int(ms * MS_NS))

    def wait(self, ms):
        self.now_ns += int(ms * MS_NS)

    def run_timer(self):
        delay_s, call = self.timers.pop(0)
        self.now_ns += int(delay_s * 1e9) + 1
        call()

    def ask(self, log, name, patience_us=50_000):
        def wake(error):
            log.append((name, error))
            return True

        self.share.ask(patience_us, wake)


def test_an_idle_worker_admits_at_once():
    """Nobody waits while the bucket is not empty."""
    world, log = World(), []
    world.ask(log, "a", patience_us=0)
    assert log == [("a", None)]
    assert world.timers == []


def test_a_burst_is_let_in_one_at_a_time():
    """Who finds the bucket empty waits in line; each begins when the one before has left and its time has flowed in."""
    world, log = World(), []
    world.work(5)
    assert world.share.predicted_wait_us() > 0
    for name in "abc":
        world.ask(log, name, 10**6)
    assert (log, len(world.timers)) == ([], 1)
    for i in range(3):
        while len(log) == i:
            world.run_timer()
        assert [name for name, _ in log] == list("abc"[: i + 1])
        world.now_ns += 20 * MS_NS
        world.share.leave(20 * MS_NS)
    assert all(error is None for _, error in log)
    assert world.timers == []


def test_nobody_overtakes_the_line():
    """Who comes while somebody waits waits behind, although there may be time again."""
    world, log = World(), []
    world.work(5)
    world.ask(log, "a")
    world.ask(log, "b")
    world.run_timer()
    world.wait(5)
    world.ask(log, "c")
    assert [name for name, _ in log] == ["a"]
    world.share.leave(1)
    world.share.leave(1)
    world.share.leave(1)
    assert [name for name, _ in log] == ["a", "b", "c"]


@pytest.mark.parametrize(("spare_us", "is_admitted"), [(0, True), (-1, False)])
def test_who_cannot_wait_is_refused_at_once(spare_us, is_admitted):
    """A turn that would come too late, by a microsecond, is refused with the predicted wait; nothing is queued."""
    world, log = World(), []
    world.work(5)
    world.ask(log, "a")
    wait_us = world.share.predicted_wait_us()
    if is_admitted:
        world.ask(log, "b", wait_us + spare_us)
    else:
        with pytest.raises(CapacityError, match=r"90% of its time") as refused:
            world.ask(log, "b", wait_us + spare_us)
        assert refused.value.predicted_wait_us == wait_us


def test_what_became_late_is_dropped_before_it_is_begun():
    """Whoever's time is over when its turn comes is refused then, and the next goes on."""
    world, log = World(), []
    world.work(5)
    world.ask(log, "a", 6000)
    world.ask(log, "b", 50_000)
    world.wait(10)
    world.run_timer()
    assert [name for name, _ in log] == ["a", "b"]
    assert isinstance(log[0][1], CapacityError)
    assert log[1][1] is None


def test_realtime_takes_its_time_back():
    """The share is what others leave within a tenth of a second, less the reserve, and never quite nothing."""
    world = World()
    assert world.share.share == pytest.approx(1 - RESERVE)
    for others, expected in ((0.3, 0.6), (0.6, 0.3), (1.0, MIN_SHARE), (0.0, 1 - RESERVE)):
        world.work(100 * others, charged=False)
        world.wait(100 * (1 - others) + 0.001)
        world.share.spend(0)
        assert world.share.share == pytest.approx(expected, abs=1e-3)
        assert world.share.use == pytest.approx(others, abs=1e-3)


def test_what_is_charged_is_not_realtimes():
    """The others' own work does not count as realtime's, or they would starve themselves."""
    world = World()
    world.work(80)
    world.wait(21)
    world.share.spend(0)
    assert world.share.share == pytest.approx(1 - RESERVE)
    assert world.share.use == pytest.approx(80 / 101, abs=1e-3)


@pytest.mark.parametrize("others", [0.0, 0.5, 0.85])
def test_a_burst_after_a_pause_is_one_short_turn(others):
    """However full the bucket is, work that never waits keeps the loop for at most the turn and one piece of work."""
    world = World(turn_us=4000)
    world.work(200 * others, charged=False)
    world.wait(200 * (1 - others))
    world.share.spend(0)
    world.wait(50)
    begin_ns, log = world.now_ns, []
    for i in range(1000):
        world.ask(log, i)
        if len(log) <= i:
            break
        world.now_ns += MS_NS // 10
        world.share.leave(MS_NS // 10)
    assert 0 < world.now_ns - begin_ns <= 4 * MS_NS + MS_NS // 10


def test_costs_are_learned():
    """The predicted wait follows what work really costs."""
    world = World(cost_us=100)
    for _ in range(100):
        world.wait(20)
        world.ask([], "a")
        world.now_ns += 3 * MS_NS
        world.share.leave(3 * MS_NS)
    world.work(10)
    alone_us = world.share.predicted_wait_us()
    world.ask([], "a", 10**6)
    assert world.share.predicted_wait_us() - alone_us == pytest.approx(3000 / (1 - RESERVE), rel=0.02)


def test_is_idle():
    """There is time to spare only where the bucket is filling, little is used, and nobody waits."""
    world = World()
    assert world.share.is_idle()
    world.work(3)
    assert not world.share.is_idle()
    world.wait(200)
    assert world.share.is_idle()
    world.work(60, charged=False)
    world.wait(41)
    world.work(0.001)
    assert not world.share.is_idle()  # six tenths were used
    world.wait(101)
    assert world.share.is_idle()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.sampled_from("awtl"), st.integers(0, 8)), max_size=60))
def test_everybody_is_woken_once_and_never_two_at_a_time(steps):
    """Whatever the order of comings, waits and leavings: each is woken once, in order, and from the line only alone."""
    world, woken, inside, n_asked = World(), [], [0], 0
    asking = [None]

    def asked(name):
        def wake(error):
            woken.append(name)
            if error is None:
                assert asking[0] == name or inside[0] == 0
                inside[0] += 1
            return True

        return wake

    for step, size in steps:
        if step == "a":
            asking[0] = n_asked
            try:
                world.share.ask(1000 * size, asked(n_asked))
                n_asked += 1
            except CapacityError:
                pass
            asking[0] = None
        elif step == "w":
            world.wait(size)
        elif step == "t" and world.timers:
            world.run_timer()
        elif step == "l" and inside[0]:
            inside[0] -= 1
            world.now_ns += size * MS_NS
            world.share.leave(size * MS_NS)
    while len(woken) < n_asked:
        if inside[0]:
            inside[0] -= 1
            world.share.leave(MS_NS)
        else:
            world.run_timer()
    assert woken == list(range(n_asked))


def test_cancelled_in_line():
    """A client that leaves while it waits, or in the turn it is let in, takes nobody's place."""

    async def run():
        world = World()
        world.work(5)
        tasks = [asyncio.create_task(world.share.enter(50_000)) for _ in range(3)]
        await asyncio.sleep(0)
        tasks[0].cancel()  # waiting
        await asyncio.sleep(0)
        world.run_timer()  # lets the second in, which is cancelled before it can begin
        tasks[1].cancel()
        await asyncio.wait(tasks, timeout=5)
        assert [task.cancelled() for task in tasks] == [True, True, False]
        world.share.leave(MS_NS)
        world.wait(20)
        await world.share.enter(0)  # and nobody is left in line or inside

    asyncio.run(run())


def test_entering_raises_where_it_waits():
    """The refusal of one that became late in line is raised to it."""

    async def run():
        world = World()
        world.work(5)
        task = asyncio.create_task(world.share.enter(6000))
        await asyncio.sleep(0)
        world.wait(10)
        world.run_timer()
        with pytest.raises(CapacityError):
            await task
        world.wait(10)
        await world.share.enter(0)  # and nobody is left inside

    asyncio.run(run())


def test_late_in_line_is_told_although_nothing_flows_in():
    """With next to no share left, who waits in vain hears of it soon after its time is over, not when the debt is paid."""
    world, log = World(), []
    world.work(200, charged=False)
    world.share.spend(20 * MS_NS)
    assert world.share.share == MIN_SHARE
    with pytest.raises(CapacityError):
        world.ask(log, "a", 50_000)
    world.ask(log, "b", 10_000_000)
    assert world.timers[0][0] == 0.01
    world.wait(10_000)
    world.run_timer()
    assert isinstance(log[0][1], CapacityError)
    assert world.timers == []


def test_on_a_real_loop():
    """With the loop's own clock and timers a line moves, one after the other."""

    async def run():
        share, order = LoopShare(2000), []

        async def answer(number):
            await share.enter(5_000_000)
            order.append(number)
            share.leave(MS_NS)

        share.spend(5 * MS_NS)
        async with asyncio.timeout(5):
            await asyncio.gather(*map(answer, range(5)))
        assert order == list(range(5))

    asyncio.run(run())
