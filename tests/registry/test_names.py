from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiercel.errors import InvalidNameError
from tiercel.registry.names import (
    LATEST,
    MAX_VERSION,
    check_alias,
    check_artifact_name,
    check_model_name,
    check_tag_key,
    format_reference,
    parse_reference,
    parse_selector,
)

names = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,63}", fullmatch=True)
aliases = st.from_regex(r"[A-Za-z0-9_-]{1,255}", fullmatch=True).filter(
    lambda alias: alias.lower() != "latest" and not re.fullmatch(r"[vV]?[0-9]+", alias)
)
versions = st.integers(1, MAX_VERSION)
selectors = st.none() | versions | st.just(LATEST) | aliases.map(str.lower)


@given(names, selectors)
def test_a_formatted_reference_reads_back(name, selector):
    """`parse_reference` inverts `format_reference` for every name and selector."""
    assert parse_reference(format_reference(name, selector)) == (name, selector)


@given(names, selectors)
def test_uri_and_short_form_agree(name, selector):
    """`models:/` URIs mean the same as the short form."""
    short = format_reference(name, selector)
    uri = "models:/" + (short if "@" in short else short.replace(":", "/"))
    assert parse_reference(uri) == parse_reference(short)


@given(st.text(max_size=80))
def test_any_text_is_a_reference_or_a_typed_error(text):
    """No text makes the parser fail in any other way, and what it accepts has a valid name and selector."""
    try:
        name, selector = parse_reference(text)
    except InvalidNameError:
        return
    assert check_model_name(name) == name
    assert parse_selector(selector) == selector


@given(st.text(max_size=70))
def test_model_names_follow_the_rule_exactly(text):
    """A name is accepted if and only if it matches the documented pattern, letters being ASCII."""
    is_valid = re.fullmatch(r"[abcdefghijklmnopqrstuvwxyz0123456789][a-z0-9_-]{0,63}", text, re.ASCII) is not None
    if is_valid:
        assert check_model_name(text) == text
    else:
        with pytest.raises(InvalidNameError, match="Expected a model name"):
            check_model_name(text)


@given(aliases)
def test_aliases_are_case_insensitive(alias):
    """Every spelling of an alias is stored as the same lower-case text."""
    assert check_alias(alias) == check_alias(alias.upper()) == check_alias(alias.swapcase()) == alias.lower()


@pytest.mark.parametrize("alias", ["latest", "LATEST", "v1", "V23", "v007", "7", "0"])
def test_reserved_aliases_are_refused(alias):
    """What reads as a version or as `latest` cannot be an alias."""
    with pytest.raises(InvalidNameError, match="Choose another name"):
        check_alias(alias)


@pytest.mark.parametrize(
    "bad", ["", "Late", "-late", "_x", "a" * 65, "a b", "späte", "late\n", "a/b", "..", None, 3, b"a"]
)
def test_bad_model_names_say_what_was_expected_and_got(bad):
    """The message repeats what came."""
    with pytest.raises(InvalidNameError, match="Expected a model name") as caught:
        check_model_name(bad)
    assert repr(bad)[:70] in str(caught.value)


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        (3, 3), ("3", 3), ("v3", 3), ("V3", 3), ("Champion", "champion"), ("@Champion", "champion"), ("LATEST", "latest"),
        ("@latest", "latest"), (None, None), ("v3x", "v3x"), (MAX_VERSION, MAX_VERSION),
    ],
)  # fmt: skip
def test_selectors(selector, expected):
    """Every documented way to pick a version is understood."""
    assert parse_selector(selector) == expected


@pytest.mark.parametrize(
    "bad", [0, -1, True, 1.0, "0", "03", "v0", "@3", "@v3", "@", "", "a b", MAX_VERSION + 1, "9" * 10, "٣", b"3"]
)
def test_bad_selectors_are_refused(bad):
    """Nothing is guessed: zero, booleans, floats, other digits and overflow are refused."""
    with pytest.raises(InvalidNameError):
        parse_selector(bad)


@pytest.mark.parametrize(
    "bad",
    ["late:champion", "late@", "late:", "late@3", "late:3@x", "late@a@b", "models:/", "models:/late/", "models:/late/3/4",
     "models:/late:3", "models://late/3", "models:/late/production", "late/3", "@champion", ":3", 3, None],
)  # fmt: skip
def test_bad_references_are_refused(bad):
    """Half a reference, two selectors, or an alias where a version belongs is refused."""
    with pytest.raises(InvalidNameError):
        parse_reference(bad)


@pytest.mark.parametrize(
    "bad", ["", "/etc/passwd", "../x", "a/../b", "a//b", "a/", ".hidden", "a/.b", "a\\b", "a\0b", "é", "x" * 256, 3]
)
def test_artifact_names_cannot_leave_a_directory(bad):
    """No accepted artifact name is absolute, hidden, or has a part that climbs."""
    with pytest.raises(InvalidNameError):
        check_artifact_name(bad)


def test_ordinary_artifact_names_and_tag_keys_are_accepted():
    """Names in daily use pass."""
    for name in ("model.onnx", "monitor/ref_hist.npz", "a-b_c.1"):
        assert check_artifact_name(name) == name
    assert check_tag_key("team/owner v1.0") == "team/owner v1.0"
    with pytest.raises(InvalidNameError, match="tag key"):
        check_tag_key("")
