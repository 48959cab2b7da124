"""Priorities are those of one thread, and nothing fails where a system has none."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
import threading

import pytest

from tiercel import priority

linux = pytest.mark.skipif(sys.platform != "linux", reason="threads have a priority of their own on Linux only")


def on_a_thread(act):
    found = []
    thread = threading.Thread(target=lambda: found.append(act()))
    thread.start()
    thread.join()
    return found[0]


def granted_slice_ns():
    """What sched_getattr says of the calling thread."""
    number = {"x86_64": 315, "aarch64": 275}[platform.machine()]
    buffer = ctypes.create_string_buffer(56)
    assert ctypes.CDLL(None).syscall(number, 0, buffer, 56, 0) == 0
    return struct.unpack_from("=IIQiIQ", buffer)[5]


@linux
def test_standing_back_is_for_the_calling_thread_alone():
    """A thread that stands back is nicer; the others are as they were."""
    before = os.getpriority(os.PRIO_PROCESS, 0)

    def act():
        priority.stand_back()
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    assert on_a_thread(act) == max(before, priority.NICENESS)
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


@linux
def test_standing_aside_is_for_the_calling_thread_and_those_it_starts():
    """A thread that stands aside is of the idle class, and so is one it starts; the others are as they were."""
    before = os.sched_getscheduler(0)

    def policy():
        return os.sched_getscheduler(threading.get_native_id())

    def act():
        priority.stand_aside()
        return policy(), on_a_thread(policy), os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    assert on_a_thread(act) == (
        os.SCHED_IDLE,
        os.SCHED_IDLE,
        max(os.getpriority(os.PRIO_PROCESS, 0), priority.NICENESS),
    )
    assert os.sched_getscheduler(0) == before


@linux
def test_short_slices_are_what_the_kernel_says_it_gave():
    """Where asking succeeds, the kernel reports the slice that was asked for, and the niceness is as before."""

    def act():
        niceness = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        granted = priority.ask_for_short_slices()
        assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == niceness
        return granted, granted_slice_ns() if granted else None

    granted, slice_ns = on_a_thread(act)
    assert slice_ns in {priority.SLICE_NS if granted else None, 0}  # 0: a kernel before 6.12 ignores it


@linux
def test_where_the_idle_class_is_refused_a_thread_stands_back(monkeypatch):
    """A sandbox that forbids the call leaves a nice thread, and no error."""

    def refused(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", refused)

    def act():
        priority.stand_aside()
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    assert on_a_thread(act) >= priority.NICENESS


def test_a_system_without_the_call_says_no(monkeypatch):
    """On an unknown processor nothing is called."""
    monkeypatch.setattr(platform, "machine", lambda: "vax")
    assert not priority.ask_for_short_slices()
