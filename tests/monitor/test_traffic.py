"""Traffic of all versions in one pass is what the windows of each version say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tests.support import monitored

from tiercel.monitor.counting import STAGES
from tiercel.monitor.metrics import quantiles_us
from tiercel.monitor.traffic import TrafficReader
from tiercel.monitor.windows import WindowStore
from tiercel.registry import Registry
from tiercel.types import Task, Tier

NOW_US = 1_800_000_000_000_000
N_STEPS = 12


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    """Three versions in two tiers over twenty minutes, with degraded answers and shadows."""
    state = tmp_path_factory.mktemp("traffic")
    with Registry.for_state(state) as registry:
        versions = [
            monitored.register(registry, name, features=["a", "b", "c"], seed=seed, task=task)
            for name, seed, task in (("m", 1, Task.BINARY), ("m", 2, Task.BINARY), ("other", 3, Task.REGRESSION))
        ]
    plans = [
        (versions[0], Tier.REALTIME, {}, 1.0),
        (versions[0], Tier.REALTIME, {"flags": 2 << 8 | 4}, 0.1),  # a last score: no features
        (versions[1], Tier.REALTIME, {"flags": monitored.SHADOW}, 0.5),
        (versions[2], Tier.NEAR_REALTIME, {"typical_ns": 9_000_000}, 0.3),
    ]
    monitored.seed_windows(state, plans, now_us=NOW_US, n_windows=20, per_window=30).close()
    return state


def test_one_pass_equals_the_windows_of_each_version(state):
    """Requests, shadows, degraded rows, tiers and every cell of the durations are those of `WindowStore.merged`."""
    begin_us = NOW_US - 15 * monitored.MINUTE_US
    found = TrafficReader(state).traffic(begin_us, NOW_US, N_STEPS)
    store = WindowStore(state)
    assert sorted(found) == store.versions() == [("m", 1), ("m", 2), ("other", 1)]
    for (model, version), one in found.items():
        window = store.merged(model, version, begin_us, NOW_US)
        assert one.n_requests == window.n_requests - window.n_shadow
        assert one.n_shadow == window.n_shadow
        assert one.n_degraded == window.n_degraded
        assert one.tiers == set(window.tiers)
        total = window.durations[STAGES.index("total")]
        np.testing.assert_array_equal(one.durations, total[: len(one.durations)])
        np.testing.assert_array_equal(one.quantiles_us(), quantiles_us(total, (0.5, 0.99, 0.999)))
        assert one.steps.sum() == one.n_requests
        assert (one.begin_us, one.end_us) == (window.begin_us, window.end_us)
    assert found["m", 1].n_degraded > 0
    assert (found["m", 2].n_requests, found["m", 2].n_shadow > 0) == (0, True)


def test_the_last_step_ends_with_the_newest_window(state):
    """A look half a minute after the newest window finds as much in the last step as in those before."""
    reader = TrafficReader(state)
    for late_us in (0, 10_000_000, 29_000_000):
        end_us = NOW_US + late_us
        steps = reader.traffic(end_us - 10 * monitored.MINUTE_US, end_us, 5)["m", 1].steps
        assert steps.min() > 0.5 * steps.max(), late_us


def test_new_windows_are_found_and_damaged_ones_left_out(tmp_path):
    """A reader that has looked before finds what came since; of a damaged file the other versions still count."""
    with Registry.for_state(tmp_path) as registry:
        version = monitored.register(registry, "m", features=["a", "b"])
    worker = monitored.seed_windows(
        tmp_path, [(version, Tier.REALTIME, {}, 1.0)], now_us=NOW_US, n_windows=3, per_window=20
    )
    reader = TrafficReader(tmp_path)
    day = (NOW_US - 86_400_000_000, NOW_US + 86_400_000_000, N_STEPS)
    before = reader.traffic(*day)["m", 1].n_requests
    plan = worker.for_plan("m", 1, version.signature, reference=version.reference)
    monitored.answer(plan, version, 7, rng=np.random.default_rng(0))
    WindowStore(tmp_path).record(NOW_US + monitored.MINUTE_US)
    assert reader.traffic(*day)["m", 1].n_requests == before + 7
    path = max((tmp_path / "windows").glob("*.window"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    fresh = TrafficReader(tmp_path)
    assert fresh.traffic(*day)["m", 1].n_requests == before
    assert "its bytes are not those that were written" in fresh.problems[0]
    worker.close()


def test_nothing_recorded_is_no_traffic(tmp_path):
    """Without windows there is no version, and of a version without requests no quantile."""
    assert TrafficReader(tmp_path).traffic(0, NOW_US, N_STEPS) == {}
    from tiercel.monitor.traffic import Traffic

    empty = Traffic(np.zeros(3, np.int64))
    assert empty.rate == 0
    assert all(math.isnan(value) for value in empty.quantiles_us())
