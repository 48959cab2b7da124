"""Conversions of the journal that are killed at every step; run by `test_predictions`."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pyarrow.parquet as pq
from tests.monitor.kill_points import try_every_step
from tests.monitor.recorders import SCHEMA, SIGNATURE, key_bytes, make_recorder, rows_of

from tiercel.monitor.predictions import PredictionTable
from tiercel.settings import MonitorSettings

DAY_US = 86_400_000_000
NOW_US = 20_000 * DAY_US + 1000
SETTINGS = MonitorSettings(retention_days=3, hash_columns=("customer_id",))
#: Records of the template: of two models, two of the days past retention by the time of the act.
N_RECORDS = 18


def predict(recorder, first, n):
    """N requests, every third of three rows, over the last six days, of two models."""
    for number in range(first, first + n):
        n_rows = 3 if number % 3 == 0 else 1
        rows, scores = rows_of(n_rows, seed=number)
        plan = recorder.for_plan(("late", "fraud")[number % 2], 1, SIGNATURE, SCHEMA)
        at_us = NOW_US - (number % 6) * DAY_US
        plan.add(rows, scores, number=number, received_us=at_us, keys=key_bytes(*[number, "x"] * n_rows))


def prepare(state_dir: Path) -> None:
    """A worker that ended, one that was killed, and half of the latter's segment converted."""
    first = make_recorder(state_dir, worker=0)
    predict(first, 0, 6)
    first.close()
    second = make_recorder(state_dir, worker=1)
    predict(second, 6, 6)
    PredictionTable(state_dir, SETTINGS).convert(NOW_US - 10_000)
    predict(second, 12, 6)
    os.kill(os.getpid(), signal.SIGKILL)


def act(state_dir: Path) -> None:
    """What is killed."""
    PredictionTable(state_dir, SETTINGS).convert(NOW_US)


def table_rows(state_dir: Path) -> list[tuple[int, int]]:
    """(number, row) of all that pandas' reader finds in the files, as it finds them."""
    found = []
    for path in sorted((state_dir / "predictions").glob("model=*/date=*/*.parquet")):
        table = pq.read_table(path, columns=["id", "row"], partitioning=None)
        found += [(int(each["id"][16:], 16), each["row"]) for each in table.to_pylist()]
    return found


def expected_rows(*, kept_only: bool) -> list[tuple[int, int]]:
    kept = [number for number in range(N_RECORDS) if not kept_only or number % 6 <= 3]
    return [(number, row) for number in kept for row in range(3 if number % 3 == 0 else 1)]


def check_killed(state_dir: Path) -> None:
    """Whatever moment it was: nothing twice, and nothing that was not answered."""
    found = table_rows(state_dir)
    assert len(set(found)) == len(found)
    assert set(found) <= set(expected_rows(kept_only=False))


def check_recovered(state_dir: Path) -> None:
    """All of it once, what is past retention removed and counted, and nothing left over."""
    assert sorted(table_rows(state_dir)) == expected_rows(kept_only=True)
    ledger = PredictionTable(state_dir, SETTINGS).ledger()
    totals, n_all = ledger.totals, len(expected_rows(kept_only=False))
    assert (totals.records, totals.rows, totals.segments_lost) == (N_RECORDS, n_all, 0)
    assert totals.rows_removed == n_all - len(expected_rows(kept_only=True))
    assert all(entry.is_done for entry in ledger.segments.values())
    assert not list((state_dir / "predictions").rglob(".part-*"))
    act(state_dir)
    assert PredictionTable(state_dir, SETTINGS).ledger().totals == totals


if __name__ == "__main__":
    print(try_every_step(Path(sys.argv[1]), prepare, act, check_killed, check_recovered))
