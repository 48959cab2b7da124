"""The prediction table: every journaled row once, whatever is killed, removed, damaged or full, and readable by anybody."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys

import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from tests.monitor.recorders import FEATURES, PREFIX, SCHEMA, SIGNATURE, key_bytes, make_recorder, rows_of

from tiercel.errors import MonitorStorageError, TableError
from tiercel.monitor.journal import read_journal, segment_paths
from tiercel.monitor.predictions import PredictionTable
from tiercel.settings import JournalSettings, MonitorSettings
from tiercel.types import Signature, Task, Tier

DAY_US = 86_400_000_000
NOW_US = 20_000 * DAY_US + 5_000_000_000
PLAIN = MonitorSettings()


def predict(recorder, numbers, model="late", version=3, n_rows=1, at_us=NOW_US, **more):
    plan = recorder.for_plan(model, version, SIGNATURE, SCHEMA, "base-7")
    for number in numbers:
        rows, scores = rows_of(n_rows, seed=number)
        plan.add(rows, scores, number=number, received_us=at_us, keys=key_bytes(*[number, "x"] * n_rows), **more)


def convert(state_dir, settings=PLAIN, now_us=NOW_US):
    return PredictionTable(state_dir, settings).convert(now_us)


def table_of(state_dir, model="late"):
    """As pandas reads it."""
    return pd.read_parquet(state_dir / "predictions" / f"model={model}").sort_values(["id", "row"], ignore_index=True)


def n_rows(state_dir):
    return sum(pq.read_metadata(path).num_rows for path in (state_dir / "predictions").rglob("*.parquet"))


def test_a_row_is_in_the_table_as_it_was_answered(tmp_path):
    """Id, place, times, who answered, marks, score, keys and features of every row come out of pandas' plain reader."""
    recorder = make_recorder(tmp_path, worker=4)
    plan = recorder.for_plan("late", 3, SIGNATURE, SCHEMA, "base-7", tier=Tier.NEAR_REALTIME)
    rows, scores = rows_of(2)
    plan.add(rows, scores, number=0x2F, received_us=NOW_US, now_us=NOW_US - 5, oldest_age_us=8, total_ns=7_500, flags=2,
             keys=key_bytes(-5, None) + key_bytes(None, "nörd"))  # fmt: skip
    recorder.close()
    assert convert(tmp_path) == 2
    table = table_of(tmp_path)
    assert table.columns.tolist() == [
        "id", "row", "request_rows", "version", "tier", "arm", "time", "read_time", "oldest_age_us", "total_us", "worker",
        "base", "degraded", "degrade_reason", "is_default_filled", "is_shadow", "n_missing", "score", "customer_id", "shop",
        *FEATURES, "date",
    ]  # fmt: skip
    for i, row in table.iterrows():
        assert (row.id, row.row, row.request_rows, row.version) == (f"{PREFIX}2f", i, 2, 3)
        assert (row.tier, row.arm, row.worker, row.base) == ("near-realtime", "champion", 4, "base-7")
        assert row.time == pd.Timestamp(NOW_US, unit="us")
        assert row.read_time == pd.Timestamp(NOW_US - 5, unit="us")
        assert (row.oldest_age_us, row.total_us, row.score) == (8, 7.5, scores[i, 0])
        assert pd.isna(row.degraded)
        assert not row.is_shadow
        assert not row.is_default_filled
        np.testing.assert_array_equal(row[list(FEATURES)].to_numpy(np.float32), rows[i])
        assert row.n_missing == np.isnan(rows[i]).sum()
    assert table.customer_id.tolist() == [-5, pytest.approx(np.nan, nan_ok=True)]
    assert (pd.isna(table.shop[0]), table.shop[1]) == (True, "nörd")


@pytest.mark.parametrize(
    ("flags", "degraded", "reason", "arm", "is_shadow", "is_default_filled"),
    [
        (0, None, None, "champion", False, False),
        (4 | 1 << 8 | 1 << 12, "fallback", "deadline", "champion", False, False),
        (4 | 2 << 8 | 2 << 12, "last_score", "overloaded", "champion", False, False),
        (4 | 3 << 8 | 3 << 12 | 8, "default", "unavailable", "challenger", False, True),
        (4 | 9 << 8 | 9 << 12, "unknown", "unknown", "champion", False, False),
        (16, None, None, "champion", True, False),
        (3 << 8, None, None, "champion", False, False),
    ],
)
def test_marks_tell_who_answered(tmp_path, flags, degraded, reason, arm, is_shadow, is_default_filled):
    """Degraded, default-filled, challengers' and shadows' rows are marked, so that they can be left out."""
    recorder = make_recorder(tmp_path)
    predict(recorder, [1], flags=flags)
    recorder.close()
    convert(tmp_path)
    with PredictionTable(tmp_path, PLAIN).connect() as connection:
        row = connection.execute(
            "SELECT degraded, degrade_reason, arm, is_shadow, is_default_filled FROM predictions"
        ).fetchone()
    assert row == (degraded, reason, arm, is_shadow, is_default_filled)


def test_the_table_adds_up_to_the_journal(tmp_path):
    """Rows and records of the table are those of the journal and of the workers' counters, over models, days and workers."""
    recorders = [make_recorder(tmp_path, worker=worker) for worker in range(2)]
    for worker, recorder in enumerate(recorders):
        for day in range(3):
            first = 1000 * worker + 100 * day
            predict(recorder, range(first, first + 50), model=("late", "fraud")[day % 2], at_us=NOW_US - day * DAY_US)
            predict(recorder, range(first + 50, first + 60), n_rows=7, at_us=NOW_US - day * DAY_US)
    for recorder in recorders:
        recorder.close()
    records = list(read_journal(tmp_path / "journal"))
    assert convert(tmp_path) == sum(len(record.rows) for record in records) == n_rows(tmp_path)
    totals = PredictionTable(tmp_path, PLAIN).ledger().totals
    assert totals.records == len(records) == sum(each.counters.get("journal_records") for each in recorders)
    with PredictionTable(tmp_path, PLAIN).connect() as connection:
        found = connection.execute('SELECT model, id, "row", score, a FROM predictions ORDER BY ALL').fetchall()
    expected = sorted(
        (record.plan.model, record.id, record.first_row + i, record.scores[i, 0], record.rows[i, 0])
        for record in records
        for i in range(len(record.rows))
    )
    assert [row[:4] for row in found] == [row[:4] for row in expected]
    theirs = [None if np.isnan(row[4]) else float(row[4]) for row in expected]
    assert [row[4] for row in found] == theirs


def test_a_live_segment_is_converted_as_it_grows(tmp_path):
    """What a worker answered is in the table before its segment is full; later conversions add the rest, and nothing twice."""
    recorder = make_recorder(tmp_path)
    for n in range(1, 4):
        predict(recorder, range(10 * n, 10 * n + 5))
        assert convert(tmp_path) == 5
        assert convert(tmp_path) == 0
        assert table_of(tmp_path).id.is_unique
    recorder.close()
    assert convert(tmp_path) == 0
    assert len(table_of(tmp_path)) == 15
    assert len(list((tmp_path / "predictions").rglob("*.parquet"))) == 1


def test_a_connection_shows_one_moment(tmp_path):
    """A file that is replaced by a longer one under a reader neither breaks nor changes what it reads."""
    recorder = make_recorder(tmp_path)
    predict(recorder, range(5))
    convert(tmp_path)
    with PredictionTable(tmp_path, PLAIN).connect() as before:
        predict(recorder, range(5, 10))
        assert convert(tmp_path) == 5
        assert before.execute("SELECT count(*), count(DISTINCT id), any_value(model) FROM outcomes").fetchone() == (
            5,
            5,
            "late",
        )
        with PredictionTable(tmp_path, PLAIN).connect() as after:
            assert after.execute("SELECT count(*), count(DISTINCT id) FROM outcomes").fetchone() == (10, 10)
    recorder.close()


def test_only_files_that_grow_are_written_again(tmp_path):
    """A day that is over is not written again because the segment goes on."""
    recorder = make_recorder(tmp_path)
    predict(recorder, range(5), at_us=NOW_US - DAY_US)
    convert(tmp_path)
    (old,) = (tmp_path / "predictions").rglob("*.parquet")
    before = old.stat().st_ino
    predict(recorder, range(5, 10))
    convert(tmp_path)
    recorder.close()
    assert old.stat().st_ino == before
    assert n_rows(tmp_path) == 10


def test_killed_at_every_step_each_row_is_there_once(tmp_path):
    """Killed before each of its changes to files and run again, a conversion leaves every row once, and no reader finds one twice."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.monitor.killed_conversion", str(tmp_path)],
        timeout=300,
        check=True,
        capture_output=True,
        text=True,
    )
    assert int(done.stdout) > 30


def test_a_lost_ledger_puts_nothing_into_the_table_twice(tmp_path):
    """Without its ledger the table is converted anew into the same files; a damaged one is named with what to do."""
    recorder = make_recorder(tmp_path)
    predict(recorder, range(20))
    recorder.close()
    convert(tmp_path)
    ledger = tmp_path / "predictions" / "_ledger.json"
    for damage in (b"{", b"[]", b'{"format": "other"}', b'{"format": "tiercel-predictions-1"}'):
        ledger.write_bytes(damage)
        with pytest.raises(TableError, match="Remove the file"):
            convert(tmp_path)
    ledger.unlink()
    assert convert(tmp_path) == 20
    assert n_rows(tmp_path) == 20


def fill_journal(state_dir, settings, *, between=lambda: None, n=400):
    recorder = make_recorder(state_dir, settings)
    plan = recorder.for_plan("late", 1, SIGNATURE)
    rows, scores = rows_of(2000)
    for number in range(n):
        while recorder._journal.wants_segment:
            os.sched_yield()
        plan.add(rows, scores, number=number, received_us=NOW_US)
        if number % 50 == 49:
            between()
    recorder.close()
    return recorder.counters


def test_the_journal_keeps_what_is_not_converted_as_long_as_it_can(tmp_path):
    """Beyond the journal's bound, converted segments go first: an older one that is not converted outlives them."""
    old = make_recorder(tmp_path)
    predict(old, range(3))
    old.close()
    (unread,) = segment_paths(tmp_path / "journal")
    hidden = unread.parent.with_name(".hidden")

    def convert_all_but_the_old():
        unread.parent.rename(hidden)
        convert(tmp_path)
        hidden.rename(unread.parent)

    bound = JournalSettings(segment_bytes=1 << 21, max_bytes=6 << 21)
    counters = fill_journal(tmp_path, bound, between=convert_all_but_the_old)
    assert counters.get("segments_removed") > 1
    assert counters.get("segments_removed_unread") == 0
    assert unread.exists()


def test_what_the_journal_had_to_remove_is_counted(tmp_path):
    """Segments that the bound forces out unconverted are counted by the worker, and by the table that misses them."""
    counters = fill_journal(tmp_path, JournalSettings(segment_bytes=1 << 21, max_bytes=5 << 21))
    recorder = make_recorder(tmp_path)  # the directory of the first is there still
    convert(tmp_path)
    recorder.close()
    lost = counters.get("segments_removed_unread")
    assert lost == counters.get("segments_removed") > 0
    for _ in range(2):
        convert(tmp_path)
        assert PredictionTable(tmp_path, PLAIN).ledger().totals.segments_lost == lost


def test_a_segment_that_vanishes_half_converted_is_lost(tmp_path, caplog):
    """What was converted of it stays, and the loss is counted and logged with what to do."""
    recorder = make_recorder(tmp_path)
    predict(recorder, range(5))
    convert(tmp_path)
    recorder.close()
    (path,) = segment_paths(tmp_path / "journal")
    path.unlink()
    with caplog.at_level(logging.ERROR):
        convert(tmp_path)
    assert "journal.max_bytes" in caplog.text
    assert PredictionTable(tmp_path, PLAIN).ledger().totals.segments_lost == 1
    assert n_rows(tmp_path) == 5


def test_spare_segments_of_dead_workers_are_no_loss(tmp_path):
    """A segment that was made ready, never used and deleted is not counted as lost."""
    recorder = make_recorder(tmp_path)
    predict(recorder, range(5))
    while recorder._journal.wants_segment:
        os.sched_yield()
    assert len(segment_paths(tmp_path / "journal")) == 2
    convert(tmp_path)
    recorder.close()
    assert len(segment_paths(tmp_path / "journal")) == 1
    convert(tmp_path)
    assert PredictionTable(tmp_path, PLAIN).ledger().totals.segments_lost == 0


def test_damage_costs_what_is_damaged(tmp_path, caplog):
    """Records before the damage are in the table; a file that is no segment stops nothing; both are counted once."""
    recorder = make_recorder(tmp_path)
    predict(recorder, range(10))
    recorder.close()
    (path,) = segment_paths(tmp_path / "journal")
    data = bytearray(path.read_bytes())
    data[-60] ^= 1  # in the last record's keys or rows
    path.write_bytes(data)
    (path.parent / "000099.log").write_bytes(b"?" * 300)
    for _ in range(2):
        with caplog.at_level(logging.ERROR):
            convert(tmp_path)
        totals = PredictionTable(tmp_path, PLAIN).ledger().totals
        assert (totals.segments, totals.segments_damaged, totals.rows) == (2, 2, 9)
    assert len(table_of(tmp_path)) == 9


def test_a_full_disk_costs_nothing(tmp_path, monkeypatch):
    """Whichever write fails, the error says so, nothing is half there, and the next conversion has it all."""
    recorder = make_recorder(tmp_path)
    predict(recorder, range(10))
    recorder.close()
    table = PredictionTable(tmp_path, PLAIN)
    table.convert(NOW_US - 1_000_000)
    (tmp_path / "predictions" / "_ledger.json").unlink()
    for path in (tmp_path / "predictions").rglob("*.parquet"):
        path.unlink()

    real = {name: getattr(os, name) for name in ("write", "fsync", "replace")}
    for name in ("fsync", "replace", "write"):
        calls = []

        def refuse(*arguments, name=name, calls=calls):
            calls.append(name)
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, name, refuse)
        with pytest.raises(MonitorStorageError, match="No space left"):
            table.convert(NOW_US)
        monkeypatch.setattr(os, name, real[name])
        assert calls
        assert not list((tmp_path / "predictions").rglob(".part-*"))
    assert table.convert(NOW_US) == 10
    assert n_rows(tmp_path) == 10
    assert table.ledger().totals.rows == 10


def test_retention_removes_days_and_counts_their_rows(tmp_path):
    """Days past retention_days go, whole; what is left and what was removed add up to what was converted."""
    recorder = make_recorder(tmp_path)
    for day in range(6):
        predict(recorder, range(10 * day, 10 * day + 10), at_us=NOW_US - day * DAY_US)
    settings = MonitorSettings(retention_days=2)
    convert(tmp_path, settings)
    left = sorted(path.name for path in (tmp_path / "predictions" / "model=late").iterdir())
    assert left == [f"date={np.datetime64(20_000 - day, 'D')}" for day in (2, 1, 0)]
    predict(recorder, range(90, 95), at_us=NOW_US - 5 * DAY_US)  # a clock that is set back, or a segment that waited
    convert(tmp_path, settings)
    recorder.close()
    totals = PredictionTable(tmp_path, settings).ledger().totals
    assert (totals.rows, totals.rows_removed) == (65, 35)
    assert n_rows(tmp_path) == 30


def test_the_oldest_days_give_way_to_the_bound(tmp_path):
    """Beyond predictions_max_bytes the oldest days are removed, whatever their age."""
    recorder = make_recorder(tmp_path)
    for day in range(4):
        predict(recorder, range(2000 * day, 2000 * day + 1), n_rows=2000, at_us=NOW_US - day * DAY_US)
    recorder.close()
    convert(tmp_path)
    sizes = [path.stat().st_size for path in (tmp_path / "predictions").rglob("*.parquet")]
    convert(tmp_path, MonitorSettings(predictions_max_bytes=round(2.5 * max(sizes))))
    assert len(list((tmp_path / "predictions").rglob("*.parquet"))) == 2
    assert table_of(tmp_path).time.min() == pd.Timestamp(NOW_US - DAY_US, unit="us")


def test_a_clock_that_jumps_removes_nothing(tmp_path):
    """A year ahead nothing is removed before the clock has gone on from there; back again, nothing is at all."""
    recorder = make_recorder(tmp_path)
    predict(recorder, range(10))
    recorder.close()
    convert(tmp_path)
    ahead_us = NOW_US + 400 * DAY_US
    for now_us in (ahead_us, ahead_us + 60_000_000, NOW_US + 120_000_000):
        convert(tmp_path, now_us=now_us)
        assert n_rows(tmp_path) == 10
    assert PredictionTable(tmp_path, PLAIN).ledger().totals.clock_jumps == 2
    for hours in range(0, 400 * 24, 40):  # as time really goes
        convert(tmp_path, now_us=NOW_US + hours * 3_600_000_000)
    assert n_rows(tmp_path) == 0


@pytest.mark.parametrize("at_us", [-5, 0, 1 << 62, -(1 << 62), 253_402_300_800_000_000])
def test_absurd_times_are_kept(tmp_path, at_us):
    """What was answered under a clock that was nowhere is in the table, in a date that every reader can read."""
    recorder = make_recorder(tmp_path)
    predict(recorder, range(3), at_us=at_us)
    predict(recorder, range(3, 5))
    recorder.close()
    convert(tmp_path)
    with PredictionTable(tmp_path, PLAIN).connect() as connection:
        assert connection.execute("SELECT count(*), count(DISTINCT date) FROM predictions").fetchone() == (5, 2)
        assert connection.execute("SELECT epoch_us(time) FROM predictions WHERE id LIKE '%0'").fetchone() == (at_us,)


def test_masked_columns_are_hashed_or_left_out(tmp_path):
    """Hashes stay equal for equal values and differ between state directories; values as they were are in no file."""
    settings = MonitorSettings(hash_columns=("customer_id", "a"), drop_columns=("shop", "b"))
    hashes = []
    for state_dir in (tmp_path / "one", tmp_path / "two"):
        recorder = make_recorder(state_dir)
        plan = recorder.for_plan("late", 3, SIGNATURE, SCHEMA)
        for number, customer in enumerate([987_654_321, 5, 987_654_321, None]):
            plan.add(np.float32([[1.5, 2, 3]]), np.array([[0.5]]), number=number, received_us=NOW_US,
                     keys=key_bytes(customer, "secret"))  # fmt: skip
        recorder.close()
        convert(state_dir, settings)
        table = table_of(state_dir)
        assert {"shop", "b"}.isdisjoint(table.columns)
        first, other, again, nothing = table.customer_id
        assert first == again != other
        assert pd.isna(nothing)
        assert len(first) == 20
        assert len(set(table.a)) == 1
        hashes.append(first)
        for path in (state_dir / "predictions").rglob("*.parquet"):
            assert b"secret" not in path.read_bytes()
            assert pq.read_table(path, partitioning=None).column("customer_id").type == "string"
        assert (state_dir / "predictions" / ".salt").stat().st_mode & 0o777 == 0o600
    assert hashes[0] != hashes[1]


def test_a_mask_that_names_nothing_is_said(tmp_path, caplog):
    """A misspelled mask would show what should not be seen: it is logged once, and can be asked for."""
    recorder = make_recorder(tmp_path)
    predict(recorder, range(2))
    recorder.close()
    table = PredictionTable(tmp_path, MonitorSettings(hash_columns=("customer",), drop_columns=("shop",)))
    with caplog.at_level(logging.WARNING):
        table.convert(NOW_US)
        table.convert(NOW_US)
    assert [record.getMessage() for record in caplog.records if "customer" in record.getMessage()] == [
        "[monitor]: expected the name of a join key or feature to mask, got 'customer': no model has it"
    ]
    assert table.unknown_masks() == ["customer"]


def test_files_are_their_owners_alone(tmp_path):
    """Nobody else on the host reads predictions."""
    recorder = make_recorder(tmp_path)
    predict(recorder, range(2))
    recorder.close()
    convert(tmp_path)
    paths = [tmp_path / "predictions", *(tmp_path / "predictions").rglob("*")]
    assert all(path.stat().st_mode & 0o077 == 0 for path in paths)


def test_models_of_other_columns_share_the_views(tmp_path):
    """Versions with other features, multiclass scores and keys of another type are one view; one model's has its own columns."""
    recorder = make_recorder(tmp_path)
    predict(recorder, range(3))
    multi = recorder.for_plan("kind", 1, Signature(("a", "z"), Task.MULTICLASS, ("x", "y", "z")), SCHEMA)
    multi.add(np.float32([[1, 2]]), np.array([[0.2, 0.3, 0.5]]), number=9, received_us=NOW_US, keys=key_bytes(1, "x"))
    recorder.for_plan("late", 4, Signature(("a", "new"), Task.BINARY, ("no", "yes")), SCHEMA).add(
        np.float32([[1, 7]]), np.array([[0.2]]), number=10, received_us=NOW_US, keys=key_bytes(1, "x")
    )
    recorder.close()
    convert(tmp_path)
    table = PredictionTable(tmp_path, PLAIN)
    with table.connect() as connection:
        rows = connection.execute(
            'SELECT model, version, score, "score.y", new, b FROM predictions ORDER BY id'
        ).fetchall()
        assert [row[:2] for row in rows] == [("late", 3)] * 3 + [("kind", 1), ("late", 4)]
        assert rows[3][2:4] == (None, 0.3)
        assert rows[4][4] == 7
    with table.connect("kind") as connection:
        names = [name for name, *_ in connection.execute("DESCRIBE predictions").fetchall()]
        assert "b" not in names
        assert "score" in names
        assert connection.execute("SELECT count(*) FROM outcomes").fetchone() == (1,)
    assert len(table_of(tmp_path, "kind")) == 1


def test_a_model_may_be_called_like_a_number(tmp_path):
    """Names of partitions stay text."""
    recorder = make_recorder(tmp_path)
    predict(recorder, range(1), model="007")
    recorder.close()
    convert(tmp_path)
    with PredictionTable(tmp_path, PLAIN).connect("007") as connection:
        assert connection.execute("SELECT model, date::VARCHAR FROM predictions").fetchall() == [("007", "2024-10-04")]


def test_an_empty_table_can_be_asked(tmp_path):
    """Before anything was answered, the views are there and empty; nothing is written for them."""
    with PredictionTable(tmp_path, PLAIN).connect() as connection:
        for view in ("predictions", "labels", "outcomes", "versions"):
            assert connection.execute(f"SELECT count(*) FROM {view}").fetchone() == (0,)
        connection.execute(
            "SELECT id, row, model, version, arm, tier, time, score, label, value, degraded FROM outcomes"
        )
    assert convert(tmp_path) == 0
    with pytest.raises(duckdb.Error), PredictionTable(tmp_path, PLAIN).connect() as connection:
        connection.execute("SELECT nothing FROM predictions")


def test_one_process_converts_at_a_time(tmp_path):
    """While another has the lock, a conversion does nothing and says that nothing is new."""
    from tiercel.monitor.durable import locked, make_directory

    recorder = make_recorder(tmp_path)
    predict(recorder, range(3))
    recorder.close()
    make_directory(tmp_path / "predictions")
    with locked(tmp_path / "predictions" / ".lock", waits=False) as is_held:
        assert is_held
        assert convert(tmp_path) == 0
    assert convert(tmp_path) == 3


def test_the_ledger_forgets_segments_that_are_gone(tmp_path):
    """It is as long as the journal, not as long as its history."""
    for start in range(3):
        recorder = make_recorder(tmp_path)
        predict(recorder, range(start, start + 1))
        recorder.close()
        convert(tmp_path)
        for path in segment_paths(tmp_path / "journal"):
            path.unlink()
    convert(tmp_path)
    ledger = json.loads((tmp_path / "predictions" / "_ledger.json").read_text())
    assert ledger["segments"] == {}
    assert ledger["newest"] == {}
    assert (ledger["totals"]["segments"], ledger["totals"]["segments_lost"]) == (3, 0)
