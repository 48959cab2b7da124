"""Where the compiled path's replies of strict models wait for their records: their door to the journal's commits."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Final

from tiercel.http.raw_reply import error_bytes
from tiercel.serving.durable_answers import unrecorded

if TYPE_CHECKING:
    from tiercel._hot.protocol import HotProtocol
    from tiercel.errors import AuditUnavailableError
    from tiercel.http.oip_statistics import Statistics
    from tiercel.monitor.counting import WorkerCounters
    from tiercel.monitor.group_commit import GroupCommit

#: The kind of an infer request's body.
TENSORS: Final = 2


class AuditDoor:
    """What `FastPath.audit` is in a server; see `tiercel._hot.fast_path.Audit`.

    Args:
        commit: of the worker's journal.
        counters: of the worker.
        statistics: of infer requests, where one that is held counts as answered already.

    Threads: the event loop's only.
    """

    def __init__(self, commit: GroupCommit, counters: WorkerCounters, statistics: Statistics) -> None:
        self._commit, self._counters, self._statistics = commit, counters, statistics

    def hold(self, hot: HotProtocol, held: bytes, kind: int, close: bool, /) -> None:
        """See there."""
        self._commit.submit(partial(self._release, hot, held, kind, close, hot.begun_ns))

    def refusal(self, hot: HotProtocol, kind: int, close: bool, /) -> bytes:
        """See there."""
        return self._refusal(unrecorded(), hot, kind, close)

    def _release(
        self,
        hot: HotProtocol,
        held: bytes,
        kind: int,
        close: bool,
        began_ns: int,
        error: AuditUnavailableError | None,
        /,
    ) -> None:
        if error is not None and kind == TENSORS:
            self._statistics.withdrawn(held, (time.monotonic_ns() - began_ns) / 1000)
        hot.release(held, None if error is None else self._refusal(error, hot, kind, close))

    def _refusal(self, error: AuditUnavailableError, hot: HotProtocol, kind: int, close: bool) -> bytes:
        return error_bytes(error, kind, self._counters, hot.server_state.default_headers, close=close)
