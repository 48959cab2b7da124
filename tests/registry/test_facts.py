from __future__ import annotations

import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiercel.errors import InvalidFactsError, InvalidNameError
from tiercel.registry import VersionFacts
from tiercel.registry.facts import canonical_json, check_tags, digest_of, facts_from_json
from tiercel.types import Signature, Task, Tier, TrainingSnapshot

#: Of the facts of `make_facts`, computed before `VersionFacts.tier` existed.
DIGEST_BEFORE_TIERS = "b7aaa452311aac8456e996f1634c42b60c707d348c10ed3a1e79d0d2dc91e592"
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
names = texts.filter(bool)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | texts
    | st.floats(allow_nan=False, allow_infinity=False)
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3), max_leaves=8
)


@given(values, st.dictionaries(names, st.floats(allow_nan=False, allow_infinity=False), max_size=3))
def test_facts_survive_their_json(value, metrics):
    """What was registered is what is read back, for any JSON value and any finite metrics."""
    facts = VersionFacts(
        snapshot=TrainingSnapshot("q", 0, "x"),
        signature=Signature(("a",), Task.REGRESSION),
        author="ann",
        engine="linear",
        parity=value,
        hyperparameters={"p": value},
        metrics=metrics,
    )
    text = canonical_json(facts.to_json())
    assert facts_from_json(json.loads(text), {}) == facts
    assert text.isascii()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, np.float32("nan"), 10**400])
def test_metrics_must_be_finite(make_facts, bad):
    """A metric that cannot be compared is refused by name, with the way out."""
    with pytest.raises(
        InvalidFactsError, match=r"metrics\['auc'\]: expected a finite number.*Leave an undefined metric out"
    ):
        make_facts(metrics={"auc": bad}).to_json()


@pytest.mark.parametrize("bad", [True, "0.7", None, [0.7], 1j])
def test_metrics_must_be_numbers(make_facts, bad):
    """Booleans and texts are not metrics."""
    with pytest.raises(InvalidFactsError, match="expected a number"):
        make_facts(metrics={"auc": bad}).to_json()


def test_hyperparameters_record_what_json_lacks_as_text(make_facts):
    """A `missing=nan`, as xgboost has it, is recorded, not refused; NumPy scalars and tuples become plain values."""
    given_ = {"missing": math.nan, "max": math.inf, "min": -math.inf, "n": np.int64(3), "lr": np.float32(0.5),
              "flag": np.bool_(True), "grid": (1, 2), "frac": Fraction(1, 2)}  # fmt: skip
    assert make_facts(hyperparameters=given_).to_json()["hyperparameters"] == {
        "missing": "NaN", "max": "Infinity", "min": "-Infinity", "n": 3, "lr": 0.5, "flag": True, "grid": [1, 2], "frac": 0.5
    }  # fmt: skip


def nested(depth):
    value = 0
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("bad", "where"),
    [
        ({"estimator": object()}, "hyperparameters.estimator"),
        ({"a": {"b": [1, {2}]}}, r"hyperparameters.a.b\[1\]"),
        ({3: 1}, "names of 1 to"),
        ({"": 1}, "names of 1 to"),
        ({"a": "\ud800"}, "surrogates"),
        ({"a": "x\0y"}, "NUL"),
        ({"a": 2**64}, "64 bits"),
        ({"a": np.zeros(3)}, "ndarray"),
        ({"a": nested(5000)}, "levels of nesting"),
        ([1], "expected a mapping"),
    ],
)
def test_hyperparameters_that_cannot_be_stored_are_refused_with_their_path(make_facts, bad, where):
    """The message names the place inside the mapping."""
    with pytest.raises(InvalidFactsError, match=where) as caught:
        make_facts(hyperparameters=bad).to_json()
    assert caught.value.code == "invalid_facts"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"author": ""}, "author: expected some text"),
        ({"author": None}, "author: expected text, got NoneType"),
        ({"description": "x" * 5001}, "at most 5000"),
        ({"engine": "pickle"}, "one of forest, linear, onnxruntime"),
        ({"service": "late"}, "both or neither"),
        ({"service_fingerprint": "ab"}, "both or neither"),
        ({"snapshot": {"source": "x"}}, "expected a TrainingSnapshot"),
        ({"snapshot": TrainingSnapshot("x", -1, "d")}, "n_rows"),
        ({"snapshot": TrainingSnapshot("", 1, "d")}, "source"),
        ({"snapshot": TrainingSnapshot("x", 1, "")}, "digest"),
        ({"signature": None}, "expected a Signature"),
        ({"metrics": 3}, "metrics: expected a mapping"),
    ],
)
def test_incomplete_facts_are_refused(make_facts, changed, message):
    """Every required fact is checked before anything is stored."""
    with pytest.raises(InvalidFactsError, match=message):
        make_facts(**changed).to_json()


def test_tags_are_checked():
    """Tag keys are names, values are texts."""
    assert check_tags({"team": "pricing"}) == {"team": "pricing"}
    with pytest.raises(InvalidNameError):
        check_tags({"\n": "x"})
    with pytest.raises(InvalidFactsError):
        check_tags({"team": 3})


def test_a_tier_that_nobody_asked_for_leaves_no_trace(make_facts):
    """Facts without a tier have the JSON, and so the digest, that they had before tiers could be asked for."""
    data = make_facts().to_json()
    assert "tier" not in data
    assert digest_of(canonical_json(data)) == digest_of(canonical_json(facts_from_json(data, {}).to_json()))
    asked = make_facts(tier=Tier.NEAR_REALTIME)
    assert asked.to_json() == {**data, "tier": "near-realtime"}
    assert facts_from_json(json.loads(canonical_json(asked.to_json())), {}) == asked


def test_facts_from_before_tiers_keep_their_digest(make_facts):
    """The digest of a version registered by an earlier tiercel is reproduced, so registering it again finds it."""
    assert digest_of(canonical_json(make_facts().to_json())) == DIGEST_BEFORE_TIERS


@pytest.mark.parametrize("bad", ["fast", "", 1, "REALTIME"])
def test_unknown_tiers_are_refused(make_facts, bad):
    """A tier that does not exist is refused with those that do."""
    with pytest.raises(InvalidFactsError, match="realtime, near-realtime, batch"):
        make_facts(tier=bad).to_json()
