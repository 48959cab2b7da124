"""The watching process as the control process keeps it: there, there again after a kill, and gone in the end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from dataclasses import replace

import pytest

from tiercel.http import watcher
from tiercel.http.watcher import Watcher
from tiercel.settings import MonitorSettings, load_settings

#: Reads its settings, and lives until told to end or until whoever started it is gone.
OBEDIENT = "import sys; sys.stdin.readline(); sys.stdin.read()"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "tiercel.toml").write_text("")
    return load_settings(tmp_path)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(watcher, "POLL_S", 0.01)
    monkeypatch.setattr(watcher, "FIRST_BACKOFF_S", 0.02)
    monkeypatch.setattr(watcher, "STOP_GRACE_S", 0.3)


def keep(settings, code, story):
    """Run a story beside a kept process; what is left of it is looked at afterwards."""

    async def told():
        kept = Watcher(settings, [sys.executable, "-c", code])
        task = asyncio.create_task(kept.keep())
        try:
            return await story(kept)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert kept.pid is None

    return asyncio.run(told())


async def until(condition):
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("waited in vain")


def is_there(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_it_is_started_again_after_a_kill(settings):
    """A process that was killed is replaced, and counted."""

    async def story(kept):
        await until(lambda: kept.pid)
        first = kept.pid
        os.kill(first, signal.SIGKILL)
        await until(lambda: kept.pid not in {None, first})
        assert kept.n_restarts == 1
        return kept.pid

    assert not is_there(keep(settings, OBEDIENT, story))


def test_it_is_of_the_servers_session_and_of_a_group_of_its_own(settings):
    """Ctrl-C does not reach it; and it stands back behind workers, which it cannot from another session."""

    async def story(kept):
        await until(lambda: kept.pid)
        assert os.getsid(kept.pid) == os.getsid(0)
        assert os.getpgid(kept.pid) == kept.pid

    keep(settings, OBEDIENT, story)


def test_one_that_dies_at_once_is_started_ever_later(settings):
    """A process that cannot start is tried again without end, and without keeping the machine busy."""

    async def story(kept):
        await until(lambda: kept.n_restarts >= 3)
        assert kept._kept.back_off() == pytest.approx(0.02 * 2**kept._kept.n_failures / 2)

    keep(settings, "import sys; sys.exit(3)", story)


def test_one_that_is_deaf_is_killed(settings):
    """Who does not end in time is ended."""

    async def story(kept):
        await until(lambda: kept.pid)
        await asyncio.sleep(0.2)
        return kept.pid

    assert not is_there(keep(settings, DEAF, story))


def test_switched_off_there_is_none(settings):
    """With monitor.enabled = false nothing is started."""

    async def story(kept):
        await asyncio.sleep(0.05)
        assert kept.pid is None

    keep(replace(settings, monitor=MonitorSettings(enabled=False)), OBEDIENT, story)
