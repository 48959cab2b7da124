"""An entity has one spelling in bytes, and no other entity has it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiercel.serving.entity_key import features_key, key_of, keys_of

NAMES = st.text(st.characters(codec="utf-8"), max_size=8)
INTS = st.integers(-(2**63), 2**63 - 1)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=12)
ENTITIES = st.dictionaries(NAMES, INTS | TEXTS, min_size=1, max_size=4)


@pytest.mark.parametrize(
    ("entities", "expected"),
    [
        ({"id": 5}, "00026964690000000000000005"),
        ({"id": -1}, "0002696469ffffffffffffffff"),
        ({"id": "5"}, "00026964730000000135"),
        ({"id": ""}, "000269647300000000"),
        ({"shop": "a", "id": 5}, "00026964690000000000000005000473686f70730000000161"),
        ({"é": "é"}, "0002c3a97300000002c3a9"),
    ],
)
def test_the_bytes_are_fixed(entities, expected):
    """These bytes are hashed into arms: changing them would move every entity."""
    assert key_of(entities).hex() == expected


@given(ENTITIES, ENTITIES)
def test_equal_entities_and_only_they_share_bytes(one, other):
    """Two entities have the same bytes if and only if they have the same keys with the same values."""
    same = one == other
    assert (key_of(one) == key_of(other)) is same


@given(ENTITIES, st.randoms(use_true_random=False))
def test_the_order_of_names_does_not_matter(entities, random):
    """However a client orders its join keys, it names the same entity."""
    items = list(entities.items())
    random.shuffle(items)
    assert key_of(dict(items)) == key_of(entities)


@pytest.mark.parametrize(
    "entities",
    [{}, {"id": None}, {"id": 1.0}, {"id": True}, {"id": 2**63}, {"id": "\ud800"}, {"id": []}, {"n" * 70_000: 1}],
    ids=repr,
)
def test_what_no_store_holds_has_no_bytes(entities):
    """Whatever is sent, nothing is raised here: the plan says what is wrong with it."""
    assert key_of(entities) is None
    assert keys_of(entities, 1) is None


def test_rows_are_entities_of_their_own():
    """A list holds one value per row; a scalar beside it is every row's."""
    entities = {"id": [5, 6], "shop": "a"}
    assert keys_of(entities, 2) == [key_of({"id": 5, "shop": "a"}), key_of({"id": 6, "shop": "a"})]
    assert keys_of(entities, 3) is None
    assert keys_of({"id": [5, None]}, 2) is None


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"x": 1}, {"x": 1.0}, True),
        ({"x": 0.0}, {"x": -0.0}, True),
        ({"x": 1, "y": 2}, {"y": 2, "x": 1}, True),
        ({"x": [1, 2]}, {"x": 1}, True),
        ({"x": 1}, {"x": "1"}, False),
        ({"x": None}, {"x": 0}, False),
        ({"x": 1}, {"y": 1}, False),
        ({"x": "ab", "y": "c"}, {"x": "a", "y": "bc"}, False),
    ],
)
def test_features_count_by_value(one, other, same):
    """Two questions are the same if a model cannot tell them apart."""
    assert (features_key(one) == features_key(other)) is same


@pytest.mark.parametrize("features", [{}, {"x": {}}, {"x": 10**400}, {"x": "\udfff"}, {"x": []}], ids=["none", *"abcd"])
def test_unreadable_features_have_no_bytes(features):
    """Nothing is raised for what is no feature."""
    assert features_key(features) is None
