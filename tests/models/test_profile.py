"""Cost profiles: what is stored is what was measured, and the tier follows from it by arithmetic."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiercel.errors import TierDeniedError
from tiercel.models.profile import (
    CostProfile,
    HostFingerprint,
    ProfileStore,
    Quantiles,
    decide_tier,
    served_tier,
    this_host,
)
from tiercel.types import Tier

HOST = HostFingerprint("EPYC", 2, "Linux 6 x86_64", "3.11.7", "1.20", "0.1", None)
DIGEST = "ab" * 32
numbers = st.floats(0, 1e12)
quantiles = st.lists(numbers, min_size=3, max_size=3).map(lambda found: Quantiles(*sorted(found)))
texts = st.text(max_size=20)
hosts = st.builds(HostFingerprint, texts, st.integers(1, 512), texts, texts, texts, texts, st.none() | texts)
curves = st.lists(st.tuples(numbers, numbers), min_size=1, max_size=10).map(
    lambda found: tuple((1 << k, min(pair), max(pair)) for k, pair in enumerate(found))
)
profiles = st.builds(
    CostProfile,
    hosts,
    st.integers(1, 2**62),
    st.integers(1, 10**6),
    st.none() | quantiles,
    quantiles,
    quantiles,
    curves,
    numbers,
    numbers,
    st.booleans(),
)


def profile(p99_us=1000.0, **changed):
    made = CostProfile(
        host=HOST,
        measured_us=1,
        n_samples=2000,
        read=None,
        score=Quantiles(1.0, 2.0, 3.0),
        total=Quantiles(p99_us / 2, p99_us, p99_us * 2),
        curve=((1, 1.0, 2.0), (2, 1.5, 2.5)),
        load_ms=3.0,
        memory_mb=4.0,
    )
    return replace(made, **changed)


@given(profiles)
def test_profiles_survive_their_json(found):
    """What was measured is what is read back, bit for bit."""
    assert CostProfile.from_json(json.loads(json.dumps(found.to_json()))) == found


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", 2),
        ("measured_us", 0),
        ("measured_us", True),
        ("n_samples", 1.5),
        ("total", None),
        ("total", {"p50_us": 3, "p99_us": 2, "p999_us": 4}),
        ("total", {"p50_us": 1, "p99_us": 2, "p999_us": float("nan")}),
        ("score", {"p50_us": "1", "p99_us": 2, "p999_us": 3}),
        ("score", {"p50_us": -1, "p99_us": 2, "p999_us": 3}),
        ("curve", []),
        ("curve", [[2, 1, 1], [1, 1, 1]]),
        ("curve", [[1, 2, 1]]),
        ("curve", 7),
        ("load_ms", float("inf")),
        ("quick", 1),
        ("host", {"cpu": "x"}),
    ],
)
def test_what_to_json_does_not_write_is_refused(key, value):
    """A profile that cannot have been measured is not one."""
    with pytest.raises((KeyError, TypeError, ValueError)):
        CostProfile.from_json({**profile().to_json(), key: value})


def test_quantiles_are_samples_that_were_seen():
    """At least the named share of the samples took no longer; few samples give their largest."""
    samples = np.arange(1, 1001, dtype=np.int64) * 1000
    np.random.default_rng(0).shuffle(samples)
    assert Quantiles.of(samples) == Quantiles(500.0, 990.0, 999.0)
    assert Quantiles.of(np.array([7000])) == Quantiles(7.0, 7.0, 7.0)


def test_every_field_of_a_host_counts():
    """Another processor, library or governor is another host."""
    others = [
        replace(HOST, **{name: "x"}) for name in ("cpu", "platform", "python", "onnxruntime", "tiercel", "governor")
    ]
    digests = {each.digest for each in [*others, replace(HOST, cores=4), HOST]}
    assert len(digests) == 8
    assert HOST.digest == replace(HOST).digest
    assert this_host().digest == this_host().digest


@pytest.mark.parametrize(
    ("p99_us", "precomputed", "requested", "expected"),
    [
        (5000.0, True, None, Tier.REALTIME),
        (np.nextafter(5000.0, 9e9), True, None, Tier.NEAR_REALTIME),
        (5000.0, False, None, Tier.NEAR_REALTIME),
        (50_000.0, True, None, Tier.NEAR_REALTIME),
        (50_000.0, False, None, Tier.NEAR_REALTIME),
        (np.nextafter(50_000.0, 9e9), True, None, Tier.BATCH),
        (0.0, True, None, Tier.REALTIME),
        (5000.0, True, Tier.REALTIME, Tier.REALTIME),
        (5000.0, True, Tier.NEAR_REALTIME, Tier.NEAR_REALTIME),
        (5000.0, True, Tier.BATCH, Tier.BATCH),
        (50_000.0, True, Tier.NEAR_REALTIME, Tier.NEAR_REALTIME),
        (1e9, True, Tier.BATCH, Tier.BATCH),
        (np.nextafter(5000.0, 9e9), True, Tier.REALTIME, None),
        (1.0, False, Tier.REALTIME, None),
        (np.nextafter(50_000.0, 9e9), True, Tier.NEAR_REALTIME, None),
        (1e9, True, Tier.REALTIME, None),
    ],
)
def test_the_tier_follows_from_the_evidence(p99_us, precomputed, requested, expected):
    """Twice the p99 must fit the tier's budget, to the last bit; a slower tier may be asked for, a faster one not."""
    found = profile(float(p99_us))
    if expected is None:
        with pytest.raises(TierDeniedError):
            decide_tier(found, precomputed=precomputed, requested=requested)
        # A server never refuses: it serves what the evidence gives.
        served = served_tier(found, precomputed=precomputed, requested=requested)
        assert served.tier is decide_tier(found, precomputed=precomputed).tier
        assert "was asked for" in served.reason
        return
    decision = decide_tier(found, precomputed=precomputed, requested=requested)
    assert decision.tier is expected
    assert f"{p99_us / 1000:.3f} ms" in decision.reason
    assert served_tier(found, precomputed=precomputed, requested=requested) == decision


def test_a_denied_tier_names_the_numbers():
    """The refusal says what would have fitted, what was measured, where, and what can be had instead."""
    with pytest.raises(TierDeniedError) as caught:
        decide_tier(profile(7312.0), precomputed=True, requested=Tier.REALTIME)
    assert caught.value.code == "tier_denied"
    for part in ("5.000 ms", "7.312 ms", "3.656", "14.624", "2000 samples", "EPYC", "near-realtime", "10 ms"):
        assert part in str(caught.value)


def test_without_evidence_nothing_is_realtime():
    """A model of unknown cost is kept where it cannot hold up others, whatever was asked for."""
    tiers = [served_tier(None, precomputed=True, requested=asked).tier for asked in (None, *Tier)]
    assert tiers == [Tier.NEAR_REALTIME, Tier.NEAR_REALTIME, Tier.NEAR_REALTIME, Tier.BATCH]


def test_the_store_keeps_one_profile_per_host(tmp_path):
    """A newer profile replaces the older of its host and leaves those of others alone; no temporary file stays."""
    store, other = ProfileStore(tmp_path), replace(HOST, cores=64)
    assert store.find(DIGEST, HOST) is None
    store.put(DIGEST, profile(1.0))
    store.put(DIGEST, profile(2.0, host=other))
    store.put(DIGEST, profile(3.0))
    assert store.find(DIGEST, HOST) == profile(3.0)
    assert store.find(DIGEST, other) == profile(2.0, host=other)
    assert store.find("cd" * 32, HOST) is None
    assert len(list((tmp_path / "profiles" / DIGEST).iterdir())) == 2


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"{}",
        b"[" * 100_000,
        b" " * (2 << 20),
        json.dumps({**profile().to_json(), "curve": []}).encode(),
        json.dumps(profile(host=replace(HOST, cores=3)).to_json()).encode(),
    ],
    ids=["empty", "cut", "list", "null", "not text", "nothing", "deep", "large", "nonsense", "foreign"],
)
def test_unreadable_and_foreign_profiles_count_as_absent(tmp_path, caplog, content):
    """Whatever lies under a profile's name, asking for it gives a profile or None with a warning, and put mends it."""
    store = ProfileStore(tmp_path)
    store.put(DIGEST, profile())
    path = tmp_path / "profiles" / DIGEST / f"{HOST.digest}.json"
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING, "tiercel.models"):
        assert store.find(DIGEST, HOST) is None
    assert str(path) in caplog.text
    store.put(DIGEST, profile())
    assert store.find(DIGEST, HOST) == profile()


def test_a_profile_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    """A full disk is an OSError; what was there is whole and nothing half-written stays."""
    store = ProfileStore(tmp_path)
    store.put(DIGEST, profile(1.0))

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tiercel.models.profile.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        store.put(DIGEST, profile(2.0))
    assert store.find(DIGEST, HOST) == profile(1.0)
    assert len(list((tmp_path / "profiles" / DIGEST).iterdir())) == 1


def test_only_a_digest_names_a_directory(tmp_path):
    """No path is ever made from something else than a sha256."""
    for bad in ("../../etc", "AB" * 32, "", "ab" * 31):
        with pytest.raises(ValueError, match="64 hex digits"):
            ProfileStore(tmp_path).find(bad, HOST)
