"""What pages are made of is read once however many look, on threads that stand back, and never on the event loop."""

from __future__ import annotations

import asyncio
import os
import sys
import threading

import pytest

from tiercel.http.dashboard import shelf as shelves
from tiercel.http.dashboard.shelf import Failed, Pending, Shelf
from tiercel.priority import NICENESS


class Clock:
    now_s = 0.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def shelf(clock):
    found = Shelf(clock)
    yield found
    found.close()


def test_many_who_ask_at_once_wait_for_one_reading(shelf, clock):
    """A value is made once for all who wait, kept for its time, then made anew; not on the loop's thread."""
    made = []

    def make():
        made.append(threading.current_thread())
        return len(made)

    async def ask():
        assert await asyncio.gather(*(shelf.get("k", make, 2.0) for _ in range(20))) == [1] * 20
        clock.now_s = 1.9
        assert await shelf.get("k", make, 2.0) == 1
        clock.now_s = 2.1
        assert await shelf.get("k", make, 2.0) == 2

    asyncio.run(ask())
    assert threading.main_thread() not in made


def test_what_took_long_is_kept_longer(shelf, clock, monkeypatch):
    """Ten times as long as it took, ten seconds at most; where no age is allowed, never."""
    took_s = [0.5]
    monkeypatch.setattr(shelves, "_timed", lambda make: (make(), took_s[0]))
    made = []

    def make():
        made.append(1)
        return len(made)

    async def ask(age_s, max_age_s=2.0):
        clock.now_s += age_s
        return await shelf.get("k", make, max_age_s)

    async def story():
        assert [await ask(0), await ask(4.9), await ask(0.2)] == [1, 1, 2]
        took_s[0] = 60.0
        assert [await ask(5.1), await ask(9.9), await ask(0.2)] == [3, 3, 4]
        assert await ask(0.1, 0) == 5

    asyncio.run(story())


def test_slow_things_begin_when_the_page_is_made(shelf):
    """What a page peeks at is not begun while that page is waited for, nor is what stood in line before it."""
    order, begun, may_end, gate = [], threading.Event(), threading.Event(), threading.Event()

    def first():
        begun.set()
        assert may_end.wait(5)
        order.append("first")

    def page():
        may_end.set()
        gate.wait(0.2)  # nobody opens it before the page is made: who begins too early does so within this time
        order.append("page")

    def slow(name):
        order.append(name)
        gate.set()

    async def ask():
        shelf.peek("first", first, 9)
        assert isinstance(shelf.peek("second", lambda: slow("second"), 9), Pending)
        assert await asyncio.to_thread(begun.wait, 5)
        assert isinstance(shelf.peek("third", lambda: slow("third"), 9), Pending)
        await shelf.get("page", page, 9)
        await asyncio.gather(*(shelf._making[key] for key in ("second", "third")))

    asyncio.run(asyncio.wait_for(ask(), 20))
    assert order == ["first", "page", "second", "third"]


def test_a_failure_reaches_all_who_wait_and_is_not_kept(shelf):
    """The next one who asks tries again."""
    results = [ValueError("first"), 7]

    def make():
        result = results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    async def ask():
        found = await asyncio.gather(*(shelf.get("k", make, 9) for _ in range(3)), return_exceptions=True)
        assert [str(each) for each in found] == ["first"] * 3
        assert await shelf.get("k", make, 9) == 7

    asyncio.run(ask())


def test_who_goes_away_takes_nothing_from_the_others(shelf):
    """A request that is cancelled leaves the reading to those who still wait."""
    may_end = threading.Event()

    async def ask():
        first = asyncio.ensure_future(shelf.get("k", lambda: may_end.wait(10), 9))
        second = asyncio.ensure_future(shelf.get("k", lambda: may_end.wait(10), 9))
        await asyncio.sleep(0.01)
        first.cancel()
        may_end.set()
        assert await second is True

    asyncio.run(ask())


def test_slow_things_are_shown_when_they_are_there(shelf, clock):
    """Pending at once, the value when made, the old one while it is made anew, and the reason where it failed."""
    values = iter([1, 2])

    async def ask():
        assert isinstance(shelf.peek("k", lambda: next(values), 10), Pending)
        await shelf._making["k"]
        assert shelf.peek("k", lambda: next(values), 10) == 1
        assert "k" not in shelf._making
        clock.now_s = 11
        assert shelf.peek("k", lambda: next(values), 10) == 1
        await shelf._making["k"]
        assert shelf.peek("k", lambda: next(values), 10) == 2
        shelf.peek("bad", lambda: 1 / 0, 10)
        await shelf._making["bad"]
        assert shelf.peek("bad", lambda: 1 / 0, 10) == Failed("division by zero")

    asyncio.run(ask())


def test_a_slow_thing_does_not_keep_pages_waiting(shelf):
    """What a page waits for is read beside what takes long."""
    may_end = threading.Event()

    async def ask():
        shelf.peek("slow", lambda: may_end.wait(10), 10)
        assert await asyncio.wait_for(shelf.get("quick", lambda: 5, 1), 5) == 5
        may_end.set()

    asyncio.run(ask())


@pytest.mark.skipif(sys.platform != "linux", reason="only on Linux a thread has a priority of its own")
def test_its_threads_stand_back(shelf):
    """Both threads let whoever answers requests go first."""

    def niceness():
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    async def ask():
        own = niceness()
        shelf.peek("slow", niceness, 10)
        await shelf._making["slow"]
        assert [await shelf.get("quick", niceness, 1), shelf.peek("slow", niceness, 10)] == [max(own, NICENESS)] * 2

    asyncio.run(ask())


def test_what_nobody_asks_for_goes(shelf, monkeypatch):
    """Of more than are kept, the one goes that was asked for longest ago."""
    monkeypatch.setattr(shelves, "MAX_KEPT", 2)

    async def ask():
        for key in ("a", "b"):
            await shelf.get(key, lambda: 1, 9)
        await shelf.get("a", lambda: 2, 9)
        await shelf.get("c", lambda: 1, 9)
        assert await shelf.get("a", lambda: 2, 9) == 1
        assert await shelf.get("b", lambda: 2, 9) == 2

    asyncio.run(ask())
