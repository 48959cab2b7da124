"""Collecting labels: from the logs that writers append to, into Parquet files of which each key's last state is read.

A round reads what is new in all logs, at most ROUND_EVENTS, finds out what it changes, writes that as parts of their own and
replaces the ledger; a kill before that leaves parts that do not count, and the round is done again. Rounds are the order of
time: a clock that jumps decides nothing between two of them. Within a round it is the writers' own order.

Small parts of one size are merged into one when there are MERGE_PARTS of them, and states that changed are folded in when they
are many, so that a label is written a few times in all and a query opens few files.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from tiercel.monitor.directories import is_live, worker_directories
from tiercel.monitor.durable import finished, locked, make_directory, remove_file, remove_unfinished
from tiercel.monitor.label_ledger import CHANGED, FIRST, LabelLedger, LabelPart
from tiercel.monitor.label_log import MAGIC, log_paths, read_frames
from tiercel.monitor.label_query import COLUMNS, MEMORY_LIMIT, files, labels_query, open_connection, quote

if TYPE_CHECKING:
    from pathlib import Path

    import duckdb

    from tiercel.monitor.label_log import Frame

ROUND_EVENTS = 250_000
MERGE_PARTS = 8
#: Parts that are larger are not merged any more.
FULL_ROWS = 4_000_000
#: States that changed are folded in when they are this many, or this share of all.
FOLD_ROWS, FOLD_SHARE = 100_000, 0.2
#: How long a query may take that reads parts which are replaced meanwhile.
READING_US = 3_600_000_000
_DAY_US = 86_400_000_000
#: As of `predictions`: what a clock may do before it is not trusted to remove anything, and for how long.
_JUMP_US, _SETTLE_US = 2 * _DAY_US, 3_600_000_000
#: What is known of a key before an event: by earlier events of the round, or else by earlier rounds.
_JUDGED = """
CREATE TEMP TABLE judged AS
WITH known AS (SELECT l.*, l.id AS known_id FROM ({labels}) l SEMI JOIN events e ON l.id = e.id AND l."row" = e."row"),
told AS (
    SELECT e.*, coalesce('n' || e.label::VARCHAR, 't' || e.label_text) AS told,
        k.known_id IS NOT NULL AS is_old, coalesce('n' || k.label::VARCHAR, 't' || k.label_text) AS old_told,
        k.label AS old_label, k.label_text AS old_text, k.value AS old_value, k.label_time AS old_time,
        k.label_received AS old_received, coalesce(k.label_revision, 0) AS old_revision,
        coalesce(k.row_given, false) AS old_given
    FROM events e LEFT JOIN known k ON e.id = k.id AND e."row" = k."row"
),
before AS (
    SELECT *, is_old OR row_number() OVER w > 1 AS is_known,
        coalesce(last_value(told IGNORE NULLS) OVER earlier, old_told) AS told_before,
        coalesce(last_value(value IGNORE NULLS) OVER earlier, old_value) AS value_before
    FROM told
    WINDOW w AS (PARTITION BY id, "row" ORDER BY place),
        earlier AS (PARTITION BY id, "row" ORDER BY place ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
)
SELECT *, CASE
    WHEN NOT is_known THEN 'first'
    WHEN told <> told_before OR value <> value_before THEN 'corrections'
    WHEN (told IS NULL OR told_before IS NOT NULL) AND (value IS NULL OR value_before IS NOT NULL) THEN 'duplicates'
    ELSE 'additions' END AS verdict
FROM before
"""
#: The last state of each key that the round changed. A label's time is that of the event that made it what it is.
_STATES = """
CREATE TEMP TABLE states AS
SELECT id, "row", row_given, is_old, value, label_revision,
    CASE WHEN l IS NULL THEN old.label ELSE l.label END AS label,
    CASE WHEN l IS NULL THEN old.label_text ELSE l.label_text END AS label_text,
    coalesce(l.at, old.at, any_at) AS label_time, coalesce(l.received, old.received, any_received) AS label_received
FROM (
    SELECT id, "row", bool_or(row_given) OR any_value(old_given) AS row_given, any_value(is_old) AS is_old,
        arg_max(struct_pack(label := label, label_text := label_text, at := label_time, received := label_received), place)
            FILTER (told IS NOT NULL AND told IS DISTINCT FROM told_before) AS l,
        any_value(struct_pack(label := old_label, label_text := old_text, at := old_time, received := old_received)) AS old,
        arg_max(label_time, place) AS any_at, arg_max(label_received, place) AS any_received,
        coalesce(arg_max(value, place) FILTER (value IS NOT NULL), any_value(old_value)) AS value,
        (any_value(old_revision) + count(*) FILTER (verdict IN ('corrections', 'additions')))::INTEGER AS label_revision
    FROM judged GROUP BY id, "row" HAVING count(*) FILTER (verdict <> 'duplicates') > 0
)
"""


class Collection:
    """One collection, in rounds, under the lock of the directory.

    Args:
        directory: of the labels.
        incoming: of the logs.
        retention_days: how long labels are kept.
        now_us: the time.
    """

    def __init__(self, directory: Path, incoming: Path, *, retention_days: float, now_us: int) -> None:
        self._directory, self._incoming = directory, incoming
        self._retention_us, self._now_us = round(retention_days * _DAY_US), now_us
        self._ledger = LabelLedger()
        self._oldest_us: int | None = None

    def run(self, *, waits: bool | float) -> int | None:
        """Collect everything there is; returns how many events that were. None: another process is at it."""
        make_directory(self._directory)
        with locked(self._directory / ".lock", waits=waits) as is_held:
            if not is_held:
                return None
            self._ledger = LabelLedger.read(self._directory)
            self._tidy()
            n_events = 0
            while (n_new := self._round()) is not None:
                n_events += n_new
            self._judge_clock()
            self._merge()
            self._retain()
            return n_events

    def _round(self) -> int | None:
        """Take what is new in the logs; returns how many events, or None when nothing is new."""
        ledger = self._ledger
        dead = {each.name for each in worker_directories(self._incoming) if not is_live(each)}  # before they are read
        paths = log_paths(self._incoming)
        frames, offsets, is_end = self._read(paths)
        n_events = sum(len(frame.events) for frame in frames)
        if frames:
            for frame in frames:
                ledger.totals.count(frame.refused, frame.notes)
            if n_events:
                ledger.round += 1
                self._take(_table(frames))
            ledger.offsets.update(offsets)
            ledger.write(self._directory)
        if is_end:
            self._remove_logs(paths, dead)
        return n_events if frames else None

    def _read(self, paths: list[Path]) -> tuple[list[Frame], dict[str, int], bool]:
        """New frames of all logs in the order in which they came, how far that is in each, and whether it is all."""
        frames, offsets, n_events = [], {}, 0
        with contextlib.ExitStack() as stack:
            logs = []
            for path in paths:
                name = f"{path.parent.name}/{path.stem}"
                frames_of = read_frames(path, self._ledger.offsets.get(name, 0))
                stack.callback(frames_of.close)
                logs.append(zip(frames_of, itertools.repeat(name)))
            for (frame, end), name in heapq.merge(*logs, key=lambda each: each[0][0].order):
                frames.append(frame)
                offsets[name] = end
                n_events += len(frame.events)
                if n_events >= ROUND_EVENTS:
                    return frames, offsets, False
        return frames, offsets, True

    def _take(self, events: pa.Table) -> None:
        ledger, totals = self._ledger, self._ledger.totals
        connection = self._connect()
        try:
            connection.register("events", events)
            connection.execute(_JUDGED.format(labels=labels_query(self._directory, ledger)))
            verdicts = connection.execute("SELECT verdict, count(*) FROM judged GROUP BY verdict").fetchall()
            connection.execute(_STATES)
            for verdict, n in verdicts:
                setattr(totals, verdict, getattr(totals, verdict) + n)
                totals.events += n
            for kind, condition in ((FIRST, "NOT is_old"), (CHANGED, "is_old")):
                columns = ", ".join(f'"{name}"' for name in COLUMNS)
                self._write_part(
                    connection,
                    kind,
                    f"SELECT {columns}, {ledger.round} AS round FROM states WHERE {condition}",  # noqa: S608
                )
        finally:
            connection.close()

    def _write_part(self, connection: duckdb.DuckDBPyConnection, kind: str, query: str) -> int:
        """Write a query's rows as a part, unless there are none; returns how many there are."""
        ledger = self._ledger
        numbers = [int(file.split("-")[1]) for file in (*(part.file for part in ledger.parts), *ledger.replaced)]
        path = self._directory / f"part-{max(numbers, default=0) + 1:08d}-{kind}.parquet"
        with finished(path) as unfinished:
            connection.execute(
                f'COPY (SELECT * FROM ({query}) ORDER BY id, "row") TO {quote(str(unfinished))} '  # noqa: S608
                f"(FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 122880)"
            )
        n_rows, newest_us = connection.execute(
            f"SELECT count(*), coalesce(epoch_us(max(label_received)), 0) FROM {files([path])}"  # noqa: S608
        ).fetchone() or (0, 0)
        if n_rows:
            ledger.parts.append(LabelPart(path.name, kind, n_rows, newest_us))
        else:
            remove_file(path)
        return int(n_rows)

    def _merge(self) -> None:
        """Merge parts of a size when they are many; fold in what changed when it is much, or would outlive what it changes."""
        ledger = self._ledger
        changed = [part for part in ledger.parts if part.kind == CHANGED]
        n_changed, n_all = (sum(part.rows for part in parts) for parts in (changed, ledger.parts))
        if n_changed > max(FOLD_ROWS, FOLD_SHARE * n_all) or any(self._is_expired(part) for part in changed):
            query = f"SELECT *, {ledger.round} AS round FROM ({labels_query(self._directory, ledger)})"  # noqa: S608
            self._replace(ledger.parts, FIRST, query)
        elif len(changed) >= MERGE_PARTS:
            source = files([self._directory / part.file for part in changed])
            # The row as a whole: of a column alone, arg_max leaves out the rows that have none.
            query = f'SELECT unnest(t) FROM (SELECT arg_max(t, round) AS t FROM {source} t GROUP BY id, "row")'  # noqa: S608
            self._replace(changed, CHANGED, query)
        tiers: dict[int, list[LabelPart]] = {}
        for part in ledger.parts:
            if part.kind == FIRST and part.rows < FULL_ROWS:
                tiers.setdefault((part.rows // 1000).bit_length() // 3, []).append(part)
        for parts in tiers.values():
            if len(parts) >= MERGE_PARTS:
                self._replace(parts, FIRST, f"SELECT * FROM {files([self._directory / part.file for part in parts])}")  # noqa: S608

    def _replace(self, parts: list[LabelPart], kind: str, query: str) -> None:
        """Write a query's rows in the place of parts."""
        old = list(parts)
        ledger = self._ledger
        if kind == FIRST and self._oldest_us is not None:  # the oldest may be merged with the newest: by row, then
            query = f"SELECT * FROM ({query}) WHERE label_received >= make_timestamp({self._oldest_us})"  # noqa: S608
        connection = self._connect()
        try:
            n_rows = self._write_part(connection, kind, query)
        finally:
            connection.close()
        if kind == FIRST:
            n_before = sum(part.rows for part in old if part.kind == FIRST)
            ledger.totals.rows_expired += max(0, n_before - n_rows)  # what changed may have outlived what it changed
        self._drop(old)

    def _drop(self, old: list[LabelPart]) -> None:
        """Let parts not count any more. Their files stay a while for who has begun to read them; see `_tidy`."""
        ledger = self._ledger
        ledger.parts = [part for part in ledger.parts if part not in old]
        ledger.replaced |= {part.file: self._now_us for part in old}
        ledger.write(self._directory)

    def _judge_clock(self) -> None:
        ledger, now_us = self._ledger, self._now_us
        if ledger.last_us and not 0 <= now_us - ledger.last_us <= _JUMP_US:
            ledger.settled_us = now_us
        is_settled = now_us - ledger.settled_us >= _SETTLE_US
        self._oldest_us = now_us - self._retention_us if is_settled else None
        ledger.last_us = now_us

    def _is_expired(self, part: LabelPart) -> bool:
        return self._oldest_us is not None and part.newest_us < self._oldest_us

    def _retain(self) -> None:
        """Remove parts of which every label is past retention."""
        ledger = self._ledger
        old = [part for part in ledger.parts if part.kind == FIRST and self._is_expired(part)]
        ledger.totals.rows_expired += sum(part.rows for part in old)
        self._drop(old)

    def _tidy(self) -> None:
        """Remove what a kill left, unfinished files and parts that do not count, and parts that nobody reads any more."""
        remove_unfinished(self._directory)
        ledger = self._ledger
        ledger.replaced = {
            file: since_us for file, since_us in ledger.replaced.items() if abs(self._now_us - since_us) < READING_US
        }
        kept = {part.file for part in ledger.parts} | set(ledger.replaced)
        for path in self._directory.glob("part-*.parquet"):
            if path.name not in kept:
                remove_file(path)
        there = {f"{path.parent.name}/{path.stem}" for path in log_paths(self._incoming)}
        self._ledger.offsets = {name: offset for name, offset in self._ledger.offsets.items() if name in there}

    def _remove_logs(self, paths: list[Path], dead: set[str]) -> None:
        """Remove logs that were read to their end and get no more, and directories of dead writers."""
        newest = {path.parent: path for path in paths}
        for path in paths:
            if path.parent.name in dead or path != newest[path.parent]:
                n_left = path.stat().st_size - self._ledger.offsets.get(f"{path.parent.name}/{path.stem}", len(MAGIC))
                if n_left > 0:  # a frame that a kill cut off, and nobody was told of; or damage
                    self._ledger.totals.count({}, {"unreadable_bytes": n_left})
                remove_file(path)
        for name in dead:
            directory = self._incoming / name
            if not any(directory.glob("*.log")):
                shutil.rmtree(directory, ignore_errors=True)

    def _connect(self) -> duckdb.DuckDBPyConnection:
        return open_connection(self._directory / ".spill", threads=2, memory_limit=MEMORY_LIMIT)


def _table(frames: list[Frame]) -> pa.Table:
    events = [event for frame in frames for event in frame.events]
    received = np.repeat([frame.received_us for frame in frames], [len(frame.events) for frame in frames])
    ids, rows, labels, texts, values, times = zip(*events, strict=True)
    columns = {
        "id": pa.array(ids, pa.string()),
        "row": pa.array([row or 0 for row in rows], pa.int32()),
        "row_given": pa.array([row is not None for row in rows]),
        "label": pa.array(labels, pa.float64()),
        "label_text": pa.array(texts, pa.string()),
        "value": pa.array(values, pa.float64()),
        "label_time": pa.array(times, pa.timestamp("us")),
        "label_received": pa.array(received, pa.timestamp("us")),
        "place": pa.array(np.arange(len(events))),
    }
    return pa.table(columns)
