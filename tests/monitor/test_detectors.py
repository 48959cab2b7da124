"""Detectors: river's decisions on the same streams, and state that goes on as if nothing had been in between."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import stats

from tiercel.monitor.detectors import Adwin, Ddm, Eddm, Kswin, PageHinkley, _critical_distance, _distance

MAKERS = {
    "adwin": Adwin,
    "adwin_eager": lambda: Adwin(0.1, clock=1),
    "page_hinkley": PageHinkley,
    "page_hinkley_low": lambda: PageHinkley(delta=0.1, threshold=5),
    "kswin": lambda: Kswin(seed=1),
    "ddm": Ddm,
    "eddm": Eddm,
}
#: What river 0.26.1's detectors of the same parameters alarmed at (KSWIN: of the first 3000 values, with seed 1).
RIVER = {
    "rare adwin": [3423],
    "rare adwin_eager": [3231],
    "rare page_hinkley": [3517],
    "rare page_hinkley_low": [3140, 4610, 5531],
    "rare kswin": [],
    "rare ddm": [3814, 3864],
    "rare eddm": [3415, 3567, 3726, 3876, 3995, 4143, 4299, 4424, 4684, 4926, 5122, 5231, 5412, 5529, 5743],
    "often adwin": [3455],
    "often adwin_eager": [3307, 4610],
    "often page_hinkley": [3282],
    "often page_hinkley_low": [478, 890, 2739, 3050, 4118, 4570, 4649, 4822, 5133, 5345, 5692],
    "often kswin": [],
    "often ddm": [],
    "often eddm": [74, 196, 264, 341, 536, 623],
    "skewed adwin": [3391],
    "skewed adwin_eager": [3225],
    "skewed page_hinkley": [3442],
    "skewed page_hinkley_low": [3380],
    "skewed kswin": [594, 824, 2740],
    "flat adwin": [],
    "flat adwin_eager": [4224],
    "flat page_hinkley": [],
    "flat page_hinkley_low": [],
    "flat kswin": [594, 824, 2740],
}


def stream(name):
    """6000 values that change in the middle, of one seed."""
    u = np.random.default_rng(7).random(6000)
    early = np.arange(6000) < 3000
    values = {
        "rare": (u < np.where(early, 0.1, 0.2)).astype(float),
        "often": (u < np.where(early, 0.4, 0.3)).astype(float),
        "skewed": u ** np.where(early, 3, 2),
        "flat": u,
    }
    return values[name].tolist()


def alarms(detector, values):
    found = []
    for i, value in enumerate(values):
        detector.update(value)
        if detector.has_drifted:
            found.append(i)
    return found


@pytest.mark.parametrize("case", RIVER)
def test_decisions_are_rivers(case):
    """Each detector alarms at exactly the values at which river's alarms."""
    name, kind = case.split(" ")
    values = stream(name)[:3000] if kind == "kswin" else stream(name)
    assert alarms(MAKERS[kind](), values) == RIVER[case]


@pytest.mark.parametrize("kind", MAKERS)
def test_state_goes_on_as_if_nothing_had_been(kind):
    """Saved as JSON and loaded into a new detector at any value, alarms are those of one that was never stopped."""
    name = "rare" if kind in {"ddm", "eddm"} else "skewed"
    values = stream(name)[2000:4500]
    whole = alarms(MAKERS[kind](), values)
    detector, found = MAKERS[kind](), []
    for i, value in enumerate(values):
        detector.update(value)
        if detector.has_drifted:
            found.append(i)
        if i % 97 == 0 or detector.has_drifted:
            state = json.loads(json.dumps(detector.to_state(), allow_nan=False))
            was_warned = detector.has_warned
            detector = MAKERS[kind]()
            detector.load_state(state)
            assert detector.has_warned == was_warned
            assert json.loads(json.dumps(detector.to_state())) == state
    assert found == whole
    assert whole or kind == "page_hinkley"


@pytest.mark.parametrize("kind", MAKERS)
def test_state_is_bounded(kind):
    """After many values the state is no larger than a few kilobytes."""
    detector = MAKERS[kind]()
    for value in (
        (np.random.default_rng(0).random(20_000) < 0.2).astype(float).tolist()[: 3000 if kind == "kswin" else None]
    ):
        detector.update(value)
    assert len(json.dumps(detector.to_state())) < 12_000


@pytest.mark.parametrize("kind", MAKERS)
def test_an_altered_state_is_refused(kind):
    """A state without one of its parts, or with a number that is none, is refused, whichever it is."""
    detector = MAKERS[kind]()
    for value in stream("rare")[:200]:
        detector.update(value)
    state = detector.to_state()
    for name in state:
        with pytest.raises((KeyError, TypeError, ValueError)):
            MAKERS[kind]().load_state({key: value for key, value in state.items() if key != name})
        if isinstance(state[name], float):
            with pytest.raises((TypeError, ValueError)):
                MAKERS[kind]().load_state({**state, name: math.nan})
    with pytest.raises((KeyError, TypeError, ValueError)):
        MAKERS[kind]().load_state({})


def test_adwin_says_what_changed():
    """The means before and after the change are those of the stream."""
    detector = Adwin()
    rng = np.random.default_rng(1)
    for value in [*(rng.random(2000) < 0.1).astype(float), *(rng.random(2000) < 0.3).astype(float)]:
        detector.update(value)
        if detector.has_drifted:
            break
    assert detector.means == pytest.approx((0.1, 0.3), abs=0.05)
    assert 2000 < detector.width < 2400


def test_adwin_keeps_the_window_it_says():
    """Buckets hold as many values, and their sum, as there were."""
    detector, values = Adwin(), stream("flat")[:5000]
    for value in values:
        detector.update(value)
    state = detector.to_state()
    assert sum(len(row) << place for place, row in enumerate(state["sums"])) == detector.width == 5000
    assert sum(map(sum, state["sums"])) == pytest.approx(sum(values))
    assert max(map(len, state["sums"])) <= 5


@pytest.mark.parametrize("kind", MAKERS)
def test_a_stream_that_never_changes_value_never_alarms(kind):
    """Constant errors, all 0 or all 1, are no change."""
    for constant in (0.0, 1.0):
        assert alarms(MAKERS[kind](), [constant] * 1500) == []


def test_distances_are_scipys():
    """The Kolmogorov-Smirnov distance of two samples, ties included, and its critical value, are SciPy's exact ones."""
    rng = np.random.default_rng(2)
    for _ in range(50):
        old, new = rng.integers(0, 12, 30).tolist(), rng.integers(0, 14, 30).tolist()
        assert _distance(old, new) / 30 == pytest.approx(stats.ks_2samp(old, new).statistic)
    for n, alpha in ((30, 0.005), (30, 0.05), (50, 0.001)):
        critical = _critical_distance(n, alpha)
        probability = [stats.ks_2samp(range(n), np.arange(n) + d - 0.5).pvalue for d in (critical - 1, critical)]
        assert probability[0] > alpha >= probability[1]
    assert _critical_distance(5, 1e-9) == 6
    with pytest.raises(ValueError, match="twice the newest"):
        Kswin(window=50, newest=30)
