"""Computed views: what is kept, dropped, counted and reused."""

from __future__ import annotations

import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.features.projects import applied, make_project, times, us

from tiercel.errors import DefinitionError, SourceError
from tiercel.features import compute
from tiercel.features.compute import STATIC_EVENT_US, ComputeLimits, compute_views

TEXT = """
events = ParquetSource('events', 'events.parquet', timestamp_field='ts'{created})
v = FeatureView('v', [Entity('uid')], [Field('x', Float64)], source=events)
"""
PLAIN, LATE = TEXT.format(created=""), TEXT.format(created=", created_timestamp_column='seen'")


def rows(*records):
    """Records of (uid, ts, x) or (uid, ts, seen, x)."""
    columns = list(zip(*records, strict=True))
    table = {"uid": pa.array(columns[0], pa.string()), "ts": times(list(columns[1]))}
    if len(columns) == 4:
        table["seen"] = times(list(columns[2]))
    return pa.table({**table, "x": pa.array(columns[-1], pa.float64())})


def computed(tmp_path, text, events):
    catalog, state = applied(tmp_path, text, events=events)
    (result,) = compute_views(catalog, state)
    return result, pq.read_table(result.path).to_pylist()


def test_rows_are_clustered_and_counted(tmp_path):
    """Rows without key or time are dropped and counted; the rest are sorted by key and time; NaN is missing."""
    infinite = pa.concat_tables([rows(("b", us(2), 2.0), (None, us(1), 1.0), ("a", us(3), 3.0), ("a", None, 4.0),
                                      ("a", us(1), float("nan")))])  # fmt: skip
    result, kept = computed(tmp_path, PLAIN, infinite)
    assert [(row["uid"], row["__event_us"], row["x"]) for row in kept] == [
        ("a", us(1), None),
        ("a", us(3), 3.0),
        ("b", us(2), 2.0),
    ]
    assert (result.n_read, result.n_rows, result.n_null_keys, result.n_null_times, result.n_superseded) == (
        5,
        3,
        1,
        1,
        0,
    )


@pytest.mark.parametrize("order", [1, -1])
def test_duplicates_resolve_the_same_way_in_any_order(tmp_path, order):
    """Of rows with one key and time the last created wins, and between full ties the larger value, in any file order."""
    events = [("a", us(1), us(3), 1.0), ("a", us(1), us(2), 5.0), ("b", us(1), us(1), 1.0), ("b", us(1), us(1), 2.0)]
    result, kept = computed(tmp_path, LATE, rows(*events[::order]))
    assert [(row["uid"], row["__visible_us"], row["x"]) for row in kept] == [
        ("a", us(2), 5.0),
        ("a", us(3), 1.0),
        ("b", us(1), 2.0),
    ]
    assert result.n_superseded == 1


def test_late_rows(tmp_path):
    """A row counts from its arrival; an older event that arrives after a newer one never does."""
    result, kept = computed(
        tmp_path, LATE, rows(("a", us(1), us(5), 1.0), ("a", us(2), us(2), 2.0), ("a", us(3), None, 3.0))
    )
    assert [(row["__visible_us"], row["__event_us"]) for row in kept] == [(us(2), us(2)), (us(3), us(3))]
    assert result.n_superseded == 1


def test_static_view(tmp_path):
    """A view without times is always visible, and carries the epoch."""
    text = "v = FeatureView('v', [Entity('uid')], [Field('x', Float64)], source=ParquetSource('e', 'events.parquet'))"
    _, kept = computed(tmp_path, text, {"uid": ["a"], "x": [1.0]})
    assert kept[0]["__event_us"] == STATIC_EVENT_US
    assert kept[0]["__visible_us"] < -(2**62)


def test_naive_times_are_utc(tmp_path):
    """A naive timestamp and the same instant with a zone give the same microseconds."""
    naive = pa.table({"uid": ["a"], "ts": pa.array([us(1, 12)], pa.timestamp("us")), "x": [1.0]})
    zoned = pa.table({"uid": ["a"], "ts": pa.array([us(1, 12)], pa.timestamp("us", tz="America/New_York")), "x": [1.0]})
    for table in (naive, zoned):
        _, kept = computed(tmp_path, PLAIN, table)
        assert kept[0]["__event_us"] == us(1, 12)


@pytest.mark.parametrize("text", [PLAIN, LATE], ids=["event", "arrival"])
@pytest.mark.parametrize("at_ns", [1_767_225_600_000_000_500, -315_619_199_999_999_500, 1_767_225_600_000_001_000])
def test_nothing_is_known_before_it_happened(tmp_path, text, at_ns):
    """What happened within a microsecond is visible from its end on, and is as old as from its beginning."""
    moment = pa.array([at_ns], pa.timestamp("ns"))
    events = pa.table({"uid": ["a"], "ts": moment, "seen": moment, "x": [1.0]})
    _, kept = computed(tmp_path, text, events if text == LATE else events.drop_columns("seen"))
    assert kept[0]["__event_us"] == at_ns // 1000
    assert kept[0]["__visible_us"] == -(-at_ns // 1000)


def test_reuse_follows_content(tmp_path):
    """Touching a source recomputes nothing; changing its content or the definition does."""
    events = rows(("a", us(1), 1.0))
    catalog, state = applied(tmp_path, PLAIN, events=events)
    first = compute_views(catalog, state)[0]
    os.utime(tmp_path / "events.parquet", ns=(1, 1))
    again = compute_views(catalog, state)[0]
    assert (first.is_reused, again.is_reused) == (False, True)
    assert again.digest == first.digest
    pq.write_table(rows(("a", us(1), 2.0)), tmp_path / "events.parquet")
    changed = compute_views(catalog, state)[0]
    assert (changed.is_reused, changed.digest == first.digest) == (False, False)


@pytest.mark.parametrize("damage", ["truncate", "no counts", "bad counts"])
def test_damaged_file_is_computed_again(tmp_path, damage):
    """A file that a crash left incomplete is not used."""
    catalog, state = applied(tmp_path, PLAIN, events=rows(("a", us(1), 1.0)))
    result = compute_views(catalog, state)[0]
    counts = result.path.with_suffix(".json")
    if damage == "truncate":
        result.path.write_bytes(result.path.read_bytes()[:-10])
    elif damage == "no counts":
        counts.unlink()
    else:
        counts.write_text("[]")
    again = compute_views(catalog, state)[0]
    assert not again.is_reused
    assert pq.read_table(again.path).num_rows == 1


def test_source_that_no_longer_fits(tmp_path):
    """If a source loses a column after apply, computing says which."""
    catalog, state = applied(tmp_path, PLAIN, events=rows(("a", us(1), 1.0)))
    pq.write_table(rows(("a", us(1), 1.0)).rename_columns(["uid", "ts", "y"]), tmp_path / "events.parquet")
    with pytest.raises(DefinitionError, match="no column 'x'"):
        compute_views(catalog, state)


def test_failing_query_leaves_nothing(tmp_path):
    """A query that fails on the data is a SourceError naming the view, and leaves no file behind."""
    text = """
events = ParquetSource('events', 'events.parquet', timestamp_field='ts')
v = FeatureView('v', [Entity('uid')], [Field('x', Float64)], source=events,
                sql="SELECT uid, ts, CAST(CASE WHEN x > 0 THEN 'oops' END AS DOUBLE) AS x FROM events")
"""
    catalog, state = applied(tmp_path, text, events=rows(("a", us(1), 1.0)))
    with pytest.raises(SourceError, match=r"FeatureView 'v'.*oops"):
        compute_views(catalog, state)
    assert not list((state / "offline" / "v").iterdir())


def test_csv_row_of_another_type(tmp_path):
    """A CSV value that does not fit the detected type is reported with its line, not read as missing."""
    lines = ["uid,ts,x", *(f"a,2024-01-01 00:00:{i % 60:02d},1.5" for i in range(30_000)), "a,2024-01-02 00:00:00,many"]
    (tmp_path / "events.csv").write_text("\n".join(lines))
    text = """
events = CSVSource('events', 'events.csv', timestamp_field='ts', types={'x': 'DOUBLE'})
v = FeatureView('v', [Entity('uid')], [Field('x', Float64)], source=events)
"""
    catalog, state = applied(tmp_path, text)
    with pytest.raises(SourceError, match=r"Source 'events'.*30002"):
        compute_views(catalog, state)


def test_source_replaced_while_reading(tmp_path, monkeypatch):
    """A result computed over a source that changed underneath is thrown away."""
    catalog, state = applied(tmp_path, PLAIN, events=rows(("a", us(1), 1.0)))
    real = compute._compute

    def replacing(*args):
        result = real(*args)
        pq.write_table(rows(("a", us(1), 2.0), ("b", us(1), 2.0)), tmp_path / "events.parquet")
        return result

    monkeypatch.setattr(compute, "_compute", replacing)
    with pytest.raises(SourceError, match="replaced while"):
        compute_views(catalog, state)
    assert not list((state / "offline" / "v").glob("*.parquet"))


def test_many_files_match_columns_by_name(tmp_path):
    """A glob reads all its files, matching columns by name; a new file changes the digest."""
    text = PLAIN.replace("events.parquet", "part-*.parquet")
    first = rows(("a", us(1), 1.0))
    catalog, state = applied(tmp_path, text, **{"part-1": first})
    one = compute_views(catalog, state)[0]
    make_project(tmp_path, text, **{"part-2": rows(("b", us(1), 2.0)).select(["x", "ts", "uid"])})
    two = compute_views(catalog, state, limits=ComputeLimits(memory="200MB", threads=1))[0]
    assert (one.n_rows, two.n_rows) == (1, 2)
    assert one.digest != two.digest


def test_old_files_are_pruned(tmp_path):
    """A view keeps a few earlier files for whoever still reads them, not all."""
    for value in range(6):
        catalog, state = applied(tmp_path, PLAIN, events=rows(("a", us(1), float(value))))
        compute_views(catalog, state)
    assert len(list((state / "offline" / "v").glob("*.parquet"))) == 3
    assert len(list((state / "offline" / "v").glob("*.json"))) == 3


def test_digest_cache_survives_damage(tmp_path):
    """The cache of content digests is only a cache."""
    catalog, state = applied(tmp_path, PLAIN, events=rows(("a", us(1), 1.0)))
    os.utime(tmp_path / "events.parquet", ns=(10**18, 10**18))  # long ago, so that its digest is remembered
    first = compute_views(catalog, state)[0]
    cache = state / "offline" / "digests.json"
    assert list(json.loads(cache.read_text())) == [str((tmp_path / "events.parquet").resolve())]
    cache.write_text("{")
    assert compute_views(catalog, state)[0].digest == first.digest
