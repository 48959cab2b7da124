"""What requests wait in their sockets, measured with a byte that waits as they do."""

from __future__ import annotations

import asyncio
import time

import pytest
import uvloop

from tiercel.http.socket_wait import PERIOD_NS, STALE_NS, SocketWait


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request):
    """Run a coroutine on a loop of each kind."""

    def run(coroutine):
        with asyncio.Runner(loop_factory=request.param) as runner:
            return runner.run(coroutine)

    return run


def test_a_busy_loop_is_measured(run):
    """A byte that stood in line while the loop was busy says for how long, and no longer than until that is over."""

    async def main():
        wait = SocketWait(asyncio.get_running_loop())
        assert wait.probe() == 0
        await asyncio.sleep(0.01)
        assert wait.probe() < 20_000_000
        time.sleep(0.05)  # noqa: ASYNC251 - the loop is to be busy
        assert wait.probe() >= 50_000_000
        await asyncio.sleep(0.01)
        assert wait.probe() < 20_000_000
        wait.close()

    run(main())


def test_an_idle_server_sends_nothing(run):
    """Nothing is on its way unless somebody probes, and what was measured long ago is forgotten."""
    now = [10**12]

    async def main():
        loop = asyncio.get_running_loop()
        wait = SocketWait(loop, lambda: now[0])
        assert wait.probe() == 0
        now[0] += PERIOD_NS
        await asyncio.sleep(0.01)
        assert wait.probe() == PERIOD_NS
        now[0] += PERIOD_NS
        assert wait.probe() == PERIOD_NS  # and another byte is under way
        now[0] += 1
        await asyncio.sleep(0.01)
        now[0] += STALE_NS + PERIOD_NS + 2
        assert wait.probe() == 0
        wait.close()

    run(main())


class Backlog:
    """A loop whose reader is called by hand."""

    def add_reader(self, _socket, seen):
        self.seen = seen

    def remove_reader(self, _socket):
        pass


def test_a_backlog_is_believed_until_it_is_seen_to_be_over():
    """After a long wait the next byte is under way at once: until it is back, who is read has waited as long."""
    now, loop = [10**12], Backlog()
    wait = SocketWait(loop, lambda: now[0])
    assert wait.probe() == 0
    for _ in range(3):
        now[0] += 80_000_000
        assert wait.probe() == 80_000_000
        loop.seen()
        assert wait.probe() == 80_000_000
    now[0] += 50_000
    loop.seen()
    assert wait.probe() == 50_000
    wait.close()


def test_closing_after_the_loop(run):
    """It can be closed when its loop is gone."""

    async def main():
        return SocketWait(asyncio.get_running_loop())

    run(main()).close()
