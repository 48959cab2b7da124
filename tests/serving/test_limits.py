"""Limits follow from profiles; under overload they keep what was promised, in a simulated event loop."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiercel.errors import CapacityError
from tiercel.serving.limits import (
    MAX_RETRY_S,
    Partition,
    TierProfile,
    derive_limits,
    describe,
    retry_after_ms,
    retry_after_s,
)
from tiercel.types import Tier

FAST = TierProfile(Tier.REALTIME, 10_000, 300, 200_000.0)
SLOW = TierProfile(Tier.NEAR_REALTIME, 100_000, 5000, 500.0)
LIMITS = derive_limits({"fast": FAST, "slow": SLOW}, 1, 4 << 20)

# -- partitions ---------------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self):
        self.now_ns = 0

    def __call__(self):
        return self.now_ns


def test_a_partition_is_full_when_it_is():
    """As many as it holds are in, the next is refused at once with a wait; a place that is left is free."""
    partition = Partition("near-realtime", 2, 1000, 4000, Clock())
    first, _ = partition.enter(), partition.enter()
    with pytest.raises(CapacityError, match="near-realtime to have room, it holds at most 2 requests") as refused:
        partition.enter()
    assert refused.value.predicted_wait_us == 2000
    with first:
        pass
    first.leave()  # leaving twice is leaving once
    assert partition.n_running == 1
    partition.enter()


@pytest.mark.parametrize(("n_bytes", "is_admitted"), [(400, True), (401, False)])
def test_bytes_are_bounded(n_bytes, is_admitted):
    """Bodies together fit or are refused, to the byte; a single one that is larger is not refused for ever."""
    partition = Partition("batch", 10, 1000, 4000, Clock())
    stay = partition.enter(600)
    if is_admitted:
        partition.enter(n_bytes).leave()
    else:
        with pytest.raises(CapacityError, match="of which 600 are taken, got 401 more"):
            partition.enter(n_bytes)
    stay.leave()
    with partition.enter(5000):
        assert partition.n_bytes == 5000
    assert (partition.n_running, partition.n_bytes) == (0, 0)


def test_a_partition_is_left_whatever_happens():
    """An error inside gives the place back."""
    partition = Partition("batch", 1, 1000, 4000, Clock())
    with pytest.raises(ZeroDivisionError), partition.enter(10):
        raise ZeroDivisionError
    assert (partition.n_running, partition.n_bytes) == (0, 0)


def test_the_predicted_wait_is_learned():
    """After some stays the prediction is what they took, not what was thought at the start."""
    clock = Clock()
    partition = Partition("batch", 1, 1000, 1_000_000, clock)
    for _ in range(200):
        with partition.enter():
            clock.now_ns += 3_000_000
    stay = partition.enter()
    assert partition.predicted_wait_us() == pytest.approx(3000, rel=0.01)
    stay.leave()


# -- derivation ---------------------------------------------------------------------------------------------------------


def test_near_realtime_holds_what_it_can_answer():
    """Twice a deadline's worth of answers of the fastest model on all cores, within bounds; four bodies always fit."""
    assert LIMITS.near_realtime.max_running == 100
    assert derive_limits({"slow": SLOW}, 4, 1).near_realtime.max_running == 400
    assert derive_limits({"slow": replace(SLOW, rows_per_s=1.0)}, 1, 1).near_realtime.max_running == 16
    assert derive_limits({"slow": replace(SLOW, rows_per_s=1e9)}, 1, 1).near_realtime.max_running == 10_000
    assert derive_limits({"slow": SLOW}, 1, 4 << 20).near_realtime.max_bytes == 16 << 20
    assert derive_limits({"slow": SLOW}, 1, 1024).near_realtime.max_bytes == 5_000_000


def test_submissions_of_jobs_are_bounded_whatever_is_served():
    """As many as are written down in 100 ms, one after the other, and the largest bodies of four."""
    for profiles in ({}, {"slow": SLOW}, {"fast": FAST}):
        batch = derive_limits(profiles, 8, 1 << 20).batch
        assert (batch.max_running, batch.max_bytes) == (10, 4 << 20)


def test_limits_are_said_in_words():
    """One line for each tier, with the numbers that hold and no others; no model in a tier is said, too."""
    realtime, near, batch = describe(LIMITS)
    assert realtime == "realtime: answered inline, never queued"
    assert near.startswith("near-realtime: at most 100 requests with 16 MiB of bodies at once")
    assert batch.startswith(
        "batch: at most 10 submissions with 16 MiB of bodies at once, written down one after the other"
    )
    assert describe(derive_limits({}, 1, 1))[0] == "realtime: no model is served in it"


# -- coming back --------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**10), st.text(max_size=20))
def test_nobody_is_called_back_before_there_is_room(wait_us, request_id):
    """Both hints are at least the wait and at least one unit, at most twice it and a unit, and the same for the same request."""
    ms, s = retry_after_ms(wait_us, request_id), retry_after_s(wait_us, request_id)
    wait_ms = min(wait_us / 1000, 1000 * MAX_RETRY_S)
    assert max(1, wait_ms) <= ms <= 2 * (wait_ms + 1) + 1
    assert max(1, wait_ms / 1000) <= s <= 2 * (wait_ms / 1000 + 1) + 1
    assert (ms, s) == (retry_after_ms(wait_us, request_id), retry_after_s(wait_us, request_id))


def test_those_refused_together_do_not_return_together():
    """A thousand requests that are refused in one instant come back spread over the time between one and two waits."""
    ids = [f"{i:024x}" for i in range(1000)]
    counts, _ = np.histogram([retry_after_ms(100_000, each) for each in ids], bins=10, range=(100, 201))
    assert counts.min() > 50
    assert {retry_after_s(5000, each) for each in ids} == {1, 2}
    assert {retry_after_s(3_000_000, each) for each in ids} == {3, 4, 5, 6}
