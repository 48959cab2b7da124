"""`tiercel serve` many times over, cheaply: `python -m tests.support.forked_server DIRECTORY TIMES WORKERS`.

The same supervisor, sockets, signals and workers, but the workers are forks of this process, which has imported
everything once: a start takes a tenth of a second instead of one or more.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path

import sqlalchemy.dialects.sqlite
import uvicorn.lifespan.on
import uvicorn.loops.uvloop

from tiercel.http import server, worker
from tiercel.http.deployment import Deployment, Options
from tiercel.serving.channel import Channel
from tiercel.serving.handover import Handover
from tiercel.serving.processes import Process

# What a worker imports when it starts, so that the forks have it.
IMPORTED = (server, sqlalchemy.dialects.sqlite, uvicorn.lifespan.on, uvicorn.loops.uvloop)


class ForkedProcess(Process):
    """A fork instead of a fresh interpreter."""

    def __init__(self, first):
        ours, theirs = socket.socketpair()
        self._pid = os.fork()
        self._status = None
        if self._pid == 0:
            signal.set_wakeup_fd(-1)
            for each in (signal.SIGTERM, signal.SIGCHLD):
                signal.signal(each, signal.SIG_DFL)
            for each in (signal.SIGINT, signal.SIGHUP):
                signal.signal(each, signal.SIG_IGN)
            ours.close()
            status = 1
            try:
                worker._serve(Handover.from_message(first), Channel(theirs))
                status = 0
            finally:
                os._exit(status)
        theirs.close()
        ours.setblocking(False)
        self.channel = Channel(ours)

    @property
    def pid(self):
        return self._pid

    def kill(self, signum):
        if self.status() is None:
            os.kill(self._pid, signum)

    def status(self):
        if self._status is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            self._status = os.waitstatus_to_exitcode(status) if pid else None
        return self._status


class ForkedDeployment(Deployment):
    def _make(self, name):
        handover = self._handover(name)
        return ForkedProcess(handover.to_message())


def main(directory, times, n_workers):
    """Serve `times` times on one free port after another; a line "ended" follows each clean drain."""
    for _ in range(times):
        options = Options(port=0, workers=n_workers)
        with ForkedDeployment(Path(directory), options, verbose=False, say=say, warn=say) as deployment:
            deployment.run()
        say("ended")


def say(text):
    print(text, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
