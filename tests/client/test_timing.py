"""Reading `Server-Timing`: what the server said comes back, whatever proxies put beside it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiercel.client import Prediction, Predictions
from tiercel.client.timing import parse_server_timing
from tiercel.http.timing import server_timing

NAMES = st.text("abcdefghijklmnopqrstuvwxyz_-", min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(NAMES, st.floats(0, 1e9)))
def test_what_the_server_tells_is_what_the_client_reads(stage_us):
    """Stages come back in their order, to the microsecond the header has room for."""
    found = parse_server_timing(server_timing(stage_us))
    assert list(found) == list(stage_us)
    assert list(found.values()) == pytest.approx([us / 1e3 for us in stage_us.values()], abs=0.0005001)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, {}),
        ("", {}),
        ("read;dur=0.012", {"read": 0.012}),
        ("read ; dur = 1.5 ,score;dur=2", {"read": 1.5, "score": 2.0}),
        ("cache;desc=hit, read;dur=1", {"read": 1.0}),
        ('cdn;desc="a, b; dur=9";dur=3, read;dur=1', {"cdn": 3.0, "read": 1.0}),
        ('cdn;desc="say \\"hi\\", twice";dur=3', {"cdn": 3.0}),
        ('read;dur="4.5"', {"read": 4.5}),
        ("read;DUR=2", {"read": 2.0}),
        ("read;dur=1;dur=2", {"read": 1.0}),
        ("read;dur=1, read;dur=2", {"read": 1.0}),
        ("read;dur=soon, score;dur=1", {"score": 1.0}),
        ("read;dur=nan, score;dur=inf, reply;dur=1", {"reply": 1.0}),
        ("read;dur, score;dur=1", {"score": 1.0}),
        (",,;;,=;dur=1, @;dur=2", {}),
        ('"unclosed;dur=1, read;dur=2', {}),
    ],
)
def test_what_cannot_be_read_is_skipped(text, expected):
    """Foreign, odd and damaged metrics cost only themselves."""
    assert parse_server_timing(text) == expected


@settings(max_examples=300, deadline=None)
@given(st.text('ab;,="\\ \tdur.0', max_size=60))
def test_no_header_breaks_the_client(text):
    """Whatever the header holds, the client reads numbers by name or nothing."""
    assert all(isinstance(value, float) for value in parse_server_timing(text).values())


def test_predictions_have_their_stage_times():
    """A reply's stage times are numbers by name, for one row and for many; without the header there are none."""
    head = ("id", "late", 1, "realtime")
    assert Prediction(*head, 0.5, server_timing="read;dur=0.012").timing_ms == {"read": 0.012}
    assert Predictions(*head, (0.5,), server_timing="score;dur=1").timing_ms == {"score": 1.0}
    assert Prediction(*head, 0.5).timing_ms == {}
