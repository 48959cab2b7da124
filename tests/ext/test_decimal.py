"""Numbers as text: what replies write is repr(), digit for digit."""

from __future__ import annotations

import math
import struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiercel._hot import decimal

HARD = [
    0.0, -0.0, 5e-324, 1e-323, 2.2250738585072011e-308, 2.2250738585072014e-308, 1.7976931348623157e308, 0.1, 0.3, 1 / 3,
    1e-5, 0.0001, 0.00012345, 1e15, 1e16, 1e17, 9999999999999998.0, 12345678901234567.0, 1e22, 1e23, 9.5e-7, 2.0**53,
    2.0**53 + 2, 9007199254740993.0, 4.35, 100.0, 123456.789, 1.0, 1e100, 1e-100, 4.4501477170144023e-308, 2.98023223876953125e-8,
    5.764607523034235e39, 1.152921504606847e40, 2.305843009213694e40, 1.8014398509481984e16, 1.0e21, 7.0420557077594588669468784357561207962098443483187940792729600000e59,
]  # fmt: skip


@settings(max_examples=500, deadline=None)
@given(value=st.floats(allow_nan=False, allow_infinity=False))
@example(value=-1.5)
def test_text_is_reprs(value):
    """Any finite number is written as repr() writes it."""
    assert decimal.text(value) == repr(value).encode()


@pytest.mark.parametrize("value", HARD)
def test_hard_numbers_are_written_as_repr_does(value):
    """Zeros, subnormals, ends of the range and both sides of the exponent form."""
    for number in (value, -value):
        assert decimal.text(number) == repr(number).encode()


def test_powers_of_two_and_their_neighbours_are_written_as_repr_does():
    """Where the gap below is half the gap above, text is repr()'s still, at every exponent."""
    for exponent in range(-1074, 1024):
        power = math.ldexp(1.0, exponent)
        for value in (power, math.nextafter(power, 0.0), math.nextafter(power, math.inf)):
            if math.isfinite(value):
                assert decimal.text(value) == repr(value).encode()


def test_powers_of_ten_and_their_neighbours_are_written_as_repr_does():
    """As for powers of two, for the decimal ones."""
    for exponent in range(-323, 309):
        power = float(f"1e{exponent}")
        for value in (power, math.nextafter(power, 0.0), math.nextafter(power, math.inf), 9 * power):
            if math.isfinite(value):
                assert decimal.text(value) == repr(value).encode()


@pytest.mark.parametrize("seed", [1, 2])
def test_random_bits_are_written_as_repr_does(seed):
    """No number of half a million random bit patterns is written otherwise than by repr()."""
    assert decimal.first_wrong_text(seed, 500_000) is None


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_has_no_text(value):
    """Infinity and NaN are refused, not written."""
    with pytest.raises(ValueError, match="finite"):
        decimal.text(value)


def test_float32_values_are_written_as_repr_does():
    """Scores that were float32 once, whose digits do not end early."""
    for bits in range(0x00000001, 0x7F800000, 1_000_003):
        (value,) = struct.unpack("<f", struct.pack("<I", bits))
        assert decimal.text(value) == repr(value).encode()
