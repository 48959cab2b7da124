"""Which thread of a worker goes first on a core that they share: the one that answers requests.

On Linux 6.12 and newer a thread may ask for short turns: one that wants 0.1 ms at a time is put before those that run for
3 ms at a time as soon as it wakes. Without it, a woken event loop waits for whatever has its core - a thread that loads a
base, another process, the kernel's own - to use its turn up. It asks for no more of the processor than before.

Where Linux groups processes by session (`kernel.sched_autogroup_enabled`, usual outside of containers and services), each
session has an equal share of a core, however nice its processes are: whatever is to stand back behind a worker must be of
the worker's session.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import platform
import struct
import sys
import threading

log = logging.getLogger("tiercel.serving")

#: The kernel's least.
SLICE_NS = 100_000
#: Of threads that do not answer requests.
NICENESS = 10
#: struct sched_attr, version 0: size, policy, flags, nice, priority, runtime, deadline, period.
_ATTRIBUTES = struct.Struct("=IIQiIQQQ")
#: The number of the sched_setattr system call, for which C libraries before glibc 2.41 have no function.
_SYSCALLS = {"x86_64": 314, "aarch64": 274}


def ask_for_short_slices() -> bool:
    """Ask for short turns of the processor for the calling thread and those it starts; whether that is possible here.

    PERF: a third off the p99 at half of capacity on a core shared with the kernel's own threads (bench_http).
    """
    number = _SYSCALLS.get(platform.machine())
    if sys.platform != "linux" or number is None or os.sched_getscheduler(0) != os.SCHED_OTHER:
        return False
    niceness = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    attributes = _ATTRIBUTES.pack(_ATTRIBUTES.size, os.SCHED_OTHER, 0, niceness, 0, SLICE_NS, 0, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(number, 0, attributes, 0) != 0:
        log.debug("no short slices: %s", os.strerror(ctypes.get_errno()))
        return False
    return True


def stand_aside() -> None:
    """Run only while nobody else on the core wants to, for work that nobody waits for.

    Unlike a nice thread, one of the idle class goes the moment another wakes, and does not finish its turn first. It may wait
    long for its own on a busy machine, and whoever wants a lock that it holds, the interpreter's too, waits with it: not for
    a process that also answers somebody. Where there is no such class the thread stands back. Children and threads that it
    starts take after it.

    PERF: a process that computes all the time on the server's core moved the p99.9 by 1.4, a nice one by 1.6, one of no
    special priority by 4.4 (bench_aside).
    """
    stand_back()
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.sched_setscheduler(threading.get_native_id(), os.SCHED_IDLE, os.sched_param(0))


def stand_back(niceness: int = NICENESS) -> None:
    """Let others go before the calling thread. Where a thread has no priority of its own, nothing happens.

    It asks for short turns too: a thread that is woken waits for the turn of the one that runs.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
        ask_for_short_slices()
