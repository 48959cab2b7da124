"""A data worker: the data plane on the shared socket, with uvloop and the compiled protocol, warm before it is ready."""

from __future__ import annotations

import contextlib
import logging
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import uvicorn

from tiercel.http.app import DataPlane
from tiercel.http.feedback import FeedbackEndpoint
from tiercel.http.jobs import JobEndpoints
from tiercel.http.native import NativeHttp
from tiercel.http.predict import make_ids
from tiercel.http.supervised import SupervisedServer
from tiercel.http.tracing import Tracing
from tiercel.monitor.recording import Recorder
from tiercel.priority import ask_for_short_slices
from tiercel.registry import Registry
from tiercel.serving.engine import Engine
from tiercel.serving.listening import bind
from tiercel.serving.profiles import ensure_profile

if TYPE_CHECKING:
    import socket

    from tiercel.serving.board import ConnectionBoard
    from tiercel.serving.channel import Channel
    from tiercel.settings import Settings

__all__ = ["allow_connections", "bind", "serve"]

# PERF: how long the event loop waits for the GIL when another thread of the worker holds it, to load a new base or version.
#   With CPython's 5 ms each refresh delayed requests by that much.
SWITCH_INTERVAL_S = 0.0001
OTHER_FILES = 256  # open files of a server beside its connections
NEARLY_ALL = 0.9  # of the connections asked for: fewer are worth a warning

log = logging.getLogger("tiercel.http")


def allow_connections(n: int) -> int:
    """Raise this process's limit of open files so that `n` connections fit, as far as the system lets it.

    Returns:
        How many fit, at most `n`. A connection past the limit of open files would be closed without a word; one past this
        number gets a reply that says why, as long as there are files left for those.
    """
    try:
        import resource
    except ImportError:  # not a POSIX system
        return n
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = n + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # macOS has a lower limit of its own
            resource.setrlimit(
                resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
            )
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return n
    fit = max(soft - OTHER_FILES, soft // 4, 1)
    if fit >= n:
        return n
    log.log(
        logging.WARNING if fit < NEARLY_ALL * n else logging.INFO,
        "server.max_connections is %d, but this process may open %d files: it takes %d connections. Raise the limit "
        "(ulimit -n, LimitNOFILE= of systemd, --ulimit of docker) or lower the setting",
        n,
        soft,
        fit,
    )
    return fit


def serve(
    settings: Settings,
    listener: socket.socket,
    channel: Channel,
    *,
    name: str,
    share: tuple[ConnectionBoard, int] | None,
) -> None:
    """Answer requests as the worker `name` until the supervisor or SIGTERM says so.

    Args:
        settings: the project.
        listener: shared with the other workers; closed on return.
        channel: to the supervisor.
        name: of this worker; ends in "-<number>".
        share: the board of the workers on this socket and this worker's index; None if it is the only one.

    Raises:
        TiercelError, OSError: the worker cannot start.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    ids = make_ids(settings.server)
    number = int(name.rpartition("-")[2])
    recorder = Recorder(
        settings.state_dir, number, ids.prefix, settings.journal, keeps_requests=settings.keeps_requests
    )
    feedback = FeedbackEndpoint(settings, recorder.counters, worker=number)
    registry = Registry.for_state(settings.state_dir, url=settings.registry_url)
    tracing = None
    try:
        if settings.tracing.endpoint:
            tracing = Tracing(settings.tracing, worker=name, count=recorder.counters.add)
        engine = Engine(settings, registry, recorder, ensure_profile)
        engine.refresh()  # connections wait in the listening socket's queue meanwhile
        engine.warm()
        limits = replace(settings.server, max_connections=allow_connections(settings.server.max_connections))
        native = NativeHttp(engine, limits, ids, recorder.counters, hands_on_traced=bool(settings.tracing.endpoint))
        jobs = JobEndpoints(settings, recorder.counters)
        plane = DataPlane(
            engine,
            settings.server,
            native,
            name,
            declared=settings.models,
            jobs=jobs,
            feedback=feedback,
            tracing=tracing,
            project=settings,
            commit=recorder.commit,
            troubles=lambda: recorder.troubles,
        )
        config = uvicorn.Config(
            plane,
            loop="uvloop",
            http=native.protocol,  # type: ignore[arg-type]  # uvicorn only ever calls it
            ws="none",
            lifespan="on",
            interface="asgi3",
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_keep_alive=max(1, int(settings.server.idle_timeout_s)),
        )
        ask_for_short_slices()
        grace_s = settings.server.shutdown_grace_s
        server = SupervisedServer(config, listener, channel, grace_s=grace_s, share=share, tell=lambda: plane.limits)
        server.serve_until_told()
    finally:
        if tracing is not None:
            tracing.close()
        feedback.close()
        recorder.close()
        registry.close()
        listener.close()
