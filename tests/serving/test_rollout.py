"""Arms are sticky, monotone in the weight, independent between models, and as large as they should be."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tiercel.serving.entity_key import features_key, key_of
from tiercel.serving.rollout import arm_of, assignment_key, is_finite, position_of

KEYS = st.binary(max_size=40)
WEIGHTS = st.floats(0, 1)


@pytest.mark.parametrize(
    ("model", "entity", "salt", "position"),
    [
        ("fraud", {"customer_id": 5}, "", 0xA2026480E3E39EFA),
        ("fraud", {"customer_id": "5"}, "", 0x182F88086B5E81D1),
        ("fraud", {"customer_id": 5, "shop": "a", "country": "nl"}, "", 0xBA2768A9851304AC),
        ("fraud_small", {"customer_id": 5}, "", 0xA4445F7032E63086),
        ("fraud", {"customer_id": 5}, "spring", 0x895B69B07F466784),
    ],
)
def test_positions_are_for_ever(model, entity, salt, position):
    """An entity's position is the same in every process and version: a change here would move everybody."""
    assert position_of(model, key_of(entity), salt) == position


@given(KEYS, WEIGHTS, WEIGHTS)
def test_a_larger_weight_only_adds_to_the_challenger(key, one, other):
    """Who is answered by the challenger at some weight is so at every larger one."""
    smaller, larger = sorted((one, other))
    if arm_of("fraud", key, smaller) == "challenger":
        assert arm_of("fraud", key, larger) == "challenger"


@given(KEYS)
def test_the_ends_of_the_scale(key):
    """Weight 0 is nobody and 1 is everybody, whatever the hash; who cannot be told apart stays with the champion."""
    assert arm_of("fraud", key, 0.0) == "champion"
    assert arm_of("fraud", key, 1.0) == "challenger"
    assert arm_of("fraud", None, 1.0) == "champion"


def test_the_boundary_is_exact():
    """The challenger answers positions below weight * 2**64; the position itself is above its own weight."""
    key = key_of({"customer_id": 5})
    share = position_of("fraud", key) / 2**64  # rounded to a float, perhaps upwards
    assert arm_of("fraud", key, math.nextafter(share, 0)) == "champion"
    assert arm_of("fraud", key, math.nextafter(share, 1)) == "challenger"


@pytest.mark.parametrize("spell", [lambda i: {"id": i}, lambda i: {"id": f"N{i:05}"}], ids=["integers", "tail numbers"])
def test_positions_are_uniform(spell):
    """Consecutive keys fall into 256 equal parts as often as chance has it (chi-square, fixed keys)."""
    counts = [0] * 256
    for i in range(50_000):
        counts[position_of("fraud", key_of(spell(i))) >> 56] += 1
    assert stats.chisquare(counts).pvalue > 0.001


@pytest.mark.parametrize("names", [("fraud", "churn"), ("fraud", "fraud2")])
def test_models_divide_entities_independently(names):
    """Who gets one model's challenger says nothing about who gets another's (chi-square of the two-by-two table)."""
    table = [[0, 0], [0, 0]]
    for i in range(20_000):
        first, second = (arm_of(name, key_of({"id": i}), 0.3) == "challenger" for name in names)
        table[first][second] += 1
    assert stats.chi2_contingency(table).pvalue > 0.001
    assert min(map(min, table)) > 0


def test_a_salt_draws_anew():
    """Another salt is another division; where name and salt are joined differently, too."""
    keys = [key_of({"id": i}) for i in range(1000)]
    moved = sum(arm_of("fraud", key, 0.5) != arm_of("fraud", key, 0.5, "spring") for key in keys)
    assert 400 < moved < 600
    assert position_of("ab", b"k", "c") != position_of("a", b"k", "bc")
    assert position_of("a", b"bk", "") != position_of("a", b"k", "b")


def test_the_first_row_decides():
    """A request of many rows goes where its first row's entity goes; without entities its features decide."""
    assert assignment_key({"id": [5, 6]}, {"x": [1, 2]}) == key_of({"id": 5})
    assert assignment_key({}, {"x": [1, 2]}) == features_key({"x": 1.0})
    assert assignment_key({}, {}) is None
    assert assignment_key({"id": None}, {"x": 1}) is None


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.1, 0.2], True),
        ([[0.1, 0.9], [0.5, 0.5]], True),
        ([], True),
        ([0.1, math.nan], False),
        ([math.inf], False),
        ([[0.1, 0.9], [0.5, -math.inf]], False),
    ],
)
def test_is_finite(scores, expected):
    """One score that is no number spoils the answer."""
    assert is_finite(scores) is expected
