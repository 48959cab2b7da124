"""`python -m tiercel.http.worker NAME FD`: what a process of the supervisor runs. For `tiercel serve`, not for people."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys

from tiercel.errors import TiercelError
from tiercel.serving.board import ConnectionBoard
from tiercel.serving.channel import Channel
from tiercel.serving.handover import Handover
from tiercel.serving.listening import adopt

log = logging.getLogger("tiercel.worker")


def main(fd: int) -> int:
    """Take the handover from the channel at `fd` and serve; returns the exit status."""
    # The supervisor decides what an interrupt or a hang-up means. It started us with both blocked.
    ignored = (signal.SIGINT, signal.SIGHUP)
    for each in ignored:
        signal.signal(each, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ignored)
    os.set_inheritable(fd, False)
    channel = Channel(socket.socket(fileno=fd))
    message = channel.wait()
    if message is None:
        return 0
    handover = Handover.from_message(message)
    logging.basicConfig(
        level=logging.INFO if handover.verbose else logging.WARNING,
        format=f"%(asctime)s {handover.name} %(levelname)s %(name)s: %(message)s",
    )
    if not handover.verbose:
        # One line per malformed request would let any peer fill the disk; refusals are counted, by code, in /metrics.
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    try:
        _serve(handover, channel)
    except (TiercelError, OSError) as error:
        channel.set_blocking(True)
        code = error.code if isinstance(error, TiercelError) else "start_failed"
        channel.send({"event": "failed", "error": str(error), "code": code})
        log.debug("Failed", exc_info=error)
        return 1
    return 0


def _serve(handover: Handover, channel: Channel) -> None:
    server, is_worker = handover.settings.server, handover.role == "worker"
    if server.pin_cores and is_worker and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[handover.index % len(cores)]})
    os.set_inheritable(handover.listener_fd, False)
    listener = adopt(handover.listener_fd)
    if not is_worker:
        from tiercel.http.control import serve_control

        serve_control(handover.settings, listener, channel)
    else:
        from tiercel.http.server import serve

        share = None
        if handover.board_fd is not None:
            os.set_inheritable(handover.board_fd, False)
            share = ConnectionBoard(handover.board_fd, server.workers), handover.index
        serve(handover.settings, listener, channel, name=handover.name, share=share)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[-1])))
