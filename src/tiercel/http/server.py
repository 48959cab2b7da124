"""Running the data plane under uvicorn: one bound socket, uvloop, the compiled protocol, graceful stop."""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import signal
import socket
from typing import TYPE_CHECKING

import uvicorn

from tiercel.http.app import DataPlane
from tiercel.http.native import NativeHttp
from tiercel.registry import Registry
from tiercel.serving.engine import Engine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tiercel.settings import Settings

log = logging.getLogger("tiercel.http")
OTHER_FILES = 256  # open files of a server beside its connections


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 picks a free one.

    Raises:
        OSError: the address is taken or not ours.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except OSError:
        listener.close()
        raise
    listener.set_inheritable(True)
    return listener


def allow_connections(n: int) -> None:
    """Raise this process's limit of open files so that `n` connections fit, as far as the system lets it."""
    try:
        import resource
    except ImportError:  # not a POSIX system
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = n + OTHER_FILES
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    with contextlib.suppress(OSError, ValueError):  # macOS has a lower limit of its own
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class _Server(uvicorn.Server):
    """Tells its caller when it is accepting connections, and freezes what start-up allocated."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None] | None) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT start the drain. Unlike uvicorn's own, a drained server ends with status 0."""
        signals = (signal.SIGTERM, signal.SIGINT)
        before = [signal.signal(each, self.handle_exit) for each in signals]
        try:
            yield
        finally:
            for each, handler in zip(signals, before, strict=True):
                signal.signal(each, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        # What lives now lives until the end: the collector need not walk it again while requests are answered.
        gc.collect()
        gc.freeze()
        # PERF: a request leaves no cycles behind; looking for some every 700 objects cost it about 6 us (bench_http).
        gc.set_threshold(50_000, 20, 20)
        if self.started and self._on_ready is not None:
            self._on_ready()


def serve(settings: Settings, listener: socket.socket, *, on_ready: Callable[[], None] | None = None) -> None:
    """Serve until SIGTERM or SIGINT; requests in flight get `shutdown_grace_s` to finish.

    Args:
        settings: the project.
        listener: from `bind`; closed on return.
        on_ready: called once connections are accepted.
    """
    registry = Registry.for_state(settings.state_dir, url=settings.registry_url)
    try:
        engine = Engine(settings, registry)
        engine.refresh()  # connections wait in the listening socket's queue meanwhile
        allow_connections(settings.server.max_connections)
        native = NativeHttp(engine, settings.server)
        config = uvicorn.Config(
            DataPlane(engine, settings.server, native),
            loop="uvloop",
            http=native.protocol,  # type: ignore[arg-type]  # uvicorn only ever calls it
            ws="none",
            lifespan="on",
            interface="asgi3",
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_keep_alive=max(1, int(settings.server.idle_timeout_s)),
            timeout_graceful_shutdown=math.ceil(settings.server.shutdown_grace_s),
        )
        _Server(config, on_ready).run(sockets=[listener])
    finally:
        registry.close()
        listener.close()
