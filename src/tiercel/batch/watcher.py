"""`python -m tiercel.batch.watcher`: watches what was served. For the control process, not for people.

It has a process of its own because joining labels and comparing windows take seconds of Python, which the admin port's event
loop and everything that shares a core with it would wait for. Its settings come as one JSON line on standard input, which
stays open for as long as whoever started it lives. It ends when told to (SIGTERM) or when that process is gone; killed at any
moment, the next one goes on where it was.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import TYPE_CHECKING

from tiercel.serving.life_line import ProcessStop, begin_child

if TYPE_CHECKING:
    from tiercel.settings import Settings

log = logging.getLogger("tiercel.monitor")

#: Added to what the kernel weighs when it must kill something for want of memory; 1000 is the most.
OOM_SCORE = 700


def run(settings: Settings, stop: ProcessStop) -> None:
    """Turn after turn, one each interval, until told to end."""
    interval_s = settings.monitor.interval_s
    if stop.wait(interval_s):  # what this needs takes a second to import: a server that starts has better things to do
        return
    from tiercel.batch.watched_versions import RegistryVersions
    from tiercel.monitor.watch import Watch
    from tiercel.registry import Registry

    registry = Registry.for_state(settings.state_dir, url=settings.registry_url)
    watch = Watch(settings, RegistryVersions(settings, registry))
    try:
        last_ns = time.monotonic_ns()
        elapsed_us = 0
        while True:
            began_ns = time.monotonic_ns()
            elapsed_us, last_ns = (began_ns - last_ns) // 1000, began_ns
            watch.turn(time.time_ns() // 1000, elapsed_us)
            took_s = (time.monotonic_ns() - began_ns) / 1e9
            # A turn that takes longer than the interval leaves as much time to others as it took.
            if stop.wait(max(interval_s - took_s, min(took_s, interval_s))):
                return
    finally:
        watch.close()
        registry.close()


def main(life_line: int = 0) -> int:
    """Take the settings from the descriptor and watch; returns the exit status."""
    begun = begin_child(life_line, "watch", OOM_SCORE)
    if begun is None:
        return 0
    settings, stop = begun
    run(settings, stop)
    return 0


if __name__ == "__main__":
    sys.exit(main())
