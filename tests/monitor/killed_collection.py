"""Labels whose writer, and whose collector, is killed at every step; run by `test_labels`."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from tests.monitor import kill_points
from tests.monitor.recorders import PREFIX

from tiercel.monitor import label_collect
from tiercel.monitor.labels import LabelStore
from tiercel.settings import MonitorSettings

SETTINGS = MonitorSettings()
NOW_US = 1_700_000_000_000_000
write = os.write


def tell(store: LabelStore, number: int, label: int) -> None:
    """One label, then one that is refused."""
    store.append([{"id": f"{PREFIX}{number:x}", "label": label}, {"id": "?"}], NOW_US)


def prepare(state_dir: Path) -> None:
    """Labels collected, corrected, and repeated; a writer that was killed, one that ended, a log that was rotated."""
    label_collect.MERGE_PARTS = 3
    for start in range(2):
        store = LabelStore(state_dir, worker=start)
        for number in range(5):
            tell(store, 5 * start + number, 0)
        store.collect(SETTINGS, NOW_US)
        store.close()
    store = LabelStore(state_dir, worker=2)
    tell(store, 0, 1)
    store._log._size = 1 << 30  # the next one opens another log
    tell(store, 1, 0)
    tell(store, 20, 1)
    os.kill(os.getpid(), signal.SIGKILL)


def collect(state_dir: Path) -> None:
    """What is killed: a round, a merge of parts, and the removal of logs."""
    label_collect.MERGE_PARTS = 3
    store = LabelStore(state_dir)
    store.collect(SETTINGS, NOW_US)
    store.close()


def labels(state_dir: Path) -> dict[int, float]:
    import duckdb

    rows = duckdb.sql(f"SELECT id, label FROM ({LabelStore(state_dir).query()})").fetchall()
    assert len({each for each, _ in rows}) == len(rows)
    return {int(prediction[16:], 16): label for prediction, label in rows}


def check_killed(state_dir: Path) -> None:
    """The labels of before, or those of after."""
    before = dict.fromkeys(range(10), 0.0)
    assert labels(state_dir) in (before, before | {0: 1.0, 20: 1.0})


def check_recovered(state_dir: Path) -> None:
    """All labels, counted once; the logs gone."""
    assert labels(state_dir) == dict.fromkeys(range(10), 0.0) | {0: 1.0, 20: 1.0}
    ledger = LabelStore(state_dir).ledger()
    totals = ledger.totals
    counted = (totals.events, totals.first, totals.corrections, totals.duplicates)
    assert counted == (13, 11, 1, 1), ledger
    assert totals.refused == {"invalid_id": 13}
    assert not list((state_dir / "labels" / "incoming").rglob("*.log"))
    assert sum(part.rows for part in ledger.parts if part.kind == "first") == 11
    files = {path.name for path in (state_dir / "labels").glob("*.parquet")}
    assert files == {part.file for part in ledger.parts} | set(ledger.replaced)


def append(state_dir: Path) -> None:
    """What is killed: a writer; it notes what it was told is accepted."""
    acknowledged = os.open(state_dir / "acknowledged", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    store = LabelStore(state_dir, worker=7)
    for number in range(3):
        tell(store, 100 + number, 1)
        write(acknowledged, b"%d\n" % (100 + number))
    store.close()


def check_appended(state_dir: Path) -> None:
    """What was acknowledged is there after the kill, and at most one label more."""
    collect(state_dir)
    found = {number for number in labels(state_dir) if number >= 100}
    note = state_dir / "acknowledged"
    acknowledged = set(map(int, note.read_text().split())) if note.exists() else set()
    assert acknowledged <= found
    assert len(found) <= len(acknowledged) + 1


def check_nothing_more(state_dir: Path) -> None:
    """The writer that came after it has written all, whatever was there."""
    collect(state_dir)
    assert {number for number in labels(state_dir) if number >= 100} == {100, 101, 102}


if __name__ == "__main__":
    place = Path(sys.argv[1])
    (place / "collect").mkdir()
    (place / "append").mkdir()
    n_collect = kill_points.try_every_step(place / "collect", prepare, collect, check_killed, check_recovered)
    n_append = kill_points.try_every_step(place / "append", prepare, append, check_appended, check_nothing_more)
    print(n_collect, n_append)
