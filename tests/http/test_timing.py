"""The `Server-Timing` header."""

from __future__ import annotations

import pytest

from tiercel.http.timing import server_timing


def test_stages_are_told_in_milliseconds():
    """Each stage stands in order with three decimals of a millisecond; clocks that disagree never tell less than nothing."""
    stage_us = {"parse": 4.2, "read": 12.0, "score": 1234.5678, "reply": -0.3}
    assert server_timing(stage_us) == "parse;dur=0.004, read;dur=0.012, score;dur=1.235, reply;dur=0.000"


def test_no_stages_are_an_empty_header():
    """Without stages there is nothing to tell."""
    assert server_timing({}) == ""


@pytest.mark.parametrize("name", ["", "two words", "a;b", "a,b", "a\r\nSet-Cookie: x", "ä", 'a"'])
def test_a_name_cannot_break_the_header(name):
    """A name that would end the header, or begin another, is refused."""
    with pytest.raises(ValueError, match="token"):
        server_timing({name: 1.0})
