"""Feedback events: each field's borders, and what an error says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiercel.errors import RequestError
from tiercel.monitor import lookup
from tiercel.monitor.feedback_events import AHEAD_US, FIRST_TIME_US, ID, MAX_DESCRIBED, Event, check_event, check_events

NOW_US = 1_700_000_000_000_000
ID_1 = "0123456789abcdef1"


def check(**fields):
    return check_event({"id": ID_1, "label": 1} | fields, NOW_US)


def test_an_event_is_read():
    """Every field arrives; what is not said is not made up, but for the time, which is now."""
    assert check() == Event(ID_1, None, 1.0, None, None, NOW_US)
    assert check(row=0, label="late", value=2, time="2023-01-01T00:00:00+01:00") == Event(
        ID_1, 0, None, "late", 2.0, 1_672_527_600_000_000
    )
    assert check(time="2023-01-01") == Event(ID_1, None, 1.0, None, None, 1_672_531_200_000_000)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"id": None}, "invalid_id"),
        ({"id": 5}, "invalid_id"),
        ({"id": ""}, "invalid_id"),
        ({"id": ID_1.upper()}, "invalid_id"),
        ({"id": ID_1 + "\n"}, "invalid_id"),
        ({"id": ID_1[:16]}, "invalid_id"),
        ({"id": ID_1[:16] + "01"}, "invalid_id"),
        ({"id": ID_1[:16] + "1" * 17}, "invalid_id"),
        ({"row": -1}, "wrong_type"),
        ({"row": 1 << 31}, "wrong_type"),
        ({"row": True}, "wrong_type"),
        ({"row": 1.0}, "wrong_type"),
        ({"label": None}, "invalid_label"),
        ({"label": float("nan")}, "invalid_label"),
        ({"label": float("inf")}, "invalid_label"),
        ({"label": 10**400}, "invalid_label"),
        ({"label": ""}, "invalid_label"),
        ({"label": "x" * 201}, "invalid_label"),
        ({"label": "\ud800"}, "invalid_label"),
        ({"label": [1]}, "invalid_label"),
        ({"value": float("-inf")}, "wrong_type"),
        ({"value": "much"}, "wrong_type"),
        ({"time": "yesterday"}, "wrong_type"),
        ({"time": 1.5}, "wrong_type"),
        ({"time": True}, "wrong_type"),
        ({"outcome": 1}, "unknown_field"),
    ],
)
def test_what_is_wrong_is_refused(fields, code):
    """Each mistake has its stable code, and its error says what was expected and what came."""
    with pytest.raises(RequestError, match=r"^Expected .*, got ") as caught:
        check(**fields)
    assert caught.value.code == code


@pytest.mark.parametrize("item", [None, 5, "x", [], [ID_1, 1]])
def test_what_is_no_object_is_refused(item):
    """An event is an object."""
    with pytest.raises(RequestError, match="Expected an object"):
        check_event(item, NOW_US)


@pytest.mark.parametrize(
    ("time", "is_kept"),
    [
        (FIRST_TIME_US, True),
        (FIRST_TIME_US - 1, False),
        (NOW_US + AHEAD_US, True),
        (NOW_US + AHEAD_US + 1, False),
        (0, False),
        (-(10**30), False),
        (10**30, False),
        ("0001-01-01", False),
        ("9999-12-31", False),
    ],
)
def test_absurd_times_are_replaced(time, is_kept):
    """A label is worth having though its clock was nowhere: it gets the time of its arrival, and a note."""
    checked = check_events([{"id": ID_1, "label": 1, "time": time}], NOW_US)
    (event,) = checked.events
    assert (event.time_us == NOW_US) is not is_kept
    assert checked.notes == ({} if is_kept else {"time_replaced": 1})


def test_only_the_first_problems_are_described():
    """A reply stays short; the counts are complete."""
    checked = check_events([{"id": "?"}] * 1000, NOW_US)
    assert len(checked.described) == MAX_DESCRIBED
    assert checked.refused == {"invalid_id": 1000}


def test_ids_are_those_of_replies():
    """What can be looked up can be labelled."""
    assert ID.pattern.replace("(", "").replace(")", "") == lookup._ID.pattern.replace("(", "").replace(")", "")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.lists(st.dictionaries(st.sampled_from(["id", "row", "label", "value", "time", "x"]), JSON) | JSON, max_size=5)
)
def test_nothing_sent_breaks_the_check(items):
    """Whatever is sent, each item is an event or a refusal."""
    checked = check_events(items, NOW_US)
    assert len(checked.events) + sum(checked.refused.values()) == len(items)
