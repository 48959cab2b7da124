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
    """A byte that stood in line while the loop was busy says for how long, and is believed until the next one is back."""

    async def main():
        wait = SocketWait(asyncio.get_running_loop())
        assert wait.probe() == 0
        await asyncio.sleep(0.01)
        assert wait.probe() < 20_000_000
        time.sleep(0.05)  # noqa: ASYNC251 - the loop is to be busy
        assert wait.probe() >= 50_000_000
        await asyncio.sleep(0)
        await asyncio.sleep(0.001)
        assert 50_000_000 <= wait.probe() < 200_000_000
        wait.close()

    run(main())


def test_an_idle_server_sends_nothing(run):
    """Nothing is on its way unless somebody probes, and what was measured long ago is forgotten."""
    now = [10**12]

    async def main():
        loop = asyncio.get_running_loop()
        wait = SocketWait(loop, lambda: now[0])
        assert wait.probe() == 0
        now[0] += 300_000_000
        await asyncio.sleep(0.01)
        assert wait.probe() == 300_000_000
        now[0] += PERIOD_NS
        assert wait.probe() == 300_000_000  # and another byte is under way
        now[0] += 1
        await asyncio.sleep(0.01)
        now[0] += STALE_NS + 2
        assert wait.probe() == 0
        wait.close()

    run(main())


def test_closing_after_the_loop(run):
    """It can be closed when its loop is gone."""

    async def main():
        return SocketWait(asyncio.get_running_loop())

    run(main()).close()
