"""Concept monitoring: changes of meaning are found, fast labels are not taken for one, and nothing is lost between runs."""

from __future__ import annotations

import json
import math
import os

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.monitor.outcome_tables import DAY_US, HOUR_US, START_US, make_outcomes, where

from tiercel.errors import ConceptStateError
from tiercel.monitor.concept import watch_concept
from tiercel.monitor.concept_state import MAX_ALARMS, TRUSTED, WARM_UP, ConceptState, ConceptStore
from tiercel.monitor.error_streams import StreamScale
from tiercel.settings import ValueSettings
from tiercel.types import Task

DAYS, N = 20, 16_000


def outcomes(meaning=lambda scores, _: scores, *, n=N, seed=0, **columns):
    """Twenty days of predictions whose labels take up to two hours; `meaning` is the rate of positives by scores and days."""
    rng = np.random.default_rng(seed)
    days = np.arange(n) * DAYS / n
    scores = rng.beta(2, 4, n)
    given = {
        "score": scores, "label": (rng.random(n) < meaning(scores, days)).astype(float),
        "time": START_US + (days * DAY_US).astype(np.int64), "delay_us": rng.integers(0, 2 * HOUR_US, n), **columns,
    }  # fmt: skip
    return make_outcomes(n, **given)


def watch(connection, store=None, *, days=DAYS + 1, task=Task.BINARY, **options):
    return watch_concept(
        connection,
        "late",
        task,
        as_of_us=START_US + int(days * DAY_US),
        maturity_us=2 * HOUR_US,
        store=store,
        **options,
    )


def worse(scores, days):
    """From the tenth day on, scores say less."""
    return np.where(days < 10, scores, 0.5 * scores + 0.25)


def test_a_change_of_meaning_is_found():
    """A day or two after scores lose their meaning trusted detectors say so, with the time and the size of the change."""
    (status,) = watch(outcomes(worse))
    (first, *_) = status.changes(START_US)
    assert START_US + 10 * DAY_US < first.time_us < START_US + 12 * DAY_US
    by_adwin = [a for a in status.state.alarms if (a.stream, a.detector) == ("losses", "adwin")]
    assert by_adwin[0].after - by_adwin[0].before > 0.02
    assert status.changes(START_US + 19 * DAY_US) == []
    assert (status.n_new, status.n_missed, status.is_behind) == (N, 0, False)
    json.dumps(status.to_json(), allow_nan=False)


def test_without_a_change_trusted_detectors_are_quiet():
    """Over ten streams of ten thousand predictions of one meaning, whose inputs move, trusted detectors alarm twice at most."""
    n_alarms = 0
    rng = np.random.default_rng(1)
    for _ in range(10):
        state = ConceptState(1, "champion", 0, "")
        scores = rng.beta(2, np.linspace(4, 4.5, 10_000))
        labels = (rng.random(10_000) < scores).astype(float)
        state.detectors = {key: each for key, each in state.detectors.items() if key in TRUSTED}
        state.add(Task.BINARY, 0.5, np.arange(10_000), scores, labels)
        n_alarms += sum(state.n_alarms.values())
    assert n_alarms <= 2


def test_fast_labels_are_not_taken_for_a_change():
    """Where negatives are labelled at once and positives days later, predictions join in their own order and nothing alarms."""
    rng = np.random.default_rng(2)
    scores = rng.beta(2, 4, N)
    labels = (rng.random(N) < scores).astype(float)
    delays = np.where(labels > 0, rng.integers(DAY_US, 2 * DAY_US, N), 0)
    connection = outcomes(score=scores, label=labels, delay_us=delays)
    (status,) = watch_concept(
        connection, "late", Task.BINARY, as_of_us=START_US + DAYS * DAY_US, maturity_us=2 * DAY_US, store=None
    )
    assert status.state.until_us <= START_US + (DAYS - 2) * DAY_US
    assert status.changes(START_US) == []


def test_runs_go_on_where_the_last_one_ended(tmp_path):
    """A run a day, each from the file, knows what one run over everything knows, byte by byte."""
    connection = outcomes(worse, n=4000)
    store = ConceptStore(tmp_path)
    n_new = 0
    for day in range(1, DAYS + 2):
        for status in watch(connection, store, days=day):
            n_new += status.n_new
    (whole,) = watch(connection)
    kept = store.load("late", 1, "champion")
    assert kept.to_bytes() == whole.state.to_bytes()
    assert n_new == whole.n_new == 4000
    assert watch(connection, store)[0].n_new == 0


def test_a_run_is_bounded(tmp_path):
    """A run takes so many rows and says that more wait; the next ones catch up, equal times together."""
    times = START_US + np.arange(3000) // 7 * HOUR_US // 100
    connection = outcomes(n=3000, time=times, delay_us=0)
    store = ConceptStore(tmp_path)
    seen, behind = [], True
    while behind:
        (status,) = watch(connection, store, most_rows=500)
        behind = status.is_behind
        seen.append(status.n_new)
    assert sum(seen) == 3000
    assert max(seen) <= 500
    assert store.load("late", 1, "champion").to_bytes() == watch(connection)[0].state.to_bytes()


def test_looking_keeps_nothing(tmp_path):
    """A run that only looks leaves no file, and sees the same."""
    store = ConceptStore(tmp_path)
    (status,) = watch(outcomes(n=1000), store, keep=False)
    assert status.n_new == 1000
    assert list(tmp_path.iterdir()) == []


def test_what_comes_after_its_place_is_counted(tmp_path):
    """Predictions that come to be known after their place in the stream passed are told, and never counted twice."""
    connection = outcomes(n=2000)
    late = connection.sql("SELECT * FROM outcomes WHERE hash(id) % 4 = 0").to_arrow_table()
    connection.execute("DELETE FROM outcomes WHERE hash(id) % 4 = 0")
    store = ConceptStore(tmp_path)
    (first,) = watch(connection, store)
    connection.register("missed", late)
    connection.execute("INSERT INTO outcomes SELECT * FROM missed")
    (second,) = watch(connection, store)
    assert first.n_new == 2000 - late.num_rows
    assert (second.n_new, second.n_missed) == (0, late.num_rows)


def test_versions_and_arms_have_streams_of_their_own(tmp_path):
    """A challenger's errors are not the champion's; another threshold begins anew."""
    place = np.arange(2000) % 3
    connection = outcomes(n=2000, version=np.where(place == 0, 2, 1), arm=where(place == 0, "challenger", "champion"))
    store = ConceptStore(tmp_path)
    assert [(s.state.version, s.state.arm) for s in watch(connection, store)] == [(1, "champion"), (2, "challenger")]
    assert [s.n_new for s in watch(connection, store)] == [0, 0]
    assert [s.n_new for s in watch(connection, store, version=2)] == [0]
    (_, again) = watch(connection, store, settings=ValueSettings(threshold=0.3))
    assert again.n_new == 667


def test_regression_errors_are_watched():
    """A regression model whose errors grow, or that begins to be wrong on one side, is found."""
    rng = np.random.default_rng(3)
    scores = rng.normal(100, 30, N)
    for name, change in (("grow", (0, 30)), ("lean", (15, 10))):
        late = np.arange(N) >= N // 2
        noise = rng.normal(np.where(late, change[0], 0), np.where(late, change[1], 10))
        (status,) = watch(outcomes(score=scores, label=scores + noise), task=Task.REGRESSION)
        (first, *_) = status.changes(START_US)
        assert START_US + 10 * DAY_US < first.time_us < START_US + 11 * DAY_US, name
    assert watch(outcomes(), task=Task.MULTICLASS) == []


def test_before_the_warm_up_nothing_is_watched(tmp_path):
    """The first predictions only say what is usual; their labels survive in the file."""
    store = ConceptStore(tmp_path)
    (status,) = watch(outcomes(n=WARM_UP - 1), store)
    assert status.to_json()["is_warm"] is False
    assert len(store.load("late", 1, "champion").warm) == WARM_UP - 1


@pytest.mark.parametrize(
    "columns",
    [
        pytest.param({"label": None, "label_time": None}, id="no labels"),
        pytest.param({"score": math.nan}, id="no scores"),
        pytest.param({"label": 7.0}, id="no sound labels"),
        pytest.param({"score": 0.4, "label": 0.0}, id="all the same"),
    ],
)
def test_nothing_to_learn_from_is_survived(tmp_path, columns):
    """Without labels, without scores and without any difference there is a status and no alarm."""
    (status,) = watch(outcomes(n=1500, **columns), ConceptStore(tmp_path))
    assert status.state.alarms == []
    json.dumps(status.to_json(), allow_nan=False)


@pytest.mark.parametrize("size", [1e-300, 1.0, 1e300, 1.7e308])
def test_streams_stay_finite(size):
    """Whatever the size of labels, streams are finite and errors and losses within 0 to 1."""
    rng = np.random.default_rng(4)
    labels, scores = size * rng.uniform(-1, 1, (2, 1000))
    for task in (Task.REGRESSION, Task.BINARY):
        streams = StreamScale.of(labels, scores).streams(task, 0.5, scores, labels)
        assert all(np.isfinite(values).all() for values in streams.values())
        for name in ("errors", "losses"):
            assert 0 <= streams[name].min() <= streams[name].max() <= 1


def test_alarms_are_bounded(tmp_path):
    """Only the newest alarms are kept, all are counted, and the file stays small."""
    connection = outcomes(lambda scores, days: np.where(days * 10 % 2 < 1, scores, 1 - scores), n=60_000)
    (status,) = watch(connection, ConceptStore(tmp_path))
    assert len(status.state.alarms) <= MAX_ALARMS
    assert sum(status.state.n_alarms.values()) > MAX_ALARMS
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.msgpack")) < 40_000


def test_a_damaged_file_begins_anew(tmp_path, caplog):
    """A file that was cut is named in the log, and the stream begins again instead of failing."""
    store = ConceptStore(tmp_path)
    connection = outcomes(n=1000)
    watch(connection, store)
    (path,) = tmp_path.rglob("*.msgpack")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ConceptStateError, match=r"1-champion\.msgpack"):
        store.load("late", 1, "champion")
    (status,) = watch(connection, store)
    assert status.n_new == 1000
    assert "begins anew" in caplog.text
    assert store.load("late", 1, "champion").n_rows == 1000


def test_a_full_disk_leaves_what_was_stored(tmp_path, monkeypatch):
    """When the new file cannot be written the old one is whole, nothing is left behind, and the caller is told."""
    store = ConceptStore(tmp_path)
    connection = outcomes(n=1000)
    watch(connection, store, days=10)
    before = store.load("late", 1, "champion").to_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        watch(connection, store)
    assert store.load("late", 1, "champion").to_bytes() == before
    assert len(list(tmp_path.rglob("*.*"))) == 1


def test_names_of_models_stay_within_the_directory(tmp_path):
    """A name cannot lead out of the directory."""
    store = ConceptStore(tmp_path)
    store.save("../x", ConceptState(1, "champion", 0, "binary 0.5"))
    assert [path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*.msgpack")] == ["concept"]
    assert store.load("../x", 1, "champion").n_rows == 0
    assert store.load("x", 1, "champion") is None


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.binary(max_size=60), st.recursive(
    st.none() | st.integers(0, 9) | st.floats() | st.binary(max_size=9) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
).map(msgpack.packb)))  # fmt: skip
def test_anything_else_is_refused(data):
    """Bytes that are no state are said to be none."""
    with pytest.raises(ConceptStateError, match="as tiercel writes it"):
        ConceptState.from_bytes(data)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "tiercel-concept-2"},
        {"arm": "../x"},
        {"detectors": {}},
        {"scale": [0.0, -1.0, 0.0, 0.0]},
        {"scale": [0.0, math.nan, 0.0, 0.0]},
        {"alarms": [[1, 2]]},
        {"n_rows": None},
    ],
    ids=str,
)
def test_an_altered_state_is_refused(change):
    """Other detectors, a scale that measures nothing and alarms that are none are refused."""
    data = msgpack.unpackb(ConceptState(1, "champion", 0, "binary 0.5").to_bytes())
    with pytest.raises(ConceptStateError):
        ConceptState.from_bytes(msgpack.packb({**data, **change}))
