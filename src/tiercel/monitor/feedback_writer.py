"""Feedback of a data worker: decoded, checked, written and synced on a thread of its own, many requests with one sync.

The event loop hands over bytes and gets a future. While the disk syncs, what comes meanwhile waits together and is written with
the next sync, so a slow disk makes groups larger and not a queue longer.
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tiercel.errors import CapacityError, MonitorStorageError, TiercelError
from tiercel.monitor.feedback_events import Checked, check_events
from tiercel.priority import stand_back

if TYPE_CHECKING:
    from collections.abc import Callable

    from tiercel.monitor.labels import LabelStore

log = logging.getLogger("tiercel.monitor")

#: Requests, and bytes of their bodies, that may wait; more are refused.
MAX_WAITING, MAX_WAITING_BYTES = 1024, 1 << 26
#: What a group takes of the waiting at most: a failed write fails them together.
GROUP_BYTES = 1 << 22


@dataclass
class _Request:
    decode: Callable[[], list[Any]]
    n_bytes: int
    received_us: int
    done: Future[Checked] = field(default_factory=Future)


class FeedbackWriter:
    """Takes feedback into a label store. Its thread starts with the first request.

    Args:
        store: closed with the writer.

    Threads: `submit` and `close` by one; the rest runs on the writer's own.
    """

    def __init__(self, store: LabelStore) -> None:
        self._store = store
        self._condition = threading.Condition()
        self._waiting: list[_Request] = []
        self._waiting_bytes = 0
        self._is_closed = False
        self._commit_us = 10_000
        self._thread: threading.Thread | None = None

    def submit(self, decode: Callable[[], list[Any]], n_bytes: int) -> Future[Checked]:
        """Have a request's events accepted.

        Args:
            decode: called on the writer's thread; the events as sent, or a TiercelError.
            n_bytes: of the body.

        Returns:
            Done when what was accepted survives a power cut; or with the error of `decode`, or MonitorStorageError: then
            nothing of the request was accepted. Cancelling it takes nothing back.

        Raises:
            CapacityError: too much waits already.
        """
        with self._condition:
            if self._is_closed:
                raise CapacityError(
                    "The worker is stopping and takes no more feedback", predicted_wait_us=self._commit_us
                )
            if len(self._waiting) >= MAX_WAITING or (
                self._waiting and self._waiting_bytes + n_bytes > MAX_WAITING_BYTES
            ):
                raise CapacityError(
                    f"Expected room for feedback, got {len(self._waiting)} requests that wait for the disk. Send it again later",
                    predicted_wait_us=self._commit_us * (1 + self._waiting_bytes // GROUP_BYTES),
                )
            request = _Request(decode, n_bytes, time.time_ns() // 1000)
            self._waiting.append(request)
            self._waiting_bytes += n_bytes
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="tiercel-feedback", daemon=True)
                self._thread.start()
            self._condition.notify()
            return request.done

    def close(self) -> None:
        """Write what waits, then let go of the files."""
        with self._condition:
            self._is_closed = True
            self._condition.notify()
        if self._thread is not None:
            self._thread.join()
        self._store.close()

    def _run(self) -> None:
        stand_back()
        while group := self._take():
            begun_s = time.monotonic()
            try:
                self._accept(group)
            except Exception as error:
                log.exception("Feedback failed unexpectedly")
                for request in group:
                    if not request.done.done():
                        request.done.set_exception(error)
            self._commit_us = max(1, round(1e6 * (time.monotonic() - begun_s)))

    def _take(self) -> list[_Request]:
        """The requests of the next group; none when it is all over."""
        with self._condition:
            while not self._waiting and not self._is_closed:
                self._condition.wait()
            n, n_bytes = 0, 0
            while n < len(self._waiting) and (n == 0 or n_bytes + self._waiting[n].n_bytes <= GROUP_BYTES):
                n_bytes += self._waiting[n].n_bytes
                n += 1
            group, self._waiting = self._waiting[:n], self._waiting[n:]
            self._waiting_bytes -= n_bytes
            return group

    def _accept(self, group: list[_Request]) -> None:
        ready: list[tuple[_Request, Checked]] = []
        for request in group:
            if not request.done.set_running_or_notify_cancel():
                continue  # the client went away before anything was done about it
            try:
                ready.append((request, check_events(request.decode(), request.received_us)))
            except TiercelError as error:
                request.done.set_exception(error)
        try:
            self._store.append_checked([(request.received_us, checked) for request, checked in ready])
        except MonitorStorageError as error:
            for request, _ in ready:
                request.done.set_exception(error)
            return
        for request, checked in ready:
            request.done.set_result(checked)
