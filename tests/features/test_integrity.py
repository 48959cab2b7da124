"""What tiercel keeps between runs is checked before it is believed: dictionaries, computed views, source identities."""

from __future__ import annotations

import os
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.features.projects import applied, times, us

from tiercel.errors import SourceError, StoreError
from tiercel.features.compute import compute_views
from tiercel.features.materialize import materialize
from tiercel.features.online import OnlineBase
from tiercel.features.training import get_historical_features
from tiercel.types import categories_digest

TEXT = """
events = ParquetSource('events', 'events.parquet', timestamp_field='ts')
v = FeatureView('v', [Entity('uid')], [Field('s', String), Field('x', Float64)], source=events)
svc = FeatureService('svc', [v])
"""
ROWS = {"uid": ["a", "b", "c"], "ts": times([us(1), us(2), us(3)]), "s": ["m", "z", "k"], "x": [1.5, -0.0, 2.0]}
LABELS = pa.table({"uid": ["a", "b"], "event_timestamp": times([us(9), us(9)])})


def served(state, uid="a"):
    found = OnlineBase.open(state / "features" / "svc").read_values({"uid": [uid]}, us(9))
    return {name: cells[0].value for name, cells in found.items()}


def test_training_sets_record_their_dictionaries(tmp_path):
    """A snapshot says what the codes meant that the model learned."""
    catalog, state = applied(tmp_path, TEXT, events=ROWS)
    snapshot = get_historical_features(catalog, state, LABELS, "svc").snapshot
    assert snapshot.dictionaries == (("s", 3, categories_digest(["k", "m", "z"])),)
    assert type(snapshot).from_json(snapshot.to_json()) == snapshot


def test_lost_dictionaries_do_not_permute_codes(tmp_path):
    """Dictionaries that were deleted and grown anew from other data are not published over the old ones."""
    catalog, state = applied(tmp_path, TEXT, events=ROWS)
    materialize(state, catalog, as_of_us=us(9))
    catalog, state = applied(tmp_path, TEXT, events={**ROWS, "s": ["m", "z", "a"]})
    materialize(state, catalog, as_of_us=us(9))
    shutil.rmtree(state / "dictionaries")
    catalog, state = applied(tmp_path, TEXT, events={**ROWS, "s": ["m", "z", "b"]})
    with pytest.raises(StoreError, match="registered models would read other values"):
        materialize(state, catalog, as_of_us=us(9))
    assert served(state, "c")["s"] == "a"


@pytest.mark.parametrize("change", [("m", "n"), ("[", "[1,"), ('"k"', '"m"')])
def test_an_edited_dictionary_is_refused(tmp_path, change):
    """A dictionary that was edited by hand or damaged gives no code a meaning."""
    catalog, state = applied(tmp_path, TEXT, events=ROWS)
    compute_views(catalog, state)
    path = state / "dictionaries" / "v.s.json"
    path.write_text(path.read_text().replace(*change, 1))
    with pytest.raises(StoreError, match="damaged"):
        materialize(state, catalog, as_of_us=us(9))


def test_a_flipped_bit_in_a_computed_view_is_computed_again(tmp_path):
    """Computed values are used only if they are the bytes that were written."""
    catalog, state = applied(tmp_path, TEXT, events=ROWS)
    (computed,) = compute_views(catalog, state)
    whole = computed.path.read_bytes()
    for position in range(8, len(whole), 97):
        computed.path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        (again,) = compute_views(catalog, state)
        assert not again.is_reused
        assert pq.read_table(again.path).equals(pq.read_table(pa.BufferReader(whole)))
    assert compute_views(catalog, state)[0].is_reused


def test_a_source_rewritten_in_place_is_noticed(tmp_path):
    """The same size and a restored modification time do not make other content the old one."""
    catalog, state = applied(tmp_path, TEXT, events=ROWS)
    source = tmp_path / "events.parquet"
    old = source.stat()
    os.utime(source, ns=(old.st_atime_ns, old.st_mtime_ns - 10**12))  # settled long ago, so its digest is remembered
    materialize(state, catalog, as_of_us=us(9))
    assert served(state)["x"] == 1.5
    before = source.stat()
    pq.write_table(pa.table({**ROWS, "x": [1.25, -0.0, 2.0]}), tmp_path / "other.parquet")
    content = (tmp_path / "other.parquet").read_bytes()
    assert len(content) == before.st_size
    with source.open("r+b") as stream:
        stream.write(content)
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    materialize(state, catalog, as_of_us=us(9))
    assert served(state)["x"] == 1.25


def test_negative_zero_is_zero_on_both_sides(tmp_path):
    """Training and serving agree bit for bit also where a source has -0.0."""
    catalog, state = applied(tmp_path, TEXT, events=ROWS)
    materialize(state, catalog, as_of_us=us(9))
    trained = get_historical_features(catalog, state, LABELS, "svc").X
    vectors = OnlineBase.open(state / "features" / "svc").read_vectors({"uid": ["a", "b"]}, us(9)).values
    assert trained.tobytes() == vectors.tobytes()


def test_nothing_does_not_replace_something(tmp_path):
    """A publish that would empty the store is refused unless it is asked for."""
    catalog, state = applied(tmp_path, TEXT, events=ROWS)
    materialize(state, catalog, as_of_us=us(9))
    early = us(1) - 1
    with pytest.raises(StoreError, match="nothing was known of entity 'uid' at 2023-12-31 23:59:59 UTC"):
        materialize(state, catalog, as_of_us=early)
    assert served(state)["x"] == 1.5
    assert materialize(state, catalog, as_of_us=early, allow_empty=True)[0].n_rows == 0


def test_nothing_of_one_entity_does_not_replace_something(tmp_path):
    """Nor where there is something of another: half of the features would be missing, and nobody told."""
    text = (
        TEXT
        + "shops = ParquetSource('shops', 'shops.parquet', timestamp_field='ts')\n"
        + "w = FeatureView('w', [Entity('shop')], [Field('y', Float64)], source=shops)\n"
        + "both = FeatureService('both', [v, w])\n"
    )
    late = {"shop": ["s", "t"], "ts": times([us(5), us(6)]), "y": [1.0, 2.0]}
    catalog, state = applied(tmp_path, text, events=ROWS, shops=late)
    # The first base may well know nothing of an entity: there is nothing to lose.
    assert materialize(state, catalog, ["both"], as_of_us=us(4))[0].group_rows == (3, 0)
    assert materialize(state, catalog, ["both"], as_of_us=us(9))[0].group_rows == (3, 2)
    with pytest.raises(StoreError, match=r"nothing was known of entity 'shop' .* the published base has 2 rows of it"):
        materialize(state, catalog, ["both"], as_of_us=us(4))
    assert materialize(state, catalog, ["both"], as_of_us=us(5))[0].group_rows == (3, 1)
    assert materialize(state, catalog, ["both"], as_of_us=us(4), allow_empty=True)[0].group_rows == (3, 0)


def test_a_static_view_has_one_row_per_key(tmp_path):
    """Without times there is no newest row, so a repeated key is refused by name."""
    text = TEXT.replace(", timestamp_field='ts'", "").replace("Field('s', String), ", "")
    rows = {"uid": ["a", "b", "b"], "x": [1.0, 2.0, 3.0]}
    catalog, state = applied(tmp_path, text, events=rows)
    with pytest.raises(SourceError, match="got 2 for uid='b'"):
        compute_views(catalog, state)


def test_rows_left_out_are_counted(tmp_path):
    """Rows without a key or a time are told to whoever materializes."""
    rows = {**ROWS, "uid": ["a", None, "c"], "ts": times([us(1), us(2), None])}
    catalog, state = applied(tmp_path, TEXT, events=rows)
    seen = []
    materialize(state, catalog, as_of_us=us(9), on_view=seen.append)
    assert [(view.n_read, view.n_null_keys, view.n_null_times) for view in seen] == [(3, 1, 1)]


def test_a_state_directory_that_cannot_be_written(tmp_path):
    """What stands in the way is named; no bare operating-system error comes out."""
    catalog, state = applied(tmp_path, TEXT, events=ROWS)
    shutil.rmtree(state / "offline", ignore_errors=True)
    (state / "offline").write_text("in the way")
    with pytest.raises(StoreError, match="offline"):
        materialize(state, catalog, as_of_us=us(9))
