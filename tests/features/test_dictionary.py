"""Dictionaries of text features."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.features.projects import applied, times, us

from tiercel.errors import SourceError, StoreError
from tiercel.features import dictionary
from tiercel.features.catalog import FieldRecord, ViewRecord
from tiercel.features.compute import compute_views
from tiercel.types import DType

FIELD = FieldRecord("f", DType.STRING)
FIXED = FieldRecord("f", DType.STRING, ("z", "a"))
VIEW = ViewRecord("v", ("e",), (), (FIELD,), (), None, None, None, None)


@given(batches=st.lists(st.sets(st.text(max_size=3), max_size=5), max_size=6))
def test_codes_never_change(batches, tmp_path_factory):
    """However values arrive, a code once given keeps its value, every value seen has one, and the file agrees."""
    state = tmp_path_factory.mktemp("state")
    before = ()
    for batch in batches:
        after = dictionary.extend(state, VIEW, FIELD, batch)
        assert after[: len(before)] == before
        assert list(after[len(before) :]) == sorted(batch - set(before))
        assert dictionary.load_values(state, VIEW, FIELD) == after
        before = after
    assert len(set(before)) == len(before)


def test_encode():
    """Text becomes its position, null stays null."""
    column = pa.chunked_array([["b", None], ["a"]], pa.string())
    assert dictionary.encode(VIEW, FIELD, ("a", "b"), column).to_pylist() == [1, None, 0]


def test_declared_categories(tmp_path):
    """Declared categories are the codes for good; a value outside them is named and refused."""
    assert dictionary.extend(tmp_path, VIEW, FIXED, ["a"]) == ("z", "a")
    with pytest.raises(SourceError, match="'q' is not among its categories"):
        dictionary.extend(tmp_path, VIEW, FIXED, ["q", "a"])
    with pytest.raises(SourceError, match="'q'"):
        dictionary.encode(VIEW, FIXED, ("z", "a"), pa.chunked_array([["q"]]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["[", '{"a": 1}', "[1]"])
def test_damaged_dictionary(tmp_path, content):
    """A damaged dictionary is never guessed: stored codes depend on it."""
    (tmp_path / "dictionaries").mkdir()
    (tmp_path / "dictionaries" / "v.f.json").write_text(content)
    with pytest.raises(StoreError, match="backup"):
        dictionary.load_values(tmp_path, VIEW, FIELD)


def test_lost_dictionary():
    """Values without a code mean that the dictionary was lost, and the message says so."""
    with pytest.raises(StoreError, match="lacks values"):
        dictionary.encode(VIEW, FIELD, (), pa.chunked_array([["q"]]))


def test_too_many_values(tmp_path, monkeypatch):
    """More values than a float32 can count are refused."""
    monkeypatch.setattr(dictionary, "MAX_CATEGORIES", 2)
    with pytest.raises(SourceError, match="exact codes"):
        dictionary.extend(tmp_path, VIEW, FIELD, ["a", "b", "c"])


def test_new_data_appends(tmp_path):
    """A value that appears in later data is appended after those of earlier data, whatever its spelling."""
    text = """
events = ParquetSource('events', 'events.parquet', timestamp_field='ts')
v = FeatureView('v', [Entity('uid')], [Field('s', String)], source=events)
"""
    rows = {"uid": ["a", "b"], "ts": times([us(1), us(2)]), "s": ["m", "k"]}
    catalog, state = applied(tmp_path, text, events=rows)
    compute_views(catalog, state)
    catalog, state = applied(tmp_path, text, events={**rows, "s": ["a", "k"]})
    compute_views(catalog, state)
    assert json.loads((state / "dictionaries" / "v.s.json").read_text())["values"] == ["k", "m", "a"]
