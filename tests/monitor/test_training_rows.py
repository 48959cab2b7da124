"""The sample of a training set that is kept with a version: bounded, the same for the same rows, refused when altered."""

from __future__ import annotations

import msgpack
import numpy as np
import pytest

from tiercel.errors import ArtifactCorruptError
from tiercel.monitor.training_rows import TRAINING_ROWS_FILE, TrainingRows, find_training_rows


def rows(n, seed=0):
    found = np.random.default_rng(seed).normal(size=(n, 3)).astype(np.float32)
    found[::5, 1] = np.nan
    return found


def test_a_small_set_is_kept_whole_and_a_large_one_drawn_from():
    """All rows where they fit; otherwise distinct ones of the set, in its order, by a seed of the rows themselves."""
    all_rows = rows(500)
    np.testing.assert_array_equal(TrainingRows.draw(all_rows, "abc").rows, all_rows)
    drawn = TrainingRows.draw(all_rows, "abc", most=100)
    assert (len(drawn.rows), drawn.n_all) == (100, 500)
    places = [int(np.flatnonzero(all_rows[:, 0] == value)[0]) for value in drawn.rows[:, 0]]
    assert places == sorted(set(places))
    assert TrainingRows.draw(all_rows, "abc", most=100).to_bytes() == drawn.to_bytes()
    assert TrainingRows.draw(rows(500, 1), "abc", most=100).to_bytes() != drawn.to_bytes()


def test_the_file_gives_the_rows_back():
    """Bytes and back: equal rows, missing values too; columns can be chosen by name."""
    drawn = TrainingRows.draw(rows(50), ("a", "b", "c"))
    found = find_training_rows({TRAINING_ROWS_FILE: drawn.to_bytes(), "model.txt": b""})
    np.testing.assert_array_equal(found.rows, drawn.rows)
    assert (found.features, found.n_all) == (("a", "b", "c"), 50)
    sample = found.sample(("c", "a"))
    np.testing.assert_array_equal(sample.values, drawn.rows[:, [2, 0]].astype(np.float64))
    assert (sample.n, sample.n_requests, sample.n_available) == (50, 50, 50)
    assert find_training_rows({}) is None


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"features": "abc"},
        {"features": []},
        {"features": ["a", "b"] * 7},
        {"rows": b""},
        {"rows": b"123"},
        {"rows": "text"},
        {"n_all": 3},
        {"n_all": None},
    ],
)
def test_an_altered_file_is_refused(change):
    """Whatever does not fit is named as no such file."""
    data = msgpack.unpackb(TrainingRows.draw(rows(50), ("a", "b", "c")).to_bytes()) | change
    with pytest.raises(ArtifactCorruptError, match="training_rows"):
        TrainingRows.from_bytes(msgpack.packb(data))


@pytest.mark.parametrize("data", [b"", b"\x80", b"\x93\x01\x02\x03", b"\xc1", bytes(100)])
def test_other_bytes_are_refused(data):
    """Not msgpack, or not a map of the right kind."""
    with pytest.raises(ArtifactCorruptError):
        TrainingRows.from_bytes(data)


def test_no_rows_or_other_names_are_the_callers_mistake():
    """A sample of nothing means nothing."""
    with pytest.raises(ValueError, match="Expected rows of 3 features"):
        TrainingRows.draw(rows(0), "abc")
    with pytest.raises(ValueError, match="Expected rows of 2 features"):
        TrainingRows.draw(rows(5), "ab")
