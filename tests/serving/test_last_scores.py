"""The newest score of an entity is remembered, in bounded memory, with its age and version."""

from __future__ import annotations

import math
import tracemalloc
from collections import OrderedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiercel.serving.last_scores import MAX_ROWS, LastScore, LastScores

MINUTE_US = 60_000_000


@pytest.fixture
def memory():
    return LastScores(1 << 20)


def test_what_is_put_is_got(memory):
    """A score comes back with its age and version, also one number per class."""
    memory.put("fraud", b"a", 3, [0.25], 1000)
    memory.put("three", b"a", 4, [0.1, 0.2, 0.7], 2000)
    assert memory.get("fraud", b"a", 5000, MINUTE_US) == LastScore((0.25,), 4000, 3)
    assert memory.get("three", b"a", 5000, MINUTE_US) == LastScore((0.1, 0.2, 0.7), 3000, 4)
    assert memory.get("fraud", b"b", 5000, MINUTE_US) is None
    assert memory.get("frau", b"d\0a", 5000, MINUTE_US) is None


@pytest.mark.parametrize(("now_us", "age_us"), [(61_000, 60_000), (61_001, None), (500, 0)])
def test_age_is_bounded(memory, now_us, age_us):
    """A score is given up to its greatest age, to the microsecond; one from the future has none."""
    memory.put("fraud", b"a", 3, [0.25], 1000)
    found = memory.get("fraud", b"a", now_us, 60_000)
    assert (None if found is None else found.age_us) == age_us


def test_the_newest_wins(memory):
    """Of answers that are ready in another order than they were asked for, the later question's stays."""
    memory.put("fraud", b"a", 3, [0.2], 2000)
    memory.put("fraud", b"a", 3, [0.1], 1999)
    assert memory.get("fraud", b"a", 2000, 0).scores == (0.2,)
    memory.put("fraud", b"a", 4, [0.3], 2000)
    assert memory.get("fraud", b"a", 2000, 0) == LastScore((0.3,), 0, 4)
    assert len(memory) == 1


@pytest.mark.parametrize("scores", [[math.nan], [0.1, math.inf]])
def test_no_number_is_no_score(memory, scores):
    """What is not finite is not kept, and does not replace what is."""
    memory.put("fraud", b"a", 3, [0.2], 1)
    memory.put("fraud", b"a", 4, scores, 2)
    assert memory.get("fraud", b"a", 2, MINUTE_US).scores == (0.2,)


def test_the_least_recently_used_goes_first():
    """When memory is full, who was neither scored nor asked for longest is forgotten."""
    probe = LastScores(1 << 20)
    probe.put("m", b"a", 1, [0.5], 0)
    memory = LastScores(3 * probe.n_bytes)
    for key in (b"a", b"b", b"c"):
        memory.put("m", key, 1, [0.5], 0)
    assert memory.get("m", b"a", 0, 0)
    memory.put("m", b"b", 1, [0.6], 1)
    memory.put("m", b"d", 1, [0.5], 1)
    assert [key for key in (b"a", b"b", b"c", b"d") if memory.get("m", key, 1, 10)] == [b"a", b"b", b"d"]
    assert memory.n_evicted == 1


def test_an_entry_larger_than_the_memory_is_not_kept(memory):
    """One huge key does not break the bound."""
    small = LastScores(300)
    small.put("m", b"k" * 1000, 1, [0.5], 0)
    assert (len(small), small.n_bytes) == (0, 0)


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b"]),
        st.binary(max_size=2),
        st.lists(st.floats(0, 1), min_size=1, max_size=3),
        st.integers(0, 9),
        st.booleans(),
    ),
    max_size=60,
)


@settings(deadline=None)
@given(OPERATIONS, st.integers(300, 2000))
def test_equals_a_slow_twin(operations, max_bytes):
    """Any order of puts and gets gives what an ordered dict of plain tuples gives, within the bound."""
    memory = LastScores(max_bytes)
    twin = OrderedDict()
    for version, (model, key, scores, at_us, is_put) in enumerate(operations):
        if is_put:
            memory.put(model, key, version, scores, at_us)
            if (model, key) not in twin or twin[model, key][1] <= at_us:
                twin[model, key] = (version, at_us, tuple(scores))
                twin.move_to_end((model, key))
            while len(twin) > len(memory):  # how many fit is the memory's affair, which go is not
                twin.popitem(last=False)
        else:
            got, expected = memory.get(model, key, 9, 9), twin.get((model, key))
            assert (None if got is None else (got.version, 9 - got.age_us, got.scores)) == expected
            if expected is not None:
                twin.move_to_end((model, key))
        assert memory.n_bytes <= max_bytes


@pytest.mark.parametrize("n_entries", [10_000, 44_000])
def test_bytes_are_really_bounded(n_entries):
    """What is counted is at least what Python allocates, also where a hash table has just grown."""
    tracemalloc.start()
    try:
        memory = LastScores(1 << 30)
        for i in range(n_entries):
            memory.put("fraud", b"%020d" % i, 300 + i, [0.5], 10**12 + i)
        allocated, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert allocated <= memory.n_bytes <= 2 * allocated


def test_rows_are_all_or_nothing(memory):
    """A list of rows is answered only if every row's score is known, and all are of one version."""
    keys = [b"a", b"b"]
    memory.put_rows("m", keys, 3, [[0.1], [0.2]], 1000)
    assert [each.scores for each in memory.get_rows("m", keys, 1000, 0)] == [(0.1,), (0.2,)]
    assert memory.get_rows("m", [*keys, b"c"], 1000, 0) is None
    assert memory.get_rows("m", [], 1000, 0) is None
    memory.put("m", b"b", 4, [0.3], 1000)
    assert memory.get_rows("m", keys, 1000, 0) is None


@pytest.mark.parametrize(("n_rows", "is_kept"), [(MAX_ROWS, True), (MAX_ROWS + 1, False)])
def test_long_lists_are_not_kept(memory, n_rows, is_kept):
    """A list beyond the limit would hold up who waits behind it; it is neither kept nor given."""
    keys = [b"%d" % i for i in range(n_rows)]
    memory.put_rows("m", keys, 3, [[0.5]] * n_rows, 0)
    assert len(memory) == (n_rows if is_kept else 0)
    assert (memory.get_rows("m", keys, 0, 0) is not None) is is_kept
