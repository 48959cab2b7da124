"""Real processes under a `Supervisor`: fresh interpreters, each with a channel; one loop that sleeps until one speaks or dies."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tiercel.serving.channel import Channel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tiercel.serving.channel import Message
    from tiercel.serving.supervisor import Supervisor

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Process:
    """A fresh interpreter. Its last argument is the descriptor of its end of the channel.

    Args:
        command: what to run.
        fds: descriptors it inherits under their numbers.
        first: its first message.
    """

    def __init__(self, command: Sequence[str], fds: Sequence[int], first: Message) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            # Ctrl-C goes to the whole process group. Until the process ignores it, it must not arrive there.
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
            try:
                self._popen = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                    [*command, str(theirs.fileno())], stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(), *fds)
                )
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        ours.setblocking(False)
        self.channel = Channel(ours)
        self.channel.send(first)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._popen.pid

    def send(self, message: Message) -> None:
        """Without waiting."""
        self.channel.send(message)

    def kill(self, signum: int) -> None:
        """Send a signal, unless it has ended."""
        self._popen.send_signal(signum)

    def status(self) -> int | None:
        """Its exit status, once it has ended; reaps it."""
        return self._popen.poll()


def interpreter(module: str, *arguments: str) -> list[str]:
    """The command that runs a module in an interpreter like this one, without the current directory on its path."""
    return [sys.executable, "-P", "-m", module, *arguments]


class ProcessTable:
    """The processes of a supervisor.

    Args:
        make: starts the process of a slot.
    """

    def __init__(self, make: Callable[[str], Process]) -> None:
        self._make = make
        self.live: list[Process] = []

    def spawn(self, name: str) -> Process:
        """Start one, and watch it."""
        process = self._make(name)
        self.live.append(process)
        return process

    def run(self, supervisor: Supervisor) -> None:
        """Start everything; return when all of it has ended. For the main thread: it takes the signals."""
        with _signals() as wake, selectors.DefaultSelector() as selector:
            selector.register(wake, selectors.EVENT_READ)
            had_terminal = os.isatty(2)
            supervisor.start()
            while not supervisor.is_done:
                self._watch(selector)
                due_s = supervisor.due_s
                selector.select(None if due_s is None else max(0.0, due_s - time.monotonic()))
                # What a process said comes before its end; both are looked at in all of them, for there are few.
                self._hear(supervisor, selector)
                for signum in _pending(wake):
                    if signum == signal.SIGHUP and had_terminal and not os.isatty(2):
                        supervisor.on_signal(signal.SIGTERM)  # no request, but the news that the terminal closed
                    elif signum in SIGNALS:
                        supervisor.on_signal(signum)
                self._reap(supervisor, selector)
                supervisor.tick()

    def _watch(self, selector: selectors.BaseSelector) -> None:
        registered = selector.get_map()
        for process in self.live:
            channel = process.channel
            if not channel.is_open:
                continue
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if channel.wants_write else 0)
            known = registered.get(channel.fileno())
            if known is None:
                selector.register(channel, events)
            elif known.events != events:
                selector.modify(channel, events)

    def _hear(self, supervisor: Supervisor, selector: selectors.BaseSelector) -> None:
        for process in list(self.live):
            process.channel.flush()
            for message in process.channel.receive():
                supervisor.on_message(process, message)
            if not process.channel.is_open and process.channel.fileno() in selector.get_map():
                selector.unregister(process.channel)

    def _reap(self, supervisor: Supervisor, selector: selectors.BaseSelector) -> None:
        for process in list(self.live):
            status = process.status()
            if status is None:
                continue
            for message in process.channel.receive():
                supervisor.on_message(process, message)
            if process.channel.fileno() in selector.get_map():
                selector.unregister(process.channel)
            process.channel.close()
            self.live.remove(process)
            supervisor.on_exit(process, status)


@contextmanager
def _signals() -> Iterator[socket.socket]:
    """Signals, and SIGCHLD among them, as bytes of a socket instead of interruptions."""
    reading, writing = socket.socketpair()
    with reading, writing:
        reading.setblocking(False)
        writing.setblocking(False)
        old_fd = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        before = {each: signal.signal(each, _noted) for each in (*SIGNALS, signal.SIGCHLD)}
        try:
            yield reading
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)
            signal.set_wakeup_fd(old_fd)


def _noted(_signum: int, _frame: object) -> None:
    """The byte in the wake-up socket is what counts."""


def _pending(wake: socket.socket) -> bytes:
    try:
        return wake.recv(4096)
    except BlockingIOError:
        return b""
