"""Labels: accepted means on disk, the last one counts, and every event is in the counts once."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys

import duckdb
import pytest
from tests.monitor.recorders import PREFIX

from tiercel.errors import MonitorStorageError, TableError
from tiercel.monitor import label_collect, label_log
from tiercel.monitor.label_log import log_paths
from tiercel.monitor.labels import LabelStore
from tiercel.settings import MonitorSettings

DAY_US = 86_400_000_000
NOW_US = 20_000 * DAY_US
SETTINGS = MonitorSettings()
SOME = 0x123


def event(number, label=None, **more):
    told = {} if label is None else {"label": label}
    return {"id": f"{PREFIX}{number:x}", **told, **more}


@pytest.fixture
def store(tmp_path):
    store = LabelStore(tmp_path)
    yield store
    store.close()


def collect(store, now_us=NOW_US, settings=SETTINGS):
    return store.collect(settings, now_us)


def found(store, columns='id, "row", label, label_text, value, label_revision'):
    """{(number, row): rest of the view}."""
    rows = duckdb.sql(f"SELECT {columns} FROM ({store.query()})").fetchall()
    keys = [(int(row[0][16:], 16), row[1]) for row in rows]
    assert len(set(keys)) == len(keys)
    return dict(zip(keys, (row[2:] for row in rows), strict=True))


def test_labels_arrive(store):
    """Numbers, booleans, names of classes, values and rows come back as they were told."""
    store.append(
        [
            event(1, 1),
            event(2, True),
            event(3, "late"),
            event(4, 0.25, value=-3),
            event(5, value=7),
            event(6, 1, row=9),
        ],
        NOW_US,
    )
    assert collect(store) == 6
    assert found(store) == {
        (1, 0): (1.0, None, None, 0),
        (2, 0): (1.0, None, None, 0),
        (3, 0): (None, "late", None, 0),
        (4, 0): (0.25, None, -3.0, 0),
        (5, 0): (None, None, 7.0, 0),
        (6, 9): (1.0, None, None, 0),
    }


@pytest.mark.parametrize("together", [True, False], ids=["in one round", "in many rounds"])
def test_the_last_label_counts(store, together):
    """Repeated, corrected and completed labels leave the last state, and are counted as what they are, in one round or many."""
    told = [
        event(1, 0), event(1, 0), event(1, 1), event(1, 1), event(1, 0), event(1, "late"),
        event(2, 1), event(2, value=5), event(2, value=6), event(2, 1, value=6), event(3, value=1), event(3, 0),
    ]  # fmt: skip
    for place, each in enumerate(told):
        store.append([each], NOW_US + place)
        if not together:
            assert collect(store) == 1
    if together:
        assert collect(store) == len(told)
    assert found(store) == {(1, 0): (None, "late", None, 3), (2, 0): (1.0, None, 6.0, 2), (3, 0): (0.0, None, 1.0, 1)}
    totals = store.ledger().totals
    assert (totals.events, totals.first, totals.duplicates, totals.corrections, totals.additions) == (12, 3, 3, 4, 2)


def test_a_label_keeps_the_time_at_which_it_became_so(store):
    """Repeating a label changes neither its time nor its arrival; correcting it does."""
    times = 'id, "row", epoch_us(label_time), epoch_us(label_received)'
    for label, at_us, expected in [(1, 5, 5), (1, 6, 5), (0, 7, 7), (0, 8, 7)]:
        store.append([event(SOME, label, time=NOW_US - DAY_US + at_us)], NOW_US + at_us)
        collect(store)
        assert found(store, times) == {(SOME, 0): (NOW_US - DAY_US + expected, NOW_US + expected)}


def test_a_clock_set_back_makes_no_label_older(store):
    """A correction counts though its clock says that it came before what it corrects; in one round and in two."""
    for number in (1, 2):
        store.append([event(number, 0)], NOW_US)
        if number == 1:
            collect(store)
        store.append([event(number, 1)], NOW_US - 5 * DAY_US)
        collect(store)
    assert {key: row[0] for key, row in found(store).items()} == {(1, 0): 1.0, (2, 0): 1.0}


def test_writers_are_put_in_order(tmp_path):
    """Of two writers' labels for one key, collected together, the later counts, whoever's log is read first."""
    stores = [LabelStore(tmp_path, worker=worker) for worker in range(2)]
    for number, order in ((1, (0, 1)), (2, (1, 0))):
        for at, which in enumerate(order):
            stores[which].append([event(number, float(at))], NOW_US + 10 * number + at)
    collect(stores[0])
    assert {row[0] for row in found(stores[0]).values()} == {1.0}
    for store in stores:
        store.close()


def test_killed_at_every_step_nothing_is_lost_or_counted_twice(tmp_path):
    """A killed collector leaves the labels of before or after and counts right the next time; acknowledged labels are there."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.monitor.killed_collection", str(tmp_path)],
        timeout=300,
        check=True,
        capture_output=True,
        text=True,
    )
    n_collect, n_append = map(int, done.stdout.split())
    assert n_collect > 20
    assert n_append > 8


def test_random_events_equal_a_dictionary(tmp_path, monkeypatch):
    """Through small rounds, merged parts and folded corrections, the labels are those of a plain dictionary, told in order."""
    monkeypatch.setattr(label_collect, "ROUND_EVENTS", 40)
    monkeypatch.setattr(label_collect, "FOLD_ROWS", 60)
    monkeypatch.setattr(label_collect, "MERGE_PARTS", 3)
    monkeypatch.setattr(label_log, "LOG_BYTES", 2000)
    chance = random.Random(5)
    expected: dict[int, list] = {}
    stores = [LabelStore(tmp_path, worker=worker) for worker in range(2)]
    at_us, n_first, kinds = NOW_US, 0, set()
    for _ in range(35):
        for _ in range(chance.randrange(1, 4)):
            at_us += 1
            events = []
            for _ in range(chance.randrange(1, 12)):
                number, label, value = (
                    chance.randrange(150),
                    chance.choice([None, 0, 1, "x"]),
                    chance.choice([None, 2.0]),
                )
                if label is None and value is None:
                    continue
                events.append(event(number, label, **({} if value is None else {"value": value})))
                n_first += number not in expected
                known = expected.setdefault(number, [None, None, None])
                if label is not None:
                    known[:2] = [None, label] if label == "x" else [float(label), None]
                if value is not None:
                    known[2] = value
            chance.choice(stores).append(events, at_us)
        collect(stores[0], at_us)
        kinds |= {part.kind for part in stores[0].ledger().parts}
    assert {key[0]: list(row[:3]) for key, row in found(stores[0]).items()} == expected
    ledger = stores[0].ledger()
    assert ledger.totals.first == n_first == len(expected)
    totals = ledger.totals
    assert totals.rows_expired == 0
    assert totals.events == totals.first + totals.duplicates + totals.corrections + totals.additions
    assert kinds == {"first", "changed"}
    assert len(ledger.parts) < 10
    for store in stores:
        store.close()
    collect(stores[0], at_us + 2 * label_collect.READING_US)
    assert len(list((tmp_path / "labels").glob("*.parquet"))) == len(ledger.parts)
    assert log_paths(tmp_path / "labels" / "incoming") == []


def test_bad_events_spoil_no_batch(store):
    """Each is refused by itself, described and counted, durably with the next that is accepted."""
    checked = store.append([{"id": "?"}, event(1, 1), event(2), event(3, float("nan"))], NOW_US)
    assert len(checked.events) == 1
    assert checked.refused == {"invalid_id": 1, "invalid_label": 2}
    assert [each["event"] for each in checked.described] == [0, 2, 3]
    assert store.append([{"id": "?"}], NOW_US).events == []
    store.append([event(4, 1, time=NOW_US + 50 * DAY_US)], NOW_US)
    collect(store)
    totals = store.ledger().totals
    assert totals.refused == {"invalid_id": 2, "invalid_label": 2}
    assert totals.notes == {"time_replaced": 1}


def test_batches_of_junk_write_nothing(store):
    """Nobody fills the disk with what is refused."""
    for _ in range(10):
        store.append([{"id": "?"}] * 100, NOW_US)
    assert not store.directory.exists()


@pytest.mark.parametrize("name", ["write", "fsync"])
def test_a_full_disk_accepts_nothing(store, monkeypatch, name):
    """What is refused is not there later, what was accepted before is, and when there is room again it goes on."""
    store.append([event(1, 1)], NOW_US)
    real = getattr(os, name)

    def refuse(descriptor, *rest):
        if name == "write" and rest[0] != label_log.MAGIC:
            real(descriptor, rest[0][:7])  # some of it
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, name, refuse)
    for _ in range(5):
        with pytest.raises(MonitorStorageError, match="No space left"):
            store.append([event(2, 1)], NOW_US)
    assert len(log_paths(store.directory / "incoming")) == 1
    monkeypatch.setattr(os, name, real)
    store.append([event(3, 1)], NOW_US)
    collect(store)
    assert set(found(store)) == {(1, 0), (3, 0)}


def test_a_collector_on_a_full_disk_loses_nothing(store, monkeypatch):
    """What was accepted waits until there is room."""
    store.append([event(1, 1)], NOW_US)
    real = os.replace
    monkeypatch.setattr(
        os, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device"))
    )
    with pytest.raises(MonitorStorageError, match="No space left"):
        collect(store)
    monkeypatch.setattr(os, "replace", real)
    assert collect(store) == 1
    assert set(found(store)) == {(1, 0)}
    assert store.ledger().totals.events == 1


def test_what_nobody_collects_is_bounded(tmp_path):
    """Beyond the bound feedback is refused with what to do, and accepted again once it was collected."""
    store = LabelStore(tmp_path, max_incoming_bytes=20_000)
    many = [event(number, 1) for number in range(300)]
    store.append(many, NOW_US)
    with pytest.raises(MonitorStorageError, match=r"control\.enabled"):
        [store.append(many, NOW_US) for _ in range(label_log._LOOK_EVERY)]
    store.close()
    collect(store)
    again = LabelStore(tmp_path, max_incoming_bytes=20_000)
    again.append([event(1, 0)], NOW_US)
    again.close()


def test_a_cut_log_gives_what_is_whole(tmp_path):
    """At any length a log gives its whole frames; the rest was never acknowledged, and is counted in bytes."""
    store = LabelStore(tmp_path)
    for number in range(3):
        store.append([event(number, 1)], NOW_US)
    store.close()
    (path,) = log_paths(tmp_path / "labels" / "incoming")
    data = path.read_bytes()
    frame = (len(data) - 8) // 3
    for length in range(0, len(data) + 1, 17):
        other = tmp_path / f"cut-{length}"
        (other / "labels" / "incoming" / "1-0-1-0").mkdir(parents=True)
        (other / "labels" / "incoming" / "1-0-1-0" / "000001.log").write_bytes(data[:length])
        cut = LabelStore(other)
        n_whole = max(0, length - 8) // frame
        assert collect(cut) == n_whole
        assert cut.ledger().totals.notes.get("unreadable_bytes", 0) == max(0, length - 8 - n_whole * frame)
        assert not log_paths(other / "labels" / "incoming")


def test_retention_removes_old_labels(store):
    """Labels past retention go, with their corrections and not before them; a jump of the clock removes none."""
    settings = MonitorSettings(retention_days=10)
    store.append([event(1, 0)], NOW_US)
    collect(store, NOW_US, settings)
    store.append([event(1, 1)], NOW_US + 1)
    store.append([event(2, 1)], NOW_US + 1)
    collect(store, NOW_US + 1, settings)
    collect(store, NOW_US + 50 * DAY_US, settings)
    assert set(found(store)) == {(1, 0), (2, 0)}
    for hours in range(0, 24 * 9, 20):
        collect(store, NOW_US + hours * 3_600_000_000, settings)
    assert found(store)[1, 0][0] == 1.0
    store.append([event(3, 1)], NOW_US + 9 * DAY_US)
    for hours in range(24 * 9, 24 * 15, 20):
        collect(store, NOW_US + hours * 3_600_000_000, settings)
        assert found(store).get((1, 0), (1.0,))[0] == 1.0
    assert set(found(store)) == {(3, 0)}
    assert store.ledger().totals.rows_expired == 2


def test_merging_takes_nothing_from_a_reader(store, monkeypatch):
    """A query that was made before parts were merged, and runs after it, has its files still; an hour later they are gone."""
    monkeypatch.setattr(label_collect, "MERGE_PARTS", 2)
    store.append([event(1, 0)], NOW_US)
    collect(store)
    query = store.query()
    store.append([event(2, 1)], NOW_US)
    collect(store)
    assert len(store.ledger().parts) == 1
    assert duckdb.sql(query).fetchall()[0][0] == PREFIX + "1"
    assert len(found(store)) == 2
    collect(store, NOW_US + 2 * label_collect.READING_US)
    assert len(list(store.directory.glob("*.parquet"))) == 1
    assert len(found(store)) == 2


def test_a_damaged_ledger_is_named(store):
    """It says which files count, so nothing is guessed without it."""
    store.append([event(1, 1)], NOW_US)
    collect(store)
    (store.directory / "_ledger.json").write_text("{")
    with pytest.raises(TableError, match=r"_ledger\.json"):
        collect(store)


def test_a_closed_store_refuses(store):
    """Whoever writes to it after that is told."""
    store.close()
    with pytest.raises(MonitorStorageError, match="closed"):
        store.append([event(1, 1)], NOW_US)


def test_one_process_collects_at_a_time(store):
    """While another has the lock, nothing is collected and nothing lost."""
    from tiercel.monitor.durable import locked

    store.append([event(1, 1)], NOW_US)
    with locked(store.directory / ".lock", waits=False):
        assert collect(store) == 0
    assert collect(store) == 1
