"""Key encoding: round trips, order, limits, and the vectorised form against the scalar one."""

from __future__ import annotations

import contextlib

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.features.stores import INT64, TEXT, key_columns, key_values
from tests.reference.row import reference_key

from tiercel.errors import RequestError, SourceError
from tiercel.features.key_columns import encode_key_columns
from tiercel.features.keys import MAX_ENTITY_KEY_BYTES, decode_key, encode_key
from tiercel.types import DType, KeyColumn

ID = (KeyColumn("id", DType.INT64),)
NAME = (KeyColumn("name", DType.STRING),)
ROUTE = (KeyColumn("origin", DType.STRING), KeyColumn("dest", DType.STRING))

KEYS_AND_VALUES = key_columns().flatmap(lambda keys: st.tuples(st.just(keys), key_values(keys)))


@given(KEYS_AND_VALUES)
def test_round_trip(case):
    """Decoding gives back the values, and the bytes are those of the reference."""
    keys, values = case
    encoded = encode_key(keys, values)
    assert encoded == reference_key(keys, values)
    assert decode_key(keys, encoded) == values


@given(st.tuples(INT64, INT64), st.tuples(INT64, INT64))
def test_integer_keys_sort_as_tuples(a, b):
    """The byte order of integer keys is the order of the value tuples."""
    keys = (KeyColumn("a", DType.INT64), KeyColumn("b", DType.INT64))
    assert (encode_key(keys, a) < encode_key(keys, b)) == (a < b)


@given(st.tuples(INT64, TEXT), st.tuples(INT64, TEXT))
def test_a_last_string_sorts_as_text(a, b):
    """A string in last place sorts by code point, after the integer before it."""
    keys = (KeyColumn("a", DType.INT64), KeyColumn("b", DType.STRING))
    assert (encode_key(keys, a) < encode_key(keys, b)) == (a < b)


@given(st.tuples(TEXT, TEXT), st.tuples(TEXT, TEXT))
def test_distinct_values_have_distinct_keys(a, b):
    """No two pairs of strings share a key, wherever one ends and the next begins."""
    assert (encode_key(ROUTE, a) == encode_key(ROUTE, b)) == (a == b)


@given(KEYS_AND_VALUES, st.data())
def test_a_cut_key_does_not_decode_to_the_same_values(case, data):
    """A proper prefix of a key is refused or names another entity, never the same one."""
    keys, values = case
    encoded = encode_key(keys, values)
    if not encoded:
        return
    cut = encoded[: data.draw(st.integers(0, len(encoded) - 1))]
    with contextlib.suppress(ValueError):
        assert decode_key(keys, cut) != values


@pytest.mark.parametrize(
    ("keys", "values", "code"),
    [
        pytest.param(ID, (True,), "wrong_type", id="bool is not int"),
        pytest.param(ID, (1.0,), "wrong_type", id="float is not int"),
        pytest.param(ID, ("1",), "wrong_type", id="text is not int"),
        pytest.param(ID, (None,), "wrong_type", id="null is not int"),
        pytest.param(ID, (2**63,), "not_finite", id="above int64"),
        pytest.param(ID, (-(2**63) - 1,), "not_finite", id="below int64"),
        pytest.param(NAME, (1,), "wrong_type", id="int is not text"),
        pytest.param(NAME, (b"a",), "wrong_type", id="bytes are not text"),
        pytest.param(NAME, ("\ud800",), "wrong_type", id="lone surrogate"),
        pytest.param(NAME, ("a" * 511,), "key_too_long", id="one byte too long"),
        pytest.param(ROUTE, ("a" * 300, "b" * 300), "key_too_long", id="too long together"),
        pytest.param(ROUTE, ("a" * 70_000, "b"), "key_too_long", id="longer than its length prefix"),
        pytest.param(ROUTE, ("a",), "wrong_length", id="a value short"),
    ],
)
def test_bad_values_are_refused(keys, values, code):
    """Every kind of bad key value has its stable code."""
    with pytest.raises(RequestError) as caught:
        encode_key(keys, values)
    assert caught.value.code == code


def test_longest_key_is_accepted():
    """A key of exactly the limit is encoded, alone and in a column."""
    text = "a" * MAX_ENTITY_KEY_BYTES
    assert len(encode_key(NAME, (text,))) == MAX_ENTITY_KEY_BYTES
    assert len(encode_key_columns(NAME, pa.table({"name": [text]}), group=0)[0].as_py()) == 511


@settings(max_examples=60)
@given(key_columns().flatmap(lambda keys: st.tuples(st.just(keys), st.lists(key_values(keys), max_size=6))))
def test_columns_encode_like_single_keys(case):
    """The vectorised encoder gives the group byte and then exactly the scalar encoder's bytes."""
    keys, rows = case
    table = pa.table(
        {
            key.name: pa.array([row[i] for row in rows], pa.int64() if key.dtype is DType.INT64 else pa.large_string())
            for i, key in enumerate(keys)
        }
    )
    stored = encode_key_columns(keys, pa.concat_tables([table, table]), group=7).to_pylist()
    assert stored == [b"\x07" + encode_key(keys, row) for row in rows] * 2


def test_sliced_and_dictionary_columns_encode():
    """Arrow slices and dictionary arrays are read at their own offsets."""
    table = pa.table({"origin": pa.array(["x", "JFK", "LGA"]).dictionary_encode(), "dest": ["y", "SFO", "BOS"]}).slice(
        1
    )
    stored = encode_key_columns(ROUTE, table, group=0).to_pylist()
    assert stored == [b"\0" + encode_key(ROUTE, pair) for pair in (("JFK", "SFO"), ("LGA", "BOS"))]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        pytest.param(pa.table({"x": [1]}), "key column 'origin', got columns x", id="absent"),
        pytest.param(pa.table({"origin": [1], "dest": ["a"]}), "got int64", id="wrong type"),
        pytest.param(pa.table({"origin": ["a", None], "dest": ["a", "b"]}), "first: row 1", id="null"),
        pytest.param(pa.table({"origin": ["a", "b" * 511], "dest": ["a", "b"]}), "511 in row 1", id="too long"),
        pytest.param(
            pa.table({"origin": ["a", "b" * 300], "dest": ["a", "b" * 300]}), "in row 1", id="too long together"
        ),
        pytest.param(
            pa.table({"origin": pa.array([b"\xff"]).view(pa.string()), "dest": ["a"]}),
            "not valid UTF-8",
            id="not UTF-8",
        ),
    ],
)
def test_bad_columns_are_refused(table, said):
    """The writer refuses key columns it cannot store, and says which and where."""
    with pytest.raises(SourceError, match=said):
        encode_key_columns(ROUTE, table, group=0)
