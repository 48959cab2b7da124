"""Labels of predictions: taken at any time, in any order, as often as somebody likes, and joined by the prediction's id.

    <state>/labels/incoming/...            what was accepted and is not collected yet; see `label_log`
                   part-00000001-first.parquet ...    what is; see `label_collect`
                   _ledger.json

Who accepts labels (a data worker, a command) only appends. Who reads them (the control process, a command) collects first.
A key is (id, row). Of several labels for it the last counts; a label without a value leaves the value as it is, and a value
without a label the label.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from tiercel.errors import MonitorStorageError
from tiercel.monitor.feedback_events import Checked, check_events
from tiercel.monitor.label_ledger import LabelLedger
from tiercel.monitor.label_log import MAX_BYTES, LabelLog
from tiercel.monitor.label_query import labels_query

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from tiercel.settings import MonitorSettings

LABELS = "labels"
_INCOMING = "incoming"


class LabelStore:
    """The labels of a state directory.

    Args:
        state_dir: of the project.
        worker: a number to tell writers apart by, in the names of their directories.
        max_incoming_bytes: of what waits to be collected, of all writers; beyond it labels are refused.

    Threads and processes: any.
    """

    def __init__(self, state_dir: Path, *, worker: int = 0, max_incoming_bytes: int = MAX_BYTES) -> None:
        self.directory = state_dir / LABELS
        self._log = LabelLog(self.directory / _INCOMING, worker, max_bytes=max_incoming_bytes)
        self._lock = threading.Lock()
        self._is_closed = False
        #: Of batches of which nothing was accepted: written with the next that has something.
        self._waiting = Checked()

    def append(self, events: Iterable[Any], now_us: int | None = None) -> Checked:
        """Accept events; on return those that were accepted survive a power cut.

        Args:
            events: mappings as of `feedback_events`; bad ones are refused, each by itself.
            now_us: when they came; None: now.

        Raises:
            MonitorStorageError: none is accepted.
        """
        now_us = time.time_ns() // 1000 if now_us is None else now_us
        checked = check_events(events, now_us)
        self.append_checked([(now_us, checked)])
        return checked

    def append_checked(self, batches: Sequence[tuple[int, Checked]]) -> None:
        """Accept batches that were checked, with one sync for all of them; each with the time (us) it came at.

        Raises:
            MonitorStorageError: none is accepted.
        """
        with self._lock:
            if self._is_closed:
                raise MonitorStorageError("Expected an open label store, got one that was closed")
            useful = []
            for now_us, checked in batches:
                if checked.events:
                    useful.append((now_us, checked))
                else:  # junk that fills no disk
                    _count(self._waiting.refused, checked.refused)
            if not useful:
                return
            waiting, self._waiting = self._waiting, Checked()
            if waiting.refused:
                useful.insert(0, (useful[0][0], waiting))
            try:
                self._log.append(useful)
            except MonitorStorageError:
                self._waiting = waiting
                raise

    def collect(self, settings: MonitorSettings, now_us: int | None = None, *, waits: bool = False) -> int:
        """Bring what readers see up to what was accepted, and remove what is past retention.

        Args:
            settings: of the project.
            now_us: the time; None: the clock's.
            waits: for another process that is at it; otherwise it is left to that one.

        Returns:
            How many events were collected, repeated ones included.

        Raises:
            MonitorStorageError: the disk refuses; what was accepted stays accepted.
            TableError: the ledger is damaged.
        """
        return self._collected(settings, now_us, waits) or 0

    def catch_up(self, settings: MonitorSettings, patience_s: float) -> bool:
        """As `collect`, but says whether readers see all: not where another process was at it all the time.

        Args:
            settings: of the project.
            patience_s: how long to wait for another process.

        Raises:
            MonitorStorageError, TableError: as `collect`.
        """
        return self._collected(settings, None, patience_s) is not None

    def _collected(self, settings: MonitorSettings, now_us: int | None, waits: bool | float) -> int | None:
        """How many events; None: another process has the lock."""
        from tiercel.monitor.label_collect import Collection  # a data worker needs none of what this needs

        now_us = time.time_ns() // 1000 if now_us is None else now_us
        run = Collection(
            self.directory, self.directory / _INCOMING, retention_days=settings.retention_days, now_us=now_us
        )
        try:
            return run.run(waits=waits)
        except OSError as error:
            raise MonitorStorageError(f"{self.directory}: expected room to collect labels, got: {error}") from error

    def ledger(self) -> LabelLedger:
        """What was collected and how it adds up. Raises as `LabelLedger.read`."""
        return LabelLedger.read(self.directory)

    def query(self) -> str:
        """SQL of the view `labels`: the last state of every key."""
        return labels_query(self.directory, self.ledger())

    def close(self) -> None:
        """Let go of the files."""
        with self._lock:
            self._is_closed = True
            self._log.close()


def _count(counts: dict[str, int], more: dict[str, int]) -> None:
    for name, n in more.items():
        counts[name] = counts.get(name, 0) + n
