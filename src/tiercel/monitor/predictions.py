"""The prediction table: every row a worker answered, as Parquet that DuckDB, pandas and others read as it is.

    <state>/predictions/model=late/date=2026-01-05/<worker start>-000001-<columns>.parquet
                        _ledger.json    .lock    .salt

A file holds the rows that one journal segment has of one model and one day (UTC). It is named after the segment, written
beside its place, synced and renamed into it; a segment that is still written to is converted again when it has grown, and its
files are replaced by longer ones. So there is never a row twice: not after a kill between any two steps, not for a reader
who looks in the middle of it, and not when the ledger, which says which segments are done, has to be begun anew.

All of this runs in the control process or a command, under a lock that one process holds.
"""

from __future__ import annotations

import contextlib
import logging
import time
from typing import TYPE_CHECKING
from urllib.parse import quote

import numpy as np
import pyarrow.parquet as pq

from tiercel.errors import JournalError, MonitorStorageError
from tiercel.monitor.directories import is_live, worker_directories
from tiercel.monitor.durable import finished, locked, make_directory, remove_file, remove_unfinished
from tiercel.monitor.journal import scan_segment, segment_paths
from tiercel.monitor.masking import mask, read_salt, unknown_masks
from tiercel.monitor.prediction_columns import DAY_US, SegmentColumns, column_names, day_of, shape_of
from tiercel.monitor.prediction_ledger import SegmentEntry, TableLedger
from tiercel.monitor.prediction_views import connect_views
from tiercel.monitor.receipt_files import RECEIPTS, ReceiptFiles

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import duckdb
    from numpy.typing import NDArray

    from tiercel.monitor.journal import PlanDeclaration
    from tiercel.settings import MonitorSettings

log = logging.getLogger("tiercel.monitor")

PREDICTIONS = "predictions"
_JOURNAL = "journal"
_LOCK, _SALT = ".lock", ".salt"
_FILES = "model=*/date=*/*.parquet"
#: A clock that went further ahead between two conversions, or back at all, is not trusted to remove anything ...
JUMP_US = 2 * DAY_US
#: ... before it has gone on for this long.
SETTLE_US = 3_600_000_000


class PredictionTable:
    """The table of a state directory.

    Args:
        state_dir: of the project.
        settings: retention and masks.

    Threads and processes: any; who converts holds a lock, and another who wants to at the same time does nothing, or waits.
    """

    def __init__(self, state_dir: Path, settings: MonitorSettings) -> None:
        self._state_dir, self._settings = state_dir, settings
        self._warned: set[str] = set()
        self.directory = state_dir / PREDICTIONS

    def convert(self, now_us: int | None = None, *, waits: bool | float = False) -> int:
        """Bring the table up to what the journal holds, and remove what is past retention.

        Args:
            now_us: the time; None: the clock's.
            waits: for another process that is at it, for good or so many seconds; otherwise it is left to that one.

        Returns:
            How many rows are new in the table.

        Raises:
            MonitorStorageError: the disk refuses. What was converted before stays, the rest is for the next time.
            TableError: the ledger is damaged.
        """
        return self._converted(now_us, waits) or 0

    def catch_up(self, patience_s: float) -> bool:
        """As `convert`, but says whether the table is up to date: not where another process was at it all the time.

        Args:
            patience_s: how long to wait for another process.

        Raises:
            MonitorStorageError, TableError: as `convert`.
        """
        return self._converted(None, patience_s) is not None

    def _converted(self, now_us: int | None, waits: bool | float) -> int | None:
        """How many rows are new; None: another process has the lock."""
        now_us = time.time_ns() // 1000 if now_us is None else now_us
        try:
            make_directory(self.directory)
            with locked(self.directory / _LOCK, waits=waits) as is_held:
                if not is_held:
                    return None
                conversion = _Conversion(self._state_dir, self.directory, self._settings, now_us)
                n_rows = conversion.run()
        except OSError as error:
            raise MonitorStorageError(
                f"{self.directory}: expected room for the prediction table, got: {error}. The journal keeps what is not "
                f"converted until journal.max_bytes forces it out"
            ) from error
        for name in set(_unknown_masks(self._settings, conversion.ledger)) - self._warned:
            self._warned.add(name)
            log.warning("[monitor]: expected the name of a join key or feature to mask, got %r: no model has it", name)
        return n_rows

    def ledger(self) -> TableLedger:
        """What was converted, how it adds up, and what answered. Raises as `TableLedger.read`."""
        return TableLedger.read(self.directory)

    def unknown_masks(self) -> list[str]:
        """Names in [monitor] hash_columns or drop_columns that no model seen so far has."""
        return _unknown_masks(self._settings, self.ledger())

    def connect(self, model: str | None = None, *, threads: int | None = None) -> duckdb.DuckDBPyConnection:
        """A connection with the views `predictions`, `labels` and `outcomes`, and the table `versions`.

        It is for one report, not to be kept: it shows the predictions of this moment, and retention may remove files under it.

        Args:
            model: only its predictions, with its columns only; None: those of all models, with the columns of all.
            threads: of DuckDB; None: as many as cores.

        Raises:
            TableError: the ledger, or that of the labels, is damaged.
        """
        return connect_views(self._state_dir, self.ledger(), model=model, threads=threads)


class _Conversion:
    """One run, under the lock.

    Attributes:
        ledger: of the table, as it is on disk after each step.
    """

    def __init__(self, state_dir: Path, directory: Path, settings: MonitorSettings, now_us: int) -> None:
        self._receipts = ReceiptFiles(state_dir / RECEIPTS, settings)
        self._journal, self._directory, self._settings, self._now_us = state_dir / _JOURNAL, directory, settings, now_us
        self.ledger = TableLedger.read(directory)
        self._salt = read_salt(directory / _SALT) if settings.hash_columns else b""

    def run(self) -> int:
        remove_unfinished(self._directory)
        remove_unfinished(self._receipts.directory)
        self._finish_removal()
        before = self.ledger.totals.rows
        live = {each.name for each in worker_directories(self._journal) if is_live(each)}  # before they are read
        paths = {f"{path.parent.name}/{path.stem}": path for path in segment_paths(self._journal)}
        self._forget_gone(paths)
        for name, path in paths.items():
            entry = self.ledger.segments.get(name)
            if entry is None or not entry.is_done:
                with contextlib.suppress(FileNotFoundError):  # the journal's retention was faster; see _forget_gone
                    self._convert(name, path, entry or SegmentEntry(), may_grow=path.parent.name in live)
        self._retain()
        return self.ledger.totals.rows - before

    def _forget_gone(self, paths: dict[str, Path]) -> None:
        """Count segments that are gone and were not done; drop what the ledger has of those that are gone."""
        ledger = self.ledger
        gone = set(ledger.segments) - set(paths)
        numbers: dict[str, set[int]] = {}
        for name in paths:
            start, _, number = name.partition("/")
            numbers.setdefault(start, set()).add(int(number))
        done = {name for name, entry in ledger.segments.items() if entry.is_done}
        lost = gone - done
        for start, there in numbers.items():
            unseen = set(range(ledger.newest.get(start, 0) + 1, max(there))) - there
            lost |= {f"{start}/{number:06d}" for number in unseen} - done
        if lost:
            ledger.totals.segments_lost += len(lost)
            log.error(
                "predictions: the journal removed %d segments before they were converted (%s, ...). Raise journal.max_bytes, "
                "or convert more often",
                len(lost),
                min(lost),
            )
        for name in gone:
            del ledger.segments[name]
        # Lost ones are counted once. The newest may be a spare one that is empty and goes again.
        ledger.newest = {start: max(ledger.newest.get(start, 0), max(there) - 1) for start, there in numbers.items()}
        if gone or lost:
            self._write_ledger()

    def _convert(self, name: str, path: Path, entry: SegmentEntry, *, may_grow: bool) -> None:
        try:
            scan = scan_segment(path)
        except JournalError as error:  # not a segment: nothing of it can ever be converted
            log.error("predictions: %s", error)  # noqa: TRY400
            self._commit(name, SegmentEntry(is_done=True), entry, is_damaged=True)
            return
        columns = SegmentColumns(scan)
        grown = SegmentEntry(n_records=len(columns.heads), is_done=scan.is_sealed or not may_grow)
        for file, records in self._by_file(name, columns):
            n_rows = int(columns.heads["n_rows"][records].sum())
            grown.files[file] = n_rows
            grown.n_rows += n_rows
            if file not in entry.expired and entry.files.get(file) != n_rows:
                self._write(self._directory / file, columns, records)
        self._receipts.write(name, columns)
        grown.expired = [file for file in entry.expired if file in grown.files]
        # What is damaged in a live segment may be half written; the next reading tells.
        is_damaged = columns.damage is not None and grown.is_done
        if is_damaged:
            log.error("predictions: %s. The records before it are in the table", columns.damage)
        if grown.n_records > entry.n_records or grown.is_done:
            for record in np.unique(columns.heads["plan"], return_index=True)[1].tolist():
                self._learn(columns.plan_of(record))
            self._commit(name, grown, entry, is_damaged=is_damaged)

    def _commit(self, name: str, grown: SegmentEntry, before: SegmentEntry, *, is_damaged: bool) -> None:
        """Say in the ledger that a segment's files are in their places."""
        totals = self.ledger.totals
        totals.records += grown.n_records - before.n_records
        totals.rows += grown.n_rows - before.n_rows
        totals.rows_removed += sum(grown.files[file] - before.files.get(file, 0) for file in grown.expired)
        totals.segments += grown.is_done
        totals.segments_damaged += is_damaged
        if grown.is_done:
            grown.files, grown.expired = {}, []
        self.ledger.segments[name] = grown
        self._write_ledger()

    def _by_file(self, name: str, columns: SegmentColumns) -> Iterator[tuple[str, NDArray[np.int64]]]:
        """(file relative to the table, indices of its records) of a segment; every record is in one."""
        heads = columns.heads
        if not len(heads):
            return
        numbers, first = np.unique(heads["plan"], return_index=True)
        plans = [columns.plan_of(record) for record in first.tolist()]
        groups = sorted({(plan.model, shape_of(plan)) for plan in plans})
        group_of = np.array([groups.index((plan.model, shape_of(plan))) for plan in plans])
        group = group_of[np.searchsorted(numbers, heads["plan"])]
        days = day_of(heads["received_us"])
        for place, day in np.unique(np.stack([group, days]), axis=1).T.tolist():
            model, shape = groups[place]
            date = np.datetime64(day, "D")
            file = f"model={quote(model, safe='')}/date={date}/{name.replace('/', '-')}-{shape}.parquet"
            yield file, np.flatnonzero((group == place) & (days == day))

    def _write(self, path: Path, columns: SegmentColumns, records: NDArray[np.int64]) -> None:
        make_directory(path.parent)
        plan = columns.plan_of(int(records[0]))
        names = column_names(plan)
        with finished(path) as unfinished, contextlib.ExitStack() as stack:
            writer: pq.ParquetWriter | None = None
            for table in columns.tables(records):
                kept = mask(table, plan, names, self._settings, self._salt)
                if writer is None:
                    writer = stack.enter_context(
                        pq.ParquetWriter(unfinished, kept.schema, compression="zstd", compression_level=1)
                    )
                writer.write_table(kept)

    def _learn(self, plan: PlanDeclaration) -> None:
        self.ledger.versions[f"{plan.model}:{plan.version}"] = {
            "tier": plan.tier,
            "task": plan.task,
            "n_outputs": plan.n_outputs,
            "classes": list(plan.classes),
            "features": list(plan.features),
            "join_keys": [list(pair) for pair in plan.join_keys],
        }

    def _write_ledger(self) -> None:
        self.ledger.write(self._directory)

    def _retain(self) -> None:
        """Remove the oldest days: past retention, or beyond the bound of bytes."""
        ledger, now_us = self.ledger, self._now_us
        if ledger.last_us and not 0 <= now_us - ledger.last_us <= JUMP_US:
            ledger.totals.clock_jumps += 1
            ledger.settled_us = now_us
        ledger.last_us = now_us
        is_settled = now_us - ledger.settled_us >= SETTLE_US
        files = sorted((_day(path), path) for path in self._directory.glob(_FILES))
        sizes = {path: path.stat().st_size for _, path in files}
        excess = sum(sizes.values()) - self._settings.predictions_max_bytes
        oldest_us = now_us - round(self._settings.retention_days * DAY_US)
        for day, path in files:
            # A day before anybody could have predicted, or after today, is a clock's mistake: the file's own age counts.
            is_odd = not 10_000 <= day <= now_us // DAY_US + 2
            end_us = path.stat().st_mtime_ns // 1000 if is_odd else (day + 1) * DAY_US
            if excess > 0 or (is_settled and end_us <= oldest_us):
                excess -= sizes[path]
                ledger.removing[str(path.relative_to(self._directory))] = _n_rows(path)
        ledger.totals.rows_removed += sum(ledger.removing.values())
        for entry in ledger.segments.values():
            entry.expired += sorted(set(entry.files) & set(ledger.removing))
        self._receipts.retain(now_us, is_settled=is_settled)
        self._write_ledger()
        self._finish_removal()

    def _finish_removal(self) -> None:
        """Remove the files that are counted as removed."""
        if not self.ledger.removing:
            return
        for file in self.ledger.removing:
            path = self._directory / file
            remove_file(path)
            with contextlib.suppress(OSError):  # other files of the day are still there
                path.parent.rmdir()
        self.ledger.removing = {}
        self._write_ledger()


def _unknown_masks(settings: MonitorSettings, ledger: TableLedger) -> list[str]:
    versions = ledger.versions.values()
    known = {name for each in versions for name in (*each["features"], *(key for key, _ in each["join_keys"]))}
    return unknown_masks(settings, known) if ledger.versions else []


def _n_rows(path: Path) -> int:
    try:
        n_rows: int = pq.read_metadata(path).num_rows
    except ValueError:  # not a file of ours, or no longer one
        return 0
    return n_rows


def _day(path: Path) -> int:
    """Days since the epoch of a file's partition; 0 for one that nobody here made."""
    with contextlib.suppress(ValueError):
        return int(np.datetime64(path.parent.name.removeprefix("date="), "D").astype(int))
    return 0
