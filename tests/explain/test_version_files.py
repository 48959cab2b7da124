"""What a version keeps for its explanations, and how it comes back."""

from __future__ import annotations

import hashlib

import msgpack
import numpy as np
import pytest

from tiercel.errors import ArtifactCorruptError, ReasonPolicyError, SchemaMismatchError
from tiercel.explain.reference_set import MAX_REFERENCE_ROWS, REFERENCE_SET_FILE, ReferenceSet, draw_reference_set
from tiercel.explain.version_files import POLICY_FILE, load_explanation_files, make_explanation_files
from tiercel.settings import ExplainSettings
from tiercel.types import Signature, Task

SIGNATURE = Signature(("a", "b"), Task.BINARY, ("0", "1"))
STRICT = Signature(("a", "b"), Task.BINARY, ("0", "1"), accepts_missing=False)
POLICY = b"""
version = 1
[insufficient]
code = "R0"
text.en = "Nothing."
[[reasons]]
code = "R1"
text.en = "One."
features = ["a", "b"]
"""


def rows_of(n, seed=0):
    rows = np.random.default_rng(seed).normal(size=(n, 2)).astype(np.float32)
    rows[::7, 1] = np.nan
    return rows


def test_the_same_rows_give_the_same_set():
    """What is drawn follows from the rows' content alone, is a part of them, and survives its file."""
    rows = rows_of(3000)
    first, again = (draw_reference_set(rows, SIGNATURE, "training") for _ in range(2))
    assert first.digest == again.digest
    assert first.rows.shape == (MAX_REFERENCE_ROWS, 2)
    drawn = {row.tobytes() for row in first.rows}
    assert len(drawn & {row.tobytes() for row in rows}) == MAX_REFERENCE_ROWS
    restored = ReferenceSet.from_bytes(first.to_bytes())
    np.testing.assert_array_equal(restored.rows, first.rows)
    assert (restored.features, restored.drawn_from, restored.origin) == (("a", "b"), 3000, "training")
    assert restored.digest == first.digest
    assert draw_reference_set(rows[1:], SIGNATURE, "training").digest != first.digest


def test_the_draw_is_known():
    """The draw is written out, not NumPy's: these places come of these rows on every machine and with every library."""
    rows = np.arange(40, dtype=np.float32).reshape(20, 2)
    drawn = draw_reference_set(rows, SIGNATURE, "given", most=5)
    state, ranks = int.from_bytes(hashlib.sha256(rows.tobytes()).digest()[:8], "little"), []
    for at in range(20):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        ranks.append((z ^ (z >> 31), at))
    assert drawn.rows[:, 0].tolist() == [2.0 * at for at in sorted(at for _, at in sorted(ranks)[:5])]


def test_every_row_has_its_chance():
    """Over many contents, no place of the rows is preferred: each is drawn about as often."""
    counts = np.zeros(20)
    for seed in range(400):
        rows = np.stack([np.arange(20), np.full(20, seed)], axis=1).astype(np.float32)
        counts[draw_reference_set(rows, SIGNATURE, "given", most=5).rows[:, 0].astype(int)] += 1
    assert counts.sum() == 2000
    assert counts.min() > 100 - 5 * 8.7  # binomial (400, 1/4): five standard deviations
    assert counts.max() < 100 + 5 * 8.7


def test_rows_that_the_model_cannot_be_asked_about_are_left_out():
    """Infinities never, missing values only where the model takes them; nothing left is no set."""
    rows = np.array([[1, 2], [np.inf, 2], [1, np.nan]], np.float32)
    assert len(draw_reference_set(rows, SIGNATURE, "given").rows) == 2
    assert draw_reference_set(rows, STRICT, "given").rows.tolist() == [[1, 2]]
    assert draw_reference_set(rows[1:], STRICT, "given") is None
    assert draw_reference_set(rows[:0], SIGNATURE, "given") is None
    with pytest.raises(SchemaMismatchError, match=r"2 features, got an array of shape \(3, 3\)"):
        draw_reference_set(np.zeros((3, 3), np.float32), SIGNATURE, "given")


def test_a_set_of_another_schema_is_refused():
    """Other names, another order, and missing values for a model that takes none are named before anything is explained."""
    drawn = draw_reference_set(rows_of(50), SIGNATURE, "training")
    files = {REFERENCE_SET_FILE: drawn.to_bytes()}
    load_explanation_files(files, SIGNATURE)
    for features in (("b", "a"), ("a", "b", "c"), ("a",)):
        with pytest.raises(SchemaMismatchError, match="got one of a, b"):
            load_explanation_files(files, Signature(features, Task.BINARY, ("0", "1")))
    with pytest.raises(SchemaMismatchError, match="without missing values"):
        load_explanation_files(files, STRICT)


def edited(**changes):
    drawn = draw_reference_set(rows_of(5), SIGNATURE, "training")
    return msgpack.packb({**msgpack.unpackb(drawn.to_bytes()), **changes})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x93\1\2\3",
        msgpack.packb({}),
        edited(format="tiercel-explain-reference-2"),
        edited(origin="elsewhere"),
        edited(features=[]),
        edited(features=["a", 3]),
        edited(features=["a", "c"]),
        edited(rows=b"\0" * 12),
        edited(rows=b""),
        edited(rows=np.full((5, 2), np.inf, "<f4").tobytes()),
        edited(rows=np.zeros((101, 2), "<f4").tobytes()),
        edited(drawn_from="5"),
        edited(digest="0" * 64),
        edited()[:-1],
    ],
)
def test_a_damaged_set_is_refused(data):
    """Whatever is not a set that tiercel wrote is an error with a name, not an exception of a library."""
    with pytest.raises(ArtifactCorruptError, match=REFERENCE_SET_FILE):
        ReferenceSet.from_bytes(data)


def test_a_version_gets_back_what_it_was_registered_with():
    """The policy's bytes and the drawn rows are its files, and settings change number and locale alone."""
    files = make_explanation_files(SIGNATURE, policy=POLICY, rows=rows_of(500))
    assert files[POLICY_FILE] == POLICY
    loaded = load_explanation_files(files, SIGNATURE, ExplainSettings(k=2))
    assert not loaded.policy.is_default
    assert loaded.policy.k == 2
    assert loaded.reference_rows.shape == (100, 2)
    assert loaded.reference_digest == ReferenceSet.from_bytes(files[REFERENCE_SET_FILE]).digest
    assert loaded.why_no_reference == ""


def test_a_policy_that_does_not_fit_is_not_registered():
    """A feature without a reason is an error when a version is registered, named with the file."""
    wide = Signature(("a", "b", "c"), Task.BINARY, ("0", "1"))
    with pytest.raises(ReasonPolicyError, match=r"^mine\.toml: .* none has 'c'"):
        make_explanation_files(wide, policy=POLICY, rows=None, where="mine.toml")
    narrow = Signature(("a",), Task.BINARY, ("0", "1"))
    with pytest.raises(ReasonPolicyError, match="got 'b'"):
        make_explanation_files(narrow, policy=POLICY, rows=None)
    files = make_explanation_files(narrow, policy=POLICY, rows=None, also_known=("a", "b"))
    assert load_explanation_files(files, narrow).policy.reasons[0].features == ("a", "b")


def test_versions_from_before_still_explain():
    """Without files of its own a version has its features as reasons, and its golden rows or nobody to compare with."""
    loaded = load_explanation_files({}, SIGNATURE, ExplainSettings(locale="de"), golden_rows=rows_of(300))
    assert loaded.policy.is_default
    assert loaded.reference.origin == "golden"
    assert len(loaded.reference_rows) == 100
    for made_up in (rows_of(64), np.vstack([rows_of(99), np.full((1, 2), -np.inf, np.float32)])):
        assert load_explanation_files({}, SIGNATURE, golden_rows=made_up).reference is None
    loaded = load_explanation_files({}, SIGNATURE, owner="'late' version 3")
    assert loaded.reference_rows is loaded.reference_digest is None
    assert "'late' version 3 was registered without training rows" in loaded.why_no_reference


def test_a_damaged_policy_is_an_artifact_error():
    """A policy that was good when it was registered and is not now is a damaged file, not the user's mistake."""
    with pytest.raises(ArtifactCorruptError, match=r"reasons\.toml of the version"):
        load_explanation_files({POLICY_FILE: b"version = 3"}, SIGNATURE)
