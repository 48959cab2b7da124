"""`tiercel serve` as a whole: settings, listening sockets, supervisor and processes put together."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from tiercel.errors import DefinitionError, ForcedStopError, ListenError
from tiercel.serving.board import ABSENT, ConnectionBoard
from tiercel.serving.handover import Handover
from tiercel.serving.listening import address, bind
from tiercel.serving.processes import Process, ProcessTable, interpreter
from tiercel.serving.supervisor import Supervisor
from tiercel.settings import PROJECT_FILE, ControlSettings, Settings, is_loopback, load_settings

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence
    from pathlib import Path

log = logging.getLogger("tiercel.supervisor")


@dataclass(frozen=True)
class Options:
    """What the command line says; None where it says nothing."""

    host: str | None = None
    port: int | None = None
    workers: int | None = None
    admin_port: int | None = None
    port_from: str | None = None  # who says so, if not the command line

    def in_vertex(self, port: int | None) -> Self:
        """With the port that Vertex AI asks for, on every address, where the command line does not say otherwise."""
        if port is None or self.port is not None:
            return self
        return replace(self, port=port, port_from="AIP_HTTP_PORT", host="0.0.0.0" if self.host is None else self.host)  # noqa: S104 - a container's

    def over(self, settings: Settings) -> Settings:
        """The settings with these in place.

        Raises:
            DefinitionError: the host is empty, which would listen on every interface; or the workers' journals cannot stay
                within journal.max_bytes.
        """
        if self.host is not None and not self.host.strip():
            raise DefinitionError(
                f"Expected --host to name an address, got {self.host!r}. 0.0.0.0 is every interface; without --host it is "
                f"server.host of {PROJECT_FILE}"
            )
        given: dict[str, Any] = {"host": self.host, "port": self.port, "workers": self.workers}
        server = replace(settings.server, **{name: value for name, value in given.items() if value is not None})
        control = settings.control
        if self.admin_port is not None:
            control = replace(control, port=self.admin_port)
        journal = settings.journal
        least = 2 * journal.segment_bytes * server.workers  # every worker writes one segment and has the next one ready
        if journal.enabled and journal.max_bytes < least:
            raise DefinitionError(
                f"{settings.project_dir / PROJECT_FILE}: expected journal.max_bytes of at least {least} (two segments of "
                f"{journal.segment_bytes} bytes for each of {server.workers} workers), got {journal.max_bytes}. Raise it, "
                f"or lower journal.segment_bytes or the number of workers"
            )
        return replace(settings, server=server, control=control)


class Deployment:
    """One `tiercel serve`: binds on construction, serves in `run`.

    Args:
        project_dir: where tiercel.toml is.
        options: of the command line.
        verbose: whether the processes log what happens inside.
        say, warn: print one line for people, on standard output and standard error.

    Raises:
        DefinitionError: tiercel.toml is wrong.
        ListenError: an address is taken or not ours.
    """

    def __init__(
        self,
        project_dir: Path,
        options: Options,
        *,
        verbose: bool,
        say: Callable[[str], None],
        warn: Callable[[str], None],
    ) -> None:
        self._project_dir, self._options, self._verbose = project_dir, options, verbose
        self._say, self._warn = say, warn
        self._settings = options.over(load_settings(project_dir))
        server, control = self._settings.server, self._settings.control
        try:
            self._listener = bind(server.host, server.port)
        except OSError as error:
            raise ListenError(
                f"Cannot listen on {server.host}:{server.port}: {error.strerror}. Stop what listens there, or choose "
                f"another with --port or server.port; 0 picks a free one."
            ) from None
        self._admin: socket.socket | None = None
        if control.enabled:
            try:
                self._admin = self._bind_admin(control)
            except ListenError:
                self._listener.close()
                raise
        self._board = ConnectionBoard.make(server.workers) if server.workers > 1 else None
        self.url = address(server.host, self._listener)
        self.admin_url = None if self._admin is None else address(control.host, self._admin)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def run(self) -> None:
        """Serve until told to stop. For the main thread.

        Raises:
            TiercelError: no worker could start.
            ForcedStopError: a second signal cut the stop short.
        """
        table = ProcessTable(self._make)
        supervisor = Supervisor(
            table.spawn,
            n_workers=self._settings.server.workers,
            with_control=self._admin is not None,
            grace_s=self._settings.server.shutdown_grace_s,
            on_serving=lambda n_ready: self._announce(n_ready, supervisor.told),
            on_closed=self._listener.close,
            on_reload=self._reload,
        )
        table.run(supervisor)
        if supervisor.failure is not None:
            raise supervisor.failure
        if supervisor.was_forced:
            raise ForcedStopError("Stopped by force: what was in flight is lost")

    def _bind_admin(self, control: ControlSettings) -> socket.socket:
        if not is_loopback(control.host):
            self._warn(
                f"warning: control.host is {control.host}: the admin port has no authentication and would be open to "
                f"whoever reaches it. Keep it on 127.0.0.1 unless a proxy or firewall stands before it."
            )
        try:
            return bind(control.host, control.port)
        except OSError as error:
            # Two projects on one host with nothing said about ports should both serve.
            is_default = self._options.admin_port is None and control.port == ControlSettings.port
            if not is_default:
                raise ListenError(
                    f"Cannot listen on {control.host}:{control.port} for the admin port: {error.strerror}. Choose "
                    f"another with --admin-port or control.port (0 picks a free one), or set control.enabled = false."
                ) from None
            try:
                free = bind(control.host, 0)
            except OSError:
                raise ListenError(f"Cannot listen on {control.host} for the admin port: {error.strerror}") from None
            self._warn(
                f"Admin port {control.port} is taken, perhaps by another project: using {free.getsockname()[1]}. "
                f"Choose one with --admin-port or control.port."
            )
            return free

    def _make(self, name: str) -> Process:
        handover = self._handover(name)
        fds = [fd for fd in (handover.listener_fd, handover.board_fd) if fd is not None]
        return Process(interpreter("tiercel.http.worker", name), fds, handover.to_message())

    def _handover(self, name: str) -> Handover:
        if name == "control" and self._admin is not None:
            return Handover("control", name, self._settings, 0, self._admin.fileno(), None, self._verbose)
        index = int(name.rpartition("-")[2]) - 1
        if self._board is not None:
            self._board.put(index, ABSENT)  # what a killed worker left there
        board_fd = None if self._board is None else self._board.fd
        return Handover("worker", name, self._settings, index, self._listener.fileno(), board_fd, self._verbose)

    def _announce(self, n_ready: int, told: Sequence[str] = ()) -> None:
        n = self._settings.server.workers
        count = f"{n_ready} worker{'s' if n_ready > 1 else ''}" if n_ready == n else f"{n_ready} of {n} workers"
        admin = "" if self.admin_url is None else f"; admin on {self.admin_url}"
        said = "" if self._options.port_from is None else f" (as {self._options.port_from} says)"
        self._say(f"Serving {self._settings.name} on {self.url}{said} with {count}{admin} (Ctrl-C stops)")
        for line in told:
            self._say(f"  {line}")

    def _reload(self) -> None:
        """Read tiercel.toml again. What only a restart can change stays as it is, and is named."""
        before = self._settings
        after = self._options.over(load_settings(self._project_dir))
        kept: dict[str, Any] = {
            name: getattr(before.server, name)
            for name in ("host", "port", "workers")
            if getattr(after.server, name) != getattr(before.server, name)
        }
        names = [f"server.{name}" for name in kept]
        if after.control != before.control:
            names.append("[control]")
        if names:
            log.error("%s changed in tiercel.toml; that takes a restart. Kept as before", " and ".join(names))
        self._settings = replace(after, server=replace(after.server, **kept), control=before.control)

    def _close(self) -> None:
        self._listener.close()
        if self._admin is not None:
            self._admin.close()
        if self._board is not None:
            self._board.close()
