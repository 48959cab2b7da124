"""How a helper process of the control process hears that it must end: SIGTERM, or the end of its standard input."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiercel.priority import stand_back
from tiercel.serving.handover import RunnerHandover

if TYPE_CHECKING:
    from tiercel.settings import Settings

log = logging.getLogger("tiercel.serving")


class ProcessStop:
    """SIGTERM, or the end of standard input: whoever started this process is gone.

    Args:
        life_line: descriptor that is closed at the other end when that process ends.
    """

    def __init__(self, life_line: int) -> None:
        self._life_line = life_line
        self._is_told = False
        self._reading, self._writing = socket.socketpair()
        for end in (self._reading, self._writing):
            end.setblocking(False)
        signal.set_wakeup_fd(self._writing.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._on_signal)

    def wait(self, seconds: float) -> bool:
        """Wait so long, or until told to end; whether that is so."""
        if not self._is_told:
            ends: list[Any] = [self._reading, self._life_line]
            ready, _, _ = select.select(ends, [], [], seconds)
            if self._life_line in ready and not os.read(self._life_line, 4096):
                log.warning("The control process is gone: stopping")
                self._is_told = True
        return self._is_told

    def _on_signal(self, _signum: int, _frame: object) -> None:
        self._is_told = True


def read_line(descriptor: int) -> bytes | None:
    """The first line, unbuffered: what follows it is the other end's silence. None: there is none."""
    data = b""
    while not data.endswith(b"\n"):
        block = os.read(descriptor, 1 << 16)
        if not block:
            return None
        data += block
    return data


def begin_child(life_line: int, name: str, oom_score: int) -> tuple[Settings, ProcessStop] | None:
    """The first steps of a helper process: it stands back, and takes its settings from the descriptor.

    Args:
        life_line: where the settings come as one JSON line; its end tells the process to end.
        name: in its log.
        oom_score: added to what the kernel weighs when it must kill something for want of memory; 1000 is the most.

    Returns:
        The settings, and how it hears that it must end. None: it was told to end before it began.
    """
    # The supervisor decides what the first two mean; the last would stop what writes to a terminal that is not its own.
    for each in (signal.SIGINT, signal.SIGHUP, signal.SIGTTOU):
        signal.signal(each, signal.SIG_IGN)
    stop = ProcessStop(life_line)
    stand_back()
    with contextlib.suppress(OSError):  # not Linux
        Path("/proc/self/oom_score_adj").write_text(str(oom_score), encoding="ascii")
    line = read_line(life_line)
    if line is None:
        return None
    handover = RunnerHandover.from_message(json.loads(line))
    logging.basicConfig(
        level=logging.INFO if handover.verbose else logging.WARNING,
        format=f"%(asctime)s {name} %(levelname)s %(name)s: %(message)s",
    )
    return handover.settings, stop
