"""Waiting awake: done while most waits end with a request, and hardly ever where they do not."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiercel._hot.busy_poll import BusyPoll

MISFORTUNE, FEWEST_RESTED, MOST_RESTED = 4, 16, 1024


def after(poll, came):
    """What became of so many requests after which it may wait: 1 it came, 0 it did not, None it did not wait."""
    told = []
    for each in came:
        tries = poll.tries()
        if tries:
            poll.tried(each)
        told.append(int(each) if tries else None)
    return told


@pytest.mark.parametrize("longest_ns", [0, -1])
def test_who_may_not_wait_never_does(longest_ns):
    assert after(BusyPoll(longest_ns), [True] * 2000) == [None] * 2000


def test_a_client_that_asks_at_once_is_always_waited_for():
    assert after(BusyPoll(50_000), [True] * 1000) == [1] * 1000


def test_one_that_never_does_is_given_up_for_ever_longer():
    told = after(BusyPoll(50_000), [False] * 20_000)
    tried = [i for i, one in enumerate(told) if one is not None]
    rests = [b - a - 1 for a, b in itertools.pairwise(tried)]
    assert rests[:7] == [16, 32, 64, 128, 256, 512, 1024]
    assert set(rests[7:]) == {MOST_RESTED}


@given(st.lists(st.booleans(), max_size=5000))
def test_waits_in_vain_are_a_fifth_at_most(came):
    """But for one of each time that it is given up, of which at least sixteen others then have none."""
    told = after(BusyPoll(50_000), came)
    in_vain, hits, rested = told.count(0), told.count(1), told.count(None)
    assert MISFORTUNE * in_vain <= hits + MISFORTUNE * (1 + rested // FEWEST_RESTED)


@given(st.lists(st.booleans(), max_size=5000))
def test_whoever_it_gave_up_it_soon_finds_again(came):
    """However things went: a client that asks at once from now on is waited for after so many requests, and then always."""
    poll = BusyPoll(50_000)
    after(poll, came)
    told = after(poll, [True] * (MOST_RESTED + 100))
    assert told[MOST_RESTED:] == [1] * 100
    assert told.index(1) <= MOST_RESTED
    assert after(poll, [False, True] * 2) == [0, 1, 0, 1]  # and one slip is no reason to give it up


def test_four_of_five_are_enough():
    told = after(BusyPoll(50_000), ([True] * 5 + [False]) * 500)
    assert None not in told
    told = after(BusyPoll(50_000), ([True] * 2 + [False]) * 500)
    assert told.count(None) > 1000
