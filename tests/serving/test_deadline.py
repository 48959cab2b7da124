"""A deadline has many names; the smallest wins, and what is none is refused with what was expected."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.reference import http_head

from tiercel.errors import RequestError
from tiercel.serving.deadline import HEADERS, MAX_BUDGET_US, Budget, Deadline, budget_of
from tiercel.types import Tier


@pytest.mark.parametrize(
    ("headers", "budget_us", "source"),
    [
        ([], None, "tier"),
        ([(b"x-other", b"5")], None, "tier"),
        ([(b"x-request-timeout-seconds", b"0.5")], 500_000, "x-request-timeout-seconds"),
        ([(b"x-envoy-expected-rq-timeout-ms", b"60000")], 60_000_000, "x-envoy-expected-rq-timeout-ms"),
        (
            [(b"x-request-timeout-seconds", b"2"), (b"x-envoy-expected-rq-timeout-ms", b"15")],
            15_000,
            "x-envoy-expected-rq-timeout-ms",
        ),
        (
            [(b"x-request-timeout-seconds", b"2"), (b"x-request-timeout-seconds", b"1")],
            1_000_000,
            "x-request-timeout-seconds",
        ),
        ([(b"x-request-timeout-seconds", b"1e-3")], 1_000, "x-request-timeout-seconds"),
        ([(b"x-request-timeout-seconds", b"3600")], MAX_BUDGET_US, "x-request-timeout-seconds"),
        ([(b"x-request-timeout-seconds", b"3601")], MAX_BUDGET_US, "x-request-timeout-seconds"),
        ([(b"x-envoy-expected-rq-timeout-ms", b"3600001")], MAX_BUDGET_US, "x-envoy-expected-rq-timeout-ms"),
        ([(b"x-envoy-expected-rq-timeout-ms", b"1e9")], MAX_BUDGET_US, "x-envoy-expected-rq-timeout-ms"),
        (
            [(b"x-envoy-expected-rq-timeout-ms", b"9999999999999999999"), (b"x-request-timeout-seconds", b"2")],
            2_000_000,
            "x-request-timeout-seconds",
        ),
    ],
)
def test_the_smallest_header_wins(headers, budget_us, source):
    """Every known header counts in its own unit, also one that is sent twice."""
    budget = budget_of(headers, 7)
    assert (budget.begin_ns, budget.budget_us, budget.source) == (7, budget_us, source)


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize(
    "value", [b"", b"0", b"-1", b"nan", b"inf", b"1_0", b"0x10", b" 1", b"1s", b"1e999", b"\xff", b"0.0000001"]
)
def test_what_is_no_deadline_is_refused(name, value):
    """Negative, zero, infinite and unreadable deadlines are the caller's mistake, by the header's name."""
    with pytest.raises(RequestError, match=name.decode()) as caught:
        budget_of([(name, value)], 0)
    assert caught.value.code == "invalid_deadline"


@pytest.mark.parametrize(
    "value", [0, -1, math.nan, math.inf, True, "5", None, 3_600_001, 0.0001, pytest.param(10**400, id="1e400")]
)
def test_what_the_body_says_is_judged_alike(value):
    """Bodies may hold any JSON value."""
    with pytest.raises(RequestError) as caught:
        Budget(0).with_us(value, 1e3, "deadline_ms", "$.deadline_ms")
    assert caught.value.code == "invalid_deadline"
    assert "$.deadline_ms" in str(caught.value)


@given(digits=st.integers(0, 10**15 - 1), point=st.integers(0, 15), name=st.sampled_from(sorted(http_head.DEADLINES)))
def test_both_paths_read_a_header_alike(digits, point, name):
    """What the compiled path takes for a deadline is, to the microsecond, what the general path takes it for.

    More than an hour is left to the general path, which cuts it.
    """
    text = str(digits)
    value = (text[: len(text) - point] or "0") + "." + text[len(text) - point :] if point < len(text) else text
    fast = http_head.budget_of(value.encode(), http_head.DEADLINES[name])
    try:
        general = budget_of([(name, value.encode())], 0).budget_us
    except RequestError:
        general = None
    assert fast in (general, None)
    is_cut = float(value) * http_head.DEADLINES[name] > MAX_BUDGET_US
    assert (
        (fast is None) == (general is None) or len(value.replace(".", "")) > 15 or (is_cut and general == MAX_BUDGET_US)
    )


def test_the_tier_promises_where_nobody_asks():
    """Without a budget the tier's own bound is due, and a batch is due at no time."""
    assert Budget(1000).over(Tier.REALTIME) == Deadline(1000, 10_000, "tier")
    assert Budget(1000).over(Tier.NEAR_REALTIME, 50_000) == Deadline(1000, 50_000, "tier")
    assert Budget(1000).over(Tier.BATCH) is None
    asked = Budget(1000).with_us(MAX_BUDGET_US, 1, "timeout", "here")
    assert asked.over(Tier.BATCH) == Deadline(1000, MAX_BUDGET_US, "timeout")


def test_what_is_left():
    """Time runs from the read, in whole microseconds, and goes below zero."""
    deadline = Deadline(1_000_000, 10_000, "deadline_ms")
    assert deadline.due_ns == 11_000_000
    assert deadline.remaining_us(1_500_000) == 9_500
    assert deadline.remaining_us(12_000_000) == -1_000
