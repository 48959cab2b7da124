"""Receipts: each record of the journal as it is, beside the declaration of its plan, after the journal lets go of it.

    <state>/receipts/model=late/date=2026-01-05/<worker start>-000001.parquet

    id, time, first_row; plan (the declaration's JSON), worker, prefix, format; record: the journal's own bytes

A record's bytes hold its checksum, its vector as scored, its scores, its keys and the request as it came. So a receipt is
exactly what was recorded, or it is seen to be damaged. Files are made by the conversion that makes the prediction table,
under its lock and by its rule: a file holds what one segment has of one model and day, is named after it, and is replaced
as a whole.

Masks ([monitor] hash_columns, drop_columns) hold here too. Records of a plan that has a masked name stay in the journal
only, and so do records that still have a request from before anything was masked.
"""

from __future__ import annotations

import contextlib
import json
import logging
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tiercel.errors import JournalError
from tiercel.monitor.durable import finished, make_directory, remove_file
from tiercel.monitor.prediction_columns import DAY_US, day_of
from tiercel.monitor.prediction_record import HEADS, PlanDeclaration, Record, parse_whole_record

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from tiercel.monitor.prediction_columns import SegmentColumns
    from tiercel.settings import MonitorSettings

log = logging.getLogger("tiercel.monitor")

RECEIPTS = "receipts"
_FILES = "model=*/date=*/*.parquet"
#: Records of a row group: what is read to find one of them.
GROUP_ROWS = 4096
_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("time", pa.timestamp("us")),
        ("first_row", pa.int32()),
        ("plan", pa.dictionary(pa.int32(), pa.string())),
        ("worker", pa.int32()),
        ("prefix", pa.string()),
        ("format", pa.int32()),
        ("record", pa.large_binary()),
    ]
)


class DamagedReceipt(NamedTuple):
    """A place in the files that should give receipts and gives none.

    Attributes:
        id: of the prediction; None: of a row group or a file that cannot be read, which may have held many.
        where: the file, with the row group and row where these are known.
        error: what is wrong there.
    """

    id: str | None
    where: str
    error: JournalError


class ReceiptFiles:
    """Writes and removes the receipts of a state directory.

    Args:
        directory: `<state>/receipts`.
        settings: whether, how long, how much, and what is masked.

    Threads and processes: whoever holds the prediction table's lock.
    """

    def __init__(self, directory: Path, settings: MonitorSettings) -> None:
        self.directory, self._settings = directory, settings
        self._masked = settings.masked

    def write(self, name: str, columns: SegmentColumns) -> None:
        """Bring the files of a segment ("<worker start>/<number>") up to its records.

        Raises:
            OSError: the disk refuses; files that were there stay as they are or are whole.
        """
        if not self._settings.receipts:
            return
        kept = np.flatnonzero(self._may_be_kept(columns))
        if not len(kept):
            return
        heads = columns.heads[kept]
        models = {number: plan.model for number, plan in columns.plans.items()}
        order = sorted(set(models.values()))
        which = np.array([order.index(models[number]) for number in heads["plan"].tolist()])
        days = day_of(heads["received_us"])
        for place, day in np.unique(np.stack([which, days]), axis=1).T.tolist():
            date = np.datetime64(day, "D")
            parent = self.directory / f"model={quote(order[place], safe='')}" / f"date={date}"
            path = parent / f"{name.replace('/', '-')}.parquet"
            records = kept[(which == place) & (days == day)]
            if _n_rows(path) != len(records):
                make_directory(parent)
                _write(path, columns, records)

    def retain(self, now_us: int, *, is_settled: bool) -> None:
        """Remove the oldest days: past retention, where the clock can be trusted with that, or beyond the bound of bytes.

        Raises:
            OSError: the disk refuses.
        """
        files = sorted((_day(path), path) for path in self.directory.glob(_FILES))
        sizes = {path: path.stat().st_size for _, path in files}
        excess = sum(sizes.values()) - self._settings.receipts_max_bytes
        oldest_us = now_us - round(self._settings.receipts_days * DAY_US)
        for day, path in files:
            if excess > 0 or (is_settled and (day + 1) * DAY_US <= oldest_us):
                excess -= sizes[path]
                remove_file(path)
                with contextlib.suppress(OSError):  # other files of the day are still there
                    path.parent.rmdir()

    def _may_be_kept(self, columns: SegmentColumns) -> NDArray[np.bool_]:
        kept = np.ones(len(columns.heads), bool)
        if not self._masked:
            return kept
        for number, plan in columns.plans.items():
            if not self._masked.isdisjoint((*plan.features, *(name for name, _ in plan.join_keys))):
                kept &= columns.heads["plan"] != number
        if "request_bytes" in (columns.heads.dtype.names or ()):
            kept &= columns.heads["request_bytes"] == 0
        return kept


def scan_receipts(
    directory: Path, *, model: str | None = None, since_us: int | None = None, until_us: int | None = None
) -> Iterator[Record | DamagedReceipt]:
    """Receipts in order of model, day, segment and record; a large request has several, by rows. Memory: a row group.

    Damage does not end it: what is damaged comes in its place. A damaged receipt cannot say when it was received, so it
    comes with those of its day, whatever part of the day was asked for.

    Args:
        directory: `<state>/receipts`.
        model: only its.
        since_us: only of requests received from then on.
        until_us: ... and before then.
    """
    pattern = _FILES if model is None else f"model={quote(model, safe='')}/date=*/*.parquet"
    for path in sorted(directory.glob(pattern)):
        day = _day(path)
        # Clocks that went mad are filed under the nearest day that has a name.
        if until_us is not None and day * DAY_US >= until_us and day > 0:
            continue
        if since_us is not None and (day + 1) * DAY_US <= since_us:
            continue
        try:
            file = pq.ParquetFile(path)
        except FileNotFoundError:  # retention was faster
            continue
        except (pa.ArrowException, OSError) as error:
            damage = JournalError(f"{path}: expected a file of receipts, got: {error}")
            yield DamagedReceipt(None, str(path), damage)
            continue
        with file:
            for group in range(file.num_row_groups):
                for found in _records(path, file, group):
                    if isinstance(found, DamagedReceipt) or (
                        (since_us is None or found.received_us >= since_us)
                        and (until_us is None or found.received_us < until_us)
                    ):
                        yield found


def find_receipts(directory: Path, prediction_id: str) -> list[Record]:
    """The receipts of one prediction, by first row; empty: there are none.

    Raises:
        JournalError: one was changed, or a file that may hold it cannot be read.
    """
    found: list[Record] = []
    for path in sorted(directory.glob(_FILES)):
        try:
            with pq.ParquetFile(path) as file:
                for group in range(file.num_row_groups):
                    column = file.metadata.row_group(group).column(0)
                    known = column.statistics
                    if known is not None and known.has_min_max and not known.min <= prediction_id <= known.max:
                        continue
                    for each in _records(path, file, group, prediction_id):
                        if isinstance(each, DamagedReceipt):
                            raise each.error
                        found.append(each)
        except FileNotFoundError:
            continue
        except (pa.ArrowException, OSError) as error:
            raise JournalError(f"{path}: expected a file of receipts, got: {error}") from error
    return sorted(found, key=lambda record: record.first_row)


class _Place(NamedTuple):
    path: Path
    group: int
    row: int

    def __str__(self) -> str:
        return f"{self.path}, row {self.row} of row group {self.group}"


def _records(
    path: Path, file: pq.ParquetFile, group: int, prediction_id: str | None = None
) -> Iterator[Record | DamagedReceipt]:
    try:
        table = file.read_row_group(group)
        rows = np.arange(table.num_rows)
        if prediction_id is not None:
            rows = np.flatnonzero(table["id"].to_numpy() == prediction_id)
            table = table.take(pa.array(rows))
        columns = [table[name].to_pylist() for name in ("id", "plan", "worker", "prefix", "format", "record")]
    except (pa.ArrowException, KeyError, ValueError, OSError) as error:
        where = f"{path}, row group {group} of {file.metadata.row_group(group).num_rows} receipts"
        damage = JournalError(f"{where}: expected a whole row group of receipts, got: {error}")
        yield DamagedReceipt(None, where, damage)
        return
    plans: dict[str, PlanDeclaration] = {}
    for row, values in zip(rows.tolist(), zip(*columns, strict=True), strict=True):
        place = _Place(path, group, row)
        try:
            yield _record(place, plans, *values)
        except JournalError as error:
            yield DamagedReceipt(values[0], str(place), error)


def _record(
    place: _Place,
    plans: dict[str, PlanDeclaration],
    named: str,
    text: str,
    worker: int,
    prefix: str,
    segment_format: int,
    data: bytes,
) -> Record:
    if segment_format not in HEADS:
        raise JournalError(f"{place}: expected a receipt of a known format, got format {segment_format}")
    try:
        if text not in plans:
            plans[text] = PlanDeclaration.from_json(json.loads(text))
        record = parse_whole_record(data, plans[text], worker=worker, prefix=prefix, segment_format=segment_format)
    except (JournalError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise JournalError(f"{place}: the receipt of prediction {named} was changed: {error}") from error
    if record.id != named:
        raise JournalError(f"{place}: the receipt of prediction {named} was changed: its record is of {record.id}")
    return record


def _write(path: Path, columns: SegmentColumns, records: NDArray[np.int64]) -> None:
    heads = columns.heads[records]
    numbers = list(columns.plans)
    texts = [json.dumps(columns.plans[number].to_json(), separators=(",", ":")) for number in numbers]
    which = {number: i for i, number in enumerate(numbers)}
    codes = pa.array([which[number] for number in heads["plan"].tolist()], pa.int32())
    n = len(records)
    table = pa.Table.from_arrays(
        [
            pa.array([f"{columns.prefix}{number:x}" for number in heads["number"].tolist()], pa.string()),
            pa.array(np.ascontiguousarray(heads["received_us"])).cast(pa.timestamp("us")),
            pa.array(np.ascontiguousarray(heads["first_row"])),
            pa.DictionaryArray.from_arrays(codes, pa.array(texts, pa.string())),
            pa.array(np.full(n, columns.worker, np.int32)),
            pa.array([columns.prefix] * n, pa.string()),
            pa.array(np.full(n, columns.segment_format, np.int32)),
            columns.whole_records(records),
        ],
        schema=_SCHEMA,
    )
    with finished(path) as unfinished:
        pq.write_table(
            table,
            unfinished,
            row_group_size=GROUP_ROWS,
            compression="zstd",
            compression_level=1,
            use_dictionary=["plan", "prefix"],
        )


def _n_rows(path: Path) -> int | None:
    try:
        n_rows: int = pq.read_metadata(path).num_rows
    except (FileNotFoundError, pa.ArrowInvalid):
        return None
    return n_rows


def _day(path: Path) -> int:
    """Days since the epoch of a file's partition; 0 for one that nobody here made."""
    with contextlib.suppress(ValueError):
        return int(np.datetime64(path.parent.name.removeprefix("date="), "D").astype(int))
    return 0
