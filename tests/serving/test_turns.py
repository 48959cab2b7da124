"""What a thread waits for its turns of the processor, and how much longer work takes for it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiercel.serving import turns
from tiercel.serving.turns import Turns, waited_ns

MS = 1_000_000


def is_counted():
    """Whether the kernel counts; the third number is of turns, of which everybody has had some."""
    found = Path("/proc/thread-self/schedstat")
    return found.exists() and int(found.read_text().split()[2]) > 0


counted = pytest.mark.skipif(not is_counted(), reason="no kernel that counts waits")


def took_and_waited(work):
    """Nanoseconds of a call, those of them on the processor, and those that the thread waited for it."""
    wall, cpu, waited = time.monotonic_ns(), time.thread_time_ns(), waited_ns()
    work()
    return time.monotonic_ns() - wall, time.thread_time_ns() - cpu, waited_ns() - waited


def work_for(ms):
    ends_ns = time.thread_time_ns() + ms * MS
    while time.thread_time_ns() < ends_ns:
        pass


def alone_on(core, work):
    """`took_and_waited` on a thread of its own, that runs on one core only."""

    def run():
        os.sched_setaffinity(0, {core})  # of this thread
        return took_and_waited(work)

    with ThreadPoolExecutor(1) as executor:
        return executor.submit(run).result()


@counted
def test_who_shares_a_core_waits():
    """Beside a process that never sleeps a thread waits a good part of what it computes; sleep is not a wait."""
    core = min(os.sched_getaffinity(0))
    code = f"import os\nos.sched_setaffinity(0, {{{core}}})\nprint(flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as neighbour:
        try:
            neighbour.stdout.readline()
            took, cpu, waited = alone_on(core, lambda: work_for(60))
            assert waited > 0.2 * cpu
            assert cpu + waited <= 1.05 * took  # the rest is the hypervisor's
        finally:
            neighbour.kill()
    took, cpu, waited = took_and_waited(lambda: time.sleep(0.1))
    assert took >= 100 * MS
    assert waited < 0.7 * took


@counted
def test_each_thread_has_its_own_count_and_leaves_nothing_open():
    def n_open(thread_id):
        links = [str(at.readlink()) for at in Path("/proc/self/fd").iterdir() if at.is_symlink()]
        return sum(each.endswith(f"/task/{thread_id}/schedstat") for each in links)

    inside = []

    def run():
        waited_ns()
        waited_ns()
        inside.append((threading.get_native_id(), n_open(threading.get_native_id())))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    ((thread_id, opened),) = inside
    assert opened == 1
    assert n_open(thread_id) == 0


def test_where_nobody_counts_nobody_waits(monkeypatch):
    monkeypatch.setattr(turns, "_FILE", "/nowhere")
    with ThreadPoolExecutor(1) as executor:
        assert executor.submit(waited_ns).result() == 0


def test_a_part_of_a_core_stretches_work():
    """Waits that grow with work are foreseen for work of any length."""
    learned, rng = Turns(), np.random.default_rng(1)
    for _ in range(200):
        work = rng.uniform(1, 20)
        learned.learn(int(work * MS), int(3 * work * MS * rng.lognormal(0, 0.2)))
    assert learned.stretch == pytest.approx(4, rel=0.15)


def test_a_wait_for_one_turn_does_not():
    """What is waited once, however long the work is, makes long work no longer."""
    learned, rng = Turns(), np.random.default_rng(2)
    for _ in range(200):
        learned.learn(int(rng.uniform(0.1, 20) * MS), int(rng.uniform(5, 7) * MS))
    assert 1 <= learned.stretch < 1.25


@pytest.mark.parametrize(("work", "wait", "stretch"), [(30, 90, 3.7), (3, 9, 2.5), (0.1, 3, 1.97)])
def test_batches_of_one_size_are_supposed_to_wait_for_turns(work, wait, stretch):
    """Who works for much longer than a turn waits for many, in proportion; who works for much less waits for one to end."""
    learned = Turns()
    for _ in range(200):
        learned.learn(int(work * MS), int(wait * MS))
    assert learned.stretch == pytest.approx(stretch, rel=0.02)


def test_it_is_over_when_the_neighbour_is():
    learned = Turns()
    for k in range(100):
        learned.learn((1 + k % 9) * MS, 3 * (1 + k % 9) * MS)
    assert learned.stretch > 3.5
    for k in range(100):
        learned.learn((1 + k % 9) * MS, 0)
    assert learned.stretch < 1.05


@pytest.mark.parametrize("work_us", [20, 200, 2000])
@pytest.mark.parametrize("n_before", [0, 1, 100])
def test_one_stall_counts_little(n_before, work_us):
    """Not even the first batch's: what it waited is not foreseen for others that work longer."""
    learned = Turns()
    for k in range(n_before):
        learned.learn((1 + k % 5) * work_us * 1000, 0)
    learned.learn(2 * work_us * 1000, 1000 * MS)
    assert learned.stretch <= (2.5 if n_before < 2 else 1.2)
    for k in range(60):
        learned.learn((1 + k % 5) * work_us * 1000, 0)
    assert learned.stretch < 1.05


@given(st.lists(st.tuples(st.integers(0, 10**11), st.integers(0, 10**11)), max_size=60))
def test_whatever_is_seen_it_stays_within_what_was(seen):
    """Never quicker than the processor, never slower than all waits together were."""
    learned = Turns()
    for work, wait in seen:
        learned.learn(work, wait)
    assert learned.stretch >= 1
    if not any(wait for _, wait in seen):
        assert learned.stretch == 1
    if seen:
        longest, shortest = max(wait for _, wait in seen), max(1, min(work for work, _ in seen))
        assert learned.stretch - 1 <= longest / shortest * (1 + 1e-9)
