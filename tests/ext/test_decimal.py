"""Numbers as text and back: what replies write is repr(), what bodies say is float(), to the bit."""

from __future__ import annotations

import math
import struct
from fractions import Fraction

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


SPELLINGS = [
    "0", "-0", "-0.0", "0e999999999999999999999", "1e400", "-1e400", "9007199254740993", "9007199254740993.0",
    "9007199254740993.00000000000000000000000001", "9007199254740992.9999999999999999999", "5e-324", "2.4703282292062327e-324",
    "2.4703282292062328e-324", "2.2250738585072011e-308", "1.7976931348623158e308", "1.7976931348623159e308", "1e-400",
    "1234567890123456.25", "1" + "0" * 400 + "e-400", "0." + "0" * 400 + "1e401", "1" * 400, "0." + "1" * 900, "1e-342", "9e-343",
    "1" * 200 + "." + "9" * 700 + "e-150",
]  # fmt: skip


@pytest.mark.parametrize("text", SPELLINGS)
def test_hard_spellings_are_read_as_float_does(text):
    """Ties, subnormals, overflow, zeros in front and behind, and hundreds of digits."""
    got = decimal.number(text.encode())
    assert struct.pack("<d", got) == struct.pack("<d", float(text))


@settings(max_examples=400, deadline=None)
@given(
    value=st.floats(min_value=0, exclude_min=True, max_value=1.7e308),
    more=st.sampled_from(["", "0", "1", "0" * 40 + "1"]),
)
def test_halfway_texts_are_read_as_float_does(value, more):
    """The exact midpoint of two neighbours, and a digit past it, in up to 800 digits."""
    middle = (Fraction(value) + Fraction(math.nextafter(value, math.inf))) / 2
    places = middle.denominator.bit_length() - 1
    text = f"{middle.numerator * 5**places}{more}e-{places + len(more)}"
    assert decimal.number(text.encode()) == float(text)


def test_random_spellings_are_read_as_float_does():
    """No text of half a million of 1 to 25 digits, over the whole range of exponents, is read otherwise."""
    assert decimal.first_wrong_number(3, 500_000) is None


@pytest.mark.parametrize(
    "text", ["", "-", "+1", "01", "1.", ".5", "1e", "1e+", "1_0", "0x1", " 1", "1 ", "nan", "inf", "--1", "1.e1"]
)
def test_what_json_does_not_call_a_number_is_not_one(text):
    """Only RFC 8259's spelling is a number, and only the whole text."""
    assert decimal.number(text.encode()) is None
