"""The door to the compiled HTTP path: `NativeHttp.protocol` is what uvicorn gets as `http=`.

A connection starts with the compiled protocol, which answers predictions and infer requests of the Open Inference
Protocol, each of one boring shape. A request of any other shape, and whatever a plan will not answer itself (every error
among it), goes with the connection to `GeneralProtocol`, bytes untouched, and the connection comes back when it is idle.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from tiercel._hot.fast_path import FastPath
from tiercel._hot.protocol import HotProtocol
from tiercel._hot.tensors import TensorTallies
from tiercel.http.audited import AuditDoor
from tiercel.http.general import GeneralProtocol, RefusedError, refuse
from tiercel.http.oip_statistics import Statistics
from tiercel.http.predict import ReplyIds, make_ids
from tiercel.http.queued import QueueDoor
from tiercel.monitor.counting import WorkerCounters

if TYPE_CHECKING:
    import asyncio

    from uvicorn.config import Config
    from uvicorn.server import ServerState

    from tiercel.monitor.group_commit import GroupCommit
    from tiercel.serving.engine import Engine
    from tiercel.serving.router import Router
    from tiercel.settings import ServerSettings


class NativeHttp:
    """One server's compiled HTTP path.

    Args:
        engine: what serves; only its `routes` are read.
        settings: the limits.
        ids: this worker's; default: ids of its own.
        counters: where it counts what it answers and hands on; default: counters that nobody else sees.
        hands_on_traced: whether requests of a trace are the general path's, which exports their spans.
    """

    def __init__(
        self,
        engine: Engine,
        settings: ServerSettings,
        ids: ReplyIds | None = None,
        counters: WorkerCounters | None = None,
        *,
        hands_on_traced: bool = False,
    ) -> None:
        self._settings = settings
        self._door: QueueDoor | None = None
        #: One worker's ids, for every path that answers predictions.
        self.ids = make_ids(settings) if ids is None else ids
        self.counters = WorkerCounters() if counters is None else counters
        tallies = TensorTallies()
        #: Of infer requests, whoever answers them; those that are answered here are in already.
        self.statistics = Statistics(tallies)
        self._path = FastPath(
            engine,
            header_timeout_s=settings.header_timeout_s,
            body_timeout_s=settings.body_timeout_s,
            idle_timeout_s=settings.idle_timeout_s,
            busy_poll_us=settings.busy_poll_us,
            max_body_bytes=settings.max_body_bytes,
            max_connections=settings.max_connections,
            ids=self.ids,
            counters=self.counters,
            hands_on_traced=hands_on_traced,
            tallies=tallies,
            hand_on=self._hand_on,
            refuse=self._refuse,
        )

    @property
    def counts(self) -> dict[str, int]:
        """Requests answered by the compiled path, and requests handed on to the general one."""
        return {"answered": self.counters.get("answered"), "handed_on": self.counters.get("handed_on")}

    def queue_with(self, router: Router) -> None:
        """Answer what is scored in batches here too, in the queues of `router`. Without one it is handed on."""
        self._path.queue = self._door = QueueDoor(router, self._path, self.counters)

    def audit_with(self, commit: GroupCommit) -> None:
        """Answer strict models here too, each reply once its record is durable. Without this they are handed on."""
        self._path.audit = AuditDoor(commit, self.counters, self.statistics)

    def close(self) -> None:
        """The event loop is about to end."""
        if self._door is not None:
            self._door.close()
        self._path.close()

    def protocol(
        self,
        *,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> HotProtocol:
        """The protocol of a new connection; uvicorn calls this."""
        import asyncio

        return HotProtocol(self._path, config, server_state, app_state, _loop or asyncio.get_running_loop())

    def _hand_on(
        self,
        hot: HotProtocol,
        transport: asyncio.Transport,
        data: bytes,
        deadline_s: float,
        write_paused: bool,
        draining: bool,
    ) -> None:
        general = GeneralProtocol(
            self._settings,
            done=partial(self._take_back, hot),
            counters=self.counters,
            config=hot.config,
            server_state=hot.server_state,
            app_state=hot.app_state,
            _loop=hot.loop,
        )
        general.adopt(transport, data, deadline_s, write_paused, draining, hot.begun_ns)

    @staticmethod
    def _take_back(hot: HotProtocol, transport: asyncio.Transport, write_paused: bool) -> None:
        transport.set_protocol(hot)  # type: ignore[arg-type]  # a compiled class cannot inherit asyncio.Protocol
        hot.adopt(transport, write_paused)

    def _refuse(self, hot: HotProtocol, transport: asyncio.Transport, status: int, code: str, text: str) -> None:
        refuse(transport, hot.loop, hot.server_state.default_headers, RefusedError(status, code, text), self.counters)
