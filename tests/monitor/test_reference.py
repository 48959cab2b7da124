"""References: edges where the training data is, counts that add up, bytes that are checked."""

from __future__ import annotations

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tests.reference import binning

from tiercel.errors import ArtifactCorruptError
from tiercel.monitor.reference import Reference, find_reference, quantile_edges

SPECIAL = [np.nan, np.inf, -np.inf, -0.0, 3.4028235e38, -3.4028235e38, 1.4e-45]
VALUES = st.one_of(st.sampled_from(SPECIAL), st.integers(-30, 30).map(float), st.floats(width=32))
MATRICES = hnp.arrays(np.float32, st.tuples(st.integers(1, 60), st.integers(1, 4)), elements=VALUES)


def build(X):
    scores = np.linspace(0, 1, len(X))[:, None]
    return Reference.build(X, scores, [f"f{i}" for i in range(X.shape[1])])


@settings(max_examples=100, deadline=None)
@given(MATRICES)
def test_reference_counts_equal_the_slow_count(X):
    """Every training value is in the cell the slow twin puts it in, and no cell holds anything else."""
    reference = build(X)
    np.testing.assert_array_equal(reference.feature_counts, binning.histograms(reference.feature_edges, X))
    assert (reference.feature_counts.sum(axis=1) == len(X)).all()


@settings(max_examples=100, deadline=None)
@given(MATRICES)
def test_a_reference_survives_its_file(X):
    """Bytes and back is the same reference with the same digest."""
    reference = build(X)
    again = Reference.from_bytes(reference.to_bytes())
    assert again.digest == reference.digest == build(X.copy()).digest
    np.testing.assert_array_equal(again.feature_edges, reference.feature_edges)
    assert find_reference({"reference.msgpack": reference.to_bytes()}).digest == reference.digest
    assert find_reference({"model.json": b""}) is None


def test_continuous_features_get_even_bins():
    """Twenty bins of about equal count between the smallest and the largest training value, none outside."""
    values = np.random.default_rng(0).gamma(2, 3, 10_000).astype(np.float32)
    edges = quantile_edges(values)
    counts = binning.histograms(edges[None], values[:, None])[0]
    assert np.isfinite(edges).sum() == 21
    assert counts[0] == counts[21] == 0
    assert (abs(counts[1:21].astype(int) - 500) <= 2).all()


def test_discrete_features_get_a_bin_per_value():
    """A feature of few values is counted by value; a value never seen, above the largest, stands apart."""
    edges = quantile_edges(np.float32([3, 1, 1, 7, np.nan]))
    assert edges[:3].tolist() == [1, 3, 7]
    cells = [binning.cell_of(edges, v) for v in (0, 1, 3, 7, 8)]
    assert cells == [0, 1, 2, 3, 4]


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.binary(max_size=100), st.recursive(
    st.none() | st.integers(0, 9) | st.binary(max_size=9) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
).map(msgpack.packb)))  # fmt: skip
def test_anything_else_is_refused(data):
    """Bytes that are not a reference are said to be none."""
    with pytest.raises(ArtifactCorruptError, match=r"reference\.msgpack"):
        Reference.from_bytes(data)


@pytest.mark.parametrize(
    "change",
    [
        {"n_rows": 4},
        {"n_rows": 1 << 62},
        {"n_rows": True},
        {"features": ["a"]},
        {"features": ["a", 3]},
        {"n_outputs": 2},
        {"feature_edges": b""},
        {"feature_edges": np.zeros((2, 24), "<f4").tobytes()},
        {"feature_edges": np.full((2, 24), np.nan, "<f4").tobytes()},
        {"score_edges": np.arange(24.0)[::-1].tobytes()},
        {"feature_counts": np.full((2, 28), 1 << 63, "<u8").tobytes()},
        {"format": "tiercel-reference-2"},
    ],
    ids=str,
)
def test_an_altered_reference_is_refused(change):
    """Edges that do not ascend, counts that do not add up and sizes that do not fit are refused."""
    data = msgpack.unpackb(build(np.zeros((5, 2), np.float32)).to_bytes())
    with pytest.raises(ArtifactCorruptError):
        Reference.from_bytes(msgpack.packb({**data, **change}))


def test_truncation_is_refused():
    """No proper prefix of a reference is one."""
    data = build(np.zeros((5, 2), np.float32)).to_bytes()
    for size in range(len(data)):
        with pytest.raises(ArtifactCorruptError):
            Reference.from_bytes(data[:size])
